//! The agent on a back end: it reads who the users are, keeps the log of them, and tells every front end of every
//! change. It writes nothing on the back end and answers no one.

use std::convert::Infallible;
use std::future::Future;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use proxy_core::directory::Epoch;
use quinn::{RecvStream, SendStream};

use crate::transport::{Identity, Role, StreamKind, Transport};

pub mod config;
mod frontends;
mod push;
mod reading;
mod watch;

#[cfg(test)]
mod tests;

pub use config::AgentConfig;
pub use frontends::{Dial, MAX_FRONTENDS};
pub use reading::SharedLog;

/// Runs the agent until `shutdown` is ready.
///
/// # Errors
/// If the identity is not this back end's, or the socket or the watch on the source cannot be had. A source that
/// cannot be read is no error: the agent waits for it.
pub async fn run(config: AgentConfig, shutdown: impl Future<Output = ()>) -> Result<()> {
    let files = &config.identity;
    let identity = Identity::load(&files.ca, &files.certificate, &files.key)?;
    let own = identity.own();
    ensure!(
        own.role == Role::Backend && own.name == config.name.as_str(),
        "failed to take the identity: the certificate is of {own}, the configuration of back end {}",
        config.name
    );
    let transport = bind(&identity)?;
    let dialler = Dialler(transport.clone());
    tokio::select! {
        ended = serve(config, dialler) => match ended? {},
        () = shutdown => {
            transport.shutdown().await;
            Ok(())
        }
    }
}

/// Runs the agent over any dialler.
///
/// # Errors
/// If the source cannot be watched.
pub async fn serve<D: Dial>(config: AgentConfig, dialler: D) -> Result<Infallible> {
    let log = Arc::new(SharedLog::new(epoch()));
    let reading = reading::follow(config.source.clone(), Arc::clone(&log));
    let pushing = frontends::push_to_all(config, Arc::clone(&log), Arc::new(dialler));
    tokio::select! {
        ended = reading => ended,
        never = pushing => match never {},
    }
}

/// A new one with every start: the log of this life has nothing to do with that of the last. A clock that was set back
/// makes an epoch that front ends take as soon as the last life's connection is gone.
fn epoch() -> Epoch {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Epoch(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// One socket for both IP versions; on a host without IPv6 for IPv4 alone.
fn bind(identity: &Identity) -> Result<Transport> {
    let any = |ip| Transport::bind(SocketAddr::new(ip, 0), identity);
    let bound = any(Ipv6Addr::UNSPECIFIED.into()).or_else(|_| any(Ipv4Addr::UNSPECIFIED.into()));
    bound.map(|(transport, _incoming)| transport).context("failed to bind the agent's socket")
}

/// Dials front ends over the pool's transport.
struct Dialler(Transport);

impl Dial for Dialler {
    type Reader = RecvStream;
    type Writer = SendStream;

    async fn dial(&self, to: SocketAddr) -> Result<(RecvStream, SendStream)> {
        let (peer, send, recv) = self.0.open_stream(to, StreamKind::Directory).await?;
        ensure!(peer.role == Role::Frontend, "{peer} at {to} is no front end");
        Ok((recv, send))
    }
}
