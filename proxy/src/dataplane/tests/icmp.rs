//! ICMP errors go where the connection is that they are about.

use proxy_common::steer::HOPS;

use super::{packets::*, *};

const ROUTER4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const ROUTER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

/// A router's error about what the VIP sent to the client's port.
fn error4(kind: u8, code: u8, port: u16, service: u16) -> Vec<u8> {
    let quoted = ipv4_of(VIP4, CLIENT4, 6, &tcp(service, port, ACK)[..8]);
    let mut icmp = [&[kind, code, 0, 0, 0, 0, 5, 0xdc][..], &quoted].concat();
    let sum = checksum(&icmp);
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    frame4(&ipv4_of(ROUTER4, VIP4, 1, &icmp))
}

fn error6(kind: u8, port: u16, service: u16) -> Vec<u8> {
    let quoted = ipv6(VIP6, CLIENT6, 6, 64, &tcp(service, port, ACK));
    let mut icmp = [&[kind, 0, 0, 0, 0, 0, 5, 0][..], &quoted].concat();
    let sum = transport_checksum(&ROUTER6.octets(), &VIP6.octets(), 58, &icmp);
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    frame6(&ipv6(ROUTER6, VIP6, 58, TTL, &icmp))
}

#[test]
fn errors_are_steered_by_the_packet_that_they_quote() {
    let Some(mut fixture) = fixture() else { return };
    for slot in [NEAR, NEAR_TOO] {
        let (port4, port6) = (fixture.port4(slot), fixture.port6(slot));
        let errors = [
            error4(3, 4, port4, 25),
            error4(3, 1, port4, 25),
            error4(11, 0, port4, 25),
            error4(12, 0, port4, 25),
            error6(1, port6, 25),
            error6(2, port6, 25),
            error6(3, port6, 25),
            error6(4, port6, 25),
        ];
        for error in errors {
            assert_eq!(fixture.run(&error), steered(&error, slot, HOPS));
            assert_eq!(fixture.counted(&error), (XDP_TX, Counter::IcmpError));
        }
    }
    let own = error4(3, 4, fixture.port4(SELF), 25);
    assert_eq!(fixture.counted(&own), (XDP_PASS, Counter::IcmpError));
    let tagged_error = tagged(&error6(2, fixture.port6(NEAR), 25), 0x8100, 7);
    assert_eq!(fixture.run(&tagged_error), steered(&tagged_error, NEAR, HOPS));
}

#[test]
fn other_messages_are_this_machines() {
    let Some(mut fixture) = fixture() else { return };
    let port = fixture.port4(NEAR);
    let mut about_udp = error4(3, 4, port, 25);
    about_udp[14 + 20 + 8 + 9] = 17;
    let mut about_another = error4(3, 4, port, 25);
    about_another[14 + 20 + 8 + 12..][..4].copy_from_slice(&OWN4.octets());
    let mut to_us = error4(3, 4, port, 25);
    to_us[30..34].copy_from_slice(&OWN4.octets());
    let echo = error4(8, 0, port, 25);
    // Later fragments, whatever they begin with.
    let mut later4 = error4(3, 4, port, 25);
    later4[21] = 100;
    let mut later6 = error6(2, fixture.port6(NEAR), 25);
    later6.splice(54..54, [58, 0, 1, 0, 0, 0, 0, 7]);
    later6[20] = 44;
    later6[19] += 8;
    for packet in [about_udp, about_another, to_us, echo, later4, later6, error4(3, 4, port, 22), error6(128, port, 25)]
    {
        assert_eq!(fixture.counted(&packet), (XDP_PASS, Counter::Passed));
    }
}

#[test]
fn an_error_whose_length_is_a_lie_is_not_put_into_udp_and_begets_none() {
    let Some(mut fixture) = fixture() else { return };
    let error = error4(3, 4, fixture.port4(FAR_V4), 25);
    assert_eq!(fixture.counted(&error), (XDP_TX, Counter::IcmpError));
    for (total, octets) in [(19_u16, error.len()), (60, 14 + 59), (9_000, error.len())] {
        let mut lying = error.clone();
        lying.resize(octets, 0);
        lying[16..18].copy_from_slice(&total.to_be_bytes());
        assert_eq!(fixture.counted(&lying), (XDP_DROP, Counter::MalformedIp), "{total} of {octets} octets");
    }
    let mut long = error;
    long.resize(14 + 1_480, 0);
    long[16..18].copy_from_slice(&1_480_u16.to_be_bytes());
    assert_eq!(fixture.counted(&long), (XDP_DROP, Counter::TooBig));
}

#[test]
fn cut_off_errors() {
    let Some(mut fixture) = fixture() else { return };
    let (whole4, whole6) = (error4(3, 4, fixture.port4(NEAR), 25), error6(2, fixture.port6(NEAR), 25));
    for length in 15..whole4.len() - 4 {
        assert_eq!(fixture.counted(&whole4[..length]), (XDP_PASS, Counter::Truncated), "{length} octets");
    }
    for length in 15..whole6.len() - 16 {
        assert_eq!(fixture.counted(&whole6[..length]), (XDP_PASS, Counter::Truncated), "{length} octets");
    }
}
