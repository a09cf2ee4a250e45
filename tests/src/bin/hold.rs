//! One worker of a [`Crowd`](autocluster_tests::crowd::Crowd): does what standard input orders, answers on standard
//! output, and keeps its connections open until its input ends.

use std::io::{self, BufRead as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use autocluster_tests::crowd::{Census, Fates, NOBODY, Order};
use futures_util::{StreamExt as _, stream};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

/// Longest line that a server may say.
const MAX_LINE: usize = 1000;

struct Connection {
    stream: BufReader<TcpStream>,
    /// Who greeted.
    front_end: String,
    /// Does nothing, and is answered.
    command: &'static [u8],
    answer: &'static str,
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
        let census = match serde_json::from_str(&line?)? {
            Order::Open { count, targets, sources, at_once, patience } => {
                let ends = (0..count).zip(targets.iter().cycle()).filter_map(|(turn, target)| {
                    let source = source_for(&sources, *target, turn)?;
                    Some((source, *target))
                });
                runtime.block_on(open(ends, at_once, patience, &mut held))
            }
            Order::Check { patience } => runtime.block_on(check(&mut held, patience)),
        };
        let mut out = io::stdout().lock();
        serde_json::to_writer(&mut out, &census)?;
        writeln!(out)?;
        out.flush()?;
    }
    Ok(())
}

/// The address of the target's family whose turn it is.
fn source_for(sources: &[IpAddr], target: SocketAddr, turn: u32) -> Option<SocketAddr> {
    let fitting: Vec<&IpAddr> = sources.iter().filter(|source| source.is_ipv4() == target.is_ipv4()).collect();
    let at = turn as usize % fitting.len().max(1);
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
    let mut connection = Connection { stream, front_end: String::new(), command, answer };
    let greeting = connection.line().await?;
    // The lab has each front end greet by its own name: `fe1.pool.test`.
    let name = greeting.split_whitespace().find_map(|word| word.strip_suffix(".pool.test"));
    name.ok_or(Fate::Wrong)?.clone_into(&mut connection.front_end);
    Ok(connection)
}

async fn check(held: &mut Vec<Connection>, patience: Duration) -> Census {
    let at_once = held.len().max(1);
    let mut checks = stream::iter(held.drain(..))
        .map(|mut connection| async move {
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
            alive.push(connection);
        }
    }
    drop(checks);
    *held = alive;
    census
}

impl Connection {
    async fn speak(&mut self) -> Result<(), Fate> {
        self.stream.write_all(self.command).await.map_err(of)?;
        if self.line().await?.starts_with(self.answer) { Ok(()) } else { Err(Fate::Wrong) }
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
    match error.kind() {
        io::ErrorKind::TimedOut => Fate::Silent,
        io::ErrorKind::UnexpectedEof => Fate::Closed,
        io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused | io::ErrorKind::BrokenPipe => Fate::Reset,
        _ => Fate::Wrong,
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
