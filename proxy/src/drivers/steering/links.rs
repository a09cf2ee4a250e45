//! Holdings between front ends: one stream to each other member, on which the newest holdings go whenever the steering
//! machine tells them, and the streams that the others have opened to us.
//!
//! A stream keeps the order; holdings that a slow peer has not taken are replaced by newer ones, never queued.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use proxy_core::{
    cluster::{Node, NodeName},
    steering::{Holdings, MAX_HOLDINGS},
};
use quinn::{RecvStream, SendStream};
use tokio::{
    sync::{Semaphore, mpsc, watch},
    task::AbortHandle,
};
use tracing::{debug, warn};

use crate::transport::{IncomingStream, Role, StreamKind, Transport};

/// A peer that has not taken its holdings by then is dialled anew.
const SEND_DEADLINE: Duration = Duration::from_secs(2);
/// After a failure, before the peer is tried again.
const RETRY_AFTER: Duration = Duration::from_millis(200);
/// Streams read at once: twice what a full pool has, for each member may just be replacing its own.
const MAX_STREAMS: usize = 2 * proxy_common::maps::MAX_MEMBERS as usize;

/// What another member told.
#[derive(Debug)]
pub(super) struct Heard {
    /// Its name, as its certificate proves it.
    pub(super) from: String,
    pub(super) holdings: Holdings,
}

/// The streams to the other members.
#[derive(Debug)]
pub(super) struct Links {
    transport: Transport,
    latest: watch::Sender<Arc<[u8]>>,
    peers: BTreeMap<NodeName, Peer>,
}

#[derive(Debug)]
struct Peer {
    generation: u64,
    address: SocketAddr,
    task: AbortHandle,
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Links {
    pub(super) fn new(transport: Transport) -> Self {
        Self { transport, latest: watch::Sender::new(Arc::from([])), peers: BTreeMap::new() }
    }

    /// Keeps a stream to each of these members, and to nobody else.
    pub(super) fn handle_members<'a>(&mut self, others: impl Iterator<Item = &'a Node>) {
        let mut kept = BTreeMap::new();
        for node in others {
            let former = self.peers.remove(&node.name);
            let same = |peer: &Peer| (peer.generation, peer.address) == (node.generation, node.address);
            let peer = former.filter(same).unwrap_or_else(|| self.spawn(node));
            kept.insert(node.name.clone(), peer);
        }
        self.peers = kept;
    }

    /// Tells every other member.
    pub(super) fn tell(&self, holdings: &Holdings) {
        self.latest.send_replace(holdings.encode().into());
    }

    fn spawn(&self, node: &Node) -> Peer {
        let link = Link {
            transport: self.transport.clone(),
            name: node.name.clone(),
            address: node.address,
            latest: self.latest.subscribe(),
            stream: None,
        };
        let task = tokio::spawn(link.run()).abort_handle();
        Peer { generation: node.generation, address: node.address, task }
    }
}

/// The stream to one member.
struct Link {
    transport: Transport,
    name: NodeName,
    address: SocketAddr,
    latest: watch::Receiver<Arc<[u8]>>,
    stream: Option<(SendStream, RecvStream)>,
}

impl Link {
    async fn run(mut self) {
        while self.latest.changed().await.is_ok() {
            while let Err(error) = self.send_latest().await {
                debug!(member = %self.name, error = format!("{error:#}"), "failed to tell the holdings");
                self.stream = None;
                tokio::time::sleep(RETRY_AFTER).await;
            }
        }
    }

    async fn send_latest(&mut self) -> Result<()> {
        let bytes = Arc::clone(&self.latest.borrow_and_update());
        tokio::time::timeout(SEND_DEADLINE, self.send(&bytes)).await.context("the peer takes nothing")?
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        let length = u32::try_from(bytes.len()).context("holdings of impossible length")?;
        let send = match &mut self.stream {
            Some((send, _)) => send,
            none => {
                let (peer, send, recv) = self.transport.open_stream(self.address, StreamKind::Steering).await?;
                ensure!(peer.name == self.name.as_str(), "{peer} answers at {}", self.address);
                &mut none.insert((send, recv)).0
            }
        };
        send.write_all(&length.to_be_bytes()).await.context("the connection ended")?;
        send.write_all(bytes).await.context("the connection ended")
    }
}

/// Reads the streams that other front ends open until there are no more.
pub(super) async fn receive(mut streams: mpsc::Receiver<IncomingStream>, heard: mpsc::Sender<Heard>) {
    let slots = Arc::new(Semaphore::new(MAX_STREAMS));
    while let Some(stream) = streams.recv().await {
        let IncomingStream { remote, peer, recv, .. } = stream;
        if peer.role != Role::Frontend {
            warn!(%peer, %remote, "a steering stream from a node that is no front end");
            continue;
        }
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
            warn!(%peer, %remote, "too many steering streams: refused");
            continue;
        };
        let heard = heard.clone();
        tokio::spawn(async move {
            if let Err(error) = read(recv, &peer.name, &heard).await {
                debug!(%peer, %remote, error = format!("{error:#}"), "a steering stream ended");
            }
            drop(slot);
        });
    }
}

async fn read(mut stream: RecvStream, from: &str, heard: &mpsc::Sender<Heard>) -> Result<()> {
    loop {
        let mut length = [0; 4];
        stream.read_exact(&mut length).await.context("no more")?;
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        ensure!(length <= MAX_HOLDINGS, "holdings of {length} octets");
        let mut bytes = vec![0; length];
        stream.read_exact(&mut bytes).await.context("broken off")?;
        let holdings = match Holdings::decode(&bytes) {
            Ok(holdings) => holdings,
            Err(error) => {
                warn!(member = from, %error, "holdings that cannot be read");
                return Err(error.into());
            }
        };
        heard.send(Heard { from: from.to_owned(), holdings }).await.context("nobody listens")?;
    }
}

#[cfg(test)]
mod tests;
