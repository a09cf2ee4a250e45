//! How fast the pool notices, and how patient it is.

use std::num::{NonZeroU8, NonZeroUsize};
use std::time::Duration;

use super::wire::MAX_FOCA_DATAGRAM;

/// Deadlines of the membership protocol. All members should use the same.
///
/// The default is for one LAN; the figures behind it come from the simulation
/// (`cluster/tests/measure.rs` prints them).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timing {
    /// Every member probes another this often; a probe that is not answered in this time makes a suspect.
    pub probe_period: Duration,
    /// The direct answer is waited for this long, then others are asked to probe. Less than `probe_period`.
    pub probe_rtt: Duration,
    /// How many others are asked.
    pub indirect_probes: NonZeroUsize,
    /// A suspect of which nothing at all is heard for this long is dead, if the network is sound.
    pub suspect_to_down_after: Duration,
    /// The same if answers have lately been late from this node, or from several.
    pub patience: Duration,
    /// How long a late answer is remembered.
    pub patience_memory: Duration,
    /// A suspect is asked for a sign of life this often, half as often once patience is called for.
    /// Zero: no second opinion and no patience, plain SWIM.
    pub ask_interval: Duration,
    /// News goes to a few members this often while there is any.
    pub gossip_period: Duration,
    /// To how many members.
    pub gossip_fanout: NonZeroUsize,
    /// How often a member tells one piece of news.
    pub transmissions: NonZeroU8,
    /// One other member is asked for the whole list this often (repairs lost news).
    pub resync_period: Duration,
    /// One other member is sent a datagram full of digests this often (repairs lost digests).
    pub digest_period: Duration,
    /// A seed that is no member is tried again after this, then after twice that, up to `seed_retry_max`.
    pub seed_retry: Duration,
    /// The longest pause between two tries: a cut pool is whole again this long after the cut is mended.
    pub seed_retry_max: Duration,
    /// A dead node is remembered, and now and then looked for, this long.
    pub remember_dead: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            probe_period: Duration::from_millis(100),
            probe_rtt: Duration::from_millis(40),
            indirect_probes: NonZeroUsize::MIN.saturating_add(2),
            suspect_to_down_after: Duration::from_millis(450),
            patience: Duration::from_secs(2),
            patience_memory: Duration::from_secs(10),
            ask_interval: Duration::from_millis(50),
            gossip_period: Duration::from_millis(100),
            gossip_fanout: NonZeroUsize::MIN.saturating_add(2),
            transmissions: NonZeroU8::MIN.saturating_add(11),
            resync_period: Duration::from_secs(5),
            digest_period: Duration::from_secs(1),
            seed_retry: Duration::from_millis(250),
            seed_retry_max: Duration::from_secs(4),
            remember_dead: Duration::from_secs(3600),
        }
    }
}

impl Timing {
    pub(super) fn foca(&self) -> foca::Config {
        let one = NonZeroUsize::MIN;
        let periodic = |frequency, num_members| Some(foca::PeriodicParams { frequency, num_members });
        foca::Config {
            probe_period: self.probe_period,
            probe_rtt: self.probe_rtt,
            num_indirect_probes: self.indirect_probes,
            max_transmissions: self.transmissions,
            suspect_to_down_after: self.suspect_to_down_after,
            remove_down_after: Some(self.remember_dead),
            max_packet_size: MAX_FOCA_DATAGRAM,
            notify_down_members: true,
            periodic_announce: periodic(self.resync_period, one),
            periodic_announce_to_down_members: periodic(self.resync_period, one.saturating_add(1)),
            periodic_gossip: periodic(self.gossip_period, self.gossip_fanout),
        }
    }
}
