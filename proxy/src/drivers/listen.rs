//! Accepts connections and gives each a task, within a limit.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{Instrument, debug, info_span, warn};

use crate::{
    io::{self as sockets, Stream},
    metrics::{ByProtocol, Metrics, Protocol},
};

/// What all listeners share.
#[derive(Clone)]
pub struct Listening {
    pub metrics: Arc<Metrics>,
    /// The daemon is to end: sessions that carry nothing do, new ones at once.
    pub shutdown: CancellationToken,
    /// The daemon ends: nothing is accepted any more, and all sessions end.
    pub ending: CancellationToken,
    /// The sessions.
    pub tasks: TaskTracker,
    next_id: Arc<AtomicU64>,
}

/// A connection that was accepted.
pub struct Accepted {
    pub stream: Stream,
    pub peer: SocketAddr,
}

impl Listening {
    #[must_use]
    pub fn new(metrics: Arc<Metrics>) -> Self {
        // Ids begin somewhere else at each start, so that two starts' logs do not share them.
        let first = std::time::UNIX_EPOCH.elapsed().map_or(0, |d| d.as_secs()) << 20;
        let (shutdown, ending) = (CancellationToken::new(), CancellationToken::new());
        Self { metrics, shutdown, ending, tasks: TaskTracker::new(), next_id: Arc::new(AtomicU64::new(first)) }
    }

    /// Accepts until the end, not only until shutdown: the handshake of a connection that is still this front end's may
    /// take a while, and it must not be refused. `serve` runs each connection, in a span with an id of its own; `refuse` tells one
    /// too many.
    pub fn spawn<S, F, R>(&self, listener: TcpListener, protocol: Protocol, limit: &Arc<Semaphore>, serve: S, refuse: R)
    where
        S: Fn(Accepted) -> F + Send + Sync + 'static,
        F: Future<Output = Result<(), SessionError>> + Send + 'static,
        R: Fn() -> Option<&'static [u8]> + Send + Sync + 'static,
    {
        let (this, limit) = (self.clone(), Arc::clone(limit));
        tokio::spawn(async move {
            while let Some(accepted) = this.accept(&listener).await {
                this.metrics.connections.get_or_create(&ByProtocol { protocol }).inc();
                let Ok(permit) = Arc::clone(&limit).try_acquire_owned() else {
                    this.metrics.session_error(protocol, "too_many_sessions");
                    refuse_politely(&accepted, refuse());
                    continue;
                };
                let id = this.next_id.fetch_add(1, Ordering::Relaxed);
                let span =
                    info_span!("session", protocol = protocol.name(), id = format!("{id:x}"), peer = %accepted.peer);
                let metrics = Arc::clone(&this.metrics);
                let session = serve(accepted);
                let counted = async move {
                    let gauge = metrics.sessions.get_or_create(&ByProtocol { protocol }).clone();
                    gauge.inc();
                    if let Err(error) = session.await {
                        metrics.session_error(protocol, error.label());
                        debug!(%error, "session ended");
                    }
                    gauge.dec();
                    drop(permit);
                };
                this.tasks.spawn(counted.instrument(span));
            }
        });
    }

    /// None at the end.
    async fn accept(&self, listener: &TcpListener) -> Option<Accepted> {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.ending.cancelled() => return None,
            };
            match accepted.and_then(|(stream, peer)| sockets::prepare(&stream).map(|()| (stream, peer))) {
                Ok((stream, peer)) => return Some(Accepted { stream: Stream::Plain(stream), peer }),
                Err(error) => {
                    warn!(%error, "failed to accept a connection");
                    tokio::time::sleep(sockets::ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// Says why without waiting for anything: there is no room for another task.
fn refuse_politely(accepted: &Accepted, text: Option<&[u8]>) {
    if let (Stream::Plain(stream), Some(text)) = (&accepted.stream, text) {
        let _unheard = stream.try_write(text);
    }
}

/// Why a session ended otherwise than by its protocol.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error("timeout")]
    Timeout,
    #[error("TLS handshake failed: {0}")]
    Tls(io::Error),
    #[error("connection broke: {0}")]
    Connection(#[from] io::Error),
}

impl SessionError {
    fn label(&self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Tls(_) => "tls_handshake",
            Self::Connection(_) => "connection_broke",
        }
    }
}
