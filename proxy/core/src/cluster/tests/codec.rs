//! Nonsense from peers.

use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

use super::*;
use crate::sim::epoch;

fn node(name: &str) -> Node {
    Node::new(NodeName::parse(name).unwrap(), 1, "10.0.0.9:7400".parse().unwrap(), [0; 6], 100)
}

/// Every kind of datagram that two machines exchange while they meet.
fn datagrams() -> Vec<Vec<u8>> {
    let mut pool = Pool::new(3, Timing::default(), 5);
    let mut seen = Vec::new();
    pool.run(Duration::from_millis(400));
    pool.with(0, |machine, now| {
        machine.set_digest(now, digest("be1", 1)).unwrap();
        machine.handle_announce(now, "10.0.0.77:1".parse().unwrap());
        machine.set_state(now, NodeState::Draining);
        while let Some(transmit) = machine.poll_transmit() {
            seen.push(transmit.payload);
        }
    });
    assert!(seen.len() >= 4);
    seen
}

#[test]
fn cut_anywhere_a_datagram_is_refused_or_harmless() {
    let now = epoch();
    let from = "10.0.0.9:7400".parse().unwrap();
    for datagram in datagrams() {
        for end in 0..datagram.len() {
            let mut machine = Machine::new(node("fe1"), Timing::default(), 1);
            let verdict = machine.handle_datagram(now, from, &datagram[..end]);
            assert!(end > 0 || verdict == Err(MalformedDatagram::Empty));
            assert!(Machine::sender(&datagram[..end]).is_ok_and(|s| s.is_some()) || verdict.is_err() || end > 0);
        }
    }
}

#[test]
fn flipped_bits_and_noise_do_not_panic() {
    let now = epoch();
    let from = "10.0.0.9:7400".parse().unwrap();
    let mut rng = SmallRng::seed_from_u64(3);
    let mut machine = Machine::new(node("fe1"), Timing::default(), 1);
    for datagram in datagrams() {
        for _ in 0..2000 {
            let mut bad = datagram.clone();
            for _ in 0..rng.random_range(1..4) {
                let at = rng.random_range(0..bad.len());
                bad[at] = rng.random();
            }
            drop(machine.handle_datagram(now, from, &bad));
            machine.handle_timeout(now);
            while machine.poll_transmit().is_some() {}
            while machine.poll_event().is_some() {}
        }
    }
    for _ in 0..2000 {
        let noise: Vec<u8> =
            (0..rng.random_range(0..200)).map(|i| if i == 0 { rng.random_range(0..3) } else { rng.random() }).collect();
        drop(machine.handle_datagram(now, from, &noise));
    }
}

#[test]
fn limits_and_kinds_are_checked() {
    let now = epoch();
    let from = "10.0.0.9:7400".parse().unwrap();
    let mut machine = Machine::new(node("fe1"), Timing::default(), 1);
    assert_eq!(machine.handle_datagram(now, from, &[]), Err(MalformedDatagram::Empty));
    assert_eq!(machine.handle_datagram(now, from, &[9]), Err(MalformedDatagram::UnknownKind(9)));
    assert_eq!(machine.handle_datagram(now, from, &[0; MAX_DATAGRAM + 1]), Err(MalformedDatagram::TooLong));
}

#[test]
fn the_claimed_sender_can_be_read() {
    let mut machine = Machine::new(node("fe1"), Timing::default(), 1);
    machine.handle_announce(epoch(), "10.0.0.1:7400".parse().unwrap());
    let hello = machine.poll_transmit().unwrap();
    assert_eq!(Machine::sender(&hello.payload), Ok(Some(NodeName::parse("fe1").unwrap())));
}
