//! What a person watching `lab up` sees.

use std::io::{self, Write as _};
use std::time::{Duration, Instant};

/// One line per step, with the time since the beginning.
#[derive(Debug)]
pub struct Progress {
    start: Instant,
    quiet: bool,
}

impl Progress {
    /// Prints on standard output.
    #[must_use]
    pub fn to_stdout() -> Self {
        Self { start: Instant::now(), quiet: false }
    }

    /// Prints nothing: for tests.
    #[must_use]
    pub fn quiet() -> Self {
        Self { start: Instant::now(), quiet: true }
    }

    /// Time since this was made.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// One line.
    pub fn step(&self, text: &str) {
        if self.quiet {
            return;
        }
        // A closed pipe is no reason to leave a lab half made.
        drop(writeln!(io::stdout(), "{:6.2} s  {text}", self.start.elapsed().as_secs_f64()));
    }
}
