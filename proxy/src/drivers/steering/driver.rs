//! The task that owns the steering machine.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::pending,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use proxy_common::maps;
use proxy_core::{
    cluster::{Node, NodeState},
    steering::{
        Action, Machine, Member, Plan, Standing,
        drain::{Lifecycle, Stance},
    },
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tracing::{error, info, warn};

use super::{
    Command, Settings, SharedDataplane, census,
    links::{Heard, Links},
    path,
    snapshot::Snapshot,
};
use crate::{
    dataplane::Network,
    drivers::cluster::{Cluster, View},
    netdev::{self, MacAddress},
};

/// The program answers for VIPs and takes new connections only for so long after a sign of life from its daemon: when
/// that dies, other front ends do, and two must not.
const ALIVE_FOR: Duration = Duration::from_millis(800);
const ALIVE_EVERY: Duration = Duration::from_millis(200);
/// After the kernel did not list the connections.
const CENSUS_RETRY: Duration = Duration::from_millis(500);
/// Routes and neighbours change without a word.
const NEXT_HOPS_EVERY: Duration = Duration::from_secs(1);

pub(super) struct Driver {
    settings: Settings,
    services: Arc<BTreeSet<SocketAddr>>,
    dataplane: SharedDataplane,
    cluster: Cluster,
    links: Links,
    machine: Machine,
    life: Lifecycle,
    /// The last view that names all members; none before.
    view: Option<Arc<View>>,
    plan: Option<Arc<Plan>>,
    /// What the others were told this node is.
    told: Stance,
    connections: usize,
    /// To members beyond the segment, and to the world outside.
    next_hops: BTreeMap<IpAddr, MacAddress>,
    /// As the program was told.
    network: Option<Network>,
    /// Members as the program has them, by slot.
    members: Vec<maps::Member>,
    /// Of how many buckets this node's holdings are.
    own_holdings: u64,
    /// Buckets that each member owns by the plan.
    shares: BTreeMap<String, u32>,
    census: Option<JoinHandle<Result<Vec<u32>>>>,
    /// Asked for while the one that runs had begun: it may have looked already.
    census_again: bool,
    finding: Option<JoinHandle<Result<BTreeMap<IpAddr, MacAddress>>>>,
    version: u64,
    snapshot: watch::Sender<Arc<Snapshot>>,
}

impl Driver {
    pub(super) fn new(
        settings: Settings,
        dataplane: SharedDataplane,
        cluster: Cluster,
        links: Links,
        snapshot: watch::Sender<Arc<Snapshot>>,
    ) -> Self {
        let machine = Machine::new(cluster.view().borrow().me.as_str());
        Self {
            services: Arc::new(settings.services.iter().map(|(address, _)| *address).collect()),
            settings,
            dataplane,
            cluster,
            links,
            machine,
            life: Lifecycle::default(),
            view: None,
            plan: None,
            told: Stance::Joining,
            connections: 0,
            next_hops: BTreeMap::new(),
            network: None,
            members: vec![],
            own_holdings: 0,
            shares: BTreeMap::new(),
            census: None,
            census_again: false,
            finding: None,
            version: 0,
            snapshot,
        }
    }

    pub(super) async fn run(mut self, mut commands: mpsc::Receiver<Command>, mut heard: mpsc::Receiver<Heard>) {
        let mut views = self.cluster.view();
        views.mark_changed();
        let mut alive = tokio::time::interval(ALIVE_EVERY);
        let mut next_hops = tokio::time::interval(NEXT_HOPS_EVERY);
        loop {
            let deadline = [self.machine.poll_timeout(), self.life.poll_timeout()].into_iter().flatten().min();
            tokio::select! {
                changed = views.changed() => match changed {
                    Ok(()) => {
                        let view = Arc::clone(&views.borrow_and_update());
                        self.handle_view(view);
                    }
                    Err(_ended) => return self.leave(),
                },
                Some(Heard { from, holdings }) = heard.recv() => {
                    self.machine.handle_holdings(Instant::now(), &from, holdings);
                }
                Some(command) = commands.recv() => self.handle_command(command),
                census = finished(&mut self.census) => self.handle_census(census),
                found = finished(&mut self.finding) => self.handle_next_hops(found),
                () = sleep_until(deadline) => {
                    self.machine.handle_timeout(Instant::now());
                    self.life.handle_timeout(Instant::now());
                }
                _ = alive.tick() => self.keep_alive(),
                _ = next_hops.tick() => self.find_next_hops(),
            }
            self.drain_actions();
            self.tell_stance().await;
            self.publish();
        }
    }

    /// The table first, then who answers for the virtual addresses, so that a front end never draws packets that it
    /// cannot steer.
    fn handle_view(&mut self, view: Arc<View>) {
        // Until the members are known, the table of an earlier life is the best there is.
        if !view.settled {
            return;
        }
        let members: Vec<Member> = view.members.iter().map(member).collect();
        if let Err(error) = self.machine.handle_members(Instant::now(), &members) {
            error!(%error, version = view.version, "failed to steer by the new members");
            return;
        }
        self.set_more_macs(&view);
        self.links.handle_members(view.others());
        self.view = Some(Arc::clone(&view));
        self.find_next_hops();
        self.set_network();
        self.drain_actions();
        let owned: Vec<IpAddr> = view.own_vips().collect();
        self.set_vips(&owned);
        self.keep_alive();
        info!(
            version = view.version,
            members = members.iter().map(|m| m.name.as_str()).collect::<Vec<_>>().join(","),
            state = view.own_state().name(),
            vips = owned.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
            "steering"
        );
    }

    /// Whoever is answered sees the new state.
    fn handle_command(&mut self, command: Command) {
        // Whoever asked may have gone away meanwhile: then nobody waits for the answer.
        let _unheard = match command {
            Command::Drain(limit, answer) => {
                self.life.handle_drain(Instant::now(), limit);
                self.publish();
                answer.send(()).is_ok()
            }
            Command::Undrain(answer) => {
                let was_draining = self.life.handle_undrain();
                self.publish();
                answer.send(was_draining).is_ok()
            }
            Command::Stop(answer) => {
                self.life.handle_stop();
                self.publish();
                answer.send(()).is_ok()
            }
        };
    }

    fn handle_census(&mut self, census: Result<Vec<u32>>) {
        let now = Instant::now();
        match census {
            Ok(buckets) => {
                self.connections = buckets.len();
                self.life.handle_connections(now, buckets.len());
                if !std::mem::take(&mut self.census_again) {
                    return self.machine.handle_sockets(now, buckets);
                }
                self.enumerate(Duration::ZERO);
            }
            Err(error) => {
                warn!(error = format!("{error:#}"), "this front end's connections are not known");
                self.enumerate(CENSUS_RETRY);
            }
        }
    }

    fn handle_next_hops(&mut self, found: Result<BTreeMap<IpAddr, MacAddress>>) {
        match found {
            // What is not found at the moment stays: a neighbour that is just being asked again, mostly.
            Ok(found) => self.next_hops.extend(found),
            Err(error) => warn!(error = format!("{error:#}"), "the ways to members beyond the segment are not known"),
        }
        self.set_network();
        if let Some(plan) = self.plan.clone()
            && self.members_of(&plan) != self.members
        {
            self.apply(&plan);
        }
    }

    fn drain_actions(&mut self) {
        while let Some(action) = self.machine.poll_action() {
            match action {
                Action::Apply(plan) => self.apply(&plan),
                Action::Enumerate => self.enumerate(Duration::ZERO),
                Action::Tell(holdings) => {
                    self.own_holdings = holdings.buckets.len();
                    self.links.tell(&holdings);
                }
            }
        }
    }

    fn apply(&mut self, plan: &Arc<Plan>) {
        let begun = Instant::now();
        let members = self.members_of(plan);
        if let Err(error) = self.dataplane.lock().apply(plan, &members) {
            error!(error = format!("{error:#}"), "failed to switch the steering table");
            return;
        }
        self.version += 1;
        tracing::debug!(
            version = self.version,
            settling = plan.settling,
            took_us = begun.elapsed().as_micros(),
            "a steering table is in force"
        );
        self.members = members;
        self.plan = Some(Arc::clone(plan));
        let shares = self.machine.shares();
        self.shares = shares.map(|(name, n)| (name.to_owned(), u32::try_from(n).unwrap_or(u32::MAX))).collect();
    }

    /// The plan's members as the program needs them, by slot.
    fn members_of(&self, plan: &Plan) -> Vec<maps::Member> {
        let nodes = self.view.iter().flat_map(|view| &view.members);
        let nodes: BTreeMap<&str, &Node> = nodes.map(|node| (node.name.as_str(), node)).collect();
        let here = &self.settings.here;
        let member = |name: &String| {
            let Some(node) = nodes.get(name.as_str()) else { return maps::Member::default() };
            let address = node.address.ip().to_canonical();
            let mac = if here.is_direct(address) { Some(node.mac) } else { self.next_hops.get(&address).copied() };
            here.member(address, mac)
        };
        plan.members.iter().map(member).collect()
    }

    /// Lists this front end's connections, after a pause.
    fn enumerate(&mut self, pause: Duration) {
        if self.census.is_some() {
            self.census_again = true;
            return;
        }
        let (key, services) = (self.settings.key, Arc::clone(&self.services));
        self.census = Some(tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            tokio::task::spawn_blocking(move || census::take(key, &services)).await.context("a task was lost")?
        }));
    }

    fn find_next_hops(&mut self) {
        let wanted: Vec<IpAddr> = self.beyond().chain(path::OUTSIDE).collect();
        self.next_hops.retain(|address, _| wanted.contains(address));
        if self.finding.is_none() {
            let indexes = self.settings.link.indexes.clone();
            self.finding = Some(tokio::spawn(async move { netdev::next_hops(&indexes, &wanted).await }));
        }
    }

    /// Members that packets are encapsulated for.
    fn beyond(&self) -> impl Iterator<Item = IpAddr> {
        let others = self.view.iter().flat_map(|view| view.others());
        others.map(|node| node.address.ip().to_canonical()).filter(|address| !self.settings.here.is_direct(*address))
    }

    /// Tells the program of the network, and clients how large their packets may be, where that is new.
    fn set_network(&mut self) {
        let Settings { here, link, services, .. } = &self.settings;
        let gateways = path::OUTSIDE.map(|address| self.next_hops.get(&address).copied());
        let network = path::network(here, link, self.beyond(), gateways);
        if self.network == Some(network) {
            return;
        }
        self.dataplane.lock().set_network(&network);
        if self.network.is_none_or(|former| former.path_mtu != network.path_mtu) {
            for (address, listener) in services {
                // Zero: as large as the interface allows.
                let size = path::segment_size(address.ip(), network.path_mtu, link.mtu).unwrap_or(0);
                if let Err(error) = listener.set_tcp_mss(size) {
                    warn!(%error, %address, size, "the segment size cannot be set: large packets may be lost");
                }
            }
        }
        self.network = Some(network);
    }

    /// Tells the pool what this node has become.
    async fn tell_stance(&mut self) {
        if self.view.is_some() && self.plan.is_some() && self.machine.is_settled() {
            self.life.handle_ready();
        }
        let stance = self.life.stance();
        if stance == self.told {
            return;
        }
        info!(state = state(stance).name(), "this front end's state");
        match self.cluster.set_state(state(stance)).await {
            Ok(()) => self.told = stance,
            Err(error) => warn!(error = format!("{error:#}"), "failed to tell the pool of this front end's state"),
        }
    }

    fn keep_alive(&self) {
        let serves = self.view.as_ref().is_some_and(|view| view.own_state() != NodeState::Joining);
        self.show_life(if serves { ALIVE_FOR } else { Duration::ZERO });
    }

    fn show_life(&self, time: Duration) {
        if let Err(error) = self.dataplane.lock().keep_alive(time) {
            error!(error = format!("{error:#}"), "the XDP program takes this daemon for dead");
        }
    }

    /// Frames of one member may come from any of its interfaces.
    fn set_more_macs(&self, view: &View) {
        let macs = view.others().map(|node| (node.mac, node.more_macs.clone()));
        if let Err(error) = self.dataplane.lock().set_more_macs(macs) {
            error!(error = format!("{error:#}"), "other front ends may not be recognised by their further interfaces");
        }
    }

    fn set_vips(&self, owned: &[IpAddr]) {
        let vips = self.settings.vips.iter().map(|vip| (*vip, owned.contains(vip)));
        if let Err(error) = self.dataplane.lock().set_vips(vips).context("failed to declare the virtual addresses") {
            error!(error = format!("{error:#}"), "this front end may answer for the wrong virtual addresses");
        }
    }

    /// This front end has left the pool: from now on others answer for all addresses, and take what is new.
    fn leave(&self) {
        self.show_life(Duration::ZERO);
        self.set_vips(&[]);
    }

    fn publish(&self) {
        let takes_nothing = self.view.as_ref().is_none_or(|view| match view.own_state() {
            NodeState::Active => false,
            NodeState::Draining => self.machine.is_settled(),
            NodeState::Joining => true,
        });
        let others = self.machine.holdings().map(|(name, buckets)| (name.to_owned(), buckets));
        let own = self.view.iter().map(|view| (view.me.to_string(), self.own_holdings));
        let snapshot = Snapshot {
            version: self.version,
            plan: self.plan.clone(),
            settled: self.machine.is_settled(),
            stopping: self.life.is_stopping(),
            takes_nothing,
            connections: self.connections,
            strays: self.machine.strays(),
            holdings: others.chain(own).collect(),
            shares: self.shares.clone(),
            members: self.members.clone(),
            drain: self.life.drain().copied(),
        };
        self.snapshot.send_replace(Arc::new(snapshot));
    }
}

/// A node, as the machine sees it.
fn member(node: &Node) -> Member {
    Member {
        name: node.name.as_str().to_owned(),
        generation: node.generation,
        revision: node.revision,
        weight: node.weight,
        standing: match node.state {
            NodeState::Active => Standing::Active,
            NodeState::Draining => Standing::Draining,
            NodeState::Joining => Standing::Joining,
        },
    }
}

const fn state(stance: Stance) -> NodeState {
    match stance {
        Stance::Joining => NodeState::Joining,
        Stance::Active => NodeState::Active,
        Stance::Draining => NodeState::Draining,
    }
}

/// What a task found, once it has; never, if there is none.
async fn finished<T>(task: &mut Option<JoinHandle<Result<T>>>) -> Result<T> {
    let Some(running) = task else { return pending().await };
    let result = running.await;
    *task = None;
    result.context("a task was lost")?
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => pending().await,
    }
}
