//! The maps. Names, keys and values are proxy-common's; every map is pinned, so that a daemon can come
//! and go while packets are steered.

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, PerCpuArray},
};
use proxy_common::maps::{
    BUCKETS, Bucket, Control, Counter, HALVES, MAX_MEMBERS, MAX_SERVICES, MAX_VIPS, MMAPABLE, Member, ServiceKey,
    VipKey,
};

#[map]
pub static CONTROL: Array<Control> = Array::pinned(1, MMAPABLE);

#[map]
pub static TABLE: Array<Bucket> = Array::pinned(HALVES * BUCKETS, MMAPABLE);

#[map]
pub static MEMBERS: Array<Member> = Array::pinned(HALVES * MAX_MEMBERS, MMAPABLE);

/// MAC addresses of the other front ends: who may hand packets on to us.
#[map]
pub static PEERS: HashMap<[u8; 6], u32> = HashMap::pinned(MAX_MEMBERS, 0);

#[map]
pub static VIPS: HashMap<VipKey, u32> = HashMap::pinned(MAX_VIPS, 0);

#[map]
pub static SERVICES: HashMap<ServiceKey, u32> = HashMap::pinned(MAX_SERVICES, 0);

#[map]
pub static COUNTERS: PerCpuArray<u64> = PerCpuArray::pinned(Counter::ALL.len() as u32, 0);

/// Counts one packet on this CPU.
#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: the slot is this CPU's own, and an XDP program is not preempted by another on it.
        unsafe { *value += 1 };
    }
}
