//! The deny list, as everything in the daemon shares it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use proxy_core::abuse::DenyList;
use tokio::sync::watch;

/// The deny list and a signal that it has changed; clones are one and the same.
#[derive(Debug, Clone)]
pub(super) struct SharedDenyList(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    list: Mutex<DenyList>,
    changed: watch::Sender<()>,
}

impl SharedDenyList {
    pub(super) fn new(list: DenyList) -> Self {
        Self(Arc::new(Shared { list: Mutex::new(list), changed: watch::Sender::new(()) }))
    }

    /// Exclusive use, for milliseconds at the most. Whoever changes the list uses [`SharedDenyList::change`].
    pub(super) fn lock(&self) -> MutexGuard<'_, DenyList> {
        self.0.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the list, and wakes those who wait for that.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut DenyList) -> T) -> T {
        let result = change(&mut self.lock());
        self.0.changed.send_replace(());
        result
    }

    /// Wakes after every change.
    pub(super) fn subscribe(&self) -> watch::Receiver<()> {
        self.0.changed.subscribe()
    }
}

/// The time that all front ends mean the same by, in Unix milliseconds; 0 if the clock stands before 1970.
pub(super) fn unix_now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
