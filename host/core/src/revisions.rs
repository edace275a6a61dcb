//! Which revision of a guest is live, and which were before it.
//!
//! REV-2: new records never go to a retired revision. REV-4: a failed load changes nothing.

/// The revisions of one handler's guest: the live one and those to go back to.
///
/// `R` is what a revision is to the host; the core compares only digests.
#[derive(Debug)]
pub struct Revisions<R> {
    live: Option<Kept<R>>,
    /// Oldest first. Invariant: at most `KEPT_MAX`.
    before: Vec<Kept<R>>,
    /// The revisions that an operator went back from, the last one last: their files are not loaded again by themselves.
    /// Invariant: at most `KEPT_MAX`, and none of them is live.
    set_aside: Vec<String>,
}

/// What an operator went back to, and from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rollback {
    /// The digest that is live instead.
    pub live: String,
    /// The digests that were set aside, the last one last.
    pub set_aside: Vec<String>,
}

#[derive(Debug)]
struct Kept<R> {
    digest: String,
    revision: R,
}

/// Nothing to go back to.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("no revision before this one is kept; drop in the file that you want to run")]
pub struct NoRevisionBefore;

impl<R: Clone> Revisions<R> {
    /// How many earlier revisions stay compiled.
    pub const KEPT_MAX: usize = 3;

    /// No revision yet.
    pub fn new() -> Self {
        Self { live: None, before: Vec::new(), set_aside: Vec::new() }
    }

    /// As an operator left them who went back, in a host that knows no other revision any more.
    pub fn after(rollback: Rollback, revision: R) -> Self {
        let Rollback { live, set_aside } = rollback;
        Self { live: Some(Kept { digest: live, revision }), before: Vec::new(), set_aside }
    }

    /// Whether a file with this digest should be loaded: it is not live and was not rolled back from.
    pub fn wants(&self, digest: &str) -> bool {
        self.set_aside.iter().all(|aside| aside != digest)
            && self.live.as_ref().is_none_or(|live| live.digest != digest)
    }

    /// Makes a loaded revision the live one. The one before stays to go back to.
    pub fn install(&mut self, digest: &str, revision: R) {
        self.set_aside.clear();
        self.before.retain(|kept| kept.digest != digest);
        if let Some(live) = self.live.replace(Kept { digest: digest.to_owned(), revision })
            && live.digest != digest
        {
            self.before.push(live);
        }
        if self.before.len() > Self::KEPT_MAX {
            self.before.remove(0);
        }
    }

    /// Goes back to the revision before the live one, which is set aside until another file comes.
    pub fn roll_back(&mut self) -> Result<R, NoRevisionBefore> {
        let previous = self.before.pop().ok_or(NoRevisionBefore)?;
        let revision = previous.revision.clone();
        if let Some(bad) = self.live.replace(previous) {
            self.set_aside.push(bad.digest);
        }
        Ok(revision)
    }

    /// The live revision.
    pub fn live(&self) -> Option<&R> {
        self.live.as_ref().map(|kept| &kept.revision)
    }

    /// The digests to go back to, the nearest first.
    pub fn before(&self) -> impl Iterator<Item = &str> {
        self.before.iter().rev().map(|kept| kept.digest.as_str())
    }

    /// The revisions to go back to, the nearest first.
    pub fn before_revisions(&self) -> impl Iterator<Item = &R> {
        self.before.iter().rev().map(|kept| &kept.revision)
    }

    /// What an operator went back to and from; `None` where nobody did, or another file has come since.
    pub fn rollback(&self) -> Option<Rollback> {
        let live = self.live.as_ref().filter(|_| !self.set_aside.is_empty())?;
        Some(Rollback { live: live.digest.clone(), set_aside: self.set_aside.clone() })
    }
}

impl<R: Clone> Default for Revisions<R> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn installed(digests: &[&'static str]) -> Revisions<&'static str> {
        let mut revisions = Revisions::new();
        for digest in digests {
            revisions.install(digest, *digest);
        }
        revisions
    }

    #[test]
    fn rolling_back_sets_the_bad_file_aside_until_another_comes() {
        let mut revisions = installed(&["a", "b"]);
        assert_eq!(revisions.roll_back(), Ok("a"));
        assert_eq!(revisions.live(), Some(&"a"));
        assert!(!revisions.wants("b"), "the file that was rolled back from still lies in the folder");
        let mut restarted = Revisions::after(revisions.rollback().expect("there was one"), "a");
        assert!(!restarted.wants("a") && !restarted.wants("b"), "a restart changes nothing of it");
        assert_eq!(restarted.rollback(), revisions.rollback());
        assert_eq!(restarted.roll_back(), Err(NoRevisionBefore));
        assert!(revisions.wants("c"));
        revisions.install("c", "c");
        assert!(revisions.wants("b"), "once another file came, the old one is a new deployment");
    }

    #[test]
    fn the_last_three_stay_to_go_back_to() {
        let mut revisions = installed(&["a", "b", "c", "d", "e"]);
        assert_eq!(revisions.before().collect::<Vec<_>>(), ["d", "c", "b"]);
        for expected in ["d", "c", "b"] {
            assert_eq!(revisions.roll_back(), Ok(expected));
        }
        assert_eq!(revisions.roll_back(), Err(NoRevisionBefore));
        assert_eq!(revisions.live(), Some(&"b"), "a failed rollback changes nothing");
    }

    #[test]
    fn the_same_file_again_is_no_new_revision() {
        let mut revisions = installed(&["a", "b"]);
        assert!(!revisions.wants("b"));
        revisions.install("b", "b");
        assert_eq!(revisions.before().collect::<Vec<_>>(), ["a"]);
    }

    proptest! {
        /// REV-2 and REV-4 against a list of all that was installed: the last one is live, those before it are to go back to,
        /// and what fails changes nothing.
        #[test]
        fn agree_with_a_list_of_what_was_installed(steps in prop::collection::vec(prop::option::weighted(0.7, 0_u8..6), 1..80)) {
            let mut revisions = Revisions::new();
            let mut installed: Vec<u8> = Vec::new();
            let mut set_aside = Vec::new();
            for step in steps {
                match step {
                    Some(digest) => {
                        revisions.install(&digest.to_string(), digest);
                        installed.retain(|other| *other != digest);
                        installed.push(digest);
                        set_aside.clear();
                    }
                    None if installed.len() > 1 => {
                        set_aside.extend(installed.pop());
                        prop_assert_eq!(revisions.roll_back(), Ok(installed[installed.len() - 1]), "REV-2");
                    }
                    None => prop_assert_eq!(revisions.roll_back(), Err(NoRevisionBefore), "REV-4"),
                }
                installed.drain(..installed.len().saturating_sub(1 + Revisions::<u8>::KEPT_MAX));
                prop_assert_eq!(revisions.live(), installed.last(), "REV-2: the live one is the last one that was installed");
                let before: Vec<u8> = revisions.before_revisions().copied().collect();
                prop_assert_eq!(before, installed.iter().rev().skip(1).copied().collect::<Vec<_>>());
                for digest in 0..6 {
                    let live = installed.last() == Some(&digest);
                    prop_assert_eq!(revisions.wants(&digest.to_string()), !live && !set_aside.contains(&digest), "REV-4");
                }
            }
        }
    }
}
