//! Fragments, and the IPv6 extension headers that one has to walk to know of them.
//!
//! The first fragment has the ports and is steered as any packet; what was decided is remembered for those that follow,
//! so that one front end gets them all and puts them together. One that overtakes its first fragment is dropped: its
//! sender repeats the packet. All of them must take one way, or the kernel of a front end that has no such connection
//! would reset it.

use aya_ebpf::programs::XdpContext;
use proxy_common::{
    maps::{Counter, FragmentKey, NO_SLOT, PeerSlots},
    steer::Decision,
};

use crate::{
    Handle, Verdict,
    error::Error,
    flow::Place,
    forward::{self, Forward},
    maps::{ControlRef, FRAGMENTS, SCRATCH},
    packet::{Extension, IPV6, Tag, read},
};

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;
/// Extension headers that are walked at the most. RFC 8200 section 4.1 lists seven at the most, two of them encrypted.
const MAX_EXTENSIONS: usize = 6;
/// Octets of all extension headers at the most: all ones, so that the verifier sees the limit.
const MAX_OCTETS: usize = 0xfff;

const V4_SOURCE: usize = 12;
const V4_DESTINATION: usize = 16;
const V6_SOURCE: usize = 8;
const V6_DESTINATION: usize = 24;

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
        Self(u64::from(id) << 32 | ((length & MAX_OCTETS) as u64) << 16 | u64::from(next_header) << 8 | part)
    }

    /// Octets of all extension headers together.
    #[inline(always)]
    pub fn length(self) -> usize {
        (self.0 >> 16) as usize & MAX_OCTETS
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

/// Walks the extension headers after an IPv6 header, of which `next_header` is the first.
#[inline(always)]
pub fn walk(ctx: &XdpContext, tag: Tag, next_header: u8) -> Result<Walk, Error> {
    let scratch = SCRATCH.get_ptr_mut(0).ok_or(Error::NoRoom)?;
    if !walk_into(Handle::of(ctx), tag, next_header, scratch) {
        return Err(Error::MalformedExtension);
    }
    // By way of a map: the verifier knows nothing of what is read from one, so it follows one path for every walk.
    // SAFETY: the slot is this CPU's own.
    Ok(Walk(unsafe { core::ptr::read_volatile(scratch) }))
}

#[inline(never)]
fn walk_into(handle: Handle, tag: Tag, next_header: u8, scratch: *mut u64) -> bool {
    let Ok(walk) = walk_from(&handle.open(), tag.l3() + IPV6, next_header) else { return false };
    // SAFETY: the caller has it of the map.
    unsafe { core::ptr::write_volatile(scratch, walk.0) };
    true
}

/// A header that is cut off is no more welcome than one that lies.
#[inline(always)]
fn walk_from(ctx: &XdpContext, offset: usize, next_header: u8) -> Result<Walk, Error> {
    let (mut length, mut next, mut part, mut id) = (0_usize, next_header, Part::Whole, 0);
    let mut i = 0;
    while i < MAX_EXTENSIONS {
        if !is_extension(next) {
            return Ok(Walk::new(length, next, part, id));
        }
        let header = read::<Extension>(ctx, offset + (length & MAX_OCTETS))?;
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
        if length > MAX_OCTETS {
            return Err(Error::MalformedExtension);
        }
        next = header.next_header;
        i += 1;
    }
    if is_extension(next) { Err(Error::MalformedExtension) } else { Ok(Walk::new(length, next, part, id)) }
}

/// Remembers what was decided about a first fragment. `id` is the identification, which IPv4 has in its own header.
#[inline(always)]
pub fn remember(ctx: &XdpContext, place: Place, v6: bool, id: u32, decision: Decision) {
    let value = match decision {
        Decision::Take(_) => TAKEN,
        Decision::Forward { slot, hop_limit, .. } => u32::from(slot) << 8 | u32::from(hop_limit),
        Decision::Drop(_) => DROPPED,
    };
    remember_at(Handle::of(ctx), place.tag, v6, id, value);
}

#[inline(never)]
fn remember_at(handle: Handle, tag: Tag, v6: bool, id: u32, value: u32) {
    let Ok(key) = key(&handle.open(), tag.l3(), v6, id) else { return };
    // Where there is no room the later fragments are dropped, and the packet is sent again.
    let _unremembered = FRAGMENTS.insert(key, value, 0);
}

/// What is known of a later fragment.
#[derive(Clone, Copy)]
pub struct Later {
    pub tag: Tag,
    pub v6: bool,
    pub id: u32,
    /// The hop limit that it came with.
    pub came_with: u8,
}

impl Later {
    #[inline(always)]
    pub fn pack(self) -> u64 {
        let flags = self.tag.bit() << 40 | u64::from(self.v6) << 41;
        flags | u64::from(self.came_with) << 32 | u64::from(self.id)
    }

    #[inline(always)]
    fn unpack(word: u64) -> Self {
        Self { tag: Tag::from_bit(word >> 40), v6: word >> 41 & 1 != 0, id: word as u32, came_with: (word >> 32) as u8 }
    }
}

/// Sends a later fragment, of which [`Later::pack`] gave the word, after its first one.
#[inline(never)]
pub fn follow(handle: Handle, word: u64) -> u64 {
    let what = Later::unpack(word);
    Verdict::word(follow_from(&handle.open(), what.tag.l3(), what))
}

#[inline(always)]
fn key(ctx: &XdpContext, l3: usize, v6: bool, id: u32) -> Result<FragmentKey, Error> {
    if v6 {
        let source = read::<[u64; 2]>(ctx, l3 + V6_SOURCE)?;
        let destination = read::<[u64; 2]>(ctx, l3 + V6_DESTINATION)?;
        return Ok(FragmentKey { source, destination, id, v6: 1 });
    }
    let source = [u64::from(read::<u32>(ctx, l3 + V4_SOURCE)?), 0];
    let destination = [u64::from(read::<u32>(ctx, l3 + V4_DESTINATION)?), 0];
    Ok(FragmentKey { source, destination, id, v6: 0 })
}

#[inline(always)]
fn follow_from(ctx: &XdpContext, l3: usize, what: Later) -> Result<Verdict, Error> {
    let Later { v6, id, came_with, .. } = what;
    let half = ControlRef::open().ok_or(Error::NoTable)?.table()?.half();
    let key = key(ctx, l3, v6, id)?;
    // SAFETY: the value is copied.
    let Some(value) = unsafe { FRAGMENTS.get(&key) }.copied() else {
        return Ok(Verdict::drop(Counter::FragmentUnknown));
    };
    if value == TAKEN {
        return Ok(Verdict::pass(Counter::Fragment));
    }
    let hop_limit = (value as u8).min(came_with.saturating_sub(1));
    if value == DROPPED || hop_limit == 0 {
        return Ok(Verdict::drop(Counter::FragmentUnknown));
    }
    // One outer source port for all of them, so that they stay in order.
    let forward = Forward { half, slot: (value >> 8) as u8 & NO_SLOT, hop_limit, entropy: key.id as u16 };
    let place = Place { tag: what.tag, l4: l3, sender: PeerSlots::NONE };
    forward::send(ctx, place, v6, forward, Counter::Fragment, came_with)
}
