//! One daemon after the other: maps and tables outlive them.

use super::{packets::*, *};

/// A program whose maps keep their names.
fn pinned(bpffs: &BpfFs) -> Option<Fixture> {
    if let Err(reason) = probe() {
        println!("skipped: {reason}");
        return None;
    }
    Some(begin(Dataplane::load(bpffs.0.path(), &settings(bpffs.0.path())).unwrap()))
}

#[test]
fn a_second_load_takes_the_table_over_but_not_the_sign_of_life() {
    let bpffs = BpfFs::mount();
    let Some(mut fixture) = pinned(&bpffs) else { return };
    let packet = packet4(fixture.port4(NEAR), 25, SYN);
    let before = fixture.run(&packet);
    let mut next = Dataplane::load(bpffs.0.path(), &settings(bpffs.0.path())).unwrap();
    assert_eq!(next.test_run(&packet).unwrap(), before);
    let own = packet4(fixture.port4(SELF), 25, SYN);
    assert_eq!(fixture.counted(&own), (XDP_TX, Counter::Succeeded), "until it says that it lives");
}

#[test]
fn a_table_that_is_switched_a_thousand_times_always_answers() {
    let Some(mut fixture) = fixture() else { return };
    let packet = packet4(fixture.port4(NEAR), 25, ACK);
    for round in 0..100 {
        let owner = if round % 2 == 0 { NEAR } else { NEAR_TOO };
        fixture.plan.owners.fill(Owner::new(owner, false));
        fixture.apply();
        assert_eq!(fixture.run(&packet).packet[..6], near_mac(owner));
    }
}

#[test]
fn several_interfaces_share_the_maps() {
    let bpffs = BpfFs::mount();
    let Some(fixture) = pinned(&bpffs) else { return };
    let mut settings = settings(bpffs.0.path());
    settings.interfaces.push(InterfaceSettings { name: "test1".to_owned(), mac: ROUTER_MAC, mtu: MTU });
    let mut both = Dataplane::load(bpffs.0.path(), &settings).unwrap();
    both.keep_alive(Duration::from_secs(60)).unwrap();
    let mut packet = packet4(fixture.port4(NEAR), 25, ACK);
    assert_eq!(both.test_run(&packet).unwrap().action, XDP_TX);
    packet[..6].copy_from_slice(&ROUTER_MAC);
    assert_eq!(both.test_run(&packet).unwrap().action, XDP_PASS, "not for the first interface");
    both.programs.swap(0, 1);
    let verdict = both.test_run(&packet).unwrap();
    assert_eq!((verdict.action, &verdict.packet[6..12]), (XDP_TX, &ROUTER_MAC[..]), "but for the second");
}
