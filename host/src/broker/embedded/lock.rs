//! One process at a time: a lock on a file beside the database, with the holder's process id in it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;

use crate::broker::BrokerError;

/// The file's name in the log's folder.
const NAME: &str = "lock";

/// Holds the log for this process until it is dropped; the system lets go of it however the process ends.
#[derive(Debug)]
pub(super) struct Lock {
    file: File,
}

impl Lock {
    /// Takes the lock, or says who has it.
    pub(super) fn take(folder: &Path) -> Result<Self, BrokerError> {
        let path = folder.join(NAME);
        let unusable = |cause: std::io::Error| {
            BrokerError::Config(format!("the embedded log's lock `{}` can't be used: {cause}", path.display()))
        };
        let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = options.map_err(unusable)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(taken(folder, &mut file)),
            Err(TryLockError::Error(cause)) => return Err(unusable(cause)),
        }
        file.set_len(0).map_err(unusable)?;
        write!(file, "{}", std::process::id()).map_err(unusable)?;
        Ok(Self { file })
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing the file lets go only when no copy of it is open, and a child being started has one for a moment.
        self.file.unlock().ok();
    }
}

fn taken(folder: &Path, file: &mut File) -> BrokerError {
    let mut holder = String::new();
    let read = file.rewind().and_then(|()| file.read_to_string(&mut holder));
    let holder = match read {
        Ok(_) if !holder.is_empty() => format!("process {holder}"),
        _ => "another process".to_owned(),
    };
    BrokerError::Config(format!(
        "the embedded log `{}` is in use by {holder}; stop it, or send records through its HTTP ingest",
        folder.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_has_one_holder_and_its_id_is_told() {
        let folder = tempfile::tempdir().expect("a folder");
        let first = Lock::take(folder.path()).expect("nobody has it");
        let refused = Lock::take(folder.path()).expect_err("it is taken").to_string();
        let expected = format!("is in use by process {}; stop it, or", std::process::id());
        assert!(refused.contains(&expected), "{refused}");
        drop(first);
        Lock::take(folder.path()).expect("it is free again");
    }
}
