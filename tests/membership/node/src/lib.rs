//! A node under test is a process: commands come on its standard input, reports leave on its standard
//! output, one a line.

use std::collections::VecDeque;
use std::io::{BufRead, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

/// What the bench orders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Tell the pool a small value.
    Set(u64),
    /// Send so many octets to the node of this name and address.
    Bulk { name: String, to: SocketAddr, octets: usize },
}

impl FromStr for Command {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let bad = || format!("no command: {line:?}");
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["set", value] => Ok(Self::Set(value.parse().map_err(|_not_a_number| bad())?)),
            ["bulk", name, to, octets] => Ok(Self::Bulk {
                name: (*name).to_owned(),
                to: to.parse().map_err(|_no_address| bad())?,
                octets: octets.parse().map_err(|_not_a_number| bad())?,
            }),
            _ => Err(bad()),
        }
    }
}

/// What a node observes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    Up(String),
    Down(String),
    /// The value that a node told.
    Value(String, u64),
    /// So many octets have come so far.
    Bulk(usize),
}

impl Report {
    /// Writes it out at once. Ends the process if nobody listens any more.
    pub fn send(&self) {
        let line = match self {
            Self::Up(name) => format!("up {name}\n"),
            Self::Down(name) => format!("down {name}\n"),
            Self::Value(name, value) => format!("value {name} {value}\n"),
            Self::Bulk(octets) => format!("bulk {octets}\n"),
        };
        let mut out = std::io::stdout().lock();
        if out.write_all(line.as_bytes()).and_then(|()| out.flush()).is_err() {
            std::process::exit(0);
        }
    }
}

impl FromStr for Report {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let bad = |_| format!("no report: {line:?}");
        match line.split_whitespace().collect::<Vec<_>>().as_slice() {
            ["up", name] => Ok(Self::Up((*name).to_owned())),
            ["down", name] => Ok(Self::Down((*name).to_owned())),
            ["value", name, value] => Ok(Self::Value((*name).to_owned(), value.parse().map_err(bad)?)),
            ["bulk", octets] => Ok(Self::Bulk(octets.parse().map_err(bad)?)),
            _ => Err(format!("no report: {line:?}")),
        }
    }
}

/// Who a node is and whom it contacts.
#[derive(Debug, Clone)]
pub struct Setup {
    pub name: String,
    pub generation: u64,
    pub listen: SocketAddr,
    /// Where the others reach it: behind a relay it is not where it listens.
    pub advertise: SocketAddr,
    pub seeds: Vec<SocketAddr>,
    /// `ca.pem`, `node.pem`, `node.key`.
    pub pki: PathBuf,
    /// Engine-specific.
    pub link: String,
}

impl Setup {
    /// Reads `NAME GENERATION LISTEN ADVERTISE PKI LINK SEED...`.
    ///
    /// # Errors
    /// A text that says what is missing.
    pub fn from_args() -> Result<Self, String> {
        let mut args: VecDeque<String> = std::env::args().skip(1).collect();
        let mut next = |what: &str| args.pop_front().ok_or_else(|| format!("{what} is missing"));
        let address = |text: String| text.parse::<SocketAddr>().map_err(|e| format!("{text}: {e}"));
        Ok(Self {
            name: next("NAME")?,
            generation: next("GENERATION")?.parse().map_err(|e| format!("GENERATION: {e}"))?,
            listen: address(next("LISTEN")?)?,
            advertise: address(next("ADVERTISE")?)?,
            pki: next("PKI")?.into(),
            link: next("LINK")?,
            seeds: args.into_iter().map(address).collect::<Result<_, _>>()?,
        })
    }
}

/// Calls `handle` for every command; ends the process with the bench.
pub fn listen(mut handle: impl FnMut(Command) + Send + 'static) {
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            match line.parse() {
                Ok(command) => handle(command),
                Err(error) => eprintln!("{error}"),
            }
        }
        std::process::exit(0);
    });
}
