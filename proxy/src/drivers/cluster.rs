//! Runs the membership machine over the transport: one task owns it, everybody else sees the [`View`] it publishes
//! and talks to it through [`Cluster`].

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use proxy_core::cluster::{Digest, DigestRefused, Event, Machine, Node, NodeName, NodeState, Timing, ownership};
use tokio::sync::{mpsc, oneshot, watch};

use crate::netdev::MacAddress;
use crate::transport::{Datagram, PeerIdentity, Role, Transport};

/// Commands that wait for the driver; more make their senders wait.
const COMMAND_QUEUE: usize = 64;
/// Digests handed over but not yet taken; the rest waits in the driver, newest per source.
const DIGEST_QUEUE: usize = 64;
/// Datagrams taken in before a deadline is looked at: an answer that waits must not count as missing, but a flood
/// of them must not stop the clock either.
const DATAGRAMS_BEFORE_TIMEOUT: usize = 256;
/// How long the farewell has to get onto the wire before the caller may close the transport.
const FAREWELL_TIME: Duration = Duration::from_millis(50);
/// A node that has just started and hears from none of its seeds takes itself for alone only then. Before, it claims
/// nothing: drawing a VIP's traffic without knowing the members would break other members' connections.
const ALONE_AFTER: Duration = Duration::from_secs(2);
/// From the first answer of a member to the belief that all members are known: some rounds of gossip.
const JOIN_TIME: Duration = Duration::from_millis(250);
/// Bad datagrams are logged at most this often; the counters have them all.
const BAD_DATAGRAM_LOG_INTERVAL: Duration = Duration::from_secs(10);

/// The pool as this node sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// Counts this node's views; 0 is the one before anything was heard.
    pub version: u64,
    /// False for a moment after the start, while there may be members that are not known yet: nobody should steer by
    /// such a view, and it names no owners.
    pub settled: bool,
    /// This node.
    pub me: NodeName,
    /// All live members, this one among them, sorted by name.
    pub members: Vec<Node>,
    /// Who announces each VIP: rendezvous-hashed over the members.
    pub owners: BTreeMap<IpAddr, NodeName>,
}

impl View {
    fn new(version: u64, settled: bool, machine: &Machine, vips: &[IpAddr]) -> Self {
        let members: Vec<Node> = machine.members().cloned().collect();
        let owner = |vip: &IpAddr| Some((*vip, ownership::owner(*vip, &members)?.clone()));
        let owners = if settled { vips.iter().filter_map(owner).collect() } else { BTreeMap::new() };
        Self { version, settled, me: machine.me().name.clone(), members, owners }
    }

    /// The VIPs that this node is to answer for and announce: none before it serves.
    pub fn own_vips(&self) -> impl Iterator<Item = IpAddr> {
        let serves = self.own_state() != NodeState::Joining;
        self.owners.iter().filter(move |(_, owner)| serves && **owner == self.me).map(|(vip, _)| *vip)
    }

    /// What the others take this node for.
    #[must_use]
    pub fn own_state(&self) -> NodeState {
        self.members.iter().find(|node| node.name == self.me).map_or(NodeState::Joining, |node| node.state)
    }

    /// All members but this one.
    pub fn others(&self) -> impl Iterator<Item = &Node> {
        self.members.iter().filter(|node| node.name != self.me)
    }
}

/// What the driver needs to know of the pool.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where members may be found. This node's own address among them does no harm.
    pub seeds: Vec<SocketAddr>,
    pub vips: Vec<IpAddr>,
    pub timing: Timing,
    /// Feeds the choice of whom to probe.
    pub random_seed: u64,
}

impl Settings {
    /// The usual timing and a random seed.
    ///
    /// # Errors
    /// When the operating system gives no random bytes.
    pub fn new(seeds: Vec<SocketAddr>, vips: Vec<IpAddr>) -> Result<Self> {
        let mut random = [0; 8];
        aws_lc_rs::rand::fill(&mut random).context("failed to get random bytes")?;
        Ok(Self { seeds, vips, timing: Timing::default(), random_seed: u64::from_ne_bytes(random) })
    }
}

/// Describes this node to the pool: its name is the one its certificate proves, its generation the time of its start.
/// It joins at first; whoever sets its state says when it serves. `macs`: of its interfaces on the segment; it gets its
/// packets by the first one.
///
/// # Errors
/// When the identity is not a front end's, others can't reach the address, or the clock stands before 1970.
pub fn own_node(identity: &PeerIdentity, address: SocketAddr, macs: &[MacAddress], weight: u16) -> Result<Node> {
    ensure!(identity.role == Role::Frontend, "{identity} is no front end: it can't be a member");
    ensure!(
        !address.ip().is_unspecified() && address.port() != 0,
        "the pool's address {address} must be one that the other members can reach"
    );
    let name = NodeName::parse(&identity.name)?;
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock stands before 1970")?;
    let generation = u64::try_from(since_epoch.as_millis()).context("the clock is far off")?;
    let (mac, more_macs) = macs.split_first().context("no Ethernet address is known")?;
    Ok(Node { more_macs: more_macs.to_vec(), ..Node::new(name, generation, address, *mac, weight) })
}

/// Counters of the driver.
#[derive(Debug, Default)]
pub struct ClusterStats {
    /// Datagrams that were no membership datagrams.
    pub datagrams_malformed: AtomicU64,
    /// Datagrams in the name of another node than the one that sent them.
    pub datagrams_impostor: AtomicU64,
    /// Members that came.
    pub members_up: AtomicU64,
    /// Members that died or left.
    pub members_down: AtomicU64,
    /// Faults of the membership engine: 0 unless there is a bug.
    pub anomalies: AtomicU64,
}

#[derive(Debug)]
enum Command {
    State(NodeState),
    Weight(u16),
    Digests(Vec<Digest>, oneshot::Sender<Result<(), DigestRefused>>),
    Leave(oneshot::Sender<()>),
}

/// Handle to the driver; clones talk to the same one. It ends when the last handle is dropped or after [`Cluster::leave`].
#[derive(Debug, Clone)]
pub struct Cluster {
    commands: mpsc::Sender<Command>,
    view: watch::Receiver<Arc<View>>,
    stats: Arc<ClusterStats>,
}

impl Cluster {
    /// Starts the driver as `me`. `datagrams` are those of the transport's [`crate::transport::Incoming`].
    /// The receiver returned gets every source's newest digest once it is news.
    pub fn spawn(
        me: Node,
        settings: Settings,
        transport: Transport,
        datagrams: mpsc::Receiver<Datagram>,
    ) -> (Self, mpsc::Receiver<Digest>) {
        let (command_sender, commands) = mpsc::channel(COMMAND_QUEUE);
        let (digest_sender, digest_receiver) = mpsc::channel(DIGEST_QUEUE);
        let machine = Machine::new(me, settings.timing, settings.random_seed);
        let others = settings.seeds.iter().any(|seed| *seed != machine.me().address);
        let settle_at = others.then(|| Instant::now() + ALONE_AFTER);
        let first = View::new(0, settle_at.is_none(), &machine, &settings.vips);
        let (view_sender, view) = watch::channel(Arc::new(first));
        let stats = Arc::<ClusterStats>::default();
        let driver = Driver {
            machine,
            transport,
            vips: settings.vips,
            view: view_sender,
            view_changed: false,
            settle_at,
            unsent_digests: BTreeMap::new(),
            stats: Arc::clone(&stats),
            last_bad_datagram: None,
        };
        drop(tokio::spawn(driver.run(settings.seeds, datagrams, commands, digest_sender)));
        (Self { commands: command_sender, view, stats }, digest_receiver)
    }

    /// The view, now and whenever it changes.
    pub fn view(&self) -> watch::Receiver<Arc<View>> {
        self.view.clone()
    }

    /// The counters, for the metrics.
    pub fn stats(&self) -> Arc<ClusterStats> {
        Arc::clone(&self.stats)
    }

    /// Begins or ends draining.
    ///
    /// # Errors
    /// When the driver has ended.
    pub async fn set_state(&self, state: NodeState) -> Result<()> {
        self.command(Command::State(state)).await
    }

    /// Changes this node's share of the connections.
    ///
    /// # Errors
    /// When the driver has ended.
    pub async fn set_weight(&self, weight: u16) -> Result<()> {
        self.command(Command::Weight(weight)).await
    }

    /// Tells the pool the digests of sources that this node holds.
    ///
    /// # Errors
    /// When a digest exceeds a limit (those before it are told) or the driver has ended.
    pub async fn set_digests(&self, digests: Vec<Digest>) -> Result<()> {
        let (answer, answered) = oneshot::channel();
        self.command(Command::Digests(digests, answer)).await?;
        answered.await.context("the membership driver has ended")?.context("failed to tell a digest")
    }

    /// Says farewell to the pool and ends the driver; returns when the transport may be shut down.
    pub async fn leave(&self) {
        let (answer, answered) = oneshot::channel();
        // Either fails only when the driver has ended, and then there is nothing to leave.
        if self.command(Command::Leave(answer)).await.is_ok() && answered.await.is_err() {
            tracing::debug!("the membership driver had ended before it could say farewell");
        }
    }

    async fn command(&self, command: Command) -> Result<()> {
        self.commands.send(command).await.ok().context("the membership driver has ended")
    }
}

struct Driver {
    machine: Machine,
    transport: Transport,
    vips: Vec<IpAddr>,
    view: watch::Sender<Arc<View>>,
    view_changed: bool,
    /// When the members are taken to be known; None: they are.
    settle_at: Option<Instant>,
    /// News that the receiver has no room for yet. Bounded as the machine's memory of sources is.
    unsent_digests: BTreeMap<String, Digest>,
    stats: Arc<ClusterStats>,
    last_bad_datagram: Option<Instant>,
}

impl Driver {
    async fn run(
        mut self,
        seeds: Vec<SocketAddr>,
        mut datagrams: mpsc::Receiver<Datagram>,
        mut commands: mpsc::Receiver<Command>,
        digests: mpsc::Sender<Digest>,
    ) {
        for seed in seeds {
            self.machine.handle_announce(Instant::now(), seed);
        }
        loop {
            self.drain();
            let deadline = self.machine.poll_timeout();
            tokio::select! {
                command = commands.recv() => match command {
                    Some(Command::Leave(left)) => return self.leave(left).await,
                    Some(command) => self.handle_command(command),
                    None => return,
                },
                datagram = datagrams.recv() => match datagram {
                    Some(datagram) => self.handle_datagram(&datagram),
                    None => return,
                },
                () = sleep_until(deadline) => self.handle_timeout(&mut datagrams),
                () = sleep_until(self.settle_at), if self.settle_at.is_some() => self.handle_settled(),
                permit = digests.reserve(), if !self.unsent_digests.is_empty() => match permit {
                    Ok(permit) => if let Some((_, digest)) = self.unsent_digests.pop_first() {
                        permit.send(digest);
                    },
                    // Nobody wants them any more.
                    Err(_closed) => self.unsent_digests.clear(),
                },
            }
        }
    }

    fn handle_settled(&mut self) {
        if self.machine.members().count() == 1 {
            tracing::warn!("no seed answers: serving alone until one does");
        }
        self.settle_at = None;
        self.view_changed = true;
    }

    fn handle_command(&mut self, command: Command) {
        let now = Instant::now();
        match command {
            Command::State(state) => self.machine.set_state(now, state),
            Command::Weight(weight) => self.machine.set_weight(now, weight),
            Command::Digests(digests, answer) => {
                let result = digests.into_iter().try_for_each(|digest| self.machine.set_digest(now, digest));
                if answer.send(result).is_err() {
                    tracing::debug!("whoever told digests did not wait for the answer");
                }
            }
            Command::Leave(_) => {}
        }
        self.view_changed = true;
    }

    fn handle_datagram(&mut self, datagram: &Datagram) {
        let Datagram { remote, peer, payload } = datagram;
        let sender = match Machine::sender(payload) {
            Ok(sender) => sender,
            Err(error) => return self.handle_malformed(datagram, &error),
        };
        if sender.is_some_and(|claimed| claimed.as_str() != peer.name) {
            self.stats.datagrams_impostor.fetch_add(1, Ordering::Relaxed);
            self.tell_bad_datagram(|| tracing::warn!(%remote, %peer, "a datagram in another node's name"));
            return;
        }
        if let Err(error) = self.machine.handle_datagram(Instant::now(), *remote, payload) {
            self.handle_malformed(datagram, &error);
        }
    }

    fn handle_malformed(&mut self, datagram: &Datagram, error: &dyn std::error::Error) {
        self.stats.datagrams_malformed.fetch_add(1, Ordering::Relaxed);
        let Datagram { remote, peer, .. } = datagram;
        self.tell_bad_datagram(|| tracing::warn!(%remote, %peer, %error, "a malformed membership datagram"));
    }

    fn tell_bad_datagram(&mut self, tell: impl FnOnce()) {
        if self.last_bad_datagram.is_none_or(|last| last.elapsed() >= BAD_DATAGRAM_LOG_INTERVAL) {
            self.last_bad_datagram = Some(Instant::now());
            tell();
        }
    }

    fn handle_timeout(&mut self, datagrams: &mut mpsc::Receiver<Datagram>) {
        for _ in 0..DATAGRAMS_BEFORE_TIMEOUT {
            let Ok(datagram) = datagrams.try_recv() else { break };
            self.handle_datagram(&datagram);
        }
        self.machine.handle_timeout(Instant::now());
    }

    /// Does what the machine asks for.
    fn drain(&mut self) {
        while let Some(transmit) = self.machine.poll_transmit() {
            self.transport.send_datagram(transmit.to, transmit.payload.into());
        }
        while let Some(event) = self.machine.poll_event() {
            self.handle_event(event);
        }
        self.stats.anomalies.store(self.machine.anomalies(), Ordering::Relaxed);
        if std::mem::take(&mut self.view_changed) {
            self.publish();
        }
    }

    fn handle_event(&mut self, event: Event) {
        if let Event::Digest(digest) = event {
            self.unsent_digests.insert(digest.source.clone(), digest);
            return;
        }
        self.view_changed = true;
        match event {
            Event::Digest(_) => {}
            Event::Joined => {
                tracing::info!("joined the pool");
                let known = Instant::now() + JOIN_TIME;
                self.settle_at = self.settle_at.map(|at| at.min(known));
            }
            Event::Alone => tracing::warn!("no other member of the pool is left"),
            Event::MemberUp(node) => {
                self.stats.members_up.fetch_add(1, Ordering::Relaxed);
                tracing::info!(member = %node.name, address = %node.address, "a member came");
            }
            Event::MemberChanged(node) => {
                tracing::info!(member = %node.name, state = ?node.state, weight = node.weight, "a member changed");
            }
            Event::MemberDown(node) => {
                self.stats.members_down.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(member = %node.name, address = %node.address, "a member is gone");
            }
            Event::Rejoined(_) => tracing::warn!("the pool had taken this node for dead; it is back"),
            Event::NameConflict(node) => {
                tracing::error!(name = %node.name, address = %node.address, "another live node has this node's name");
            }
        }
    }

    /// Publishes the view unless it is the same as before.
    fn publish(&mut self) {
        self.view.send_if_modified(|current| {
            let mut next = View::new(current.version, self.settle_at.is_none(), &self.machine, &self.vips);
            let changed = next != **current;
            if changed {
                next.version += 1;
                *current = Arc::new(next);
            }
            changed
        });
    }

    async fn leave(mut self, left: oneshot::Sender<()>) {
        self.machine.leave(Instant::now());
        self.drain();
        tokio::time::sleep(FAREWELL_TIME).await;
        if left.send(()).is_err() {
            tracing::debug!("whoever asked to leave did not wait for it");
        }
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
