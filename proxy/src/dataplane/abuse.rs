//! What the program does against those who ask too often, and for whom it does not answer.

use std::{num::NonZeroU32, time::Duration};

use anyhow::{Context, Result};
use aya::maps::{MapData, PerCpuArray};
use nix::time::{ClockId, clock_getres};
use proxy_common::maps::{self, Counter};
use proxy_core::abuse::{Limit, Prefix};

use super::{Dataplane, DenyMaps};

impl Dataplane {
    /// Takes the maps of the deny list, which the caller alone writes from now on, and what an earlier daemon denied.
    ///
    /// # Errors
    /// They were taken before, or cannot be read.
    pub fn take_deny_maps(&mut self) -> Result<(DenyMaps, Vec<Prefix>)> {
        DenyMaps::take(self.ebpf()?)
    }

    /// Sets those flags of `Control` that are in `mask`, and no others.
    pub fn set_flags(&mut self, mask: u32, flags: u32) {
        let former = self.control.read(0).flags;
        let flags = former & !mask | flags & mask;
        if flags != former {
            self.control.set_flags(flags);
        }
    }

    /// Puts a limit of new connections in force.
    pub fn set_limit(&mut self, limit: Limit) {
        let period = limit.period(jiffies_per_second());
        self.control.update(|control| {
            control.new_connection_limit = period.connections.min(maps::MAX_NEW_CONNECTIONS);
            control.period_shift = period.shift;
            (control.prefix_v4, control.prefix_v6) = (limit.prefix_v4, limit.prefix_v6);
        });
    }

    /// Packets of some verdicts together, since the maps were made.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn count_of(&self, verdicts: &[Counter]) -> Result<u64> {
        let first = self.programs.first().context("no program is loaded")?;
        let map = first.ebpf.map(maps::COUNTERS).context("the program has no counters")?;
        let counters = PerCpuArray::<&MapData, u64>::try_from(map)?;
        let read = |counter: &Counter| Ok(counters.get(&(*counter as u32), 0)?.iter().sum::<u64>());
        verdicts.iter().map(read).sum()
    }
}

/// The coarse clock moves by one jiffy.
pub(super) fn jiffies_per_second() -> NonZeroU32 {
    let jiffy = clock_getres(ClockId::CLOCK_MONOTONIC_COARSE).map_or(Duration::from_millis(4), Duration::from);
    let rate = Duration::from_secs(1).as_nanos() / jiffy.as_nanos().max(1);
    u32::try_from(rate).ok().and_then(NonZeroU32::new).unwrap_or(NonZeroU32::MIN)
}
