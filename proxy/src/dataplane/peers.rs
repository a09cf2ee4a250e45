//! Who the other members are, by what their packets come from.

use std::collections::{BTreeMap, BTreeSet};

use proxy_common::maps::{
    AddressKey, HALVES, MAX_INTERFACES, MEMBER_BY_V4, MEMBER_BY_V6, MEMBER_PRESENT, Member, NO_SLOT, PeerSlots,
    mac_key, mapped_v4,
};

/// What `PEERS` is to hold.
#[derive(Debug, Default)]
pub(super) struct Peers {
    /// Slots of the other members in either half, by what they are sent to.
    halves: [BTreeMap<AddressKey, u8>; HALVES as usize],
    /// Further MAC addresses that they send from, by the first one.
    more_macs: BTreeMap<AddressKey, Vec<AddressKey>>,
}

impl Peers {
    /// Sets the members of a half, by slot. A slot of the other half stays known until that one is written.
    pub(super) fn set_half(&mut self, half: usize, own_slot: u8, members: &[Member]) {
        let others = (0_u8..).zip(members).filter(|(slot, _)| *slot != own_slot);
        self.halves[half] = others.flat_map(|(slot, member)| key_of(member).map(move |key| (key, slot))).collect();
    }

    /// Sets the further MAC addresses of members; those beyond what the program has room for are left out. True if that
    /// changes anything.
    pub(super) fn set_more_macs(&mut self, macs: impl IntoIterator<Item = ([u8; 6], Vec<[u8; 6]>)>) -> bool {
        let keys = |more: Vec<[u8; 6]>| more.into_iter().take(MAX_INTERFACES as usize - 1).map(mac_key).collect();
        let known = macs.into_iter().filter(|(_, more)| !more.is_empty());
        let known = known.map(|(first, more)| (mac_key(first), keys(more))).collect();
        std::mem::replace(&mut self.more_macs, known) != self.more_macs
    }

    /// Keys and values of `PEERS`.
    pub(super) fn entries(&self) -> Vec<(AddressKey, u32)> {
        let halves = [0, 1].map(|half| self.all_keys(half));
        let keys: BTreeSet<AddressKey> = halves.iter().flat_map(|half| half.keys().copied()).collect();
        let slot = |half: usize, key: &AddressKey| halves[half].get(key).copied().unwrap_or(NO_SLOT);
        keys.iter().map(|key| (*key, PeerSlots::new([slot(0, key), slot(1, key)]).0)).collect()
    }

    /// With the further addresses, of which none hides another member's first one.
    fn all_keys(&self, half: usize) -> BTreeMap<AddressKey, u8> {
        let mut keys = self.halves[half].clone();
        for (first, more) in &self.more_macs {
            if let Some(slot) = self.halves[half].get(first) {
                for key in more {
                    keys.entry(*key).or_insert(*slot);
                }
            }
        }
        keys
    }
}

/// What a member's packets come from: its MAC address, or its outer address.
fn key_of(member: &Member) -> Option<AddressKey> {
    let [a, b, c, d, ..] = member.outer_destination;
    match member.flags & (MEMBER_PRESENT | MEMBER_BY_V4 | MEMBER_BY_V6) {
        0 => None,
        flags if flags & MEMBER_BY_V4 != 0 => Some(mapped_v4([a, b, c, d])),
        flags if flags & MEMBER_BY_V6 != 0 => Some(member.outer_destination),
        _ => Some(mac_key(member.mac)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(last: u8) -> Member {
        Member { mac: mac(last), flags: MEMBER_PRESENT, ..Member::default() }
    }

    const fn mac(last: u8) -> [u8; 6] {
        [2, 0, 0, 0, 0, last]
    }

    fn slots(peers: &Peers, last: u8) -> Option<[u8; 2]> {
        let found = peers.entries().into_iter().find(|(key, _)| *key == mac_key(mac(last)));
        found.map(|(_, slots)| [0, 1].map(|half| PeerSlots(slots).in_half(half)))
    }

    #[test]
    fn members_are_known_by_each_of_their_macs() {
        let mut peers = Peers::default();
        peers.set_half(0, 0, &[member(1), member(2), member(3)]);
        assert!(peers.set_more_macs([(mac(2), vec![mac(12), mac(3)]), (mac(9), vec![mac(19)]), (mac(1), vec![])]));
        assert_eq!(slots(&peers, 1), None, "that is this machine");
        assert_eq!([2, 12, 3].map(|n| slots(&peers, n)), [Some([1, NO_SLOT]), Some([1, NO_SLOT]), Some([2, NO_SLOT])]);
        assert_eq!(slots(&peers, 19), None, "no member");
        peers.set_half(1, 1, &[member(2), member(1)]);
        assert_eq!(slots(&peers, 12), Some([1, 0]), "its slot is another one in the new half");
        assert!(!peers.set_more_macs([(mac(9), vec![mac(19)]), (mac(2), vec![mac(12), mac(3)])]), "nothing new");
        assert!(peers.set_more_macs([]));
        assert_eq!(slots(&peers, 12), None);
    }

    #[test]
    fn nobody_can_fill_the_map() {
        let members: Vec<Member> = (0..120).map(member).collect();
        let mut peers = Peers::default();
        peers.set_half(0, 119, &members);
        let more = |n: u8| (0..200).map(|i| [2, 1, 0, 0, n, i]).collect();
        peers.set_more_macs((0..120).map(|n| (mac(n), more(n))));
        assert_eq!(peers.entries().len(), 119 * MAX_INTERFACES as usize);
    }
}
