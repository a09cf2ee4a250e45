//! What is in the maps while an input's frames arrive.

use proxy_common::maps::{COOKIES_OUT, Chain, DENY_ANY, MAX_CHAIN, NO_SLOT, Owner, SYN_COOKIES};

use super::{input::Input, pool};

/// Every bucket has the same owner, chain and successor, and it is enough to write the one that a frame hits.
#[derive(Debug, Clone)]
pub(super) struct Scene {
    pub(super) half: u8,
    /// A table is in force.
    pub(super) table: bool,
    pub(super) settling: bool,
    /// The daemon lives.
    pub(super) alive: bool,
    /// Of `Control`.
    pub(super) flags: u32,
    pub(super) knows_gateway: bool,
    /// `NO_SLOT`: this machine is no member.
    pub(super) own_slot: u8,
    pub(super) owner: Owner,
    pub(super) successor: u8,
    pub(super) chain: Chain,
}

impl Scene {
    /// A sound one: nobody is named who is not there, and this machine is not named where others are to be.
    pub(super) fn of(input: &mut Input<'_>) -> Self {
        let bits = input.octet();
        let has = |bit: u8| bits >> bit & 1 != 0;
        let half = bits & 1;
        let own = pool::own_slot(half);
        let members = u8::try_from(pool::members(half).len()).unwrap_or(NO_SLOT);
        let other = |octet: u8| if octet % members == own { (own + 1) % members } else { octet % members };
        let is_member = !input.one_in(16);
        let owner = match input.octet() {
            u8::MAX => NO_SLOT,
            octet if octet % 2 == 0 && is_member => own,
            octet => other(octet / 2),
        };
        let chain: Vec<u8> = input.take(chain_length(bits)).iter().map(|octet| other(*octet)).collect();
        let successor = input.octet();
        let flags = [(2, SYN_COOKIES), (3, COOKIES_OUT), (4, DENY_ANY)];
        Self {
            half,
            table: !input.one_in(64),
            settling: has(1),
            alive: !input.one_in(8),
            flags: flags.into_iter().filter(|(bit, _)| has(*bit)).map(|(_, flag)| flag).sum(),
            knows_gateway: !input.one_in(4),
            own_slot: if is_member { own } else { NO_SLOT },
            owner: Owner::new(owner, owner == own && !chain.is_empty()),
            successor: if successor % 8 == 7 { NO_SLOT } else { other(successor) },
            chain: Chain::new(chain, input.one_in(2)),
        }
    }

    pub(super) fn gateway(&self) -> Option<[u8; 6]> {
        self.knows_gateway.then_some(pool::ROUTER_MAC)
    }
}

/// Members of the chain, by the scene's first octet.
fn chain_length(bits: u8) -> usize {
    const LENGTHS: [usize; 8] = [0, 0, 0, 1, 2, 3, 4, MAX_CHAIN];
    LENGTHS[usize::from(bits >> 5)]
}
