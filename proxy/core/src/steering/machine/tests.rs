use proxy_common::maps::{BUCKETS, Chain, NO_SLOT};

use super::*;
use crate::steering::{MAX_HOLDINGS, Standing};

const BITS: u32 = 10;

fn member(n: usize, standing: Standing, revision: u32) -> Member {
    Member { name: format!("fe{n}"), generation: 100 + n as u64, revision, weight: 100, standing }
}

fn active(n: usize) -> Member {
    member(n, Standing::Active, 0)
}

struct Bench {
    machine: Machine,
    start: Instant,
    plans: usize,
    told: Vec<Holdings>,
    asked: usize,
}

impl Bench {
    fn new(me: &str) -> Self {
        let machine = Machine::with_buckets(me, BITS);
        Self { machine, start: crate::sim::epoch(), plans: 0, told: Vec::new(), asked: 0 }
    }

    fn at(&self, millis: u64) -> Instant {
        self.start + Duration::from_millis(millis)
    }

    fn members(&mut self, millis: u64, members: &[Member]) {
        self.machine.handle_members(self.at(millis), members).unwrap();
        self.drain();
    }

    fn told(&mut self, millis: u64, n: usize, sequence: u64, buckets: impl IntoIterator<Item = u32>) {
        let view = self.machine.view.as_ref().unwrap().hash;
        let buckets = buckets.into_iter().collect();
        let holdings = Holdings { view, generation: 100 + n as u64, sequence, buckets };
        self.machine.handle_holdings(self.at(millis), &format!("fe{n}"), holdings);
        self.drain();
    }

    fn drain(&mut self) {
        while let Some(action) = self.machine.poll_action() {
            match action {
                Action::Apply(_) => self.plans += 1,
                Action::Enumerate => self.asked += 1,
                Action::Tell(holdings) => self.told.push(holdings),
            }
        }
    }

    /// Lets time pass; every count finds connections in these buckets.
    fn run(&mut self, until: u64, connections: &[u32]) {
        while let Some(due) = self.machine.poll_timeout().filter(|due| *due <= self.at(until)) {
            self.machine.handle_timeout(due);
            let asked = std::mem::take(&mut self.asked);
            self.drain();
            if self.asked > 0 {
                self.machine.handle_sockets(due, connections.iter().copied());
                self.drain();
            }
            self.asked += asked;
        }
    }

    /// A bucket that a slot owns.
    fn bucket_of(&self, slot: u8) -> u32 {
        let found = self.machine.plan.owners.iter().position(|owner| owner.slot() == slot);
        u32::try_from(found.unwrap()).unwrap()
    }

    fn chain(&self, bucket: u32) -> Chain {
        self.machine.plan.chains[bucket as usize]
    }
}

#[test]
fn a_pool_of_one_is_settled_at_once() {
    let mut bench = Bench::new("fe0");
    bench.members(0, &[active(0)]);
    assert!(bench.machine.is_settled());
    assert_eq!(bench.machine.shares().collect::<Vec<_>>(), [("fe0", 1 << BITS)]);
    bench.members(10, &[active(0)]);
    assert_eq!(bench.plans, 1, "the same members make no new plan");
}

#[test]
fn a_view_settles_when_everybody_has_told_or_after_five_seconds() {
    let mut bench = Bench::new("fe0");
    bench.members(0, &[active(0), active(1), active(2)]);
    bench.told(30, 1, 1, []);
    assert!(!bench.machine.is_settled());
    bench.told(40, 2, 1, []);
    assert!(bench.machine.is_settled());

    bench.members(10_000, &[active(0), active(1), active(2), active(3)]);
    bench.run(14_999, &[]);
    assert!(!bench.machine.is_settled());
    bench.run(15_000, &[]);
    assert!(bench.machine.is_settled());
}

#[test]
fn a_view_that_comes_back_is_not_settled_by_what_was_told_before() {
    let mut bench = Bench::new("fe0");
    bench.members(0, &[active(0), active(1)]);
    bench.told(30, 1, 1, []);
    bench.members(1_000, &[active(0), active(1), active(2)]);
    bench.members(2_000, &[active(0), active(1)]);
    assert!(!bench.machine.is_settled());
    bench.told(2_030, 1, 2, []);
    assert!(bench.machine.is_settled());
}

#[test]
fn the_former_owner_is_asked_for_fifteen_seconds_and_as_long_as_it_holds_the_bucket() {
    let mut bench = Bench::new("fe0");
    bench.members(0, &[active(0), active(1)]);
    let bucket = bench.bucket_of(1);
    bench.members(60_000, &[active(0), member(1, Standing::Draining, 1)]);
    bench.told(60_030, 1, 1, []);
    assert_eq!(bench.chain(bucket).member(0), 1);
    assert!(bench.chain(bucket).lately() && bench.machine.plan.owners[bucket as usize].chained());
    bench.run(74_999, &[]);
    assert_eq!(bench.chain(bucket).member(0), 1);
    bench.run(75_000, &[]);
    assert_eq!(bench.chain(bucket), Chain::EMPTY);

    let plans = bench.plans;
    bench.told(80_000, 1, 2, [bucket]);
    assert_eq!((bench.chain(bucket).member(0), bench.chain(bucket).member(1)), (1, NO_SLOT));
    assert!(!bench.chain(bucket).lately(), "no handshake is that old");
    bench.told(81_000, 1, 3, []);
    assert_eq!((bench.chain(bucket), bench.plans), (Chain::EMPTY, plans + 2));
    bench.told(82_000, 1, 2, [bucket]);
    assert_eq!(bench.chain(bucket), Chain::EMPTY, "an older message came late");
}

#[test]
fn a_former_owner_who_has_not_told_is_remembered_for_longer() {
    let mut bench = Bench::new("fe0");
    bench.members(0, &[active(0), active(1)]);
    let bucket = bench.bucket_of(1);
    bench.members(100_000, &[active(0), member(1, Standing::Draining, 1)]);
    bench.run(159_999, &[]);
    assert_eq!(bench.chain(bucket).member(0), 1);
    bench.run(160_000, &[]);
    assert_eq!(bench.chain(bucket), Chain::EMPTY);
}

#[test]
fn who_was_started_again_has_none_of_the_old_connections() {
    let mut bench = Bench::new("fe0");
    bench.members(0, &[active(0), active(1)]);
    let bucket = bench.bucket_of(1);
    bench.told(30, 1, 1, [bench.bucket_of(0)]);
    bench.members(1_000, &[active(0), Member { generation: 999, standing: Standing::Joining, ..active(1) }]);
    // Not as former owner or holder, but as somebody who has not confirmed the view.
    assert_eq!(bench.chain(bucket).member(0), 1);
    assert_eq!(bench.machine.holdings().collect::<Vec<_>>(), [("fe1", 0)]);
    bench.run(6_000, &[]);
    assert_eq!(bench.chain(bucket), Chain::EMPTY);
}

#[test]
fn holdings_may_come_before_the_view() {
    let mut bench = Bench::new("fe0");
    bench.members(0, &[active(0), active(1)]);
    let bucket = bench.bucket_of(0);
    bench.told(1_000, 2, 1, [bucket]);
    assert_eq!(bench.chain(bucket), Chain::EMPTY);
    bench.members(2_000, &[active(0), active(1), member(2, Standing::Draining, 0)]);
    assert_eq!(bench.chain(bucket).member(0), 2);
}

#[test]
fn strays_are_told_and_told_again() {
    let mut bench = Bench::new("fe0");
    bench.members(0, &[active(0), active(1)]);
    let (own, stray) = (bench.bucket_of(0), bench.bucket_of(1));
    bench.run(19, &[own, stray, stray]);
    assert_eq!((bench.asked, bench.told.len()), (0, 0), "nothing is told before it was counted");
    bench.run(20, &[own, stray, stray]);
    assert_eq!((bench.machine.connections(), bench.machine.strays()), (3, 2));
    assert_eq!(bench.told.last().unwrap().buckets, [stray].into_iter().collect());
    bench.run(10_000, &[own, stray]);
    assert!(bench.told.len() > 6, "told {} times in ten seconds", bench.told.len());
    bench.run(100_000, &[own]);
    assert!(bench.told.last().unwrap().buckets.is_empty());
    let told = bench.told.len();
    bench.run(200_000, &[own]);
    assert_eq!(bench.told.len(), told, "nothing is left to say");
}

#[test]
fn a_list_from_before_the_view_is_not_told_under_it() {
    let mut bench = Bench::new("fe0");
    bench.members(0, &[active(0), active(1)]);
    bench.machine.handle_timeout(bench.at(20));
    bench.drain();
    bench.members(21, &[active(0), active(1), active(2)]);
    bench.machine.handle_sockets(bench.at(22), []);
    bench.drain();
    assert!(bench.told.is_empty());
    bench.run(41, &[]);
    assert_eq!(bench.told.len(), 1);
}

#[test]
fn what_was_ours_lately_is_told_though_nothing_is_there() {
    let mut bench = Bench::new("fe0");
    bench.members(0, &[active(0), active(1)]);
    let owned = bench.machine.plan.shares()[0] as u64;
    bench.members(1_000, &[member(0, Standing::Draining, 1), active(1)]);
    bench.told(1_010, 1, 1, []);
    bench.run(1_030, &[]);
    let told = bench.told.last().unwrap();
    assert_eq!(told.buckets.len(), owned, "a cookie's answer may come to any of them");
    assert!(told.encode().len() <= MAX_HOLDINGS);
    bench.run(16_100, &[]);
    assert!(bench.told.last().unwrap().buckets.is_empty());
}

#[test]
fn too_many_members() {
    let mut bench = Bench::new("fe0");
    bench.members(0, &[active(0)]);
    let many: Vec<_> = (0..=120).map(active).collect();
    assert_eq!(bench.machine.handle_members(bench.at(1), &many), Err(TooManyMembers(121)));
    assert_eq!(bench.machine.plan().members, ["fe0"]);
}

#[test]
fn a_plan_of_the_real_size() {
    let mut machine = Machine::new("fe1");
    let now = crate::sim::epoch();
    machine.handle_members(now, &[active(0), active(1)]).unwrap();
    let plan = machine.plan();
    assert_eq!([plan.owners.len(), plan.chains.len(), plan.successors.len()], [BUCKETS as usize; 3]);
    let heir = |(owner, next): (&proxy_common::maps::Owner, &u8)| *next == if owner.slot() == 1 { 0 } else { NO_SLOT };
    assert!(plan.owners.iter().zip(&plan.successors).all(heir));
}
