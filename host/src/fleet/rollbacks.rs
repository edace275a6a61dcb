//! What operators went back from: a file for each handler in the host's own folder, so that no restart brings it back by itself.

use std::path::{Path, PathBuf};
use std::{fs, io};

use tidemill_core::revisions::Rollback;

use super::kept::Kept;

/// The rollbacks of one host.
#[derive(Debug)]
pub struct Rollbacks(Kept);

impl Rollbacks {
    /// Those that are kept in the host's own folder.
    pub fn new(state: &Path) -> Self {
        Self(Kept::new(state.join("rolled-back")))
    }

    /// The file that keeps a handler's.
    pub fn file(&self, handler: &str) -> PathBuf {
        self.0.file(handler)
    }

    /// What a handler was rolled back to and from, if it was. What can't be read is none, and is told.
    pub fn of(&self, handler: &str) -> Option<Rollback> {
        let file = self.file(handler);
        let told = |error: &dyn std::fmt::Display| {
            tracing::warn!(handler, file = %file.display(), %error, "what was rolled back can't be read, and is not heeded");
        };
        match fs::read_to_string(&file) {
            Ok(text) => parse(&text).or_else(|| {
                told(&"it does not hold digests, one a line");
                None
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                told(&error);
                None
            }
        }
    }

    /// Keeps a rollback; once this returns it outlives the host.
    pub fn keep(&self, handler: &str, rollback: &Rollback) -> io::Result<()> {
        self.0.write(handler, &written(rollback))
    }

    /// Another file was dropped in, and what was set aside is a new deployment when it comes again.
    pub fn forget(&self, handler: &str) {
        if let Err(error) = self.0.remove(handler) {
            let file = self.file(handler);
            tracing::warn!(handler, file = %file.display(), %error, "a rollback that is over can't be removed; remove it, or that file stays set aside");
        }
    }
}

/// A digest a line: the one that is live, then those that were set aside.
fn written(Rollback { live, set_aside }: &Rollback) -> String {
    [live].into_iter().chain(set_aside).map(|digest| format!("{digest}\n")).collect()
}

fn parse(text: &str) -> Option<Rollback> {
    let is_digest = |line: &str| line.len() == 64 && line.bytes().all(|byte| byte.is_ascii_hexdigit());
    let mut lines = text.lines().map(|line| is_digest(line).then(|| line.to_owned()));
    let (live, set_aside) = (lines.next()??, lines.collect::<Option<Vec<_>>>()?);
    (!set_aside.is_empty()).then_some(Rollback { live, set_aside })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rollback_outlives_who_made_it_until_it_is_forgotten() {
        let state = tempfile::tempdir().expect("a folder");
        let rollbacks = Rollbacks::new(state.path());
        rollbacks.forget("orders");
        assert_eq!(rollbacks.of("orders"), None);
        let digest = |of: &str| of.repeat(64);
        for set_aside in [vec![digest("b")], vec![digest("b"), digest("c")]] {
            let rollback = Rollback { live: digest("a"), set_aside };
            rollbacks.keep("orders", &rollback).expect("it is kept");
            assert_eq!(Rollbacks::new(state.path()).of("orders"), Some(rollback));
        }
        assert_eq!(rollbacks.of("audit"), None);
        rollbacks.forget("orders");
        assert_eq!(rollbacks.of("orders"), None);
    }

    #[test]
    fn what_holds_no_digests_is_no_rollback() {
        let state = tempfile::tempdir().expect("a folder");
        let rollbacks = Rollbacks::new(state.path());
        rollbacks.keep("orders", &Rollback { live: "a".repeat(64), set_aside: vec!["b".repeat(64)] }).expect("kept");
        for text in ["", "aaaa", &"a".repeat(64), &format!("{}\nno digest\n", "a".repeat(64))] {
            fs::write(rollbacks.file("orders"), text).expect("written");
            assert_eq!(rollbacks.of("orders"), None, "{text}");
        }
    }
}
