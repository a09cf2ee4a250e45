//! What the steering driver shows of itself.

use std::{collections::BTreeMap, sync::Arc};

use proxy_common::maps;
use proxy_core::steering::{Plan, drain::Drain};

/// The state of steering, for status, metrics and whoever waits for it.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Plans put in force since the start.
    pub version: u64,
    /// The plan in force; none before the members are known.
    pub plan: Option<Arc<Plan>>,
    /// Every member has told what it has.
    pub settled: bool,
    /// The daemon is to end.
    pub stopping: bool,
    /// No member sends this front end anything new: all work by a view in which it drains, or has not served yet.
    pub takes_nothing: bool,
    /// Connections to steered services that have not ended.
    pub connections: usize,
    /// Connections in buckets of other front ends.
    pub strays: usize,
    /// Buckets of others in which each member may still have connections.
    pub holdings: BTreeMap<String, u64>,
    /// Buckets that each member owns.
    pub shares: BTreeMap<String, u32>,
    /// The plan's members as the program has them, by slot; one without flags cannot be reached, for its next hop is not
    /// known.
    pub members: Vec<maps::Member>,
    /// The operator's drain.
    pub drain: Option<Drain>,
}

impl Snapshot {
    /// Nobody sends this front end anything new any more, and its end may begin.
    pub(super) fn all_know_of_the_end(&self) -> bool {
        self.stopping && self.takes_nothing
    }
}
