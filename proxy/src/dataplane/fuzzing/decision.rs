//! Whose packet it is, by the table of hop limits in `proxy_common::steer`'s description. No machine here has sockets.

use proxy_common::maps::{Counter, MAX_CHAIN, NO_SLOT};

use super::scene::Scene;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decision {
    Take(Counter),
    Send { to: u8, hop_limit: u8, counter: Counter },
    Drop(Counter),
}

/// `sender`: the member that sent the packet here. `is_new`: it is a SYN.
pub(super) fn decide(scene: &Scene, sender: Option<u8>, hop_limit: u8, is_new: bool) -> Decision {
    let packet = Packet { scene, sender, hop_limit, is_new };
    let owner = scene.owner.slot();
    if owner == NO_SLOT {
        Decision::Take(Counter::NoOwner)
    } else if owner != scene.own_slot {
        packet.steer(owner, packet.counter(Counter::SteeredNew, Counter::Steered), 15)
    } else if scene.alive {
        packet.own()
    } else if scene.successor == NO_SLOT {
        Decision::Take(Counter::Orphan)
    } else {
        packet.steer(scene.successor, Counter::Succeeded, 15)
    }
}

struct Packet<'a> {
    scene: &'a Scene,
    sender: Option<u8>,
    hop_limit: u8,
    is_new: bool,
}

impl Packet<'_> {
    fn counter(&self, new: Counter, other: Counter) -> Counter {
        if self.is_new { new } else { other }
    }

    /// The members disagree: nobody resets anything, nobody takes anything.
    fn silence(&self) -> Decision {
        Decision::Drop(self.counter(Counter::DisagreedNew, Counter::OrphanSettling))
    }

    /// Of another's bucket: `again` is the hop limit of the second steering.
    fn steer(&self, to: u8, counter: Counter, again: u8) -> Decision {
        match self.hop_limit {
            17.. => Decision::Send { to, hop_limit: 16, counter },
            16 => Decision::Send { to, hop_limit: again, counter },
            15 => self.silence(),
            // A question: no, for there are no sockets here. It goes back to who asked.
            asked if asked.is_multiple_of(2) => match (self.sender, asked) {
                (None, _) => self.silence(),
                (Some(_), 0) => Decision::Drop(Counter::HopLimit),
                (Some(to), _) => Decision::Send {
                    to,
                    hop_limit: asked - 1,
                    counter: self.counter(Counter::HandedOnNew, Counter::HandedOn),
                },
            },
            _answered => self.silence(),
        }
    }

    /// Of this machine's bucket.
    fn own(&self) -> Decision {
        let Scene { owner, chain, settling, .. } = *self.scene;
        if self.is_new && !(owner.chained() && chain.lately()) {
            return Decision::Take(Counter::OwnNew);
        }
        let comes_back = self.hop_limit < 15;
        if !self.is_new && !owner.chained() && !settling && !comes_back {
            return Decision::Take(Counter::Own);
        }
        let was_asked = comes_back && self.hop_limit.is_multiple_of(2);
        let members: Vec<u8> =
            (0..MAX_CHAIN).map(|i| chain.member(i)).take_while(|slot| *slot != NO_SLOT && owner.chained()).collect();
        let asked = match self.hop_limit {
            // Whoever answers has been asked, and all before it; an unknown one belongs to no chain of ours.
            0..15 if !was_asked && owner.chained() => {
                match members.iter().position(|slot| Some(*slot) == self.sender) {
                    Some(position) => position + 1,
                    None => return self.silence(),
                }
            }
            // Who asks us has not got it.
            0..15 if was_asked && members.first().copied() == self.sender && self.sender.is_some() => 1,
            _ => 0,
        };
        match &members[asked.min(members.len())..] {
            [] if self.is_new => Decision::Take(Counter::NewAgain),
            [] if settling || was_asked => Decision::Drop(Counter::OrphanSettling),
            [] => Decision::Take(Counter::Orphan),
            [last] => self.ask(*last, 2),
            // The next lower even number, 14 at the most.
            [next, ..] => self.ask(*next, (self.hop_limit.saturating_sub(1) & !1).min(14)),
        }
    }

    fn ask(&self, to: u8, hop_limit: u8) -> Decision {
        if hop_limit == 0 || hop_limit >= self.hop_limit {
            return Decision::Drop(Counter::HopLimit);
        }
        Decision::Send { to, hop_limit, counter: self.counter(Counter::HandedOnNew, Counter::HandedOn) }
    }
}
