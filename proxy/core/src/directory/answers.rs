//! The answer rules as a table, and who may write a replica.

use std::time::{Duration, Instant};

use super::persist::Stored;
use super::wire::{FrontendMessage, Refusal};
use super::*;
use crate::address::Address;

/// What a source is to a front end.
#[derive(Clone, Copy)]
enum Is {
    /// Registered, never complete.
    Named,
    /// Read back from disk, not heard since.
    Stored,
    /// Connected, filled, and confirmed so many seconds ago.
    Confirmed(u64),
    /// As `Confirmed`, but the stream is gone.
    Gone(u64),
}

fn name(text: &str) -> SourceName {
    SourceName::parse(text).unwrap()
}

fn address(text: &str) -> Address {
    Address::parse(text).unwrap()
}

fn start() -> Instant {
    #[expect(clippy::disallowed_methods, reason = "the start of virtual time, which never passes by itself")]
    Instant::now()
}

fn position(epoch: u64, seq: u64) -> Position {
    Position { epoch: Epoch(epoch), seq: Seq(seq) }
}

fn users(names: &str) -> Users {
    names.split_whitespace().map(address).collect()
}

const CONNECTION: ConnectionId = ConnectionId(1);

fn fill(directory: &mut Directory, source: &str, record: &BackendRecord, names: &str, now: Instant) {
    let source = name(source);
    let hello = Update::Hello { record: record.clone(), position: position(1, 9) };
    let snapshot = Snapshot { position: position(1, 9), users: users(names) };
    for update in [hello, Update::Snapshot(Box::new(snapshot)), Update::Heartbeat { seq: Seq(9), current: true }] {
        directory.handle_update(&source, CONNECTION, update, now).unwrap();
    }
}

fn directory(sources: &[(&str, Is, &str)], now: Instant) -> Directory {
    let mut directory = Directory::default();
    let record = BackendRecord { recipient_delimiter: Some('+'), ..BackendRecord::default() };
    for (source, is, names) in sources {
        match is {
            Is::Named => assert!(directory.register(&name(source))),
            Is::Stored => {
                let stored = Stored { record: None, position: Some(position(1, 9)), users: users(names) };
                directory.restore(&name(source), stored);
            }
            Is::Confirmed(ago) | Is::Gone(ago) => {
                fill(&mut directory, source, &record, names, now - Duration::from_secs(*ago));
            }
        }
        if matches!(is, Is::Gone(_)) {
            directory.handle_disconnect(&name(source), CONNECTION);
        }
    }
    directory
}

#[test]
fn a_false_550_is_never_given() {
    /// The sources, the address asked for, the answer.
    type Row<'a> = (&'a [(&'a str, Is, &'a str)], &'a str, &'a str);
    const UNKNOWN_USER: &str = "unknown user";
    const UNKNOWN_DOMAIN: &str = "unknown domain";
    const NOT_SURE: &str = "not sure";
    let fresh = FRESH_FOR.as_secs();
    let (now_, old) = (Is::Confirmed(0), Is::Gone(fresh + 1));
    let ab = "a@x.test b@x.test";
    #[rustfmt::skip]
    let table: &[Row<'_>] = &[
        // No source at all.
        (&[], "a@x.test", NOT_SURE),
        // One source.
        (&[("be1", now_, ab)], "a@x.test", "be1"),
        (&[("be1", now_, ab)], "A@X.Test", "be1"),
        (&[("be1", now_, ab)], "c@x.test", UNKNOWN_USER),
        (&[("be1", now_, ab)], "a@y.test", UNKNOWN_DOMAIN),
        (&[("be1", Is::Confirmed(fresh), ab)], "c@x.test", UNKNOWN_USER),
        (&[("be1", Is::Gone(fresh), ab)], "c@x.test", UNKNOWN_USER),
        // Known even if silent; unknown only from one who speaks.
        (&[("be1", old, ab)], "a@x.test", "be1"),
        (&[("be1", old, ab)], "c@x.test", NOT_SURE),
        (&[("be1", old, ab)], "a@y.test", NOT_SURE),
        (&[("be1", Is::Confirmed(fresh + 1), ab)], "c@x.test", NOT_SURE),
        (&[("be1", Is::Stored, ab)], "a@x.test", "be1"),
        (&[("be1", Is::Stored, ab)], "c@x.test", NOT_SURE),
        (&[("be1", Is::Stored, ab)], "a@y.test", NOT_SURE),
        (&[("be1", Is::Named, "")], "a@x.test", NOT_SURE),
        // A domain spread over two.
        (&[("be1", now_, "a@x.test"), ("be2", now_, "b@x.test")], "b@x.test", "be2"),
        (&[("be1", now_, "a@x.test"), ("be2", now_, "b@x.test")], "c@x.test", UNKNOWN_USER),
        (&[("be1", now_, "a@x.test"), ("be2", old, "b@x.test")], "b@x.test", "be2"),
        (&[("be1", now_, "a@x.test"), ("be2", old, "b@x.test")], "c@x.test", NOT_SURE),
        // A silent source of other domains does not matter to this one, but to domains nobody claims.
        (&[("be1", now_, "a@x.test"), ("be2", old, "b@y.test")], "c@x.test", UNKNOWN_USER),
        (&[("be1", now_, "a@x.test"), ("be2", old, "b@y.test")], "c@y.test", NOT_SURE),
        (&[("be1", now_, "a@x.test"), ("be2", old, "b@y.test")], "c@z.test", NOT_SURE),
        // Nobody knows what a source that was never complete has.
        (&[("be1", now_, "a@x.test"), ("be2", Is::Named, "")], "a@x.test", "be1"),
        (&[("be1", now_, "a@x.test"), ("be2", Is::Named, "")], "c@x.test", NOT_SURE),
        (&[("be1", now_, "a@x.test"), ("be2", Is::Named, "")], "c@z.test", NOT_SURE),
        // Sub-addresses: the exact address first, the owner's delimiter only.
        (&[("be1", now_, ab)], "a+tag@x.test", "be1"),
        (&[("be1", now_, ab)], "A+Tag+x@x.test", "be1"),
        (&[("be1", now_, ab)], "c+tag@x.test", UNKNOWN_USER),
        (&[("be1", now_, ab)], "a-tag@x.test", UNKNOWN_USER),
        (&[("be1", now_, ab)], "+tag@x.test", UNKNOWN_USER),
        (&[("be1", Is::Stored, ab)], "a+tag@x.test", NOT_SURE),
        (&[("be1", now_, "a@x.test"), ("be2", now_, "a+tag@x.test")], "a+tag@x.test", "be2"),
        // A conflict: the smallest name wins.
        (&[("be2", now_, ab), ("be1", now_, ab), ("be10", now_, ab)], "a@x.test", "be1"),
        (&[("be2", now_, ab), ("be10", old, ab)], "a@x.test", "be10"),
        (&[("be2", now_, ab), ("be1", now_, "b@x.test")], "a@x.test", "be2"),
    ];
    for (row, (sources, who, expected)) in table.iter().enumerate() {
        let now = start() + Duration::from_secs(1_000);
        let answer = match directory(sources, now).lookup(&address(who), now) {
            Answer::Known(route) => route.backend.to_string(),
            Answer::UnknownUser => UNKNOWN_USER.into(),
            Answer::UnknownDomain => UNKNOWN_DOMAIN.into(),
            Answer::NotSure => NOT_SURE.into(),
        };
        assert_eq!(answer, *expected, "row {row}: {who}");
    }
}

#[test]
fn a_route_is_spelled_as_the_back_end_spells_it() {
    let now = start();
    let directory = directory(&[("be1", Is::Confirmed(0), "Bob@x.test \"a,b\"@x.test")], now);
    for (asked, told) in [
        ("bob@x.test", "Bob@x.test"),
        ("BOB+List@X.test", "Bob+List@x.test"),
        ("\"A,B\"@x.test", "\"a,b\"@x.test"),
        ("\"a,b+c d\"@x.test", "\"a,b+c d\"@x.test"),
    ] {
        let route = Route { backend: name("be1"), mailbox: address(told) };
        assert_eq!(directory.lookup(&address(asked), now), Answer::Known(route), "{asked}");
    }
    assert_eq!(directory.backend(&name("be1")).unwrap().recipient_delimiter, Some('+'));
    assert_eq!(directory.backend(&name("be2")), None);
}

#[test]
fn nothing_is_unknown_until_the_front_end_has_settled() {
    let now = start();
    let mut directory = directory(&[("be1", Is::Confirmed(0), "a@x.test")], now);
    directory.hold_unknown_until(now + Duration::from_secs(2));
    for (after, user, domain) in
        [(1, Answer::NotSure, Answer::NotSure), (2, Answer::UnknownUser, Answer::UnknownDomain)]
    {
        let now = now + Duration::from_secs(after);
        assert_eq!(directory.lookup(&address("c@x.test"), now), user);
        assert_eq!(directory.lookup(&address("c@y.test"), now), domain);
    }
}

#[test]
fn a_source_that_cannot_read_confirms_nothing() {
    let now = start();
    let mut directory = directory(&[("be1", Is::Confirmed(0), "a@x.test")], now);
    let later = now + FRESH_FOR + Duration::from_secs(1);
    let mut beat = |current, at| {
        let update = Update::Heartbeat { seq: Seq(9), current };
        assert_eq!(directory.handle_update(&name("be1"), CONNECTION, update, at), Ok(None));
        directory.lookup(&address("c@x.test"), at)
    };
    assert_eq!(beat(false, later), Answer::NotSure);
    assert_eq!(beat(true, later), Answer::UnknownUser);
}

#[test]
fn a_source_that_comes_back_elsewhere_in_its_log_is_not_sure_until_it_has_told() {
    let now = start();
    let mut directory = directory(&[("be1", Is::Gone(0), "a@x.test")], now);
    let hello = |seq| Update::Hello { record: BackendRecord::default(), position: position(1, seq) };
    let reply = directory.handle_update(&name("be1"), ConnectionId(2), hello(9), now);
    assert_eq!(reply, Ok(Some(FrontendMessage::Have(position(1, 9)))));
    assert_eq!(directory.lookup(&address("c@x.test"), now), Answer::UnknownUser);
    let reply = directory.handle_update(&name("be1"), ConnectionId(3), hello(10), now);
    assert_eq!(reply, Ok(Some(FrontendMessage::Have(position(1, 9)))));
    assert_eq!(directory.lookup(&address("c@x.test"), now), Answer::NotSure);
    // It cannot be behind its own copy: whatever that is, it is not the same log.
    let reply = directory.handle_update(&name("be1"), ConnectionId(4), hello(8), now);
    assert_eq!(reply, Ok(Some(FrontendMessage::Nothing)));
}

#[test]
fn the_latest_life_of_a_source_writes() {
    let now = start();
    let mut directory = Directory::default();
    let be1 = name("be1");
    let hello = |epoch| Update::Hello { record: BackendRecord::default(), position: position(epoch, 0) };
    let beat = || Update::Heartbeat { seq: Seq(0), current: true };
    let mut say = |connection, update| directory.handle_update(&be1, ConnectionId(connection), update, now);
    assert!(say(1, hello(5)).is_ok());
    assert_eq!(say(2, hello(4)), Err(Refusal::OldEpoch));
    assert!(say(3, hello(5)).is_ok());
    assert_eq!(say(1, beat()), Err(Refusal::Superseded));
    assert!(say(4, hello(6)).is_ok());
    assert_eq!(say(3, beat()), Err(Refusal::Superseded));
    let stolen = Snapshot { position: position(5, 1), users: Users::default() };
    assert_eq!(say(4, Update::Snapshot(Box::new(stolen))), Err(Refusal::Protocol));
    // An old stream that ends takes nothing from its successor.
    directory.handle_disconnect(&be1, ConnectionId(3));
    assert_eq!(directory.handle_update(&be1, ConnectionId(5), hello(4), now), Err(Refusal::OldEpoch));
    // But once the later life is gone an earlier epoch is taken: the clock was set back.
    directory.handle_disconnect(&be1, ConnectionId(4));
    assert_eq!(directory.handle_update(&be1, ConnectionId(6), hello(4), now), Ok(Some(FrontendMessage::Nothing)));
}

#[test]
fn gossip_registers_and_makes_doubt() {
    let now = start();
    let mut directory = directory(&[("be1", Is::Gone(0), "a@x.test")], now);
    let digest = |source, position| Digest { source: name(source), position, hash: RootHash::default() };
    assert!(directory.observe(&digest("be1", Some(position(1, 9)))));
    assert_eq!(directory.lookup(&address("c@x.test"), now), Answer::UnknownUser);
    assert!(directory.observe(&digest("be1", Some(position(1, 10)))));
    assert_eq!(directory.lookup(&address("c@x.test"), now), Answer::NotSure);
    assert!(directory.observe(&digest("be2", None)));
    let sources: Vec<_> = directory.digests().into_iter().map(|d| (d.source, d.position)).collect();
    assert_eq!(sources, [(name("be1"), Some(position(1, 9))), (name("be2"), None)]);
}

#[test]
fn conflicts_come_and_go() {
    let now = start();
    let both = "a@x.test b@x.test";
    let mut directory =
        directory(&[("be1", Is::Confirmed(0), both), ("be2", Is::Confirmed(0), "A@x.test c@x.test")], now);
    let conflict = Conflict { key: "a@x.test".into(), winner: name("be1"), losers: vec![name("be2")] };
    assert_eq!(directory.conflicts(9), [conflict]);
    assert_eq!(directory.conflicts(0), []);
    directory.forget(&name("be1"));
    assert_eq!((directory.conflict_count(), directory.counts(now).len()), (0, 1));
    assert_eq!(directory.lookup(&address("b@x.test"), now), Answer::UnknownUser);
}

#[test]
fn the_number_of_sources_is_limited() {
    let mut directory = Directory::default();
    for n in 0..MAX_SOURCES {
        assert!(directory.register(&name(&format!("be{n}"))));
    }
    assert!(!directory.register(&name("more")));
    let hello = Update::Hello { record: BackendRecord::default(), position: position(1, 0) };
    let reply = directory.handle_update(&name("more"), CONNECTION, hello, start());
    assert_eq!(reply, Err(Refusal::TooManySources));
}

/// Not a benchmark: it fails if a lookup stops being a matter of microseconds.
#[test]
fn a_lookup_is_cheap() {
    let now = start();
    let mut directory = Directory::default();
    for source in 0..20 {
        let names: Vec<String> = (0..5_000).map(|n| format!("s{source}u{n}@d{}.test", n % 50)).collect();
        fill(&mut directory, &format!("be{source}"), &BackendRecord::default(), &names.join(" "), now);
    }
    let (known, unknown) = (address("s19u7@d7.test"), address("nobody@d7.test"));
    let begin = start();
    for _ in 0..2_000 {
        assert!(matches!(directory.lookup(&known, now), Answer::Known(_)));
        assert_eq!(directory.lookup(&unknown, now), Answer::UnknownUser);
    }
    let each = begin.elapsed() / 4_000;
    println!("{each:?} a lookup, 20 sources in one domain");
    assert!(each < Duration::from_micros(500), "{each:?}");
}
