//! What is measured: each way that a packet can take, and the floors beside them.

use autocluster::dataplane::bench::{Prologue, Target};
use proxy_common::maps::Counter;

use crate::frames::{Family, Frames, Kind, Sources};

/// Flows among which the packets go round.
pub(crate) const FLOWS: [u64; 4] = [1, 1 << 10, 1 << 16, 1 << 20];

const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;

/// Whose the buckets are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owners {
    /// 63 others', on this segment.
    Neighbours,
    /// 63 others', on other segments.
    Distant,
    /// This machine's; the others are on other segments.
    Own,
    /// This machine's, but another on this segment may have older connections of each.
    OwnChained,
}

/// What the maps are to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) owners: Owners,
    /// The deny list is in force.
    pub(crate) deny: bool,
    /// New connections are counted against a limit (which nobody reaches).
    pub(crate) limit: bool,
    /// New connections are answered by SYN cookies.
    pub(crate) cookies: bool,
}

/// One row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Case {
    pub(crate) path: Path,
    pub(crate) target: Target,
    pub(crate) frames: Frames,
    pub(crate) state: State,
    /// Verdict, and what the XDP program must have counted every packet as.
    pub(crate) expected: (u32, Option<Counter>),
}

/// The ways of packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Path {
    Empty,
    EmptyEncapsulated,
    EmptyEnd,
    FloorMac,
    FloorEncapsulate,
    Pass,
    SteerUnchecked,
    Steer,
    SteerSyn,
    Encapsulate,
    EncapsulateSyn,
    Decapsulate,
    Own,
    OwnSyn,
    OwnFound,
    OwnNotFound,
    Denied,
    Cookie,
}

impl Path {
    const ALL: [Self; 18] = [
        Self::Empty,
        Self::EmptyEncapsulated,
        Self::EmptyEnd,
        Self::FloorMac,
        Self::FloorEncapsulate,
        Self::Pass,
        Self::SteerUnchecked,
        Self::Steer,
        Self::SteerSyn,
        Self::Encapsulate,
        Self::EncapsulateSyn,
        Self::Decapsulate,
        Self::Own,
        Self::OwnSyn,
        Self::OwnFound,
        Self::OwnNotFound,
        Self::Denied,
        Self::Cookie,
    ];

    /// For people.
    pub(crate) const fn title(self) -> &'static str {
        match self {
            Self::Empty => "empty program (not net)",
            Self::EmptyEncapsulated => "empty program, encapsulated packet (not net)",
            Self::EmptyEnd => "empty program, frame's end restored (not net)",
            Self::FloorMac => "FLOOR: parse + hash + table + MAC rewrite",
            Self::FloorEncapsulate => "FLOOR: parse + hash + table + encapsulation",
            Self::Pass => "pass: not for a VIP",
            Self::SteerUnchecked => "steer by MAC, no deny list, no limit",
            Self::Steer => "steer by MAC, not on the deny list",
            Self::SteerSyn => "steer by MAC, SYN of a new flow, counted",
            Self::Encapsulate => "encapsulate, not on the deny list",
            Self::EncapsulateSyn => "encapsulate, SYN of a new flow, counted",
            Self::Decapsulate => "decapsulate and take",
            Self::Own => "own, no need to look for a socket",
            Self::OwnSyn => "own, SYN of a new flow, counted",
            Self::OwnFound => "own, socket found among 131,072",
            Self::OwnNotFound => "own, no socket: handed on",
            Self::Denied => "denied: dropped",
            Self::Cookie => "SYN answered by a SYN cookie",
        }
    }

    /// For programs.
    pub(crate) const fn key(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::EmptyEncapsulated => "empty_encapsulated",
            Self::EmptyEnd => "empty_end",
            Self::FloorMac => "floor_mac",
            Self::FloorEncapsulate => "floor_encapsulate",
            Self::Pass => "pass",
            Self::SteerUnchecked => "steer_unchecked",
            Self::Steer => "steer",
            Self::SteerSyn => "steer_syn",
            Self::Encapsulate => "encapsulate",
            Self::EncapsulateSyn => "encapsulate_syn",
            Self::Decapsulate => "decapsulate",
            Self::Own => "own",
            Self::OwnSyn => "own_syn",
            Self::OwnFound => "own_found",
            Self::OwnNotFound => "own_not_found",
            Self::Denied => "denied",
            Self::Cookie => "cookie",
        }
    }

    /// What the figure of the path is net of; `None` for the empty programs themselves.
    pub(crate) const fn net_of(self) -> Option<Self> {
        match self {
            Self::Empty | Self::EmptyEncapsulated | Self::EmptyEnd => None,
            Self::Decapsulate => Some(Self::EmptyEncapsulated),
            Self::Cookie => Some(Self::EmptyEnd),
            _ => Some(Self::Empty),
        }
    }
}

/// Every path for both address families, floors first.
pub(crate) fn all() -> Vec<Case> {
    let families = |path| Family::ALL.map(|family| Case::new(path, family));
    Path::ALL.into_iter().flat_map(families).collect()
}

impl Case {
    fn new(path: Path, family: Family) -> Self {
        let plain = Frames {
            family,
            kind: Kind::Established,
            sources: Sources::Anywhere,
            to_vip: true,
            encapsulated: false,
            moves_end: false,
        };
        let syn = Frames { kind: Kind::Syn, ..plain };
        let checked = State { owners: Owners::Neighbours, deny: true, limit: true, cookies: false };
        let distant = State { owners: Owners::Distant, ..checked };
        let own = State { owners: Owners::Own, ..checked };
        let chained = State { owners: Owners::OwnChained, ..checked };
        let (frames, state, action, counter) = match path {
            Path::Empty => (plain, checked, XDP_PASS, None),
            Path::EmptyEncapsulated => (Frames { encapsulated: true, ..plain }, checked, XDP_PASS, None),
            Path::EmptyEnd => (Frames { moves_end: true, ..plain }, checked, XDP_PASS, None),
            Path::FloorMac => (plain, checked, XDP_TX, None),
            Path::FloorEncapsulate => (plain, distant, XDP_TX, None),
            Path::Pass => (Frames { to_vip: false, ..plain }, checked, XDP_PASS, Some(Counter::Passed)),
            Path::SteerUnchecked => {
                (plain, State { deny: false, limit: false, ..checked }, XDP_TX, Some(Counter::Steered))
            }
            Path::Steer => (plain, checked, XDP_TX, Some(Counter::Steered)),
            Path::SteerSyn => (syn, checked, XDP_TX, Some(Counter::SteeredNew)),
            Path::Encapsulate => (plain, distant, XDP_TX, Some(Counter::Steered)),
            Path::EncapsulateSyn => (syn, distant, XDP_TX, Some(Counter::SteeredNew)),
            Path::Decapsulate => (Frames { encapsulated: true, ..plain }, own, XDP_PASS, Some(Counter::Own)),
            Path::Own => (plain, own, XDP_PASS, Some(Counter::Own)),
            Path::OwnSyn => (syn, own, XDP_PASS, Some(Counter::OwnNew)),
            Path::OwnFound => (Frames { sources: Sources::Connected, ..plain }, chained, XDP_PASS, Some(Counter::Own)),
            Path::OwnNotFound => {
                (Frames { sources: Sources::Unconnected, ..plain }, chained, XDP_TX, Some(Counter::HandedOn))
            }
            Path::Denied => (Frames { sources: Sources::Denied, ..plain }, checked, XDP_DROP, Some(Counter::Denied)),
            Path::Cookie => {
                (Frames { moves_end: true, ..syn }, State { cookies: true, ..own }, XDP_TX, Some(Counter::CookieSent))
            }
        };
        Self { path, target: target(path, family), frames, state, expected: (action, counter) }
    }

    pub(crate) const fn prologue(&self) -> Prologue {
        match (self.frames.family, self.frames.encapsulated) {
            (Family::V4, false) => Prologue::V4,
            (Family::V6, false) => Prologue::V6,
            (Family::V4, true) => Prologue::V4Encapsulated,
            (Family::V6, true) => Prologue::V6Encapsulated,
        }
    }

    /// Nobody has a million sockets here.
    pub(crate) fn can_have(&self, flows: u64) -> bool {
        self.path != Path::OwnFound || flows <= u64::from(crate::sockets::CONNECTIONS)
    }
}

const fn target(path: Path, family: Family) -> Target {
    match (path, family) {
        (Path::Empty | Path::EmptyEncapsulated | Path::EmptyEnd, _) => Target::Empty,
        (Path::FloorMac, Family::V4) => Target::FloorMacV4,
        (Path::FloorMac, Family::V6) => Target::FloorMacV6,
        (Path::FloorEncapsulate, Family::V4) => Target::FloorEncapsulateV4,
        (Path::FloorEncapsulate, Family::V6) => Target::FloorEncapsulateV6,
        _ => Target::Autocluster,
    }
}
