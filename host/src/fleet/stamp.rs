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
/// A file that is written to for longer than this many times `SETTLE_TIME` is looked at again later.
const LOOKS_MAX: usize = 8;

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

    /// The stamp once nothing was written to for a while; `None` while a writer is still at it.
    pub(super) async fn settled(folder: &Path) -> Option<Self> {
        for _ in 0..LOOKS_MAX {
            let stamp = Self::of(folder);
            let manifest = std::fs::metadata(folder.join(manifest::FILE)).and_then(|file| file.modified()).ok();
            let newest = stamp.files.values().filter_map(|file| file.modified).chain(manifest).max();
            match newest.and_then(|newest| newest.elapsed().ok()) {
                Some(age) if age < SETTLE_TIME => tokio::time::sleep(SETTLE_TIME - age).await,
                Some(_) | None => return Some(stamp),
            }
        }
        None
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Each file in turn is the one that somebody still writes to.
    #[tokio::test(start_paused = true)]
    async fn a_folder_is_not_taken_while_a_file_of_it_is_written() {
        let folder = tempfile::tempdir().expect("a folder");
        let files = [manifest::FILE, "h.wasm", "migrations/V1__a.sql"].map(|file| folder.path().join(file));
        std::fs::create_dir(folder.path().join("migrations")).expect("a folder");
        files.iter().for_each(|file| write(file, Duration::from_secs(60)));
        assert_eq!(Stamp::settled(folder.path()).await, Some(Stamp::of(folder.path())));
        for file in files {
            // The paused clock lets all looks pass at once.
            write(&file, Duration::ZERO);
            assert_eq!(Stamp::settled(folder.path()).await, None, "{}", file.display());
            write(&file, Duration::from_secs(60));
        }
    }

    /// Writes a file that was written so long ago.
    fn write(path: &Path, ago: Duration) {
        let file = std::fs::File::create(path).expect("it can be written");
        file.set_modified(SystemTime::now() - ago).expect("it has a time");
    }
}
