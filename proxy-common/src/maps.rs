//! Names, keys, values and sizes of the XDP program's maps. This is the kernel ABI between a daemon and
//! a program that another daemon's version may have pinned: [`ABI_VERSION`] is part of the pin path, so
//! change it with any layout below.

use crate::hash::SteeringKey;

/// Version of the layouts in this module.
pub const ABI_VERSION: u32 = 1;

/// Names, as the program declares its maps.
pub const CONTROL: &str = "CONTROL";
pub const TABLE: &str = "TABLE";
pub const MEMBERS: &str = "MEMBERS";
pub const PEERS: &str = "PEERS";
pub const VIPS: &str = "VIPS";
pub const SERVICES: &str = "SERVICES";
pub const COUNTERS: &str = "COUNTERS";

/// Buckets of one table. A power of two, so that a bucket is the top bits of the hash.
pub const BUCKETS: u32 = 65_536;
/// The table is kept twice: the half in force, and the one that is being written.
pub const HALVES: u32 = 2;
/// Front ends of one pool at the most.
pub const MAX_MEMBERS: u32 = 256;
/// Virtual addresses at the most.
pub const MAX_VIPS: u32 = 1_024;
/// Pairs of virtual address and port at the most.
pub const MAX_SERVICES: u32 = 8_192;

/// `BPF_F_MMAPABLE`: the daemon writes the table through memory, not through 65,536 system calls.
pub const MMAPABLE: u32 = 1 << 10;

/// The one element of `CONTROL`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Control {
    /// The half of `TABLE` and `MEMBERS` in force: 0 or 1, or [`NO_TABLE`] before the first one is
    /// written. The daemon switches halves by this one aligned store.
    pub active_half: u32,
    pub reserved: u32,
    pub key: SteeringKey,
    /// This machine's address on the steered segment: frames for others are none of our business, even
    /// if a switch floods them here.
    pub mac: [u8; 6],
    pub reserved2: [u8; 2],
    /// Until then (CLOCK_MONOTONIC, ns) the program answers for the VIPs that this front end owns. The daemon moves it
    /// on while it lives.
    pub answer_until_ns: u64,
}

/// No table was written yet: nothing is steered.
pub const NO_TABLE: u32 = u32::MAX;

/// One bucket: the slots (in `MEMBERS`) of its owners, best ranked first. A u64 so that it is read and
/// written whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct Bucket(pub u64);

/// No member.
pub const NO_SLOT: u16 = u16::MAX;

impl Bucket {
    #[inline(always)]
    pub const fn new(first: u16, second: u16) -> Self {
        Self(first as u64 | ((second as u64) << 16))
    }

    /// Who takes new connections.
    #[inline(always)]
    #[allow(clippy::cast_possible_truncation, reason = "the low half is what is asked for")]
    pub const fn first(self) -> u16 {
        self.0 as u16
    }

    /// Who may still hold older ones.
    #[inline(always)]
    #[allow(clippy::cast_possible_truncation, reason = "the low half is what is asked for")]
    pub const fn second(self) -> u16 {
        (self.0 >> 16) as u16
    }
}

/// A front end, as the program sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Member {
    pub mac: [u8; 6],
    /// [`MEMBER_PRESENT`], [`MEMBER_SELF`].
    pub flags: u16,
}

/// The slot is in use.
pub const MEMBER_PRESENT: u16 = 1;
/// The member is this machine.
pub const MEMBER_SELF: u16 = 2;

/// Key of `VIPS`: an IPv6 address, or an IPv4 one mapped into it (RFC 4291 section 2.5.5.2).
pub type VipKey = [u8; 16];

/// Flag in a value of `VIPS`: this front end answers ARP and neighbour solicitations for the address.
pub const VIP_OWNED: u32 = 1;

/// Key of `SERVICES`. The port is in network order, the addresses as in [`VipKey`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct ServiceKey {
    pub address: VipKey,
    pub port: [u8; 2],
    pub reserved: [u8; 2],
}

impl ServiceKey {
    /// The key for a TCP port (host order).
    #[must_use]
    pub const fn new(address: VipKey, port: u16) -> Self {
        Self { address, port: port.to_be_bytes(), reserved: [0; 2] }
    }

    /// The key as the map holds it.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 20] {
        let mut bytes = [0; 20];
        bytes[..16].copy_from_slice(&self.address);
        bytes[16..18].copy_from_slice(&self.port);
        bytes
    }
}

/// `::ffff:a.b.c.d`
#[inline(always)]
pub const fn mapped_v4(a: [u8; 4]) -> VipKey {
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a[0], a[1], a[2], a[3]]
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
    /// A first SYN of a connection that is this front end's.
    OwnNew => "own_new_connections",
    /// Sent on to the bucket's owner.
    Steered => "steered",
    /// A first SYN sent on to the bucket's owner.
    SteeredNew => "steered_new_connections",
    /// A peer sent it here, this table names somebody else, and it is no SYN: this machine's sockets decide.
    PeerDisagreed => "peer_disagreed",
    /// The same, and it is a SYN: dropped, for the client will send it again once the tables agree.
    PeerDisagreedNew => "peer_disagreed_new_connections",
    /// A fragment to a VIP: passed, it has no ports to steer by.
    Fragment => "fragment",
    /// ARP request or neighbour solicitation for a VIP, answered.
    NeighbourAnswered => "neighbour_answered",
    /// The same for a VIP that another front end owns: dropped, or the kernel would answer too.
    NeighbourIgnored => "neighbour_ignored",
    /// Shorter than its headers say.
    Truncated => "truncated",
    /// A header that contradicts itself.
    Malformed => "malformed",
    /// The bucket names nobody, or a slot that is empty.
    NoOwner => "no_owner",
}
