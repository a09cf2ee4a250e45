//! The pool's transport: QUIC (RFC 9000) with mutual TLS on one UDP socket, which is server and client at once.
//! Datagrams (RFC 9221) carry gossip between front ends, bidirectional streams carry directory logs and control.
//!
//! Which connection carries what: towards one address there is at most one connection that this node dialled and
//! one that the peer dialled, and the NEWEST of the two carries everything that is sent; both are read. So two
//! nodes that dial each other at once need no tie-break: no one closes a connection that the other prefers.
//!
//! A peer that died without a word and came back at the same address must not lose gossip to a connection that
//! only its former process knew. Three things see to it: a connection dialled by the new process replaces the
//! older one; the new process answers packets of unknown connections with a stateless reset (RFC 9000,
//! section 10.3) that we believe, because its key and that of the connection ids follow from the node's private
//! key and not from chance; and what remains (a connection of a few milliseconds, whose connection ids have no
//! reset token yet) runs into the idle timeout.
//!
//! Absent on purpose: ordering or delivery of datagrams, reconnecting for its own sake (only traffic dials).

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use quinn::{Connection, Endpoint, RecvStream, SendStream, VarInt};
use tokio::sync::mpsc;

mod accept;
mod dial;
mod endpoint;
mod identity;
mod peers;
mod stats;

pub use crate::pki::Role;
pub use identity::{Identity, PeerIdentity};
pub use stats::{StatsSnapshot, TransportStats};

/// Datagrams up to this size fit every connection; larger ones are refused before they leave. QUIC guarantees paths
/// of 1,200 bytes (RFC 9000, section 14); headers, connection id and authentication tag take the rest.
pub const MAX_DATAGRAM_BYTES: usize = 1150;
/// Received datagrams waiting for the membership driver.
pub const DATAGRAM_QUEUE: usize = 1024;
/// Incoming streams waiting for whoever serves them.
pub const STREAM_QUEUE: usize = 64;
/// Datagrams kept per address while its connection is being dialled.
pub const PENDING_DATAGRAMS: usize = 16;
/// Connections, open or in handshake, that all peers together may hold.
pub const MAX_CONNECTIONS: usize = 4096;
/// Connections, open or in handshake, that one IP address may hold.
pub const MAX_CONNECTIONS_PER_IP: usize = 64;
/// Handshakes in progress altogether; strangers can't take the places of connected nodes.
pub const MAX_HANDSHAKES: usize = 1024;
/// Above this many handshakes in progress a dialler must first prove its address (Retry, RFC 9000, section 8.1.2).
pub const RETRY_ABOVE_HANDSHAKES: usize = 64;
/// Bidirectional streams that one peer may have open on one connection; unidirectional streams are not used.
pub const MAX_STREAMS_PER_CONNECTION: u32 = 16;
/// Addresses remembered though nothing is connected (their state is told once, so it has to be remembered).
pub const MAX_REMEMBERED_PEERS: usize = 4096;
/// Refused strangers are logged at most this often; the counters have them all.
pub const REFUSAL_LOG_INTERVAL: Duration = Duration::from_secs(10);
/// A lost Initial is sent again after three times this (RFC 9002, section 6.2.2), so a peer that comes back is found
/// within a fraction of a second. Pools are local networks; a longer path corrects it with its first round trip.
pub const INITIAL_RTT: Duration = Duration::from_millis(25);

/// Deadlines and limits that tests shorten; [`Tuning::default`] is what the daemon runs with.
#[derive(Debug, Clone)]
pub struct Tuning {
    /// An unused connection says something this often, so that a dead peer is noticed without traffic.
    pub keep_alive: Duration,
    /// A connection that hears nothing for this long is dead.
    pub idle_timeout: Duration,
    /// An accepted connection must have finished its handshake within this.
    pub handshake_deadline: Duration,
    /// A dialled connection must be there within this; the next packet dials again.
    pub dial_deadline: Duration,
    /// After a failed dial, datagrams to the address are dropped for this long before it is dialled again.
    pub redial_pause: Duration,
    /// The kind byte of a new stream must arrive within this.
    pub stream_kind_deadline: Duration,
    pub max_connections: usize,
    pub max_connections_per_ip: usize,
    pub datagram_queue: usize,
    pub stream_queue: usize,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            keep_alive: Duration::from_millis(400),
            idle_timeout: Duration::from_secs(2),
            handshake_deadline: Duration::from_secs(2),
            dial_deadline: Duration::from_secs(1),
            redial_pause: Duration::from_millis(200),
            stream_kind_deadline: Duration::from_secs(2),
            max_connections: MAX_CONNECTIONS,
            max_connections_per_ip: MAX_CONNECTIONS_PER_IP,
            datagram_queue: DATAGRAM_QUEUE,
            stream_queue: STREAM_QUEUE,
        }
    }
}

/// What a stream is for; its first byte on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum StreamKind {
    /// The recipient directory's logs.
    Directory = 1,
    /// What front ends tell each other of their connections.
    Steering = 2,
    /// The deny list between front ends.
    Deny = 3,
}

impl StreamKind {
    fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Directory),
            2 => Some(Self::Steering),
            3 => Some(Self::Deny),
            _ => None,
        }
    }
}

/// A datagram that a front end sent.
#[derive(Debug)]
pub struct Datagram {
    pub remote: SocketAddr,
    pub peer: PeerIdentity,
    pub payload: Bytes,
}

/// A stream that a peer opened; its kind byte has been read.
#[derive(Debug)]
pub struct IncomingStream {
    pub remote: SocketAddr,
    pub peer: PeerIdentity,
    pub kind: StreamKind,
    pub send: SendStream,
    pub recv: RecvStream,
}

/// What arrives. A receiver that is dropped or slow makes the transport drop and count, never block.
#[derive(Debug)]
pub struct Incoming {
    pub datagrams: mpsc::Receiver<Datagram>,
    pub streams: mpsc::Receiver<IncomingStream>,
}

/// Why a connection is closed by us: the QUIC application error codes of the pool's protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CloseReason {
    Shutdown = 0,
    Superseded = 1,
    NotOfThePool = 2,
}

impl CloseReason {
    fn close(self, connection: &Connection) {
        let (code, text): (u32, &[u8]) = match self {
            Self::Shutdown => (0, b"shutdown"),
            Self::Superseded => (1, b"superseded"),
            Self::NotOfThePool => (2, b"certificate names no node of the pool"),
        };
        connection.close(VarInt::from_u32(code), text);
    }
}

/// Handle to the transport; clones share one socket.
#[derive(Debug, Clone)]
pub struct Transport {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    endpoint: Endpoint,
    /// Where it was bound: its tasks live there, whoever calls it from elsewhere.
    runtime: tokio::runtime::Handle,
    client_config: quinn::ClientConfig,
    tuning: Tuning,
    stats: Arc<TransportStats>,
    peers: Mutex<peers::Peers>,
    admission: Arc<accept::Admission>,
    refusals: Throttle,
    datagrams: mpsc::Sender<Datagram>,
    streams: mpsc::Sender<IncomingStream>,
}

/// Lets one event through per interval: strangers decide how often they are refused, not how much we log.
#[derive(Debug, Default)]
struct Throttle {
    last: Mutex<Option<Instant>>,
}

impl Throttle {
    fn tell(&self, event: impl FnOnce()) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_none_or(|instant| instant.elapsed() >= REFUSAL_LOG_INTERVAL) {
            *last = Some(Instant::now());
            event();
        }
    }
}

impl Shared {
    /// The table of peers. A panic while it was held is a bug, but its content is still consistent enough to go on.
    fn peers(&self) -> MutexGuard<'_, peers::Peers> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Transport {
    /// Binds the UDP socket and, on a front end, starts to accept connections. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the address can't be bound or the identity's certificate and key do not fit.
    pub fn bind(listen: SocketAddr, identity: &Identity) -> Result<(Self, Incoming)> {
        Self::bind_with(listen, identity, Tuning::default())
    }

    /// As [`Transport::bind`], with other deadlines and limits.
    ///
    /// # Errors
    /// As for [`Transport::bind`].
    pub fn bind_with(listen: SocketAddr, identity: &Identity, tuning: Tuning) -> Result<(Self, Incoming)> {
        let role = identity.own().role;
        let endpoint = endpoint::bind(listen, identity, &tuning)
            .with_context(|| format!("failed to bind the pool's socket to {listen}"))?;
        let runtime = tokio::runtime::Handle::try_current().context("no tokio runtime is running")?;
        let client_config = endpoint::client_config(identity, &tuning)?;
        let (datagram_sender, datagrams) = mpsc::channel(tuning.datagram_queue);
        let (stream_sender, streams) = mpsc::channel(tuning.stream_queue);
        let shared = Arc::new(Shared {
            endpoint,
            runtime,
            client_config,
            stats: Arc::default(),
            peers: Mutex::default(),
            admission: Arc::new(accept::Admission::new(tuning.max_connections, tuning.max_connections_per_ip)),
            refusals: Throttle::default(),
            datagrams: datagram_sender,
            streams: stream_sender,
            tuning,
        });
        if role == Role::Frontend {
            tokio::spawn(accept::run(Arc::clone(&shared)));
        }
        Ok((Self { shared }, Incoming { datagrams, streams }))
    }

    /// The address the socket is bound to.
    ///
    /// # Errors
    /// When the operating system does not tell.
    pub fn local_addr(&self) -> Result<SocketAddr> {
        self.shared.endpoint.local_addr().context("failed to read the address of the pool's socket")
    }

    /// The counters, for the metrics.
    pub fn stats(&self) -> Arc<TransportStats> {
        Arc::clone(&self.shared.stats)
    }

    /// Sends a datagram of at most [`MAX_DATAGRAM_BYTES`] and never blocks: without a connection one is dialled in
    /// the background. What can't be sent is dropped and counted; gossip repeats itself.
    pub fn send_datagram(&self, to: SocketAddr, payload: Bytes) {
        dial::send_datagram(&self.shared, endpoint::canonical(to), payload);
    }

    /// Opens a bidirectional stream to the node at `to`, dialling it if there is no connection yet.
    ///
    /// The stream may sit on a connection whose peer has just died; then its first use fails within the idle
    /// timeout and the caller opens another.
    ///
    /// # Errors
    /// When there is no connection within the dial deadline, the peer is refused, or it ends the connection.
    pub async fn open_stream(
        &self,
        to: SocketAddr,
        kind: StreamKind,
    ) -> Result<(PeerIdentity, SendStream, RecvStream)> {
        let to = endpoint::canonical(to);
        let deadline = self.shared.tuning.dial_deadline;
        let (peer, connection) = dial::connection_to(&self.shared, to).await?;
        let open = async {
            let (mut send, recv) = connection.open_bi().await.context("the connection ended")?;
            send.write_all(&[kind as u8]).await.context("the connection ended")?;
            Ok::<_, anyhow::Error>((send, recv))
        };
        let opened = tokio::time::timeout(deadline, open).await;
        let (send, recv) = opened
            .context("the peer allows no more streams")
            .and_then(|result| result)
            .with_context(|| format!("failed to open a stream to {peer} at {to}"))?;
        stats::count(&self.shared.stats.streams_opened);
        Ok((peer, send, recv))
    }

    /// The front end or agent at an address, if it is connected now.
    pub fn peer_at(&self, address: SocketAddr) -> Option<PeerIdentity> {
        self.shared.peers().newest(endpoint::canonical(address)).map(|live| live.peer.clone())
    }

    /// Closes every connection, so that peers notice at once, and waits briefly until they were told.
    pub async fn shutdown(&self) {
        self.shared.endpoint.close(VarInt::from_u32(CloseReason::Shutdown as u32), b"shutdown");
        if tokio::time::timeout(self.shared.tuning.handshake_deadline, self.shared.endpoint.wait_idle()).await.is_err()
        {
            tracing::debug!("some peers were not told of the shutdown");
        }
    }
}

#[cfg(test)]
mod tests;
