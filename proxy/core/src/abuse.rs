//! What is kept out at the NIC: the pool's list of denied prefixes, the limit of new connections, and when SYN cookies
//! are sent.
//!
//! The deny list is one map for the whole pool, from prefix to the latest word about it ([`Record`]). Front ends merge
//! what they hear from each other; the later word wins, so that the order in which they hear it does not matter.
//!
//! Invariant: nothing else of the core knows this module, and it knows nothing else of the core.

mod deny;
mod filter;
mod flood;
mod limit;
mod link;
pub mod persist;
mod prefix;
mod record;
pub mod wire;

pub use deny::{
    Change, DenyError, DenyList, MAX_ENTRIES, MAX_PER_ORIGIN, MAX_TOMBSTONES, Merged, TOMBSTONE_LIFETIME_MS,
};
pub use filter::{BitChange, Filter};
pub use flood::{Cookies, FloodSwitch, Mode, Sample};
pub use limit::{Limit, LimitError, Period};
pub use link::{Inbound, LinkError, Outbound, SUMMARY_EVERY};
pub use prefix::{MIN_V4_BITS, MIN_V6_BITS, Prefix, PrefixError};
pub use record::{BadText, Denial, MAX_REASON, Origin, Reason, Record, Word};
