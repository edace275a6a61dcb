//! `cargo xtask lint`: the rules that need no test run.

use std::process::Command;

use anyhow::{Result, ensure};
use xtask::tree;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Fail if cargo-deny is not installed, instead of saying that dependencies were not checked
    #[arg(long)]
    deny: bool,
}

/// Checks formatting and lints of both workspaces, then dependencies.
pub(crate) fn run(args: &Args) -> Result<()> {
    for manifest in ["Cargo.toml", "guests/Cargo.toml"] {
        cargo(&["fmt", "--all", "--check", "--manifest-path", manifest])?;
        cargo(&[
            "clippy",
            "--workspace",
            "--all-targets",
            "--locked",
            "--manifest-path",
            manifest,
            "--",
            "-D",
            "warnings",
        ])?;
    }
    if args.deny || has_cargo_deny() {
        cargo(&["deny", "--all-features", "check", "bans", "licenses", "sources"])?;
    } else {
        eprintln!(
            "NOT CHECKED: dependencies' licences and sources; `cargo install cargo-deny --locked` takes some minutes"
        );
    }
    Ok(())
}

fn has_cargo_deny() -> bool {
    Command::new("cargo-deny").arg("--version").output().is_ok_and(|output| output.status.success())
}

fn cargo(args: &[&str]) -> Result<()> {
    eprintln!("\n== cargo {}", args.join(" "));
    let status = Command::new(env!("CARGO")).args(args).current_dir(tree::root()).status()?;
    ensure!(status.success(), "`cargo {}` failed", args.join(" "));
    Ok(())
}
