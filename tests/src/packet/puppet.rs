//! One end of a TCP connection, moved by hand: it sends what it is told, when it is told, to the front end that it is
//! told, and nothing by itself.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use super::frames::{Envelope, HOP_LIMIT, Segment, frame};
use super::link::LinkSocket;
use super::{Flags, Packet, Tcp};
use crate::lab::Lab;

/// Longest wait for an answer: beyond the kernel's first repetition of a SYN-ACK (1 s).
const PATIENCE: Duration = Duration::from_secs(3);
/// Between two looks at the clock while other frames pass.
const SLICE: Duration = Duration::from_millis(50);

/// A client whose address nobody's kernel has: see [`Lab::stand_in`].
#[derive(Debug)]
pub struct Puppet {
    link: LinkSocket,
    mac: [u8; 6],
    pub own: SocketAddr,
    pub server: SocketAddr,
    /// The next octet that it sends.
    pub sequence: u32,
    /// The next octet that it expects.
    pub acknowledgment: u32,
}

/// A segment that the puppet got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Got {
    pub tcp: Tcp,
    /// Whose interface it came from.
    pub mac: [u8; 6],
}

impl Puppet {
    /// Gets ready; nothing is sent. `own` must have been made a [`Lab::stand_in`] address.
    ///
    /// # Errors
    /// If the client host's interface cannot be opened.
    pub fn new(lab: &Lab, own: SocketAddr, server: SocketAddr) -> anyhow::Result<Self> {
        let link = lab.in_host("client", || LinkSocket::open("eth0"))?;
        link.set_patience(SLICE)?;
        // Any start will do; the port makes it differ between connections.
        let sequence = u32::from(own.port()) * 65_537;
        Ok(Self { link, mac: lab.mac("client")?, own, server, sequence, acknowledgment: 0 })
    }

    /// A segment from here, with the numbers that are due.
    #[must_use]
    pub fn segment(&self, flags: Flags, data: &[u8]) -> Segment {
        Segment {
            source: self.own,
            destination: self.server,
            sequence: self.sequence,
            acknowledgment: if flags.ack { self.acknowledgment } else { 0 },
            flags,
            data: data.to_vec(),
            hop_limit: HOP_LIMIT,
            extensions: false,
        }
    }

    /// Sends an IP packet to a front end's interface.
    ///
    /// # Errors
    /// If it cannot be sent.
    pub fn send_packet(&self, to: [u8; 6], vlan: Option<u16>, packet: &[u8]) -> anyhow::Result<()> {
        self.link.send(&frame(Envelope { source: self.mac, destination: to, vlan }, packet))
    }

    /// Sends a SYN; a second call repeats it.
    ///
    /// # Errors
    /// If it cannot be sent.
    pub fn syn(&self, to: [u8; 6]) -> anyhow::Result<()> {
        let syn = Flags { syn: true, ..Flags::default() };
        self.send_packet(to, None, &self.segment(syn, &[]).packet()?)
    }

    /// Sends an ACK, with data or without. The data counts as sent: [`Puppet::again`] does not count.
    ///
    /// # Errors
    /// If it cannot be sent.
    pub fn ack(&mut self, to: [u8; 6], data: &[u8]) -> anyhow::Result<()> {
        self.again(to, data)?;
        self.sequence = self.sequence.wrapping_add(u32::try_from(data.len())?);
        Ok(())
    }

    /// Sends an ACK that may be repeated.
    ///
    /// # Errors
    /// If it cannot be sent.
    pub fn again(&self, to: [u8; 6], data: &[u8]) -> anyhow::Result<()> {
        let ack = Flags { ack: true, ..Flags::default() };
        self.send_packet(to, None, &self.segment(ack, data).packet()?)
    }

    /// Ends its half of the connection.
    ///
    /// # Errors
    /// If it cannot be sent.
    pub fn fin(&self, to: [u8; 6]) -> anyhow::Result<()> {
        let fin = Flags { ack: true, fin: true, ..Flags::default() };
        self.send_packet(to, None, &self.segment(fin, &[]).packet()?)
    }

    /// The next segment of this connection that is what is looked for; all others are passed over.
    ///
    /// # Errors
    /// If the interface went away.
    pub fn await_where(&mut self, limit: Duration, wanted: impl Fn(&Tcp) -> bool) -> anyhow::Result<Option<Got>> {
        let end = Instant::now() + limit;
        while Instant::now() < end {
            let Some(seen) = self.link.receive(false)? else { continue };
            let Ok(packet) = Packet::parse(&seen.octets) else { continue };
            let ours = |address: IpAddr| address == self.own.ip();
            let Some(tcp) = packet.tcp().filter(|_| packet.ip.as_ref().is_some_and(|ip| ours(ip.destination))) else {
                continue;
            };
            if tcp.destination == self.own.port() && wanted(&tcp) {
                ensure!(packet.faults.is_empty(), "{:?}", packet.faults);
                return Ok(Some(Got { tcp, mac: packet.mac_source }));
            }
        }
        Ok(None)
    }

    /// Waits for the SYN-ACK and takes its numbers over; who sent it.
    ///
    /// # Errors
    /// If none comes, or a reset.
    pub fn await_syn_ack(&mut self) -> anyhow::Result<[u8; 6]> {
        // Another one may have been on its way to an earlier connection of the same port.
        let expected = self.sequence.wrapping_add(1);
        let is_answer = |tcp: &Tcp| tcp.acknowledgment == expected && (tcp.flags.syn || tcp.flags.rst);
        let got = self.await_where(PATIENCE, is_answer)?;
        let got = got.with_context(|| format!("{}: nobody answered the SYN", self.own))?;
        ensure!(!got.tcp.flags.rst, "{}: the SYN was answered by a reset", self.own);
        // Its own SYN counts as one octet; a SYN-ACK that is repeated says the same.
        self.sequence = got.tcp.acknowledgment;
        self.acknowledgment = got.tcp.sequence.wrapping_add(1);
        Ok(got.mac)
    }

    /// Waits for data and counts it as received; who sent it.
    ///
    /// # Errors
    /// If none comes, or a reset.
    pub fn await_data(&mut self) -> anyhow::Result<[u8; 6]> {
        let expected = self.acknowledgment;
        let is_next = |tcp: &Tcp| tcp.flags.rst || tcp.length > 0 && tcp.sequence == expected;
        let got = self.await_where(PATIENCE, is_next)?.with_context(|| format!("{}: no data came", self.own))?;
        ensure!(!got.tcp.flags.rst, "{}: the connection was reset", self.own);
        self.acknowledgment = got.tcp.sequence.wrapping_add(u32::try_from(got.tcp.length)?);
        Ok(got.mac)
    }

    /// A connection up to the server's first data: SYN, ACK, greeting; who has it.
    ///
    /// # Errors
    /// If one of the answers does not come.
    pub fn connect(&mut self, to: [u8; 6]) -> anyhow::Result<[u8; 6]> {
        self.syn(to)?;
        let owner = self.await_syn_ack()?;
        self.ack(to, &[])?;
        let greeter = self.await_data()?;
        ensure!(greeter == owner, "one front end answered the SYN, another one greeted");
        self.ack(to, &[])?;
        Ok(owner)
    }
}
