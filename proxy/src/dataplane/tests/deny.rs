//! The deny list, the limit and the flags, written as the daemon writes them and obeyed by the program.

use proxy_common::maps::{COOKIES_OUT, SYN_COOKIES};
use proxy_core::abuse::{Change, Limit};

use super::{packets::*, *};
use crate::dataplane::{abuse::jiffies_per_second, deny::FLAGS};

/// A running connection's packet to this machine.
fn from4(source: &str) -> Vec<u8> {
    frame4(&ipv4_of(source.parse().unwrap(), VIP4, 6, &tcp(40_000, 25, ACK)))
}

fn from6(source: &str) -> Vec<u8> {
    frame6(&ipv6(source.parse().unwrap(), VIP6, 6, 64, &tcp(40_000, 25, ACK)))
}

#[test]
fn the_program_denies_what_the_daemon_writes() {
    let Some(mut fixture) = fixture() else { return };
    let (mut deny, present) = fixture.dataplane.take_deny_maps().unwrap();
    assert!(present.is_empty());
    assert!(fixture.dataplane.take_deny_maps().is_err(), "they have one owner");
    let cases = [
        ("192.0.2.7", from4("192.0.2.7"), from4("192.0.2.8")),
        ("198.51.100.128/25", from4("198.51.100.200"), from4("198.51.100.100")),
        ("9.0.0.0/8", from4("9.255.1.1"), from4("8.255.255.255")),
        ("2001:db8:1:2::/64", from6("2001:db8:1:2::3"), from6("2001:db8:1:3::3")),
        ("2001:db8:1::/48", from6("2001:db8:1:9::1"), from6("2001:db8:2::1")),
        ("2a00:1234::/32", from6("2a00:1234:ffff::1"), from6("2a00:1235::1")),
        ("2c00::/16", from6("2c00:ffff::1"), from6("2c01::1")),
    ];
    for (text, inside, outside) in &cases {
        let prefix = text.parse().unwrap();
        deny.apply(&[Change::Deny(prefix)]).unwrap();
        fixture.dataplane.set_flags(FLAGS, deny.flags());
        assert_eq!(fixture.counted(inside), (XDP_DROP, Counter::Denied), "{text}");
        assert_ne!(fixture.counted(outside).1, Counter::Denied, "beside {text}");
        deny.apply(&[Change::Allow(prefix)]).unwrap();
        assert_ne!(fixture.counted(inside).1, Counter::Denied, "{text} is allowed again");
        fixture.dataplane.set_flags(FLAGS, deny.flags());
        assert_eq!(fixture.dataplane.control.read(0).flags, 0);
    }
}

#[test]
fn flags_are_set_apart_from_each_other() {
    let Some(mut fixture) = fixture() else { return };
    let flags = |fixture: &Fixture| fixture.dataplane.control.read(0).flags;
    fixture.dataplane.set_flags(FLAGS, maps::DENY_ANY);
    fixture.dataplane.set_flags(SYN_COOKIES | COOKIES_OUT, SYN_COOKIES | COOKIES_OUT | maps::DENY_V6_WIDE);
    assert_eq!(flags(&fixture), maps::DENY_ANY | SYN_COOKIES | COOKIES_OUT);
    fixture.dataplane.set_flags(FLAGS, 0);
    assert_eq!(flags(&fixture), SYN_COOKIES | COOKIES_OUT);
}

#[test]
fn a_limit_is_written_in_the_programs_units() {
    let Some(mut fixture) = fixture() else { return };
    let table = fixture.dataplane.control.read(0).table;
    fixture.dataplane.set_limit(Limit::new(1_000, 24, 48).unwrap());
    let control = fixture.dataplane.control.read(0);
    let period = Limit::new(1_000, 24, 48).unwrap().period(jiffies_per_second());
    assert_eq!((control.new_connection_limit, control.period_shift), (period.connections, period.shift));
    assert_eq!((control.prefix_v4, control.prefix_v6, control.table), (24, 48, table));
    let syn = |port| frame4(&ipv4_of(Ipv4Addr::new(192, 0, 2, 1), VIP4, 6, &tcp(port, 25, SYN)));
    fixture.dataplane.set_limit(Limit::new(1, 32, 48).unwrap());
    let before = fixture.dataplane.count_of(&[Counter::Limited]).unwrap();
    let limited = (5_000..5_020).filter(|port| fixture.counted(&syn(*port)).1 == Counter::Limited).count();
    // One or two periods, so many connections in each.
    let allowed = Limit::new(1, 32, 48).unwrap().period(jiffies_per_second()).connections;
    assert!((20 - 3 * allowed as usize..20).contains(&limited), "{limited} of 20");
    assert_eq!(fixture.dataplane.count_of(&[Counter::Limited]).unwrap() - before, limited as u64);
}
