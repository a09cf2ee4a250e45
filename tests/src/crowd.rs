//! Tens of thousands of connections to the pool, held open by worker processes: one process may have 20,000 files.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::AddAssign;
use std::process::{Child, ChildStdin, ChildStdout};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::lab::{Lab, VIP, VIP6, tool};

/// Connections that one worker holds at the most.
const WORKER_CAPACITY: u32 = 12_000;
/// Handshakes and greetings that one worker awaits at once.
const AT_ONCE: usize = 128;
/// Addresses of each family that the client has for them. One address has 28,000 ports.
const SOURCES: u8 = 4;
const PORTS: [u16; 2] = [25, 143];
/// A user waits so long for a new connection: one repetition of a lost SYN (1 s), and some.
const NEWCOMERS_PATIENCE: Duration = Duration::from_secs(3);

/// What a worker is told, one line of JSON each.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Order {
    /// Opens connections and awaits the greetings.
    Open { count: u32, targets: Vec<SocketAddr>, sources: Vec<IpAddr>, at_once: usize, patience: Duration },
    /// Speaks on every connection and awaits the answers; what fails is given up.
    Check { patience: Duration },
    /// Speaks on every connection at a steady pace. Answered by a [`Pace`].
    Speak { every: Duration, during: Duration },
    /// Opens connections at a steady pace, and closes each when it is greeted. Answered by a [`Pace`].
    Come { every: Duration, during: Duration, patience: Duration, targets: Vec<SocketAddr>, sources: Vec<IpAddr> },
}

/// What was to be done in a time, and what was done of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pace {
    pub due: u64,
    pub done: u64,
}

/// What a worker answers: what became of the connections, by the front end that its greeting named.
pub type Census = BTreeMap<String, Fates>;

/// The front end of connections that ended before they were greeted.
pub const NOBODY: &str = "nobody";

/// Numbers of connections.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fates {
    pub alive: u64,
    pub reset: u64,
    /// Ended by the server in order.
    pub closed: u64,
    /// No answer in time.
    pub silent: u64,
    /// Answered by something else.
    pub wrong: u64,
    /// Packets to the server that were lost, on those connections that are alive, since they were greeted. One that was
    /// repeated because its answer was late is none (RFC 2883).
    pub repeated: u64,
}

impl Fates {
    /// All that are not alive.
    #[must_use]
    pub const fn lost(&self) -> u64 {
        self.reset + self.closed + self.silent + self.wrong
    }
}

impl AddAssign for Fates {
    fn add_assign(&mut self, other: Self) {
        self.alive += other.alive;
        self.reset += other.reset;
        self.closed += other.closed;
        self.silent += other.silent;
        self.wrong += other.wrong;
        self.repeated += other.repeated;
    }
}

/// Adds what several workers answered.
fn sum(answers: impl IntoIterator<Item = Census>) -> Census {
    let mut all = Census::new();
    for (front_end, fates) in answers.into_iter().flatten() {
        *all.entry(front_end).or_default() += fates;
    }
    all
}

/// All of a census, whichever front end.
#[must_use]
pub fn total(census: &Census) -> Fates {
    let mut all = Fates::default();
    for fates in census.values() {
        all += *fates;
    }
    all
}

/// Connections from the client host to both VIPs, SMTP and IMAP.
#[derive(Debug)]
pub struct Crowd {
    workers: Vec<Worker>,
}

#[derive(Debug)]
struct Worker {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    sources: Vec<IpAddr>,
}

impl Crowd {
    /// Gives the client its addresses and starts the workers for up to `capacity` connections.
    ///
    /// # Errors
    /// If a worker cannot be started.
    pub fn gather(lab: &Lab, capacity: u32) -> anyhow::Result<Self> {
        let sources: Vec<[IpAddr; 2]> = (0..SOURCES).map(source_addresses).collect();
        for [v4, v6] in &sources {
            let (v4, v6) = (format!("{v4}/24"), format!("{v6}/64"));
            for address in [&[v4.as_str()][..], &[v6.as_str(), "nodad"]] {
                let argv = [&["ip", "addr", "replace"][..], address, &["dev", "eth0"]].concat();
                let output = lab.exec("client", &argv)?;
                ensure!(output.status.success(), "{argv:?}: {}", String::from_utf8_lossy(&output.stderr));
            }
        }
        let count = capacity.div_ceil(WORKER_CAPACITY).max(2);
        let of = |at: u32| sources[at as usize % sources.len()].to_vec();
        let workers = (0..count).map(|at| Worker::start(lab, of(at))).collect::<anyhow::Result<_>>()?;
        Ok(Self { workers })
    }

    /// Opens connections, as many on each VIP and port as on any other.
    ///
    /// # Errors
    /// If a worker ended. Connections that failed are in the census.
    pub fn open(&mut self, count: u32, patience: Duration) -> anyhow::Result<Census> {
        let targets = targets();
        let workers = u32::try_from(self.workers.len())?;
        self.tell(|at, worker| Order::Open {
            count: count / workers + u32::from(at < count % workers),
            targets: targets.clone(),
            sources: worker.sources.clone(),
            at_once: AT_ONCE,
            patience,
        })
    }

    /// Speaks on every connection that is not known to be lost.
    ///
    /// # Errors
    /// If a worker ended.
    pub fn check(&mut self, patience: Duration) -> anyhow::Result<Census> {
        self.tell(|_, _| Order::Check { patience })
    }

    /// Lets every connection of the first worker speak, and new ones come and go from the second one, at the pace that
    /// is given.
    ///
    /// # Errors
    /// If a worker ended.
    pub fn pace(
        &mut self,
        speak_every: Duration,
        come_every: Duration,
        during: Duration,
    ) -> anyhow::Result<(Pace, Pace)> {
        let [speaker, comer, ..] = self.workers.as_mut_slice() else { bail!("too few workers") };
        speaker.tell(&Order::Speak { every: speak_every, during })?;
        let (targets, sources, patience) = (targets(), comer.sources.clone(), NEWCOMERS_PATIENCE);
        comer.tell(&Order::Come { every: come_every, during, patience, targets, sources })?;
        Ok((speaker.answer()?, comer.answer()?))
    }

    /// All workers work at the same time.
    fn tell(&mut self, order: impl Fn(u32, &Worker) -> Order) -> anyhow::Result<Census> {
        for (at, worker) in (0..).zip(&mut self.workers) {
            worker.tell(&order(at, worker))?;
        }
        let answers: Vec<Census> = self.workers.iter_mut().map(Worker::answer).collect::<anyhow::Result<_>>()?;
        Ok(sum(answers))
    }
}

/// Both VIPs, both protocols.
fn targets() -> Vec<SocketAddr> {
    let vips = [IpAddr::from(VIP), IpAddr::from(VIP6)].into_iter();
    vips.flat_map(|vip| PORTS.map(|port| SocketAddr::new(vip, port))).collect()
}

/// 10.77.0.201.., fd77::201..
fn source_addresses(at: u8) -> [IpAddr; 2] {
    let v6 = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 0x201 + u16::from(at));
    [Ipv4Addr::new(10, 77, 0, 201 + at).into(), v6.into()]
}

impl Worker {
    fn start(lab: &Lab, sources: Vec<IpAddr>) -> anyhow::Result<Self> {
        let program = tool("hold")?.display().to_string();
        let mut child = lab.spawn("client", &[&program])?;
        let input = child.stdin.take().context("no standard input")?;
        let output = BufReader::new(child.stdout.take().context("no standard output")?);
        Ok(Self { child, input, output, sources })
    }

    fn tell(&mut self, order: &Order) -> anyhow::Result<()> {
        let line = serde_json::to_string(order)?;
        writeln!(self.input, "{line}").context("a worker has ended")
    }

    fn answer<T: DeserializeOwned>(&mut self) -> anyhow::Result<T> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        serde_json::from_str(&line).with_context(|| format!("a worker said {line:?}"))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_workers_saw_is_added_up() {
        let one = Census::from([("fe1".to_owned(), Fates { alive: 3, reset: 1, ..Fates::default() })]);
        let two = Census::from([
            ("fe1".to_owned(), Fates { alive: 2, ..Fates::default() }),
            ("fe2".to_owned(), Fates { silent: 4, closed: 1, ..Fates::default() }),
        ]);
        let all = sum([one, two]);
        assert_eq!((all["fe1"].alive, all["fe1"].lost(), all["fe2"].lost()), (5, 1, 5));
        assert_eq!((total(&all).alive, total(&all).lost()), (5, 6));
    }
}
