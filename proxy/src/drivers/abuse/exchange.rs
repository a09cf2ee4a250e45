//! The deny list between front ends: a stream to every other member, and one from it.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proxy_core::abuse::wire::{self, Decoder, Message, Reply, Wire, WireError};
use proxy_core::abuse::{DenyList, Inbound, LinkError, Outbound, SUMMARY_EVERY};
use proxy_core::cluster::{Node, NodeName};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};

use super::list::{SharedDenyList, unix_now};
use crate::drivers::cluster::View;
use crate::transport::{IncomingStream, Role, StreamKind, Transport};

/// Streams of peers served at once: more than one of each can only be a peer that has just come back.
const MAX_STREAMS: usize = 2 * proxy_common::maps::MAX_MEMBERS as usize;
/// Before a stream that has ended is opened again.
const REOPEN_PAUSE: Duration = Duration::from_millis(200);
/// A peer that sends nothing for so long, or does not read, is given up.
const SILENT_FOR: Duration = Duration::from_secs(5 * SUMMARY_EVERY.as_secs());
/// Octets read at once.
const READ_BYTES: usize = wire::MAX_FRAME;

/// Why a stream has ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum StreamError {
    #[error("the peer closed the stream")]
    Closed,
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("nothing heard for {} s", SILENT_FOR.as_secs())]
    Silent,
    #[error("the peer does not read")]
    NotReading,
}

/// A task that ends with its handle.
struct Link(JoinHandle<()>);

impl Drop for Link {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Keeps a stream open to every other member, for as long as there are views.
pub(super) async fn send(list: SharedDenyList, transport: Transport, mut views: watch::Receiver<Arc<View>>) {
    let mut links = BTreeMap::<(NodeName, SocketAddr, u64), Link>::new();
    loop {
        let view = Arc::clone(&views.borrow_and_update());
        let key = |node: &Node| (node.name.clone(), node.address, node.generation);
        let wanted: Vec<_> = view.members.iter().filter(|node| node.name != view.me).map(key).collect();
        links.retain(|key, _| wanted.contains(key));
        for (name, address, generation) in wanted {
            links
                .entry((name.clone(), address, generation))
                .or_insert_with(|| Link(tokio::spawn(keep_sending(list.clone(), transport.clone(), name, address))));
        }
        if views.changed().await.is_err() {
            return;
        }
    }
}

async fn keep_sending(list: SharedDenyList, transport: Transport, name: NodeName, address: SocketAddr) {
    loop {
        match transport.open_stream(address, StreamKind::Deny).await {
            Ok((peer, writer, reader)) if peer.name == name.as_str() => {
                let Err(reason) = send_list(&list, reader, writer).await;
                tracing::debug!(peer = %name, "the deny list is not sent any more: {reason}");
            }
            Ok((peer, ..)) => tracing::debug!(member = %name, %peer, "another node has the member's address"),
            Err(error) => tracing::debug!(member = %name, "the deny list cannot be sent: {error:#}"),
        }
        tokio::time::sleep(REOPEN_PAUSE).await;
    }
}

/// Sends the list, and all that is said later, until the stream ends.
pub(super) async fn send_list<R, W>(
    list: &SharedDenyList,
    mut reader: R,
    mut writer: W,
) -> Result<Infallible, StreamError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut changed = list.subscribe();
    let mut outbound = Outbound::new(&list.lock(), Instant::now());
    let mut decoder = Decoder::<Reply>::default();
    let mut input = vec![0; READ_BYTES];
    loop {
        changed.mark_unchanged();
        // In a statement of its own: the list must not be held while the peer reads.
        while let Some(message) = poll_message(&mut outbound, list) {
            write(&mut writer, &message).await?;
        }
        tokio::select! {
            octets = reader.read(&mut input) => {
                handle_input(&mut decoder, &input, octets?)?;
                while let Some(reply) = decoder.poll_message()? {
                    outbound.handle_reply(reply, &list.lock())?;
                }
            }
            _ = changed.changed() => {}
            () = tokio::time::sleep_until(outbound.poll_timeout().into()) => {}
        }
    }
}

fn poll_message(outbound: &mut Outbound, list: &SharedDenyList) -> Option<Message> {
    outbound.poll_message(&list.lock(), Instant::now())
}

fn handle_input<M: Wire>(decoder: &mut Decoder<M>, input: &[u8], octets: usize) -> Result<(), StreamError> {
    if octets == 0 {
        return Err(StreamError::Closed);
    }
    decoder.handle_input(input.get(..octets).unwrap_or_default());
    Ok(())
}

async fn write<M: Wire>(writer: &mut (impl AsyncWrite + Unpin), message: &M) -> Result<(), StreamError> {
    let frame = wire::encode(message)?;
    let written = tokio::time::timeout(SILENT_FOR, writer.write_all(&frame)).await;
    Ok(written.map_err(|_elapsed| StreamError::NotReading)??)
}

/// Serves the streams that peers open, for as long as they come. Only front ends are heard.
pub(super) async fn receive(list: SharedDenyList, mut streams: mpsc::Receiver<IncomingStream>) {
    let slots = Arc::new(Semaphore::new(MAX_STREAMS));
    let mut served = JoinSet::new();
    while let Some(IncomingStream { remote, peer, send, recv, .. }) = streams.recv().await {
        while served.try_join_next().is_some() {}
        if peer.role != Role::Frontend {
            tracing::warn!(%peer, %remote, "a deny list from a node that is no front end: refused");
            continue;
        }
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
            tracing::warn!(%peer, %remote, "too many streams of deny lists: refused");
            continue;
        };
        let list = list.clone();
        served.spawn(async move {
            let Err(reason) = receive_list(&list, &peer.name, recv, send).await;
            tracing::debug!(%peer, %remote, "no deny list comes any more: {reason}");
            drop(slot);
        });
    }
}

/// The receiving end; what it has asked for is given up with it, however it ends.
struct Receiving<'a> {
    inbound: Inbound,
    list: &'a SharedDenyList,
    peer: &'a str,
}

impl Drop for Receiving<'_> {
    fn drop(&mut self) {
        self.inbound.handle_end(&mut self.list.lock());
    }
}

/// Takes a peer's list until the stream ends.
pub(super) async fn receive_list<R, W>(
    list: &SharedDenyList,
    peer: &str,
    mut reader: R,
    mut writer: W,
) -> Result<Infallible, StreamError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut receiving = Receiving { inbound: Inbound::default(), list, peer };
    let mut decoder = Decoder::<Message>::default();
    let mut input = vec![0; READ_BYTES];
    loop {
        let read = tokio::time::timeout(SILENT_FOR, reader.read(&mut input)).await;
        handle_input(&mut decoder, &input, read.map_err(|_elapsed| StreamError::Silent)??)?;
        while let Some(message) = decoder.poll_message()? {
            if let Some(reply) = receiving.handle_message(message)? {
                write(&mut writer, &reply).await?;
            }
        }
    }
}

impl Receiving<'_> {
    fn handle_message(&mut self, message: Message) -> Result<Option<Reply>, LinkError> {
        let news = matches!(message, Message::Records(_));
        let inbound = &mut self.inbound;
        let handle = |list: &mut DenyList| inbound.handle_message(message, list, Instant::now(), unix_now());
        let reply = if news { self.list.change(handle) } else { handle(&mut self.list.lock()) }?;
        if let Some(error) = self.inbound.poll_refused() {
            tracing::error!(peer = self.peer, "part of a peer's deny list is not taken: {error}");
        }
        Ok(reply)
    }
}
