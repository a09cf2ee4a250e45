//! Telling the neighbours that this front end owns a VIP now: gratuitous ARP (RFC 5227, section 3) and unsolicited
//! neighbour advertisements (RFC 4861, section 7.2.6), and listening where solicitations for our VIPs are sent.
//!
//! Absent on purpose: answering requests. The neighbours' caches expire, and what they ask then is answered elsewhere.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

use crate::netdev::MacAddress;

/// When an announcement is repeated, counted from the takeover: the first may be lost, and switches may learn late.
pub const ANNOUNCE_AT: [Duration; 4] =
    [Duration::ZERO, Duration::from_millis(200), Duration::from_secs(1), Duration::from_secs(3)];

pub const GRATUITOUS_ARP_BYTES: usize = 42;
pub const UNSOLICITED_NA_BYTES: usize = 86;

const BROADCAST: MacAddress = [0xff; 6];
/// Ethernet address of ff02::1 (RFC 2464, section 7).
const ALL_NODES_MAC: MacAddress = [0x33, 0x33, 0, 0, 0, 1];
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ETHERTYPE_ARP: [u8; 2] = [0x08, 0x06];
const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];
const NEXT_HEADER_ICMPV6: u8 = 58;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
/// Caches with another address are to be overridden; not solicited, and not a router.
const FLAG_OVERRIDE: u8 = 0x20;
const OPTION_TARGET_LINK_LAYER_ADDRESS: u8 = 2;
const ICMPV6_BYTES: usize = 32;

/// An ARP announcement: a broadcast request in which sender and target are the VIP.
pub fn gratuitous_arp(mac: MacAddress, vip: Ipv4Addr) -> [u8; GRATUITOUS_ARP_BYTES] {
    let ethernet_ipv4_request = [0, 1, 8, 0, 6, 4, 0, 1];
    let target_unknown = [0; 6];
    concat([
        &BROADCAST,
        &mac,
        &ETHERTYPE_ARP,
        &ethernet_ipv4_request,
        &mac,
        &vip.octets(),
        &target_unknown,
        &vip.octets(),
    ])
}

/// An unsolicited neighbour advertisement with the override flag, from the VIP to all nodes of the link.
pub fn unsolicited_na(mac: MacAddress, vip: Ipv6Addr) -> [u8; UNSOLICITED_NA_BYTES] {
    let checksum = icmpv6_checksum(vip, ALL_NODES, &advertisement(mac, vip, [0, 0]));
    let version_class_flow = [0x60, 0, 0, 0];
    let length_next_hops = [0, 32, NEXT_HEADER_ICMPV6, 255];
    concat([
        &ALL_NODES_MAC,
        &mac,
        &ETHERTYPE_IPV6,
        &version_class_flow,
        &length_next_hops,
        &vip.octets(),
        &ALL_NODES.octets(),
        &advertisement(mac, vip, checksum),
    ])
}

fn advertisement(mac: MacAddress, vip: Ipv6Addr, checksum: [u8; 2]) -> [u8; ICMPV6_BYTES] {
    let option = [OPTION_TARGET_LINK_LAYER_ADDRESS, 1];
    concat([&[NEIGHBOUR_ADVERTISEMENT, 0], &checksum, &[FLAG_OVERRIDE, 0, 0, 0], &vip.octets(), &option, &mac])
}

/// Joins parts whose lengths add up to `N`; the tests see every byte of every frame.
fn concat<const N: usize, const PARTS: usize>(parts: [&[u8]; PARTS]) -> [u8; N] {
    let mut frame = [0; N];
    for (to, from) in frame.iter_mut().zip(parts.into_iter().flatten()) {
        *to = *from;
    }
    frame
}

/// The checksum over pseudo-header and message (RFC 4443, section 2.3; RFC 8200, section 8.1); even lengths only.
fn icmpv6_checksum(source: Ipv6Addr, destination: Ipv6Addr, message: &[u8; ICMPV6_BYTES]) -> [u8; 2] {
    let pseudo_tail = [0, 0, 0, 32, 0, 0, 0, NEXT_HEADER_ICMPV6];
    let (source, destination) = (source.octets(), destination.octets());
    let parts: [&[u8]; 4] = [&source, &destination, &pseudo_tail, message];
    let words = parts.into_iter().flat_map(|part| part.as_chunks::<2>().0);
    let sum: u32 = words.map(|word| u32::from(u16::from_be_bytes(*word))).sum();
    let once = (sum & 0xffff) + (sum >> 16);
    let folded = (once & 0xffff) + (once >> 16);
    let [_, _, high, low] = (!folded).to_be_bytes();
    [high, low]
}

/// The multicast group in which neighbours ask for an address (RFC 4291, section 2.7.1).
pub fn solicited_node_group(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]))
}

/// Sends announcements on each steering interface and, as long as it lives, keeps the interfaces in the solicited-node
/// groups of the VIPs.
#[derive(Debug)]
pub struct Announcer {
    packets: Socket,
    /// Holds the group memberships.
    groups: Socket,
    /// Interfaces by index, and the Ethernet address that each announces.
    voices: Vec<(u32, MacAddress)>,
}

impl Announcer {
    /// Opens the raw socket for interfaces, as [`crate::netdev::Segment::voices`] tells them.
    ///
    /// # Errors
    /// When a socket can't be opened: CAP_NET_RAW is needed.
    pub fn open(voices: Vec<(u32, MacAddress)>) -> Result<Self> {
        // Protocol 0: it only sends, and must not be woken by every packet of the host.
        let packets =
            Socket::new(Domain::PACKET, Type::RAW, None).context("failed to open a raw socket (needs CAP_NET_RAW)")?;
        packets.set_nonblocking(true).context("failed to configure the raw socket")?;
        let groups = Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP)).context("failed to open a socket")?;
        Ok(Self { packets, groups, voices })
    }

    /// Joins the solicited-node group of an IPv6 VIP on each interface, so that the NICs let solicitations for it pass.
    /// Does nothing for an IPv4 VIP or a group that was joined before.
    ///
    /// # Errors
    /// When the kernel refuses at an interface; the others have joined.
    pub fn listen_for(&self, vip: IpAddr) -> Result<()> {
        let IpAddr::V6(vip) = vip else { return Ok(()) };
        let group = solicited_node_group(vip);
        self.everywhere(|index, _mac| match self.groups.join_multicast_v6(&group, index) {
            Err(error) if error.kind() != io::ErrorKind::AddrInUse => Err(error),
            Ok(()) | Err(_) => Ok(()),
        })
        .with_context(|| format!("failed to join {group} for {vip}"))
    }

    /// Announces a VIP once on each interface; see [`ANNOUNCE_AT`] for when to do it again.
    ///
    /// # Errors
    /// When the frame can't be sent by an interface; the others have sent theirs.
    pub fn announce(&self, vip: IpAddr) -> Result<()> {
        self.everywhere(|index, mac| match vip {
            IpAddr::V4(vip) => self.send(index, &gratuitous_arp(mac, vip)),
            IpAddr::V6(vip) => self.send(index, &unsolicited_na(mac, vip)),
        })
        .with_context(|| format!("failed to announce {vip}"))
    }

    /// The first failure, after all were tried.
    fn everywhere(&self, work: impl Fn(u32, MacAddress) -> io::Result<()>) -> Result<()> {
        let mut outcome = Ok(());
        for (index, mac) in &self.voices {
            let done = work(*index, *mac).with_context(|| format!("at the interface with index {index}"));
            outcome = outcome.and(done);
        }
        outcome
    }

    fn send(&self, index: u32, frame: &[u8]) -> io::Result<()> {
        let sent = self.packets.send_to(frame, &link_address(index)?)?;
        if sent == frame.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }
}

/// The address of "whatever is in the frame, out of this interface" (packet(7)).
fn link_address(index: u32) -> io::Result<SockAddr> {
    let index = i32::try_from(index).map_err(io::Error::other)?;
    let family = u16::try_from(libc::AF_PACKET).map_err(io::Error::other)?;
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: sockaddr_ll is one of the plain structs that sockaddr_storage is made to hold, and zeroed is valid.
    let link = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    link.sll_family = family;
    link.sll_ifindex = index;
    let length = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).map_err(io::Error::other)?;
    // SAFETY: the storage holds a sockaddr_ll whose family says so, and `length` is its size.
    Ok(unsafe { SockAddr::new(storage, length) })
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Read;

    use super::*;
    use crate::netdev;
    use crate::testing::{in_network_namespace, ip};

    const MAC: MacAddress = [2, 0, 0, 0, 0, 0x0a];
    const VIP4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 100);

    fn vip6() -> Ipv6Addr {
        "fd77::100".parse().unwrap()
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    // Both frames were captured from Linux 6.18 announcing its own addresses (arp_notify and ndisc_notify).
    const LINUX_ARP: &str = "ffffffffffff02000000000a0806000108000604000102000000000a0a4d00640000000000000a4d0064";
    const LINUX_NA: &str = concat!(
        "33330000000102000000000a86dd6000000000203afffd770000000000000000000000000100ff020000000000000000000000",
        "0000018800",
        "57a620000000fd770000000000000000000000000100020102000000000a"
    );

    #[test]
    fn frames_equal_those_of_linux() {
        assert_eq!(hex(&gratuitous_arp(MAC, VIP4)), LINUX_ARP);
        assert_eq!(hex(&unsolicited_na(MAC, vip6())), LINUX_NA);
        // Another MAC and address, and with them another checksum, captured likewise.
        let other = unsolicited_na([2, 0, 0, 0, 0, 0x0b], "fe80::ff:fe00:a".parse().unwrap());
        assert_eq!(hex(&other[54..62]), "8800597f20000000");
    }

    #[test]
    fn checksums_verify_whatever_the_frame_carries() {
        for (mac, vip) in [([0xff; 6], Ipv6Addr::from([0xff; 16])), ([0; 6], Ipv6Addr::UNSPECIFIED), (MAC, vip6())] {
            let frame = unsolicited_na(mac, vip);
            let message: [u8; ICMPV6_BYTES] = frame[54..].try_into().unwrap();
            assert_eq!(icmpv6_checksum(vip, ALL_NODES, &message), [0, 0], "a right checksum sums to zero");
        }
    }

    #[test]
    fn solicited_node_groups_keep_the_last_24_bits() {
        let group = solicited_node_group("fd77::12:3456:789a".parse().unwrap());
        assert_eq!(group, "ff02::1:ff56:789a".parse::<Ipv6Addr>().unwrap());
    }

    #[test]
    fn announcements_leave_the_interface_and_groups_are_joined() {
        in_network_namespace("announcements_leave_the_interface_and_groups_are_joined", async || {
            ip("link add va address 02:00:00:00:00:0a type veth peer name vb");
            ip("link set va up");
            ip("link set vb up");
            let (va, vb) = (netdev::interface("va").await.unwrap(), netdev::interface("vb").await.unwrap());
            let tap = tap(vb.index);
            let announcer = Announcer::open(vec![(va.index, va.mac)]).unwrap();
            for vip in [IpAddr::V4(VIP4), IpAddr::V6(vip6())] {
                announcer.listen_for(vip).unwrap();
                announcer.listen_for(vip).unwrap();
                announcer.announce(vip).unwrap();
            }
            let mut seen = Vec::new();
            while !(seen.contains(&LINUX_ARP.to_owned()) && seen.contains(&LINUX_NA.to_owned())) {
                seen.push(receive(&tap));
            }
            let groups = std::fs::read_to_string("/proc/thread-self/net/igmp6").unwrap();
            assert!(
                groups.lines().any(|line| line.contains("va") && line.contains("ff0200000000000000000001ff000100"))
            );
        });
    }

    #[test]
    fn each_interface_announces_its_own_address_even_if_another_cannot() {
        in_network_namespace("each_interface_announces_its_own_address_even_if_another_cannot", async || {
            ip("link add va address 02:00:00:00:00:0a type veth peer name vb");
            ip("link add vc address 02:00:00:00:00:0c type veth peer name vd");
            for link in ["va", "vb", "vc", "vd"] {
                ip(&format!("link set {link} up"));
            }
            let taps = [tap(index("vb").await), tap(index("vd").await)];
            let [va, vc] = [netdev::interface("va").await.unwrap(), netdev::interface("vc").await.unwrap()];
            let announcer = Announcer::open(vec![(va.index, va.mac), (vc.index, vc.mac)]).unwrap();
            announcer.announce(VIP4.into()).unwrap();
            for (tap, mac) in taps.iter().zip([va.mac, vc.mac]) {
                let expected = hex(&gratuitous_arp(mac, VIP4));
                while receive(tap) != expected {}
            }
            ip("link set va down");
            let error = format!("{:#}", announcer.announce(vip6().into()).unwrap_err());
            assert!(error.contains("fd77::100") && error.contains(&va.index.to_string()), "{error}");
            let expected = hex(&unsolicited_na(vc.mac, vip6()));
            while receive(&taps[1]) != expected {}
        });
    }

    async fn index(name: &str) -> u32 {
        netdev::interface(name).await.unwrap().index
    }

    /// A socket that receives every frame that arrives at an interface.
    pub(crate) fn tap(index: u32) -> Socket {
        let every_protocol = u16::try_from(libc::ETH_P_ALL).unwrap().to_be();
        let tap = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(i32::from(every_protocol)))).unwrap();
        tap.bind(&link_address(index).unwrap()).unwrap();
        tap.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        tap
    }

    /// A frame that has arrived already.
    pub(crate) fn try_receive(mut tap: &Socket) -> Option<Vec<u8>> {
        let mut frame = [0; 2048];
        tap.set_nonblocking(true).unwrap();
        tap.read(&mut frame).ok().map(|length| frame[..length].to_vec())
    }

    fn receive(mut tap: &Socket) -> String {
        let mut frame = [0; 2048];
        let length = tap.read(&mut frame).unwrap();
        hex(&frame[..length])
    }
}
