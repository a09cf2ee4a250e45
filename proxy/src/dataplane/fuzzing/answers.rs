//! What the program makes of a frame that it sends itself: forwarded, put into UDP, or turned into an answer.

use std::net::IpAddr;

use proxy_common::maps::Counter;

use super::{
    pool::{self, Peer},
    reference::{PASSED, Packet, Reference, Step, Verdict, What, XDP_DROP, XDP_TX, be},
};

/// One's-complement sum of a header with its checksum, complemented: zero if that is right (RFC 1071).
pub(super) fn checksum(parts: &[&[u8]]) -> u16 {
    let octets = parts.concat();
    let mut sum: usize =
        octets.chunks(2).map(|word| if let [a, b] = word { be(&[*a, *b]) } else { be(word) << 8 }).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(0xffff - sum).unwrap_or_default()
}

/// The IPv4 header at `l3`, if it is whole and may have a checksum.
pub(super) fn header_v4(frame: &[u8], l3: usize) -> Option<std::ops::Range<usize>> {
    let header = usize::from(frame.get(l3)? & 15) * 4;
    (header >= 20 && l3 + header <= frame.len()).then(|| l3..l3 + header)
}

pub(super) fn ipv4_header(source: [u8; 4], destination: [u8; 4], protocol: u8, total: usize, flags: u8) -> Vec<u8> {
    let [a, b] = length(total);
    let mut header = vec![0x45, 0, a, b, 0, 0, flags, 0, 64, protocol, 0, 0];
    header.extend([source, destination].concat());
    let sum = checksum(&[&header]).to_be_bytes();
    header[10..12].copy_from_slice(&sum);
    header
}

pub(super) fn ipv6_header(source: [u8; 16], destination: [u8; 16], next: u8, payload: usize) -> Vec<u8> {
    let [a, b] = length(payload);
    [&[0x60, 0, 0, 0, a, b, next, 64][..], &source, &destination].concat()
}

fn length(octets: usize) -> [u8; 2] {
    u16::try_from(octets).unwrap_or(u16::MAX).to_be_bytes()
}

/// Writes the checksum of an ICMPv6 message, with its pseudo-header (RFC 8200 section 8.1).
fn sum_icmpv6(source: &[u8], destination: &[u8], message: &mut [u8]) {
    let [a, b] = length(message.len());
    message[2..4].fill(0);
    let sum = checksum(&[source, destination, &[0, 0, a, b, 0, 0, 0, 58], message]).to_be_bytes();
    message[2..4].copy_from_slice(&sum);
}

impl Reference<'_> {
    fn set_addresses(&mut self, to: [u8; 6]) {
        self.frame[..6].copy_from_slice(&to);
        self.frame[6..12].copy_from_slice(&pool::MAC);
    }

    /// To the member at slot `to`.
    pub(super) fn send(&mut self, packet: Packet, to: u8, hop_limit: u8, counter: Counter) -> Step<Verdict> {
        let member = pool::members(self.scene.half)[usize::from(to)];
        let wire = match member {
            Peer::This | Peer::Near(_) => None,
            Peer::FarV4 => Some(20 + 8),
            Peer::FarV6 => Some(40 + 8),
        };
        let octets = self.ip_octets(packet)?;
        if let Some(overhead) = wire {
            let least = if packet.v6 { 40 } else { 20 };
            if octets < least || packet.l3 + octets > self.frame.len() {
                return Err((XDP_DROP, Counter::MalformedIp));
            }
            if octets + overhead > usize::from(pool::MTU) {
                return self.too_big(packet, usize::from(pool::MTU) - overhead);
            }
        }
        self.set_hop_limit(packet, hop_limit);
        match member {
            Peer::FarV4 => {
                let outer = ipv4_header(pool::OWN4.octets(), pool::FAR4.octets(), 17, octets + 28, 0x40);
                self.wrap(packet.l3, &outer, [0x08, 0x00], octets);
            }
            Peer::FarV6 => {
                let outer = ipv6_header(pool::OWN6.octets(), pool::FAR6.octets(), 17, octets + 8);
                self.wrap(packet.l3, &outer, [0x86, 0xdd], octets);
            }
            Peer::This | Peer::Near(_) => {}
        }
        self.set_addresses(member.mac());
        Ok((XDP_TX, counter))
    }

    /// Octets of the IP packet, as it says itself.
    fn ip_octets(&self, packet: Packet) -> Step<usize> {
        if packet.v6 {
            let ip: [u8; 40] = self.octets(packet.l3)?;
            return Ok(40 + be(&ip[4..6]));
        }
        let ip: [u8; 20] = self.octets(packet.l3)?;
        Ok(be(&ip[2..4]))
    }

    /// The checksum follows the change, right or wrong (RFC 1624, equation 3).
    fn set_hop_limit(&mut self, packet: Packet, hop_limit: u8) {
        let at = packet.l3 + if packet.v6 { 7 } else { 8 };
        if !packet.v6 {
            let former = [self.frame[at], self.frame[at + 1]].map(|octet| !octet);
            let sum = [!self.frame[at + 2], !self.frame[at + 3]];
            let sum = checksum(&[&sum, &former, &[hop_limit, self.frame[at + 1]]]).to_be_bytes();
            self.frame[at + 2..at + 4].copy_from_slice(&sum);
        }
        self.frame[at] = hop_limit;
    }

    fn wrap(&mut self, l3: usize, outer: &[u8], ethertype: [u8; 2], octets: usize) {
        let ([a, b], [c, d]) = (pool::OUTER_PORT.to_be_bytes(), length(octets + 8));
        // The source port is the program's own choice among the ephemeral ones.
        let udp = [0xc0, 0, a, b, c, d, 0, 0];
        self.frame[l3 - 2..l3].copy_from_slice(&ethertype);
        self.frame.splice(l3..l3, outer.iter().copied().chain(udp));
    }

    /// Tells the sender the size that fits (RFC 1191, RFC 8201), but never about an error or a later fragment (RFC 1122
    /// section 3.2.2, RFC 4443 section 2.4).
    fn too_big(&mut self, packet: Packet, mtu: usize) -> Step<Verdict> {
        let to = if packet.hop_limit > 16 { self.octets(6).ok() } else { self.scene.gateway() };
        let (Some(to), What::Tcp { .. }) = (to, packet.what) else { return Ok((XDP_DROP, Counter::TooBig)) };
        let quoted: [u8; 64] = self.octets(packet.l3)?;
        let [a, b] = length(mtu);
        let answer = if packet.v6 {
            let mut message = [&[2, 0, 0, 0, 0, 0, a, b][..], &quoted].concat();
            sum_icmpv6(&quoted[24..40], &quoted[8..24], &mut message);
            [ipv6_header(self.octets(packet.l3 + 24)?, self.octets(packet.l3 + 8)?, 58, message.len()), message]
                .concat()
        } else {
            let mut message = [&[3, 4, 0, 0, 0, 0, a, b][..], &quoted].concat();
            let sum = checksum(&[&message]).to_be_bytes();
            message[2..4].copy_from_slice(&sum);
            let total = 20 + message.len();
            [ipv4_header(self.octets(packet.l3 + 16)?, self.octets(packet.l3 + 12)?, 1, total, 0), message].concat()
        };
        self.frame.truncate(packet.l3);
        self.frame.extend(answer);
        self.set_addresses(to);
        Ok((XDP_TX, Counter::TooBig))
    }

    /// What becomes of a question for the address: None, it is answered.
    fn ask(&self, address: IpAddr) -> Option<Verdict> {
        let is_vip = pool::SERVICES.iter().any(|(vip, _)| *vip == address);
        let is_own = address == IpAddr::V4(pool::VIP4) || address == IpAddr::V6(pool::VIP6);
        match (is_vip, is_own && self.scene.alive) {
            (false, _) => Some(PASSED),
            (true, false) => Some((XDP_DROP, Counter::NeighbourIgnored)),
            (true, true) => None,
        }
    }

    pub(super) fn arp(&mut self, l3: usize) -> Step<Verdict> {
        let arp: [u8; 28] = self.octets(l3)?;
        if arp[..8] != [0, 1, 8, 0, 6, 4, 0, 1] {
            return Ok(PASSED);
        }
        let (asker, target): ([u8; 10], [u8; 4]) = (self.octets(l3 + 8)?, self.octets(l3 + 24)?);
        if let Some(verdict) = self.ask(IpAddr::from(target)) {
            return Ok(verdict);
        }
        if asker[6..] == target {
            return Ok((XDP_DROP, Counter::NeighbourIgnored));
        }
        let reply = [&[0, 2][..], &pool::MAC, &target, &asker].concat();
        self.frame[l3 + 6..l3 + 28].copy_from_slice(&reply);
        let to = self.octets(l3 + 18)?;
        self.set_addresses(to);
        Ok((XDP_TX, Counter::NeighbourAnswered))
    }

    /// `before`: octets of extension headers, which a solicitation has none of.
    pub(super) fn solicitation(&mut self, l3: usize, before: usize) -> Step<Verdict> {
        let ip: [u8; 40] = self.octets(l3)?;
        let Ok(message) = self.octets::<24>(l3 + 40 + before) else { return Ok(PASSED) };
        if before != 0 || message[..2] != [135, 0] || ip[7] != 255 {
            return Ok(PASSED);
        }
        let target: [u8; 16] = self.octets(l3 + 48)?;
        if let Some(verdict) = self.ask(IpAddr::from(target)) {
            return Ok(verdict);
        }
        if ip[8..24] == [0; 16] {
            return Ok((XDP_DROP, Counter::NeighbourIgnored));
        }
        let to = self.octets(6)?;
        let mut answer = [&[136, 0, 0, 0, 0x60, 0, 0, 0][..], &target, &[2, 1], &pool::MAC].concat();
        sum_icmpv6(&target, &ip[8..24], &mut answer);
        self.frame.truncate(l3);
        self.frame.extend([&ip[..4], &[0, 32], &ip[6..8], &target, &ip[8..24], &answer].concat());
        self.set_addresses(to);
        Ok((XDP_TX, Counter::NeighbourAnswered))
    }
}
