//! Both address families, as frames, options and tags dress them.

use proxy_common::steer::HOPS;
use rand::{Rng, RngExt, SeedableRng, rngs::SmallRng};

use super::{packets::*, *};

#[test]
fn kernel_and_daemon_compute_the_same_owner() {
    let Some(mut fixture) = fixture() else { return };
    let mut rng = SmallRng::seed_from_u64(7);
    let mut per_owner = [0; MEMBERS as usize];
    for round in 0..4_000 {
        let (port, random) = (rng.random::<u16>(), rng.next_u64().to_be_bytes());
        let (packet, hash) = if round % 2 == 0 {
            let source = Ipv4Addr::new(random[0], random[1], random[2], random[3]);
            let packet = frame4(&ipv4_of(source, VIP4, 6, &tcp(port, 25, SYN)));
            (packet, hash_v4(KEY, source.octets(), VIP4.octets(), ports(port)))
        } else {
            let mut source = [0x20; 16];
            source[8..].copy_from_slice(&random);
            let packet = frame6(&ipv6(source.into(), VIP6, 6, TTL, &tcp(port, 25, SYN)));
            (packet, hash_v6(KEY, v6_words(source), v6_words(VIP6.octets()), ports(port)))
        };
        let owner = fixture.plan.owners[bucket_of(hash) as usize].slot();
        per_owner[usize::from(owner)] += 1;
        let verdict = fixture.run(&packet);
        match owner {
            SELF => assert_eq!(verdict, passed(&packet)),
            NEAR | NEAR_TOO => assert_eq!(verdict, steered(&packet, owner, HOPS)),
            _far => assert_eq!((verdict.action, &verdict.packet[..6]), (XDP_TX, &ROUTER_MAC[..])),
        }
    }
    assert!(per_owner.iter().all(|n| *n > 600), "{per_owner:?}");
}

#[test]
fn own_packets_pass_and_all_are_counted_by_kind() {
    let Some(mut fixture) = fixture() else { return };
    for (own, other, packet) in [
        (fixture.port4(SELF), fixture.port4(NEAR), packet4 as fn(u16, u16, u8) -> Vec<u8>),
        (fixture.port6(SELF), fixture.port6(NEAR), packet6),
    ] {
        assert_eq!(fixture.counted(&packet(own, 25, SYN)), (XDP_PASS, Counter::OwnNew));
        assert_eq!(fixture.counted(&packet(own, 25, ACK)), (XDP_PASS, Counter::Own));
        assert_eq!(fixture.counted(&packet(own, 25, SYN | ACK)), (XDP_PASS, Counter::Own));
        assert_eq!(fixture.counted(&packet(other, 25, SYN)), (XDP_TX, Counter::SteeredNew));
        assert_eq!(fixture.counted(&packet(other, 25, ACK)), (XDP_TX, Counter::Steered));
        // All flags at once are a packet like any other, not the sign of an ICMP error.
        assert_eq!(fixture.counted(&packet(own, 25, 0xff)), (XDP_PASS, Counter::Own));
        assert_eq!(fixture.counted(&packet(other, 25, 0xff)), (XDP_TX, Counter::Steered));
    }
}

#[test]
fn the_appliances_own_traffic_passes() {
    let Some(mut fixture) = fixture() else { return };
    let other = fixture.port4(NEAR);
    let mut udp = packet4(other, 25, SYN);
    udp[23] = 17;
    let mut flooded = packet4(other, 25, SYN);
    flooded[..6].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
    let mut flooded6 = packet6(fixture.port6(NEAR), 25, SYN);
    flooded6[..6].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
    let own_address = frame4(&ipv4_of(CLIENT4, OWN4, 6, &tcp(other, 25, SYN)));
    let twice = tagged(&tagged(&packet4(other, 25, SYN), 0x8100, 7), 0x88a8, 8);
    let hop_by_hop = frame6(&ipv6(CLIENT6, OWN6, 0, TTL, &[&[6, 0, 1, 4, 0, 0, 0, 0][..], &tcp(1, 25, SYN)].concat()));
    let ping = frame4(&ipv4_of(CLIENT4, VIP4, 1, &[8, 0, 0, 0, 0, 0, 0, 0]));
    let ssh = packet4(other, 22, SYN);
    for packet in
        [ssh, udp, flooded, flooded6, own_address, twice, hop_by_hop, ping, packet6(1, 22, SYN), vec![0_u8; 14]]
    {
        assert_eq!(fixture.run(&packet), passed(&packet));
        assert_eq!(fixture.counted(&packet).1, Counter::Passed);
    }
}

#[test]
fn ip_options_move_the_ports() {
    let Some(mut fixture) = fixture() else { return };
    for options in 1..=10 {
        let mut packet = packet4(fixture.port4(NEAR_TOO), 25, SYN);
        packet.splice(34..34, std::iter::repeat_n(1, options * 4));
        packet[14] += u8::try_from(options).unwrap();
        packet[17] += u8::try_from(options * 4).unwrap();
        set_hop_limit(&mut packet, TTL);
        assert_eq!(fixture.run(&packet), steered(&packet, NEAR_TOO, HOPS));
    }
}

#[test]
fn one_tag_is_kept() {
    let Some(mut fixture) = fixture() else { return };
    for (packet, own) in [
        (packet4(fixture.port4(NEAR), 25, ACK), packet4(fixture.port4(SELF), 25, ACK)),
        (packet6(fixture.port6(NEAR), 25, ACK), packet6(fixture.port6(SELF), 25, ACK)),
    ] {
        for (ethertype, id) in [(0x8100, 1), (0x8100, 0xe064), (0x88a8, 4_095)] {
            let packet = tagged(&packet, ethertype, id);
            assert_eq!(fixture.run(&packet), steered(&packet, NEAR, HOPS));
            let own = tagged(&own, ethertype, id);
            assert_eq!(fixture.run(&own), passed(&own));
        }
    }
}

#[test]
fn extension_headers_move_the_ports() {
    let Some(mut fixture) = fixture() else { return };
    let port = fixture.port6(NEAR);
    let packet = |headers: &[(u8, &[u8])]| {
        let mut payload = tcp(port, 25, ACK);
        let mut next = 6;
        for (kind, body) in headers.iter().rev() {
            payload = [&[next], *body, &payload].concat();
            next = *kind;
        }
        frame6(&ipv6(CLIENT6, VIP6, next, TTL, &payload))
    };
    let (short, long) = (&[0, 1, 4, 0, 0, 0, 0][..], &[2; 31][..]);
    let long = &[&[3][..], &long[1..]].concat()[..];
    let walked: [&[(u8, &[u8])]; 5] = [
        &[(0, short)],
        &[(60, long)],
        &[(0, short), (60, short), (43, short), (60, long)],
        // An atomic fragment (RFC 6946) is whole.
        &[(44, &[0, 0, 0, 1, 2, 3, 4])],
        &[(0, short), (44, &[0, 0, 0, 1, 2, 3, 4]), (60, short)],
    ];
    for headers in walked {
        let packet = packet(headers);
        assert_eq!(fixture.run(&packet), steered(&packet, NEAR, HOPS), "{headers:?}");
    }
    let six = packet(&[(60, short); 6]);
    assert_eq!(fixture.run(&six), steered(&six, NEAR, HOPS));
    let endless = packet(&[(0, short); 7]);
    assert_eq!(fixture.counted(&endless), (XDP_DROP, Counter::MalformedExtension));
    let twice = packet(&[(44, &[0, 0, 0, 1, 2, 3, 4]), (44, &[0, 0, 1, 1, 2, 3, 4]), (44, &[0, 0, 1, 1, 2, 3, 4])]);
    assert_eq!(fixture.counted(&twice), (XDP_DROP, Counter::MalformedExtension));
    // Longer than what is walked, in a jumbo frame.
    let huge = [&[255][..], &[0; 2_046]].concat();
    assert_eq!(fixture.counted(&packet(&[(60, &huge), (60, &huge)])), (XDP_DROP, Counter::MalformedExtension));
    // Security headers are not walked: the appliance's own.
    let secured = packet(&[(51, short)]);
    assert_eq!(fixture.counted(&secured), (XDP_PASS, Counter::Passed));
}

#[test]
fn services_are_those_declared_last() {
    let Some(mut fixture) = fixture() else { return };
    let own = fixture.port4(SELF);
    fixture.dataplane.set_services([(VIP4.into(), 143)]).unwrap();
    assert_eq!(fixture.counted(&packet4(own, 25, SYN)), (XDP_PASS, Counter::Passed));
    let many = (0..4_000_u16).map(|n| (IpAddr::from(VIP4), 1 + n));
    fixture.dataplane.set_services(many).unwrap();
    assert_eq!(fixture.counted(&packet4(own, 25, SYN)), (XDP_PASS, Counter::OwnNew));
    assert_eq!(fixture.counted(&packet4(own, 4_001, SYN)), (XDP_PASS, Counter::Passed));
}
