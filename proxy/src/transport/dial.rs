//! Dialling, and what is sent.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use quinn::{Connection, SendDatagramError};
use tokio::sync::watch;

use super::accept::{self, Served};
use super::peers::{DialState, Direction, Placement, Route};
use super::stats::count;
use super::{MAX_DATAGRAM_BYTES, PeerIdentity, Role, Shared};

/// Sends on the newest connection, or queues and dials.
pub(super) fn send_datagram(shared: &Arc<Shared>, to: SocketAddr, payload: Bytes) {
    let stats = &shared.stats;
    if payload.len() > MAX_DATAGRAM_BYTES {
        return count(&stats.datagrams_dropped_too_large);
    }
    let placement = shared.peers().place(to, &payload, Instant::now());
    match placement {
        Placement::Send(connection) => send_on(shared, &connection, payload),
        Placement::Dial(outcome) => drop(shared.runtime.spawn(dial(Arc::clone(shared), to, outcome))),
        Placement::Queued => {}
        Placement::QueueFull => count(&stats.datagrams_dropped_pending_queue),
        Placement::Paused => count(&stats.datagrams_dropped_unreachable),
    }
}

/// Gives a datagram to a connection. Its buffer is bounded and prefers the newest, so this never blocks.
pub(super) fn send_on(shared: &Shared, connection: &Connection, payload: Bytes) {
    let stats = &shared.stats;
    count(match connection.send_datagram(payload) {
        Ok(()) => &stats.datagrams_sent,
        Err(SendDatagramError::TooLarge) => &stats.datagrams_dropped_too_large,
        Err(SendDatagramError::UnsupportedByPeer | SendDatagramError::Disabled) => &stats.datagrams_dropped_unreachable,
        // Its reader is about to take it out of the table.
        Err(SendDatagramError::ConnectionLost(_)) => &stats.datagrams_dropped_unreachable,
    });
}

/// The newest connection to an address, dialled when there is none.
pub(super) async fn connection_to(shared: &Arc<Shared>, to: SocketAddr) -> Result<(PeerIdentity, Connection)> {
    let route = shared.peers().route(to);
    let mut outcome = match route {
        Route::Live(live) => return Ok((live.peer, live.connection)),
        Route::Wait(outcome) => outcome,
        Route::Dial(sender, outcome) => {
            drop(shared.runtime.spawn(dial(Arc::clone(shared), to, sender)));
            outcome
        }
    };
    let ended = outcome.wait_for(|state| !matches!(state, DialState::Pending)).await;
    let ended = ended.with_context(|| format!("the dial to {to} was given up"))?.clone();
    if let DialState::Failed(reason) = ended {
        bail!("failed to reach {to}: {reason}");
    }
    let live = shared.peers().newest(to).cloned();
    let live = live.with_context(|| format!("the connection to {to} ended at once"))?;
    Ok((live.peer, live.connection))
}

/// Dials once, then serves the connection until it ends.
async fn dial(shared: Arc<Shared>, to: SocketAddr, outcome: watch::Sender<DialState>) {
    match connect(&shared, to).await {
        Ok(served) => {
            count(&shared.stats.connections_dialled);
            shared.peers().dial_done(to);
            outcome.send_replace(DialState::Done);
            accept::serve(shared, served).await;
        }
        Err(error) => {
            let reason = format!("{error:#}");
            failed(&shared, to, &reason);
            outcome.send_replace(DialState::Failed(reason.into()));
        }
    }
}

async fn connect(shared: &Arc<Shared>, to: SocketAddr) -> Result<Served> {
    let name = Role::Frontend.server_name();
    let connecting = shared.endpoint.connect_with(shared.client_config.clone(), to, &name).context("can't dial")?;
    let connected = tokio::time::timeout(shared.tuning.dial_deadline, connecting).await;
    let connection = connected.context("no answer in time")?.inspect_err(|error| {
        accept::count_refusal(shared, Direction::Dialled, error);
    })?;
    accept::establish(shared, to, Direction::Dialled, connection)
}

fn failed(shared: &Shared, to: SocketAddr, reason: &str) {
    count(&shared.stats.dials_failed);
    let pause_until = Instant::now() + shared.tuning.redial_pause;
    let (dropped, news) = shared.peers().dial_failed(to, pause_until);
    shared.stats.datagrams_dropped_unreachable.fetch_add(dropped as u64, Ordering::Relaxed);
    if news {
        tracing::warn!(remote = %to, reason, "failed to connect");
    }
}
