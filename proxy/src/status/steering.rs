//! What `autocluster steer` shows of the XDP program and its tables.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use serde::{Deserialize, Serialize};

use super::{drain::connections, share, table};
use crate::dataplane::Mode;

/// Of an interface whose packets another version's program steers until this one has a table.
pub const NOT_ATTACHED: &str = "not attached";

/// An interface that packets are steered on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceStatus {
    pub name: String,
    /// How the program runs there: `driver`, `generic` (which is slow), or [`NOT_ATTACHED`].
    pub mode: String,
}

impl fmt::Display for InterfaceStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slow = if self.mode == Mode::Generic.name() { ": slow" } else { "" };
        write!(f, "{} ({}{slow})", self.name, self.mode)
    }
}

/// All of them in one line.
pub(super) fn interfaces(interfaces: &[InterfaceStatus]) -> String {
    interfaces.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// The program, its table and the members that it names.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SteerShow {
    pub interfaces: Vec<InterfaceStatus>,
    /// Tables put in force since the daemon's start; 0: that of an earlier daemon, or none.
    pub table_version: u64,
    /// Not every member has told yet what it has.
    pub settling: bool,
    /// This front end's connections that have not ended.
    pub connections: usize,
    /// Those of them that are in buckets of other front ends.
    pub strays: usize,
    pub members: Vec<SteerMember>,
    pub vips: Vec<IpAddr>,
}

/// A member, as the table has it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SteerMember {
    pub name: String,
    /// Its number in the table.
    pub slot: Option<u8>,
    /// `active`, `draining` or `joining`.
    pub state: String,
    pub weight: u16,
    /// Buckets that it owns.
    pub buckets: u32,
    /// Of all buckets, in per cent.
    pub share_percent: f64,
    /// Buckets of others in which it still has connections.
    pub holdings: u64,
    /// `this node`, `direct`, `encapsulated`, or `unreachable`.
    pub way: String,
    pub this_node: bool,
}

impl fmt::Display for SteerShow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let settling = if self.settling { "settling: not every member has told what it has" } else { "settled" };
        writeln!(f, "{}: table {}, {settling}", interfaces(&self.interfaces), self.table_version)?;
        writeln!(f, "{}, {} in buckets of other front ends", connections(self.connections), self.strays)?;
        let rows = self.members.iter().map(|m| {
            vec![
                m.slot.map_or_else(|| "-".to_owned(), |slot| slot.to_string()),
                m.name.clone(),
                m.state.clone(),
                m.weight.to_string(),
                m.buckets.to_string(),
                format!("{:.2} %", m.share_percent),
                m.holdings.to_string(),
                m.way.clone(),
            ]
        });
        table(f, &["SLOT", "FRONT END", "STATE", "WEIGHT", "BUCKETS", "SHARE", "HOLDINGS", "WAY"], rows)
    }
}

/// The share of all buckets in per cent, with two decimals.
#[must_use]
pub fn share_percent(buckets: u32) -> f64 {
    (share(buckets as usize) * 10_000.0).round() / 100.0
}

/// Packets by verdict and reason, for each CPU.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SteerStats {
    pub counters: Vec<SteerCounter>,
}

/// One verdict and reason.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SteerCounter {
    pub name: String,
    pub total: u64,
    pub per_cpu: Vec<u64>,
}

impl SteerStats {
    /// Packets since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let counters = self.counters.iter().map(|now| {
            let then = earlier.counters.iter().find(|c| c.name == now.name);
            let of_cpu = |cpu: usize| then.and_then(|c| c.per_cpu.get(cpu)).copied().unwrap_or_default();
            let per_cpu = now.per_cpu.iter().enumerate().map(|(cpu, n)| n.saturating_sub(of_cpu(cpu))).collect();
            let total = now.total.saturating_sub(then.map_or(0, |c| c.total));
            SteerCounter { name: now.name.clone(), total, per_cpu }
        });
        Self { counters: counters.collect() }
    }

    /// The table, with a column of what `rate` finds of each counter.
    pub fn rows(&self, rate: impl Fn(&SteerCounter) -> Option<String>) -> Vec<Vec<String>> {
        let seen = self.counters.iter().filter(|c| c.total > 0);
        seen.map(|counter| {
            let mut row = vec![counter.name.clone(), counter.total.to_string()];
            row.extend(rate(counter));
            row.extend(counter.per_cpu.iter().map(ToString::to_string));
            row
        })
        .collect()
    }

    /// The heads of the columns of [`Self::rows`].
    #[must_use]
    pub fn head(&self, with_rate: bool) -> Vec<String> {
        let cpus = self.counters.first().map_or(0, |c| c.per_cpu.len());
        let mut head = vec!["PACKETS".to_owned(), "TOTAL".to_owned()];
        if with_rate {
            head.push("PER SECOND".to_owned());
        }
        head.extend((0..cpus).map(|cpu| format!("CPU {cpu}")));
        head
    }
}

impl fmt::Display for SteerStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = self.head(false);
        let head: Vec<&str> = head.iter().map(String::as_str).collect();
        table(f, &head, self.rows(|_| None).into_iter())
    }
}

/// What becomes of a connection.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Trace {
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub bucket: u32,
    /// Who takes the bucket's new connections.
    pub owner: Option<String>,
    /// Who may still have older connections of it, in the order in which they are asked.
    pub chain: Vec<String>,
    /// The owner changed a moment ago.
    pub lately: bool,
    /// Who takes over if this front end's daemon dies; only for its own buckets.
    pub successor: Option<String>,
    pub settling: bool,
    pub syn: TraceVerdict,
    pub ack: TraceVerdict,
}

/// What the kernel does with one packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceVerdict {
    /// `pass`, `drop`, `send`, or as XDP calls it.
    pub action: String,
    /// The member that the packet is sent to.
    pub to: Option<String>,
    /// The packet's hop limit when it is sent on.
    pub hop_limit: Option<u8>,
    /// The counters that moved: one on a quiet machine; several if other packets came at the same time.
    pub reasons: Vec<String>,
}

impl fmt::Display for TraceVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.action)?;
        if let Some(to) = &self.to {
            write!(f, " to {to}")?;
        }
        if let Some(hops) = self.hop_limit {
            write!(f, ", hop limit {hops}")?;
        }
        write!(f, " ({})", self.reasons.join(" or "))
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nobody = || "nobody".to_owned();
        writeln!(f, "{} to {}: bucket {}", self.source, self.destination, self.bucket)?;
        writeln!(f, "Owner:      {}", self.owner.clone().unwrap_or_else(nobody))?;
        let lately = if self.lately { " (the owner changed a moment ago)" } else { "" };
        let chain = if self.chain.is_empty() { nobody() } else { self.chain.join(", then ") };
        writeln!(f, "Then asked: {chain}{lately}")?;
        if let Some(successor) = &self.successor {
            writeln!(f, "Successor:  {successor}, if this daemon dies")?;
        }
        if self.settling {
            writeln!(f, "Settling:   not every member has told yet what it has")?;
        }
        writeln!(f, "SYN:        {}", self.syn)?;
        write!(f, "ACK:        {}", self.ack)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(counts: &[u64]) -> SteerStats {
        let counter = SteerCounter { name: "own".into(), total: counts.iter().sum(), per_cpu: counts.to_vec() };
        SteerStats { counters: vec![counter] }
    }

    #[test]
    fn rates_are_differences() {
        let moved = stats(&[5, 7]).since(&stats(&[5, 2]));
        assert_eq!((moved.counters[0].total, moved.counters[0].per_cpu.clone()), (5, vec![0, 5]));
        let restarted = stats(&[1, 0]).since(&stats(&[5, 2]));
        assert_eq!(restarted.counters[0].total, 0);
    }

    #[test]
    fn every_cpu_has_a_column() {
        let text = stats(&[5, 7]).to_string();
        let columns = |line: usize| text.lines().nth(line).unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!((columns(1), columns(2)), ("PACKETS TOTAL CPU 0 CPU 1".to_owned(), "own 12 5 7".to_owned()));
    }

    #[test]
    fn a_verdict_reads_as_a_sentence() {
        let verdict = TraceVerdict {
            action: "send".into(),
            to: Some("fe2".into()),
            hop_limit: Some(11),
            reasons: vec!["steered_new_connections".into()],
        };
        assert_eq!(verdict.to_string(), "send to fe2, hop limit 11 (steered_new_connections)");
    }
}
