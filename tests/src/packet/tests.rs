//! Every frame that is made is read back, and a damaged octet is noticed.

use super::frames::{Envelope, Segment, encapsulate, fragments, frame, too_big};
use super::*;

const ENVELOPE: Envelope = Envelope { source: [2, 0, 0, 0, 0, 1], destination: [2, 0, 0, 0, 0, 2], vlan: None };

fn ends(v6: bool) -> (std::net::SocketAddr, std::net::SocketAddr) {
    if v6 {
        ("[fd77::2]:4000".parse().unwrap(), "[fd77::100]:25".parse().unwrap())
    } else {
        ("10.77.0.2:4000".parse().unwrap(), "10.77.0.100:25".parse().unwrap())
    }
}

fn segment(v6: bool, octets: usize) -> Segment {
    let (source, destination) = ends(v6);
    let flags = Flags { ack: true, ..Flags::default() };
    Segment { flags, data: vec![0x5a; octets], ..Segment::syn(source, destination, 7) }
}

fn read(packet: &[u8]) -> Packet {
    Packet::parse(&frame(ENVELOPE, packet)).unwrap()
}

#[test]
fn segments_are_read_back() {
    for v6 in [false, true] {
        for extensions in [false, v6] {
            let sent = Segment { extensions, ..segment(v6, 100) };
            let packet = read(&sent.packet().unwrap());
            assert!(packet.faults.is_empty(), "{:?}", packet.faults);
            let tcp = packet.tcp().unwrap();
            assert_eq!((tcp.source, tcp.destination, tcp.sequence, tcp.length), (4000, 25, 7, 100));
            assert!(tcp.flags.ack && !tcp.flags.syn);
            let ip = packet.ip.unwrap();
            assert_eq!((ip.source, ip.destination, ip.hop_limit), (sent.source.ip(), sent.destination.ip(), 64));
        }
    }
}

#[test]
fn a_tag_is_read_back() {
    let tagged = frame(Envelope { vlan: Some(42), ..ENVELOPE }, &segment(false, 1).packet().unwrap());
    let packet = Packet::parse(&tagged).unwrap();
    assert_eq!((packet.vlans.as_slice(), packet.tcp().unwrap().destination), ([42].as_slice(), 25));
}

#[test]
fn every_damaged_octet_of_header_or_data_is_noticed() {
    for v6 in [false, true] {
        let good = frame(ENVELOPE, &segment(v6, 5).packet().unwrap());
        let first = if v6 { 14 + 8 } else { 14 + 12 };
        for at in first..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            assert!(!Packet::parse(&bad).unwrap().faults.is_empty(), "octet {at} of {v6}");
        }
    }
}

#[test]
fn fragments_have_one_id_and_cover_everything() {
    for v6 in [false, true] {
        let whole = segment(v6, 1000).packet().unwrap();
        let pieces = fragments(&whole, 512, 99).unwrap();
        let read: Vec<Fragment> = pieces.iter().map(|piece| read(piece).ip.unwrap().fragment.unwrap()).collect();
        assert_eq!(read[0], Fragment { id: 99, offset: 0, more: true });
        assert_eq!(read[1], Fragment { id: 99, offset: 512, more: false });
        assert!(pieces.iter().all(|piece| self::read(piece).faults.is_empty()));
        assert!(read.len() == 2 && self::read(&pieces[0]).tcp().is_some() && self::read(&pieces[1]).tcp().is_none());
    }
}

#[test]
fn an_icmp_error_names_what_it_is_about() {
    for (v6, router) in [(false, "10.77.0.1"), (true, "fd77::1")] {
        let sent = segment(v6, 600);
        let quoted = sent.packet().unwrap();
        let error = too_big(router.parse().unwrap(), sent.source.ip(), 1300, &quoted[..quoted.len().min(548)]).unwrap();
        let packet = read(&error);
        assert!(packet.faults.is_empty(), "{:?}", packet.faults);
        let ip = packet.ip.unwrap();
        assert!(matches!(ip.body, Body::Icmp { mtu: 1300, .. }), "{ip:?}");
        assert_eq!(ip.inner().and_then(Ip::tcp).map(|tcp| tcp.source), Some(4000));
    }
}

#[test]
fn a_fault_within_an_encapsulated_packet_is_found() {
    let (front, other) = ("10.77.0.11".parse().unwrap(), "10.78.0.13".parse().unwrap());
    let mut inner = segment(true, 20).packet().unwrap();
    let good = read(&encapsulate(front, other, ENCAPSULATION_PORT, &inner).unwrap());
    assert_eq!((good.faults.len(), good.ip.unwrap().inner().and_then(Ip::tcp).map(|tcp| tcp.length)), (0, Some(20)));
    let last = inner.len() - 1;
    inner[last] ^= 1;
    let bad = read(&encapsulate(front, other, ENCAPSULATION_PORT, &inner).unwrap());
    assert_eq!(bad.faults.len(), 1, "{:?}", bad.faults);
}
