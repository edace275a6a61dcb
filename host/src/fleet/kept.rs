//! What operators want kept of a handler: a file for each in the host's own folder, which outlives the host.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Files of one kind, each named as its handler's folder is.
#[derive(Debug)]
pub(super) struct Kept {
    folder: PathBuf,
}

impl Kept {
    /// Those in this folder, which need not be there yet.
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// A handler's.
    pub(super) fn file(&self, handler: &str) -> PathBuf {
        self.folder.join(handler)
    }

    /// Writes a handler's, whole or not at all.
    pub(super) fn write(&self, handler: &str, text: &str) -> io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        // Renamed into place; no handler's folder begins with a dot.
        let beside = self.folder.join(format!(".{handler}"));
        let mut file = File::create(&beside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, self.file(handler))?;
        sync(&self.folder)
    }

    /// Removes a handler's. That there is none is as good.
    pub(super) fn remove(&self, handler: &str) -> io::Result<()> {
        match fs::remove_file(self.file(handler)) {
            Ok(()) => sync(&self.folder),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }
}

fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}
