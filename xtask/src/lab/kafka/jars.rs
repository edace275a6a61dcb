//! Kafka's jars: fetched once, shared by every cluster of this checkout.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use crate::tree;

/// The folder with the jars, which Maven fills on the first call.
pub(super) fn fetched() -> Result<PathBuf> {
    let home = tree::target().join("kafka-lab");
    let wanted = tree::root().join("xtask/lab/pom.xml");
    // Another list of jars is another folder.
    let digest: String = Sha256::digest(fs::read(&wanted)?).iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    let jars = home.join(format!("libs-{digest}"));
    if jars.exists() {
        return Ok(jars);
    }
    fs::create_dir_all(&home)?;
    let lock = File::create(home.join("lock"))?;
    lock.lock().context("wait for another process that fetches kafka")?;
    if jars.exists() {
        return Ok(jars);
    }
    eprintln!("fetching Apache Kafka from Maven Central into {} (55 MB, once)", jars.display());
    let partial = home.join(format!("libs-{digest}.partial"));
    let status = Command::new("mvn")
        .args(["-q", "-B", "-f"])
        .arg(&wanted)
        .args(["dependency:copy-dependencies", "-DincludeScope=runtime"])
        .arg(format!("-DoutputDirectory={}", partial.display()))
        .status()
        .context("run `mvn`; on Debian: apt-get install maven openjdk-17-jre-headless")?;
    ensure!(status.success(), "`mvn` could not fetch Apache Kafka: {status}");
    fs::rename(&partial, &jars)?;
    Ok(jars)
}
