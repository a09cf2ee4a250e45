//! The front end's side of the recipient directory: agents' streams in, the shared [`Directory`] out, and a copy
//! of it on disk so that a restarted front end knows its users at once.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use anyhow::Result;
use proxy_core::address::Address;
use proxy_core::directory::{Answer, BackendRecord, ConnectionId, Digest, Directory, SourceName};
use tokio::sync::{Semaphore, mpsc, watch};

use crate::transport::{IncomingStream, Role};

pub(crate) mod frames;
mod receive;
mod store;

pub use frames::StreamError;
pub use receive::ReceiveError;

/// After a start nothing is called unknown for so long: agents and peers tell meanwhile of sources that came while
/// this front end was away.
pub const SETTLE_FOR: Duration = Duration::from_secs(5);
/// Agents' streams served at once.
pub const MAX_AGENT_STREAMS: usize = 2 * proxy_core::directory::MAX_SOURCES;

/// The directory as everything else in the daemon sees it; clones are one and the same.
#[derive(Debug, Clone, Default)]
pub struct SharedDirectory(Arc<RwLock<Directory>>);

impl SharedDirectory {
    /// What is known of the address now: microseconds, never waits for a peer.
    #[must_use]
    pub fn lookup(&self, address: &Address) -> Answer {
        self.read().lookup(address, Instant::now())
    }

    /// Where the services of a back end are.
    #[must_use]
    pub fn backend(&self, source: &SourceName) -> Option<BackendRecord> {
        self.read().backend(source).cloned()
    }

    /// Takes a peer's digests out of gossip; see [`Directory::observe`].
    pub fn observe(&self, digests: &[Digest]) {
        let mut directory = self.write();
        for digest in digests {
            if !directory.observe(digest) {
                tracing::warn!(source = %digest.source, "one source too many: not registered");
            }
        }
    }

    /// For digests, counts and conflicts. Keep it short: while it is held no change comes in.
    pub fn read(&self) -> RwLockReadGuard<'_, Directory> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, Directory> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Receives what agents say.
#[derive(Debug)]
pub struct DirectoryDriver {
    directory: SharedDirectory,
    store: Arc<store::Store>,
    frontends: watch::Receiver<Vec<SocketAddr>>,
    connections: AtomicU64,
    slots: Arc<Semaphore>,
}

impl DirectoryDriver {
    /// Reads what is stored in `state_dir` and makes the directory. `frontends` has the addresses of the pool's front
    /// ends that live, this one among them; agents are told.
    ///
    /// # Errors
    /// If `state_dir` cannot be used. A damaged file in it is no error: its source counts as registered and never
    /// complete.
    pub fn open(state_dir: &Path, frontends: watch::Receiver<Vec<SocketAddr>>) -> Result<Arc<Self>> {
        Self::open_with(state_dir, frontends, SETTLE_FOR)
    }

    pub(crate) fn open_with(
        state_dir: &Path,
        frontends: watch::Receiver<Vec<SocketAddr>>,
        settle_for: Duration,
    ) -> Result<Arc<Self>> {
        let store = store::Store::open(state_dir)?;
        let mut directory = Directory::default();
        store.load(&mut directory)?;
        directory.hold_unknown_until(Instant::now() + settle_for);
        Ok(Arc::new(Self {
            directory: SharedDirectory(Arc::new(RwLock::new(directory))),
            store: Arc::new(store),
            frontends,
            connections: AtomicU64::new(0),
            slots: Arc::new(Semaphore::new(MAX_AGENT_STREAMS)),
        }))
    }

    /// The directory that this driver fills.
    #[must_use]
    pub fn directory(&self) -> SharedDirectory {
        self.directory.clone()
    }

    /// Serves streams as they come and stores what changed, until there are no more streams. The channel's streams
    /// must all be of the directory's kind.
    pub async fn run(self: Arc<Self>, mut streams: mpsc::Receiver<IncomingStream>) {
        let storing = tokio::spawn(Arc::clone(&self).keep_stored());
        while let Some(stream) = streams.recv().await {
            self.accept(stream);
        }
        storing.abort();
        if let Err(error) = self.store_now().await {
            tracing::error!("failed to store the directory: {error:#}");
        }
    }

    /// Serves one stream in a task of its own.
    pub fn accept(self: &Arc<Self>, stream: IncomingStream) {
        let IncomingStream { remote, peer, send, recv, .. } = stream;
        let source = match (peer.role, SourceName::parse(&peer.name)) {
            (Role::Backend, Ok(source)) => source,
            (Role::Backend | Role::Frontend, _) => {
                tracing::warn!(%peer, %remote, "a directory stream from a node that is no back end");
                return;
            }
        };
        let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() else {
            tracing::warn!(%source, %remote, "too many agents' streams: refused");
            return;
        };
        let driver = Arc::clone(self);
        tokio::spawn(async move {
            tracing::info!(%source, %remote, "a source is connected");
            let ended = driver.serve(source.clone(), recv, send).await;
            let Err(reason) = ended;
            tracing::info!(%source, %remote, "a source is gone: {reason}");
            drop(slot);
        });
    }

    /// Forgets a source that will never come back, here and on disk. The caller is an operator.
    ///
    /// # Errors
    /// If its file cannot be removed.
    pub async fn forget(&self, source: &SourceName) -> Result<()> {
        self.directory.write().forget(source);
        let (store, source) = (Arc::clone(&self.store), source.clone());
        tokio::task::spawn_blocking(move || store.remove(&source)).await??;
        self.store_now().await
    }

    fn next_connection(&self) -> ConnectionId {
        ConnectionId(self.connections.fetch_add(1, Ordering::Relaxed))
    }

    /// Stores changes at most once a second and so that storing takes at most a tenth of the time.
    async fn keep_stored(self: Arc<Self>) {
        loop {
            let begun = Instant::now();
            if let Err(error) = self.store_now().await {
                tracing::error!("failed to store the directory: {error:#}");
            }
            tokio::time::sleep(store::STORE_EVERY.max(begun.elapsed() * store::STORE_SHARE)).await;
        }
    }

    /// Stores what has changed since it was last stored.
    ///
    /// # Errors
    /// If a file cannot be written; the next call tries again.
    pub async fn store_now(&self) -> Result<()> {
        let (store, directory) = (Arc::clone(&self.store), self.directory.clone());
        tokio::task::spawn_blocking(move || store.save(&directory)).await?
    }
}
