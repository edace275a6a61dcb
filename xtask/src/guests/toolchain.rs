//! Which compiler can build components.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use xtask::tree;

/// The target that makes components.
pub(super) const TARGET: &str = "wasm32-wasip2";

/// The environment variable that names a compiler for guests.
const OVERRIDE: &str = "TIDEMILL_GUESTS_RUSTC";

/// A compiler whose standard library for [`TARGET`] is there.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Toolchain {
    /// The one that runs this chore.
    Active,
    /// A `rustc` of this path.
    At(PathBuf),
}

impl Toolchain {
    /// Makes a cargo command use it.
    pub(super) fn choose(&self, command: &mut Command) {
        if let Toolchain::At(rustc) = self {
            command.env("RUSTC", rustc);
        }
    }
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Toolchain::Active => write!(f, "the active toolchain"),
            Toolchain::At(rustc) => write!(f, "{}", rustc.display()),
        }
    }
}

/// Finds one: the one that the environment names, the active one, one made before, or with `bootstrap` a new one.
pub(super) fn find(bootstrap: bool) -> Result<Toolchain> {
    if let Some(named) = std::env::var_os(OVERRIDE) {
        ensure!(
            can_build(&named),
            "{OVERRIDE} names `{}`, which has no standard library for {TARGET}",
            named.display()
        );
        return Ok(Toolchain::At(named.into()));
    }
    let active = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    if can_build(&active) {
        return Ok(Toolchain::Active);
    }
    let folder = tree::target().join("wasm-toolchain");
    let made = folder.join("bin/rustc");
    if can_build(&made.clone().into_os_string()) {
        return Ok(Toolchain::At(made));
    }
    if bootstrap {
        make(&folder)?;
        ensure!(
            can_build(&made.clone().into_os_string()),
            "the toolchain in `{}` cannot build for {TARGET}",
            folder.display()
        );
        return Ok(Toolchain::At(made));
    }
    bail!("{}", cure(is_debian()));
}

/// One line: what to type.
fn cure(debian: bool) -> String {
    let or = if debian { " (or, with Debian's packages: cargo xtask guests --bootstrap)" } else { "" };
    format!("the compiler has no standard library for {TARGET}; run: rustup target add {TARGET}{or}")
}

fn can_build(rustc: &OsString) -> bool {
    let Ok(output) = Command::new(rustc).args(["--print", "target-libdir", "--target", TARGET]).output() else {
        return false;
    };
    let libraries = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    fs::read_dir(libraries).into_iter().flatten().flatten().any(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        name.starts_with("libstd-") && name.ends_with(".rlib")
    })
}

/// Unpacks Debian's packages and builds the standard library; installs nothing.
fn make(folder: &Path) -> Result<()> {
    ensure!(
        is_debian() && cfg!(target_arch = "x86_64"),
        "--bootstrap works on Debian for x86_64 only; run: rustup target add {TARGET}"
    );
    eprintln!("making a toolchain for {TARGET} in {} (about 140 MB to fetch, 1 to 3 minutes)", folder.display());
    let status = Command::new("bash")
        .arg(tree::root().join("xtask/wasm-toolchain.sh"))
        .args([folder.as_os_str(), TARGET.as_ref()])
        .env("CARGO", env!("CARGO"))
        .status()
        .context("can't run bash")?;
    ensure!(status.success(), "the toolchain could not be made; its message is above (apt-get update may help)");
    Ok(())
}

fn is_debian() -> bool {
    fs::read_to_string("/etc/os-release").is_ok_and(|text| text.lines().any(|line| line == "ID=debian"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cure_is_one_line_to_type() {
        assert_eq!(
            cure(false),
            "the compiler has no standard library for wasm32-wasip2; run: rustup target add wasm32-wasip2"
        );
        assert!(cure(true).ends_with("(or, with Debian's packages: cargo xtask guests --bootstrap)"));
    }

    #[test]
    fn a_compiler_that_is_not_there_cannot_build() {
        assert!(!can_build(&"/nonexistent/rustc".into()));
    }
}
