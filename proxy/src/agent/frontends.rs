//! All front ends at once: one task for each that is configured or was learned.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use proxy_core::directory::FeedError;
use proxy_core::directory::wire::{self, Refusal};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::config::AgentConfig;
use super::push::{PushError, push};
use super::reading::SharedLog;

/// Front ends that an agent feeds at most.
pub const MAX_FRONTENDS: usize = wire::MAX_FRONTENDS;
/// Lists of front ends that wait to be looked at.
const LEARNED_QUEUE: usize = 16;
/// Pause before a front end is dialled again; doubled with every failure.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The longest pause.
const LAST_PAUSE: Duration = Duration::from_secs(1);
/// The pause after another stream of this agent has taken over, which happens when a front end has two addresses: the
/// streams must not take over from each other in turn.
const SUPERSEDED_PAUSE: Duration = Duration::from_secs(60);
/// A stream that lasted so long was a good one: the next pause is the first again.
const GOOD_AFTER: Duration = Duration::from_secs(5);

/// Opens streams to front ends.
pub trait Dial: Send + Sync + 'static {
    type Reader: AsyncRead + Unpin + Send;
    type Writer: AsyncWrite + Unpin + Send;

    /// Opens a stream to the front end at the address. It must give up by itself.
    ///
    /// # Errors
    /// If there is none.
    fn dial(&self, to: SocketAddr) -> impl Future<Output = Result<(Self::Reader, Self::Writer)>> + Send;
}

struct Frontend {
    connected: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

/// Feeds every front end that is configured or learned, for ever.
pub(super) async fn push_to_all<D: Dial>(config: AgentConfig, log: Arc<SharedLog>, dialler: Arc<D>) -> Infallible {
    log.ready().await;
    let config = Arc::new(config);
    let (learn, mut learned) = mpsc::channel(LEARNED_QUEUE);
    let mut frontends = Frontends(HashMap::new());
    let mut list = Vec::new();
    loop {
        frontends.update(&config.frontends, &list, |address, connected| {
            let (config, log, dialler, learn) = (config.clone(), log.clone(), dialler.clone(), learn.clone());
            tokio::spawn(async move { keep_pushing(&config, &log, &*dialler, address, &learn, &connected).await })
        });
        // This function holds a sender: the channel never ends.
        list = learned.recv().await.unwrap_or_default();
    }
}

/// The front ends being fed. Dropping it ends all of that.
struct Frontends(HashMap<SocketAddr, Frontend>);

impl Frontends {
    /// Starts what is new. What is neither configured nor in the list ends, unless it is connected: two front ends may
    /// see two different pools.
    fn update(
        &mut self,
        configured: &[SocketAddr],
        list: &[SocketAddr],
        start: impl Fn(SocketAddr, Arc<AtomicBool>) -> JoinHandle<()>,
    ) {
        self.0.retain(|address, frontend| {
            let wanted = configured.contains(address) || list.contains(address);
            let keep = wanted || frontend.connected.load(Ordering::Relaxed);
            if !keep {
                tracing::info!(frontend = %address, "a front end has left the pool");
                frontend.task.abort();
            }
            keep
        });
        for address in configured.iter().chain(list) {
            if self.0.contains_key(address) {
                continue;
            }
            if self.0.len() >= MAX_FRONTENDS {
                tracing::warn!(frontend = %address, "one front end too many: not fed");
                continue;
            }
            let connected = Arc::new(AtomicBool::new(false));
            let task = start(*address, Arc::clone(&connected));
            self.0.insert(*address, Frontend { connected, task });
        }
    }
}

impl Drop for Frontends {
    fn drop(&mut self) {
        for frontend in self.0.values() {
            frontend.task.abort();
        }
    }
}

async fn keep_pushing<D: Dial>(
    config: &AgentConfig,
    log: &SharedLog,
    dialler: &D,
    address: SocketAddr,
    learn: &mpsc::Sender<Vec<SocketAddr>>,
    connected: &AtomicBool,
) {
    let mut pause = FIRST_PAUSE;
    let mut told = String::new();
    loop {
        let begun = Instant::now();
        let reason = match dialler.dial(address).await {
            Err(error) => format!("{error:#}"),
            Ok(halves) => {
                connected.store(true, Ordering::Relaxed);
                tracing::info!(frontend = %address, "connected");
                let Err(error) = push(log, (&config.name, &config.record), halves, learn).await;
                connected.store(false, Ordering::Relaxed);
                if begun.elapsed() >= GOOD_AFTER {
                    pause = FIRST_PAUSE;
                }
                if matches!(error, PushError::Feed(FeedError::Refused(Refusal::Superseded))) {
                    pause = SUPERSEDED_PAUSE;
                }
                error.to_string()
            }
        };
        if reason != told {
            tracing::warn!(frontend = %address, "not connected: {reason}");
            told = reason;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LAST_PAUSE);
    }
}
