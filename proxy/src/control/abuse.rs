//! What the CLI asks of the deny list, the limit and SYN cookies.

use serde::{Deserialize, Serialize};

use crate::status::abuse::CookiesMode;

/// Prefixes in one request: a long list comes in several.
pub const MAX_PREFIXES: usize = 500;
/// Entries in one answer.
pub const PAGE: usize = 5_000;

/// About the pool's deny list.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DenyRequest {
    /// Denies prefixes, from now on for so many seconds, or until they are removed.
    Add {
        prefixes: Vec<String>,
        for_seconds: Option<u64>,
        reason: String,
    },
    Remove {
        prefixes: Vec<String>,
    },
    /// The next entries behind this prefix.
    List {
        after: Option<String>,
    },
    Test {
        address: String,
    },
}

/// About this front end's limit of new connections.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitRequest {
    Show,
    /// New connections per second and source prefix; 0: any number.
    Set(u32),
    /// The configuration's again.
    Default,
}

/// About this front end's SYN cookies.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CookiesRequest {
    Show,
    Set(CookiesMode),
}
