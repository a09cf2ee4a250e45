//! What should become of a frame, read off the specification with plain slices: RFC 791, 792, 826, 4443, 4861, 8200, 9293
//! and ARCHITECTURE.md's life of a packet.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use proxy_common::{
    hash::connection_bucket,
    maps::{Counter, DENY_ANY, SYN_COOKIES},
};

use super::{
    KEY,
    decision::{self, Decision},
    pool,
    scene::Scene,
};

pub(super) const XDP_DROP: u32 = 1;
pub(super) const XDP_PASS: u32 = 2;
pub(super) const XDP_TX: u32 = 3;

/// What was decided about first fragments, by the program's own key.
pub(super) type Memory = HashMap<[u8; 40], Decision>;

/// Action and counter.
pub(super) type Verdict = (u32, Counter);
/// What ends the way of a frame early is a verdict too.
pub(super) type Step<T> = Result<T, Verdict>;

pub(super) const PASSED: Verdict = (XDP_PASS, Counter::Passed);
const TRUNCATED: Verdict = (XDP_PASS, Counter::Truncated);
const MALFORMED_IP: Verdict = (XDP_DROP, Counter::MalformedIp);
const MALFORMED_EXTENSION: Verdict = (XDP_DROP, Counter::MalformedExtension);

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

/// What is expected of the program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Expected {
    pub(super) verdict: Verdict,
    pub(super) unpacked: bool,
    pub(super) frame: Vec<u8>,
    /// The bucket of the frame's connection, if it is of one.
    pub(super) bucket: Option<u32>,
}

pub(super) fn predict(scene: &Scene, memory: &mut Memory, frame: &[u8]) -> Expected {
    let frame = frame.to_vec();
    let mut reference = Reference { scene, memory, frame, unpacked: false, bucket: None, sender: None };
    let verdict = reference.verdict().unwrap_or_else(|verdict| verdict);
    let Reference { frame, unpacked, bucket, .. } = reference;
    Expected { verdict, unpacked, frame, bucket }
}

pub(super) struct Reference<'a> {
    pub(super) scene: &'a Scene,
    memory: &'a mut Memory,
    pub(super) frame: Vec<u8>,
    unpacked: bool,
    bucket: Option<u32>,
    /// The outer address of who encapsulated the packet.
    sender: Option<[u8; 16]>,
}

/// A packet of a connection, or about one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Packet {
    /// Where the IP header begins.
    pub(super) l3: usize,
    /// Where the IP header, with options or extension headers, ends.
    pub(super) l4: usize,
    pub(super) v6: bool,
    pub(super) hop_limit: u8,
    pub(super) what: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    Tcp { is_new: bool },
    IcmpError,
    LaterFragment,
}

/// A fragment's place in the packet that was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Whole,
    First,
    Later,
}

impl Part {
    fn of(offset: bool, more: bool) -> Self {
        match (offset, more) {
            (true, _) => Self::Later,
            (false, true) => Self::First,
            (false, false) => Self::Whole,
        }
    }
}

/// What the walk along the extension headers found.
struct Walked {
    next: u8,
    octets: usize,
    part: Part,
    id: [u8; 4],
}

pub(super) fn be(octets: &[u8]) -> usize {
    octets.iter().fold(0, |sum, octet| sum << 8 | usize::from(*octet))
}

fn v4(octets: &[u8]) -> Step<Ipv4Addr> {
    Ok(Ipv4Addr::from(<[u8; 4]>::try_from(octets).or(Err(TRUNCATED))?))
}

fn v6(octets: &[u8]) -> Step<Ipv6Addr> {
    Ok(Ipv6Addr::from(<[u8; 16]>::try_from(octets).or(Err(TRUNCATED))?))
}

fn is_vip(address: IpAddr) -> bool {
    pool::SERVICES.iter().any(|(vip, _)| *vip == address)
}

fn is_service(service: SocketAddr) -> bool {
    pool::SERVICES.contains(&(service.ip(), service.port()))
}

fn is_extension(next: u8) -> bool {
    [0, 43, 44, 60].contains(&next)
}

impl Reference<'_> {
    /// The `N` octets at `at`, which must be there whole.
    pub(super) fn octets<const N: usize>(&self, at: usize) -> Step<[u8; N]> {
        let octets = self.frame.get(at..at + N).ok_or(TRUNCATED)?;
        octets.try_into().or(Err(TRUNCATED))
    }

    fn verdict(&mut self) -> Step<Verdict> {
        let kind: [u8; 2] = self.octets(12)?;
        let l3 = if kind == [0x81, 0] || kind == [0x88, 0xa8] { 18 } else { 14 };
        let mut ethertype: [u8; 2] = self.octets(l3 - 2)?;
        let to_us = self.frame[..6] == pool::MAC;
        if to_us && let Some((inner, source)) = self.outer(l3, ethertype)? {
            ethertype = if self.frame[inner] >> 4 == 4 { [0x08, 0x00] } else { [0x86, 0xdd] };
            self.frame.drain(l3..inner);
            self.frame[l3 - 2..l3].copy_from_slice(&ethertype);
            (self.unpacked, self.sender) = (true, Some(source));
        }
        match ethertype {
            [0x08, 0x00] if to_us => self.ipv4(l3),
            [0x86, 0xdd] => self.ipv6(l3, to_us),
            [0x08, 0x06] => self.arp(l3),
            _ => Ok(PASSED),
        }
    }

    /// Where the packet inside begins, and who encapsulated it; None if nobody did.
    fn outer(&self, l3: usize, ethertype: [u8; 2]) -> Step<Option<(usize, [u8; 16])>> {
        let (udp, source, is_plain) = match ethertype {
            [0x08, 0x00] => {
                let ip: [u8; 20] = self.octets(l3)?;
                let (fragment, header) = (be(&ip[6..8]), usize::from(ip[0] & 15) * 4);
                if ip[9] != UDP || ip[16..20] != pool::OWN4.octets() || fragment & 0x1fff != 0 {
                    return Ok(None);
                }
                (l3 + header, v4(&ip[12..16])?.to_ipv6_mapped().octets(), header == 20 && fragment & 0x2000 == 0)
            }
            [0x86, 0xdd] => {
                let ip: [u8; 40] = self.octets(l3)?;
                if ip[6] != UDP || ip[24..40] != pool::OWN6.octets() {
                    return Ok(None);
                }
                (l3 + 40, v6(&ip[8..24])?.octets(), true)
            }
            _ => return Ok(None),
        };
        let ports: [u8; 8] = self.octets(udp)?;
        if be(&ports[2..4]) != usize::from(pool::OUTER_PORT) {
            return Ok(None);
        }
        if !is_plain {
            return Err((XDP_DROP, Counter::MalformedOuter));
        }
        if !pool::is_known(source) {
            return Err((XDP_DROP, Counter::Stranger));
        }
        match self.octets::<4>(udp + 8)?[0] >> 4 {
            4 | 6 => Ok(Some((udp + 8, source))),
            _ => Err((XDP_DROP, Counter::MalformedOuter)),
        }
    }

    fn ipv4(&mut self, l3: usize) -> Step<Verdict> {
        let ip: [u8; 20] = self.octets(l3)?;
        let (header, total, fragment) = (usize::from(ip[0] & 15) * 4, be(&ip[2..4]), be(&ip[6..8]));
        let (client, vip) = (v4(&ip[12..16])?, v4(&ip[16..20])?);
        let part = Part::of(fragment & 0x1fff != 0, fragment & 0x2000 != 0);
        let mut key = [0; 40];
        key[..4].copy_from_slice(&ip[12..16]);
        key[16..20].copy_from_slice(&ip[16..20]);
        key[32..34].copy_from_slice(&ip[4..6]);
        let packet = |what| Packet { l3, l4: l3 + header, v6: false, hop_limit: ip[8], what };
        match ip[9] {
            TCP if part == Part::Later => {
                if is_vip(vip.into()) {
                    self.later(&key, packet(What::LaterFragment))
                } else {
                    Ok(PASSED)
                }
            }
            TCP => {
                let tcp: [u8; 20] = self.octets(l3 + header)?;
                let flow = flow_of(client.into(), vip.into(), &tcp)?;
                if ip[0] >> 4 != 4 || header < 20 || l3 + total > self.frame.len() {
                    return Err(MALFORMED_IP);
                }
                let is_new = check_tcp(&tcp, total, header)?;
                self.connection(flow, packet(What::Tcp { is_new }), (part == Part::First).then_some(key))
            }
            ICMP if part == Part::Whole => {
                let icmp: [u8; 8] = self.octets(l3 + header)?;
                if ![3, 11, 12].contains(&icmp[0]) || !is_vip(vip.into()) {
                    return Ok(PASSED);
                }
                let flow = self.quoted_v4(l3 + header + 8, vip)?;
                self.connection(flow, packet(What::IcmpError), None)
            }
            _ => Ok(PASSED),
        }
    }

    /// The connection of a packet that `vip` sent, as its packets from outside have it.
    fn quoted_v4(&self, at: usize, vip: Ipv4Addr) -> Step<Flow> {
        let quoted: [u8; 20] = self.octets(at)?;
        let header = usize::from(quoted[0] & 15) * 4;
        if quoted[9] != TCP || header < 20 || be(&quoted[6..8]) & 0x1fff != 0 {
            return Err(PASSED);
        }
        let [a, b, c, d]: [u8; 4] = self.octets(at + header)?;
        if quoted[12..16] != vip.octets() {
            return Err(PASSED);
        }
        flow_of(v4(&quoted[16..20])?.into(), vip.into(), &[c, d, a, b])
    }

    fn ipv6(&mut self, l3: usize, to_us: bool) -> Step<Verdict> {
        let ip: [u8; 40] = self.octets(l3)?;
        let (client, vip, payload) = (v6(&ip[8..24])?, v6(&ip[24..40])?, be(&ip[4..6]));
        let mut walked = Walked { next: ip[6], octets: 0, part: Part::Whole, id: [0; 4] };
        if to_us && is_extension(ip[6]) {
            if !is_vip(vip.into()) {
                return Ok(PASSED);
            }
            walked = self.walk(l3 + 40, ip[6]).ok_or(MALFORMED_EXTENSION)?;
        }
        let mut key = [0; 40];
        key[..32].copy_from_slice(&ip[8..40]);
        key[32..36].copy_from_slice(&walked.id);
        key[36] = 1;
        let l4 = l3 + 40 + walked.octets;
        let packet = |what| Packet { l3, l4, v6: true, hop_limit: ip[7], what };
        match (walked.part, walked.next) {
            (Part::Later, next) if next == TCP || is_extension(next) => self.later(&key, packet(What::LaterFragment)),
            (Part::Whole | Part::First, TCP) if to_us => {
                let tcp: [u8; 20] = self.octets(l4)?;
                let flow = flow_of(client.into(), vip.into(), &tcp)?;
                if ip[0] >> 4 != 6 || l3 + 40 + payload > self.frame.len() {
                    return Err(MALFORMED_IP);
                }
                let is_new = check_tcp(&tcp, payload, walked.octets)?;
                self.connection(flow, packet(What::Tcp { is_new }), (walked.part == Part::First).then_some(key))
            }
            (Part::Whole, ICMPV6) => {
                let icmp: [u8; 8] = self.octets(l4)?;
                if icmp[0] >= 128 {
                    return self.solicitation(l3, walked.octets);
                }
                let flow = self.quoted_v6(l4 + 8, vip)?;
                if to_us { self.connection(flow, packet(What::IcmpError), None) } else { Ok(PASSED) }
            }
            _ => Ok(PASSED),
        }
    }

    fn quoted_v6(&self, at: usize, vip: Ipv6Addr) -> Step<Flow> {
        let quoted: [u8; 40] = self.octets(at)?;
        if quoted[6] != TCP || quoted[8..24] != vip.octets() {
            return Err(PASSED);
        }
        let [a, b, c, d]: [u8; 4] = self.octets(at + 40)?;
        flow_of(v6(&quoted[24..40])?.into(), vip.into(), &[c, d, a, b])
    }

    /// None if the headers are too many, too long, cut off, or fragments of fragments.
    fn walk(&self, at: usize, first: u8) -> Option<Walked> {
        let mut walked = Walked { next: first, octets: 0, part: Part::Whole, id: [0; 4] };
        for _header in 0..6 {
            if !is_extension(walked.next) || walked.part == Part::Later {
                return Some(walked);
            }
            let header: [u8; 8] = self.octets(at + walked.octets).ok()?;
            if walked.next == 44 {
                if walked.part == Part::First {
                    return None;
                }
                let fields = be(&header[2..4]);
                walked.part = Part::of(fields & 0xfff8 != 0, fields & 1 != 0);
                walked.id.copy_from_slice(&header[4..8]);
                walked.octets += 8;
            } else {
                walked.octets += 8 + 8 * usize::from(header[1]);
            }
            walked.next = header[0];
            if walked.octets > 0xfff && walked.part != Part::Later {
                return None;
            }
        }
        (!is_extension(walked.next) || walked.part == Part::Later).then_some(walked)
    }

    /// A packet of a connection to a service. `first`: it is a first fragment, known by this key.
    fn connection(&mut self, flow: Flow, packet: Packet, first: Option<[u8; 40]>) -> Step<Verdict> {
        if !self.scene.table {
            return Ok((XDP_PASS, Counter::NoOwner));
        }
        let is_new = packet.what == What::Tcp { is_new: true };
        let decision = if self.scene.flags & DENY_ANY != 0 && pool::is_denied(flow.client.ip()) {
            Decision::Drop(Counter::Denied)
        } else {
            self.bucket = Some(connection_bucket(KEY, flow.client, flow.service));
            let source = &self.frame[6..12];
            let key = self.sender.or_else(|| source.try_into().ok().map(pool::key_of_mac));
            let sender = key.and_then(|key| pool::slot_of(self.scene.half, key));
            decision::decide(self.scene, sender, packet.hop_limit, is_new)
        };
        if let Some(key) = first {
            self.memory.insert(key, decision);
        }
        let renamed = |counter| if packet.what == What::IcmpError { Counter::IcmpError } else { counter };
        match decision {
            Decision::Take(Counter::OwnNew | Counter::NewAgain) if self.scene.flags & SYN_COOKIES != 0 => {
                Ok(self.try_cookie(flow, packet))
            }
            Decision::Take(counter) => Ok((XDP_PASS, renamed(counter))),
            Decision::Drop(counter) => Ok((XDP_DROP, counter)),
            Decision::Send { to, hop_limit, counter } => self.send(packet, to, hop_limit, renamed(counter)),
        }
    }

    /// A later fragment goes where its first one went.
    fn later(&mut self, key: &[u8; 40], packet: Packet) -> Step<Verdict> {
        if !self.scene.table {
            return Ok((XDP_PASS, Counter::NoOwner));
        }
        match self.memory.get(key).copied() {
            None | Some(Decision::Drop(_)) => Ok((XDP_DROP, Counter::FragmentUnknown)),
            Some(Decision::Take(_)) => Ok((XDP_PASS, Counter::Fragment)),
            Some(Decision::Send { to, hop_limit, .. }) => match hop_limit.min(packet.hop_limit.saturating_sub(1)) {
                0 => Ok((XDP_DROP, Counter::FragmentUnknown)),
                hop_limit => self.send(packet, to, hop_limit, Counter::Fragment),
            },
        }
    }

    /// Nobody listens here, so no cookie is made: the kernel gets the SYN, but longer where it was tried.
    fn try_cookie(&mut self, flow: Flow, packet: Packet) -> Verdict {
        let on_link = match flow.client.ip() {
            IpAddr::V4(v4) => v4.octets()[..3] == pool::ON_LINK_V4[0][..3],
            IpAddr::V6(v6) => v6.octets()[..8] == pool::ON_LINK_V6[0],
        };
        let outside = packet.hop_limit > 16;
        let header = if packet.v6 { 40 } else { 20 };
        let is_plain = packet.l4 - packet.l3 == header && self.frame.len() <= packet.l4 + 60;
        if is_plain && (outside || !on_link && self.scene.knows_gateway) {
            self.frame.resize(packet.l4 + 60, 0);
        }
        (XDP_PASS, Counter::OwnNew)
    }
}

#[derive(Debug, Clone, Copy)]
struct Flow {
    client: SocketAddr,
    service: SocketAddr,
}

/// The connection from `client` to a service; what is not for one passes.
fn flow_of(client: IpAddr, vip: IpAddr, ports: &[u8]) -> Step<Flow> {
    let port = |at: usize| u16::from_be_bytes([ports[at], ports[at + 1]]);
    let flow = Flow { client: SocketAddr::new(client, port(0)), service: SocketAddr::new(vip, port(2)) };
    if is_service(flow.service) { Ok(flow) } else { Err(PASSED) }
}

/// Whether it is a SYN. `octets`: all that TCP shares with what is `before` it.
fn check_tcp(tcp: &[u8; 20], octets: usize, before: usize) -> Step<bool> {
    let header = usize::from(tcp[12] >> 4) * 4;
    if header < 20 || before + header > octets {
        return Err((XDP_DROP, Counter::MalformedTcp));
    }
    // SYN without FIN, RST or ACK.
    Ok(tcp[13] & 0b1_0111 == 0b10)
}
