//! The clients: each opens one connection at a time and talks on it, now and again.

use std::time::Duration;

use super::kernel::{Conversation, Tuple};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Has sent so many SYNs.
    Opening(u32),
    Open {
        conversation: Conversation,
        server: Server,
    },
    Closed,
    /// The member died that had the connection.
    Lost,
}

/// Who has a connection: a member, in its life of that generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Server {
    pub(super) node: usize,
    pub(super) generation: u64,
}

#[derive(Debug)]
pub(super) struct Client {
    pub(super) tuple: Tuple,
    pub(super) phase: Phase,
    /// It is answered by SYN cookies.
    pub(super) cookie: bool,
    /// Counts its connections, so that timers of an older one are told from those of this one.
    pub(super) life: u64,
    /// Segments that were not answered yet.
    pub(super) unanswered: u32,
}

impl Client {
    /// From one SYN to the next: one second, then doubled (RFC 6298), but not for ever, as runs are short.
    pub(super) fn syn_pause(sent: u32) -> Duration {
        Duration::from_secs(1 << sent.min(2))
    }
}
