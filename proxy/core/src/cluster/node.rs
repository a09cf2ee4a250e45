//! A member of the pool as the others see it.

use std::cmp::Ordering;
use std::fmt;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// Longest name in octets: a name is one DNS label, because certificates carry it in a DNS name.
pub const MAX_NODE_NAME: usize = 63;

/// The name of a front end: one DNS label in lower case, unique in the pool, kept over restarts.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeName(Box<str>);

/// The text is no DNS label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a node name is 1 to {MAX_NODE_NAME} of a-z, 0-9 and '-', not beginning or ending with '-'")]
pub struct BadNodeName;

impl NodeName {
    /// Reads a name; upper case becomes lower case.
    ///
    /// # Errors
    /// [`BadNodeName`] if the text is no DNS label.
    pub fn parse(text: &str) -> Result<Self, BadNodeName> {
        let ok = !text.is_empty()
            && text.len() <= MAX_NODE_NAME
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !text.starts_with('-')
            && !text.ends_with('-');
        if ok { Ok(Self(text.to_ascii_lowercase().into())) } else { Err(BadNodeName) }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for NodeName {
    type Error = BadNodeName;
    fn try_from(text: String) -> Result<Self, BadNodeName> {
        Self::parse(&text)
    }
}

impl From<NodeName> for String {
    fn from(name: NodeName) -> Self {
        name.0.into()
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether a member takes new connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum NodeState {
    /// Takes new connections.
    Active,
    /// Finishes those it has.
    Draining,
    /// Has just started and does not know yet who the others are and which connections they have: it takes none, and
    /// answers for no VIP.
    Joining,
}

impl NodeState {
    /// The word for it, in status and logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Draining => "draining",
            Self::Joining => "joining",
        }
    }
}

/// A member of the pool. Everything but the name may change in its lifetime; the newer description
/// (by generation, then revision) wins everywhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Who it is.
    pub name: NodeName,
    /// When it was started, in Unix milliseconds: a restarted node replaces its former self at once.
    pub generation: u64,
    /// Counts the changes since the start. The machine raises it; begin with 0.
    pub revision: u32,
    /// Where its QUIC endpoint is, seen from the other members.
    pub address: SocketAddr,
    /// Where steered packets go in the same layer 2 network.
    pub mac: [u8; 6],
    /// Other addresses that it may send packets on from: of its further interfaces in that network.
    pub more_macs: Vec<[u8; 6]>,
    /// Its share of the connections, relative to the others' weights.
    pub weight: u16,
    /// Whether it takes new connections.
    pub state: NodeState,
    /// It is on the segment where VIPs are asked for by ARP and neighbour discovery: only who is there can answer.
    pub on_vip_segment: bool,
}

impl Node {
    /// A node as it is when it starts: joining, revision 0, on the segment of the VIPs.
    #[must_use]
    pub fn new(name: NodeName, generation: u64, address: SocketAddr, mac: [u8; 6], weight: u16) -> Self {
        Self {
            name,
            generation,
            revision: 0,
            address,
            mac,
            more_macs: vec![],
            weight,
            state: NodeState::Joining,
            on_vip_segment: true,
        }
    }

    /// Newest last. The fields after the revision only make the order total: two nodes with one name
    /// and one start time are a mistake that everybody must resolve alike.
    fn age(&self, other: &Self) -> Ordering {
        let key = |n: &Self| (n.generation, n.revision, n.address, n.mac, n.weight, n.state, n.on_vip_segment);
        key(self).cmp(&key(other)).then_with(|| self.more_macs.cmp(&other.more_macs))
    }

    /// This node with the next revision.
    pub(super) fn revised(&self) -> Self {
        Self { revision: self.revision.saturating_add(1), ..self.clone() }
    }
}

impl foca::Identity for Node {
    type Addr = NodeName;

    fn renew(&self) -> Option<Self> {
        Some(self.revised())
    }

    fn addr(&self) -> NodeName {
        self.name.clone()
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        self.age(adversary) == Ordering::Greater
    }
}

#[cfg(test)]
mod tests {
    use foca::Identity as _;

    use super::*;

    fn node(generation: u64, revision: u32) -> Node {
        let address = "127.0.0.1:7400".parse().unwrap();
        Node { revision, ..Node::new(NodeName::parse("fe1").unwrap(), generation, address, [0; 6], 100) }
    }

    #[test]
    fn names_are_dns_labels() {
        assert_eq!(NodeName::parse("FE-1").unwrap().as_str(), "fe-1");
        for bad in ["", "-a", "a-", "a.b", "a b", "é", "a_b", "x".repeat(64).as_str()] {
            assert_eq!(NodeName::parse(bad), Err(BadNodeName), "{bad:?}");
        }
    }

    #[test]
    fn a_bad_name_does_not_pass_the_codec() {
        let bytes = postcard::to_allocvec("no label").unwrap();
        assert!(postcard::from_bytes::<NodeName>(&bytes).is_err());
    }

    #[test]
    fn the_newer_self_wins() {
        assert!(node(2, 0).win_addr_conflict(&node(1, 9)));
        assert!(node(1, 1).win_addr_conflict(&node(1, 0)));
        assert!(!node(1, 0).win_addr_conflict(&node(1, 0)));
        let renewed = node(1, 0).renew().unwrap();
        assert!(renewed.win_addr_conflict(&node(1, 0)));
    }
}
