//! Seeded simulation: a virtual clock and a network that loses, delays and cuts. Same seed, same run.

mod network;
mod pool;

pub(crate) use network::Link;
pub(crate) use pool::{Happening, Pool};

/// The zero of virtual time. It differs from run to run, and nothing may depend on it: only
/// differences count.
#[expect(clippy::disallowed_methods, reason = "the only way to get any Instant at all")]
pub(crate) fn epoch() -> std::time::Instant {
    std::time::Instant::now()
}
