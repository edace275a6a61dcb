//! Compiled components on disk, so that a start does not compile what was compiled before.
//!
//! Machine code is run as it is read, so it is read from a folder that nobody else can write to, or not at all.

use std::fs::{self, File, OpenOptions};
use std::hash::{Hash, Hasher};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use sha2::{Digest, Sha256};
use wasmtime::Engine;
use wasmtime::component::Component;

/// Bytes of all compiled components together; the ones used longest ago go first.
const BYTES_MAX: u64 = 512 << 20;
/// What the files' names end with.
const EXTENSION: &str = "compiled";
/// What they end with while they are written; a crash may leave one behind.
const UNFINISHED: &str = "tmp";

/// A private folder of compiled components.
#[derive(Debug)]
pub(super) struct Cache {
    folder: PathBuf,
    bytes_max: u64,
}

/// Why there is no cache.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotPrivate {
    #[error("`{0}` can't be used: {1}")]
    Unusable(PathBuf, io::Error),
    #[error("`{0}` is a link; make it a folder")]
    Link(PathBuf),
    #[error("`{0}` belongs to another user; give it to the user that runs the host, or remove it")]
    Foreign(PathBuf),
    #[error("`{0}` is open to other users; close it with `chmod 700`")]
    Open(PathBuf),
}

impl Cache {
    /// Opens the folder, or makes it; refuses one that others could write to.
    pub(super) fn open(folder: &Path) -> Result<Self, NotPrivate> {
        let unusable = |error| NotPrivate::Unusable(folder.to_owned(), error);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(unusable)?;
        let metadata = fs::symlink_metadata(folder).map_err(unusable)?;
        if !metadata.is_dir() {
            return Err(NotPrivate::Link(folder.to_owned()));
        }
        if metadata.mode() & 0o077 != 0 {
            return Err(NotPrivate::Open(folder.to_owned()));
        }
        // Who we are is told by whose our files are.
        let probe = folder.join(format!(".probe-{}", std::process::id()));
        let ours = private(&probe).and_then(|file| file.metadata()).map_err(unusable)?.uid();
        fs::remove_file(&probe).map_err(unusable)?;
        if metadata.uid() != ours {
            return Err(NotPrivate::Foreign(folder.to_owned()));
        }
        Ok(Self { folder: folder.to_owned(), bytes_max: BYTES_MAX })
    }

    /// The compiled component of this digest, if this engine compiled it before.
    pub(super) fn get(&self, engine: &Engine, digest: &str) -> Option<Component> {
        let path = self.path(engine, digest);
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(&path).ok()?;
        file.set_modified(SystemTime::now()).ok();
        load(engine, &path)
            .inspect_err(|error| {
                tracing::debug!(error = format!("{error:#}"), "a compiled component does not fit and is made anew");
                fs::remove_file(&path).ok();
            })
            .ok()
    }

    /// Keeps a compiled component; a failure costs only time at the next start.
    pub(super) fn put(&self, engine: &Engine, digest: &str, component: &Component) {
        let path = self.path(engine, digest);
        let kept = component.serialize().map_err(|error| io::Error::other(format!("{error:#}"))).and_then(|code| {
            // Never over the old file: it may be mapped into a running host.
            let beside = path.with_extension(format!("{}.{UNFINISHED}", std::process::id()));
            let written = private(&beside).and_then(|mut file| file.write_all(&code).and_then(|()| file.sync_all()));
            written.and_then(|()| fs::rename(&beside, &path)).inspect_err(|_| {
                fs::remove_file(&beside).ok();
            })
        });
        match kept {
            Ok(()) => self.shrink(),
            Err(error) => tracing::warn!(%error, folder = %self.folder.display(), "a compiled component was not kept"),
        }
    }

    /// Other bytes, another engine, another version of the host: another file.
    fn path(&self, engine: &Engine, digest: &str) -> PathBuf {
        let mut name = Sha256::new();
        name.update(env!("CARGO_PKG_VERSION"));
        name.update(digest);
        engine.precompile_compatibility_hash().hash(&mut Hashed(&mut name));
        let name = name.finalize();
        let name: String = name.iter().take(20).map(|byte| format!("{byte:02x}")).collect();
        self.folder.join(name).with_extension(EXTENSION)
    }

    /// Removes what was used longest ago until the rest fits.
    fn shrink(&self) {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let mut files: Vec<(SystemTime, u64, PathBuf)> = entries
            .filter(|entry| entry.path().extension().is_some_and(|ending| ending == EXTENSION || ending == UNFINISHED))
            .filter_map(|entry| {
                let metadata = entry.metadata().ok()?;
                Some((metadata.modified().ok()?, metadata.len(), entry.path()))
            })
            .collect();
        files.sort();
        let mut bytes: u64 = files.iter().map(|(_, bytes, _)| bytes).sum();
        for (_, length, path) in files {
            if bytes <= self.bytes_max {
                return;
            }
            fs::remove_file(&path).ok();
            bytes -= length;
        }
    }
}

/// Feeds what is hashed into a digest that stays the same from run to run.
struct Hashed<'a>(&'a mut Sha256);

impl Hasher for Hashed<'_> {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(&self) -> u64 {
        0
    }
}

fn private(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).custom_flags(libc::O_NOFOLLOW).open(path)
}

#[allow(
    unsafe_code,
    reason = "compiled code can only be loaded so; the folder is private, and the engine checks the file's header"
)]
fn load(engine: &Engine, path: &Path) -> wasmtime::Result<Component> {
    // SAFETY: the file was written by `Cache::put` of a process of this user: the folder is ours, closed to others and no
    // link, as `Cache::open` made sure. It is never changed in place, only renamed over or removed.
    unsafe { Component::deserialize_file(engine, path) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use wasmtime::ModuleVersionStrategy;

    use super::*;
    use crate::guest::Engine as Sandbox;

    const SMALL: &str = "(component)";
    /// What can't be compiled can only come from the folder.
    const BROKEN: &str = "(component";

    fn engine() -> Engine {
        Engine::new(&wasmtime::Config::new()).expect("an engine")
    }

    fn component(engine: &Engine) -> Component {
        Component::new(engine, wat::parse_str(SMALL).expect("text")).expect("a component")
    }

    #[test]
    fn what_was_compiled_is_found_again_by_the_same_engine_only() {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = Cache::open(&folder.path().join("cache")).expect("it is private");
        let engine = engine();
        assert!(cache.get(&engine, "a").is_none());
        cache.put(&engine, "a", &component(&engine));
        assert!(cache.get(&engine, "a").is_some());
        assert!(cache.get(&engine, "b").is_none());
        let other = Engine::new(wasmtime::Config::new().epoch_interruption(true)).expect("an engine");
        assert!(cache.get(&other, "a").is_none(), "compiled with other settings");
    }

    #[test]
    fn a_folder_that_others_may_write_to_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let (open, link) = (folder.path().join("open"), folder.path().join("link"));
        fs::create_dir(&open).expect("made");
        fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).expect("set");
        assert!(matches!(Cache::open(&open), Err(NotPrivate::Open(_))));
        fs::set_permissions(&open, fs::Permissions::from_mode(0o700)).expect("set");
        std::os::unix::fs::symlink(&open, &link).expect("linked");
        assert!(matches!(Cache::open(&link), Err(NotPrivate::Link(_))));
        assert!(Cache::open(&open).is_ok());
    }

    #[tokio::test]
    async fn after_a_restart_nothing_is_compiled_again() {
        let state = tempfile::tempdir().expect("a folder");
        started(state.path(), "a", SMALL).await.expect("it compiles");
        started(state.path(), "a", BROKEN).await.expect("it was kept");
        started(state.path(), "b", BROKEN).await.expect_err("another digest is another component");
    }

    #[tokio::test]
    async fn a_host_whose_folder_is_open_to_others_goes_on_without() {
        let state = tempfile::tempdir().expect("a folder");
        let open = state.path().join("compiled");
        fs::create_dir(&open).expect("made");
        for mode in [0o701, 0o710, 0o777] {
            fs::set_permissions(&open, fs::Permissions::from_mode(mode)).expect("set");
            started(state.path(), "a", SMALL).await.expect("it compiles");
            assert_eq!(fs::read_dir(&open).expect("it is there").count(), 0, "nothing is kept where others may look");
        }
    }

    #[tokio::test]
    async fn a_file_that_does_not_fit_is_made_anew() {
        let state = tempfile::tempdir().expect("a folder");
        started(state.path(), "a", SMALL).await.expect("it compiles");
        let folder = state.path().join("compiled");
        let path = fs::read_dir(&folder).expect("it is there").next().expect("one file").expect("an entry").path();
        let whole = fs::read(&path).expect("it is kept");
        let mut other_version = wasmtime::Config::new();
        other_version.module_version(ModuleVersionStrategy::Custom("another".to_owned())).expect("a version");
        let foreign = component(&Engine::new(&other_version).expect("an engine")).serialize().expect("its code");
        for (misfit, bytes) in [
            ("not code", &b"not code"[..]),
            ("empty", b""),
            ("cut off", &whole[..whole.len() / 2]),
            ("another version", &foreign),
        ] {
            fs::remove_file(&path).expect("it is there");
            fs::write(&path, bytes).expect("written");
            started(state.path(), "a", SMALL).await.unwrap_or_else(|error| panic!("{misfit}: {error}"));
            assert_eq!(fs::read(&path).expect("it is kept"), whole, "{misfit}");
        }
    }

    #[test]
    fn a_folder_that_went_away_costs_only_time() {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = Cache::open(&folder.path().join("cache")).expect("it is private");
        let engine = engine();
        fs::remove_dir(folder.path().join("cache")).expect("removed");
        cache.put(&engine, "a", &component(&engine));
        assert!(cache.get(&engine, "a").is_none());
    }

    #[test]
    fn what_was_used_longest_ago_goes_first() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut cache = Cache::open(&folder.path().join("cache")).expect("it is private");
        let engine = engine();
        let component = component(&engine);
        for (age, digest) in [(30, "a"), (20, "b"), (10, "c")] {
            cache.put(&engine, digest, &component);
            let file = File::options().write(true).open(cache.path(&engine, digest)).expect("it is kept");
            file.set_modified(SystemTime::now() - std::time::Duration::from_secs(age)).expect("set");
        }
        let length = fs::metadata(cache.path(&engine, "a")).expect("it is kept").len();
        assert!(cache.get(&engine, "a").is_some(), "using it makes it young");
        cache.bytes_max = length * 3;
        cache.put(&engine, "d", &component);
        for (digest, stays) in [("a", true), ("b", false), ("c", true), ("d", true)] {
            assert_eq!(cache.get(&engine, digest).is_some(), stays, "{digest}");
        }
    }

    #[test]
    fn what_a_crash_left_half_written_counts_and_goes() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut cache = Cache::open(&folder.path().join("cache")).expect("it is private");
        let engine = engine();
        let left = cache.path(&engine, "a").with_extension(format!("1.{UNFINISHED}"));
        fs::write(&left, "half").expect("written");
        cache.put(&engine, "b", &component(&engine));
        assert!(left.exists(), "another host may be writing it");
        cache.bytes_max = fs::metadata(cache.path(&engine, "b")).expect("it is kept").len();
        cache.put(&engine, "b", &component(&engine));
        assert!(!left.exists());
        assert!(cache.get(&engine, "b").is_some());
    }

    /// What a host that starts with this folder makes of a component.
    async fn started(state: &Path, digest: &str, text: &str) -> wasmtime::Result<Component> {
        let bytes = wat::parse_str(text).unwrap_or_else(|_| text.as_bytes().to_vec());
        let sandbox = Sandbox::with_instances(state, 1).expect("a sandbox");
        sandbox.compile(digest.into(), bytes).await.expect("the host does not fail")
    }
}
