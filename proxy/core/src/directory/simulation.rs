//! Sources and a front end over streams that break at any byte: after quiet, every copy is its source.
//! Same seed, same run.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::wire::{AgentMessage, Decoder, FrontendMessage, encode};
use super::*;
use crate::address::Address;

/// One stream, with what is on its way in each direction.
struct Stream {
    feed: Feed,
    receiver: Receiver,
    connection: ConnectionId,
    to_frontend: VecDeque<u8>,
    to_agent: VecDeque<u8>,
    at_frontend: Decoder<AgentMessage>,
    at_agent: Decoder<FrontendMessage>,
}

struct Source {
    name: SourceName,
    log: Log,
    stream: Option<Stream>,
}

struct World {
    rng: StdRng,
    now: Instant,
    epoch: u64,
    connections: u64,
    sources: Vec<Source>,
    directory: Directory,
    resyncs: usize,
}

impl World {
    fn new(seed: u64, sources: usize) -> Self {
        let source =
            |n| Source { name: SourceName::parse(&format!("be{n}")).unwrap(), log: Log::new(Epoch(1)), stream: None };
        #[expect(clippy::disallowed_methods, reason = "the start of virtual time, which never passes by itself")]
        let now = Instant::now();
        World {
            rng: StdRng::seed_from_u64(seed),
            now,
            epoch: 1,
            connections: 0,
            sources: (0..sources).map(source).collect(),
            directory: Directory::default(),
            resyncs: 0,
        }
    }

    fn address(&mut self) -> Address {
        let (user, domain) = (self.rng.random_range(0..40), self.rng.random_range(0..4));
        let letter = if self.rng.random_bool(0.2) { 'U' } else { 'u' };
        Address::parse(&format!("{letter}{user}@d{domain}.test")).unwrap()
    }

    fn edit(&mut self, source: usize) {
        let mut fresh = self.sources[source].log.users().clone();
        for _ in 0..self.rng.random_range(1..8) {
            let address = self.address();
            if self.rng.random_bool(0.6) {
                fresh.insert(&address);
            } else {
                fresh.remove(&address);
            }
        }
        let log = &mut self.sources[source].log;
        log.append(log.diff(&fresh));
    }

    /// The agent starts again: a new epoch, the same users.
    fn restart_agent(&mut self, source: usize) {
        self.disconnect(source);
        self.epoch += 1;
        let mut log = Log::new(Epoch(self.epoch));
        log.append(log.diff(self.sources[source].log.users()));
        self.sources[source].log = log;
    }

    /// The front end starts again from what it stored.
    fn restart_frontend(&mut self) {
        let mut fresh = Directory::default();
        for source in 0..self.sources.len() {
            self.disconnect(source);
            let name = &self.sources[source].name;
            if let Some((_, stored)) = self.directory.stored(name) {
                let (name, stored) = persist::decode_snapshot(&persist::encode_snapshot(name, &stored)).unwrap();
                fresh.restore(&name, stored);
            }
        }
        self.directory = fresh;
    }

    fn disconnect(&mut self, source: usize) {
        let source = &mut self.sources[source];
        if let Some(stream) = source.stream.take() {
            self.directory.handle_disconnect(&source.name, stream.connection);
        }
    }

    fn connect(&mut self, source: usize) {
        self.disconnect(source);
        self.connections += 1;
        let source = &mut self.sources[source];
        source.stream = Some(Stream {
            feed: Feed::new(source.name.clone(), BackendRecord::default(), self.now),
            receiver: Receiver::new(source.name.clone()),
            connection: ConnectionId(self.connections),
            to_frontend: VecDeque::new(),
            to_agent: VecDeque::new(),
            at_frontend: Decoder::default(),
            at_agent: Decoder::default(),
        });
    }

    /// The agent says one thing, and some bytes arrive at either end. False if nothing was left to do.
    fn step(&mut self, source: usize) -> bool {
        let Source { name, log, stream: Some(stream) } = &mut self.sources[source] else { return false };
        let message = stream.feed.poll_message(log, true, self.now);
        stream.to_frontend.extend(message.iter().flat_map(|m| encode(m).unwrap()));
        let arrive = |bytes: &mut VecDeque<u8>, rng: &mut StdRng| -> Vec<u8> {
            let some = rng.random_range(0..=bytes.len());
            bytes.drain(..some).collect()
        };
        stream.at_frontend.handle_input(&arrive(&mut stream.to_frontend, &mut self.rng));
        while let Some(message) = stream.at_frontend.poll_message().unwrap() {
            let Some(update) = stream.receiver.handle_message(message).unwrap() else { continue };
            let reply = self.directory.handle_update(name, stream.connection, update, self.now).unwrap();
            self.resyncs += usize::from(reply == Some(FrontendMessage::Resync));
            stream.to_agent.extend(reply.iter().flat_map(|m| encode(m).unwrap()));
        }
        stream.at_agent.handle_input(&arrive(&mut stream.to_agent, &mut self.rng));
        while let Some(message) = stream.at_agent.poll_message().unwrap() {
            stream.feed.handle_message(&message, log, self.now).unwrap();
        }
        message.is_some() || !stream.to_frontend.is_empty() || !stream.to_agent.is_empty()
    }

    fn settle(&mut self) {
        self.now += Duration::from_secs(1); // heartbeats are due
        for source in 0..self.sources.len() {
            if self.sources[source].stream.is_none() {
                self.connect(source);
            }
            let mut idle = 0;
            while idle < 3 {
                idle = if self.step(source) { 0 } else { idle + 1 };
            }
        }
    }

    /// Every copy is its source, and the claims and conflicts are what the sources together make of them.
    fn check(&mut self) {
        for source in &self.sources {
            let (_, stored) = self.directory.stored(&source.name).unwrap();
            assert_eq!(stored.position, Some(source.log.position()));
            assert_eq!(stored.users.hash(), source.log.hash());
            assert!(stored.users == *source.log.users());
        }
        assert!(self.directory.counts(self.now).iter().all(|c| c.fresh && c.connected));
        let mut conflicts = 0;
        for domain in 0..5 {
            let domain = format!("d{domain}.test");
            let claimed = self.sources.iter().any(|s| s.log.users().has_domain(&domain));
            for user in 0..40 {
                let local = format!("u{user}");
                let has = |s: &&Source| s.log.users().find(&local, &domain).is_some();
                let mut holders = self.sources.iter().filter(has);
                let address = Address::parse(&format!("{local}@{domain}")).unwrap();
                match (self.directory.lookup(&address, self.now), holders.next()) {
                    (Answer::Known(route), Some(holder)) => {
                        assert_eq!(route.backend, holder.name);
                        assert!(holder.log.users().contains(&route.mailbox));
                    }
                    (Answer::UnknownUser, None) => assert!(claimed),
                    (Answer::UnknownDomain, None) => assert!(!claimed),
                    (answer, holder) => panic!("{address}: {answer:?}, held by {:?}", holder.map(|h| &h.name)),
                }
                conflicts += usize::from(holders.next().is_some());
            }
        }
        assert_eq!(self.directory.conflict_count(), conflicts);
        assert_eq!(self.directory.conflicts(usize::MAX).len(), conflicts);
    }
}

#[test]
fn after_quiet_every_copy_is_its_source() {
    let mut resyncs = 0;
    for seed in 0..30 {
        let mut world = World::new(seed, 3);
        for _ in 0..6 {
            for _ in 0..80 {
                let source = world.rng.random_range(0..3);
                match world.rng.random_range(0..100) {
                    0..30 => world.edit(source),
                    30..34 => world.disconnect(source),
                    34..40 => world.connect(source),
                    40..42 => world.restart_agent(source),
                    42..43 => world.restart_frontend(),
                    43..48 => world.now += Duration::from_millis(300),
                    _ => {
                        world.step(source);
                    }
                }
            }
            world.settle();
            world.check();
        }
        resyncs += world.resyncs;
    }
    assert_eq!(resyncs, 0, "a stream keeps its order: only damage asks for a resync");
}

#[test]
fn a_copy_that_was_damaged_heals() {
    let mut world = World::new(7, 1);
    world.edit(0);
    world.settle();
    world.check();
    let name = world.sources[0].name.clone();
    let connection = world.sources[0].stream.as_ref().unwrap().connection;
    let at = world.sources[0].log.position().seq;

    // A change that the source never made, with the hash that it never had.
    let entry = Entry { address: Address::parse("ghost@d0.test").unwrap() };
    let update = Update::Changes {
        first: at.next(),
        changes: vec![Change::Put(entry.clone())],
        hash: world.sources[0].log.hash(),
    };
    let reply = world.directory.handle_update(&name, connection, update, world.now).unwrap();
    assert_eq!(reply, Some(FrontendMessage::Resync));
    let nobody = Address::parse("nobody@d0.test").unwrap();
    assert_eq!(world.directory.lookup(&nobody, world.now), Answer::NotSure);

    // What comes meanwhile is passed over without asking again.
    let update = Update::Changes { first: at.next(), changes: vec![], hash: world.sources[0].log.hash() };
    assert_eq!(world.directory.handle_update(&name, connection, update, world.now), Ok(None));
    let stream = world.sources[0].stream.as_mut().unwrap();
    stream.to_agent.extend(encode(&FrontendMessage::Resync).unwrap());
    world.settle();
    world.check();
}

#[test]
fn a_gap_and_a_damaged_snapshot_ask_for_a_resync() {
    let mut world = World::new(9, 1);
    world.edit(0);
    world.settle();
    let name = world.sources[0].name.clone();
    let connection = world.sources[0].stream.as_ref().unwrap().connection;
    let far = world.sources[0].log.position().seq.after(5);
    let hash = world.sources[0].log.hash();
    let gap = Update::Changes { first: far, changes: vec![], hash };
    assert_eq!(world.directory.handle_update(&name, connection, gap, world.now), Ok(Some(FrontendMessage::Resync)));
    assert_eq!(world.directory.counts(world.now)[0].age, None);

    let mut receiver = Receiver::new(name.clone());
    let position = world.sources[0].log.position();
    let hello = AgentMessage::Hello {
        version: wire::VERSION,
        source: name.clone(),
        record: BackendRecord::default(),
        position,
    };
    assert!(receiver.handle_message(hello).unwrap().is_some());
    assert!(receiver.handle_message(AgentMessage::SnapshotBegin { position, users: 7 }).unwrap().is_none());
    let end = receiver.handle_message(AgentMessage::SnapshotEnd { hash }).unwrap().unwrap();
    assert!(matches!(end, Update::Damaged));
    assert_eq!(world.directory.handle_update(&name, connection, end, world.now), Ok(Some(FrontendMessage::Resync)));
}

#[test]
fn the_order_of_messages_is_enforced() {
    let name = SourceName::parse("be1").unwrap();
    let position = Position { epoch: Epoch(1), seq: Seq(0) };
    let hello = |version, source: &str| AgentMessage::Hello {
        version,
        source: SourceName::parse(source).unwrap(),
        record: BackendRecord::default(),
        position,
    };
    let entry = Entry { address: Address::parse("a@x.test").unwrap() };
    let hash = RootHash::default();
    let begin = AgentMessage::SnapshotBegin { position, users: 1 };
    let changes = AgentMessage::Changes { first: Seq(1), changes: vec![], hash };
    let many =
        AgentMessage::Changes { first: Seq(1), changes: vec![Change::Put(entry.clone()); wire::MAX_BATCH + 1], hash };
    let ours = || hello(wire::VERSION, "be1");
    let chunk = |entries| AgentMessage::SnapshotChunk(vec![entry.clone(); entries]);
    let cases = [
        (vec![changes.clone()], ProtocolError::Hello),
        (vec![ours(), ours()], ProtocolError::Hello),
        (vec![hello(9, "be1")], ProtocolError::Version(9)),
        (vec![hello(wire::VERSION, "be2")], ProtocolError::Name),
        (vec![ours(), chunk(1)], ProtocolError::Order),
        (vec![ours(), AgentMessage::SnapshotEnd { hash }], ProtocolError::Order),
        (vec![ours(), begin.clone(), changes], ProtocolError::Order),
        (vec![ours(), begin.clone(), begin.clone()], ProtocolError::Order),
        (vec![ours(), begin, chunk(1), chunk(1)], ProtocolError::TooMany),
        (vec![ours(), many], ProtocolError::TooMany),
        (vec![ours(), AgentMessage::SnapshotBegin { position, users: u64::MAX }], ProtocolError::TooMany),
    ];
    for (messages, expected) in cases {
        let mut receiver = Receiver::new(name.clone());
        let mut results: Vec<_> = messages.into_iter().map(|m| receiver.handle_message(m).map(|_| ())).collect();
        assert_eq!(results.pop(), Some(Err(expected)));
        assert!(results.iter().all(Result::is_ok), "{expected}");
    }
}
