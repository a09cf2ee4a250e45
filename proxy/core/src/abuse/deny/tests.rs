use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use super::super::record::Reason;
use super::*;

const NOW: u64 = 1_700_000_000_000;

fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

fn origin(name: &str) -> Origin {
    Origin::parse(name).unwrap()
}

fn denial(until: Option<u64>) -> Denial {
    Denial { until, reason: Reason::parse("test").unwrap() }
}

fn changes(list: &mut DenyList) -> Vec<Change> {
    std::iter::from_fn(|| list.poll_change()).collect()
}

/// Everything that two lists must have in common.
fn state(list: &DenyList) -> (Vec<Record>, u64, usize, Option<u64>) {
    (list.records(None).cloned().collect(), list.sum(), list.len(), list.poll_timeout())
}

fn v4(n: usize) -> Prefix {
    let n = u32::try_from(n).unwrap();
    Prefix::host(std::net::Ipv4Addr::from_bits(0x0100_0000 + n).into())
}

#[test]
fn an_entry_comes_ends_and_is_forgotten() {
    let mut list = DenyList::default();
    let (short, long) = (prefix("192.0.2.0/24"), prefix("192.0.2.7"));
    list.deny(NOW, short, denial(Some(NOW + 1_000)), &origin("fe1")).unwrap();
    list.deny(NOW, long, denial(None), &origin("fe1")).unwrap();
    assert_eq!(changes(&mut list), [Change::Deny(short), Change::Deny(long)]);
    assert_eq!(list.covering("192.0.2.7".parse().unwrap()).unwrap().prefix, long, "the longest");
    assert_eq!(list.covering("192.0.2.8".parse().unwrap()).unwrap().prefix, short);
    assert!(list.covering("192.0.3.1".parse().unwrap()).is_none());

    assert_eq!(list.poll_timeout(), Some(NOW + 1_000));
    list.handle_timeout(NOW + 999);
    assert_eq!(changes(&mut list), []);
    list.handle_timeout(NOW + 1_000);
    assert_eq!(changes(&mut list), [Change::Allow(short)]);
    assert_eq!((list.len(), list.records(None).count()), (1, 2));

    assert_eq!(list.poll_timeout(), Some(NOW + 1_000 + TOMBSTONE_LIFETIME_MS));
    list.handle_timeout(NOW + 1_000 + TOMBSTONE_LIFETIME_MS);
    assert_eq!((list.len(), list.records(None).count(), list.poll_timeout()), (1, 1, None));
}

#[test]
fn what_is_said_again_replaces_what_was_said() {
    let mut list = DenyList::default();
    let p = prefix("2001:db8::/32");
    assert_eq!(list.allow(NOW, p, &origin("fe1")), Err(DenyError::NotDenied));
    assert_eq!(list.deny(NOW, p, denial(Some(NOW)), &origin("fe1")), Err(DenyError::Over));
    list.deny(NOW, p, denial(None), &origin("fe1")).unwrap();
    // This front end's clock is behind.
    list.deny(NOW - 60_000, p, denial(Some(NOW + 5)), &origin("fe2")).unwrap();
    assert_eq!(changes(&mut list), [Change::Deny(p)], "it was denied already");
    let entry = list.entry(p).unwrap();
    assert_eq!((entry.changed, entry.set_by.as_str()), (NOW + 1, "fe2"));
    list.allow(NOW - 60_000, p, &origin("fe1")).unwrap();
    assert_eq!(changes(&mut list), [Change::Allow(p)]);
    assert!(list.is_empty());
    assert_eq!(list.poll_timeout(), Some(NOW + 2 + TOMBSTONE_LIFETIME_MS), "nothing of the former words is left");
}

fn random_records(rng: &mut StdRng) -> Vec<Record> {
    let record = |_| {
        let word = match rng.random_range(0..4) {
            0 => Word::Removed,
            1 => Word::Denied(denial(None)),
            _ => Word::Denied(denial(Some(NOW + rng.random_range(0..20) - 10))),
        };
        Record {
            prefix: v4(rng.random_range(0..12)),
            changed: NOW + rng.random_range(0..4),
            set_by: origin(["fe1", "fe2"][rng.random_range(0..2)]),
            word,
        }
    };
    (0..40).map(record).collect()
}

#[test]
fn merging_is_commutative_associative_and_idempotent() {
    for seed in 0..300 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut records = random_records(&mut rng);
        let mut expected: Option<(Vec<Record>, u64, usize, Option<u64>)> = None;
        for round in 0..4 {
            records.shuffle(&mut rng);
            // In parts by way of other lists, some twice; time passes between them.
            let (mut list, cut) = (DenyList::default(), rng.random_range(0..records.len()));
            let mut other = DenyList::default();
            records[..cut].iter().for_each(|r| {
                other.merge(NOW, r.clone());
            });
            records[cut..].iter().for_each(|r| {
                list.merge(NOW, r.clone());
            });
            list.handle_timeout(NOW + rng.random_range(0..3));
            other.records(None).for_each(|r| {
                list.merge(NOW + 1, r.clone());
            });
            list.handle_timeout(NOW + 5);
            let now = state(&list);
            for record in &records {
                assert_eq!(list.merge(NOW + 5, record.clone()), Merged::Known, "seed {seed}");
            }
            assert_eq!(state(&list), now, "seed {seed}: again is nothing new");
            assert_eq!(expected.get_or_insert_with(|| now.clone()), &now, "seed {seed}, round {round}");
        }
    }
}

#[test]
fn the_filter_is_told_what_the_list_says() {
    for seed in 0..50 {
        let mut rng = StdRng::seed_from_u64(seed);
        let (mut list, mut told) = (DenyList::default(), BTreeSet::new());
        for (step, record) in random_records(&mut rng).into_iter().enumerate() {
            list.merge(NOW, record);
            list.handle_timeout(NOW + step as u64 / 4);
            for change in changes(&mut list) {
                let real = match change {
                    Change::Deny(prefix) => told.insert(prefix),
                    Change::Allow(prefix) => told.remove(&prefix),
                };
                assert!(real, "seed {seed}: {change:?} is no news");
            }
            let listed: BTreeSet<Prefix> = list.entries(None).map(|r| r.prefix).collect();
            assert_eq!((told.len(), &told), (list.len(), &listed), "seed {seed}");
        }
    }
}

#[test]
fn what_was_forgotten_does_not_come_back() {
    let (mut here, mut there) = (DenyList::default(), DenyList::default());
    let p = v4(1);
    here.deny(NOW, p, denial(None), &origin("fe1")).unwrap();
    here.records(None).for_each(|r| {
        there.merge(NOW, r.clone());
    });
    here.allow(NOW + 1, p, &origin("fe1")).unwrap();
    here.records(None).for_each(|r| {
        there.merge(NOW, r.clone());
    });
    let later = NOW + 1 + TOMBSTONE_LIFETIME_MS;
    here.handle_timeout(later);
    assert_eq!(here.records(None).count(), 0);
    // The other front end has not forgotten yet.
    there.records(None).for_each(|r| assert_eq!(here.merge(later, r.clone()), Merged::Known));
    assert_eq!(here.records(None).count(), 0);
}

#[test]
fn no_entry_is_given_up_for_another() {
    let mut list = DenyList::default();
    for n in 0..MAX_PER_ORIGIN {
        list.deny(NOW, v4(n), denial(Some(NOW + 9)), &origin("fe1")).unwrap();
    }
    assert_eq!(list.deny(NOW, v4(MAX_PER_ORIGIN), denial(None), &origin("fe1")), Err(DenyError::OriginFull));
    list.deny(NOW, v4(0), denial(None), &origin("fe1")).unwrap();
    for n in MAX_PER_ORIGIN..MAX_ENTRIES {
        list.deny(NOW, v4(n), denial(None), &origin("fe2")).unwrap();
    }
    let more = v4(MAX_ENTRIES);
    assert_eq!(list.deny(NOW, more, denial(None), &origin("fe3")), Err(DenyError::Full));
    assert!(list.entry(more).is_none());
    list.allow(NOW, v4(1), &origin("fe3")).unwrap();
    list.deny(NOW, more, denial(None), &origin("fe3")).unwrap();
    assert_eq!(list.len(), MAX_ENTRIES);

    list.handle_timeout(NOW + 9);
    assert_eq!(list.len(), MAX_ENTRIES - (MAX_PER_ORIGIN - 2));
    assert_eq!(list.records(None).count() - list.len(), MAX_TOMBSTONES, "words of the past are bounded");
}

#[test]
fn own_words_are_remembered_for_those_who_ask() {
    let mut list = DenyList::default();
    let since = |list: &DenyList, cursor| list.delta_since(cursor).map(|(_, r)| r.prefix).collect::<Vec<_>>();
    list.deny(NOW, v4(1), denial(None), &origin("fe1")).unwrap();
    let cursor = list.cursor();
    list.merge(NOW, Record { prefix: v4(9), changed: NOW, set_by: origin("fe2"), word: Word::Removed });
    assert_eq!(since(&list, cursor), [], "others' words are theirs to tell");
    list.deny(NOW, v4(2), denial(None), &origin("fe1")).unwrap();
    list.allow(NOW, v4(1), &origin("fe1")).unwrap();
    assert_eq!(since(&list, cursor), [v4(2), v4(1)]);
    assert_eq!(list.delta_since(cursor).last().unwrap().0, list.cursor());
    for n in 0..MAX_RECENT {
        list.deny(NOW, v4(10 + n), denial(None), &origin("fe1")).unwrap();
    }
    let all = since(&list, 0);
    assert_eq!((all.len(), all[0]), (MAX_RECENT, v4(10)), "the oldest are found by comparing");
    assert_eq!(since(&list, list.cursor() - 1), [v4(9 + MAX_RECENT)]);
}

#[test]
fn an_impossible_clock_is_told() {
    let mut list = DenyList::default();
    list.merge(NOW, Record { prefix: v4(1), changed: MAX_TIME_MS, set_by: origin("fe2"), word: Word::Removed });
    assert_eq!(list.deny(NOW, v4(1), denial(None), &origin("fe1")), Err(DenyError::Clock));
}
