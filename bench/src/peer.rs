//! Peers that run on the JVM: `bench/peers/Peers.java` with the jars of `bench/peers/pom.xml`.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;
use xtask::lab::jars;

/// One run of a peer: flags are those of [`crate::run::Run`] or [`crate::order::Work`], the answer is a [`crate::run::Measured`]. Java compiles its source first, which takes a second or two.
pub(crate) fn java(peer: &str) -> Result<Command> {
    let folder: PathBuf = xtask::tree::root().join("bench/peers");
    let jars = jars::fetched("Kafka Streams and Confluent Parallel Consumer (96 MB)", &folder.join("pom.xml"))?;
    let mut command = Command::new("java");
    command.args(["-Xms256m", "-Xmx512m", "-XX:-UsePerfData", "-cp"]).arg(jars.join("*"));
    command.arg(folder.join("Peers.java")).arg(peer);
    Ok(command)
}
