//! The `[abuse]` table: what a source may do, and when there is a flood.

use proxy_core::abuse::{Limit, LimitError};

use super::{Reader, Table};

/// New connections that the sources of one prefix may begin per second. An address may be that of a carrier's NAT: some
/// thousand subscribers, whose mail clients all come back within seconds of an outage. They stay below this; a host
/// that floods is above it a hundredfold.
const NEW_CONNECTIONS_PER_SECOND: u32 = 1_000;
/// IPv4 addresses are counted one by one: a neighbour's flood is nobody's fault.
const PREFIX_V4: u16 = 32;
/// What a customer gets at least where providers follow RIPE-690; single addresses and /64s cost nothing.
const PREFIX_V6: u16 = 56;
/// SYNs per second at this front end above which there is a flood: far above what a busy front end accepts, far below
/// what fills a listener's queue.
const SYN_COOKIES_ABOVE: u32 = 5_000;

/// Defence against those who ask too often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Abuse {
    pub limit: Limit,
    /// SYNs per second above which new connections are answered by SYN cookies; 0: never.
    pub syn_cookies_above: u32,
}

/// Reads the table.
pub(super) fn abuse(reader: &mut Reader, root: &mut Table<'_>) -> Option<Abuse> {
    let mut table = reader.table(root, "abuse");
    let rate = reader.or(&mut table, "new_connections_per_second", NEW_CONNECTIONS_PER_SECOND);
    let v4 = reader.or(&mut table, "prefix_v4", PREFIX_V4);
    let v6 = reader.or(&mut table, "prefix_v6", PREFIX_V6);
    let syn_cookies_above = reader.or(&mut table, "syn_cookies_above", SYN_COOKIES_ABOVE);
    // A length beyond an octet is too long whatever its value.
    let [v4, v6] = [v4, v6].map(|bits| u8::try_from(bits).unwrap_or(u8::MAX));
    let limit = Limit::new(rate, v4, v6).map_err(|error| {
        let key = match error {
            LimitError::TooHigh => "new_connections_per_second",
            LimitError::PrefixV4 => "prefix_v4",
            LimitError::PrefixV6 => "prefix_v6",
        };
        reader.fault(&table, key, error.to_string());
    });
    reader.close(table);
    Some(Abuse { limit: limit.ok()?, syn_cookies_above })
}
