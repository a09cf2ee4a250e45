//! Packets that are cut off or lie about themselves: a stated verdict and a counter for each.

use super::{packets::*, *};

fn with(packet: &[u8], at: usize, value: u8) -> Vec<u8> {
    let mut packet = packet.to_vec();
    packet[at] = value;
    packet
}

#[test]
fn cut_at_every_octet() {
    let Some(mut fixture) = fixture() else { return };
    let data = [9; 30];
    let whole4 = frame4(&ipv4_of(CLIENT4, VIP4, 6, &[&tcp(fixture.port4(NEAR), 25, ACK)[..], &data].concat()));
    let whole6 = frame6(&ipv6(CLIENT6, VIP6, 6, TTL, &[&tcp(fixture.port6(NEAR), 25, ACK)[..], &data].concat()));
    for (whole, headers) in [(&whole4, 54), (&whole6, 74), (&tagged(&whole4, 0x8100, 7), 58)] {
        // The kernel's test run wants an Ethernet header at least.
        for length in 15..whole.len() {
            let expected = if length < headers {
                (XDP_PASS, Counter::Truncated)
            } else {
                // The headers are whole, but the frame ends before the packet does.
                (XDP_DROP, Counter::MalformedIp)
            };
            assert_eq!(fixture.counted(&whole[..length]), expected, "{length} octets");
        }
        assert_eq!(fixture.counted(whole), (XDP_TX, Counter::Steered));
    }
}

#[test]
fn lengths_that_contradict_each_other() {
    let Some(mut fixture) = fixture() else { return };
    let (whole4, whole6) = (packet4(fixture.port4(NEAR), 25, SYN), packet6(fixture.port6(NEAR), 25, SYN));
    for malformed in [
        with(&whole4, 14, 0x65), // IP version 6 in an IPv4 frame
        with(&whole4, 17, 41),   // one octet more than the frame has
        with(&whole6, 14, 0x40),
        with(&whole6, 19, 21),
    ] {
        assert_eq!(fixture.counted(&malformed), (XDP_DROP, Counter::MalformedIp));
    }
    for malformed in [
        with(&whole4, 46, 4 << 4),  // TCP header of 16 octets
        with(&whole4, 46, 15 << 4), // of 60, in a packet of 40
        with(&whole4, 17, 30),      // total length inside the TCP header
        with(&whole6, 19, 10),
        with(&whole6, 66, 0),
        with(&whole6, 66, 6 << 4),
    ] {
        assert_eq!(fixture.counted(&malformed), (XDP_DROP, Counter::MalformedTcp));
    }
}

#[test]
fn padding_after_a_short_packet_is_no_fault() {
    let Some(mut fixture) = fixture() else { return };
    let padded = [packet4(fixture.port4(NEAR), 25, ACK), vec![0; 6]].concat();
    assert_eq!(fixture.counted(&padded), (XDP_TX, Counter::Steered));
}

#[test]
fn a_header_length_of_less_than_a_header_reads_no_ports_from_it() {
    let Some(mut fixture) = fixture() else { return };
    let whole = packet4(fixture.port4(NEAR), 25, SYN);
    for length in 0..5 {
        let (action, counter) = fixture.counted(&with(&whole, 14, 0x40 | length));
        // What lies where the ports would be is no service, or it is and the length is told.
        assert!(
            matches!((action, counter), (XDP_PASS, Counter::Passed) | (XDP_DROP, Counter::MalformedIp)),
            "{action} {counter:?}"
        );
    }
}
