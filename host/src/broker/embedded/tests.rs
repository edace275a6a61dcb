//! The broker's contract on the embedded log, and what it promises beyond.

mod durable;
mod limits;

use std::path::Path;

use super::*;

/// The contract on a log in a folder.
mod on_disk {
    use super::*;

    async fn setup(_promise: &str) -> (Embedded, tempfile::TempDir) {
        let folder = tempfile::tempdir().expect("a folder");
        let config = Config { create_topics: false, ..Config::at("log") };
        (Embedded::open(&config, folder.path()).expect("the log opens"), folder)
    }

    crate::broker_contract!(setup);
}

/// The contract in memory.
mod in_memory {
    use super::*;

    async fn setup(_promise: &str) -> (Embedded, ()) {
        let config = Config { create_topics: false, ..Config::at("") };
        (Embedded::start(config, Database::in_memory(), None).expect("the log opens"), ())
    }

    crate::broker_contract!(setup);
}

/// Opens a log that may make topics.
fn open(config: Config, folder: &Path) -> Embedded {
    Embedded::open(&config, folder).expect("the log opens")
}
