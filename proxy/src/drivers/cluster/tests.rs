use proxy_core::cluster::DigestVersion;

use super::*;
use crate::testing::{Pool, Victim, localhost, own_loopback, until, within};
use crate::transport::Tuning;

/// A front end under test, killable.
struct Member {
    victim: Victim,
    cluster: Cluster,
    digests: mpsc::Receiver<Digest>,
}

impl Member {
    fn start(pool: &Pool, name: &str, listen: SocketAddr, seeds: &[SocketAddr]) -> Self {
        let identity = pool.identity(Role::Frontend, name);
        let mut victim = Victim::start(&identity, listen, Tuning::default());
        let me = own_node(identity.own(), victim.address, &[[2, 0, 0, 0, 0, 1]], 100).unwrap();
        // The steering driver would make it so.
        let me = Node { state: NodeState::Active, ..me };
        let settings = Settings::new(seeds.to_vec(), vips()).unwrap();
        let datagrams = std::mem::replace(&mut victim.incoming.datagrams, mpsc::channel(1).1);
        let transport = victim.transport.clone();
        let (cluster, digests) = victim.within_runtime(|| Cluster::spawn(me, settings, transport, datagrams));
        Self { victim, cluster, digests }
    }

    fn view(&self) -> Arc<View> {
        Arc::clone(&self.cluster.view().borrow())
    }

    fn names(&self) -> Vec<String> {
        self.view().members.iter().map(|member| member.name.to_string()).collect()
    }

    async fn sees(&self, names: &[&str]) {
        until(&format!("{} to see {names:?}", self.view().me), || self.view().settled && self.names() == names).await;
    }

    /// Ends it without a word and returns when its address is free.
    async fn kill(self) -> SocketAddr {
        let Self { victim, cluster, digests } = self;
        drop((cluster, digests));
        victim.kill().await
    }
}

fn vips() -> Vec<IpAddr> {
    ["10.77.0.100", "10.77.0.101", "10.77.0.102", "fd77::100"].map(|vip| vip.parse().unwrap()).to_vec()
}

/// Three members that know each other; all but the first were told of the first only.
async fn three(pool: &Pool) -> [Member; 3] {
    let first = Member::start(pool, "fe1", own_loopback(), &[]);
    let seeds = [first.victim.address];
    let members =
        [first, Member::start(pool, "fe3", own_loopback(), &seeds), Member::start(pool, "fe2", own_loopback(), &seeds)];
    for member in &members {
        member.sees(&["fe1", "fe2", "fe3"]).await;
    }
    members
}

#[tokio::test]
async fn members_find_each_other_and_agree_on_the_owners_of_vips() {
    let pool = Pool::new();
    let members = three(&pool).await;
    let owners = members[0].view().owners.clone();
    assert_eq!(owners.keys().copied().collect::<Vec<_>>(), vips());
    for member in &members {
        let view = member.view();
        assert_eq!(view.owners, owners);
        assert!(view.version > 0);
        assert_eq!(member.cluster.stats().anomalies.load(Ordering::Relaxed), 0);
    }
    let own: usize = members.iter().map(|member| member.view().own_vips().count()).sum();
    assert_eq!(own, vips().len(), "every VIP has one owner");
}

/// Whoever has just started must not draw the traffic of VIPs before it knows who else is there.
#[tokio::test]
async fn a_node_that_starts_claims_nothing_until_it_knows_the_members() {
    let pool = Pool::new();
    let nobody = own_loopback();
    let alone = Member::start(&pool, "fe1", own_loopback(), &[nobody]);
    let first = alone.view();
    assert!(!first.settled && first.owners.is_empty(), "{first:?}");
    alone.sees(&["fe1"]).await;
    assert_eq!(alone.view().own_vips().count(), vips().len(), "nobody answers, so all is its own");
    let lonely = Member::start(&pool, "fe2", own_loopback(), &[]);
    assert!(lonely.view().settled, "without other seeds there is nobody to wait for");
}

#[tokio::test]
async fn a_killed_member_is_gone_soon_and_its_vips_have_other_owners() {
    let pool = Pool::new();
    let [a, b, c] = three(&pool).await;
    let start = Instant::now();
    c.kill().await;
    a.sees(&["fe1", "fe3"]).await;
    b.sees(&["fe1", "fe3"]).await;
    // The bound is generous: this machine may be building something else meanwhile.
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert!(a.view().owners.values().all(|owner| owner.as_str() != "fe2"));
    assert_eq!(a.view().owners, b.view().owners);
}

#[tokio::test]
async fn a_leaving_member_is_gone_at_once() {
    let pool = Pool::new();
    let [a, b, c] = three(&pool).await;
    c.cluster.leave().await;
    c.victim.transport.shutdown().await;
    a.sees(&["fe1", "fe3"]).await;
    b.sees(&["fe1", "fe3"]).await;
    assert!(c.cluster.set_weight(1).await.is_err(), "the driver has ended");
    c.cluster.leave().await;
}

#[tokio::test]
async fn a_restarted_member_replaces_its_former_self() {
    let pool = Pool::new();
    let [a, b, c] = three(&pool).await;
    let generation = |view: Arc<View>| view.members.iter().find(|m| m.name.as_str() == "fe2").map(|m| m.generation);
    let before = generation(a.view()).unwrap();
    let address = c.kill().await;
    let c = Member::start(&pool, "fe2", address, &[a.victim.address]);
    c.sees(&["fe1", "fe2", "fe3"]).await;
    for member in [&a, &b] {
        until("the new generation", || generation(member.view()) > Some(before)).await;
    }
}

#[tokio::test]
async fn state_weight_and_digests_reach_everybody() {
    let pool = Pool::new();
    let [mut a, mut b, c] = three(&pool).await;
    c.cluster.set_state(NodeState::Draining).await.unwrap();
    c.cluster.set_weight(7).await.unwrap();
    for member in [&a, &b, &c] {
        until("the drain", || {
            member
                .view()
                .members
                .iter()
                .any(|m| (m.name.as_str(), m.state, m.weight) == ("fe2", NodeState::Draining, 7))
        })
        .await;
        assert!(member.view().owners.values().all(|owner| owner.as_str() != "fe2"), "it hands its VIPs over");
    }
    let digest = Digest {
        source: "be1".to_owned(),
        version: DigestVersion { epoch: 1, sequence: 2 },
        payload: b"hash".to_vec(),
    };
    c.cluster.set_digests(vec![digest.clone()]).await.unwrap();
    assert_eq!(within("the digest", a.digests.recv()).await.unwrap(), digest);
    assert_eq!(within("the digest", b.digests.recv()).await.unwrap(), digest);
    let too_long = Digest { payload: vec![0; 10_000], ..digest };
    c.cluster.set_digests(vec![too_long]).await.unwrap_err();
}

#[tokio::test]
async fn more_digests_than_the_receiver_takes_are_not_lost() {
    let pool = Pool::new();
    let [mut a, _b, c] = three(&pool).await;
    let many = DIGEST_QUEUE as u64 + 20;
    let digest = |number| Digest {
        source: format!("be{number}"),
        version: DigestVersion { epoch: 1, sequence: 1 },
        payload: Vec::new(),
    };
    c.cluster.set_digests((0..many).map(digest).collect()).await.unwrap();
    let mut sources = std::collections::BTreeSet::new();
    within("all digests", async {
        while (sources.len() as u64) < many {
            sources.insert(a.digests.recv().await.unwrap().source);
        }
    })
    .await;
}

#[tokio::test]
async fn nobody_speaks_in_anothers_name() {
    let pool = Pool::new();
    let [a, ..] = three(&pool).await;
    let mut machine = Machine::new(
        Node::new(NodeName::parse("fe2").unwrap(), u64::MAX, localhost(9), [0; 6], 1),
        Timing::default(),
        1,
    );
    machine.handle_announce(Instant::now(), a.victim.address);
    let hello = machine.poll_transmit().unwrap();
    let (liar, ..) = pool.frontend("fe9", Tuning::default());
    liar.send_datagram(hello.to, hello.payload.into());
    liar.send_datagram(a.victim.address, bytes::Bytes::from_static(b"\xffnonsense"));
    let stats = a.cluster.stats();
    until("the refusals", || {
        let (impostor, malformed) = (&stats.datagrams_impostor, &stats.datagrams_malformed);
        (impostor.load(Ordering::Relaxed), malformed.load(Ordering::Relaxed)) == (1, 1)
    })
    .await;
    assert!(a.view().members.iter().all(|member| member.generation != u64::MAX));
}

#[test]
fn only_a_front_end_with_a_reachable_address_is_a_member() {
    let identity = |role| PeerIdentity { name: "fe1".to_owned(), role };
    let macs = [[2; 6], [4; 6], [6; 6]];
    let node = own_node(&identity(Role::Frontend), localhost(7400), &macs, 1).unwrap();
    assert_eq!((node.mac, node.more_macs), (macs[0], macs[1..].to_vec()));
    own_node(&identity(Role::Backend), localhost(7400), &macs, 1).unwrap_err();
    own_node(&identity(Role::Frontend), "0.0.0.0:7400".parse().unwrap(), &macs, 1).unwrap_err();
}
