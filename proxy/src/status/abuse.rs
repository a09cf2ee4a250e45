//! The deny list, the limit and SYN cookies, for a person and as JSON.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The answer to a [`crate::control::DenyRequest`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DenyResponse {
    /// So many prefixes were added or removed.
    Changed(usize),
    /// In an order of the daemon's own; empty: there are no more.
    Entries(Vec<DenyEntry>),
    /// The longest denied prefix that the address lies in.
    Tested(Option<DenyEntry>),
}

/// A denied prefix.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DenyEntry {
    pub prefix: String,
    /// In Unix milliseconds; None: until it is removed.
    pub until_ms: Option<u64>,
    /// Until the entry ends.
    pub seconds_left: Option<u64>,
    pub reason: String,
    /// The front end that was told.
    pub set_by: String,
    /// In Unix milliseconds.
    pub changed_ms: u64,
}

impl fmt::Display for DenyResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Changed(1) => f.write_str("1 prefix; the whole pool knows within a second"),
            Self::Changed(count) => write!(f, "{count} prefixes; the whole pool knows within a second"),
            Self::Entries(entries) => write!(f, "{} prefixes", entries.len()),
            Self::Tested(Some(entry)) => write!(f, "denied: {entry}"),
            Self::Tested(None) => f.write_str("not denied"),
        }
    }
}

impl fmt::Display for DenyEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}, by {}", self.prefix, self.end(), self.set_by)?;
        if self.reason.is_empty() { Ok(()) } else { write!(f, ": {}", self.reason) }
    }
}

impl DenyEntry {
    /// Until when, for a person.
    #[must_use]
    pub fn end(&self) -> String {
        match self.seconds_left {
            None => "until removed".to_owned(),
            Some(seconds) if seconds < 120 => format!("{seconds} s left"),
            Some(seconds) if seconds < 2 * 3_600 => format!("{} min left", seconds / 60),
            Some(seconds) if seconds < 48 * 3_600 => format!("{} h left", seconds / 3_600),
            Some(seconds) => format!("{} d left", seconds / 86_400),
        }
    }
}

/// The limit in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitStatus {
    /// 0: any number.
    pub new_connections_per_second: u32,
    /// What the configuration says, and is in force again after a restart.
    pub configured: u32,
    pub prefix_v4: u8,
    pub prefix_v6: u8,
}

impl fmt::Display for LimitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.new_connections_per_second {
            0 => f.write_str("new connections are not limited")?,
            rate => write!(
                f,
                "{rate} new connections per second from a source prefix (/{} of IPv4, /{} of IPv6)",
                self.prefix_v4, self.prefix_v6
            )?,
        }
        if self.configured == self.new_connections_per_second {
            return Ok(());
        }
        let configured = if self.configured == 0 { "no limit".to_owned() } else { self.configured.to_string() };
        write!(f, "; after a restart the configuration's again: {configured}")
    }
}

/// What the operator wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CookiesMode {
    /// While there is a flood.
    Auto,
    On,
    Off,
}

/// SYN cookies, and what they depend on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CookiesStatus {
    pub mode: CookiesMode,
    /// New connections are answered by cookies now.
    pub sending: bool,
    /// Cookies that were sent may come back.
    pub out: bool,
    pub syns_per_second: u64,
    /// In the mode `auto`, cookies are sent above so many SYNs per second; 0: never.
    pub above: u32,
}

impl fmt::Display for CookiesStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sending = if self.sending { "sent" } else { "not sent" };
        let why = match (self.mode, self.above) {
            (CookiesMode::On, _) => "told so by `autocluster cookies on`".to_owned(),
            (CookiesMode::Off, _) => "told so by `autocluster cookies off`".to_owned(),
            (CookiesMode::Auto, 0) => "abuse.syn_cookies_above is 0".to_owned(),
            (CookiesMode::Auto, above) => format!("sent above {above} SYNs per second"),
        };
        write!(f, "SYN cookies are {sending} ({why}); {} SYNs per second now", self.syns_per_second)
    }
}

/// What `autocluster status` says of all this.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AbuseStatus {
    pub denied_prefixes: usize,
    pub limit: LimitStatus,
    pub cookies: CookiesStatus,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_and_cookies_read_like_sentences() {
        let limit = LimitStatus { new_connections_per_second: 50, configured: 1_000, prefix_v4: 32, prefix_v6: 56 };
        assert_eq!(
            limit.to_string(),
            "50 new connections per second from a source prefix (/32 of IPv4, /56 of IPv6); after a restart the \
             configuration's again: 1000"
        );
        let limit = LimitStatus { new_connections_per_second: 0, configured: 0, ..limit };
        assert_eq!(limit.to_string(), "new connections are not limited");
        let mode = CookiesMode::Auto;
        let cookies = CookiesStatus { mode, sending: true, out: true, syns_per_second: 9_000, above: 5_000 };
        assert_eq!(
            cookies.to_string(),
            "SYN cookies are sent (sent above 5000 SYNs per second); 9000 SYNs per second now"
        );
    }

    #[test]
    fn an_entry_tells_its_end() {
        let entry = |seconds_left| DenyEntry {
            prefix: "192.0.2.0/24".into(),
            until_ms: None,
            seconds_left,
            reason: "spam".into(),
            set_by: "fe1".into(),
            changed_ms: 0,
        };
        assert_eq!(entry(None).to_string(), "192.0.2.0/24, until removed, by fe1: spam");
        let ends = [119, 120, 7_200, 172_800].map(|seconds| entry(Some(seconds)).end());
        assert_eq!(ends, ["119 s left", "2 min left", "2 h left", "2 d left"]);
    }
}
