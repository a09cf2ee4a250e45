use proxy_core::cluster::Node;

use super::*;
use crate::{
    drivers::streams,
    testing::{Pool, Victim, own_loopback, within},
    transport::Tuning,
};

fn node(name: &str, generation: u64, address: SocketAddr) -> Node {
    Node::new(NodeName::parse(name).unwrap(), generation, address, [0; 6], 100)
}

fn holdings(view: u64, buckets: impl IntoIterator<Item = u32>) -> Holdings {
    Holdings { view, generation: 1, sequence: view, buckets: buckets.into_iter().collect() }
}

/// A front end that hears.
fn hear(victim: &mut Victim) -> mpsc::Receiver<Heard> {
    let incoming = std::mem::replace(&mut victim.incoming.streams, mpsc::channel(1).1);
    let (sender, heard) = mpsc::channel(8);
    victim.within_runtime(|| drop(tokio::spawn(receive(streams::divide(incoming).steering, sender))));
    heard
}

fn start(pool: &Pool, name: &str, listen: SocketAddr) -> Victim {
    Victim::start(&pool.identity(Role::Frontend, name), listen, Tuning::default())
}

#[tokio::test]
async fn holdings_reach_every_other_member_in_their_order() {
    let pool = Pool::new();
    let (a, mut b, mut c) =
        (start(&pool, "fe1", own_loopback()), start(&pool, "fe2", own_loopback()), start(&pool, "fe3", own_loopback()));
    let mut at = [hear(&mut b), hear(&mut c)];
    let mut links = Links::new(a.transport.clone());
    links.handle_members([node("fe2", 1, b.address), node("fe3", 1, c.address)].iter());
    links.tell(&holdings(7, 0..proxy_common::maps::BUCKETS));
    for heard in &mut at {
        let first = within("the holdings", heard.recv()).await.unwrap();
        assert_eq!((first.from.as_str(), first.holdings.view), ("fe1", 7));
        assert_eq!(first.holdings.buckets.len(), u64::from(proxy_common::maps::BUCKETS), "the largest there are");
    }
    links.tell(&holdings(8, [1, 2]));
    for heard in &mut at {
        let second = within("the holdings", heard.recv()).await.unwrap();
        assert_eq!(second.holdings, holdings(8, [1, 2]));
    }
}

#[tokio::test]
async fn a_member_that_comes_back_hears_again() {
    let pool = Pool::new();
    let (a, mut b) = (start(&pool, "fe1", own_loopback()), start(&pool, "fe2", own_loopback()));
    let mut heard = hear(&mut b);
    let mut links = Links::new(a.transport.clone());
    links.handle_members([node("fe2", 1, b.address)].iter());
    links.tell(&holdings(1, [1]));
    within("the holdings", heard.recv()).await.unwrap();
    let address = b.kill().await;
    let mut b = start(&pool, "fe2", address);
    let mut heard = hear(&mut b);
    // As the steering machine does, which repeats what it tells: the first may go to the connection that is dead.
    let mut again = tokio::time::interval(Duration::from_millis(50));
    let second = within("the holdings", async {
        loop {
            tokio::select! {
                heard = heard.recv() => break heard.unwrap(),
                _ = again.tick() => links.tell(&holdings(2, [2])),
            }
        }
    });
    assert_eq!(second.await.holdings, holdings(2, [2]));
}

#[tokio::test]
async fn who_is_no_member_any_more_hears_nothing() {
    let pool = Pool::new();
    let (a, mut b, mut c) =
        (start(&pool, "fe1", own_loopback()), start(&pool, "fe2", own_loopback()), start(&pool, "fe3", own_loopback()));
    let (mut at_b, mut at_c) = (hear(&mut b), hear(&mut c));
    let mut links = Links::new(a.transport.clone());
    links.handle_members([node("fe2", 1, b.address)].iter());
    links.handle_members([node("fe3", 1, c.address)].iter());
    links.tell(&holdings(1, [1]));
    within("the holdings", at_c.recv()).await.unwrap();
    at_b.try_recv().unwrap_err();
}

#[tokio::test]
async fn nonsense_ends_the_stream_and_back_ends_are_not_heard() {
    let pool = Pool::new();
    let mut a = start(&pool, "fe1", own_loopback());
    let mut heard = hear(&mut a);
    let liar = start(&pool, "fe9", own_loopback());
    for nonsense in [&[0xff; 8][..], &[0, 0, 0, 1, 0xff], &[0, 0, 0, 0]] {
        let (_, mut send, recv) = liar.transport.open_stream(a.address, StreamKind::Steering).await.unwrap();
        drop(send.write_all(nonsense).await);
        // The reader goes.
        within("the end", send.stopped()).await.unwrap();
        drop(recv);
    }
    let agent = Victim::start(&pool.identity(Role::Backend, "be1"), own_loopback(), Tuning::default());
    let (_, mut send, _recv) = agent.transport.open_stream(a.address, StreamKind::Steering).await.unwrap();
    let bytes = holdings(1, [1]).encode();
    let length = u32::try_from(bytes.len()).unwrap().to_be_bytes();
    // It succeeds as long as the refusal has not arrived.
    drop(send.write_all(&[&length[..], &bytes].concat()).await);
    within("the end", send.stopped()).await.unwrap();
    heard.try_recv().unwrap_err();
}
