//! Which handlers an operator has paused: a file for each in the host's own folder, so that no restart lets one go on by itself.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// The pauses of one host.
#[derive(Debug)]
pub struct Pauses {
    folder: PathBuf,
}

impl Pauses {
    /// Those that are kept in the host's own folder.
    pub fn new(state: &Path) -> Self {
        Self { folder: state.join("paused") }
    }

    /// Whether a handler is paused. Its name is a folder's name.
    pub fn has(&self, handler: &str) -> bool {
        self.folder.join(handler).exists()
    }

    /// Keeps a pause or its end; once this returns it outlives the host.
    pub fn set(&self, handler: &str, paused: bool) -> io::Result<()> {
        let file = self.folder.join(handler);
        if paused {
            fs::create_dir_all(&self.folder)?;
            File::create(&file)?.sync_all()?;
        } else if let Err(error) = fs::remove_file(&file) {
            return if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) };
        }
        File::open(&self.folder)?.sync_all()
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
