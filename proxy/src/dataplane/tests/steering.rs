//! The decision, taken by the kernel: owners, chains, hop limits, and what happens without a table or a daemon.

use proxy_common::{maps::NO_SLOT, steer::HOPS};

use super::{packets::*, *};

#[test]
fn the_hop_limit_falls_and_what_has_none_left_is_not_sent_on() {
    let Some(mut fixture) = fixture() else { return };
    for (packet, steered_to) in
        [(packet4(fixture.port4(NEAR), 25, ACK), NEAR), (packet6(fixture.port6(NEAR_TOO), 25, ACK), NEAR_TOO)]
    {
        for (hop_limit, expected) in [(255, HOPS), (64, HOPS), (HOPS + 1, HOPS), (HOPS, HOPS - 1)] {
            let mut packet = packet.clone();
            set_hop_limit(&mut packet, hop_limit);
            assert_eq!(fixture.run(&packet), steered(&packet, steered_to, expected), "{hop_limit}");
        }
        for hop_limit in [0, 1, HOPS - 1] {
            let mut packet = packet.clone();
            set_hop_limit(&mut packet, hop_limit);
            assert_eq!(fixture.counted(&packet), (XDP_DROP, Counter::OrphanSettling), "{hop_limit}");
        }
    }
}

#[test]
fn an_owner_asks_its_chain_one_after_the_other() {
    let Some(mut fixture) = fixture() else { return };
    let port = fixture.port4(SELF);
    fixture.set_bucket(bucket4(port), SELF, &[NEAR, NEAR_TOO], false);
    let packet = packet4(port, 25, ACK);
    let asked = fixture.run(&packet);
    assert_eq!(asked, steered(&packet, NEAR, HOPS - 2));
    // It comes back, lower each time; the last to be asked is told so.
    let back = from_member(&packet, NEAR, HOPS - 3);
    assert_eq!(fixture.run(&back), steered(&back, NEAR_TOO, ASKED_LAST));
    let back = from_member(&packet, NEAR_TOO, ASKED_LAST - 1);
    assert_eq!(fixture.counted(&back), (XDP_PASS, Counter::Orphan));
    // A SYN is the owner's, unless its owner changed lately.
    assert_eq!(fixture.counted(&packet4(port, 25, SYN)), (XDP_PASS, Counter::OwnNew));
    fixture.set_bucket(bucket4(port), SELF, &[NEAR], true);
    assert_eq!(fixture.counted(&packet4(port, 25, SYN)), (XDP_TX, Counter::HandedOnNew));
    let back = from_member(&packet4(port, 25, SYN), NEAR, ASKED_LAST - 1);
    assert_eq!(fixture.counted(&back), (XDP_PASS, Counter::NewAgain));
}

#[test]
fn who_is_asked_and_has_nothing_sends_it_back_to_who_asked() {
    let Some(mut fixture) = fixture() else { return };
    let port = fixture.port4(NEAR);
    for flags in [ACK, SYN] {
        let asked = from_member(&packet4(port, 25, flags), NEAR, HOPS - 2);
        assert_eq!(fixture.run(&asked), steered(&asked, NEAR, HOPS - 3));
        // By somebody who is no member.
        let mut stranger = asked.clone();
        stranger[6..12].copy_from_slice(&CLIENT_MAC);
        let counter = if flags == SYN { Counter::DisagreedNew } else { Counter::OrphanSettling };
        assert_eq!(fixture.counted(&stranger), (XDP_DROP, counter));
        // By another interface of the member than the one that it gets packets by.
        fixture.dataplane.set_more_macs([(near_mac(NEAR), vec![CLIENT_MAC])]).unwrap();
        assert_eq!(fixture.run(&stranger), steered(&stranger, NEAR, HOPS - 3));
        fixture.dataplane.set_more_macs([]).unwrap();
    }
}

#[test]
fn while_the_table_settles_nothing_unknown_is_reset() {
    let Some(mut fixture) = fixture() else { return };
    fixture.plan.settling = true;
    fixture.apply();
    let port = fixture.port4(SELF);
    assert_eq!(fixture.counted(&packet4(port, 25, ACK)), (XDP_DROP, Counter::OrphanSettling));
    assert_eq!(fixture.counted(&packet4(port, 25, SYN)), (XDP_PASS, Counter::OwnNew));
    fixture.plan.settling = false;
    fixture.apply();
    assert_eq!(fixture.counted(&packet4(port, 25, ACK)), (XDP_PASS, Counter::Own));
}

#[test]
fn a_dead_daemons_buckets_are_its_successors() {
    let Some(mut fixture) = fixture() else { return };
    let port = fixture.port4(SELF);
    fixture.dataplane.keep_alive(Duration::ZERO).unwrap();
    for flags in [SYN, ACK] {
        let packet = packet4(port, 25, flags);
        assert_eq!(fixture.run(&packet), steered(&packet, NEAR, HOPS));
        assert_eq!(fixture.counted(&packet), (XDP_TX, Counter::Succeeded));
    }
    let other = packet4(fixture.port4(NEAR_TOO), 25, ACK);
    assert_eq!(fixture.run(&other), steered(&other, NEAR_TOO, HOPS), "steering goes on");
    fixture.plan.successors = vec![NO_SLOT; BUCKETS as usize];
    fixture.apply();
    assert_eq!(fixture.counted(&packet4(port, 25, SYN)), (XDP_PASS, Counter::Orphan));
}

#[test]
fn the_daemon_is_taken_for_dead_after_the_time_that_it_promised() {
    let Some(mut fixture) = fixture() else { return };
    let packet = packet4(fixture.port4(SELF), 25, SYN);
    fixture.dataplane.keep_alive(Duration::from_millis(40)).unwrap();
    assert_eq!(fixture.counted(&packet), (XDP_PASS, Counter::OwnNew));
    let began = std::time::Instant::now();
    while fixture.run(&packet).action == XDP_PASS {
        assert!(began.elapsed() < Duration::from_secs(5), "it lives for ever");
    }
    assert!(began.elapsed() >= Duration::from_millis(20), "it died after {:?}", began.elapsed());
}

#[test]
fn before_the_first_table_and_without_members_everything_passes() {
    let Some(mut fixture) = fixture() else { return };
    let packet = packet4(1, 25, SYN);
    fixture.plan.owners = vec![Owner::new(NO_SLOT, false); BUCKETS as usize];
    fixture.plan.own_slot = NO_SLOT;
    fixture.apply();
    assert_eq!(fixture.counted(&packet), (XDP_PASS, Counter::NoOwner));
    fixture.plan.owners = vec![Owner::new(99, false); BUCKETS as usize];
    fixture.apply();
    assert_eq!(fixture.counted(&packet), (XDP_ABORTED, Counter::NoOwner));
    fixture.dataplane.control.set_table(TableState::NONE.0);
    assert_eq!(fixture.counted(&packet), (XDP_PASS, Counter::NoOwner));
}

#[test]
fn a_plan_that_contradicts_itself_is_refused() {
    let Some(mut fixture) = fixture() else { return };
    fixture.dataplane.apply_table(&fixture.plan, &members()[1..]).unwrap_err();
    fixture.plan.owners.pop();
    fixture.dataplane.apply_table(&fixture.plan, &members()).unwrap_err();
}
