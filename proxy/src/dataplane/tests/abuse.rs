//! Deny list and limit of new connections, as the program obeys them.

use proxy_common::maps::{DENY_ANY, DENY_V6_WIDE, FilterBit};

use super::{packets::*, *};

fn set_limit(fixture: &mut Fixture, limit: u32, prefix_v4: u8, prefix_v6: u8) {
    fixture.dataplane.control.update(|control| {
        control.new_connection_limit = limit;
        (control.prefix_v4, control.prefix_v6) = (prefix_v4, prefix_v6);
        // A period that does not end while the test runs.
        control.period_shift = 40;
    });
}

#[test]
fn new_connections_of_a_prefix_are_counted_and_limited() {
    let Some(mut fixture) = fixture() else { return };
    set_limit(&mut fixture, 10, 24, 56);
    let from =
        |last: u8, port: u16, flags| frame4(&ipv4_of(Ipv4Addr::new(192, 0, 2, last), VIP4, 6, &tcp(port, 25, flags)));
    for n in 0..10 {
        assert_ne!(fixture.counted(&from(n, 5_000 + u16::from(n), SYN)).1, Counter::Limited);
    }
    assert_eq!(fixture.counted(&from(99, 6_000, SYN)), (XDP_DROP, Counter::Limited));
    assert_ne!(fixture.counted(&from(99, 6_000, ACK)).1, Counter::Limited, "established connections go on");
    assert_ne!(fixture.counted(&packet4(7_000, 25, SYN)).1, Counter::Limited, "others are not concerned");
    let from6 = |host: u16, port| {
        let source = Ipv6Addr::new(0x2001, 0xdb8, 0, host & 0xff, 0, 0, 0, host);
        frame6(&ipv6(source, VIP6, 6, TTL, &tcp(port, 25, SYN)))
    };
    for n in 0..10 {
        assert_ne!(fixture.counted(&from6(n, 5_000 + n)).1, Counter::Limited);
    }
    assert_eq!(fixture.counted(&from6(77, 1)), (XDP_DROP, Counter::Limited));
    set_limit(&mut fixture, 0, 24, 56);
    assert_ne!(fixture.counted(&from(99, 6_000, SYN)).1, Counter::Limited, "no limit");
}

#[test]
fn a_period_ends_and_counting_begins_anew() {
    let Some(mut fixture) = fixture() else { return };
    set_limit(&mut fixture, 1, 32, 64);
    fixture.dataplane.control.update(|control| control.period_shift = 4);
    let packet = packet4(fixture.port4(SELF), 25, SYN);
    let began = std::time::Instant::now();
    let mut seen = [0; 2];
    while seen.iter().any(|n| *n < 3) {
        seen[usize::from(fixture.run(&packet).action == XDP_DROP)] += 1;
        assert!(began.elapsed() < Duration::from_secs(10), "{seen:?}");
    }
}

#[test]
fn the_filter_alone_denies_nobody_and_without_it_nobody_is_looked_up() {
    let Some(mut fixture) = fixture() else { return };
    let filter = Mapped::<u64>::new(&fixture.dataplane.programs[0].ebpf, maps::DENY_FILTER, maps::DENY_WORDS as usize);
    let filter = filter.unwrap();
    let packet = packet4(fixture.port4(SELF), 25, ACK);
    let map = fixture.dataplane.ebpf().unwrap().map_mut(maps::DENY_V4).unwrap();
    let mut trie = aya::maps::LpmTrie::<&mut MapData, [u8; 4], u32>::try_from(map).unwrap();
    trie.insert(&aya::maps::lpm_trie::Key::new(24, [10, 77, 0, 0]), 1, 0).unwrap();
    assert_eq!(fixture.counted(&packet), (XDP_PASS, Counter::Own), "the flag is not set");
    fixture.dataplane.control.update(|control| control.flags |= DENY_ANY);
    assert_eq!(fixture.counted(&packet), (XDP_PASS, Counter::Own), "the filter's bit is not set");
    for bit in [FilterBit::v4_coarse(CLIENT4.octets()), FilterBit::v4(CLIENT4.octets())] {
        filter.write(bit.word as usize, bit.mask);
    }
    assert_eq!(fixture.counted(&packet), (XDP_DROP, Counter::Denied));
    assert_eq!(fixture.counted(&packet4(fixture.port4(SELF), 25, SYN)), (XDP_DROP, Counter::Denied));
    assert_eq!(fixture.counted(&packet4(1, 22, SYN)), (XDP_PASS, Counter::Passed), "the appliance's own port");
    // The same for IPv6: by the wide flag, without a bit.
    let packet = packet6(fixture.port6(SELF), 25, ACK);
    let map = fixture.dataplane.ebpf().unwrap().map_mut(maps::DENY_V6).unwrap();
    let mut trie = aya::maps::LpmTrie::<&mut MapData, [u8; 16], u32>::try_from(map).unwrap();
    trie.insert(&aya::maps::lpm_trie::Key::new(8, Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0).octets()), 1, 0).unwrap();
    assert_eq!(fixture.counted(&packet), (XDP_PASS, Counter::Own));
    fixture.dataplane.control.update(|control| control.flags |= DENY_V6_WIDE);
    assert_eq!(fixture.counted(&packet), (XDP_DROP, Counter::Denied));
}
