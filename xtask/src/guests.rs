//! `cargo xtask guests`: builds the guests' components from source.

mod toolchain;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};
use xtask::tree;

use self::toolchain::{TARGET, Toolchain};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Make a toolchain from Debian's packages, in target/wasm-toolchain, if there is none that can build components
    #[arg(long)]
    bootstrap: bool,
    /// Build nothing: compare guests/prebuilt with its SHA256SUMS, and with target/guests where that was built
    #[arg(long, conflicts_with_all = ["bootstrap", "update_prebuilt"])]
    check: bool,
    /// Put the components into guests/prebuilt, with their SHA256SUMS, instead of target/guests
    #[arg(long)]
    update_prebuilt: bool,
}

const SUMS: &str = "SHA256SUMS";

/// Builds all guests in one cargo call and copies their components to where they are looked for.
pub(crate) fn run(args: &Args) -> Result<()> {
    if args.check {
        return check();
    }
    let into = if args.update_prebuilt { prebuilt() } else { tree::target().join("guests") };
    build_into(&into, args.bootstrap)
}

/// Builds the components into target/guests, and answers that folder.
pub(crate) fn from_source(bootstrap: bool) -> Result<PathBuf> {
    let into = tree::target().join("guests");
    build_into(&into, bootstrap)?;
    Ok(into)
}

fn build_into(into: &Path, bootstrap: bool) -> Result<()> {
    let toolchain = toolchain::find(bootstrap)?;
    eprintln!("building the guests with {toolchain}");
    let built = build(&toolchain)?;
    install(&built, into)?;
    eprintln!("{} components in {}", built.len(), into.display());
    Ok(())
}

/// Whether `cargo xtask guests` would find a toolchain without making one.
pub(crate) fn has_toolchain() -> bool {
    toolchain::find(false).is_ok()
}

/// Where the components are that were checked in.
pub(crate) fn prebuilt() -> PathBuf {
    tree::root().join("guests/prebuilt")
}

/// Runs cargo in the guests' workspace, and answers the components.
fn build(toolchain: &Toolchain) -> Result<Vec<PathBuf>> {
    let workspace = tree::root().join("guests");
    let target = workspace.join("target");
    let mut command = Command::new(env!("CARGO"));
    toolchain.choose(&mut command);
    command
        .current_dir(&workspace)
        .args(["build", "--release", "--locked", "--lib", "--target", TARGET, "--target-dir"])
        .arg(&target)
        .env("CARGO_ENCODED_RUSTFLAGS", without_places()?);
    ensure!(
        command.status().context("can't run cargo")?.success(),
        "the guests do not build; the compiler's message is above"
    );
    let mut built = components(&target.join(TARGET).join("release"))?;
    let members = members(&workspace)?;
    built.retain(|path| path.file_stem().is_some_and(|stem| members.iter().any(|name| stem == name.as_str())));
    ensure!(built.len() == members.len(), "{} guests gave {} components", members.len(), built.len());
    Ok(built)
}

/// The names of the guests: the folders of their workspace that are crates.
fn members(workspace: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(workspace)? {
        let path = entry?.path();
        if let (true, Some(name)) = (path.join("Cargo.toml").is_file(), path.file_name().and_then(|name| name.to_str()))
        {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// Compiler flags that keep this machine's folders out of the components. Another folder still gives other bytes, though not other code:
/// cargo names the SDK's symbols by where the SDK lies.
fn without_places() -> Result<OsString> {
    let registry = match std::env::var_os("CARGO_HOME") {
        Some(home) => PathBuf::from(home),
        None => std::env::home_dir().context("there is no home folder; set CARGO_HOME")?.join(".cargo"),
    };
    let mut flags = OsString::new();
    // The last one that fits wins.
    for (folder, name) in [(registry.as_path(), "/cargo"), (tree::root(), "/tidemill")] {
        if !flags.is_empty() {
            flags.push("\u{1f}");
        }
        flags.push("--remap-path-prefix=");
        flags.push(folder);
        flags.push("=");
        flags.push(name);
    }
    Ok(flags)
}

/// Copies each component by rename, so that a host that watches the folder never sees half of one, and writes their sums.
fn install(built: &[PathBuf], into: &Path) -> Result<()> {
    fs::create_dir_all(into)?;
    for stale in components(into)? {
        if !built.iter().any(|path| path.file_name() == stale.file_name()) {
            fs::remove_file(stale)?;
        }
    }
    let mut sums = String::new();
    for path in built {
        let name = path.file_name().and_then(|name| name.to_str()).context("a component has a name")?;
        let half = into.join(format!("{name}.tmp"));
        fs::copy(path, &half)?;
        fs::rename(&half, into.join(name))?;
        sums.push_str(&format!("{}  {name}\n", sum(path)?));
    }
    fs::write(into.join(SUMS), sums)?;
    Ok(())
}

/// The `.wasm` files of a folder, by name.
fn components(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("can't read `{}`", folder.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "wasm") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn sum(path: &Path) -> Result<String> {
    let bytes = fs::read(path).with_context(|| format!("can't read `{}`", path.display()))?;
    Ok(Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Fails if a prebuilt component is not the one of its sum. That a build from source differs is told and is no failure: another compiler
/// or folder gives other bytes.
fn check() -> Result<()> {
    let folder = prebuilt();
    let sums =
        fs::read_to_string(folder.join(SUMS)).with_context(|| format!("`{}` has no {SUMS}", folder.display()))?;
    let mut listed = 0;
    for line in sums.lines() {
        let (wanted, name) = line.split_once("  ").with_context(|| format!("{SUMS}: `{line}` is not `SUM  NAME`"))?;
        let found = sum(&folder.join(name))?;
        if found != wanted {
            bail!("`guests/prebuilt/{name}` is not what {SUMS} says; run: cargo xtask guests --update-prebuilt");
        }
        let fresh = tree::target().join("guests").join(name);
        if fresh.is_file() && sum(&fresh)? != found {
            eprintln!("{name}: the build from source differs from the prebuilt one");
        }
        listed += 1;
    }
    let there = components(&folder)?.len();
    ensure!(there == listed, "{SUMS} lists {listed} components and guests/prebuilt holds {there}");
    eprintln!("{listed} prebuilt components are as {SUMS} says");
    Ok(())
}
