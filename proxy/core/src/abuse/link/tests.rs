use std::collections::VecDeque;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::super::record::{Denial, Origin, Reason, Word};
use super::*;

const UNIX: u64 = 1_700_000_000_000;
const STEP: Duration = Duration::from_millis(100);

fn host(n: u32) -> Prefix {
    Prefix::host(std::net::Ipv4Addr::from_bits(0x0a00_0000 + n).into())
}

fn denial() -> Denial {
    Denial { until: None, reason: Reason::default() }
}

/// A stream from one list to another.
struct Wire {
    from: usize,
    to: usize,
    outbound: Outbound,
    inbound: Inbound,
    /// Messages that have not arrived.
    flying: VecDeque<Message>,
}

/// Front ends with a stream in each direction between every two that see each other.
struct Pool {
    lists: Vec<DenyList>,
    wires: Vec<Wire>,
    now: Instant,
    records_sent: usize,
}

impl Pool {
    fn new(size: usize) -> Self {
        let lists = (0..size).map(|_| DenyList::default()).collect();
        Self { lists, wires: vec![], now: crate::sim::epoch(), records_sent: 0 }
    }

    fn connect(&mut self, a: usize, b: usize) {
        for (from, to) in [(a, b), (b, a)] {
            let outbound = Outbound::new(&self.lists[from], self.now);
            self.wires.push(Wire { from, to, outbound, inbound: Inbound::default(), flying: VecDeque::new() });
        }
    }

    fn cut(&mut self, node: usize) {
        let lists = &mut self.lists;
        self.wires.retain_mut(|wire| {
            let keep = wire.from != node && wire.to != node;
            if !keep {
                wire.inbound.handle_end(&mut lists[wire.to]);
            }
            keep
        });
    }

    fn deny(&mut self, node: usize, prefix: Prefix) {
        let origin = Origin::parse(&format!("fe{node}")).unwrap();
        self.lists[node].deny(UNIX, prefix, denial(), &origin).unwrap();
    }

    /// A step of time. What is sent in it arrives in the next.
    fn step(&mut self) {
        self.now += STEP;
        for wire in &mut self.wires {
            let arrived = std::mem::take(&mut wire.flying);
            for message in arrived {
                let list = &mut self.lists[wire.to];
                let reply = wire.inbound.handle_message(message, list, self.now, UNIX).unwrap();
                if let Some(reply) = reply {
                    wire.outbound.handle_reply(reply, &self.lists[wire.from]).unwrap();
                }
            }
            while let Some(message) = wire.outbound.poll_message(&self.lists[wire.from], self.now) {
                if let Message::Records(records) = &message {
                    self.records_sent += records.len();
                }
                wire.flying.push_back(message);
            }
        }
    }

    fn run(&mut self, time: Duration) {
        (0..time.as_millis() / STEP.as_millis()).for_each(|_| self.step());
    }

    fn agree(&self) -> bool {
        let records = |list: &DenyList| list.records(None).cloned().collect::<Vec<_>>();
        self.lists.windows(2).all(|two| records(&two[0]) == records(&two[1]))
    }
}

fn full(size: usize) -> Pool {
    let mut pool = Pool::new(size);
    (0..size).flat_map(|a| (0..a).map(move |b| (a, b))).for_each(|(a, b)| pool.connect(a, b));
    pool
}

#[test]
fn a_word_reaches_all_at_once_and_is_sent_once_to_each() {
    let mut pool = full(5);
    pool.run(Duration::from_secs(3));
    pool.deny(2, host(1));
    pool.run(STEP * 2);
    assert!(pool.agree(), "within two steps");
    pool.run(Duration::from_secs(60));
    assert_eq!(pool.records_sent, 4, "nobody repeats it");
}

#[test]
fn who_comes_gets_everything_from_one() {
    let mut pool = Pool::new(4);
    (0..3).flat_map(|a| (0..a).map(move |b| (a, b))).for_each(|(a, b)| pool.connect(a, b));
    (0..5_000).for_each(|n| pool.deny(0, host(n)));
    pool.run(Duration::from_secs(5));
    pool.records_sent = 0;
    (0..3).for_each(|peer| pool.connect(3, peer));
    pool.run(Duration::from_secs(1));
    assert!(pool.agree());
    pool.run(Duration::from_secs(30));
    assert_eq!(pool.records_sent, 5_000);
}

#[test]
fn lists_that_were_apart_send_only_what_differs() {
    let mut pool = full(2);
    (0..5_000).for_each(|n| pool.deny(0, host(n)));
    pool.run(Duration::from_secs(3));
    pool.cut(0);
    pool.deny(0, host(9_001));
    pool.deny(1, host(9_002));
    pool.records_sent = 0;
    pool.connect(0, 1);
    pool.run(Duration::from_secs(5));
    assert!(pool.agree());
    // Two of 256 parts, with some twenty records each, from each side.
    assert!((2..200).contains(&pool.records_sent), "{}", pool.records_sent);
}

#[test]
fn a_pool_in_trouble_agrees_in_the_end() {
    for seed in 0..40 {
        let mut rng = StdRng::seed_from_u64(seed);
        let size = rng.random_range(2..6);
        let mut pool = full(size);
        for _ in 0..60 {
            let node = rng.random_range(0..size);
            match rng.random_range(0..6) {
                0 => pool.cut(node),
                1 => {
                    pool.cut(node);
                    (0..size).filter(|peer| *peer != node).for_each(|peer| pool.connect(node, peer));
                }
                2 => {
                    let origin = Origin::parse("op").unwrap();
                    let known = pool.lists[node].entries(None).map(|r| r.prefix).next();
                    known.into_iter().for_each(|p| pool.lists[node].allow(UNIX, p, &origin).unwrap());
                }
                _ => pool.deny(node, host(rng.random_range(0..50))),
            }
            pool.run(STEP * rng.random_range(0..8));
        }
        (0..size).for_each(|node| pool.cut(node));
        (0..size).flat_map(|a| (0..a).map(move |b| (a, b))).for_each(|(a, b)| pool.connect(a, b));
        pool.run(Duration::from_secs(40));
        assert!(pool.agree(), "seed {seed}");
    }
}

#[test]
fn two_lists_that_can_never_agree_compare_ever_less_often() {
    let now = crate::sim::epoch();
    let (mut list, mut inbound) = (DenyList::default(), Inbound::default());
    inbound.handle_message(Message::Hello { version: VERSION }, &mut list, now, UNIX).unwrap();
    let mut asked = 0;
    for second in (0..3_600).step_by(2) {
        let at = now + Duration::from_secs(second);
        if inbound.handle_message(Message::Summary(1), &mut list, at, UNIX).unwrap().is_some() {
            asked += 1;
            inbound.handle_message(Message::Done, &mut list, at, UNIX).unwrap();
        }
    }
    assert!((10..=25).contains(&asked), "{asked} times in an hour");
}

#[test]
fn what_breaks_the_protocol_is_told() {
    let now = crate::sim::epoch();
    let mut list = DenyList::default();
    let mut inbound = Inbound::default();
    assert_eq!(inbound.handle_message(Message::Done, &mut list, now, UNIX), Err(LinkError::NoHello));
    let mut inbound = Inbound::default();
    let hello = Message::Hello { version: VERSION };
    assert_eq!(inbound.handle_message(hello.clone(), &mut list, now, UNIX), Ok(None));
    assert_eq!(inbound.handle_message(hello, &mut list, now, UNIX), Err(LinkError::SecondHello));
    let mut outbound = Outbound::new(&list, now);
    let compare = Reply::Compare(vec![1; PARTS]);
    assert_eq!(outbound.handle_reply(compare.clone(), &list), Ok(()));
    assert_eq!(outbound.handle_reply(compare, &list), Err(LinkError::Impatient));
}

#[test]
fn a_refusal_is_told_once() {
    let (mut list, mut inbound) = (DenyList::default(), Inbound::default());
    let now = crate::sim::epoch();
    inbound.handle_message(Message::Hello { version: VERSION }, &mut list, now, UNIX).unwrap();
    let record = |n| Record {
        prefix: host(n),
        changed: UNIX,
        set_by: Origin::parse("fe1").unwrap(),
        word: Word::Denied(denial()),
    };
    let most = u32::try_from(super::super::deny::MAX_PER_ORIGIN).unwrap();
    (0..most).for_each(|n| {
        list.merge(UNIX, record(n));
    });
    let records = vec![record(most), record(most + 1)];
    inbound.handle_message(Message::Records(records), &mut list, now, UNIX).unwrap();
    assert_eq!((inbound.poll_refused(), inbound.poll_refused()), (Some(DenyError::OriginFull), None));
}
