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
    pub(crate) fn net_of(self) -> Option<Self> {
        let empties = [Self::Empty, Self::EmptyEncapsulated, Self::EmptyEnd];
        let frames = |path| frames(path, Family::V4);
        let alike = |empty: &Self| {
            let (own, empty) = (frames(self), frames(*empty));
            (own.encapsulated, own.moves_end) == (empty.encapsulated, empty.moves_end)
        };
        if empties.contains(&self) { None } else { empties.into_iter().find(alike) }
    }
}

/// Every path for both address families, floors first.
pub(crate) fn all() -> Vec<Case> {
    let families = |path| Family::ALL.map(|family| Case::new(path, family));
    Path::ALL.into_iter().flat_map(families).collect()
}

impl Case {
    fn new(path: Path, family: Family) -> Self {
        Self {
            path,
            target: target(path, family),
            frames: frames(path, family),
            state: state(path),
            expected: expected(path),
        }
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

fn frames(path: Path, family: Family) -> Frames {
    let plain = Frames {
        family,
        kind: Kind::Established,
        sources: Sources::Anywhere,
        to_vip: true,
        encapsulated: false,
        moves_end: false,
    };
    let syn = Frames { kind: Kind::Syn, ..plain };
    match path {
        Path::Empty
        | Path::FloorMac
        | Path::FloorEncapsulate
        | Path::SteerUnchecked
        | Path::Steer
        | Path::Encapsulate
        | Path::Own => plain,
        Path::SteerSyn | Path::EncapsulateSyn | Path::OwnSyn => syn,
        Path::EmptyEncapsulated | Path::Decapsulate => Frames { encapsulated: true, ..plain },
        Path::EmptyEnd => Frames { moves_end: true, ..plain },
        Path::Pass => Frames { to_vip: false, ..plain },
        Path::OwnFound => Frames { sources: Sources::Connected, ..plain },
        Path::OwnNotFound => Frames { sources: Sources::Unconnected, ..plain },
        Path::Denied => Frames { sources: Sources::Denied, ..plain },
        Path::Cookie => Frames { moves_end: true, ..syn },
    }
}

const fn state(path: Path) -> State {
    let checked = State { owners: Owners::Neighbours, deny: true, limit: true, cookies: false };
    match path {
        Path::Empty
        | Path::EmptyEncapsulated
        | Path::EmptyEnd
        | Path::FloorMac
        | Path::Pass
        | Path::Steer
        | Path::SteerSyn
        | Path::Denied => checked,
        Path::SteerUnchecked => State { deny: false, limit: false, ..checked },
        Path::FloorEncapsulate | Path::Encapsulate | Path::EncapsulateSyn => {
            State { owners: Owners::Distant, ..checked }
        }
        Path::Decapsulate | Path::Own | Path::OwnSyn => State { owners: Owners::Own, ..checked },
        Path::OwnFound | Path::OwnNotFound => State { owners: Owners::OwnChained, ..checked },
        Path::Cookie => State { owners: Owners::Own, cookies: true, ..checked },
    }
}

const fn expected(path: Path) -> (u32, Option<Counter>) {
    match path {
        Path::Empty | Path::EmptyEncapsulated | Path::EmptyEnd => (XDP_PASS, None),
        Path::FloorMac | Path::FloorEncapsulate => (XDP_TX, None),
        Path::Pass => (XDP_PASS, Some(Counter::Passed)),
        Path::SteerUnchecked | Path::Steer | Path::Encapsulate => (XDP_TX, Some(Counter::Steered)),
        Path::SteerSyn | Path::EncapsulateSyn => (XDP_TX, Some(Counter::SteeredNew)),
        Path::Decapsulate | Path::Own | Path::OwnFound => (XDP_PASS, Some(Counter::Own)),
        Path::OwnSyn => (XDP_PASS, Some(Counter::OwnNew)),
        Path::OwnNotFound => (XDP_TX, Some(Counter::HandedOn)),
        Path::Denied => (XDP_DROP, Some(Counter::Denied)),
        Path::Cookie => (XDP_TX, Some(Counter::CookieSent)),
    }
}

const fn target(path: Path, family: Family) -> Target {
    match (path, family) {
        (Path::Empty | Path::EmptyEncapsulated | Path::EmptyEnd, _) => Target::Empty,
        (Path::FloorMac, Family::V4) => Target::FloorMacV4,
        (Path::FloorMac, Family::V6) => Target::FloorMacV6,
        (Path::FloorEncapsulate, Family::V4) => Target::FloorEncapsulateV4,
        (Path::FloorEncapsulate, Family::V6) => Target::FloorEncapsulateV6,
        (_steered, _) => Target::Autocluster,
    }
}
