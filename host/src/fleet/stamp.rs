//! What a handler's folder looks like: cheap to take, and different whenever something in it changed.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::config::manifest;

/// The manifest's text, and the identity of every component and migration in the folder.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Stamp {
    manifest: Option<String>,
    files: BTreeMap<PathBuf, FileStamp>,
}

/// Which file, and how it stood. Symbolic links are followed, so that a swapped link is a changed file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct FileStamp {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: Option<SystemTime>,
}

/// A file that was written to within this time may not be whole yet.
const SETTLE_TIME: Duration = Duration::from_millis(250);

impl Stamp {
    pub(super) fn of(folder: &Path) -> Self {
        let mut files = BTreeMap::new();
        note(folder, "wasm", &mut files);
        note(&folder.join("migrations"), "sql", &mut files);
        Self { manifest: std::fs::read_to_string(folder.join(manifest::FILE)).ok(), files }
    }

    pub(super) fn same_manifest(&self, other: &Self) -> bool {
        self.manifest == other.manifest
    }

    /// Whether nothing was written to for a while; a writer that is still at it is looked at again on the next event.
    pub(super) async fn is_settled(&self) -> bool {
        let newest = self.files.values().filter_map(|file| file.modified).max();
        let age = newest.and_then(|newest| newest.elapsed().ok());
        match age {
            Some(age) if age < SETTLE_TIME => {
                tokio::time::sleep(SETTLE_TIME - age).await;
                false
            }
            Some(_) | None => true,
        }
    }
}

fn note(folder: &Path, extension: &str, files: &mut BTreeMap<PathBuf, FileStamp>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let wanted = path.extension().is_some_and(|found| found == extension);
        if let Some(metadata) = std::fs::metadata(&path).ok().filter(|_| wanted) {
            let stamp = FileStamp {
                device: metadata.dev(),
                inode: metadata.ino(),
                bytes: metadata.len(),
                modified: metadata.modified().ok(),
            };
            files.insert(path, stamp);
        }
    }
}
