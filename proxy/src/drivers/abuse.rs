//! The defence against those who ask too often, or are not to be served: the pool's deny list, this front end's limit
//! of new connections, and its SYN cookies.

mod answers;
mod exchange;
mod kernel;
mod list;
mod nic;
mod store;

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result};
use proxy_common::maps::{COOKIES_OUT, SYN_COOKIES};
use proxy_core::abuse::{Change, Cookies, FloodSwitch, Limit, Origin};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use self::kernel::KernelCookies;
use self::list::SharedDenyList;
use self::store::Store;
use super::cluster::View;
use super::steering::SharedDataplane;
use crate::config;
use crate::dataplane::DenyMaps;
use crate::transport::{IncomingStream, Transport};

/// Handle for the control socket, status and metrics; clones are one and the same.
#[derive(Clone)]
pub struct Abuse {
    origin: Origin,
    list: SharedDenyList,
    store: Store,
    configured: config::Abuse,
    limit: Arc<Mutex<Limit>>,
    flood: Arc<Mutex<FloodSwitch>>,
    kernel: Arc<Mutex<KernelCookies>>,
    dataplane: SharedDataplane,
}

/// What [`Abuse::spawn`] needs besides: the program's maps, and how they differ from the list.
pub struct Maps {
    maps: DenyMaps,
    difference: Vec<Change>,
}

impl Abuse {
    /// Reads the deny list of `state_dir`, takes the program's maps over, and puts the configured limit in force.
    ///
    /// # Errors
    /// The program's maps cannot be used.
    pub fn open(
        node: &str,
        state_dir: &Path,
        configured: config::Abuse,
        dataplane: SharedDataplane,
    ) -> Result<(Self, Maps)> {
        let origin = Origin::parse(node).context("node.name")?;
        let store = Store::new(state_dir);
        let mut list = store.load();
        let (maps, present) = dataplane.lock().take_deny_maps()?;
        let difference = nic::difference(present, &list);
        // The difference says it all.
        while list.poll_change().is_some() {}
        dataplane.lock().set_limit(configured.limit);
        let flood = FloodSwitch::new(configured.syn_cookies_above, Instant::now());
        let abuse = Self {
            origin,
            list: SharedDenyList::new(list),
            store,
            configured,
            limit: Arc::new(Mutex::new(configured.limit)),
            flood: Arc::new(Mutex::new(flood)),
            kernel: Arc::new(Mutex::new(KernelCookies::open(state_dir))),
            dataplane,
        };
        Ok((abuse, Maps { maps, difference }))
    }

    /// Starts everything that goes on by itself. `streams` must all be of the deny list's kind.
    #[must_use]
    pub fn spawn(
        &self,
        Maps { maps, difference }: Maps,
        transport: Transport,
        views: watch::Receiver<Arc<View>>,
        streams: mpsc::Receiver<IncomingStream>,
    ) -> Vec<JoinHandle<()>> {
        let (list, dataplane) = (self.list.clone(), self.dataplane.clone());
        vec![
            tokio::spawn(async move {
                if let Err(error) = nic::keep_denying(list, dataplane, maps, difference).await {
                    tracing::error!(error = format!("{error:#}"), "the deny list is not kept up to date at the NIC");
                }
            }),
            tokio::spawn(nic::keep_watching(self.clone())),
            tokio::spawn(self.store.clone().keep(self.list.clone())),
            tokio::spawn(exchange::send(self.list.clone(), transport, views)),
            tokio::spawn(exchange::receive(self.list.clone(), streams)),
        ]
    }

    /// Puts a decision about cookies in force: in the program, and in the kernel that makes them for it.
    fn obey(&self, cookies: Cookies) {
        let flag = |set, flag| if set { flag } else { 0 };
        let flags = flag(cookies.send, SYN_COOKIES) | flag(cookies.out, COOKIES_OUT);
        let in_kernel = lock(&self.kernel).obey(cookies);
        self.dataplane.lock().set_flags(SYN_COOKIES | COOKIES_OUT, flags);
        if let Err(error) = in_kernel {
            tracing::warn!(error = format!("{error:#}"), "the kernel may make no SYN cookies for the program");
        }
    }

    /// Has the program answer by no more cookies, and the kernel do as it did before this daemon.
    ///
    /// # Errors
    /// The kernel's setting cannot be written.
    pub fn end(&self) -> Result<()> {
        self.dataplane.lock().set_flags(SYN_COOKIES, 0);
        lock(&self.kernel).restore()
    }

    /// Stores the deny list as it is now.
    ///
    /// # Errors
    /// The file cannot be written.
    pub async fn store_now(&self) -> Result<()> {
        self.store.save(&self.list).await
    }
}

/// A panic while it was held is a bug, but its content is still good enough to go on.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
