//! Tells when a file may have changed, however it is changed: appended to, rewritten in place, or replaced by another
//! of the same name.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;

/// A watch on one file. It looks at the file's DIRECTORY: an editor replaces the file, and a watch on the file itself
/// would stay with the old one. Behind a symbolic link there are two directories.
pub(super) struct FileWatch {
    changed: Arc<Notify>,
    _watcher: RecommendedWatcher,
}

impl FileWatch {
    /// Begins to watch.
    ///
    /// # Errors
    /// If the file's directory cannot be watched.
    pub(super) fn new(file: &Path) -> Result<Self> {
        let mut paths = vec![file.to_owned()];
        paths.extend(file.canonicalize().ok().filter(|target| target != file));
        let names: Vec<OsString> = paths.iter().filter_map(|path| path.file_name().map(OsString::from)).collect();
        let changed = Arc::new(Notify::new());
        let notify = Arc::clone(&changed);
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            // An error is an event lost: look.
            if event.map_or(true, |event| concerns(&event, &names)) {
                notify.notify_one();
            }
        })
        .context("failed to make a file watch")?;
        for path in &paths {
            let directory = directory_of(path);
            let watched = watcher.watch(&directory, RecursiveMode::NonRecursive);
            watched.with_context(|| format!("failed to watch {}", directory.display()))?;
        }
        Ok(Self { changed, _watcher: watcher })
    }

    /// Waits until the file may have changed since the last call.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }
}

fn directory_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        Some(_) | None => PathBuf::from("."),
    }
}

/// Reading the file is an event, too: to answer it by reading would never end.
fn concerns(event: &Event, names: &[OsString]) -> bool {
    let access = matches!(event.kind, EventKind::Access(kind) if kind != AccessKind::Close(AccessMode::Write));
    let named = |path: &PathBuf| path.file_name().is_some_and(|name| names.iter().any(|n| n == name));
    !access && (event.need_rescan() || event.paths.is_empty() || event.paths.iter().any(named))
}
