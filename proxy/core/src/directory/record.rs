//! The words of the directory: who describes a back end, where it stands in its log, and what an entry is.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::address::{Address, AddressError};

/// Longest name of a node in octets: it is one label of the DNS names in the node's certificate
/// (RFC 1035 section 2.3.4).
pub const MAX_NAME: usize = 63;

/// The name of a source, which is the name of the back end that it describes and of its certificate.
/// Ordered as text: the smallest wins a conflict.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SourceName(Arc<str>);

/// Why a text cannot name a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a name is 1 to {MAX_NAME} lower-case letters, digits and inner hyphens")]
pub struct NameError;

impl SourceName {
    /// Reads a name: one DNS label in lower case, which makes it a safe file name too.
    ///
    /// # Errors
    /// If the text is anything else.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let letters = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        let edges = !text.starts_with('-') && !text.ends_with('-');
        if letters && edges && (1..=MAX_NAME).contains(&text.len()) { Ok(Self(text.into())) } else { Err(NameError) }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for SourceName {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        Self::parse(&text)
    }
}

impl From<SourceName> for String {
    fn from(name: SourceName) -> Self {
        name.as_str().to_owned()
    }
}

/// One life of a source: the Unix time in milliseconds at which its agent started. Two logs of one
/// source with different epochs have nothing in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Epoch(pub u64);

/// How many changes a log has seen in its epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Seq(pub u64);

impl Seq {
    /// The number of the change after this one.
    #[must_use]
    pub fn next(self) -> Self {
        self.after(1)
    }

    /// The number `changes` later.
    #[must_use]
    pub fn after(self, changes: usize) -> Self {
        Self(self.0.saturating_add(u64::try_from(changes).unwrap_or(u64::MAX)))
    }
}

/// A point in the log of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Position {
    pub epoch: Epoch,
    pub seq: Seq,
}

/// What a back end offers and how it reads an address.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BackendRecord {
    pub services: Services,
    /// What divides the user from the sub-address (RFC 5233) on this back end; None: no sub-addresses.
    pub recipient_delimiter: Option<char>,
}

/// Where a back end's services are; None: it has no such service.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Services {
    pub lmtp: Option<Endpoint>,
    pub smtp: Option<Endpoint>,
    pub imap: Option<Endpoint>,
    pub pop3: Option<Endpoint>,
}

/// One service of a back end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    pub address: SocketAddr,
    pub tls: EndpointTls,
}

/// Whether a service expects a TLS handshake first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum EndpointTls {
    None,
    Implicit,
}

/// One user of a source: the address of a mailbox, spelled as its back end spells it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Entry {
    pub address: Address,
}

impl TryFrom<String> for Entry {
    type Error = AddressError;
    fn try_from(text: String) -> Result<Self, AddressError> {
        Ok(Self { address: Address::parse(&text)? })
    }
}

impl From<Entry> for String {
    fn from(entry: Entry) -> Self {
        entry.address.to_string()
    }
}

/// One step of a log.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Change {
    /// The user exists from here on, spelled so.
    Put(Entry),
    /// The user exists no longer; the spelling does not matter.
    Remove(Entry),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dns_labels() {
        let long = "x".repeat(64);
        for good in ["be1", "a", "mail-7", "0"] {
            assert_eq!(SourceName::parse(good).unwrap().as_str(), good);
        }
        for bad in ["", "-a", "a-", "A", "a.b", "../x", "a b", "ä", long.as_str()] {
            assert_eq!(SourceName::parse(bad), Err(NameError), "{bad:?}");
        }
    }
}
