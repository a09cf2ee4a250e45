//! Talking to a server octet by octet, for what no mail library would send.

use std::io::{BufRead as _, BufReader, ErrorKind, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::libc::linger;
use nix::sys::socket::{setsockopt, sockopt};

use crate::lab::Lab;

const CONNECT_LIMIT: Duration = Duration::from_secs(3);
const READ_LIMIT: Duration = Duration::from_secs(20);

/// A connection without TLS.
#[derive(Debug)]
pub struct Wire {
    reader: BufReader<TcpStream>,
    /// The first line that the server said.
    pub greeting: String,
}

impl Wire {
    /// Connects from a host and reads the greeting. From a front end, a VIP is that front end itself.
    ///
    /// # Errors
    /// If the connection is refused or nothing is said.
    pub fn open(lab: &Lab, host: &str, server: impl Into<IpAddr> + Send, port: u16) -> anyhow::Result<Self> {
        let mut wire = Self::connect(lab, host, server, port)?;
        wire.greeting = wire.line()?;
        ensure!(!wire.greeting.is_empty(), "port {port} closed without a greeting");
        Ok(wire)
    }

    /// Connects from a host and reads nothing.
    ///
    /// # Errors
    /// If the connection is refused.
    pub fn connect(lab: &Lab, host: &str, server: impl Into<IpAddr> + Send, port: u16) -> anyhow::Result<Self> {
        let address = SocketAddr::new(server.into(), port);
        let stream = lab.in_host(host, || {
            TcpStream::connect_timeout(&address, CONNECT_LIMIT).with_context(|| format!("failed to reach {address}"))
        })?;
        stream.set_read_timeout(Some(READ_LIMIT))?;
        stream.set_write_timeout(Some(READ_LIMIT))?;
        stream.set_nodelay(true)?;
        Ok(Self { reader: BufReader::new(stream), greeting: String::new() })
    }

    /// The same to an SMTP port, and EHLO.
    ///
    /// # Errors
    /// If EHLO is refused.
    pub fn smtp(lab: &Lab, host: &str, server: impl Into<IpAddr> + Send) -> anyhow::Result<Self> {
        let mut wire = Self::open(lab, host, server, 25)?;
        wire.command("EHLO client.test", 250)?;
        Ok(wire)
    }

    /// One line without its end; empty at the end of the connection.
    ///
    /// # Errors
    /// If nothing comes in time.
    pub fn line(&mut self) -> anyhow::Result<String> {
        let mut line = Vec::new();
        self.reader.read_until(b'\n', &mut line)?;
        Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
    }

    /// The last line of an SMTP reply.
    ///
    /// # Errors
    /// If nothing comes in time.
    pub fn reply(&mut self) -> anyhow::Result<String> {
        loop {
            let line = self.line()?;
            if line.as_bytes().get(3) != Some(&b'-') {
                return Ok(line);
            }
        }
    }

    /// Sends octets as they are.
    ///
    /// # Errors
    /// If the other side closed.
    pub fn send(&mut self, octets: &[u8]) -> anyhow::Result<()> {
        Ok(self.reader.get_mut().write_all(octets)?)
    }

    /// Sends an SMTP command; its reply.
    ///
    /// # Errors
    /// If the connection breaks.
    pub fn ask(&mut self, command: &str) -> anyhow::Result<String> {
        self.send(format!("{command}\r\n").as_bytes())?;
        self.reply()
    }

    /// Sends an SMTP command that must be answered by this code.
    ///
    /// # Errors
    /// With the reply, if it is another.
    pub fn command(&mut self, command: &str, code: u16) -> anyhow::Result<String> {
        let reply = self.ask(command)?;
        ensure!(reply.starts_with(&code.to_string()), "{command}: expected {code}, got {reply:?}");
        Ok(reply)
    }

    /// What comes within a time in which an honest server says nothing.
    ///
    /// # Errors
    /// Other than silence and a closed connection.
    pub fn unasked(&mut self, during: Duration) -> anyhow::Result<String> {
        self.reader.get_ref().set_read_timeout(Some(during))?;
        let line = self.line();
        self.reader.get_ref().set_read_timeout(Some(READ_LIMIT))?;
        match line {
            Err(error) => match error.downcast_ref::<std::io::Error>().map(std::io::Error::kind) {
                Some(ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::ConnectionReset) => Ok(String::new()),
                _ => Err(error),
            },
            Ok(line) => Ok(line),
        }
    }
}

/// Makes the end of a connection a reset, which leaves nothing behind: a port waits for no late packets then, and
/// ten thousand connections are possible from one address.
///
/// # Errors
/// If the socket refuses the option.
pub fn reset_on_close(stream: &TcpStream) -> anyhow::Result<()> {
    let at_once = linger { l_onoff: 1, l_linger: 0 };
    setsockopt(stream, sockopt::Linger, &at_once).context("failed to set SO_LINGER")
}
