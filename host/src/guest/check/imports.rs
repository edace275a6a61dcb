//! What a component may import: the interfaces of the contract, and base WASI, which grants nothing.

use crate::capability;

/// WASI 0.2 as it is always linked. Languages import much of it without using it; nothing in it is granted.
const BASE: &[(&str, &[&str])] = &[
    (
        "wasi:cli",
        &[
            "environment",
            "exit",
            "stdin",
            "stdout",
            "stderr",
            "terminal-input",
            "terminal-output",
            "terminal-stdin",
            "terminal-stdout",
            "terminal-stderr",
        ],
    ),
    ("wasi:clocks", &["monotonic-clock", "wall-clock"]),
    ("wasi:filesystem", &["types", "preopens"]),
    ("wasi:io", &["error", "poll", "streams"]),
    ("wasi:random", &["random", "insecure", "insecure-seed"]),
    (
        "wasi:sockets",
        &["network", "instance-network", "ip-name-lookup", "tcp", "tcp-create-socket", "udp", "udp-create-socket"],
    ),
];
/// The line of WASI that `BASE` is of; the linker takes any patch of it.
const BASE_VERSION: &str = "0.2";

/// What to say of an import that this host does not have: its name and the nearest that there is.
pub(super) fn unknown(import: &str) -> Option<String> {
    let (interface, version) = split(import);
    let is_linked = is_base(interface) && is_base_version(version);
    if is_linked || capability::is_offered(import) {
        return None;
    }
    Some(match capability::offered().find(|name| split(name).0 == interface) {
        Some(near) => format!("`{import}` (this host has `{near}`)"),
        None if is_base(interface) => format!("`{import}` (this host has `{interface}@{BASE_VERSION}`)"),
        None => format!("`{import}`"),
    })
}

fn is_base_version(version: &str) -> bool {
    let patch = version.strip_prefix(BASE_VERSION).and_then(|rest| rest.strip_prefix('.'));
    patch.is_some_and(|patch| !patch.is_empty() && patch.bytes().all(|byte| byte.is_ascii_digit()))
}

fn is_base(interface: &str) -> bool {
    let (package, name) = interface.split_once('/').unwrap_or((interface, ""));
    BASE.iter().any(|(base, names)| *base == package && names.contains(&name))
}

fn split(import: &str) -> (&str, &str) {
    import.split_once('@').unwrap_or((import, ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_import_is_told_apart_by_name_and_version() {
        for known in [
            "wasi:cli/stdout@0.2.3",
            "wasi:filesystem/types@0.2.12",
            "tidemill:guest/types@0.1.0",
            "tidemill:guest/sql@0.1.0",
            "wasi:keyvalue/batch@0.2.0-draft",
        ] {
            assert_eq!(unknown(known), None);
        }
        for other in [
            "wasi:cli/stdout@0.3.0",
            "wasi:cli/stdout@0.2.0-rc-2023-12-05",
            "wasi:cli/run@0.2.3",
            "wasi:http/outgoing-handler@0.2.3",
            "tidemill:guest/sql@0.2.0",
        ] {
            assert!(unknown(other).is_some(), "{other}");
        }
    }

    #[test]
    fn an_unknown_import_is_named_with_the_nearest_that_there_is() {
        let said = |import| unknown(import).expect("it is unknown");
        assert_eq!(
            said("tidemill:guest/sql@0.9.0"),
            "`tidemill:guest/sql@0.9.0` (this host has `tidemill:guest/sql@0.1.0`)"
        );
        assert_eq!(said("wasi:cli/stdout@0.3.0"), "`wasi:cli/stdout@0.3.0` (this host has `wasi:cli/stdout@0.2`)");
        assert_eq!(said("env"), "`env`");
    }
}
