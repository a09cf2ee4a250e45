//! What the machine does about each message and each note from foca.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use foca::{Identity as _, Message as Swim, OwnedNotification, State};
use rand::RngExt as _;
use rand::seq::IteratorRandom as _;

use super::outbox::Outbox;
use super::{Engine, Event, GOSSIP_PAUSE, Machine, Transmit};
use crate::cluster::digest::Digest;
use crate::cluster::node::Node;
use crate::cluster::wire::{self, Control, MalformedDatagram, OnFile};

/// A second node with our name is reported this often.
const CONFLICT_PAUSE: Duration = Duration::from_secs(60);
/// Told that we are dead, we come back at most this often: the loser of a fight over a name would
/// otherwise come back with every round trip.
const REJOIN_PAUSE: Duration = Duration::from_millis(500);
/// News is gossiped so often at once. A round picks members at random; one round misses somebody now
/// and then, who would have to wait for the next period.
const NEWS_ROUNDS: u8 = 2;
/// About so many members send a newcomer all digests.
const DIGEST_SPONSORS: u32 = 3;

impl Machine {
    /// Lets foca work and looks at what it notes.
    fn call(
        &mut self,
        now: Instant,
        work: impl FnOnce(&mut Engine, &mut Outbox) -> Result<(), foca::Error>,
    ) -> Result<(), foca::Error> {
        let result = work(&mut self.foca, self.outbox.at(now));
        while let Some(note) = self.outbox.notes.pop_front() {
            self.note(now, note);
        }
        result
    }

    /// The same where only a bug could make it fail.
    pub(super) fn run(&mut self, now: Instant, work: impl FnOnce(&mut Engine, &mut Outbox) -> Result<(), foca::Error>) {
        if self.call(now, work).is_err() {
            self.anomalies += 1;
        }
    }

    pub(super) fn handle_swim(&mut self, now: Instant, bytes: &[u8]) -> Result<(), MalformedDatagram> {
        let header = wire::foca_header(bytes)?;
        if header.src.name == self.me().name {
            self.report_conflict(now, header.src);
            return Ok(());
        }
        self.hear(now, &header.src);
        if let Swim::ForwardedAck { origin, .. } = &header.message {
            self.hear(now, origin);
        }
        if header.message == Swim::TurnUndead && self.rejoined_lately(now) {
            return Ok(());
        }
        if self.is_former_self(&header.dst) && self.view.contains_key(&header.src.name) {
            self.run(now, |foca, outbox| foca.announce(header.src, outbox));
        }
        self.call(now, |foca, outbox| foca.handle_data(bytes, outbox)).or_else(|error| self.blame(error))
    }

    fn rejoined_lately(&self, now: Instant) -> bool {
        self.last_rejoin.is_some_and(|last| now.saturating_duration_since(last) < REJOIN_PAUSE)
    }

    /// The peer's faults are returned, ours are counted.
    fn blame(&mut self, error: foca::Error) -> Result<(), MalformedDatagram> {
        use foca::Error as E;
        match error {
            E::DataTooBig | E::IndirectForOurselves | E::MalformedPacket | E::Decode(_) | E::CustomBroadcast(_) => {
                Err(wire::unreadable(error))
            }
            E::NotUndead
            | E::SameIdentity
            | E::NotConnected
            | E::IncompleteProbeCycle
            | E::DataFromOurselves
            | E::Encode(_)
            | E::InvalidConfig => {
                self.anomalies += 1;
                Ok(())
            }
        }
    }

    /// Somebody talks to what we were before our last change. It has to learn what we are, or it will
    /// take our silence for death.
    fn is_former_self(&self, receiver: &Node) -> bool {
        receiver.name == self.me().name && self.me().win_addr_conflict(receiver)
    }

    pub(super) fn hello(&mut self, to: SocketAddr) {
        let node = self.me().clone();
        self.send(to, &Control::Hello { node });
    }

    pub(super) fn handle_hello(&mut self, now: Instant, from: SocketAddr, asker: &Node) {
        if asker.name == self.me().name {
            self.report_conflict(now, asker.clone());
            return;
        }
        self.hear(now, asker);
        let known = self.foca.iter_membership_state().find(|member| member.id().name == asker.name);
        let newer = known.filter(|member| member.id().win_addr_conflict(asker));
        let on_file = newer.map(|m| OnFile { node: m.id().clone(), alive: m.state() != State::Down });
        let node = self.me().clone();
        self.send(from, &Control::Here { node, on_file });
        if !self.view.contains_key(&asker.name) {
            self.send_all_digests(from);
        }
    }

    pub(super) fn handle_here(&mut self, now: Instant, node: Node, on_file: Option<OnFile>) {
        if node.name == self.me().name {
            self.report_conflict(now, node);
            return;
        }
        self.hear(now, &node);
        if let Some(former) = on_file.filter(|f| f.node.name == self.me().name) {
            let conflict = former.alive && former.node.address != self.me().address;
            if conflict {
                self.report_conflict(now, former.node);
                return;
            }
            self.outbid(now, &former.node);
        }
        if self.view.get(&node.name) != Some(&node) {
            self.run(now, |foca, outbox| foca.announce(node, outbox));
        }
    }

    /// The pool has on file a newer description of us than ours: our clock went back before a restart.
    fn outbid(&mut self, now: Instant, former: &Node) {
        if former.win_addr_conflict(self.me()) {
            let generation = former.generation.saturating_add(1);
            let revision = former.revision.saturating_add(1);
            self.change(now, Node { generation, revision, ..self.me().clone() });
        }
    }

    fn report_conflict(&mut self, now: Instant, other: Node) {
        let quiet = self.last_conflict.is_some_and(|last| now.saturating_duration_since(last) < CONFLICT_PAUSE);
        if other.address != self.me().address && !quiet {
            self.last_conflict = Some(now);
            self.events.push_back(Event::NameConflict(other));
        }
    }

    /// A sign of life, if it is from the member that we know under this name.
    fn hear(&mut self, now: Instant, node: &Node) {
        match self.view.get(&node.name) {
            Some(known) if known.generation == node.generation => self.outbox.suspicions.heard(now, &node.name),
            Some(_) | None => {}
        }
    }

    pub(super) fn change(&mut self, now: Instant, new: Node) {
        self.run(now, |foca, outbox| foca.change_identity(new, outbox));
        self.introduce = true;
        self.finish(now);
    }

    fn note(&mut self, now: Instant, note: OwnedNotification<Node>) {
        match note {
            OwnedNotification::MemberUp(node) => self.member_up(node),
            OwnedNotification::MemberDown(node) => self.member_down(&node),
            OwnedNotification::Rename(before, after) => self.member_changed(&before, after),
            OwnedNotification::Active => {
                self.next_digests.get_or_insert(now + self.timing.digest_period);
                if !std::mem::replace(&mut self.joined, true) {
                    self.events.push_back(Event::Joined);
                }
            }
            OwnedNotification::Idle => {
                self.next_digests = None;
                self.joined = false;
                self.events.push_back(Event::Alone);
                self.seeds.hurry(now);
            }
            OwnedNotification::Rejoin(me) => {
                self.introduce = true;
                self.last_rejoin = Some(now);
                self.events.push_back(Event::Rejoined(me));
                self.seeds.hurry(now);
                // If another node has our name, their answers say so.
                let others: Vec<SocketAddr> = self.view.values().map(|node| node.address).collect();
                others.into_iter().for_each(|other| self.hello(other));
            }
            // Only after `leave`: a node of ours always renews itself.
            OwnedNotification::Defunct => {}
        }
    }

    fn member_up(&mut self, node: Node) {
        let others = u32::try_from(self.view.len()).unwrap_or(u32::MAX);
        if others < DIGEST_SPONSORS || self.rng.random_ratio(DIGEST_SPONSORS, others) {
            self.send_all_digests(node.address);
        }
        self.outbox.suspicions.forget(&node.name);
        self.view.insert(node.name.clone(), node.clone());
        self.events.push_back(Event::MemberUp(node));
        self.news = NEWS_ROUNDS;
    }

    fn member_down(&mut self, node: &Node) {
        self.outbox.suspicions.forget(&node.name);
        if let Some(gone) = self.view.remove(&node.name) {
            self.events.push_back(Event::MemberDown(gone));
            self.news = NEWS_ROUNDS;
        }
    }

    /// foca reports it for the dead as well; those are not in the view.
    fn member_changed(&mut self, before: &Node, after: Node) {
        let Some(known) = self.view.get_mut(&after.name) else { return };
        known.clone_from(&after);
        if before.generation != after.generation {
            self.outbox.suspicions.forget(&after.name);
        }
        self.events.push_back(Event::MemberChanged(after));
        self.news = NEWS_ROUNDS;
    }

    /// The end of every `handle_*`: sends what cannot wait.
    pub(super) fn finish(&mut self, now: Instant) {
        while let Some(digest) = self.digests.lock().poll_news() {
            self.news = NEWS_ROUNDS;
            self.events.push_back(Event::Digest(digest));
        }
        if std::mem::take(&mut self.introduce) {
            let everybody: Vec<Node> = self.view.values().cloned().collect();
            for member in everybody {
                self.run(now, |foca, outbox| foca.announce(member, outbox));
            }
        }
        let pause_over = self.last_gossip.is_none_or(|last| now >= last + GOSSIP_PAUSE);
        if self.news > 0 && pause_over {
            self.news -= 1;
            self.last_gossip = Some(now);
            if self.foca.updates_backlog() + self.foca.custom_broadcast_backlog() > 0 {
                self.run(now, |foca, outbox| foca.gossip(outbox));
            }
        }
    }

    pub(super) fn broadcast(&mut self, now: Instant, digest: &Digest) {
        // Cannot fail: the digest was checked, and memory is all that it needs.
        let Ok(item) = postcard::to_stdvec(digest) else { return };
        self.run(now, |foca, _| foca.add_broadcast(&item).map(drop));
        self.news = NEWS_ROUNDS;
    }

    pub(super) fn handle_digests(&mut self, digests: Vec<Digest>) -> Result<(), MalformedDatagram> {
        for digest in digests {
            match self.digests.lock().learn(digest) {
                Ok(_) | Err(crate::cluster::DigestRefused::TooMany) => {}
                Err(refused) => return Err(wire::unreadable(refused)),
            }
        }
        Ok(())
    }

    pub(super) fn repair_digests(&mut self, now: Instant) {
        if self.next_digests.is_none_or(|due| now < due) {
            return;
        }
        self.next_digests = Some(now + self.timing.digest_period);
        let chunk = self.digests.lock().next_chunk();
        let lucky = self.view.values().choose(&mut self.rng).map(|node| node.address);
        if let Some(to) = lucky.filter(|_| !chunk.is_empty()) {
            self.send(to, &Control::Digests(chunk));
        }
    }

    fn send_all_digests(&mut self, to: SocketAddr) {
        let chunks = self.digests.lock().chunks();
        for chunk in chunks {
            self.send(to, &Control::Digests(chunk));
        }
    }

    fn send(&mut self, to: SocketAddr, message: &Control) {
        match wire::encode_control(message) {
            Some(payload) => self.outbox.transmits.push_back(Transmit { to, payload }),
            None => self.anomalies += 1,
        }
    }
}
