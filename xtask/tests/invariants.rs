//! Rules of the source tree: who may name what, and where. They read text, so they need no servers and no build.
//!
//! What the compiler or clippy holds is not here again. ARCHITECTURE.md gives the reasons under the rules' numbers.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use xtask::tree;

/// Where each library of the host is at home, as modules below `host/src` (ARCH-1).
const HOMES: &[(&str, &[&str])] = &[
    ("anyhow", &["app", "cli", "main"]),
    ("axum", &["admin", "http", "ingest"]),
    ("clap", &["app", "cli", "main", "telemetry"]),
    ("csv", &["cli/topic"]),
    ("deadpool_postgres", &["store/postgres"]),
    ("hyper", &["http", "ingest"]),
    ("hyper_util", &["http", "ingest"]),
    ("indicatif", &["cli/progress"]),
    ("libc", &["guest/cache"]),
    ("mimalloc", &["lib"]),
    ("notify", &["fleet/watch"]),
    ("prometheus_client", &["metrics"]),
    ("rdkafka", &["broker/kafka"]),
    ("refinery", &["store/migrations", "store/postgres", "store/sqlite"]),
    ("refinery_core", &["store/sqlite"]),
    ("rusqlite", &["broker/embedded", "store/sqlite"]),
    ("tokio_postgres", &["store/postgres"]),
    ("tracing_subscriber", &["telemetry", "capability/tests"]),
    ("ureq", &["cli", "admin/tests", "ingest/tests"]),
    ("wasmtime", &["capability", "guest"]),
    ("wasmtime_wasi", &["guest"]),
];

/// Libraries of the host that may stand anywhere in it: none is a door to the world outside.
const ANYWHERE: &[&str] = &[
    "arc_swap",
    "base64",
    "bytes",
    "fastrand",
    "futures_util",
    "itoa",
    "jiff",
    "serde",
    "serde_json",
    "sha2",
    "thiserror",
    "tidemill_core",
    "tokio",
    "tokio_util",
    "toml",
    "tracing",
    "uuid",
];

/// The modules that implement a seam, named by `app` alone (ARCH-3).
const IMPLEMENTATIONS: &[(&str, &str)] = &[
    ("embedded", "broker/embedded"),
    ("kafka", "broker/kafka"),
    ("memory", "store/memory"),
    ("postgres", "store/postgres"),
    ("sqlite", "store/sqlite"),
];

/// What the core takes from the standard library: data, and no door to a clock, a task or the outside (ARCH-2).
const STD_OF_CORE: &[&str] = &[
    "borrow::",
    "cmp::",
    "collections::",
    "fmt",
    "hash::",
    "iter",
    "mem",
    "num::",
    "ops::",
    "str",
    "sync::Arc",
    "time::Duration",
];

/// Words that must not stand in a file or a folder, and what to do instead.
const NOT_HERE: &[(&str, &[&str], &str)] = &[
    (
        "host/core/src",
        &["serde", "Serialize", "Deserialize"],
        "write the format's own type in the room that reads it (ARCH-4)",
    ),
    ("host/core/src", &["print", "println", "eprint", "eprintln"], "return it as data (ARCH-2)"),
    ("host/src/consumer/partition.rs", &["Mutex", "RwLock"], "send the partition's task an event (ARCH-5)"),
    (
        "host/src/consumer",
        &["watch"],
        "who waits on it is woken in random order; tell each one with a `Notify` of its own (ADR 17)",
    ),
];

/// The files with unsafe code, or with leave for code that is generated there.
const UNSAFE: &[(&str, &str)] = &[
    ("guest-sdk/macros/src/lib.rs", "the exports that `#[handler]` writes"),
    ("guest-sdk/src/bindings.rs", "generated: the component ABI passes pointers"),
    ("host/src/broker/kafka/ffi.rs", "librdkafka's C interface"),
    ("host/src/broker/kafka/ffi/message.rs", "librdkafka's C interface"),
    ("host/src/broker/kafka/ffi/produce.rs", "librdkafka's C interface"),
    ("host/src/broker/kafka/ffi/transaction.rs", "librdkafka's C interface"),
    ("host/src/guest/cache.rs", "loading compiled code"),
    ("tests/src/raw_headers.rs", "header names that are not UTF-8"),
];

/// Invariants of which there is nothing to be tested yet.
const UNBUILT: &[(&str, &str)] = &[(concat!("REV", "-3"), "there is no canary")];

/// Where a record's path must be the same for the same events: no room on it throws dice of its own.
const DICELESS: &[&str] = &["attempt", "consumer", "settle"];

/// First folders of paths that exist on one machine only.
const MACHINE_FOLDERS: &[&str] = &["home", "root", "Users", "work"];

#[test]
fn a_library_stays_in_its_room() {
    let mut breaches = Breaches::default();
    let sources = sources("host/src");
    for (library, homes) in HOMES {
        let mut is_used = false;
        for (source, number, code) in lines(&sources).filter(|(_, _, code)| after(code, library).next().is_some()) {
            is_used = true;
            if !homes.iter().any(|home| source.is_in(home)) {
                let cure = format!("`{library}` is at home in {}; use it through that room (ARCH-1)", homes.join(", "));
                breaches.note(&source.path, number, code, &cure);
            }
        }
        assert!(is_used, "`{library}` is nowhere in host/src; take its line out of HOMES");
    }
    breaches.none();
}

#[test]
fn each_library_of_the_host_has_a_home() {
    let libraries: Vec<String> = dependencies("host/Cargo.toml").iter().map(|name| name.replace('-', "_")).collect();
    for library in &libraries {
        let library = library.as_str();
        let homes = HOMES.iter().filter(|(name, _)| *name == library).count();
        let anywhere = ANYWHERE.iter().filter(|name| **name == library).count();
        assert_eq!(homes + anywhere, 1, "give `{library}` one home: a line in HOMES, or in ANYWHERE (ARCH-1)");
    }
    assert_eq!(HOMES.len() + ANYWHERE.len(), libraries.len(), "a library that the host does not have has a home");
}

#[test]
fn the_core_has_no_clock_no_dice_no_task_and_no_io() {
    assert_eq!(dependencies("host/core/Cargo.toml"), ["bytes", "thiserror"], "the core decides on plain data (ARCH-2)");
    let mut breaches = Breaches::default();
    for (source, number, code) in lines(&sources("host/core/src")) {
        let is_data = |rest: &str| {
            STD_OF_CORE.iter().any(|allowed| rest.strip_prefix("::").is_some_and(|name| name.starts_with(allowed)))
        };
        if !["std", "core", "alloc"].iter().flat_map(|root| after(code, root)).all(is_data) {
            let cure =
                "the core is told what it needs; do this in host/src, or add what is mere data to STD_OF_CORE (ARCH-2)";
            breaches.note(&source.path, number, code, cure);
        }
    }
    breaches.none();
}

#[test]
fn what_does_not_belong_in_a_room_is_not_there() {
    let mut breaches = Breaches::default();
    for (place, words, cure) in NOT_HERE {
        for (source, number, code) in lines(&sources(place)) {
            if words.iter().any(|word| has_word(code, word)) {
                breaches.note(&source.path, number, code, cure);
            }
        }
    }
    breaches.none();
}

#[test]
fn only_app_names_implementations() {
    let mut breaches = Breaches::default();
    let sources = sources_without_tests("host/src");
    for (module, home) in IMPLEMENTATIONS {
        for (source, number, code) in lines(&sources) {
            // What an operator may write of it is its own type, which `config` reads.
            let reads_config = |rest: &str| {
                source.is_in("config") && (rest.starts_with("::Config") || rest.starts_with("::KeyValueConfig"))
            };
            let may = source.is_in("app") || source.is_in(home) || after(code, module).all(reads_config);
            if !may {
                breaches.note(
                    &source.path,
                    number,
                    code,
                    &format!("`{module}` is named by app.rs alone; take the seam (ARCH-3)"),
                );
            }
        }
    }
    breaches.none();
}

#[test]
fn unsafe_code_is_where_the_list_says() {
    let leave = concat!("unsafe", "_code");
    let mut breaches = Breaches::default();
    let mut found = Vec::new();
    for (source, number, code) in lines(&sources("")) {
        if !has_word(code, leave) && !is_unsafe(code) {
            continue;
        }
        found.push(source.path.clone());
        if !UNSAFE.iter().any(|(file, _)| *file == source.path) {
            breaches.note(&source.path, number, code, "find a safe way, or add the file and its reason to UNSAFE");
        }
    }
    for (file, reason) in UNSAFE {
        assert!(found.iter().any(|path| path == file), "{file} has nothing unsafe ({reason}); take it out of UNSAFE");
    }
    breaches.none();
}

#[test]
fn each_invariant_stands_in_the_code_in_a_test_and_in_its_assertion() {
    let all = invariants();
    assert!(all.len() >= 23, "section 7 has its invariants: {all:?}");
    let (mut code, tests) = (sources_without_tests(""), tests_of(&sources("")));
    code.retain(|source| !source.path.contains("/contract/"));
    for number in &all {
        let mut documented = code.iter().flat_map(|source| source.text.lines()).filter(|line| is_doc(line));
        let is_documented = documented.any(|line| names(line, number));
        let is_asserted = lines(&tests).any(|(_, _, line)| names(line, number));
        if let Some((_, why)) = UNBUILT.iter().find(|(unbuilt, _)| unbuilt == number) {
            assert!(!is_documented && !is_asserted, "{number} has code by now ({why}?); take its line out of UNBUILT");
            continue;
        }
        assert!(is_documented, "{number} is in no doc comment of the code that keeps it");
        assert!(is_asserted, "{number} is in no test's assertion: break it, and see which test should say so");
    }
}

#[test]
fn the_code_names_no_invariant_that_is_none() {
    let all = invariants();
    let is_family = |number: &String| all.iter().any(|known| known.split('-').next() == number.split('-').next());
    let mut breaches = Breaches::default();
    for source in &sources("") {
        for (line, number) in source.text.lines().zip(1..) {
            if let Some(unknown) = numbers(line).iter().find(|found| is_family(found) && !all.contains(found)) {
                let cure = format!("{unknown} is not in section 7 of ARCHITECTURE.md");
                breaches.note(&source.path, number, line, &cure);
            }
        }
    }
    breaches.none();
}

/// The numbers of section 7 of ARCHITECTURE.md.
fn invariants() -> Vec<String> {
    let architecture = fs::read_to_string(tree::root().join("ARCHITECTURE.md")).expect("the architecture");
    let section = architecture.split("\n## ").find(|section| section.starts_with("7. Invariants"));
    numbers(section.expect("section 7"))
}

#[test]
fn each_select_on_a_records_path_says_its_order() {
    let mut breaches = Breaches::default();
    for source in sources_without_tests("host/src").iter().filter(|it| DICELESS.iter().any(|room| it.is_in(room))) {
        let text: Vec<&str> = source.text.lines().collect();
        for (at, line) in text.iter().enumerate().filter(|(_, line)| code_of(line).contains("select! {")) {
            if text.get(at + 1).map(|next| next.trim()) != Some("biased;") {
                let cure = "begin it with `biased;`: which branch is looked at first is no matter of chance (ADR 17)";
                breaches.note(&source.path, at + 1, line, cure);
            }
        }
    }
    breaches.none();
}

#[test]
fn queues_have_bounds() {
    let mut breaches = Breaches::default();
    let sources = sources_without_tests("host/src");
    // The contract is a test, and what the log's writer takes is bounded in bytes before it is queued.
    let bounded = |source: &Source| source.is_in("broker/contract") || source.is_in("broker/embedded");
    for (source, number, code) in lines(&sources).filter(|(source, _, _)| !bounded(source)) {
        if has_word(code, "unbounded_channel") || has_word(code, "UnboundedSender") || code.contains("mpsc::{channel") {
            breaches.note(&source.path, number, code, "give it a bound with a name (ARCH-6)");
        }
    }
    breaches.none();
}

#[test]
fn only_the_promises_run_on_servers() {
    for manifest in ["host/Cargo.toml", "host/core/Cargo.toml", "guest-sdk/Cargo.toml"] {
        let servers = ["tests", "xtask"]
            .into_iter()
            .find(|name| section(manifest, "dev-dependencies").iter().any(|it| it == name));
        assert_eq!(servers, None, "{manifest}: what needs a server is a promise in tests/ (ARCH-8)");
    }
}

#[test]
fn no_file_names_a_folder_of_one_machine() {
    let mut breaches = Breaches::default();
    for (path, bytes) in files("") {
        for folder in MACHINE_FOLDERS.iter().map(|folder| format!("/{folder}/")) {
            // A longer path may end in such a name; one that begins so is a machine's.
            let at = bytes.windows(folder.len()).enumerate().find(|(start, window)| {
                let before = start.checked_sub(1).map(|before| bytes[before]);
                *window == folder.as_bytes()
                    && !before.is_some_and(|byte| byte.is_ascii_alphanumeric() || b".-_}".contains(&byte))
            });
            if let Some((start, _)) = at {
                let number = 1 + bytes[..start].iter().filter(|byte| **byte == b'\n').count();
                let shown = String::from_utf8_lossy(&bytes[start..bytes.len().min(start + 40)]);
                breaches.note(
                    &path,
                    number,
                    shown.lines().next().unwrap_or_default(),
                    "say it from the tree's root, or make a temporary folder",
                );
            }
        }
    }
    breaches.none();
}

#[test]
fn what_is_looked_for_is_found() {
    let found = |code, name| after(code, name).collect::<Vec<_>>();
    assert_eq!(found("use rdkafka::{a, b};", "rdkafka"), ["::{a, b};"]);
    assert_eq!(found("fn f(a: ::rdkafka::A, b: rdkafka::B)", "rdkafka"), ["::A, b: rdkafka::B)", "::B)"]);
    assert_eq!(found("use rdkafka as kafka;", "rdkafka"), [" as kafka;"]);
    assert!(found("let rdkafka = my_rdkafka::new(rdkafka_sys::X);", "rdkafka").is_empty());
    assert_eq!(code_of("call(); // rdkafka::x"), "call(); ");
    assert_eq!(code_of(r#"get("http://host"); // why"#), r#"get("http://host"); "#);
    assert!(
        is_unsafe(concat!("let a = unsafe", " { b };")) && is_unsafe(concat!("pub unsafe", " extern \"C\" fn f()"))
    );
    assert!(!is_unsafe("a word such as unsafe is no code"));
    assert!(has_word("state: Mutex<u8>", "Mutex") && !has_word("MutexGuard", "Mutex"));
}

/// A file of Rust.
struct Source {
    /// From the tree's root.
    path: String,
    text: String,
}

impl Source {
    /// Whether it is this module of the host, or lies below it.
    fn is_in(&self, module: &str) -> bool {
        let below = self.path.strip_prefix("host/src/").and_then(|path| path.strip_prefix(module));
        below.is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
    }
}

/// The files of Rust below a folder, or the one file that it names.
fn sources(place: &str) -> Vec<Source> {
    let rust = files(place).into_iter().filter(|(path, _)| path.ends_with(".rs"));
    let source = |(path, bytes)| Source { path, text: String::from_utf8(bytes).expect("Rust is UTF-8") };
    let sources: Vec<Source> = rust.map(source).collect();
    assert!(!sources.is_empty(), "{place} has no sources; correct the table that names it");
    sources
}

/// The same without tests, whether they have files of their own or stand at the end of one.
fn sources_without_tests(place: &str) -> Vec<Source> {
    let mut sources = sources(place);
    sources.retain(|source| !source.path.contains("/tests/") && !source.path.ends_with("/tests.rs"));
    for source in &mut sources {
        let end = source.text.find("#[cfg(test)]\nmod tests {").unwrap_or(source.text.len());
        source.text.truncate(end);
    }
    sources
}

/// What [`sources_without_tests`] leaves out, and the contracts, which are tests that several implementations share.
fn tests_of(sources: &[Source]) -> Vec<Source> {
    let tests = sources.iter().filter_map(|Source { path, text }| {
        let whole = ["/tests/", "/contract/"].iter().any(|folder| path.contains(folder)) || path.ends_with("/tests.rs");
        let start = if whole { Some(0) } else { text.find("#[cfg(test)]\nmod tests {") };
        start.map(|start| Source { path: path.clone(), text: text[start..].to_owned() })
    });
    tests.collect()
}

fn is_doc(line: &str) -> bool {
    let line = line.trim_start();
    line.starts_with("///") || line.starts_with("//!")
}

/// The numbers of invariants in a text, each once: capitals, a hyphen and digits.
fn numbers(text: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for word in text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '-') {
        let is_number = word.split_once('-').is_some_and(|(name, digits)| {
            let digits = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
            !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_uppercase()) && digits
        });
        if is_number && !found.iter().any(|known| known == word) {
            found.push(word.to_owned());
        }
    }
    found
}

/// Whether a line names an invariant, by its number or within a row such as `OFF-1 to OFF-3`.
fn names(line: &str, number: &str) -> bool {
    let named = numbers(line);
    let split = |number: &str| {
        let (name, digits) = number.split_once('-').expect("a number has a hyphen");
        (name.to_owned(), digits.parse::<u32>().expect("digits"))
    };
    let (name, wanted) = split(number);
    let row = named.windows(2).any(|pair| {
        let ((first, from), (last, to)) = (split(&pair[0]), split(&pair[1]));
        first == name
            && last == name
            && (from..=to).contains(&wanted)
            && line.contains(&format!("{} to {}", pair[0], pair[1]))
    });
    row || named.iter().any(|named| named == number)
}

/// Each line of code with its number, comments left out.
fn lines(sources: &[Source]) -> impl Iterator<Item = (&Source, usize, &str)> {
    sources
        .iter()
        .flat_map(|source| source.text.lines().zip(1..).map(move |(line, number)| (source, number, code_of(line))))
}

fn code_of(line: &str) -> &str {
    let comment = line.match_indices("//").find(|(start, _)| !line[..*start].ends_with(':'));
    comment.map_or(line, |(start, _)| &line[..start])
}

/// What follows `name` wherever it begins a path or is renamed.
fn after<'a>(code: &'a str, name: &str) -> impl Iterator<Item = &'a str> {
    words(code, name).filter(|rest| rest.starts_with("::") || rest.starts_with(" as "))
}

fn has_word(code: &str, word: &str) -> bool {
    words(code, word).next().is_some()
}

fn is_unsafe(code: &str) -> bool {
    let begins = [" {", " fn ", " impl ", " impl<", " extern ", " trait ", "("];
    words(code, "unsafe").any(|rest| begins.iter().any(|begin| rest.starts_with(begin)))
}

/// What follows `word` wherever it stands for itself.
fn words<'a>(code: &'a str, word: &str) -> impl Iterator<Item = &'a str> {
    let joins = |letter: char| letter.is_alphanumeric() || letter == '_';
    code.match_indices(word)
        .map(|(start, word)| (&code[..start], &code[start + word.len()..]))
        .filter(move |(before, rest)| !before.ends_with(joins) && !rest.starts_with(joins))
        .map(|(_, rest)| rest)
}

/// The names under `[dependencies]`.
fn dependencies(manifest: &str) -> Vec<String> {
    section(manifest, "dependencies")
}

/// The names under a heading of a manifest; none where it is not there.
fn section(manifest: &str, heading: &str) -> Vec<String> {
    let text = fs::read_to_string(tree::root().join(manifest)).expect("the manifest is there");
    let section = text.split("\n[").find_map(|section| section.strip_prefix(heading)?.strip_prefix(']'));
    let lines = section.unwrap_or_default().lines().map(str::trim);
    let entries = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    entries.filter_map(|line| line.split(['.', ' ', '=']).next()).map(str::to_owned).collect()
}

/// Each file of the tree below `place`, from the tree's root, with what is in it; what is made or fetched is left out.
fn files(place: &str) -> Vec<(String, Vec<u8>)> {
    const MADE: &[&str] = &["target", ".git"];
    let mut files = Vec::new();
    let mut left = vec![tree::root().join(place)];
    while let Some(path) = left.pop() {
        if path.is_dir() {
            let entries =
                fs::read_dir(&path).expect("a folder of the tree").map(|entry| entry.expect("an entry").path());
            left.extend(
                entries.filter(|path| !path.file_name().is_some_and(|name| MADE.iter().any(|made| name == *made))),
            );
        } else {
            files.push((shown(&path), fs::read(&path).expect("a file of the tree")));
        }
    }
    files.sort();
    files
}

fn shown(path: &Path) -> String {
    path.strip_prefix(tree::root()).expect("it is in the tree").to_string_lossy().into_owned()
}

/// Lines that break a rule.
#[derive(Default)]
struct Breaches(String);

impl Breaches {
    fn note(&mut self, path: &str, number: usize, code: &str, cure: &str) {
        writeln!(self.0, "{path}:{number}: `{}`: {cure}", code.trim()).expect("writing to a `String` never fails");
    }

    #[track_caller]
    fn none(&self) {
        assert!(self.0.is_empty(), "\n{}", self.0);
    }
}
