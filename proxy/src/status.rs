//! What a front end says of itself: the answer to `autocluster status`, for a person and as JSON.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    net::{IpAddr, SocketAddr},
};

use serde::{Deserialize, Serialize};

pub mod abuse;
pub mod drain;
pub mod steering;

use abuse::AbuseStatus;
use drain::{DrainState, DrainStatus, WeightStatus};
use steering::InterfaceStatus;

/// A front end, its pool and what it serves.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    pub node: NodeStatus,
    pub members: Vec<MemberStatus>,
    pub vips: Vec<VipStatus>,
    pub sources: Vec<SourceStatus>,
    pub directory: DirectoryStatus,
    pub scanner: ScannerStatus,
    pub steering: SteeringStatus,
    pub abuse: AbuseStatus,
    pub sessions: BTreeMap<String, i64>,
}

/// This node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeStatus {
    pub name: String,
    pub version: String,
    pub uptime_s: u64,
    /// `joining`, `active` or `draining`.
    pub state: String,
    #[serde(flatten)]
    pub weight: WeightStatus,
    pub drain: DrainStatus,
}

/// A live front end.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MemberStatus {
    pub name: String,
    pub address: SocketAddr,
    /// `joining`, `active` or `draining`.
    pub state: String,
    pub weight: u16,
    /// Buckets, of 262,144, that it owns.
    pub buckets: u32,
    pub this_node: bool,
}

/// A virtual address.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VipStatus {
    pub address: IpAddr,
    /// Who answers for it.
    pub owner: Option<String>,
}

/// A back end, as a source of the directory.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SourceStatus {
    pub name: String,
    pub users: usize,
    pub domains: usize,
    /// All of it was heard at some time.
    pub complete: bool,
    /// It was heard lately enough to believe that who is not in it does not exist.
    pub fresh: bool,
    pub connected: bool,
    pub epoch: Option<u64>,
    pub sequence: Option<u64>,
    /// Since it last confirmed the copy.
    pub age_ms: Option<u64>,
    pub lmtp: Option<SocketAddr>,
    pub smtp: Option<SocketAddr>,
    pub imap: Option<SocketAddr>,
    pub pop3: Option<SocketAddr>,
}

/// All sources together.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DirectoryStatus {
    pub users: usize,
    /// Addresses that several sources claim.
    pub conflicts: usize,
    /// False for a moment after a start, while sources may exist that nobody has told of yet: unknown addresses are
    /// answered 451.
    pub settled: bool,
}

/// The virus scanner.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ScannerStatus {
    pub address: String,
    pub reachable: bool,
    /// Its version, or why it cannot be asked.
    pub detail: String,
}

/// The XDP program.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SteeringStatus {
    pub interfaces: Vec<InterfaceStatus>,
    /// Every member has told which connections it has.
    pub settled: bool,
    /// This front end's connections that have not ended.
    pub connections: usize,
    /// Those of them that are in buckets of other front ends.
    pub strays: usize,
    /// Packets by verdict and reason.
    #[serde(flatten)]
    pub counters: BTreeMap<String, u64>,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let node = &self.node;
        write!(f, "{} (AutoCluster {}), up {}, {}", node.name, node.version, duration(node.uptime_s), node.weight)?;
        match node.drain.state {
            DrainState::None => writeln!(f, ", {}", node.state)?,
            DrainState::Draining | DrainState::Drained | DrainState::Expired => writeln!(f, "\n{}", node.drain)?,
        }
        let members = self.members.iter().map(|m| {
            let me = if m.this_node { "this node" } else { "" };
            let share = format!("{:.1} %", 100.0 * share(m.buckets as usize));
            vec![m.name.clone(), m.address.to_string(), m.state.clone(), m.weight.to_string(), share, me.to_owned()]
        });
        table(f, &["FRONT END", "ADDRESS", "STATE", "WEIGHT", "SHARE", ""], members)?;
        let vips =
            self.vips.iter().map(|v| vec![v.address.to_string(), v.owner.clone().unwrap_or_else(|| "nobody".into())]);
        table(f, &["VIP", "ANSWERED BY"], vips)?;
        table(
            f,
            &["BACK END", "USERS", "DOMAINS", "DIRECTORY", "DELIVERY", "IMAP", "POP3"],
            self.sources.iter().map(source_row),
        )?;
        let settling = if self.directory.settled { "" } else { "; just started: unknown addresses get 451" };
        let DirectoryStatus { users, conflicts, .. } = self.directory;
        writeln!(f, "\nDirectory: {users} users, {conflicts} conflicts{settling}")?;
        let up = if self.scanner.reachable { "up" } else { "DOWN (mail gets 451)" };
        writeln!(f, "Scanner:   {} {up}: {}", self.scanner.address, self.scanner.detail)?;
        let sessions: Vec<_> = self.sessions.iter().map(|(name, open)| format!("{open} {name}")).collect();
        writeln!(f, "Sessions:  {}", sessions.join(", "))?;
        let counters = self.steering.counters.iter().filter(|(_, n)| **n > 0);
        let counters: Vec<_> = counters.map(|(name, n)| format!("{name} {n}")).collect();
        let SteeringStatus { interfaces, settled, connections, strays, .. } = &self.steering;
        let interfaces = steering::interfaces(interfaces);
        let settling = if *settled { "" } else { ", settling" };
        writeln!(
            f,
            "Steering:  {interfaces}: {connections} connections, {strays} of them in others' buckets{settling}"
        )?;
        let AbuseStatus { denied_prefixes, limit, cookies } = &self.abuse;
        writeln!(f, "Denied:    {denied_prefixes} prefixes")?;
        writeln!(f, "Limit:     {limit}")?;
        writeln!(f, "Floods:    {cookies}")?;
        write!(f, "Packets:   {}", counters.join(", "))
    }
}

fn source_row(source: &SourceStatus) -> Vec<String> {
    let state = match (source.complete, source.fresh, source.connected) {
        (false, ..) => "never complete (unknown users get 451)",
        (true, false, _) => "silent (unknown users get 451)",
        (true, true, false) => "disconnected",
        (true, true, true) => "live",
    };
    let endpoint = |address: Option<SocketAddr>| address.map_or_else(|| "-".to_owned(), |a| a.to_string());
    vec![
        source.name.clone(),
        source.users.to_string(),
        source.domains.to_string(),
        state.to_owned(),
        endpoint(source.lmtp.or(source.smtp)),
        endpoint(source.imap),
        endpoint(source.pop3),
    ]
}

fn share(buckets: usize) -> f64 {
    let buckets = u32::try_from(buckets).unwrap_or(u32::MAX);
    f64::from(buckets) / f64::from(proxy_common::maps::BUCKETS)
}

fn duration(seconds: u64) -> String {
    match (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, minutes) => format!("{minutes} min"),
        (0, hours, minutes) => format!("{hours} h {minutes} min"),
        (days, hours, _) => format!("{days} d {hours} h"),
    }
}

/// [`table`] as text.
#[must_use]
pub fn table_text(head: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _written = table(&mut text, head, rows);
    text
}

/// An empty line, the head, and the rows, in columns as wide as they need to be.
fn table(f: &mut impl fmt::Write, head: &[&str], rows: impl Iterator<Item = Vec<String>>) -> fmt::Result {
    let mut lines = vec![head.iter().map(ToString::to_string).collect()];
    lines.extend(rows);
    let width = |column: usize| lines.iter().map(|l: &Vec<String>| l[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<_> = (0..head.len()).map(width).collect();
    f.write_char('\n')?;
    for line in &lines {
        let mut text = String::new();
        for (cell, width) in line.iter().zip(&widths) {
            write!(text, "{cell:width$}  ")?;
        }
        writeln!(f, "{}", text.trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_flat_where_people_script() {
        let steering = SteeringStatus {
            interfaces: vec![InterfaceStatus { name: "eth0".into(), mode: "generic".into() }],
            settled: true,
            connections: 3,
            strays: 0,
            counters: [("own_new_connections".to_owned(), 7)].into(),
        };
        let json = serde_json::to_value(&steering).unwrap();
        assert_eq!((&json["own_new_connections"], &json["connections"]), (&7.into(), &3.into()));
        let read: SteeringStatus = serde_json::from_value(json).unwrap();
        assert_eq!((read.connections, read.counters), (3, steering.counters));
        assert_eq!(steering::interfaces(&read.interfaces), "eth0 (generic: slow)");
    }

    #[test]
    fn uptimes() {
        assert_eq!([5, 65, 3_700, 90_000].map(duration), ["5 s", "1 min", "1 h 1 min", "1 d 1 h"]);
    }
}
