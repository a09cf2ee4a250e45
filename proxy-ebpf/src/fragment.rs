//! Fragments, and the IPv6 extension headers that one has to walk to know of them.
//!
//! The first fragment has the ports and is steered as any packet; what was decided is remembered for those that follow,
//! so that one front end gets them all and puts them together. One that overtakes its first fragment is dropped: its
//! sender repeats the packet. All of them must take one way, or the kernel of a front end that has no such connection
//! would reset it.

use aya_ebpf::programs::XdpContext;
use proxy_common::{
    maps::{Counter, FragmentKey},
    steer::Decision,
};

use crate::{
    Verdict,
    error::Error,
    flow::{Place, bytes, key_v4},
    forward::{self, Forward},
    maps::{ControlRef, FRAGMENTS},
    packet::{Extension, Ipv4, Ipv6, read},
    steer,
};

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;
/// Extension headers that are walked at the most. RFC 8200 section 4.1 lists seven at the most, two of them encrypted.
const MAX_EXTENSIONS: usize = 6;

const V4_MORE: u16 = 0x2000;
const V4_OFFSET: u16 = 0x1fff;
const V6_MORE: u16 = 1;
const V6_OFFSET: u16 = 0xfff8;

/// The value in `FRAGMENTS` for a packet that this machine takes.
const TAKEN: u32 = 1 << 16;
/// The value in `FRAGMENTS` for a packet that is dropped.
const DROPPED: u32 = 2 << 16;

/// What a packet is of the one that was sent.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Whole,
    First,
    Later,
}

#[inline(always)]
pub fn part_v4(fragment: u16) -> Part {
    let fragment = u16::from_be(fragment);
    if fragment & V4_OFFSET != 0 {
        Part::Later
    } else if fragment & V4_MORE != 0 {
        Part::First
    } else {
        Part::Whole
    }
}

#[inline(always)]
pub fn is_extension(next_header: u8) -> bool {
    matches!(next_header, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS)
}

/// What the extension headers say, in one word, since BPF functions return no more: identification, octets, next header,
/// part.
#[derive(Clone, Copy, Default)]
pub struct Walk(u64);

impl Walk {
    #[inline(always)]
    fn new(length: usize, next_header: u8, part: Part, id: u32) -> Self {
        let part = match part {
            Part::Whole => 0,
            Part::First => 1,
            Part::Later => 2,
        };
        Self(u64::from(id) << 32 | (length as u64 & 0xfff) << 16 | u64::from(next_header) << 8 | part)
    }

    /// Octets of all extension headers together.
    #[inline(always)]
    pub fn length(self) -> usize {
        (self.0 >> 16) as usize & 0xfff
    }

    #[inline(always)]
    pub fn next_header(self) -> u8 {
        (self.0 >> 8) as u8
    }

    #[inline(always)]
    pub fn part(self) -> Part {
        match self.0 & 3 {
            0 => Part::Whole,
            1 => Part::First,
            _ => Part::Later,
        }
    }

    /// The fragment header's identification, in network order.
    #[inline(always)]
    pub fn id(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// Walks the extension headers from `offset` on.
#[inline(always)]
pub fn walk(ctx: &XdpContext, offset: usize, next_header: u8) -> Result<Walk, Error> {
    let (mut length, mut next, mut part, mut id) = (0_usize, next_header, Part::Whole, 0);
    let mut i = 0;
    while i < MAX_EXTENSIONS {
        if !is_extension(next) {
            return Ok(Walk::new(length, next, part, id));
        }
        let header = read::<Extension>(ctx, offset + (length & 0xfff))?;
        if next == FRAGMENT {
            if part != Part::Whole {
                return Err(Error::MalformedExtension);
            }
            let fields = u16::from_be(header.offset_more);
            id = header.id;
            length += 8;
            if fields & V6_OFFSET != 0 {
                return Ok(Walk::new(length, header.next_header, Part::Later, id));
            }
            // Neither an offset nor more to come: an atomic fragment (RFC 6946), which is whole.
            part = if fields & V6_MORE != 0 { Part::First } else { Part::Whole };
        } else {
            length += (usize::from(header.length) + 1) * 8;
        }
        next = header.next_header;
        i += 1;
    }
    Err(Error::MalformedExtension)
}

#[inline(always)]
fn key_of_v4(ip: &Ipv4) -> FragmentKey {
    let id = ip.id.to_ne_bytes();
    FragmentKey { source: key_v4(ip.source), destination: key_v4(ip.destination), id: [id[0], id[1], 0, 0] }
}

#[inline(always)]
fn key_of_v6(ip: &Ipv6, id: u32) -> FragmentKey {
    FragmentKey { source: bytes(ip.source), destination: bytes(ip.destination), id: id.to_ne_bytes() }
}

#[inline(always)]
pub fn remember_v4(ip: &Ipv4, decision: Decision) {
    remember(&key_of_v4(ip), decision);
}

#[inline(always)]
pub fn remember_v6(ip: &Ipv6, id: u32, decision: Decision) {
    remember(&key_of_v6(ip, id), decision);
}

#[inline(always)]
fn remember(key: &FragmentKey, decision: Decision) {
    let value = match decision {
        Decision::Take(_) => TAKEN,
        Decision::Forward { slot, hop_limit, .. } => u32::from(slot) << 8 | u32::from(hop_limit),
        Decision::Drop(_) => DROPPED,
    };
    // Where there is no room the later fragments are dropped, and the packet is sent again.
    let _unremembered = FRAGMENTS.insert(key, value, 0);
}

#[inline(always)]
pub fn later_v4(ctx: &XdpContext, place: Place, ip: &Ipv4) -> Result<Verdict, Error> {
    if !steer::is_vip_v4(ip.destination) {
        return Ok(Verdict::Pass(Counter::Passed));
    }
    follow(ctx, place, false, ip.ttl, &key_of_v4(ip))
}

#[inline(always)]
pub fn later_v6(ctx: &XdpContext, place: Place, ip: &Ipv6, id: u32) -> Result<Verdict, Error> {
    follow(ctx, place, true, ip.hop_limit, &key_of_v6(ip, id))
}

#[inline(always)]
fn follow(ctx: &XdpContext, place: Place, v6: bool, hop_limit: u8, key: &FragmentKey) -> Result<Verdict, Error> {
    // SAFETY: the value is copied.
    let Some(value) = unsafe { FRAGMENTS.get(key) }.copied() else {
        return Ok(Verdict::Drop(Counter::FragmentUnknown));
    };
    if value == TAKEN {
        return Ok(Verdict::Pass(Counter::Fragment));
    }
    let next = (value as u8).min(hop_limit.saturating_sub(1));
    if value == DROPPED || next == 0 {
        return Ok(Verdict::Drop(Counter::FragmentUnknown));
    }
    let control = ControlRef::open().ok_or(Error::NoTable)?;
    let half = control.table()?.half();
    // By addresses only, so that one path carries them all in order.
    let entropy = u16::from_ne_bytes([key.id[0], key.id[1]]);
    let forward = Forward { half, slot: (value >> 8) as u8 & 0x7f, hop_limit: next, entropy };
    forward::send(ctx, place, v6, forward, Counter::Fragment, hop_limit)
}
