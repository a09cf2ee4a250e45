//! One worker of a [`Crowd`](autocluster_tests::crowd::Crowd): does what standard input orders, answers on standard
//! output, and keeps its connections open until its input ends.

use std::io::{self, BufRead as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::process::ExitCode;
use std::time::Duration;

use autocluster_tests::crowd::{Census, Fates, NOBODY, Order, Pace};
use futures_util::future::join_all;
use futures_util::{StreamExt as _, stream};
use nix::libc;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout, timeout_at};

/// Longest line that a server may say.
const MAX_LINE: usize = 1000;
const RESETS: [io::ErrorKind; 3] =
    [io::ErrorKind::ConnectionReset, io::ErrorKind::ConnectionRefused, io::ErrorKind::BrokenPipe];

/// Connections that begin to speak in the same millisecond. Thousands at the same moment would only try the client's own
/// cable, whose queue holds 256 packets.
const SPEAKERS_PER_MS: usize = 50;

/// Words of the kernel's `struct tcp_info` (include/uapi/linux/tcp.h), which libc knows a part of only.
const TCP_INFO_WORDS: usize = 64;
const TOTAL_RETRANS: usize = 25;
const DSACK_DUPS: usize = 54;

struct Connection {
    stream: BufReader<TcpStream>,
    /// Who greeted.
    front_end: String,
    /// Does nothing, and is answered.
    command: &'static [u8],
    answer: &'static str,
    /// Packets that were repeated until the greeting came. A SYN may well be dropped while the front ends do not agree.
    repeated_before: u64,
}

enum Fate {
    Alive,
    Reset,
    Closed,
    Silent,
    Wrong,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            drop(writeln!(io::stderr(), "hold: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut held = Vec::new();
    for line in io::stdin().lock().lines() {
        let answer = match serde_json::from_str(&line?)? {
            Order::Open { count, targets, sources, at_once, patience } => {
                let ends = ends(&targets, &sources).take(count as usize);
                serde_json::to_value(runtime.block_on(open(ends, at_once, patience, &mut held)))?
            }
            Order::Check { patience } => serde_json::to_value(runtime.block_on(check(&mut held, patience)))?,
            Order::Speak { every, during } => serde_json::to_value(runtime.block_on(speak(&mut held, every, during)))?,
            Order::Come { every, during, patience, targets, sources } => {
                let ends = ends(&targets, &sources);
                serde_json::to_value(runtime.block_on(come(ends, every, during, patience)))?
            }
        };
        let mut out = io::stdout().lock();
        serde_json::to_writer(&mut out, &answer)?;
        writeln!(out)?;
        out.flush()?;
    }
    Ok(())
}

/// Each target in its turn, and an address to reach it from.
fn ends(targets: &[SocketAddr], sources: &[IpAddr]) -> impl Iterator<Item = (SocketAddr, SocketAddr)> {
    let turns = (0..).zip(targets.iter().cycle());
    turns.filter_map(|(turn, target)| Some((source_for(sources, *target, turn)?, *target)))
}

/// The address of the target's family whose turn it is.
fn source_for(sources: &[IpAddr], target: SocketAddr, turn: usize) -> Option<SocketAddr> {
    let fitting: Vec<&IpAddr> = sources.iter().filter(|source| source.is_ipv4() == target.is_ipv4()).collect();
    let at = turn % fitting.len().max(1);
    Some(SocketAddr::new(**fitting.get(at)?, 0))
}

async fn open(
    ends: impl Iterator<Item = (SocketAddr, SocketAddr)>,
    at_once: usize,
    patience: Duration,
    held: &mut Vec<Connection>,
) -> Census {
    let attempts = ends.map(|(source, target)| async move {
        timeout(patience, greeted(source, target)).await.unwrap_or(Err(Fate::Silent))
    });
    let mut attempts = stream::iter(attempts).buffer_unordered(at_once);
    let mut census = Census::new();
    while let Some(outcome) = attempts.next().await {
        match outcome {
            Ok(connection) => {
                count(&mut census, &connection.front_end, &Fate::Alive);
                held.push(connection);
            }
            Err(fate) => count(&mut census, NOBODY, &fate),
        }
    }
    census
}

async fn greeted(source: SocketAddr, target: SocketAddr) -> Result<Connection, Fate> {
    let socket = if target.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.map_err(of)?;
    socket.bind(source).map_err(of)?;
    let stream = BufReader::with_capacity(128, socket.connect(target).await.map_err(of)?);
    let (command, answer): (&'static [u8], _) =
        if target.port() == 25 { (b"NOOP\r\n", "250 ") } else { (b"a NOOP\r\n", "a OK") };
    let mut connection = Connection { stream, front_end: String::new(), command, answer, repeated_before: 0 };
    let greeting = connection.line().await?;
    // The lab has each front end greet by its own name: `fe1.pool.test`.
    let name = greeting.split_whitespace().find_map(|word| word.strip_suffix(".pool.test"));
    name.ok_or(Fate::Wrong)?.clone_into(&mut connection.front_end);
    connection.repeated_before = connection.repeated();
    Ok(connection)
}

async fn check(held: &mut Vec<Connection>, patience: Duration) -> Census {
    let at_once = held.len().max(1);
    let start = Instant::now();
    let mut checks = stream::iter(held.drain(..).enumerate())
        .map(|(turn, mut connection)| async move {
            sleep_until(start + Duration::from_millis((turn / SPEAKERS_PER_MS) as u64)).await;
            let fate = match timeout(patience, connection.speak()).await {
                Ok(Ok(())) => Fate::Alive,
                Ok(Err(fate)) => fate,
                Err(_) => Fate::Silent,
            };
            (connection, fate)
        })
        // A silent one must hold up nobody.
        .buffer_unordered(at_once);
    let (mut census, mut alive) = (Census::new(), Vec::new());
    while let Some((connection, fate)) = checks.next().await {
        count(&mut census, &connection.front_end, &fate);
        if matches!(fate, Fate::Alive) {
            let repeated = connection.repeated().saturating_sub(connection.repeated_before);
            census.entry(connection.front_end.clone()).or_default().repeated += repeated;
            alive.push(connection);
        }
    }
    drop(checks);
    *held = alive;
    census
}

/// Every connection speaks at its own pace; one that is late catches up as soon as it is answered.
async fn speak(held: &mut [Connection], every: Duration, during: Duration) -> Pace {
    let end = Instant::now() + during;
    let each = held.iter_mut().map(|connection| async move {
        let mut done = 0;
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        while timeout_at(end, ticks.tick()).await.is_ok() {
            match timeout_at(end, connection.speak()).await {
                Ok(Ok(())) => done += 1,
                _ => break,
            }
        }
        done
    });
    let done = join_all(each).await.into_iter().sum();
    Pace { due: turns(during, every) * held.len() as u64, done }
}

/// New connections at a steady pace, whatever becomes of those before.
async fn come(
    ends: impl Iterator<Item = (SocketAddr, SocketAddr)>,
    every: Duration,
    during: Duration,
    patience: Duration,
) -> Pace {
    let due = turns(during, every);
    let start = Instant::now();
    let attempts =
        (0..).zip(ends).take(usize::try_from(due).unwrap_or(usize::MAX)).map(|(turn, (source, target))| async move {
            sleep_until(start + every * turn).await;
            matches!(timeout(patience, greeted(source, target)).await, Ok(Ok(_)))
        });
    let done = join_all(attempts).await.into_iter().filter(|done| *done).count();
    Pace { due, done: done as u64 }
}

fn turns(during: Duration, every: Duration) -> u64 {
    u64::try_from(during.as_millis() / every.as_millis().max(1)).unwrap_or(u64::MAX)
}

impl Connection {
    async fn speak(&mut self) -> Result<(), Fate> {
        self.stream.write_all(self.command).await.map_err(of)?;
        if self.line().await?.starts_with(self.answer) { Ok(()) } else { Err(Fate::Wrong) }
    }

    /// Packets that were repeated and of which the server does not say that they came twice; 0 if the kernel does not
    /// tell.
    fn repeated(&self) -> u64 {
        let mut info = [0u32; TCP_INFO_WORDS];
        let mut size = libc::socklen_t::try_from(size_of_val(&info)).unwrap_or_default();
        let fd = self.stream.get_ref().as_raw_fd();
        // SAFETY: the pointer is to `size` octets that live through the call.
        unsafe { libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, (&raw mut info).cast(), &raw mut size) };
        info[TOTAL_RETRANS].saturating_sub(info[DSACK_DUPS]).into()
    }

    async fn line(&mut self) -> Result<String, Fate> {
        let mut line = Vec::new();
        loop {
            let piece = self.stream.fill_buf().await.map_err(of)?;
            if piece.is_empty() {
                return Err(Fate::Closed);
            }
            let end = piece.iter().position(|octet| *octet == b'\n').map(|at| at + 1);
            let taken = end.unwrap_or(piece.len());
            line.extend_from_slice(&piece[..taken]);
            self.stream.consume(taken);
            if end.is_some() {
                return Ok(String::from_utf8_lossy(&line).into_owned());
            }
            if line.len() > MAX_LINE {
                return Err(Fate::Wrong);
            }
        }
    }
}

/// What an error says of the connection.
fn of(error: io::Error) -> Fate {
    let kind = error.kind();
    if kind == io::ErrorKind::TimedOut {
        Fate::Silent
    } else if kind == io::ErrorKind::UnexpectedEof {
        Fate::Closed
    } else if RESETS.contains(&kind) {
        Fate::Reset
    } else {
        Fate::Wrong
    }
}

fn count(census: &mut Census, front_end: &str, fate: &Fate) {
    let fates: &mut Fates = census.entry(front_end.to_owned()).or_default();
    *match fate {
        Fate::Alive => &mut fates.alive,
        Fate::Reset => &mut fates.reset,
        Fate::Closed => &mut fates.closed,
        Fate::Silent => &mut fates.silent,
        Fate::Wrong => &mut fates.wrong,
    } += 1;
}
