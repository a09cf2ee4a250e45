//! A pool of machines with connections, under changes that every member hears of in its own time and order. Same seed,
//! same run.
//!
//! What must hold, whatever happens: no packet of a connection that lives is answered by a reset; no SYN makes two
//! connections; no packet goes round for ever; and once the changes stop, every packet finds its connection.

mod client;
mod garbage;
mod kernel;
mod node;
mod schedules;
mod world;

use std::time::Duration;

/// A change of the pool. Members are numbered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    /// A new member, or one that was dead, starts.
    Start(usize),
    Drain(usize),
    Undrain(usize),
    Weight(usize, u16),
    /// Dies without a word.
    Kill(usize),
    /// Says that it leaves; its connections end.
    Leave(usize),
}

/// When what happens.
type Schedule = Vec<(Duration, Change)>;

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}
