//! ARP and neighbour discovery for the virtual addresses.

use super::{packets::*, *};

pub(super) fn arp_request(sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mut arp = ethernet([0xff; 6], CLIENT_MAC, 0x0806);
    arp.extend([0, 1, 8, 0, 6, 4, 0, 1]);
    arp.extend(CLIENT_MAC);
    arp.extend(sender.octets());
    arp.extend([0; 6]);
    arp.extend(target.octets());
    arp
}

/// The answer to the client.
pub(super) fn arp_reply(mac: [u8; 6], vip: Ipv4Addr) -> Vec<u8> {
    let mut reply = ethernet(CLIENT_MAC, mac, 0x0806);
    reply.extend([0, 1, 8, 0, 6, 4, 0, 2]);
    reply.extend(mac);
    reply.extend(vip.octets());
    reply.extend(CLIENT_MAC);
    reply.extend(CLIENT4.octets());
    reply
}

#[test]
fn the_owner_answers_arp() {
    let Some(mut fixture) = fixture() else { return };
    let reply = arp_reply(MAC, VIP4);
    let request = arp_request(CLIENT4, VIP4);
    assert_eq!(fixture.run(&request), TestVerdict { action: XDP_TX, packet: reply.clone() });
    let in_vlan = fixture.run(&tagged(&request, 0x8100, 7));
    assert_eq!(in_vlan, TestVerdict { action: XDP_TX, packet: tagged(&reply, 0x8100, 7) });
    for (target, expected) in [(OTHER_VIP4, (XDP_DROP, Counter::NeighbourIgnored)), (OWN4, (XDP_PASS, Counter::Passed))]
    {
        assert_eq!(fixture.counted(&arp_request(CLIENT4, target)), expected);
    }
    assert_eq!(fixture.counted(&arp_request(VIP4, VIP4)), (XDP_DROP, Counter::NeighbourIgnored), "an announcement");
    for length in 15..request.len() {
        assert_eq!(fixture.counted(&request[..length]), (XDP_PASS, Counter::Truncated));
    }
}

#[test]
fn a_dead_daemon_answers_for_nothing() {
    let Some(mut fixture) = fixture() else { return };
    let questions = [arp_request(CLIENT4, VIP4), solicitation(VIP6, &[])];
    for question in &questions {
        assert_eq!(fixture.counted(question), (XDP_TX, Counter::NeighbourAnswered));
    }
    fixture.dataplane.keep_alive(Duration::ZERO).unwrap();
    for question in &questions {
        assert_eq!(fixture.counted(question), (XDP_DROP, Counter::NeighbourIgnored));
    }
}

fn solicitation(target: Ipv6Addr, option: &[u8]) -> Vec<u8> {
    let mut message = vec![135, 0, 0, 0, 0, 0, 0, 0];
    message.extend(target.octets());
    message.extend(option);
    let multicast: Ipv6Addr = "ff02::1:ff00:100".parse().unwrap();
    let sum = transport_checksum(&CLIENT6.octets(), &multicast.octets(), 58, &message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let ip = ipv6(CLIENT6, multicast, 58, 255, &message);
    [ethernet([0x33, 0x33, 0xff, 0, 1, 0], CLIENT_MAC, 0x86dd), ip].concat()
}

#[test]
fn the_owner_answers_neighbour_solicitations() {
    let Some(mut fixture) = fixture() else { return };
    let mut message = vec![136, 0, 0, 0, 0x60, 0, 0, 0];
    message.extend(VIP6.octets());
    message.extend([2, 1]);
    message.extend(MAC);
    let sum = transport_checksum(&VIP6.octets(), &CLIENT6.octets(), 58, &message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let expected = [ethernet(CLIENT_MAC, MAC, 0x86dd), ipv6(VIP6, CLIENT6, 58, 255, &message)].concat();
    let source_mac = [&[1, 1][..], &CLIENT_MAC].concat();
    for option in [&source_mac[..], &[], &[&source_mac[..], &[14, 1, 1, 2, 3, 4, 5, 6]].concat()] {
        let question = solicitation(VIP6, option);
        assert_eq!(fixture.run(&question), TestVerdict { action: XDP_TX, packet: expected.clone() });
        let in_vlan = fixture.run(&tagged(&question, 0x8100, 7));
        assert_eq!(in_vlan, TestVerdict { action: XDP_TX, packet: tagged(&expected, 0x8100, 7) });
    }
    let jumbo = [&solicitation(VIP6, &[])[..], &[0; 8_000]].concat();
    assert_eq!(fixture.run(&jumbo), TestVerdict { action: XDP_TX, packet: expected }, "a frame in several buffers");
    let other = solicitation("fd77::1".parse().unwrap(), &source_mac);
    assert_eq!(fixture.counted(&other), (XDP_PASS, Counter::Passed));
    fixture.dataplane.set_vips([(VIP6.into(), false)]).unwrap();
    assert_eq!(fixture.counted(&solicitation(VIP6, &source_mac)), (XDP_DROP, Counter::NeighbourIgnored));
}
