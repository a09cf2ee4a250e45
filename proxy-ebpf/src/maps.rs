//! The maps. Names, keys and values are proxy-common's; every map is pinned, so that a daemon can come
//! and go while packets are steered.

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray},
};
use proxy_common::{
    hash::SteeringKey,
    maps::{
        AddressKey, BUCKETS, Chain, Control, Counter, DENY_WORDS, FragmentKey, HALVES, Interface, MAX_DENIED,
        MAX_FRAGMENTS, MAX_PEERS, MAX_VIPS, MMAPABLE, Member, NEW_CONNECTION_SLOTS, NO_PREALLOC, Owner, PeerSlots,
        SERVICE_SLOTS, SLOTS, Service, TableState,
    },
};

use crate::{error::Error, packet::Mac};

#[map]
pub static CONTROL: Array<Control> = Array::pinned(1, MMAPABLE);

#[map]
pub static OWNERS: Array<[Owner; BUCKETS as usize]> = Array::pinned(HALVES, MMAPABLE);

#[map]
pub static SUCCESSORS: Array<[u8; BUCKETS as usize]> = Array::pinned(HALVES, MMAPABLE);

#[map]
pub static CHAINS: Array<Chain> = Array::pinned(HALVES * BUCKETS, MMAPABLE);

#[map]
pub static MEMBERS: Array<Member> = Array::pinned(HALVES * SLOTS, MMAPABLE);

/// The other front ends, by the MAC address or the outer address of what they send: whose questions are answered, and
/// whose encapsulated packets are taken.
#[map]
pub static PEERS: HashMap<AddressKey, PeerSlots> = HashMap::pinned(MAX_PEERS, 0);

#[map]
pub static VIPS: HashMap<AddressKey, u32> = HashMap::pinned(MAX_VIPS, 0);

#[map]
pub static SERVICES: Array<Service> = Array::pinned(HALVES * SERVICE_SLOTS, MMAPABLE);

/// What was decided about the first fragment of a packet: a slot and a hop limit, or [`TAKEN`].
#[map]
pub static FRAGMENTS: LruHashMap<FragmentKey, u32> = LruHashMap::pinned(MAX_FRAGMENTS, 0);

#[map]
pub static DENY_FILTER: Array<u64> = Array::pinned(DENY_WORDS, MMAPABLE);

#[map]
pub static DENY_V4: LpmTrie<[u8; 4], u32> = LpmTrie::pinned(MAX_DENIED, NO_PREALLOC);

#[map]
pub static DENY_V6: LpmTrie<[u8; 16], u32> = LpmTrie::pinned(MAX_DENIED, NO_PREALLOC);

/// In each word two counters: the period's number and the count, 16 bits each.
#[map]
pub static NEW_CONNECTIONS: Array<u64> = Array::pinned(NEW_CONNECTION_SLOTS, MMAPABLE);

/// What a function hands its caller without the verifier's knowledge.
#[map]
pub static SCRATCH: PerCpuArray<u64> = PerCpuArray::pinned(1, 0);

#[map]
pub static COUNTERS: PerCpuArray<u64> = PerCpuArray::pinned(Counter::ALL.len() as u32, 0);

#[map]
pub static CLOCK: Array<u64> = Array::pinned(1, MMAPABLE);

/// Set by the daemon before the program is loaded.
#[unsafe(no_mangle)]
static INTERFACE: Interface = Interface { mac: [0; 6], mtu: 0 };

/// The interface that this instance of the program is attached to, in one word.
#[derive(Clone, Copy)]
pub struct Here(u64);

impl Here {
    /// The address, and 16 bits of something else above it.
    #[inline(always)]
    pub fn word(self) -> u64 {
        self.0
    }

    #[inline(always)]
    pub fn mac(self) -> Mac {
        Mac(self.0 & 0xffff_ffff_ffff)
    }

    /// Largest IP packet in octets.
    #[inline(always)]
    pub fn mtu(self) -> usize {
        (self.0 >> 48) as usize
    }
}

#[inline(always)]
pub fn interface() -> Here {
    // SAFETY: the static is 8 octets long, aligned. Volatile, or the compiler would take it for what it is here.
    Here(unsafe { core::ptr::read_volatile((&raw const INTERFACE).cast()) })
}

/// The element of `CONTROL`, each field to be read once: the daemon changes them while we run.
#[derive(Clone, Copy)]
pub struct ControlRef(*const Control);

impl ControlRef {
    #[inline(always)]
    pub fn open() -> Option<Self> {
        CONTROL.get_ptr(0).map(Self)
    }

    /// The table in force.
    ///
    /// # Errors
    /// [`Error::NoTable`].
    #[inline(always)]
    pub fn table(self) -> Result<TableState, Error> {
        // SAFETY: the pointer is the map's; the daemon writes the word by an aligned store.
        let state = TableState(unsafe { core::ptr::read_volatile(&raw const (*self.0).table) });
        if state == TableState::NONE { Err(Error::NoTable) } else { Ok(state) }
    }

    #[inline(always)]
    pub fn services_half(self) -> u32 {
        // SAFETY: as in `table`.
        unsafe { core::ptr::read_volatile(&raw const (*self.0).services_half) & 1 }
    }

    #[inline(always)]
    pub fn has(self, flag: u32) -> bool {
        // SAFETY: as in `table`.
        unsafe { core::ptr::read_volatile(&raw const (*self.0).flags) & flag != 0 }
    }

    /// Whether the daemon has shown a sign of life lately.
    #[inline(always)]
    pub fn alive(self) -> bool {
        // SAFETY: as in `table`.
        jiffies() < unsafe { core::ptr::read_volatile(&raw const (*self.0).alive_until) }
    }

    /// What does not change while the program runs, or may be seen half changed.
    #[inline(always)]
    pub fn constants(&self) -> &Control {
        // SAFETY: the pointer is the map's, which outlives the program's run.
        unsafe { &*self.0 }
    }

    #[inline(always)]
    pub fn key(self) -> SteeringKey {
        self.constants().key
    }
}

/// The kernel's clock that costs nothing.
#[inline(always)]
pub fn jiffies() -> u64 {
    // SAFETY: the helper only reads a clock.
    unsafe { aya_ebpf::helpers::bpf_jiffies64() }
}

/// Counts one packet on this CPU; the counter's number.
#[inline(always)]
pub fn count(counter: u32) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter) {
        // SAFETY: the slot is this CPU's own, and an XDP program is not preempted by another on it.
        unsafe { *value += 1 };
    }
}
