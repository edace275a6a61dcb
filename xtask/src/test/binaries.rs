//! Building every test at once.
//!
//! Cargo chooses the features of dependencies by the packages that a command selects. Selecting the whole workspace each
//! time, and then running the binaries ourselves, package by package, keeps wasmtime and librdkafka compiled once.

use std::fmt;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use xtask::tree;

/// The host that the promises break on purpose; without the environment's word it behaves as the released one.
const FEATURES: [&str; 2] = ["--features", "tidemill/fault-injection"];

/// A compiled test binary.
pub(crate) struct Binary {
    package: String,
    target: String,
    folder: PathBuf,
    executable: PathBuf,
}

impl Binary {
    /// Whether it belongs to one of these packages and needs no servers.
    pub(crate) fn is_unit_of(&self, packages: &[&str]) -> bool {
        packages.contains(&self.package.as_str()) && !self.is_promises()
    }

    /// Whether it is the one with the end-to-end promises.
    pub(crate) fn is_promises(&self) -> bool {
        self.package == "tests" && self.target == "promises"
    }

    /// To be run where `cargo test` would run it.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.executable);
        command.current_dir(&self.folder).env("CARGO_MANIFEST_DIR", &self.folder);
        command
    }
}

impl fmt::Display for Binary {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} ({})", self.package, self.target)
    }
}

/// Where `build` leaves the binary `tidemill`.
pub(crate) fn host() -> PathBuf {
    tree::target().join("debug/tidemill")
}

/// Builds the binary `tidemill` and all tests of the workspace, with one choice of features for both.
pub(crate) fn build() -> Result<Vec<Binary>> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(tree::root()).args(["build", "--locked", "--workspace", "--bin", "tidemill", "--tests"]);
    cargo.args(FEATURES);
    cargo.arg("--message-format=json-render-diagnostics");
    let mut child = cargo.stdout(Stdio::piped()).spawn()?;
    let output = child.stdout.take().context("the child's output is piped")?;
    let mut binaries = Vec::new();
    for line in BufReader::new(output).lines() {
        binaries.extend(binary(&serde_json::from_str(&line?)?));
    }
    ensure!(child.wait()?.success(), "the host and its tests could not be built");
    Ok(binaries)
}

/// Builds the binary `tidemill` and the program that has the faults, with the same choice of features; answers that program.
pub(crate) fn build_faults() -> Result<PathBuf> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(tree::root());
    cargo.args(["build", "--locked", "--workspace", "--bin", "tidemill", "--bin", "faults"]).args(FEATURES);
    ensure!(cargo.status()?.success(), "the host and the faults could not be built");
    Ok(tree::target().join("debug/faults"))
}

fn binary(message: &Value) -> Option<Binary> {
    if message["reason"] != "compiler-artifact" || message["profile"]["test"] != true {
        return None;
    }
    let folder = Path::new(message["manifest_path"].as_str()?).parent()?;
    Some(Binary {
        package: package_name(message["package_id"].as_str()?).to_owned(),
        target: message["target"]["name"].as_str()?.to_owned(),
        folder: folder.to_owned(),
        executable: PathBuf::from(message["executable"].as_str()?),
    })
}

/// From `path+file:///folder/tests#0.1.0` or `path+file:///folder/core#tidemill-core@0.1.0`.
fn package_name(id: &str) -> &str {
    let (folder, version) = id.rsplit_once('#').unwrap_or((id, ""));
    match version.split_once('@') {
        Some((name, _)) => name,
        None => folder.rsplit('/').next().unwrap_or(folder),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_a_package_id_are_understood() {
        assert_eq!(package_name("path+file:///a/tests#0.1.0"), "tests");
        assert_eq!(package_name("path+file:///a/host/core#tidemill-core@0.1.0"), "tidemill-core");
    }
}
