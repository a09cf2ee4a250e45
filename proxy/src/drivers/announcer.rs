//! Announces the VIPs that this node owns, whenever the pool's members change.
//!
//! Not only when the ownership changes: while a pool is cut in two, both halves announce a VIP, and the neighbours
//! believe the last one. When that half's owner dies, the other owner's ownership does not change, yet it has to speak.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proxy_core::cluster::{NodeName, NodeState};
use tokio::sync::watch;

use super::cluster::View;
use crate::announce::{ANNOUNCE_AT, Announcer};

/// Joins the groups of all VIPs, then announces until the membership driver ends.
pub async fn run(announcer: Announcer, mut views: watch::Receiver<Arc<View>>) {
    let mut schedule = Schedule::default();
    let mut told_failure = false;
    // All of them, not only its own: at a takeover no time is lost, and no switch still has to learn of it.
    for vip in views.borrow().owners.keys() {
        if let Err(error) = announcer.listen_for(*vip) {
            tracing::error!("{error:#}");
        }
    }
    loop {
        let view = Arc::clone(&views.borrow_and_update());
        schedule.handle_view(Instant::now(), &view);
        while let Some(due) = schedule.poll_timeout() {
            tokio::select! {
                changed = views.changed() => match changed {
                    Ok(()) => break,
                    Err(_ended) => return,
                },
                () = tokio::time::sleep_until(due.into()) => {
                    announce(&announcer, &schedule.handle_timeout(Instant::now()), &mut told_failure);
                }
            }
        }
        if schedule.poll_timeout().is_none() && views.changed().await.is_err() {
            return;
        }
    }
}

fn announce(announcer: &Announcer, vips: &[IpAddr], told_failure: &mut bool) {
    for vip in vips {
        match announcer.announce(*vip) {
            Ok(()) => *told_failure = false,
            Err(error) if !*told_failure => {
                *told_failure = true;
                tracing::error!("{error:#}");
            }
            Err(_told) => {}
        }
    }
}

/// When which VIP is announced.
#[derive(Debug, Default)]
struct Schedule {
    /// Who was there, in which process and state: what ownership depends on.
    members: Vec<(NodeName, u64, NodeState)>,
    /// Start of the announcements of a VIP, and how many of them were made.
    running: BTreeMap<IpAddr, (Instant, usize)>,
}

impl Schedule {
    fn handle_view(&mut self, now: Instant, view: &View) {
        let members: Vec<_> = view.members.iter().map(|m| (m.name.clone(), m.generation, m.state)).collect();
        if members != self.members {
            self.members = members;
            // A VIP that went to another member falls out here.
            self.running = view.own_vips().map(|vip| (vip, (now, 0))).collect();
        }
    }

    fn due((start, done): (Instant, usize)) -> Option<Instant> {
        ANNOUNCE_AT.get(done).map(|delay: &Duration| start + *delay)
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.running.values().filter_map(|running| Self::due(*running)).min()
    }

    /// The VIPs to announce now.
    fn handle_timeout(&mut self, now: Instant) -> Vec<IpAddr> {
        let is_due = |running: (Instant, usize)| Self::due(running).is_some_and(|due| due <= now);
        let due: Vec<IpAddr> =
            self.running.iter().filter(|(_, running)| is_due(**running)).map(|(vip, _)| *vip).collect();
        for vip in &due {
            if let Some((_, done)) = self.running.get_mut(vip) {
                *done += 1;
            }
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use proxy_core::cluster::Node;

    use super::*;
    use crate::testing::{in_network_namespace, ip, within};
    use crate::{announce, netdev};

    fn vip(last: u8) -> IpAddr {
        IpAddr::from([10, 77, 0, last])
    }

    fn view(members: &[&str], owned: &[u8]) -> View {
        let me = NodeName::parse("fe1").unwrap();
        let node = |name: &&str| {
            let node = Node::new(NodeName::parse(name).unwrap(), 1, "10.0.0.1:7400".parse().unwrap(), [0; 6], 100);
            Node { state: NodeState::Active, ..node }
        };
        View {
            version: 1,
            settled: true,
            members: members.iter().map(node).collect(),
            owners: owned.iter().map(|last| (vip(*last), me.clone())).collect(),
            me,
        }
    }

    /// Runs the schedule to its end; returns at how many milliseconds something was announced, and what.
    fn announcements(schedule: &mut Schedule, start: Instant) -> Vec<(u128, Vec<IpAddr>)> {
        let mut seen = Vec::new();
        while let Some(due) = schedule.poll_timeout() {
            seen.push(((due - start).as_millis(), schedule.handle_timeout(due)));
        }
        seen
    }

    #[test]
    fn own_vips_are_announced_a_few_times() {
        let (mut schedule, start) = (Schedule::default(), Instant::now());
        schedule.handle_view(start, &view(&["fe1"], &[1, 2]));
        let both = vec![vip(1), vip(2)];
        let expected = [(0, both.clone()), (200, both.clone()), (1000, both.clone()), (3000, both)];
        assert_eq!(announcements(&mut schedule, start), expected);
    }

    #[test]
    fn a_node_that_joins_announces_nothing_until_it_serves() {
        let (mut schedule, start) = (Schedule::default(), Instant::now());
        let mut joining = view(&["fe1"], &[1]);
        joining.members[0].state = NodeState::Joining;
        schedule.handle_view(start, &joining);
        assert_eq!(schedule.poll_timeout(), None);
        schedule.handle_view(start, &view(&["fe1"], &[1]));
        assert_eq!(announcements(&mut schedule, start).len(), ANNOUNCE_AT.len());
    }

    #[test]
    fn a_lost_vip_is_not_announced_any_more() {
        let (mut schedule, start) = (Schedule::default(), Instant::now());
        schedule.handle_view(start, &view(&["fe1"], &[1, 2]));
        schedule.handle_timeout(start);
        schedule.handle_view(start, &view(&["fe1", "fe2"], &[2]));
        assert!(announcements(&mut schedule, start).iter().all(|(_, vips)| *vips == [vip(2)]));
    }

    #[test]
    fn a_change_of_members_makes_owners_speak_again_but_other_news_do_not() {
        let (mut schedule, start) = (Schedule::default(), Instant::now());
        schedule.handle_view(start, &view(&["fe1", "fe2"], &[1]));
        announcements(&mut schedule, start);
        let mut reweighted = view(&["fe1", "fe2"], &[1]);
        reweighted.members[1].weight = 7;
        schedule.handle_view(start, &reweighted);
        assert_eq!(schedule.poll_timeout(), None);
        schedule.handle_view(start, &view(&["fe1"], &[1]));
        assert_eq!(announcements(&mut schedule, start).len(), ANNOUNCE_AT.len());
    }

    #[test]
    fn it_announces_at_the_start_and_after_a_change_and_ends_with_the_driver() {
        let name = "it_announces_at_the_start_and_after_a_change_and_ends_with_the_driver";
        in_network_namespace(name, async || {
            ip("link add va address 02:00:00:00:00:0a type veth peer name vb");
            ip("link set va up");
            ip("link set vb up");
            let (va, vb) = (netdev::interface("va").await.unwrap(), netdev::interface("vb").await.unwrap());
            let tap = announce::tests::tap(vb.index);
            let announcer = Announcer::open(vec![(va.index, va.mac)]).unwrap();
            let (views, receiver) = watch::channel(Arc::new(view(&["fe1", "fe2"], &[1])));
            let running = tokio::spawn(run(announcer, receiver));
            let seen = async |vip: u8| {
                let expected = announce::gratuitous_arp(va.mac, [10, 77, 0, vip].into());
                within("the announcement", async {
                    while announce::tests::try_receive(&tap).as_deref() != Some(&expected[..]) {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                })
                .await;
            };
            seen(1).await;
            views.send_replace(Arc::new(view(&["fe1"], &[1, 2])));
            seen(2).await;
            drop(views);
            within("the end", running).await.unwrap();
        });
    }
}
