//! What becomes of a connection: the kernel is asked, with packets made for it (`BPF_PROG_TEST_RUN`).

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, bail, ensure};
use proxy_common::{
    hash::{SteeringKey, connection_bucket},
    maps::{Chain, MAX_CHAIN, MEMBER_BY_V4, MEMBER_BY_V6, MEMBER_PRESENT, Member, NO_SLOT},
};
use proxy_core::steering::Plan;

use crate::{
    dataplane::{Dataplane, TestVerdict},
    netdev::MacAddress,
    status::steering::{Trace, TraceVerdict},
};

/// Times that the kernel is asked, so that counters which other packets moved meanwhile are told apart.
const TRIES: usize = 16;
/// Hop limit of packets from outside.
const HOP_LIMIT: u8 = 64;
/// Locally administered, and nobody's.
const ASKER: MacAddress = [2, 0, 0, 0, 0, 0xfe];
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
const ETHERNET: usize = 14;

/// A connection to ask about.
#[derive(Debug, Clone, Copy)]
pub struct Question {
    pub source: SocketAddr,
    pub destination: SocketAddr,
    /// The address of the interface that packets are steered on.
    pub mac: MacAddress,
    pub key: SteeringKey,
}

/// Asks the plan and the kernel.
///
/// # Errors
/// The addresses are of two families, no table is in force, or the kernel refuses to run the program.
pub fn trace(question: &Question, plan: &Plan, members: &[Member], dataplane: &mut Dataplane) -> Result<Trace> {
    let Question { source, destination, key, .. } = *question;
    ensure!(source.is_ipv4() == destination.is_ipv4(), "{source} and {destination} are of two address families");
    let bucket = connection_bucket(key, source, destination);
    let index = bucket as usize;
    let (Some(owner), Some(chain)) = (plan.owners.get(index), plan.chains.get(index)) else {
        bail!("no steering table is in force");
    };
    let name = |slot: u8| plan.members.get(usize::from(slot)).cloned();
    let named: Vec<_> = plan.members.iter().map(String::as_str).zip(members.iter().copied()).collect();
    let successor = plan.successors.get(index).copied().filter(|slot| *slot != NO_SLOT).and_then(name);
    Ok(Trace {
        source,
        destination,
        bucket,
        owner: name(owner.slot()),
        chain: if owner.chained() { asked(*chain).filter_map(name).collect() } else { vec![] },
        lately: owner.chained() && chain.lately(),
        successor,
        settling: plan.settling,
        syn: verdict(question, SYN, dataplane, &named)?,
        ack: verdict(question, ACK, dataplane, &named)?,
    })
}

fn asked(chain: Chain) -> impl Iterator<Item = u8> {
    (0..MAX_CHAIN).map(move |position| chain.member(position)).take_while(|slot| *slot != NO_SLOT)
}

fn verdict(
    question: &Question,
    flags: u8,
    dataplane: &mut Dataplane,
    members: &[(&str, Member)],
) -> Result<TraceVerdict> {
    let packet = packet(question, flags);
    let mut suspects: Option<Vec<String>> = None;
    let mut last = None;
    for _ in 0..TRIES {
        let before = dataplane.counters()?;
        let result = dataplane.test_run(&packet)?;
        let after = dataplane.counters()?;
        let moved = after.iter().zip(&before).filter(|((_, now), (_, then))| now > then);
        let moved: Vec<String> = moved.map(|((counter, _), _)| counter.name().to_owned()).collect();
        let common = match suspects {
            None => moved,
            Some(known) => known.into_iter().filter(|name| moved.contains(name)).collect(),
        };
        let certain = common.len() == 1;
        (suspects, last) = (Some(common), Some(result));
        if certain {
            break;
        }
    }
    let Some(result) = last else { bail!("the kernel was not asked") };
    Ok(describe(&result, suspects.unwrap_or_default(), members))
}

fn describe(result: &TestVerdict, reasons: Vec<String>, members: &[(&str, Member)]) -> TraceVerdict {
    let action = match result.action {
        0 => "abort",
        1 => "drop",
        2 => "take",
        3 => "send",
        _ => "redirect",
    };
    let sent = action == "send";
    let to = result.packet.first_chunk::<6>().filter(|_| sent);
    let receiver = || members.iter().find(|(_, member)| is_to(&result.packet, member));
    let to = to.map(|mac| receiver().map_or_else(|| shown(*mac), |(name, _)| (*name).to_owned()));
    let hop_limit = if sent { hop_limit(&result.packet) } else { None };
    TraceVerdict { action: action.to_owned(), to, hop_limit, reasons }
}

/// Whether the packet is on its way to the member. Members beyond the segment share a next hop.
fn is_to(packet: &[u8], member: &Member) -> bool {
    let at = |range: std::ops::Range<usize>| packet.get(range);
    let outer = match member.flags & (MEMBER_BY_V4 | MEMBER_BY_V6) {
        MEMBER_BY_V4 => at(ETHERNET + 16..ETHERNET + 20) == member.outer_destination.get(..4),
        MEMBER_BY_V6 => at(ETHERNET + 24..ETHERNET + 40) == member.outer_destination.get(..),
        _ => true,
    };
    outer && member.flags & MEMBER_PRESENT != 0 && at(0..6) == Some(&member.mac[..])
}

fn shown(mac: MacAddress) -> String {
    mac.map(|octet| format!("{octet:02x}")).join(":")
}

/// The outermost header's.
fn hop_limit(packet: &[u8]) -> Option<u8> {
    match packet.get(12..ETHERNET)? {
        [0x08, 0x00] => packet.get(ETHERNET + 8).copied(),
        [0x86, 0xdd] => packet.get(ETHERNET + 7).copied(),
        _ => None,
    }
}

/// The packet, with right checksums, as the interface would get it from a router.
fn packet(question: &Question, flags: u8) -> Vec<u8> {
    let Question { source, destination, mac, .. } = question;
    let mut packet = [*mac, ASKER].concat();
    let mut tcp = tcp(source.port(), destination.port(), flags);
    match (source.ip(), destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let addresses = [from.octets(), to.octets()].concat();
            set_checksum(&mut tcp, 16, &addresses);
            let mut ip = vec![0x45, 0, 0, 40, 0, 0, 0x40, 0, HOP_LIMIT, 6, 0, 0];
            ip.extend(addresses);
            set_ip_checksum(&mut ip);
            packet.extend([0x08, 0x00]);
            packet.extend(ip);
        }
        (from, to) => {
            let addresses = [as_v6(from), as_v6(to)].concat();
            set_checksum(&mut tcp, 16, &addresses);
            packet.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, 6, HOP_LIMIT]);
            packet.extend(addresses);
        }
    }
    packet.extend(tcp);
    packet
}

fn as_v6(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// A TCP header without options (RFC 9293 section 3.1).
fn tcp(source: u16, destination: u16, flags: u8) -> Vec<u8> {
    let mut tcp = vec![0; 20];
    tcp[..2].copy_from_slice(&source.to_be_bytes());
    tcp[2..4].copy_from_slice(&destination.to_be_bytes());
    tcp[7] = 1;
    tcp[12] = 5 << 4;
    tcp[13] = flags;
    tcp[14..16].copy_from_slice(&u16::MAX.to_be_bytes());
    tcp
}

fn set_checksum(tcp: &mut [u8], at: usize, addresses: &[u8]) {
    // Protocol and length are in the checksum (RFC 9293 section 3.1).
    let pseudo = sum(addresses) + 6 + 20;
    let checksum = fold(pseudo + sum(tcp));
    tcp[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
}

fn set_ip_checksum(ip: &mut [u8]) {
    let checksum = fold(sum(ip));
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
}

fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum()
}

/// RFC 1071.
#[allow(clippy::cast_possible_truncation, reason = "what is folded has 16 bits")]
const fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(source: &str, destination: &str) -> Question {
        Question {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            mac: [2, 0, 0, 0, 0, 1],
            key: SteeringKey { k0: 1, k1: 2 },
        }
    }

    #[test]
    fn packets_have_right_checksums() {
        let v4 = packet(&question("192.0.2.1:8080", "10.77.0.100:25"), SYN);
        assert_eq!(v4.len(), 54);
        assert_eq!(fold(sum(&v4[14..34])), 0, "RFC 1071: the sum over a right header is all ones");
        assert_eq!(fold(sum(&v4[26..34]) + 26 + sum(&v4[34..])), 0);
        let v6 = packet(&question("[2001:db8::1]:8080", "[fd77::100]:25"), ACK);
        assert_eq!(v6.len(), 74);
        assert_eq!(fold(sum(&v6[22..54]) + 26 + sum(&v6[54..])), 0);
    }

    #[test]
    fn a_packet_that_is_sent_on_tells_to_whom() {
        let mut packet = packet(&question("192.0.2.1:8080", "10.77.0.100:25"), SYN);
        packet[..6].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
        packet[ETHERNET + 8] = 11;
        let direct = Member { mac: [2, 0, 0, 0, 0, 9], flags: MEMBER_PRESENT, ..Member::default() };
        let mut outer_destination = [0; 16];
        outer_destination[..4].copy_from_slice(&[10, 78, 0, 21]);
        let beyond = Member { flags: MEMBER_PRESENT | MEMBER_BY_V4, outer_destination, ..direct };
        let members = [("fe3", beyond), ("fe2", direct)];
        let told = describe(&TestVerdict { action: 3, packet: packet.clone() }, vec!["steered".into()], &members);
        assert_eq!((told.action.as_str(), told.to.as_deref(), told.hop_limit), ("send", Some("fe2"), Some(11)));
        packet[ETHERNET + 16..ETHERNET + 20].copy_from_slice(&[10, 78, 0, 21]);
        let encapsulated = describe(&TestVerdict { action: 3, packet: packet.clone() }, vec![], &members);
        assert_eq!(encapsulated.to.as_deref(), Some("fe3"), "the next hop is the same, the address tells");
        let unknown = describe(&TestVerdict { action: 3, packet: packet.clone() }, vec![], &[]);
        assert_eq!(unknown.to.as_deref(), Some("02:00:00:00:00:09"));
        let taken = describe(&TestVerdict { action: 2, packet }, vec!["own".into()], &members);
        assert_eq!((taken.action.as_str(), taken.to, taken.hop_limit), ("take", None, None));
    }
}
