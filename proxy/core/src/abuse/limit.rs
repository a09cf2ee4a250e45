//! The limit of new connections, as the XDP program counts: in periods of a power of two of jiffies.

use std::num::NonZeroU32;

/// Largest limit in connections per second; more is no limit.
const MAX_PER_SECOND: u32 = 10_000_000;
/// What the program can look at of an IPv6 address.
const MAX_V6_BITS: u8 = 64;
/// What an IPv4 address has.
const MAX_V4_BITS: u8 = 32;

/// New connections that the sources of one prefix may begin, and how long such a prefix is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// None: any number.
    pub per_second: Option<NonZeroU32>,
    /// 1 to 32.
    pub prefix_v4: u8,
    /// 1 to 64.
    pub prefix_v6: u8,
}

/// Why there can be no such limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    #[error("should be at most {MAX_PER_SECOND} connections per second; 0 is no limit")]
    TooHigh,
    #[error("should be 1 to {MAX_V4_BITS} bits")]
    PrefixV4,
    #[error("should be 1 to {MAX_V6_BITS} bits")]
    PrefixV6,
}

/// The limit in the program's own units.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Period {
    /// A period has two to this power jiffies.
    pub shift: u32,
    /// New connections in a period; 0: any number.
    pub connections: u32,
}

impl Limit {
    /// `per_second`: 0 is no limit.
    ///
    /// # Errors
    /// What is out of range.
    pub fn new(per_second: u32, prefix_v4: u8, prefix_v6: u8) -> Result<Self, LimitError> {
        if !(1..=MAX_V4_BITS).contains(&prefix_v4) {
            return Err(LimitError::PrefixV4);
        }
        if !(1..=MAX_V6_BITS).contains(&prefix_v6) {
            return Err(LimitError::PrefixV6);
        }
        Self { per_second: None, prefix_v4, prefix_v6 }.with_rate(per_second)
    }

    /// The same prefixes with another rate; 0 is no limit.
    ///
    /// # Errors
    /// The rate is out of range.
    pub fn with_rate(self, per_second: u32) -> Result<Self, LimitError> {
        if per_second > MAX_PER_SECOND {
            return Err(LimitError::TooHigh);
        }
        Ok(Self { per_second: NonZeroU32::new(per_second), ..self })
    }

    /// In periods of about a second on a kernel with so many jiffies per second. The program counts anew in each
    /// period, so at the border of two of them twice the limit may pass.
    #[must_use]
    pub fn period(&self, jiffies_per_second: NonZeroU32) -> Period {
        let rate = u64::from(jiffies_per_second.get());
        let below = rate.ilog2();
        // The nearer of two powers of two.
        let shift = if 3_u64 << below > 2 * rate { below } else { below + 1 };
        let per_period = u64::from(self.per_second.map_or(0, NonZeroU32::get)) << shift;
        Period { shift, connections: u32::try_from(per_period.div_ceil(rate)).unwrap_or(u32::MAX) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn period(per_second: u32, jiffies: u32) -> (u32, u32) {
        let period = Limit::new(per_second, 32, 56).unwrap().period(NonZeroU32::new(jiffies).unwrap());
        (period.shift, period.connections)
    }

    #[test]
    fn a_period_is_about_a_second_and_the_limit_is_scaled_to_it() {
        assert_eq!(period(1_000, 1_000), (10, 1_024));
        assert_eq!(period(1_000, 250), (8, 1_024));
        assert_eq!(period(1_000, 300), (8, 854));
        assert_eq!(period(1_000, 100), (7, 1_280));
        assert_eq!(period(1, 300), (8, 1), "a limit never becomes none");
        assert_eq!(period(0, 300).1, 0);
        assert_eq!(period(MAX_PER_SECOND, 100), (7, 12_800_000));
        for jiffies in 1..2_000_u32 {
            let seconds = f64::from(1 << period(1, jiffies).0) / f64::from(jiffies);
            assert!((0.66..=1.5).contains(&seconds), "{jiffies}: {seconds} s");
        }
    }

    #[test]
    fn limits_are_checked() {
        assert_eq!(Limit::new(1, 0, 64), Err(LimitError::PrefixV4));
        assert_eq!(Limit::new(1, 33, 64), Err(LimitError::PrefixV4));
        assert_eq!(Limit::new(1, 32, 65), Err(LimitError::PrefixV6));
        assert_eq!(Limit::new(MAX_PER_SECOND + 1, 32, 64), Err(LimitError::TooHigh));
    }
}
