//! Five processes and what they report.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, bail};
use membership_node::Report;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::mpsc;

use crate::engine::{Carrier, Engine};
use crate::relay::{Fault, Relay};

pub(crate) const SIZE: usize = 5;
const SEEDS: usize = 2;

/// A report, when and from whom it came.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) at: Instant,
    pub(crate) node: usize,
    pub(crate) report: Report,
}

struct Process {
    child: Child,
    input: ChildStdin,
}

pub(crate) struct Cluster {
    engine: &'static Engine,
    pki: PathBuf,
    listen: [SocketAddr; SIZE],
    advertise: [SocketAddr; SIZE],
    fault: Fault,
    relays: Vec<Relay>,
    processes: [Option<Process>; SIZE],
    sender: mpsc::UnboundedSender<Line>,
    lines: mpsc::UnboundedReceiver<Line>,
}

pub(crate) fn name(node: usize) -> String {
    format!("fe{node}")
}

fn free_address(carrier: Carrier) -> anyhow::Result<SocketAddr> {
    let any = "127.0.0.1:0";
    Ok(match carrier {
        Carrier::Udp => std::net::UdpSocket::bind(any)?.local_addr()?,
        Carrier::Tcp => std::net::TcpListener::bind(any)?.local_addr()?,
    })
}

impl Cluster {
    /// Starts all; with `relayed` everything that they send passes relays, which are honest for now.
    pub(crate) async fn start(engine: &'static Engine, pki: &Path, relayed: bool) -> anyhow::Result<Self> {
        let mut listen = [SocketAddr::from(([127, 0, 0, 1], 0)); SIZE];
        for address in &mut listen {
            *address = free_address(engine.carrier)?;
        }
        let (fault, mut relays, mut advertise) = (Fault::default(), Vec::new(), listen);
        if relayed {
            for (seed, address) in (0_u64..).zip(&mut advertise) {
                let relay = Relay::start(engine.carrier, *address, fault.clone(), seed).await?;
                *address = relay.address();
                relays.push(relay);
            }
        }
        let (sender, lines) = mpsc::unbounded_channel();
        let (pki, processes) = (pki.to_owned(), Default::default());
        let mut cluster = Self { engine, pki, listen, advertise, fault, relays, processes, sender, lines };
        for node in 0..SIZE {
            cluster.boot(node)?;
        }
        Ok(cluster)
    }

    pub(crate) fn boot(&mut self, node: usize) -> anyhow::Result<()> {
        let behind_relay = !self.relays.is_empty();
        let seeds = if self.engine.needs_full_mesh && behind_relay { node } else { SEEDS };
        let generation = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_millis();
        let binary = std::env::current_exe()?.with_file_name(self.engine.package);
        let link = if self.engine.carrier == Carrier::Tcp { "tcp" } else { "udp" };
        let mut child = Command::new(binary)
            .args([name(node), generation.to_string(), self.listen[node].to_string()])
            .args([self.advertise[node].to_string(), self.pki.display().to_string(), link.to_owned()])
            .args(self.advertise.iter().take(seeds).filter(|a| **a != self.advertise[node]).map(ToString::to_string))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("failed to start {}", self.engine.package))?;
        let output = child.stdout.take().context("no output")?;
        let input = child.stdin.take().context("no input")?;
        let sender = self.sender.clone();
        tokio::spawn(async move {
            let mut lines = BufReader::new(output).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                let at = Instant::now();
                if let Ok(report) = line.parse() {
                    drop(sender.send(Line { at, node, report }));
                }
            }
        });
        self.processes[node] = Some(Process { child, input });
        Ok(())
    }

    pub(crate) async fn command(&mut self, node: usize, command: &str) -> anyhow::Result<Instant> {
        let process = self.processes[node].as_mut().context("the node is down")?;
        process.input.write_all(format!("{command}\n").as_bytes()).await?;
        process.input.flush().await?;
        Ok(Instant::now())
    }

    pub(crate) fn advertised(&self, node: usize) -> SocketAddr {
        self.advertise[node]
    }

    /// SIGKILL: the sockets are closed, and the kernel says so to TCP peers.
    pub(crate) async fn kill(&mut self, node: usize) -> anyhow::Result<Instant> {
        let mut process = self.processes[node].take().context("the node is down")?;
        let at = Instant::now();
        process.child.kill().await?;
        Ok(at)
    }

    /// SIGSTOP: the node says nothing any more, as after a power cut. Kill it afterwards.
    pub(crate) async fn silence(&mut self, node: usize) -> anyhow::Result<Instant> {
        let pid = self.pid(node)?;
        let at = Instant::now();
        let status = Command::new("kill").args(["-STOP", &pid.to_string()]).status().await?;
        anyhow::ensure!(status.success(), "kill -STOP failed");
        Ok(at)
    }

    fn pid(&self, node: usize) -> anyhow::Result<u32> {
        self.processes[node].as_ref().and_then(|p| p.child.id()).context("the node is down")
    }

    pub(crate) fn rss_kib(&self, node: usize) -> anyhow::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid(node)?))?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("no VmRSS")?;
        Ok(line.split_whitespace().nth(1).context("VmRSS is empty")?.parse()?)
    }

    pub(crate) fn spoil_network(&self) {
        self.fault.spoil();
    }

    /// The next report, or `None` at `deadline`.
    pub(crate) async fn next(&mut self, deadline: Instant) -> Option<Line> {
        tokio::time::timeout_at(deadline.into(), self.lines.recv()).await.ok().flatten()
    }

    /// Waits until `done` says so of a report.
    pub(crate) async fn wait(
        &mut self,
        limit: Duration,
        what: &str,
        mut done: impl FnMut(&Line) -> bool,
    ) -> anyhow::Result<Instant> {
        let deadline = Instant::now() + limit;
        while let Some(line) = self.next(deadline).await {
            if done(&line) {
                return Ok(line.at);
            }
        }
        bail!("{}: {what}: not in {limit:?}", self.engine.name)
    }
}
