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
        Action, Holdings, Machine, Member, Plan,
        drain::{Lifecycle, Stance},
    },
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tracing::{error, info, warn};

use super::{
    Command, Settings, SharedDataplane,
    census::Census,
    links::{Heard, Links},
    snapshot::Snapshot,
};
use crate::{
    drivers::cluster::{Cluster, View},
    netdev::{self, MacAddress},
};

/// The program answers for VIPs and takes new connections only for so long after a sign of life from its daemon: when
/// that dies, other front ends do, and two must not.
const ALIVE_FOR: Duration = Duration::from_millis(800);
const ALIVE_EVERY: Duration = Duration::from_millis(200);
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
    open: usize,
    next_hops: BTreeMap<IpAddr, MacAddress>,
    /// Members as the program has them, by slot.
    members: Vec<maps::Member>,
    /// The stream that each member's newest holdings came on, and of how many buckets they are.
    heard: BTreeMap<String, (u64, u64)>,
    census: Option<JoinHandle<Result<Census>>>,
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
            services: Arc::new(settings.services.iter().copied().collect()),
            settings,
            dataplane,
            cluster,
            links,
            machine,
            life: Lifecycle::default(),
            view: None,
            plan: None,
            told: Stance::Joining,
            open: 0,
            next_hops: BTreeMap::new(),
            members: vec![],
            heard: BTreeMap::new(),
            census: None,
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
                Some(heard) = heard.recv() => self.handle_holdings(heard),
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
        self.links.handle_members(view.others());
        self.heard.retain(|name, _| view.members.iter().any(|node| node.name.as_str() == name));
        self.view = Some(Arc::clone(&view));
        self.find_next_hops();
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

    fn handle_holdings(&mut self, heard: Heard) {
        let Heard { from, stream, holdings } = heard;
        let newest = self.heard.get(&from).map_or(0, |(newest, _)| *newest);
        if stream < newest {
            return;
        }
        self.heard.insert(from.clone(), (stream, holdings.buckets.len()));
        self.machine.handle_holdings(Instant::now(), &from, holdings);
    }

    fn handle_command(&mut self, command: Command) {
        // Whoever asked may have gone away meanwhile: then nobody waits for the answer.
        let _unheard = match command {
            Command::Drain(limit, answer) => {
                self.life.handle_drain(Instant::now(), limit);
                self.enumerate();
                answer.send(()).is_ok()
            }
            Command::Undrain(answer) => answer.send(self.life.handle_undrain()).is_ok(),
            Command::Stop(answer) => {
                self.life.handle_stop();
                answer.send(()).is_ok()
            }
        };
    }

    fn handle_census(&mut self, census: Result<Census>) {
        let now = Instant::now();
        match census {
            Ok(census) => {
                self.open = census.open;
                self.life.handle_connections(now, census.open);
                self.machine.handle_sockets(now, census.buckets);
            }
            Err(error) => warn!(error = format!("{error:#}"), "this front end's connections are not known"),
        }
    }

    fn handle_next_hops(&mut self, found: Result<BTreeMap<IpAddr, MacAddress>>) {
        match found {
            // What is not found at the moment stays: a neighbour that is just being asked again, mostly.
            Ok(found) => self.next_hops.extend(found),
            Err(error) => warn!(error = format!("{error:#}"), "the ways to members beyond the segment are not known"),
        }
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
                Action::Enumerate => self.enumerate(),
                Action::Tell(holdings) => self.tell(&holdings),
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

    fn enumerate(&mut self) {
        // One that runs may have looked already: the machine asks again, so it is enough to let that one end.
        if self.census.is_none() {
            let (key, services) = (self.settings.key, Arc::clone(&self.services));
            self.census = Some(tokio::task::spawn_blocking(move || Census::take(key, &services)));
        }
    }

    fn tell(&self, holdings: &Holdings) {
        self.links.tell(holdings);
    }

    fn find_next_hops(&mut self) {
        let Some(view) = &self.view else { return };
        let here = &self.settings.here;
        let addresses = view.others().map(|node| node.address.ip().to_canonical());
        let beyond: Vec<IpAddr> = addresses.filter(|address| !here.is_direct(*address)).collect();
        self.next_hops.retain(|address, _| beyond.contains(address));
        if !beyond.is_empty() && self.finding.is_none() {
            let interface = self.settings.interface;
            self.finding = Some(tokio::spawn(async move { netdev::next_hops(interface, &beyond).await }));
        }
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
        self.dataplane.lock().keep_alive(if serves { ALIVE_FOR } else { Duration::ZERO });
    }

    fn set_vips(&self, owned: &[IpAddr]) {
        let vips = self.settings.vips.iter().map(|vip| (*vip, owned.contains(vip)));
        if let Err(error) = self.dataplane.lock().set_vips(vips).context("failed to declare the virtual addresses") {
            error!(error = format!("{error:#}"), "this front end may answer for the wrong virtual addresses");
        }
    }

    /// This front end has left the pool: from now on others answer for all addresses, and take what is new.
    fn leave(&self) {
        self.dataplane.lock().keep_alive(Duration::ZERO);
        self.set_vips(&[]);
    }

    fn publish(&self) {
        let takes_nothing = self.view.as_ref().is_none_or(|view| match view.own_state() {
            NodeState::Active => false,
            NodeState::Draining => self.machine.is_settled(),
            NodeState::Joining => true,
        });
        let snapshot = Snapshot {
            version: self.version,
            plan: self.plan.clone(),
            settled: self.machine.is_settled(),
            stopping: self.life.is_stopping(),
            takes_nothing,
            connections: self.open,
            strays: self.machine.strays(),
            holdings: self.heard.iter().map(|(name, (_, buckets))| (name.clone(), *buckets)).collect(),
            shares: self.machine.shares(),
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
        weight: node.weight,
        active: node.state == NodeState::Active,
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
