//! Steering: feeds the steering machine with the members, with the kernel's connections and with what the others hold;
//! keeps the XDP program in step with its plans; and tells the pool what this front end is: joining, active, draining.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result};
use proxy_common::hash::SteeringKey;
use tokio::{
    io::unix::AsyncFd,
    sync::{mpsc, oneshot, watch},
};

use super::cluster::Cluster;
use crate::{
    dataplane::{Dataplane, ProgramLog},
    transport::{IncomingStream, Transport},
};

mod census;
mod driver;
mod links;
mod path;
mod reach;
mod snapshot;

pub use path::Link;
pub use reach::Here;
pub use snapshot::Snapshot;

/// Orders that wait for the driver.
const COMMAND_QUEUE: usize = 16;
/// What others told and the driver has not looked at; their streams wait then.
const HEARD_QUEUE: usize = 64;

/// The program, for the driver that writes it and the status that reads it.
#[derive(Clone)]
pub struct SharedDataplane(Arc<Mutex<Dataplane>>);

impl SharedDataplane {
    #[must_use]
    pub fn new(dataplane: Dataplane) -> Self {
        Self(Arc::new(Mutex::new(dataplane)))
    }

    /// Exclusive use, for milliseconds at the most.
    pub fn lock(&self) -> MutexGuard<'_, Dataplane> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is steered, and where.
#[derive(Debug)]
pub struct Settings {
    pub key: SteeringKey,
    pub vips: Vec<IpAddr>,
    /// Whose connections are steered, and their listening sockets.
    pub services: Vec<(SocketAddr, socket2::Socket)>,
    pub here: Here,
    pub link: Link,
}

#[derive(Debug)]
enum Command {
    Drain(Option<Duration>, oneshot::Sender<()>),
    /// Answered by false if there was no drain.
    Undrain(oneshot::Sender<bool>),
    Stop(oneshot::Sender<()>),
}

/// Handle to the driver; clones talk to the same one.
#[derive(Debug, Clone)]
pub struct Steering {
    commands: mpsc::Sender<Command>,
    snapshot: watch::Receiver<Arc<Snapshot>>,
}

impl Steering {
    /// Starts the driver. It ends when the membership does: then this front end answers for no VIP and takes nothing.
    pub fn spawn(
        settings: Settings,
        dataplane: SharedDataplane,
        cluster: Cluster,
        transport: Transport,
        streams: mpsc::Receiver<IncomingStream>,
    ) -> (Self, tokio::task::JoinHandle<()>) {
        let (command_sender, commands) = mpsc::channel(COMMAND_QUEUE);
        let (heard_sender, heard) = mpsc::channel(HEARD_QUEUE);
        let (snapshot_sender, snapshot) = watch::channel(Arc::default());
        drop(tokio::spawn(links::receive(streams, heard_sender)));
        let driver = driver::Driver::new(settings, dataplane, cluster, links::Links::new(transport), snapshot_sender);
        let task = tokio::spawn(driver.run(commands, heard));
        (Self { commands: command_sender, snapshot }, task)
    }

    /// What is known now, and whenever it changes.
    #[must_use]
    pub fn snapshot(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshot.clone()
    }

    /// Begins a drain that gives up after `limit`, or gives one that runs this limit.
    ///
    /// # Errors
    /// The driver has ended.
    pub async fn drain(&self, limit: Option<Duration>) -> Result<()> {
        self.ask(|answer| Command::Drain(limit, answer)).await
    }

    /// Takes new connections again; false if there was no drain.
    ///
    /// # Errors
    /// The driver has ended.
    pub async fn undrain(&self) -> Result<bool> {
        self.ask(Command::Undrain).await
    }

    /// Takes nothing new any more, for the daemon is to end. Returns when all members know, or `limit` is over.
    pub async fn stop(&self, limit: Duration) {
        let stopped = async {
            let mut snapshot = self.snapshot.clone();
            self.ask(Command::Stop).await?;
            snapshot.wait_for(|s| s.all_know_of_the_end()).await.context("the steering driver has ended")?;
            Ok::<_, anyhow::Error>(())
        };
        match tokio::time::timeout(limit, stopped).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(error = format!("{error:#}"), "nobody is left to tell of the end"),
            Err(_elapsed) => tracing::warn!("not every member has confirmed that this front end ends"),
        }
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T> {
        let (answer, answered) = oneshot::channel();
        self.commands.send(command(answer)).await.ok().context("the steering driver has ended")?;
        answered.await.context("the steering driver has ended")
    }
}

/// Prints what the program says of exceptions, as it says it.
///
/// # Errors
/// Its log cannot be waited for.
pub async fn run_log(logger: ProgramLog) -> Result<()> {
    // SAFETY: the logger's file descriptor is its ring buffer's, which it owns and keeps for as long as it lives.
    let mut logger = unsafe { AsyncFd::register(logger) }.context("failed to wait for the XDP program's log")?;
    loop {
        let mut ready = logger.readable_mut().await.context("failed to wait for the XDP program's log")?;
        ready.get_inner_mut().flush();
        ready.clear_ready();
    }
}
