//! What the tests need from the machine, and how Debian provides it.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail, ensure};

use super::Args;

/// The oldest Java that runs the brokers.
const JAVA_MIN: u32 = 17;

struct Need {
    what: &'static str,
    /// Debian's packages.
    packages: &'static [&'static str],
    /// Whether only the end-to-end promises need it.
    for_promises: bool,
    is_met: fn() -> bool,
}

const NEEDS: &[Need] = &[
    Need {
        what: "a C compiler and make, for librdkafka",
        packages: &["build-essential"],
        for_promises: false,
        is_met: || runs("cc", &["--version"]) && runs("c++", &["--version"]) && runs("make", &["--version"]),
    },
    Need {
        what: "OpenSSL's headers, for librdkafka",
        packages: &["libssl-dev", "pkg-config"],
        for_promises: false,
        is_met: || runs("pkg-config", &["--exists", "openssl"]),
    },
    Need {
        what: "Java 17 or newer, for Apache Kafka",
        packages: &["openjdk-17-jre-headless"],
        for_promises: true,
        is_met: || java_version().is_some_and(|version| version >= JAVA_MIN),
    },
    Need {
        what: "Maven, which fetches Apache Kafka",
        packages: &["maven"],
        for_promises: true,
        is_met: || runs("mvn", &["--version"]),
    },
    Need {
        what: "PostgreSQL's server",
        packages: &["postgresql"],
        for_promises: true,
        is_met: || Path::new("/usr/lib/postgresql").exists() || runs("initdb", &["--version"]),
    },
    Need {
        what: "pip, which fetches a public data set",
        packages: &["python3-pip"],
        for_promises: true,
        is_met: || runs("python3", &["-m", "pip", "--version"]),
    },
];

/// Installs what the tests lack, saying so first; or names the commands and fails.
pub(super) fn meet(args: &Args) -> Result<()> {
    let lists_missing = args.bootstrap && !args.fast && !debian_knows_wasm_toolchain();
    provide(!args.fast, lists_missing, !args.no_install)
}

/// The same for what runs the host on real servers.
pub(crate) fn meet_for_promises() -> Result<()> {
    provide(true, false, true)
}

fn provide(for_promises: bool, lists_missing: bool, may_install: bool) -> Result<()> {
    let missing: Vec<&Need> =
        NEEDS.iter().filter(|need| (for_promises || !need.for_promises) && !(need.is_met)()).collect();
    let packages: Vec<&str> = missing.iter().flat_map(|need| need.packages).copied().collect();
    if missing.is_empty() && !lists_missing {
        return Ok(());
    }
    for need in &missing {
        eprintln!("missing: {}", need.what);
    }
    let update = ["apt-get", "update"].to_vec();
    let install = [&["apt-get", "install", "-y", "--no-install-recommends"], packages.as_slice()].concat();
    let mut commands = vec![update];
    commands.extend((!packages.is_empty()).then_some(install));
    if !may_install || !is_debian() || !is_root() {
        for command in &commands {
            eprintln!("run as root: {}", command.join(" "));
        }
        bail!("the machine lacks what the tests need; the commands above install it on Debian");
    }
    for command in &commands {
        eprintln!("installing, as root: {}", command.join(" "));
        let status = Command::new(command[0]).args(&command[1..]).env("DEBIAN_FRONTEND", "noninteractive").status()?;
        ensure!(status.success(), "`{}` failed: {status}", command.join(" "));
    }
    for need in missing {
        ensure!((need.is_met)(), "installed `{}`, and still there is not {}", need.packages.join(" "), need.what);
    }
    Ok(())
}

fn runs(program: &str, arguments: &[&str]) -> bool {
    Command::new(program).args(arguments).output().is_ok_and(|output| output.status.success())
}

fn java_version() -> Option<u32> {
    let output = Command::new("java").arg("-version").output().ok().filter(|output| output.status.success())?;
    major_version(&String::from_utf8_lossy(&output.stderr))
}

/// From `openjdk version "17.0.15" 2025-04-15`.
fn major_version(text: &str) -> Option<u32> {
    text.split('"').nth(1)?.split(['.', '-', '+']).next()?.parse().ok()
}

/// The guests' toolchain is unpacked from Debian's packages, which `apt-get` finds once its lists are there.
fn debian_knows_wasm_toolchain() -> bool {
    runs("apt-cache", &["show", "--quiet", "rustc-web"])
}

fn is_debian() -> bool {
    Path::new("/etc/debian_version").exists()
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn java_versions_old_and_new_are_understood() {
        assert_eq!(major_version("openjdk version \"17.0.15\" 2025-04-15\n"), Some(17));
        assert_eq!(major_version("openjdk version \"25\" 2025-09-16"), Some(25));
        assert_eq!(major_version("java version \"1.8.0_401\""), Some(1));
        assert_eq!(major_version("no java"), None);
    }
}
