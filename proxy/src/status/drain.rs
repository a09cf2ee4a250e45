//! How a drain stands, and what weight this front end has.

use std::{
    fmt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};
use time::{OffsetDateTime, macros::format_description};

use super::duration;

/// How a drain stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DrainState {
    /// There is none: new connections are taken.
    None,
    Draining,
    /// No connection is left.
    Drained,
    /// The deadline has passed, and connections are left.
    Expired,
}

/// This front end's drain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainStatus {
    pub state: DrainState,
    /// Connections that have not ended; none: not counted yet.
    pub connections: Option<usize>,
    /// When it gives up; none: never.
    pub deadline_unix_ms: Option<u64>,
}

impl DrainStatus {
    /// No drain.
    pub const NONE: Self = Self { state: DrainState::None, connections: None, deadline_unix_ms: None };

    fn deadline(&self) -> String {
        let Some(deadline) = self.deadline_unix_ms.map(Duration::from_millis) else {
            return "without a deadline".to_owned();
        };
        let format = format_description!("[hour]:[minute]:[second] UTC");
        let clock = OffsetDateTime::from(UNIX_EPOCH + deadline).format(&format).unwrap_or_default();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        format!("until {clock} (in {})", duration(deadline.saturating_sub(now).as_secs()))
    }
}

impl fmt::Display for DrainStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let left = self.connections.unwrap_or_default();
        match (self.state, self.connections) {
            (DrainState::None, _) => f.write_str("not draining"),
            (DrainState::Draining, None) => write!(f, "draining, {}", self.deadline()),
            (DrainState::Draining, Some(_)) => write!(f, "draining, {} left, {}", connections(left), self.deadline()),
            (DrainState::Drained, _) => f.write_str("drained: no connection is left, it may be stopped"),
            (DrainState::Expired, _) => write!(f, "not drained: {} left at the deadline", connections(left)),
        }
    }
}

/// "1 connection", "2 connections".
pub(super) fn connections(number: usize) -> String {
    if number == 1 { "1 connection".to_owned() } else { format!("{number} connections") }
}

/// This front end's share of new connections relative to the others'.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WeightStatus {
    pub weight: u16,
    /// `steering.weight`.
    pub configured_weight: u16,
}

impl fmt::Display for WeightStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.weight == self.configured_weight {
            return write!(f, "weight {}", self.weight);
        }
        let (weight, configured) = (self.weight, self.configured_weight);
        write!(f, "weight {weight}, kept over restarts; configured is {configured} (autocluster weight default)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drain_says_what_is_left_and_until_when() {
        let drain = |state, connections| DrainStatus { state, connections, deadline_unix_ms: None };
        assert_eq!(drain(DrainState::Draining, None).to_string(), "draining, without a deadline");
        let mut running = drain(DrainState::Draining, Some(123));
        assert_eq!(running.to_string(), "draining, 123 connections left, without a deadline");
        running.deadline_unix_ms = Some(12 * 3_600_000 + 34 * 60_000);
        assert_eq!(running.to_string(), "draining, 123 connections left, until 12:34:00 UTC (in 0 s)");
        assert_eq!(drain(DrainState::Expired, Some(1)).to_string(), "not drained: 1 connection left at the deadline");
    }

    #[test]
    fn a_weight_says_where_it_is_from() {
        assert_eq!(WeightStatus { weight: 7, configured_weight: 7 }.to_string(), "weight 7");
        let kept = WeightStatus { weight: 7, configured_weight: 100 }.to_string();
        assert!(kept.contains("kept over restarts") && kept.contains("configured is 100"), "{kept}");
    }
}
