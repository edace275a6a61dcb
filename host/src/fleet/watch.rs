//! Something changed below the handlers' folder: told by the system where it can, and looked for where it can't.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;

/// How often to look without having been told: network file systems and some overlays tell nothing.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// A deployment is many events: the first is followed by this wait.
const DEBOUNCE: Duration = Duration::from_millis(100);

/// Watches a folder and everything below it.
pub(super) struct Watch {
    told: Arc<Notify>,
    /// Stops watching when dropped.
    _watcher: Option<RecommendedWatcher>,
}

impl Watch {
    /// Begins to watch; where the system can't, the folder is looked at now and then.
    pub(super) fn new(folder: &Path) -> Self {
        let told = Arc::new(Notify::new());
        let tell = Arc::clone(&told);
        // Events say little that can be trusted (a renamed link is reported in several ways): whoever is woken looks himself.
        let watcher = notify::recommended_watcher(move |_event| tell.notify_one());
        let watching = watcher.and_then(|mut watcher| {
            watcher.watch(folder, RecursiveMode::Recursive)?;
            Ok(watcher)
        });
        let watcher = watching
            .inspect_err(|error| tracing::warn!(folder = %folder.display(), %error, "the folder can't be watched; it is looked at every two seconds"))
            .ok();
        Self { told, _watcher: watcher }
    }

    /// Resolves when something may have changed. Cancel-safe.
    pub(super) async fn changed(&mut self) {
        if tokio::time::timeout(LOOK_INTERVAL, self.told.notified()).await.is_ok() {
            tokio::time::sleep(DEBOUNCE).await;
        }
    }
}
