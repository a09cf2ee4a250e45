//! Virtual time, the network, and everything that must hold.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use proxy_common::steer::{Decision, HOPS, Kind};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

use super::client::{Client, Phase, Server};
use super::kernel::{Conversation, Reply};
use super::node::{News, Node, Packet};
use super::{Change, Schedule, ms};
use crate::steering::{Action, Holdings, Member, Standing};

mod clients;

/// log2 of the buckets: so few that connections share them.
pub(super) const BITS: u32 = 6;
pub(super) fn name(node: usize) -> String {
    format!("fe{node}")
}

#[derive(Debug)]
enum Event {
    Change(Change),
    /// To one life of a node.
    At(Server, Input),
    /// At the network card of a node, whoever lives there.
    Arrive(usize, Packet),
    /// To the client of a tuple, in its life, from whom.
    Reply {
        client: usize,
        life: u64,
        to: Kind,
        reply: Reply,
        from: Server,
    },
    Timer {
        client: usize,
        life: u64,
    },
    Close {
        client: usize,
        life: u64,
    },
}

#[derive(Debug)]
enum Input {
    Hear(Vec<News>),
    Told(String, Vec<u8>),
    List,
    Listed(Vec<u32>),
    Timeout,
    /// A packet that the program has passed to the stack.
    Take(Packet),
}

/// What happened in a run, to see that the cases that matter do happen.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Tally {
    pub(super) opened: u32,
    pub(super) lost: u32,
    pub(super) dropped: u32,
    pub(super) longest: usize,
    pub(super) resets_in_time_wait: u32,
}

pub(super) struct World {
    seed: u64,
    rng: SmallRng,
    now: Instant,
    nodes: BTreeMap<usize, Node>,
    dead: Vec<News>,
    clients: Vec<Client>,
    events: BTreeMap<(Instant, u64), Event>,
    count: u64,
    conversations: Conversation,
    answered: BTreeMap<usize, Instant>,
    /// Messages are lost, and handshakes' answers too.
    lossy: bool,
    pub(super) tally: Tally,
}

impl World {
    /// A settled pool of `size` members.
    pub(super) fn new(seed: u64, size: usize) -> Self {
        let mut world = Self {
            seed,
            rng: SmallRng::seed_from_u64(seed),
            now: crate::sim::epoch(),
            nodes: BTreeMap::new(),
            dead: Vec::new(),
            clients: Vec::new(),
            events: BTreeMap::new(),
            count: 0,
            conversations: 0,
            answered: BTreeMap::new(),
            lossy: false,
            tally: Tally::default(),
        };
        let members = (0..size).map(|node| world.member(node, Standing::Active)).collect::<Vec<_>>();
        world.nodes = (0..).zip(&members).map(|(n, member)| (n, Node::new(member.clone()))).collect();
        let news = members.into_iter().map(|member| News { member, gone: false }).collect::<Vec<_>>();
        let now = world.now;
        world.nodes.values_mut().for_each(|node| node.hear(now, news.clone()));
        (0..size).for_each(|node| world.drain(node));
        world.run_for(Duration::from_secs(20));
        world
    }

    fn member(&mut self, node: usize, standing: Standing) -> Member {
        self.count += 1;
        Member { name: name(node), generation: self.count, revision: 0, weight: 100, standing }
    }

    /// Clients that begin to open connections within the next `span`.
    pub(super) fn add_clients(&mut self, number: usize, span: Duration) {
        for _ in 0..number {
            let (tuple, cookie) = (self.rng.random(), self.rng.random_bool(0.1));
            let client = self.clients.len();
            self.clients.push(Client { tuple, phase: Phase::Opening(0), cookie, life: 0, unanswered: 0 });
            let after = self.rng.random_range(Duration::ZERO..span);
            self.after(after, Event::Timer { client, life: 0 });
        }
    }

    pub(super) fn plan(&mut self, schedule: &Schedule) {
        schedule.iter().for_each(|(after, change)| self.after(*after, Event::Change(*change)));
    }

    pub(super) fn set_lossy(&mut self, lossy: bool) {
        self.lossy = lossy;
    }

    pub(super) fn run_for(&mut self, span: Duration) {
        let end = self.now + span;
        while let Some(first) = self.events.first_entry().filter(|first| first.key().0 <= end) {
            self.now = first.key().0;
            let event = first.remove();
            self.handle(event);
        }
        self.now = end;
    }

    fn after(&mut self, delay: Duration, event: Event) {
        self.count += 1;
        self.events.insert((self.now + delay, self.count), event);
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Change(change) => self.change(change),
            Event::At(life, input) => self.input(life, input),
            Event::Arrive(node, packet) => self.arrive(node, packet),
            Event::Reply { client, life, to, reply, from } => self.reply(client, life, to, reply, from),
            Event::Timer { client, life } => self.timer(client, life),
            Event::Close { client, life } => self.close(client, life),
        }
    }

    // Members.

    fn change(&mut self, change: Change) {
        match change {
            Change::Start(node) => self.start(node),
            Change::Kill(node) => self.end(node, (ms(400), ms(900))),
            Change::Leave(node) => self.end(node, (ms(0), ms(50))),
            Change::Drain(node) => self.edit(node, |member| member.standing = Standing::Draining),
            Change::Undrain(node) => self.edit(node, |member| member.standing = Standing::Active),
            Change::Weight(node, weight) => self.edit(node, |member| member.weight = weight),
        }
    }

    fn edit(&mut self, node: usize, edit: impl FnOnce(&mut Member)) {
        let now = self.now;
        let Some(there) = self.nodes.get_mut(&node).filter(|n| n.me.standing != Standing::Joining) else { return };
        there.change(now, edit);
        self.drain(node);
        self.announce(node);
    }

    fn start(&mut self, node: usize) {
        if self.nodes.contains_key(&node) {
            return;
        }
        let mut known: Vec<_> = self.nodes.values().map(Node::knowledge).collect();
        let first =
            if known.is_empty() { Vec::new() } else { known.swap_remove(self.rng.random_range(0..known.len())) };
        let member = self.member(node, Standing::Joining);
        let life = Server { node, generation: member.generation };
        self.nodes.insert(node, Node::new(member));
        self.after(ms(20), Event::At(life, Input::Hear(first)));
        // What was on its way when it started reaches it too.
        let living = self.nodes.values().map(|n| News { member: n.me.clone(), gone: false });
        let truth: Vec<_> = living.chain(self.dead.iter().cloned()).collect();
        for news in truth {
            let delay = ms(20) + self.news_delay();
            self.after(delay, Event::At(life, Input::Hear(vec![news])));
        }
        self.announce(node);
    }

    fn end(&mut self, node: usize, known_after: (Duration, Duration)) {
        let Some(gone) = self.nodes.remove(&node) else { return };
        let news = News { member: gone.me, gone: true };
        self.dead.push(news.clone());
        for other in self.lives() {
            let delay = self.rng.random_range(known_after.0..known_after.1);
            self.after(delay, Event::At(other, Input::Hear(vec![news.clone()])));
        }
    }

    fn lives(&self) -> Vec<Server> {
        self.nodes.iter().map(|(node, n)| Server { node: *node, generation: n.me.generation }).collect()
    }

    /// Mostly at once; sometimes so late that other changes come first.
    fn news_delay(&mut self) -> Duration {
        let most = [5, 5, 5, 5, 5, 50, 200, 200, 700, 1_500][self.rng.random_range(0..10)];
        ms(self.rng.random_range(0..=most))
    }

    fn announce(&mut self, node: usize) {
        let news = News { member: self.nodes[&node].me.clone(), gone: false };
        for other in self.lives().into_iter().filter(|other| other.node != node) {
            let delay = self.news_delay();
            self.after(delay, Event::At(other, Input::Hear(vec![news.clone()])));
        }
    }

    fn input(&mut self, life: Server, input: Input) {
        let now = self.now;
        let Some(node) = self.nodes.get_mut(&life.node).filter(|n| n.me.generation == life.generation) else { return };
        match input {
            Input::Hear(news) => node.hear(now, news),
            Input::Told(from, bytes) => node.machine.handle_holdings(now, &from, Holdings::decode(&bytes).unwrap()),
            Input::List => {
                let listed =
                    node.kernel.tuples(now).map(|tuple| u32::try_from(tuple >> (64 - BITS)).unwrap()).collect();
                let delay = ms(self.rng.random_range(0..5));
                return self.after(delay, Event::At(life, Input::Listed(listed)));
            }
            Input::Listed(buckets) => node.machine.handle_sockets(now, buckets),
            Input::Timeout => node.machine.handle_timeout(now),
            Input::Take(packet) => return self.take(life, &packet),
        }
        self.drain(life.node);
    }

    /// Does what the machine of a node asks for.
    fn drain(&mut self, at: usize) {
        let now = self.now;
        let Some(node) = self.nodes.get_mut(&at) else { return };
        let life = Server { node: at, generation: node.me.generation };
        let (mut list, mut told) = (false, Vec::new());
        while let Some(action) = node.machine.poll_action() {
            match action {
                Action::Apply(plan) => node.plan = Some(plan),
                Action::Enumerate => list = true,
                Action::Tell(holdings) => told.push(holdings.encode()),
            }
        }
        let timeout = node.machine.poll_timeout();
        let node_timer = node.timer.filter(|set| *set > now);
        let ready = node.is_ready();
        if ready {
            node.change(now, |member| member.standing = Standing::Active);
        }
        if let Some(timeout) = timeout.filter(|timeout| node_timer.is_none_or(|set| *timeout < set)) {
            node.timer = Some(timeout);
            self.after(timeout.saturating_duration_since(now), Event::At(life, Input::Timeout));
        }
        if list {
            let delay = ms(self.rng.random_range(0..3));
            self.after(delay, Event::At(life, Input::List));
        }
        told.into_iter().for_each(|bytes| self.tell(at, &bytes));
        if ready {
            self.announce(at);
            self.drain(at);
        }
    }

    fn tell(&mut self, from: usize, bytes: &[u8]) {
        for life in self.lives().into_iter().filter(|life| life.node != from) {
            if !(self.lossy && self.rng.random_bool(0.15)) {
                let delay = self.news_delay();
                self.after(delay, Event::At(life, Input::Told(name(from), bytes.to_vec())));
            }
        }
    }

    // Packets.

    fn send(&mut self, client: usize, kind: Kind) {
        let client = &self.clients[client];
        let conversation = match client.phase {
            Phase::Open { conversation, .. } => conversation,
            Phase::Opening(_) | Phase::Closed | Phase::Lost => 0,
        };
        let (tuple, cookie, life) = (client.tuple, client.cookie, client.life);
        let hop_limit = self.rng.random_range(30..=255);
        let packet = Packet { tuple, kind, conversation, cookie, life, hop_limit, sender: None, way: Vec::new() };
        // Who answers for a VIP is any member that takes part.
        let takes_part = |(_, n): &(&usize, &Node)| n.me.standing != Standing::Joining;
        let entries: Vec<usize> = self.nodes.iter().filter(takes_part).map(|(node, _)| *node).collect();
        if !entries.is_empty() {
            let entry = entries[self.rng.random_range(0..entries.len())];
            self.hop(entry, packet);
        }
    }

    fn hop(&mut self, to: usize, packet: Packet) {
        let delay = Duration::from_micros(self.rng.random_range(20..1_000));
        self.after(delay, Event::Arrive(to, packet));
    }

    fn arrive(&mut self, at: usize, mut packet: Packet) {
        let Some(node) = self.nodes.get(&at) else { return };
        packet.way.push(at);
        self.tally.longest = self.tally.longest.max(packet.way.len());
        assert!(packet.way.len() <= usize::from(HOPS) + 1, "seed {}: {packet:?}", self.seed);
        match node.decide(self.now, &packet) {
            Decision::Take(_) => {
                let life = Server { node: at, generation: node.me.generation };
                // A packet may wait in the stack while the table changes.
                let delay = Duration::from_micros(self.rng.random_range(0..3_000));
                self.after(delay, Event::At(life, Input::Take(packet)));
            }
            Decision::Forward { slot, hop_limit, .. } => {
                let plan = node.plan.clone().unwrap();
                let to = self.number(&plan.members[usize::from(slot)]);
                self.hop(to, Packet { hop_limit, sender: Some(at), ..packet });
            }
            Decision::Drop(_) => self.tally.dropped += 1,
        }
    }

    fn number(&self, of: &str) -> usize {
        of.trim_start_matches("fe").parse().unwrap()
    }

    fn take(&mut self, at: Server, packet: &Packet) {
        let now = self.now;
        let Some(client) = self.clients.iter().position(|c| c.tuple == packet.tuple) else { return };
        let kernel = &mut self.nodes.get_mut(&at.node).unwrap().kernel;
        let was_established = kernel.is_established(packet.tuple);
        let reply = if packet.kind == Kind::New {
            self.conversations += 1;
            kernel.handle_syn(now, packet.tuple, self.conversations, packet.cookie)
        } else {
            kernel.handle_segment(now, packet.tuple, packet.conversation)
        };
        let is_established = kernel.is_established(packet.tuple);
        if is_established && !was_established {
            self.check_only_one(at, packet);
        }
        if reply == Reply::Reset {
            self.check_reset(client, at, packet);
        }
        let lost = self.lossy && self.rng.random_bool(0.1);
        if !lost {
            let delay = Duration::from_micros(self.rng.random_range(100..20_000));
            self.after(delay, Event::Reply { client, life: packet.life, to: packet.kind, reply, from: at });
        }
    }

    /// Never two members with connections of one tuple.
    fn check_only_one(&self, at: Server, packet: &Packet) {
        for (node, n) in self.nodes.iter().filter(|(node, _)| **node != at.node) {
            let other = n.kernel.is_established(packet.tuple);
            assert!(!other, "seed {}: {node} has a connection of {packet:?}, and {at:?} too", self.seed);
        }
    }

    /// Never a reset for a connection that lives.
    fn check_reset(&mut self, client: usize, at: Server, packet: &Packet) {
        let client = &self.clients[client];
        let Phase::Open { conversation, server } = client.phase else {
            self.tally.resets_in_time_wait += 1;
            return;
        };
        let there = self.nodes.get(&server.node).filter(|n| n.me.generation == server.generation);
        let lives = there.is_some_and(|n| n.kernel.has(self.now, client.tuple, conversation));
        let ours = packet.life == client.life && packet.conversation == conversation;
        assert!(!(lives && ours), "seed {}: {at:?} resets {packet:?}, which {server:?} has", self.seed);
    }
}
