//! `cargo xtask bench`: builds the benchmarks for release and runs them.

use std::process::Command;

use anyhow::{Context, Result, ensure};

/// The suite and its flags.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The suite and its flags, such as `dispatch --quick --json figures.json`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    suite: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    println!(
        "Building for release; the first time this compiles wasmtime and librdkafka once more: about 8 minutes on two cores."
    );
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .current_dir(xtask::tree::root())
        .args(["run", "--quiet", "--release", "--package", "bench", "--"])
        .args(&args.suite)
        .status()
        .context("can't run cargo")?;
    ensure!(status.success(), "the benchmark failed; its message is above");
    Ok(())
}
