//! Who is not to be served, and who asks too often.
//!
//! The lists may be long, but a packet pays for them only if it may be on one: a filter of bits answers for nearly all
//! others. Counting keeps nothing of a source that could be evicted: prefixes share a fixed number of counters.

use proxy_common::maps::{DENY_ANY, FilterBit, NEW_CONNECTION_SLOTS};

use aya_ebpf::maps::lpm_trie::Key;

use crate::{
    flow::Flow,
    maps::{ControlRef, DENY_FILTER, DENY_V4, DENY_V6, NEW_CONNECTIONS, jiffies},
};

/// True if the source is on the deny list.
#[inline(always)]
pub fn denied<F: Flow>(flow: &F, control: ControlRef) -> bool {
    control.has(DENY_ANY) && flow.is_suspected(control) && flow.denied()
}

#[inline(always)]
pub fn is_set(bit: FilterBit) -> bool {
    DENY_FILTER.get(bit.word).is_some_and(|word| word & bit.mask != 0)
}

#[inline(never)]
pub fn denied_v4(source: u32) -> bool {
    DENY_V4.get(Key::new(32, source.to_ne_bytes())).is_some()
}

#[inline(never)]
pub fn denied_v6(source: &[u64; 2]) -> bool {
    DENY_V6.get(Key::new(128, crate::flow::bytes(*source))).is_some()
}

/// Counts a new connection of the source's prefix; true if that was one too many in this period.
///
/// Two CPUs that count at once may lose one: a limit need not be exact, an atomic addition costs more than the rest.
#[inline(always)]
pub fn over_limit<F: Flow>(flow: &F, control: ControlRef) -> bool {
    let constants = control.constants();
    let limit = constants.new_connection_limit;
    if limit == 0 {
        return false;
    }
    // Keyed, so that nobody can choose prefixes that share a victim's counter.
    let mixed = (flow.prefix(control) ^ constants.key.k0).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let index = (mixed >> (63 - NEW_CONNECTION_SLOTS.trailing_zeros())) as u32;
    let Some(pair) = NEW_CONNECTIONS.get_ptr_mut(index >> 1) else { return false };
    let period = (jiffies() >> (constants.period_shift & 63)) as u16;
    let shift = (index & 1) * 32;
    // SAFETY: an aligned word of the map's own memory.
    unsafe {
        let seen = (*pair >> shift) as u32;
        let count = if (seen >> 16) as u16 == period { seen & 0xffff } else { 0 };
        if count >= limit {
            return true;
        }
        let counted = u32::from(period) << 16 | (count + 1);
        *pair = *pair & !(0xffff_ffff << shift) | u64::from(counted) << shift;
    }
    false
}
