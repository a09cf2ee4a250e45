//! Between segments: put into UDP, taken out of it, and what does not fit.

use proxy_common::{maps::MEMBER_PRESENT, steer::HOPS};

use super::{packets::*, *};

fn udp(source: u16, destination: u16, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).unwrap();
    [&source.to_be_bytes()[..], &destination.to_be_bytes(), &length.to_be_bytes(), &[0, 0], payload].concat()
}

/// What a far member sends us.
fn from_far(v4: bool, inner: &[u8]) -> Vec<u8> {
    let udp = udp(0xc123, OUTER_PORT, inner);
    let mut frame = if v4 { frame4(&ipv4_of(FAR4, OWN4, 17, &udp)) } else { frame6(&ipv6(FAR6, OWN6, 17, 62, &udp)) };
    frame[6..12].copy_from_slice(&ROUTER_MAC);
    frame
}

fn inner(frame: &[u8], hop_limit: u8) -> Vec<u8> {
    let mut frame = frame.to_vec();
    set_hop_limit(&mut frame, hop_limit);
    frame[14..].to_vec()
}

#[test]
fn packets_to_far_members_are_put_into_udp() {
    let Some(mut fixture) = fixture() else { return };
    let data = [&tcp(fixture.port4(FAR_V4), 25, ACK)[..], &[7; 100]].concat();
    let packet = frame4(&ipv4_of(CLIENT4, VIP4, 6, &data));
    let sent = fixture.run(&packet);
    assert_eq!(sent.action, XDP_TX);
    let expected = inner(&packet, HOPS);
    let port = u16::from_be_bytes([sent.packet[34], sent.packet[35]]);
    assert!(port >= 0xc000, "{port}: a connection's own source port");
    let mut outer = ipv4_of(OWN4, FAR4, 17, &udp(port, OUTER_PORT, &expected));
    outer[6..8].copy_from_slice(&[0x40, 0]);
    let mut frame = [ethernet(ROUTER_MAC, MAC, 0x0800), outer].concat();
    set_hop_limit(&mut frame, 64);
    assert_eq!(sent.packet, frame);

    let packet = packet6(fixture.port6(FAR_V6), 25, ACK);
    let sent = fixture.run(&packet);
    let port = u16::from_be_bytes([sent.packet[54], sent.packet[55]]);
    let outer = ipv6(OWN6, FAR6, 17, 64, &udp(port, OUTER_PORT, &inner(&packet, HOPS)));
    assert_eq!(sent, TestVerdict { action: XDP_TX, packet: [ethernet(ROUTER_MAC, MAC, 0x86dd), outer].concat() });

    // Either family inside either.
    let packet = packet6(fixture.port6(FAR_V4), 25, ACK);
    let sent = fixture.run(&packet);
    assert_eq!(sent.packet[14 + 28..], inner(&packet, HOPS));
    let packet = packet4(fixture.port4(FAR_V6), 25, ACK);
    let sent = fixture.run(&tagged(&packet, 0x8100, 7));
    assert_eq!(sent.packet[12..18], [0x81, 0, 0, 7, 0x86, 0xdd]);
    assert_eq!(sent.packet[18 + 48..], inner(&packet, HOPS));
}

#[test]
fn a_connection_keeps_its_outer_port_and_connections_differ() {
    let Some(mut fixture) = fixture() else { return };
    let far: Vec<u16> =
        (1_024..4_000).filter(|p| fixture.plan.owners[bucket4(*p) as usize].slot() == FAR_V4).take(200).collect();
    let mut outer = |port| fixture.run(&packet4(port, 25, ACK)).packet[34..36].to_vec();
    let seen: BTreeSet<Vec<u8>> = far.iter().map(|port| outer(*port)).collect();
    assert!(seen.len() > 190, "only {} outer ports for 200 connections", seen.len());
    assert!(far.iter().all(|port| seen.contains(&outer(*port))));
}

#[test]
fn what_members_encapsulated_is_unpacked() {
    let Some(mut fixture) = fixture() else { return };
    let unpacked = |fixture: &Fixture| fixture.dataplane.counters().unwrap()[Counter::Decapsulated as usize].1;
    let before = unpacked(&fixture);
    for v4 in [true, false] {
        for packet in [packet4(fixture.port4(SELF), 25, ACK), packet6(fixture.port6(SELF), 25, ACK)] {
            let mut taken_out = packet.clone();
            taken_out[6..12].copy_from_slice(&ROUTER_MAC);
            set_hop_limit(&mut taken_out, HOPS);
            let received = from_far(v4, &inner(&packet, HOPS));
            assert_eq!(fixture.run(&received), passed(&taken_out));
            assert_eq!(fixture.counted(&received), (XDP_PASS, Counter::Own));
            let in_vlan = fixture.run(&tagged(&received, 0x8100, 7));
            assert_eq!(in_vlan, passed(&tagged(&taken_out, 0x8100, 7)));
        }
    }
    assert_eq!(unpacked(&fixture) - before, 12);
}

#[test]
fn a_far_member_that_asks_gets_its_answer_the_way_that_it_came() {
    let Some(mut fixture) = fixture() else { return };
    let packet = packet4(fixture.port4(FAR_V4), 25, ACK);
    let asked = from_far(true, &inner(&packet, HOPS - 2));
    let answer = fixture.run(&asked);
    assert_eq!(answer.action, XDP_TX);
    assert_eq!(answer.packet[..6], ROUTER_MAC);
    assert_eq!(answer.packet[14 + 28..], inner(&packet, HOPS - 3));
}

#[test]
fn strangers_and_nonsense_are_dropped_and_others_udp_passes() {
    let Some(mut fixture) = fixture() else { return };
    let packet = inner(&packet4(fixture.port4(SELF), 25, ACK), HOPS);
    let stranger4 = frame4(&ipv4_of(CLIENT4, OWN4, 17, &udp(1, OUTER_PORT, &packet)));
    let stranger6 = frame6(&ipv6(CLIENT6, OWN6, 17, 64, &udp(1, OUTER_PORT, &packet)));
    // A member of the segment has no reason to.
    let mut near = stranger4.clone();
    near[6..12].copy_from_slice(&near_mac(NEAR));
    for frame in [stranger4, stranger6, near] {
        assert_eq!(fixture.counted(&frame), (XDP_DROP, Counter::Stranger));
    }
    for v4 in [true, false] {
        for nonsense in [&[0x55; 40][..], &[0; 40]] {
            assert_eq!(fixture.counted(&from_far(v4, nonsense)), (XDP_DROP, Counter::MalformedOuter));
        }
        let to_another_port = if v4 {
            frame4(&ipv4_of(FAR4, OWN4, 17, &udp(1, OUTER_PORT + 1, &packet)))
        } else {
            frame6(&ipv6(FAR6, OWN6, 17, 64, &udp(1, OUTER_PORT + 1, &packet)))
        };
        assert_eq!(fixture.counted(&to_another_port), (XDP_PASS, Counter::Passed));
    }
    let mut fragmented = from_far(true, &packet);
    fragmented[20] = 0x20;
    assert_eq!(fixture.counted(&fragmented), (XDP_DROP, Counter::MalformedOuter));
    // What is inside is treated as anything from outside: here it is cut off, or nothing of ours.
    let whole = from_far(true, &packet);
    for length in 14 + 20 + 8..whole.len() {
        let (action, counter) = fixture.counted(&whole[..length]);
        assert!(matches!(counter, Counter::Truncated | Counter::MalformedIp), "{action} {counter:?}");
    }
    assert_eq!(fixture.counted(&from_far(true, &inner(&packet4(1, 22, ACK), HOPS))), (XDP_PASS, Counter::Passed));
}

#[test]
fn a_member_that_left_is_a_stranger() {
    let Some(mut fixture) = fixture() else { return };
    let received = from_far(true, &inner(&packet4(fixture.port4(SELF), 25, ACK), HOPS));
    let mut members = members();
    members[usize::from(FAR_V4)] = Member { flags: MEMBER_PRESENT, ..Member::default() };
    fixture.dataplane.apply_table(&fixture.plan, &members).unwrap();
    assert_eq!(fixture.counted(&received).0, XDP_PASS, "what it sent before is still on the way");
    fixture.dataplane.apply_table(&fixture.plan, &members).unwrap();
    assert_eq!(fixture.counted(&received), (XDP_DROP, Counter::Stranger));
}

fn full4(port: u16, octets: usize) -> Vec<u8> {
    frame4(&ipv4_of(CLIENT4, VIP4, 6, &[&tcp(port, 25, ACK)[..], &vec![7; octets - 40]].concat()))
}

#[test]
fn what_does_not_fit_is_answered_with_the_size_that_does() {
    let Some(mut fixture) = fixture() else { return };
    let fitting = full4(fixture.port4(FAR_V4), 1_472);
    assert_eq!(fixture.run(&fitting).packet.len(), 14 + 1_500);
    let packet = full4(fixture.port4(FAR_V4), 1_473);
    let mut icmp = [&[3, 4, 0, 0, 0, 0, 5, 0xc0][..], &packet[14..14 + 64]].concat();
    let sum = checksum(&icmp);
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut answer = [ethernet(CLIENT_MAC, MAC, 0x0800), ipv4_of(VIP4, CLIENT4, 1, &icmp)].concat();
    set_hop_limit(&mut answer, 64);
    assert_eq!(fixture.run(&packet), TestVerdict { action: XDP_TX, packet: answer.clone() });
    let in_vlan = fixture.run(&tagged(&packet, 0x8100, 7));
    assert_eq!(in_vlan, TestVerdict { action: XDP_TX, packet: tagged(&answer, 0x8100, 7) });
    assert_eq!(fixture.counted(&packet), (XDP_TX, Counter::TooBig));

    let data = [&tcp(fixture.port6(FAR_V6), 25, ACK)[..], &[7; 1_393]].concat();
    let packet = frame6(&ipv6(CLIENT6, VIP6, 6, TTL, &data));
    let mut icmp = [&[2, 0, 0, 0, 0, 0, 5, 0xac][..], &packet[14..14 + 64]].concat();
    let sum = transport_checksum(&VIP6.octets(), &CLIENT6.octets(), 58, &icmp);
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    let answer = [ethernet(CLIENT_MAC, MAC, 0x86dd), ipv6(VIP6, CLIENT6, 58, 64, &icmp)].concat();
    assert_eq!(fixture.run(&packet), TestVerdict { action: XDP_TX, packet: answer });
}

#[test]
fn what_does_not_fit_and_came_by_a_member_is_answered_by_the_gateway() {
    let Some(mut fixture) = fixture() else { return };
    let port = fixture.port4(SELF);
    fixture.set_bucket(bucket4(port), SELF, &[FAR_V4], false);
    let packet = from_member(&full4(port, 1_473), NEAR, HOPS);
    let answer = fixture.run(&packet);
    assert_eq!((answer.action, &answer.packet[..6]), (XDP_TX, &ROUTER_MAC[..]));
    fixture.dataplane.set_network(&Network::default());
    assert_eq!(fixture.counted(&packet), (XDP_DROP, Counter::TooBig));
}
