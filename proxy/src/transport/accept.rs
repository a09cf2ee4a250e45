//! Connections that peers dial, and what every established connection does.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use quinn::{Connecting, Connection, ConnectionError, RecvStream, SendStream, VarInt};
use rustls::pki_types::CertificateDer;
use tokio::sync::mpsc::error::TrySendError;

use super::endpoint::canonical;
use super::peers::{Direction, Ending};
use super::stats::count;
use super::{
    CloseReason, Datagram, IncomingStream, MAX_HANDSHAKES, PeerIdentity, RETRY_ABOVE_HANDSHAKES, Role, Shared,
    StreamKind,
};

/// Application error code of a stream that we don't serve.
const STREAM_REFUSED: VarInt = VarInt::from_u32(1);

/// TLS alerts (RFC 8446, section 6) that say why a certificate was not accepted.
const ALERT_BAD_CERTIFICATE: u64 = 42;
const ALERT_CERTIFICATE_UNKNOWN: u64 = 46;
const ALERT_UNKNOWN_CA: u64 = 48;
const ALERT_DECRYPT_ERROR: u64 = 51;
const ALERT_CERTIFICATE_REQUIRED: u64 = 116;
const ALERT_NO_APPLICATION_PROTOCOL: u64 = 120;
/// QUIC carries a TLS alert as this plus the alert (RFC 9001, section 4.8).
const CRYPTO_ERROR_BASE: u64 = 0x100;

/// Counts accepted connections, so that neither one address nor all together take everything.
#[derive(Debug)]
pub(super) struct Admission {
    max_total: usize,
    max_per_ip: usize,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    total: usize,
    handshakes: usize,
    per_ip: HashMap<IpAddr, usize>,
}

/// What is done with somebody who wants to connect.
enum Verdict {
    Accept(Slot),
    ProveAddress,
    Refuse,
}

/// A connection's place; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Slot {
    admission: Arc<Admission>,
    ip: IpAddr,
    in_handshake: bool,
}

impl Admission {
    pub(super) fn new(max_total: usize, max_per_ip: usize) -> Self {
        Self { max_total, max_per_ip, held: Mutex::default() }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn admit(self: &Arc<Self>, ip: IpAddr, address_proven: bool) -> Verdict {
        let mut held = self.held();
        if !address_proven && held.handshakes >= RETRY_ABOVE_HANDSHAKES {
            return Verdict::ProveAddress;
        }
        let of_ip = held.per_ip.get(&ip).copied().unwrap_or(0);
        if held.total >= self.max_total || held.handshakes >= MAX_HANDSHAKES || of_ip >= self.max_per_ip {
            return Verdict::Refuse;
        }
        held.total += 1;
        held.handshakes += 1;
        held.per_ip.insert(ip, of_ip + 1);
        Verdict::Accept(Slot { admission: Arc::clone(self), ip, in_handshake: true })
    }
}

impl Slot {
    fn handshake_done(&mut self) {
        if std::mem::take(&mut self.in_handshake) {
            self.admission.held().handshakes -= 1;
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.handshake_done();
        let mut held = self.admission.held();
        held.total -= 1;
        if let Some(of_ip) = held.per_ip.get_mut(&self.ip) {
            *of_ip -= 1;
            if *of_ip == 0 {
                held.per_ip.remove(&self.ip);
            }
        }
    }
}

/// Accepts connections until the endpoint is closed.
pub(super) async fn run(shared: Arc<Shared>) {
    while let Some(incoming) = shared.endpoint.accept().await {
        let ip = canonical(incoming.remote_address()).ip();
        match shared.admission.admit(ip, incoming.remote_address_validated()) {
            Verdict::Accept(slot) => match incoming.accept() {
                Ok(connecting) => drop(tokio::spawn(handshake(Arc::clone(&shared), connecting, slot))),
                Err(error) => count_refusal(&shared, Direction::Accepted, &error),
            },
            Verdict::ProveAddress => {
                if let Err(error) = incoming.retry() {
                    error.into_incoming().ignore();
                }
            }
            Verdict::Refuse => {
                count(&shared.stats.refused_limit);
                shared.refusals.tell(|| tracing::warn!(%ip, "refused a connection: too many are open"));
                incoming.refuse();
            }
        }
    }
}

async fn handshake(shared: Arc<Shared>, connecting: Connecting, mut slot: Slot) {
    let remote = canonical(connecting.remote_address());
    let connection = match tokio::time::timeout(shared.tuning.handshake_deadline, connecting).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            count_refusal(&shared, Direction::Accepted, &error);
            shared.refusals.tell(|| tracing::warn!(%remote, %error, "refused a connection"));
            return;
        }
        Err(_elapsed) => {
            count(&shared.stats.handshakes_failed);
            shared.refusals.tell(|| tracing::warn!(%remote, "a connection's handshake took too long"));
            return;
        }
    };
    slot.handshake_done();
    let established = establish(&shared, remote, Direction::Accepted, connection);
    if let Err(error) = &established {
        shared.refusals.tell(|| tracing::warn!(%remote, %error, "refused a connection"));
    }
    if let Ok(served) = established {
        count(&shared.stats.connections_accepted);
        serve(shared, served).await;
    }
    drop(slot);
}

/// An established connection and its place in the table of peers.
pub(super) struct Served {
    connection: Connection,
    remote: SocketAddr,
    peer: PeerIdentity,
    direction: Direction,
    serial: u64,
    since: Instant,
}

/// Reads the peer's identity, enters the connection into the table and sends what waited for it.
pub(super) fn establish(
    shared: &Arc<Shared>,
    remote: SocketAddr,
    direction: Direction,
    connection: Connection,
) -> anyhow::Result<Served> {
    let peer = peer_identity(&connection, direction).inspect_err(|_| {
        count(&shared.stats.refused_role);
        CloseReason::NotOfThePool.close(&connection);
    })?;
    let added = shared.peers().add(remote, direction, peer.clone(), connection.clone());
    for superseded in &added.superseded {
        CloseReason::Superseded.close(superseded);
    }
    if added.newly_reachable {
        tracing::info!(%remote, %peer, "connected");
    }
    for payload in added.flush {
        super::dial::send_on(shared, &connection, payload);
    }
    Ok(Served { connection, remote, peer, direction, serial: added.serial, since: Instant::now() })
}

/// Everybody of the pool may dial us; only front ends are dialled.
fn peer_identity(connection: &Connection, direction: Direction) -> anyhow::Result<PeerIdentity> {
    let identity = connection.peer_identity();
    let chain = identity.as_ref().and_then(|any| any.downcast_ref::<Vec<CertificateDer<'static>>>());
    let certificate = chain.and_then(|chain| chain.first());
    let Some(certificate) = certificate else { anyhow::bail!("the peer showed no certificate") };
    let peer = PeerIdentity::from_certificate(certificate)?;
    if direction == Direction::Dialled && peer.role != Role::Frontend {
        anyhow::bail!("{peer} is no front end");
    }
    Ok(peer)
}

/// Reads a connection until it ends.
pub(super) async fn serve(shared: Arc<Shared>, served: Served) {
    let error = loop {
        let event = tokio::select! {
            datagram = served.connection.read_datagram() => datagram.map(|payload| receive(&shared, &served, payload)),
            stream = served.connection.accept_bi() => stream.map(|(send, recv)| {
                drop(tokio::spawn(read_kind(Arc::clone(&shared), served.remote, served.peer.clone(), send, recv)));
            }),
        };
        if let Err(error) = event {
            break error;
        }
    };
    ended(&shared, &served, &error);
}

fn receive(shared: &Shared, served: &Served, payload: bytes::Bytes) {
    let stats = &shared.stats;
    if served.peer.role != Role::Frontend {
        return count(&stats.datagrams_dropped_not_a_frontend);
    }
    let datagram = Datagram { remote: served.remote, peer: served.peer.clone(), payload };
    match shared.datagrams.try_send(datagram) {
        Ok(()) => count(&stats.datagrams_received),
        Err(TrySendError::Full(_) | TrySendError::Closed(_)) => count(&stats.datagrams_dropped_receive_queue),
    }
}

/// Reads a stream's kind byte and hands the stream to whoever serves it. How many of these tasks there can be is
/// bounded by the streams a peer may open.
async fn read_kind(
    shared: Arc<Shared>,
    remote: SocketAddr,
    peer: PeerIdentity,
    mut send: SendStream,
    mut recv: RecvStream,
) {
    let mut byte = [0u8; 1];
    let read = tokio::time::timeout(shared.tuning.stream_kind_deadline, recv.read_exact(&mut byte)).await;
    let stats = &shared.stats;
    let kind = match read {
        Ok(Ok(())) => StreamKind::from_byte(byte[0]).ok_or(&stats.streams_unknown_kind),
        // An empty stream, or the connection ended: nothing was asked.
        Ok(Err(_)) => return,
        Err(_elapsed) => Err(&stats.streams_kind_timeout),
    };
    let refusal = match kind {
        Ok(kind) => match shared.streams.try_send(IncomingStream { remote, peer, kind, send, recv }) {
            Ok(()) => return count(&stats.streams_accepted),
            Err(TrySendError::Full(stream) | TrySendError::Closed(stream)) => {
                (send, recv) = (stream.send, stream.recv);
                &stats.streams_dropped_queue
            }
        },
        Err(counter) => counter,
    };
    count(refusal);
    // Either fails only when the peer was faster.
    drop(send.reset(STREAM_REFUSED));
    drop(recv.stop(STREAM_REFUSED));
}

fn ended(shared: &Arc<Shared>, served: &Served, error: &ConnectionError) {
    let ending = match error {
        ConnectionError::Reset => {
            count(&shared.stats.connections_reset);
            Ending::Reset
        }
        ConnectionError::TimedOut => {
            count(&shared.stats.connections_timed_out);
            Ending::Other
        }
        ConnectionError::TransportError(_) => Ending::Refused,
        ConnectionError::ConnectionClosed(_) | ConnectionError::ApplicationClosed(_)
            if served.direction == Direction::Dialled && served.since.elapsed() < shared.tuning.handshake_deadline =>
        {
            Ending::Refused
        }
        ConnectionError::ConnectionClosed(_)
        | ConnectionError::ApplicationClosed(_)
        | ConnectionError::VersionMismatch
        | ConnectionError::LocallyClosed
        | ConnectionError::CidsExhausted => Ending::Other,
    };
    let pause_until = Instant::now() + shared.tuning.redial_pause;
    let removed = shared.peers().remove(served.remote, served.serial, ending, pause_until);
    for stale in &removed.stale {
        CloseReason::Superseded.close(stale);
    }
    if removed.newly_unreachable {
        tracing::warn!(remote = %served.remote, peer = %served.peer, %error, "the connection ended");
    }
}

/// Counts why a handshake failed, when it was this side that refused.
pub(super) fn count_refusal(shared: &Shared, direction: Direction, error: &ConnectionError) {
    let stats = &shared.stats;
    let alert = match error {
        ConnectionError::TransportError(error) => u64::from(error.code).checked_sub(CRYPTO_ERROR_BASE),
        ConnectionError::VersionMismatch
        | ConnectionError::ConnectionClosed(_)
        | ConnectionError::ApplicationClosed(_)
        | ConnectionError::Reset
        | ConnectionError::TimedOut
        | ConnectionError::LocallyClosed
        | ConnectionError::CidsExhausted => None,
    };
    let counter = match (alert, direction) {
        (Some(ALERT_CERTIFICATE_REQUIRED), _) => &stats.refused_no_certificate,
        // The dialler asks for one name only, that of the role: an issuer it trusts wrote another role there.
        (Some(ALERT_BAD_CERTIFICATE), Direction::Dialled) => &stats.refused_role,
        (Some(ALERT_BAD_CERTIFICATE..=ALERT_CERTIFICATE_UNKNOWN | ALERT_UNKNOWN_CA | ALERT_DECRYPT_ERROR), _) => {
            &stats.refused_bad_certificate
        }
        (Some(ALERT_NO_APPLICATION_PROTOCOL), _) => &stats.refused_protocol,
        (_, Direction::Accepted) => &stats.handshakes_failed,
        // Counted as a failed dial by the caller.
        (_, Direction::Dialled) => return,
    };
    count(counter);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn admission_counts_per_address_and_altogether() {
        let admission = Arc::new(Admission::new(3, 2));
        let (a, b) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let accept = |ip| match admission.admit(ip, false) {
            Verdict::Accept(slot) => Some(slot),
            Verdict::ProveAddress | Verdict::Refuse => None,
        };
        let first = accept(a).unwrap();
        let _second = accept(a).unwrap();
        assert!(accept(a).is_none(), "two per address");
        let third = accept(b).unwrap();
        assert!(accept(b).is_none(), "three altogether");
        drop(third);
        drop(first);
        assert!(accept(a).is_some(), "a closed connection makes room");
        assert_eq!(admission.held().per_ip.len(), 1);
    }

    #[test]
    fn many_handshakes_make_addresses_prove_themselves() {
        let admission = Arc::new(Admission::new(10_000, 10_000));
        let ip = IpAddr::from([10, 0, 0, 1]);
        let mut slots = Vec::new();
        while let Verdict::Accept(slot) = admission.admit(ip, false) {
            slots.push(slot);
        }
        assert_eq!(slots.len(), RETRY_ABOVE_HANDSHAKES);
        assert!(matches!(admission.admit(ip, true), Verdict::Accept(_)), "a proven address passes");
        slots.iter_mut().for_each(Slot::handshake_done);
        assert!(matches!(admission.admit(ip, false), Verdict::Accept(_)));
    }
}
