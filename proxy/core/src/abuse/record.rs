//! One word about one prefix, and which of two words is the later one.

use std::cmp::Ordering;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::prefix::Prefix;

/// Longest reason in octets.
pub const MAX_REASON: usize = 200;
/// Longest name of a front end in octets: one DNS label.
const MAX_ORIGIN: usize = 63;
/// Times after this (the year 2248) are a clock's fault; the limit leaves room to count on from any of them.
pub(super) const MAX_TIME_MS: u64 = 1 << 43;

/// Why a text is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadText {
    #[error("a reason has at most {MAX_REASON} octets")]
    ReasonTooLong,
    #[error("a reason is one line without control characters")]
    ReasonUnprintable,
    #[error("the name of a front end is 1 to {MAX_ORIGIN} of a-z, 0-9 and '-'")]
    Origin,
}

/// Why a prefix is denied, in the operator's words: one line of at most [`MAX_REASON`] octets, perhaps empty.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Reason(Box<str>);

/// The front end by which something was said.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Origin(Box<str>);

macro_rules! text {
    ($name:ident) => {
        impl $name {
            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = BadText;

            fn try_from(text: String) -> Result<Self, BadText> {
                Self::parse(&text)
            }
        }

        impl From<$name> for String {
            fn from(text: $name) -> Self {
                text.0.into()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}
text!(Reason);
text!(Origin);

impl Reason {
    /// Reads a reason.
    ///
    /// # Errors
    /// It is too long, or would disturb a terminal.
    pub fn parse(text: &str) -> Result<Self, BadText> {
        if text.len() > MAX_REASON {
            return Err(BadText::ReasonTooLong);
        }
        if text.chars().any(char::is_control) {
            return Err(BadText::ReasonUnprintable);
        }
        Ok(Self(text.into()))
    }
}

impl Origin {
    /// Reads a front end's name.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(text: &str) -> Result<Self, BadText> {
        let known = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let good = (1..=MAX_ORIGIN).contains(&text.len()) && text.bytes().all(known);
        if good { Ok(Self(text.into())) } else { Err(BadText::Origin) }
    }
}

/// What is said of a prefix.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Word {
    Denied(Denial),
    /// It is denied no longer. The word is kept for a while, so that an older one does not come back from a front end
    /// that was away.
    Removed,
}

/// How a prefix is denied.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Denial {
    /// In Unix milliseconds; None: until it is removed.
    pub until: Option<u64>,
    pub reason: Reason,
}

/// The latest word about a prefix.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub prefix: Prefix,
    /// When it was said, in Unix milliseconds of the front end that said it; later than any word about the prefix that
    /// this front end knew.
    pub changed: u64,
    /// Who said it.
    pub set_by: Origin,
    pub word: Word,
}

impl Record {
    /// The order of the words about one prefix: the greatest is believed. What follows the time only makes the order
    /// total, so that all front ends resolve two words of the same millisecond alike.
    pub(super) fn age(&self, other: &Self) -> Ordering {
        let key = |r: &Self| (r.changed, r.word == Word::Removed);
        key(self).cmp(&key(other)).then_with(|| self.set_by.cmp(&other.set_by)).then_with(|| self.word.cmp(&other.word))
    }

    /// Until when the prefix is denied: None if it is not, `u64::MAX` if no end is set.
    pub(super) fn denied_until(&self) -> Option<u64> {
        match &self.word {
            Word::Denied(denial) => Some(denial.until.unwrap_or(u64::MAX)),
            Word::Removed => None,
        }
    }

    /// Whether its times are sane.
    pub(super) fn is_sane(&self) -> bool {
        let until = self.denied_until().filter(|until| *until != u64::MAX);
        self.changed <= MAX_TIME_MS && until.unwrap_or(0) <= MAX_TIME_MS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_checked_wherever_they_come_from() {
        assert!(Reason::parse("").is_ok());
        assert_eq!(Reason::parse(&"x".repeat(MAX_REASON + 1)), Err(BadText::ReasonTooLong));
        assert_eq!(Reason::parse("a\x1b[2J"), Err(BadText::ReasonUnprintable));
        assert_eq!(Origin::parse("Fe1"), Err(BadText::Origin));
        let wire = postcard::to_stdvec("two\nlines").unwrap();
        assert!(postcard::from_bytes::<Reason>(&wire).is_err());
        assert!(postcard::from_bytes::<Origin>(&wire).is_err());
    }
}
