//! Which handlers an operator has paused: a file for each in the host's own folder, so that no restart lets one go on by itself.

use std::io;
use std::path::Path;

use super::kept::Kept;

/// The pauses of one host.
#[derive(Debug)]
pub struct Pauses(Kept);

impl Pauses {
    /// Those that are kept in the host's own folder.
    pub fn new(state: &Path) -> Self {
        Self(Kept::new(state.join("paused")))
    }

    /// Whether a handler is paused.
    pub fn has(&self, handler: &str) -> bool {
        self.0.file(handler).exists()
    }

    /// Keeps a pause or its end; once this returns it outlives the host.
    pub fn set(&self, handler: &str, paused: bool) -> io::Result<()> {
        if paused { self.0.write(handler, "") } else { self.0.remove(handler) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_outlives_who_made_it_and_ends_once_it_is_told_to() {
        let state = tempfile::tempdir().expect("a folder");
        let pauses = Pauses::new(state.path());
        pauses.set("orders", false).expect("nothing is to be done");
        pauses.set("orders", true).expect("it is kept");
        pauses.set("orders", true).expect("twice is as good as once");
        let next = Pauses::new(state.path());
        assert!(next.has("orders") && !next.has("audit"));
        next.set("orders", false).expect("it ends");
        assert!(!pauses.has("orders"));
    }
}
