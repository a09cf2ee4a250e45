//! The front end's configuration: read, then validated whole. Nothing starts before every key is right.

mod abuse;
mod reader;

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use proxy_common::{hash::SteeringKey, maps::MAX_INTERFACES};

use crate::{dataplane::Mode, pki};

pub use abuse::Abuse;
pub use reader::{OneOrMore, Problem, Problems, Reader, Table};

/// Where the control socket is unless the configuration says otherwise.
pub const DEFAULT_CONTROL_SOCKET: &str = "/run/autocluster/control.sock";
const DEFAULT_STATE_DIR: &str = "/var/lib/autocluster";
const DEFAULT_BPFFS: &str = "/sys/fs/bpf";

/// Everything `autocluster run` needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    pub node: Node,
    pub identity: IdentityFiles,
    pub pool: Pool,
    pub steering: Steering,
    pub abuse: Abuse,
    /// What mail clients see; without it STARTTLS and the TLS ports are not offered.
    pub tls: Option<CertificateFiles>,
    pub smtp: Smtp,
    pub imap: Mailbox,
    pub pop3: Mailbox,
    pub clamd: ClamdAddress,
    pub log: Log,
}

/// This front end.
#[derive(Debug, Clone)]
pub struct Node {
    pub name: String,
    pub state_dir: PathBuf,
    pub control_socket: PathBuf,
    pub metrics_listen: Option<SocketAddr>,
    /// At its end the daemon takes nothing new, and what it has gets so long.
    pub shutdown_grace: Duration,
}

/// This node's identity in the pool, issued by the pool's CA.
#[derive(Debug, Clone)]
pub struct IdentityFiles {
    pub ca: PathBuf,
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// What all front ends of the pool agree on.
#[derive(Debug, Clone)]
pub struct Pool {
    pub listen: SocketAddr,
    pub seeds: Vec<SocketAddr>,
    pub vips: Vec<IpAddr>,
    pub key: SteeringKey,
}

/// Where packets are steered.
#[derive(Debug, Clone)]
pub struct Steering {
    /// At least one; the first one's address is where the other front ends send packets.
    pub interfaces: Vec<String>,
    pub mode: Mode,
    pub bpffs: PathBuf,
    /// UDP port of packets between front ends of different segments.
    pub encapsulation_port: u16,
    /// Share of new connections relative to the other front ends.
    pub weight: u16,
}

/// A certificate chain and its key, as PEM files.
#[derive(Debug, Clone)]
pub struct CertificateFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// The MX relay.
#[derive(Debug, Clone)]
pub struct Smtp {
    pub hostname: String,
    pub port: u16,
    pub max_message_bytes: u64,
    pub max_recipients: usize,
    pub max_sessions: usize,
    /// How long the greeting is held back to catch those who talk first.
    pub greet_pause: Duration,
    /// RFC 5321 section 4.5.3.2 asks for 5 minutes.
    pub command_timeout: Duration,
    /// Connecting to a back end and each of its replies, but for the one after the message.
    pub backend_timeout: Duration,
}

/// A mailbox protocol: IMAP or POP3.
#[derive(Debug, Clone)]
pub struct Mailbox {
    pub port: u16,
    pub tls_port: u16,
    pub max_sessions: usize,
    pub login_timeout: Duration,
    /// No byte in either direction for so long ends a session (RFC 9051 section 5.4: at least 30 minutes).
    pub idle_timeout: Duration,
}

/// Where clamd listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClamdAddress {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

/// How the daemon logs.
#[derive(Debug, Clone)]
pub struct Log {
    pub format: LogFormat,
    /// As in `RUST_LOG`, which wins over it.
    pub filter: String,
}

/// For a person or for a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

/// Reads and checks the file.
///
/// # Errors
/// Every fault of it.
pub fn load(file: &Path) -> Result<Config, Problems> {
    Reader::open(file)?.read(|reader, root| {
        // Every section is read before any fault ends the work, so that all are told.
        let node = node(reader, root);
        let identity = identity(reader, root);
        let pool = pool(reader, root);
        let steering = steering(reader, root);
        let abuse = abuse::abuse(reader, root);
        let tls = tls(reader, root);
        let smtp = smtp(reader, root);
        let imap = mailbox(reader, root, "imap", 143, 993);
        let pop3 = mailbox(reader, root, "pop3", 110, 995);
        let clamd = scanner(reader, root);
        let log = log(reader, root);
        let tls = tls?;
        Some(Config {
            node: node?,
            identity: identity?,
            pool: pool?,
            steering: steering?,
            abuse: abuse?,
            tls,
            smtp: smtp?,
            imap,
            pop3,
            clamd: clamd?,
            log,
        })
    })
}

fn node(reader: &mut Reader, root: &mut Table<'_>) -> Option<Node> {
    let mut table = reader.table(root, "node");
    let name: Option<String> = reader.required(&mut table, "name");
    if name.as_ref().is_some_and(|name| !pki::is_node_name(name)) {
        reader.fault(&table, "name", "should be one label of a host name: lower-case letters, digits and hyphens");
    }
    let state_dir = reader.or(&mut table, "state_dir", PathBuf::from(DEFAULT_STATE_DIR));
    let control_socket = reader.or(&mut table, "control_socket", PathBuf::from(DEFAULT_CONTROL_SOCKET));
    let metrics_listen = reader.optional(&mut table, "metrics_listen");
    let shutdown_grace = reader.or(&mut table, "shutdown_grace", Duration::from_secs(10));
    reader.close(table);
    Some(Node { name: name?, state_dir, control_socket, metrics_listen, shutdown_grace })
}

/// The `[identity]` table, of front ends and back ends alike.
pub fn identity(reader: &mut Reader, root: &mut Table<'_>) -> Option<IdentityFiles> {
    let mut table = reader.table(root, "identity");
    let ca = file(reader, &mut table, "ca");
    let certificate = file(reader, &mut table, "certificate");
    let key = file(reader, &mut table, "key");
    reader.close(table);
    Some(IdentityFiles { ca: ca?, certificate: certificate?, key: key? })
}

/// A path to a file that can be opened.
fn file(reader: &mut Reader, table: &mut Table<'_>, key: &'static str) -> Option<PathBuf> {
    let path = reader.path(table, key)?;
    if let Err(e) = std::fs::File::open(&path) {
        reader.fault(table, key, format!("cannot open {}: {e}", path.display()));
    }
    Some(path)
}

fn pool(reader: &mut Reader, root: &mut Table<'_>) -> Option<Pool> {
    let mut table = reader.table(root, "pool");
    let listen: Option<SocketAddr> = reader.required(&mut table, "listen");
    if listen.is_some_and(|a| a.ip().is_unspecified() || a.port() == 0) {
        reader.fault(&table, "listen", "should be the address and port that the other front ends reach this one by");
    }
    let seeds = reader.required(&mut table, "seeds");
    let vips: Option<Vec<IpAddr>> = reader.required(&mut table, "vips");
    if vips.as_ref().is_some_and(Vec::is_empty) {
        reader.fault(&table, "vips", "should name at least one virtual address");
    }
    let key_file = file(reader, &mut table, "key_file");
    let key = key_file.and_then(|path| read_pool_key(reader, &table, &path));
    reader.close(table);
    Some(Pool { listen: listen?, seeds: seeds?, vips: vips?, key: key? })
}

fn read_pool_key(reader: &mut Reader, table: &Table<'_>, path: &Path) -> Option<SteeringKey> {
    match pki::read_pool_key(path) {
        Ok(key) => {
            let key = u128::from_be_bytes(key);
            let half = |shift: u32| u64::try_from((key >> shift) & u128::from(u64::MAX)).ok();
            Some(SteeringKey { k0: half(64)?, k1: half(0)? })
        }
        Err(error) => {
            reader.fault(table, "key_file", format!("{error:#}"));
            None
        }
    }
}

fn steering(reader: &mut Reader, root: &mut Table<'_>) -> Option<Steering> {
    let mut table = reader.table(root, "steering");
    let interfaces = interfaces(reader, &mut table);
    let bpffs = reader.or(&mut table, "bpffs", PathBuf::from(DEFAULT_BPFFS));
    let mode: String = reader.or(&mut table, "mode", Mode::Auto.name().to_owned());
    let known = [Mode::Auto, Mode::Driver, Mode::Generic].into_iter().find(|known| known.name() == mode);
    if known.is_none() {
        reader.fault(&table, "mode", "should be \"auto\", \"driver\" or \"generic\"");
    }
    let encapsulation_port = reader.or(&mut table, "encapsulation_port", 7_401_u16);
    let weight = reader.or(&mut table, "weight", 100_u16);
    if weight == 0 {
        reader.fault(&table, "weight", "should be at least 1");
    }
    reader.close(table);
    Some(Steering { interfaces: interfaces?, mode: known?, bpffs, encapsulation_port, weight })
}

/// One name, or a list of them.
fn interfaces(reader: &mut Reader, table: &mut Table<'_>) -> Option<Vec<String>> {
    let OneOrMore::<String>(names) = reader.required(table, "interface")?;
    if names.is_empty() || names.len() > MAX_INTERFACES as usize {
        reader.fault(table, "interface", format!("should name 1 to {MAX_INTERFACES} interfaces"));
    }
    for (n, name) in names.iter().enumerate() {
        if nix::net::if_::if_nametoindex(name.as_str()).is_err() {
            reader.fault(table, "interface", format!("there is no interface {name} (ip link lists them)"));
        }
        if names[..n].contains(name) {
            reader.fault(table, "interface", format!("names {name} twice"));
        }
    }
    Some(names)
}

#[allow(clippy::option_option, reason = "outer: is the table right; inner: is it there")]
fn tls(reader: &mut Reader, root: &mut Table<'_>) -> Option<Option<CertificateFiles>> {
    let present = reader.has(root, "tls");
    let mut table = reader.table(root, "tls");
    if !present {
        return Some(None);
    }
    let certificate = file(reader, &mut table, "certificate");
    let key = file(reader, &mut table, "key");
    reader.close(table);
    Some(Some(CertificateFiles { certificate: certificate?, key: key? }))
}

fn smtp(reader: &mut Reader, root: &mut Table<'_>) -> Option<Smtp> {
    let mut table = reader.table(root, "smtp");
    let hostname: Option<String> = reader.required(&mut table, "hostname");
    let valid = |name: &str| proxy_core::address::Address::parse(&format!("x@{name}")).is_ok();
    if hostname.as_ref().is_some_and(|name| !valid(name)) {
        reader.fault(&table, "hostname", "is no host name");
    }
    let smtp = Smtp {
        hostname: hostname.clone().unwrap_or_default(),
        port: reader.or(&mut table, "port", 25),
        max_message_bytes: reader.or(&mut table, "max_message_bytes", 50 * 1024 * 1024),
        max_recipients: reader.or(&mut table, "max_recipients", 100),
        max_sessions: reader.or(&mut table, "max_sessions", 4_000),
        greet_pause: reader.or(&mut table, "greet_pause", Duration::from_millis(2)),
        command_timeout: reader.or(&mut table, "command_timeout", Duration::from_secs(300)),
        backend_timeout: reader.or(&mut table, "backend_timeout", Duration::from_secs(30)),
    };
    reader.close(table);
    hostname.map(|_| smtp)
}

fn mailbox(reader: &mut Reader, root: &mut Table<'_>, name: &'static str, port: u16, tls_port: u16) -> Mailbox {
    let mut table = reader.table(root, name);
    let mailbox = Mailbox {
        port: reader.or(&mut table, "port", port),
        tls_port: reader.or(&mut table, "tls_port", tls_port),
        max_sessions: reader.or(&mut table, "max_sessions", 8_000),
        login_timeout: reader.or(&mut table, "login_timeout", Duration::from_secs(60)),
        idle_timeout: reader.or(&mut table, "idle_timeout", Duration::from_secs(35 * 60)),
    };
    reader.close(table);
    mailbox
}

fn scanner(reader: &mut Reader, root: &mut Table<'_>) -> Option<ClamdAddress> {
    let mut table = reader.table(root, "scanner");
    let text: Option<String> = reader.required(&mut table, "clamd");
    let address = text.as_deref().and_then(parse_clamd);
    if text.is_some() && address.is_none() {
        reader.fault(&table, "clamd", "should be unix:/path/of/clamd.ctl or tcp:192.0.2.1:3310");
    }
    reader.close(table);
    address
}

fn parse_clamd(text: &str) -> Option<ClamdAddress> {
    if let Some(path) = text.strip_prefix("unix:") {
        return path.starts_with('/').then(|| ClamdAddress::Unix(path.into()));
    }
    text.strip_prefix("tcp:")?.parse().ok().map(ClamdAddress::Tcp)
}

/// The `[log]` table, of front ends and back ends alike.
pub fn log(reader: &mut Reader, root: &mut Table<'_>) -> Log {
    let mut table = reader.table(root, "log");
    let format: String = reader.or(&mut table, "format", "text".into());
    if !matches!(format.as_str(), "text" | "json") {
        reader.fault(&table, "format", "should be \"text\" or \"json\"");
    }
    let filter = reader.or(&mut table, "filter", "info".to_owned());
    if let Err(e) = filter.parse::<tracing_subscriber::EnvFilter>() {
        reader.fault(&table, "filter", format!("{e}"));
    }
    reader.close(table);
    Log { format: if format == "json" { LogFormat::Json } else { LogFormat::Text }, filter }
}

#[cfg(test)]
mod tests;
