//! Why a packet takes no ordinary way, and the one place that says what becomes of it.

use aya_ebpf::bindings::xdp_action::{self, XDP_ABORTED, XDP_DROP, XDP_PASS};
use proxy_common::maps::Counter;

/// Everything that can be wrong with a packet, or with what the daemon told us.
#[derive(Clone, Copy)]
pub enum Error {
    /// The frame ends inside a header.
    Truncated,
    /// A header length or a total length that cannot be, of a packet to a virtual address.
    MalformedIp,
    MalformedExtension,
    MalformedTcp,
    /// Encapsulated, but not as front ends do it.
    MalformedOuter,
    /// Encapsulated by somebody who is no member.
    Stranger,
    /// The driver refused to move the packet's start or end.
    NoRoom,
    /// No table is in force: the daemon has not written its first one.
    NoTable,
    /// The table names a slot that is empty: the daemon broke its own rule.
    EmptySlot,
}

/// What becomes of the packet, how it is counted, and whether a person should hear of it.
pub struct Disposition {
    pub action: xdp_action::Type,
    pub counter: Counter,
    pub log: bool,
}

impl Error {
    /// The only map from error to action.
    #[inline(always)]
    pub const fn disposition(self) -> Disposition {
        match self {
            // The kernel is the judge of what is not TCP to a VIP; it drops these too, and counts them.
            Self::Truncated => Disposition { action: XDP_PASS, counter: Counter::Truncated, log: false },
            Self::MalformedIp => Disposition { action: XDP_DROP, counter: Counter::MalformedIp, log: false },
            Self::MalformedExtension => {
                Disposition { action: XDP_DROP, counter: Counter::MalformedExtension, log: false }
            }
            Self::MalformedTcp => Disposition { action: XDP_DROP, counter: Counter::MalformedTcp, log: false },
            Self::MalformedOuter => Disposition { action: XDP_DROP, counter: Counter::MalformedOuter, log: false },
            Self::Stranger => Disposition { action: XDP_DROP, counter: Counter::Stranger, log: false },
            Self::NoRoom => Disposition { action: XDP_DROP, counter: Counter::NoRoom, log: true },
            Self::NoTable => Disposition { action: XDP_PASS, counter: Counter::NoOwner, log: false },
            Self::EmptySlot => Disposition { action: XDP_ABORTED, counter: Counter::NoOwner, log: true },
        }
    }
}
