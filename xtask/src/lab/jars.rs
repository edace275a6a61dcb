//! Jars from Maven Central: fetched once, shared by all runs of this checkout.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use crate::tree;

/// The folder with the jars that a `pom.xml` asks for, with the versions and sums that Maven finds for it; the first call fills it.
pub fn fetched(what: &str, pom: &Path) -> Result<PathBuf> {
    let home = tree::target().join("kafka-lab");
    // Another list of jars is another folder.
    let digest: String = Sha256::digest(fs::read(pom)?).iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    let jars = home.join(format!("libs-{digest}"));
    if jars.exists() {
        return Ok(jars);
    }
    fs::create_dir_all(&home)?;
    let lock = File::create(home.join("lock"))?;
    lock.lock().context("wait for another process that fetches jars")?;
    if jars.exists() {
        return Ok(jars);
    }
    eprintln!("fetching {what} from Maven Central into {} (once)", jars.display());
    let partial = home.join(format!("libs-{digest}.partial"));
    let status = Command::new("mvn")
        .args(["-q", "-B", "-f"])
        .arg(pom)
        .args(["dependency:copy-dependencies", "-DincludeScope=runtime"])
        .arg(format!("-DoutputDirectory={}", partial.display()))
        .status()
        .context("run `mvn`; on Debian: apt-get install maven openjdk-17-jre-headless")?;
    ensure!(status.success(), "`mvn` could not fetch {what}: {status}");
    fs::rename(&partial, &jars)?;
    Ok(jars)
}
