//! Fragments: all of a packet go where its first one went.

use proxy_common::steer::HOPS;

use super::{packets::*, *};

/// A fragment of an IPv4 packet: identification, offset in octets, more to come.
fn fragment4(id: u16, offset: u16, more: bool, payload: &[u8]) -> Vec<u8> {
    let mut ip = ipv4_of(CLIENT4, VIP4, 6, payload);
    ip[4..6].copy_from_slice(&id.to_be_bytes());
    let field = (offset / 8) | if more { 0x2000 } else { 0 };
    ip[6..8].copy_from_slice(&field.to_be_bytes());
    let mut frame = frame4(&ip);
    set_hop_limit(&mut frame, TTL);
    frame
}

fn fragment6(id: u32, offset: u16, more: bool, payload: &[u8]) -> Vec<u8> {
    let field = offset | u16::from(more);
    let header = [&[6, 0][..], &field.to_be_bytes(), &id.to_be_bytes()].concat();
    frame6(&ipv6(CLIENT6, VIP6, 44, TTL, &[&header[..], payload].concat()))
}

#[test]
fn later_fragments_follow_the_first() {
    let Some(mut fixture) = fixture() else { return };
    let head = |port| [&tcp(port, 25, ACK)[..], &[7; 12]].concat();
    for (id, slot) in [(1, NEAR), (2, NEAR_TOO)] {
        let first = fragment4(id, 0, true, &head(fixture.port4(slot)));
        assert_eq!(fixture.run(&first), steered(&first, slot, HOPS));
        let first = fragment6(id.into(), 0, true, &head(fixture.port6(slot)));
        assert_eq!(fixture.run(&first), steered(&first, slot, HOPS));
    }
    for (id, slot) in [(2, NEAR_TOO), (1, NEAR), (2, NEAR_TOO)] {
        for later in [fragment4(id, 32, true, &[1; 40]), fragment6(id.into(), 32, false, &[1; 40])] {
            assert_eq!(fixture.run(&later), steered(&later, slot, HOPS));
            assert_eq!(fixture.counted(&later), (XDP_TX, Counter::Fragment));
        }
    }
    let own = fragment4(3, 0, true, &head(fixture.port4(SELF)));
    assert_eq!(fixture.counted(&own), (XDP_PASS, Counter::Own));
    assert_eq!(fixture.counted(&fragment4(3, 32, false, &[1; 4])), (XDP_PASS, Counter::Fragment));
}

#[test]
fn fragments_without_a_first_one_are_dropped_and_others_traffic_passes() {
    let Some(mut fixture) = fixture() else { return };
    assert_eq!(fixture.counted(&fragment4(9, 32, false, &[1; 40])), (XDP_DROP, Counter::FragmentUnknown));
    assert_eq!(fixture.counted(&fragment6(9, 32, false, &[1; 40])), (XDP_DROP, Counter::FragmentUnknown));
    let mut elsewhere = fragment4(9, 32, false, &[1; 40]);
    elsewhere[30..34].copy_from_slice(&OWN4.octets());
    assert_eq!(fixture.counted(&elsewhere), (XDP_PASS, Counter::Passed));
}

#[test]
fn without_a_table_fragments_pass_as_everything_does() {
    let Some(mut fixture) = fixture() else { return };
    fixture.dataplane.control.set_table(TableState::NONE.0);
    let head = [&tcp(1, 25, ACK)[..], &[7; 12]].concat();
    for fragment in [fragment4(8, 0, true, &head), fragment4(8, 32, false, &[1; 40]), fragment6(8, 32, false, &[1; 40])]
    {
        assert_eq!(fixture.counted(&fragment), (XDP_PASS, Counter::NoOwner));
    }
}

#[test]
fn later_fragments_of_what_is_no_tcp_pass() {
    let Some(mut fixture) = fixture() else { return };
    for protocol in [17, 58] {
        let mut later = fragment6(9, 32, false, &[1; 40]);
        later[54] = protocol;
        assert_eq!(fixture.counted(&later), (XDP_PASS, Counter::Passed));
    }
    // What stands where UDP's ports would be is data, here that of an encapsulated packet.
    let mut data = fragment4(9, 32, false, &[&[0, 0][..], &OUTER_PORT.to_be_bytes(), &[0; 40]].concat());
    data[23] = 17;
    data[30..34].copy_from_slice(&OWN4.octets());
    assert_eq!(fixture.counted(&data), (XDP_PASS, Counter::Passed));
}

#[test]
fn nobody_is_told_about_a_later_fragment_that_does_not_fit() {
    let Some(mut fixture) = fixture() else { return };
    let head = [&tcp(fixture.port4(FAR_V4), 25, ACK)[..], &[7; 12]].concat();
    assert_eq!(fixture.counted(&fragment4(7, 0, true, &head)), (XDP_TX, Counter::Steered));
    assert_eq!(fixture.counted(&fragment4(7, 32, true, &[1; 1_440])), (XDP_TX, Counter::Fragment));
    assert_eq!(fixture.counted(&fragment4(7, 32, true, &[1; 1_480])), (XDP_DROP, Counter::TooBig));
}

#[test]
fn a_first_fragment_too_short_for_the_ports_is_not_guessed_at() {
    let Some(mut fixture) = fixture() else { return };
    let port = fixture.port4(NEAR);
    // RFC 1858: a TCP header that does not fit into the first fragment is an attack on filters.
    assert_eq!(fixture.counted(&fragment4(5, 0, true, &tcp(port, 25, ACK)[..16])), (XDP_PASS, Counter::Truncated));
    let mut long = tcp(port, 25, ACK);
    long[12] = 15 << 4;
    assert_eq!(fixture.counted(&fragment4(6, 0, true, &long)), (XDP_DROP, Counter::MalformedTcp));
    assert_eq!(fixture.counted(&fragment4(6, 24, false, &[0; 40])), (XDP_DROP, Counter::FragmentUnknown));
}
