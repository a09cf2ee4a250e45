//! What steering wants to know of a connection, for each address family.

use aya_ebpf::programs::XdpContext;
use proxy_common::{
    hash::{SteeringKey, hash_v4, hash_v6},
    maps::{AddressKey, FilterBit, PeerSlots, mapped_v4, mapped_v4_words},
    steer::Socket,
};

use crate::{abuse, maps::ControlRef, packet::Tag, sockets};

/// Where the headers stand in the frame.
#[derive(Clone, Copy)]
pub struct Place {
    pub tag: Tag,
    /// Offset of what it carries.
    pub l4: usize,
    /// The front end that encapsulated the packet, if one did.
    pub sender: PeerSlots,
}

impl Place {
    /// Offset of the IP header.
    #[inline(always)]
    pub fn l3(self) -> usize {
        self.tag.l3()
    }
}

/// A connection's addresses and ports, as its packets from outside have them.
pub trait Flow: Copy {
    const V6: bool;
    fn hash(&self, key: SteeringKey) -> u64;
    /// Source port, then destination port, as in the packet.
    fn ports(&self) -> u32;
    /// The virtual address, as services have it.
    fn vip(&self) -> [u64; 2];
    fn socket(&self, ctx: &XdpContext) -> Socket;
    fn answers_cookie(ctx: &XdpContext, place: Place) -> bool;
    /// The source may be denied; nearly nobody else is suspected.
    fn is_suspected(&self, control: ControlRef) -> bool;
    fn denied(&self) -> bool;
    /// The source's prefix, for counting.
    fn prefix(&self, control: ControlRef) -> u64;
    /// The source is on this machine's own segment.
    fn on_link(&self, control: ControlRef) -> bool;
}

#[derive(Clone, Copy)]
pub struct V4 {
    pub source: u32,
    pub destination: u32,
    pub ports: u32,
}

#[derive(Clone, Copy)]
pub struct V6 {
    pub source: [u64; 2],
    pub destination: [u64; 2],
    pub ports: u32,
}

impl Flow for V4 {
    const V6: bool = false;

    #[inline(always)]
    fn hash(&self, key: SteeringKey) -> u64 {
        hash_v4(key, self.source.to_ne_bytes(), self.destination.to_ne_bytes(), self.ports.to_ne_bytes())
    }

    #[inline(always)]
    fn ports(&self) -> u32 {
        self.ports
    }

    #[inline(always)]
    fn vip(&self) -> [u64; 2] {
        mapped_v4_words(self.destination.to_ne_bytes())
    }

    #[inline(always)]
    fn socket(&self, ctx: &XdpContext) -> Socket {
        sockets::v4(ctx, self.source, self.destination, self.ports)
    }

    #[inline(always)]
    fn answers_cookie(ctx: &XdpContext, place: Place) -> bool {
        sockets::answers_cookie_v4(ctx, place).unwrap_or(false)
    }

    #[inline(always)]
    fn is_suspected(&self, _control: ControlRef) -> bool {
        let source = self.source.to_ne_bytes();
        abuse::is_set(FilterBit::v4_coarse(source)) && abuse::is_set(FilterBit::v4(source))
    }

    #[inline(always)]
    fn denied(&self) -> bool {
        abuse::denied_v4(self.source)
    }

    #[inline(always)]
    fn prefix(&self, control: ControlRef) -> u64 {
        let bits = u32::from(control.constants().prefix_v4);
        u64::from(u32::from_be(self.source)) >> ((32 - bits) & 31)
    }

    #[inline(always)]
    fn on_link(&self, control: ControlRef) -> bool {
        let [network, mask] = control.constants().on_link_v4;
        mask != 0 && self.source & mask == network
    }
}

impl Flow for V6 {
    const V6: bool = true;

    #[inline(always)]
    fn hash(&self, key: SteeringKey) -> u64 {
        hash_v6(key, self.source, self.destination, self.ports.to_ne_bytes())
    }

    #[inline(always)]
    fn ports(&self) -> u32 {
        self.ports
    }

    #[inline(always)]
    fn vip(&self) -> [u64; 2] {
        self.destination
    }

    #[inline(always)]
    fn socket(&self, ctx: &XdpContext) -> Socket {
        sockets::v6(ctx, self)
    }

    #[inline(always)]
    fn answers_cookie(ctx: &XdpContext, place: Place) -> bool {
        sockets::answers_cookie_v6(ctx, place).unwrap_or(false)
    }

    #[inline(always)]
    fn is_suspected(&self, control: ControlRef) -> bool {
        let first = self.source[0];
        abuse::is_set(FilterBit::v6_fine(first))
            || abuse::is_set(FilterBit::v6_coarse(first))
            || control.has(proxy_common::maps::DENY_V6_WIDE)
    }

    #[inline(always)]
    fn denied(&self) -> bool {
        abuse::denied_v6(&self.source)
    }

    #[inline(always)]
    fn prefix(&self, control: ControlRef) -> u64 {
        let bits = u32::from(control.constants().prefix_v6);
        u64::from_be(self.source[0]) >> ((64 - bits) & 63)
    }

    #[inline(always)]
    fn on_link(&self, control: ControlRef) -> bool {
        let [network, mask] = control.constants().on_link_v6;
        mask != 0 && self.source[0] & mask == network
    }
}

/// The address's own bytes, out of the words that it was read as.
#[inline(always)]
pub fn bytes(words: [u64; 2]) -> AddressKey {
    // SAFETY: both are 16 octets of plain data.
    unsafe { core::mem::transmute::<[u64; 2], AddressKey>(words) }
}

/// The key of an IPv4 address in the maps.
#[inline(always)]
pub fn key_v4(address: u32) -> AddressKey {
    mapped_v4(address.to_ne_bytes())
}
