//! Names, keys, values and sizes of the XDP program's maps. This is the kernel ABI between a daemon and
//! a program that another daemon's version may have pinned: [`ABI_VERSION`] is part of the pin path, so
//! change it with any layout below.

use crate::hash::SteeringKey;

/// Version of the layouts in this module.
pub const ABI_VERSION: u32 = 2;

/// Names, as the program declares its maps.
pub const CONTROL: &str = "CONTROL";
pub const OWNERS: &str = "OWNERS";
pub const SUCCESSORS: &str = "SUCCESSORS";
pub const CHAINS: &str = "CHAINS";
pub const MEMBERS: &str = "MEMBERS";
pub const PEERS: &str = "PEERS";
pub const VIPS: &str = "VIPS";
pub const SERVICES: &str = "SERVICES";
pub const FRAGMENTS: &str = "FRAGMENTS";
pub const DENY_FILTER: &str = "DENY_FILTER";
pub const DENY_V4: &str = "DENY_V4";
pub const DENY_V6: &str = "DENY_V6";
pub const NEW_CONNECTIONS: &str = "NEW_CONNECTIONS";
pub const COUNTERS: &str = "COUNTERS";
pub const CLOCK: &str = "CLOCK";
/// The programs' read-only facts about the interface that each is attached to.
pub const INTERFACE: &str = "INTERFACE";

/// log2 of [`BUCKETS`].
pub const BUCKET_BITS: u32 = 18;
/// Buckets of one table. A power of two, so that a bucket is the top bits of the hash; so many, because the share of
/// each of 64 members is to be within 5 % of its weight.
pub const BUCKETS: u32 = 1 << BUCKET_BITS;
/// Everything that changes at once is kept twice: the half in force, and the one that is being written.
pub const HALVES: u32 = 2;
/// Front ends of one pool at the most.
pub const MAX_MEMBERS: u32 = 120;
/// Interfaces of one front end that packets are steered on, at the most.
pub const MAX_INTERFACES: u32 = 4;
/// Keys of `PEERS` at the most: each member of either half by the address of each of its interfaces.
pub const MAX_PEERS: u32 = HALVES * MAX_MEMBERS * MAX_INTERFACES;
/// Slots of `MEMBERS` in one half.
pub const SLOTS: u32 = 128;
/// Virtual addresses at the most.
pub const MAX_VIPS: u32 = 1_024;
/// Pairs of virtual address and port at the most: a quarter of the slots, so that everything finds its place.
pub const MAX_SERVICES: u32 = SERVICE_SLOTS / 4;
/// Slots of `SERVICES` in one half.
pub const SERVICE_SLOTS: u32 = 16_384;
/// Fragmented packets whose later fragments are awaited, at the most.
pub const MAX_FRAGMENTS: u32 = 16_384;
/// Denied prefixes of each address family at the most.
pub const MAX_DENIED: u32 = 1 << 20;
/// Counters of new connections by source prefix. So few that they stay in the CPU's second cache: a SYN is to cost no
/// more than another packet.
pub const NEW_CONNECTION_SLOTS: u32 = 1 << 13;
/// New connections of one prefix in one period that can be counted.
pub const MAX_NEW_CONNECTIONS: u32 = 0xffff;

/// `BPF_F_MMAPABLE`: the daemon writes tables through memory, not by a system call for each element.
pub const MMAPABLE: u32 = 1 << 10;
/// `BPF_F_NO_PREALLOC`, which a trie must have.
pub const NO_PREALLOC: u32 = 1;

/// The one element of `CONTROL`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Control {
    /// A [`TableState`]: which table is in force, switched by one aligned store.
    pub table: u32,
    /// The half of `SERVICES` in force: 0 or 1.
    pub services_half: u32,
    pub key: SteeringKey,
    /// Until this jiffy the daemon is alive: the program answers for the VIPs that this front end owns, and takes new
    /// connections of its buckets. The daemon moves it on while it lives.
    pub alive_until: u64,
    /// [`SYN_COOKIES`] and the like.
    pub flags: u32,
    /// New connections that one source prefix may begin in one period; 0: any number.
    pub new_connection_limit: u32,
    /// A period has 2^this jiffies.
    pub period_shift: u32,
    /// Bits of an IPv4 source address that make its prefix.
    pub prefix_v4: u8,
    /// Bits of an IPv6 source address that make its prefix, 64 at the most.
    pub prefix_v6: u8,
    /// UDP port of packets between front ends of different segments, in network order.
    pub encapsulation_port: [u8; 2],
    /// This machine's own addresses, to which other front ends encapsulate; zero: none.
    pub address_v4: [u8; 4],
    /// Largest IP packet in octets that reaches every front end, encapsulated where it must be.
    pub path_mtu: u32,
    pub address_v6: [u8; 16],
    /// Where this machine's answers to the world outside go, by [`mac_word`]; zero: not known.
    pub gateway_v4: u64,
    pub gateway_v6: u64,
    /// The octets of IPv4 addresses that are not behind the gateway, and which of their bits count; as words of the
    /// packet, as everything here that is compared with one.
    pub on_link_v4: [u32; 2],
    /// The same for the first half of IPv6 addresses.
    pub on_link_v6: [u64; 2],
}

/// Flag of [`Control`]: new connections are answered by SYN cookies, made by the program.
pub const SYN_COOKIES: u32 = 1;
/// Flag of [`Control`]: SYN cookies of this machine (the program's or the kernel's own) may still be out, so an ACK
/// without a socket may be the answer to one.
pub const COOKIES_OUT: u32 = 2;
/// Flag of [`Control`]: something is denied.
pub const DENY_ANY: u32 = 4;
/// Flag of [`Control`]: an IPv6 prefix shorter than [`DENY_V6_COARSE`] bits is denied, which the filter cannot tell.
pub const DENY_V6_WIDE: u32 = 8;

/// Which table is in force, and what is known of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct TableState(pub u32);

impl TableState {
    /// No table was written yet: nothing is steered.
    pub const NONE: Self = Self(u32::MAX);
    const HALF: u32 = 1;
    const SETTLING: u32 = 2;

    /// `settling`: not every member has told yet which connections it still has elsewhere.
    #[inline(always)]
    pub const fn new(half: u32, own_slot: u8, settling: bool) -> Self {
        Self((half & Self::HALF) | if settling { Self::SETTLING } else { 0 } | ((own_slot as u32) << 8))
    }

    #[inline(always)]
    pub const fn half(self) -> u32 {
        self.0 & Self::HALF
    }

    #[inline(always)]
    pub const fn settling(self) -> bool {
        self.0 & Self::SETTLING != 0
    }

    /// This machine's slot, [`NO_SLOT`] if it is no member.
    #[inline(always)]
    #[allow(clippy::cast_possible_truncation, reason = "one octet is what is asked for")]
    pub const fn own_slot(self) -> u8 {
        (self.0 >> 8) as u8 & NO_SLOT
    }
}

/// No member.
pub const NO_SLOT: u8 = 127;

/// One element of a half of `OWNERS`: who takes a bucket's new connections, and whether others may still have older
/// ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct Owner(pub u8);

impl Owner {
    const CHAINED: u8 = 0x80;

    #[inline(always)]
    pub const fn new(slot: u8, chained: bool) -> Self {
        Self(slot & NO_SLOT | if chained { Self::CHAINED } else { 0 })
    }

    #[inline(always)]
    pub const fn slot(self) -> u8 {
        self.0 & NO_SLOT
    }

    /// The bucket's [`Chain`] names somebody.
    #[inline(always)]
    pub const fn chained(self) -> bool {
        self.0 & Self::CHAINED != 0
    }
}

/// Who besides a bucket's owner may have connections of it, in the order in which they are asked. A u64 so that it is
/// read and written whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct Chain(pub u64);

/// Members that a chain names at the most.
pub const MAX_CHAIN: usize = 7;

impl Chain {
    pub const EMPTY: Self = Self(0x007f_7f7f_7f7f_7f7f);
    const LATELY: u64 = 1 << 56;

    /// `lately`: the owner changed a moment ago, so another member may have answered a SYN that is now repeated. Members
    /// beyond [`MAX_CHAIN`] are left out.
    pub fn new(members: impl IntoIterator<Item = u8>, lately: bool) -> Self {
        let mut chain = Self::EMPTY;
        for (i, slot) in members.into_iter().take(MAX_CHAIN).enumerate() {
            chain.0 &= !(0xff << (8 * i));
            chain.0 |= u64::from(slot & NO_SLOT) << (8 * i);
        }
        if lately { Self(chain.0 | Self::LATELY) } else { chain }
    }

    /// The member at a position, or [`NO_SLOT`].
    #[inline(always)]
    #[allow(clippy::cast_possible_truncation, reason = "one octet is what is asked for")]
    pub const fn member(self, position: usize) -> u8 {
        if position < MAX_CHAIN { (self.0 >> (8 * position)) as u8 } else { NO_SLOT }
    }

    #[inline(always)]
    pub const fn lately(self) -> bool {
        self.0 & Self::LATELY != 0
    }

    /// Where `slot` stands in the chain.
    #[inline(always)]
    pub const fn position(self, slot: u8) -> Option<usize> {
        let mut i = 0;
        while i < MAX_CHAIN {
            if self.member(i) == slot && slot != NO_SLOT {
                return Some(i);
            }
            i += 1;
        }
        None
    }
}

/// A front end, as the program sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Member {
    /// Where its packets are sent on the wire: its own address on the same segment, the next hop's beyond.
    pub mac: [u8; 6],
    /// [`MEMBER_PRESENT`] and the like.
    pub flags: u16,
    /// Outer source and destination of packets to it; IPv4 ones in the first four octets.
    pub outer_source: [u8; 16],
    pub outer_destination: [u8; 16],
    /// One's-complement sum of the outer IPv4 header without its length (RFC 1071), in host order.
    pub outer_sum: u32,
    pub reserved: u32,
}

/// The slot is in use.
pub const MEMBER_PRESENT: u16 = 1;
/// Packets to it are put into UDP over IPv4.
pub const MEMBER_BY_V4: u16 = 2;
/// Packets to it are put into UDP over IPv6.
pub const MEMBER_BY_V6: u16 = 4;

/// What a program knows of the interface that it is attached to; constant while it is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C, align(8))]
pub struct Interface {
    /// Frames for others are none of our business, even if a switch floods them here.
    pub mac: [u8; 6],
    /// Largest IP packet in octets.
    pub mtu: u16,
}

/// A MAC address in one word.
#[inline(always)]
pub const fn mac_word(m: [u8; 6]) -> u64 {
    u64::from_le_bytes([m[0], m[1], m[2], m[3], m[4], m[5], 0, 0])
}

/// Key of `PEERS` for frames of a member on the same segment: no IP address begins so.
#[inline(always)]
pub const fn mac_key(m: [u8; 6]) -> AddressKey {
    [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, m[0], m[1], m[2], m[3], m[4], m[5]]
}

/// Value of `PEERS`: the member's slot in either half.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct PeerSlots(pub u32);

impl PeerSlots {
    /// Not known.
    pub const NONE: Self = Self::new([NO_SLOT; HALVES as usize]);

    #[inline(always)]
    pub const fn new(slots: [u8; HALVES as usize]) -> Self {
        Self(slots[0] as u32 | (slots[1] as u32) << 8)
    }

    #[inline(always)]
    #[allow(clippy::cast_possible_truncation, reason = "one octet is what is asked for")]
    pub const fn in_half(self, half: u32) -> u8 {
        (self.0 >> (8 * (half & 1))) as u8 & NO_SLOT
    }
}

/// Key of `VIPS` and `PEERS`: an IPv6 address, or an IPv4 one mapped into it (RFC 4291 section 2.5.5.2).
pub type AddressKey = [u8; 16];

/// Flag in a value of `VIPS`: this front end answers ARP and neighbour solicitations for the address.
pub const VIP_OWNED: u32 = 1;

/// One slot of `SERVICES`: a TCP port of a virtual address. Each stands in one of the two slots that
/// [`Service::slots`] names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(C)]
pub struct Service {
    /// As [`crate::hash::v6_words`] gives them.
    pub address: [u64; 2],
    /// In network order.
    pub port: [u8; 2],
    pub used: u16,
    pub reserved: u32,
}

impl Service {
    #[must_use]
    pub const fn new(address: [u64; 2], port: [u8; 2]) -> Self {
        Self { address, port, used: 1, reserved: 0 }
    }

    /// The slot's octets, for comparing them fast.
    #[inline(always)]
    pub const fn words(address: [u64; 2], port: [u8; 2]) -> [u64; 3] {
        [address[0], address[1], u16::from_le_bytes(port) as u64 | 1 << 16]
    }

    /// Where the service may stand in a half of `SERVICES`. The operator chooses the services, so the mix need not be
    /// keyed.
    #[inline(always)]
    #[allow(clippy::cast_possible_truncation, reason = "some bits are what is wanted")]
    pub const fn slots(address: [u64; 2], port: [u8; 2]) -> [u32; 2] {
        // What differs stands below, since a multiplication carries upwards only: the port, then an IPv4 address.
        let word = address[1].rotate_left(48) ^ address[0].wrapping_mul(0xd6e8_feb8_6659_fd93);
        let mixed = (word ^ u16::from_le_bytes(port) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        [(mixed >> 50) as u32 % SERVICE_SLOTS, (mixed >> 36) as u32 % SERVICE_SLOTS]
    }
}

/// Key of `FRAGMENTS`: what the fragments of one packet have in common (RFC 791 section 3.2, RFC 8200 section 4.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct FragmentKey {
    /// Addresses as words; IPv4 ones in the first half of the first word.
    pub source: [u64; 2],
    pub destination: [u64; 2],
    /// As it stands in the packet.
    pub id: u32,
    pub v6: u32,
}

/// Key of `DENY_V4` and `DENY_V6` follow the kernel's `bpf_lpm_trie_key`; the value is not read.
///
/// Bits of an IPv4 address that `DENY_FILTER` tells apart.
pub const DENY_V4_FILTER: u32 = 24;
/// IPv6 prefixes of so many bits or more are in the fine part of `DENY_FILTER`.
pub const DENY_V6_FINE: u32 = 48;
/// IPv6 prefixes of so many bits up to [`DENY_V6_FINE`] are in the coarse part of `DENY_FILTER`.
pub const DENY_V6_COARSE: u32 = 32;
/// Words of `DENY_FILTER` for IPv4: a bit for each prefix of [`DENY_V4_FILTER`] bits.
pub const DENY_V4_WORDS: u32 = 1 << (DENY_V4_FILTER - 6);
/// log2 of the bits of each IPv6 part of `DENY_FILTER`, which are hashed.
pub const DENY_V6_BITS: u32 = 20;
const DENY_V6_WORDS: u32 = 1 << (DENY_V6_BITS - 6);
/// Words of `DENY_FILTER` that tell whether anything in a /16 of IPv4 is denied: so few that they stay in the CPU's first
/// cache, and for most sources they are all that is looked at.
const DENY_V4_COARSE_WORDS: u32 = 1 << (16 - 6);
/// Words of `DENY_FILTER`: IPv4, then the fine and the coarse part of IPv6, then the coarse part of IPv4.
pub const DENY_WORDS: u32 = DENY_V4_WORDS + 2 * DENY_V6_WORDS + DENY_V4_COARSE_WORDS;

/// Where a bit stands in `DENY_FILTER`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FilterBit {
    pub word: u32,
    pub mask: u64,
}

impl FilterBit {
    /// The bit of an IPv4 address: set if a denied prefix covers it, or lies in the same /24.
    #[inline(always)]
    pub const fn v4(address: [u8; 4]) -> Self {
        let prefix = u32::from_be_bytes(address) >> 8;
        Self { word: prefix >> 6, mask: 1 << (prefix & 63) }
    }

    /// The bit of an IPv4 address's /16: set if any bit of [`FilterBit::v4`] in it is.
    #[inline(always)]
    pub const fn v4_coarse(address: [u8; 4]) -> Self {
        let prefix = u32::from_be_bytes(address) >> 16;
        Self { word: DENY_V4_WORDS + 2 * DENY_V6_WORDS + (prefix >> 6), mask: 1 << (prefix & 63) }
    }

    /// The bit of an IPv6 address: set if a denied prefix of [`DENY_V6_FINE`] bits or more lies in its /48.
    #[inline(always)]
    pub const fn v6_fine(first_word: u64) -> Self {
        Self::hashed(u64::from_be(first_word) >> (64 - DENY_V6_FINE), DENY_V4_WORDS)
    }

    /// The bit of an IPv6 address: set if a denied prefix of [`DENY_V6_COARSE`] to `DENY_V6_FINE - 1` bits lies in its
    /// /32.
    #[inline(always)]
    pub const fn v6_coarse(first_word: u64) -> Self {
        Self::hashed(u64::from_be(first_word) >> (64 - DENY_V6_COARSE), DENY_V4_WORDS + DENY_V6_WORDS)
    }

    #[inline(always)]
    #[allow(clippy::cast_possible_truncation, reason = "the shift leaves 20 bits")]
    const fn hashed(prefix: u64, base: u32) -> Self {
        let bit = (prefix.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - DENY_V6_BITS)) as u32;
        Self { word: base + (bit >> 6), mask: 1 << (bit & 63) }
    }
}

/// `::ffff:a.b.c.d`
#[inline(always)]
pub const fn mapped_v4(a: [u8; 4]) -> AddressKey {
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a[0], a[1], a[2], a[3]]
}

/// [`mapped_v4`], as the words that a [`Service`] has.
#[inline(always)]
pub const fn mapped_v4_words(a: [u8; 4]) -> [u64; 2] {
    [0, ((u32::from_le_bytes(a) as u64) << 32) | 0xffff_0000]
}

macro_rules! counters {
    ($($(#[$doc:meta])* $variant:ident => $name:literal,)+) => {
        /// Index of `COUNTERS`: packets by verdict and reason.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u32)]
        pub enum Counter { $($(#[$doc])* $variant,)+ }

        impl Counter {
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The name in metrics and in `autocluster status`.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }
        }
    };
}

counters! {
    /// Not for a VIP's service: the appliance's own traffic.
    Passed => "passed",
    /// A packet of a connection that is this front end's.
    Own => "own",
    /// A SYN of a connection that is this front end's.
    OwnNew => "own_new_connections",
    /// Sent on to the bucket's owner.
    Steered => "steered",
    /// A SYN sent on to the bucket's owner.
    SteeredNew => "steered_new_connections",
    /// Sent on to the next member that may have the connection.
    HandedOn => "handed_on",
    /// A SYN sent on to the next member that may have answered it before.
    HandedOnNew => "handed_on_new_connections",
    /// Came from another member, and this one has the connection.
    Found => "found",
    /// A SYN that no other member had answered: back at the bucket's owner.
    NewAgain => "new_again",
    /// No member has the connection: passed, the kernel resets it.
    Orphan => "orphan",
    /// This one has not got it, and not every member has told yet what it has: dropped, for the peer repeats it.
    OrphanSettling => "orphan_settling",
    /// A SYN about which the members disagree: dropped, for the client sends it again once they agree.
    DisagreedNew => "disagreed_new_connections",
    /// This front end's bucket, but its daemon is gone: sent on to the bucket's next owner.
    Succeeded => "succeeded",
    /// The hop limit is used up: dropped.
    HopLimit => "hop_limit",
    /// A later fragment, sent after its first one.
    Fragment => "fragment",
    /// A later fragment whose first one was not seen: dropped, the sender repeats the packet.
    FragmentUnknown => "fragment_unknown",
    /// An ICMP error about a VIP's connection, taken or sent on as the connection's packets are.
    IcmpError => "icmp_error",
    /// Came encapsulated from another member.
    Decapsulated => "decapsulated",
    /// Encapsulated, but not by a member: dropped.
    Stranger => "stranger",
    /// Too big for the way to its owner: its sender was told the size that fits.
    TooBig => "too_big",
    /// Its source is denied: dropped.
    Denied => "denied",
    /// A SYN beyond the limit of its source's prefix: dropped.
    Limited => "limited",
    /// A SYN answered by a SYN cookie.
    CookieSent => "cookie_sent",
    /// ARP request or neighbour solicitation for a VIP, answered.
    NeighbourAnswered => "neighbour_answered",
    /// The same for a VIP that another front end owns: dropped, or the kernel would answer too.
    NeighbourIgnored => "neighbour_ignored",
    /// The frame ends inside a header.
    Truncated => "truncated",
    /// An IP header that contradicts itself.
    MalformedIp => "malformed_ip",
    /// IPv6 extension headers without end, or that contradict themselves.
    MalformedExtension => "malformed_extension",
    /// A TCP header that contradicts itself.
    MalformedTcp => "malformed_tcp",
    /// Encapsulated, but not as front ends do it.
    MalformedOuter => "malformed_outer",
    /// The driver gave no room for a longer packet.
    NoRoom => "no_room",
    /// No table is in force, or the bucket names nobody or a slot that is empty.
    NoOwner => "no_owner",
}
