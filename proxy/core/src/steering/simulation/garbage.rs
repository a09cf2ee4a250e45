//! Packets between members whose tables are nonsense.

use proxy_common::maps::{Chain, NO_SLOT, Owner};
use proxy_common::steer::{Decision, Facts, HOPS, Here, Kind, Socket, decide};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

/// What a member believes; nothing of it need be true.
#[derive(Debug, Clone, Copy)]
struct Nonsense {
    here: Here,
    owner: Owner,
    chain: Chain,
    successor: u8,
    socket: Socket,
    cookie: bool,
    alive: bool,
    sender: u8,
}

impl Facts for Nonsense {
    fn owner(&self) -> Owner {
        self.owner
    }
    fn chain(&self) -> Chain {
        self.chain
    }
    fn successor(&self) -> u8 {
        self.successor
    }
    fn socket(&self) -> Socket {
        self.socket
    }
    fn answers_cookie(&self) -> bool {
        self.cookie
    }
    fn alive(&self) -> bool {
        self.alive
    }
    fn sender(&self) -> u8 {
        self.sender
    }
}

const MEMBERS: u8 = 6;

fn slot(rng: &mut SmallRng) -> u8 {
    if rng.random_bool(0.1) { NO_SLOT } else { rng.random_range(0..MEMBERS) }
}

fn nonsense(rng: &mut SmallRng, own: u8) -> Nonsense {
    let length = rng.random_range(0..8);
    let chain = Chain::new((0..length).map(|_| slot(rng)).collect::<Vec<_>>(), rng.random());
    Nonsense {
        here: Here { slot: if rng.random_bool(0.9) { own } else { slot(rng) }, settling: rng.random() },
        owner: Owner::new(slot(rng), rng.random()),
        chain,
        successor: slot(rng),
        // Packets that nobody takes travel furthest.
        socket: if rng.random_bool(0.05) { Socket::Connection } else { Socket::None },
        cookie: rng.random_bool(0.02),
        alive: rng.random_bool(0.9),
        sender: NO_SLOT,
    }
}

/// Members that a packet visits before somebody takes or drops it.
fn visits(rng: &mut SmallRng, believe: impl Fn(&mut SmallRng, u8) -> Nonsense, kind: Kind, hop_limit: u8) -> u32 {
    let (mut from, mut at, mut hop_limit) = (NO_SLOT, rng.random_range(0..MEMBERS), hop_limit);
    for visit in 1.. {
        // A table may change, and a sender be unknown, at any time.
        let sender = if rng.random_bool(0.9) { from } else { slot(rng) };
        let facts = Nonsense { sender, ..believe(rng, at) };
        let Decision::Forward { slot, hop_limit: lower, .. } = decide(&facts, facts.here, hop_limit, kind) else {
            return visit;
        };
        assert!(lower > 0 && lower <= HOPS, "sent on with {lower}");
        assert!(lower < hop_limit, "{hop_limit} became {lower}");
        assert!(slot != NO_SLOT, "sent to nobody");
        (from, at, hop_limit) = (at, slot, lower);
    }
    unreachable!("visits have no end")
}

#[test]
fn no_packet_goes_round_for_ever_whatever_the_tables_say() {
    let mut longest = 0;
    for seed in 0..400 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let pool: Vec<_> = (0..MEMBERS).map(|own| nonsense(&mut rng, own)).collect();
        for hop_limit in 0..=u8::MAX {
            for kind in [Kind::New, Kind::Other] {
                let fixed = visits(&mut rng, |_, at| pool[usize::from(at)], kind, hop_limit);
                let changing = visits(&mut rng, nonsense, kind, hop_limit);
                longest = longest.max(fixed).max(changing);
            }
        }
    }
    println!("longest way: {longest} members");
    assert!(longest <= u32::from(HOPS) + 1, "{longest} members visited");
}
