//! Which member announces a VIP: rendezvous hashing over the live members, so that all who see the
//! same members agree without an election, and a change of members moves only what it must.

use std::net::IpAddr;

use super::node::{Node, NodeName, NodeState};

/// The owner of `vip`: an active member, else a draining one, else one that joins; but whoever is not on the VIPs'
/// segment, where nobody would hear its answers, only if nobody is. `None` only without members. The weights do not
/// count: an owner answers ARP, it does not get the connections.
pub fn owner<'a>(vip: IpAddr, members: impl IntoIterator<Item = &'a Node>) -> Option<&'a NodeName> {
    let rank = |node: &Node| (node.on_vip_segment, fitness(node.state), score(vip, &node.name));
    // The name settles equal scores, so that the order of the members never does.
    members.into_iter().max_by(|a, b| rank(a).cmp(&rank(b)).then_with(|| a.name.cmp(&b.name))).map(|node| &node.name)
}

fn fitness(state: NodeState) -> u8 {
    match state {
        NodeState::Active => 2,
        NodeState::Draining => 1,
        NodeState::Joining => 0,
    }
}

/// Must never change: members of different versions have to agree. FNV-1a, then the finish of
/// SplitMix64, since FNV alone leaves the high bits of short inputs alike.
fn score(vip: IpAddr, name: &NodeName) -> u64 {
    const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;
    let octets: Vec<u8> = match vip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let input = octets.iter().chain(name.as_str().as_bytes());
    let fnv = input.fold(FNV_OFFSET, |hash, &b| (hash ^ u64::from(b)).wrapping_mul(FNV_PRIME));
    let mut z = fnv.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::Ipv4Addr;

    use super::*;

    fn pool(size: u8) -> Vec<Node> {
        let node = |i| {
            let name = NodeName::parse(&format!("fe{i}")).unwrap();
            let node = Node::new(name, 1, (Ipv4Addr::new(10, 0, 0, i), 7400).into(), [0; 6], 100);
            Node { state: NodeState::Active, ..node }
        };
        (1..=size).map(node).collect()
    }

    fn vips() -> impl Iterator<Item = IpAddr> {
        (0..=3u8).flat_map(|a| (0..=255u8).map(move |b| IpAddr::from([10, 77, a, b])))
    }

    #[test]
    fn nobody_owns_without_members() {
        assert_eq!(owner(IpAddr::from([10, 0, 0, 1]), []), None);
    }

    #[test]
    fn vips_spread_evenly() {
        let pool = pool(5);
        let mut owned = BTreeMap::<&NodeName, usize>::new();
        for vip in vips() {
            *owned.entry(owner(vip, &pool).unwrap()).or_default() += 1;
        }
        assert_eq!(owned.len(), 5);
        assert!(owned.values().all(|n| (150..=260).contains(n)), "{owned:?}");
    }

    #[test]
    fn a_death_moves_only_what_the_dead_one_had() {
        let all = pool(5);
        let rest: Vec<Node> = all.iter().filter(|n| n.name.as_str() != "fe3").cloned().collect();
        for vip in vips() {
            let before = owner(vip, &all).unwrap();
            if before.as_str() != "fe3" {
                assert_eq!(owner(vip, &rest), Some(before));
            }
        }
    }

    #[test]
    fn the_order_of_the_members_does_not_matter() {
        let all = pool(5);
        for vip in vips() {
            assert_eq!(owner(vip, &all), owner(vip, all.iter().rev()));
        }
    }

    #[test]
    fn draining_members_own_only_if_nobody_is_active() {
        let mut all = pool(3);
        for node in &mut all[..2] {
            node.state = NodeState::Draining;
        }
        assert!(vips().all(|vip| owner(vip, &all).unwrap().as_str() == "fe3"));
        all[2].state = NodeState::Draining;
        assert!(vips().any(|vip| owner(vip, &all).unwrap().as_str() != "fe3"));
    }

    #[test]
    fn a_joining_member_owns_only_if_nobody_else_is_there() {
        let mut all = pool(3);
        all[0].state = NodeState::Joining;
        all[1].state = NodeState::Draining;
        all[2].state = NodeState::Joining;
        assert!(vips().all(|vip| owner(vip, &all).unwrap().as_str() == "fe2"));
        assert!(vips().all(|vip| owner(vip, &all[..1]).unwrap().as_str() == "fe1"));
    }

    #[test]
    fn whoever_nobody_hears_owns_nothing() {
        let mut all = pool(3);
        all[0].state = NodeState::Draining;
        for node in &mut all[1..] {
            node.on_vip_segment = false;
        }
        assert!(vips().all(|vip| owner(vip, &all).unwrap().as_str() == "fe1"));
        assert!(owner(IpAddr::from([10, 77, 0, 1]), &all[1..]).is_some(), "where nobody is, it may be routed");
    }

    #[test]
    fn the_choice_is_the_same_in_every_version() {
        let pool = pool(3);
        let owners: Vec<&str> =
            (1..=6u8).map(|i| owner(IpAddr::from([10, 77, 0, i]), &pool).unwrap().as_str()).collect();
        assert_eq!(owners, PINNED);
    }

    const PINNED: [&str; 6] = ["fe2", "fe1", "fe2", "fe2", "fe3", "fe2"];
}
