mod program;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use proxy_core::abuse::wire::{self, Message, VERSION};
use proxy_core::abuse::{Denial, DenyList, Prefix, Reason, Record};
use proxy_core::cluster::{Node, NodeName};

use super::exchange::{self, StreamError};
use super::list::unix_now;
use super::*;
use crate::testing::{Pool, until, within};
use crate::transport::{Role, StreamKind, Tuning};

fn host(n: u32) -> Prefix {
    Prefix::host(Ipv4Addr::from_bits(0x0a00_0000 + n).into())
}

fn denial() -> Denial {
    Denial { until: None, reason: Reason::parse("a test").unwrap() }
}

fn records(list: &SharedDenyList) -> Vec<Record> {
    list.lock().records(None).cloned().collect()
}

/// A front end as far as the deny list goes.
struct FrontEnd {
    name: NodeName,
    address: SocketAddr,
    transport: Transport,
    list: SharedDenyList,
    views: watch::Sender<Arc<View>>,
    tasks: Vec<JoinHandle<()>>,
}

impl FrontEnd {
    fn start(pool: &Pool, name: &str) -> Self {
        let (transport, incoming, address) = pool.frontend(name, Tuning::default());
        let name = NodeName::parse(name).unwrap();
        let list = SharedDenyList::new(DenyList::default());
        let (views, seen) = watch::channel(Arc::new(view(&name, &[])));
        let tasks = vec![
            tokio::spawn(exchange::send(list.clone(), transport.clone(), seen)),
            tokio::spawn(exchange::receive(list.clone(), incoming.streams)),
        ];
        Self { name, address, transport, list, views, tasks }
    }

    fn sees(&self, others: &[&Self]) {
        let members: Vec<(NodeName, SocketAddr)> =
            others.iter().chain([&self]).map(|fe| (fe.name.clone(), fe.address)).collect();
        self.views.send_replace(Arc::new(view(&self.name, &members)));
    }

    fn deny(&self, prefix: Prefix) {
        let origin = Origin::parse(self.name.as_str()).unwrap();
        self.list.change(|list| list.deny(unix_now(), prefix, denial(), &origin)).unwrap();
    }

    fn denies(&self, prefix: Prefix) -> bool {
        self.list.lock().entry(prefix).is_some()
    }
}

impl Drop for FrontEnd {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

fn view(me: &NodeName, members: &[(NodeName, SocketAddr)]) -> View {
    let node = |(name, address): &(NodeName, SocketAddr)| Node::new(name.clone(), 1, *address, [2; 6], 100);
    let members = members.iter().map(node).collect();
    View { version: 1, settled: true, me: me.clone(), members, owners: BTreeMap::new() }
}

fn all_see_all(front_ends: &[&FrontEnd]) {
    for front_end in front_ends {
        let others: Vec<&FrontEnd> = front_ends.iter().filter(|other| other.name != front_end.name).copied().collect();
        front_end.sees(&others);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_is_told_all_know_within_a_second() {
    let pool = Pool::new();
    let [a, b, c] = ["fe1", "fe2", "fe3"].map(|name| FrontEnd::start(&pool, name));
    a.deny(host(1));
    all_see_all(&[&a, &b, &c]);
    until("the first comparison", || b.denies(host(1)) && c.denies(host(1))).await;

    let begun = Instant::now();
    b.deny(host(2));
    until("a word", || a.denies(host(2)) && c.denies(host(2))).await;
    println!("known to all after {:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());

    let origin = Origin::parse("fe3").unwrap();
    c.list.change(|list| list.allow(unix_now(), host(1), &origin)).unwrap();
    until("a removal", || !a.denies(host(1)) && !b.denies(host(1))).await;
    assert_eq!(records(&a.list), records(&b.list));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_away_hears_of_everything() {
    let pool = Pool::new();
    let (a, b) = (FrontEnd::start(&pool, "fe1"), FrontEnd::start(&pool, "fe2"));
    (0..20_000).for_each(|n| a.deny(host(n)));
    b.deny(host(30_000));
    let begun = Instant::now();
    all_see_all(&[&a, &b]);
    until("both lists", || a.list.lock().len() == 20_001 && b.list.lock().len() == 20_001).await;
    println!("20,000 prefixes after {:?}", begun.elapsed());
    assert_eq!(a.list.lock().sum(), b.list.lock().sum());
    // The view changes and the links end: what is said now is found by comparing.
    all_see_all(&[&a]);
    all_see_all(&[&b]);
    a.deny(host(40_000));
    all_see_all(&[&a, &b]);
    until("what was said meanwhile", || b.denies(host(40_000))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_front_ends_are_heard() {
    let pool = Pool::new();
    let front_end = FrontEnd::start(&pool, "fe1");
    let identity = pool.identity(Role::Backend, "be1");
    let (agent, _incoming, _address) = crate::testing::bind(&identity, crate::testing::localhost(0), Tuning::default());
    let (_, mut send, mut recv) =
        within("a stream", agent.open_stream(front_end.address, StreamKind::Deny)).await.unwrap();
    let record = Record {
        prefix: host(1),
        changed: unix_now(),
        set_by: Origin::parse("fe1").unwrap(),
        word: proxy_core::abuse::Word::Denied(denial()),
    };
    for message in [Message::Hello { version: VERSION }, Message::Records(vec![record])] {
        // It may be reset already.
        drop(send.write_all(&wire::encode(&message).unwrap()).await);
    }
    let mut answer = [0; 1];
    assert!(!matches!(within("an end", recv.read(&mut answer)).await, Ok(Some(1..))), "it is not served");
    assert!(!front_end.denies(host(1)));
    agent.shutdown().await;
    front_end.transport.shutdown().await;
}

#[tokio::test]
async fn a_peer_that_talks_nonsense_is_given_up() {
    let list = SharedDenyList::new(DenyList::default());
    let receive = async |bytes: &[u8]| {
        let Err(error) = within("an end", exchange::receive_list(&list, "fe2", bytes, tokio::io::sink())).await;
        error
    };
    assert!(matches!(receive(&[0, 0, 0, 1, 99]).await, StreamError::Wire(_)));
    assert!(matches!(receive(&wire::encode(&Message::Done).unwrap()).await, StreamError::Link(_)));
    assert!(matches!(receive(&wire::encode(&Message::Hello { version: VERSION }).unwrap()).await, StreamError::Closed));
    let Err(error) = within("an end", exchange::send_list(&list, &[0, 0, 0, 1, 99][..], tokio::io::sink())).await;
    assert!(matches!(error, StreamError::Wire(_)));
}

#[tokio::test]
async fn a_comparison_that_is_broken_off_may_be_made_with_another() {
    let list = SharedDenyList::new(DenyList::default());
    let hello = wire::encode(&Message::Hello { version: VERSION }).unwrap();
    let differs = [hello, wire::encode(&Message::Summary(1)).unwrap()].concat();
    for _ in 0..2 {
        let mut asked = vec![];
        let Err(_closed) = exchange::receive_list(&list, "fe2", &differs[..], &mut asked).await;
        assert!(!asked.is_empty(), "it compares");
    }
}

#[tokio::test]
async fn the_list_is_kept_and_damage_is_an_empty_list() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(dir.path());
    assert_eq!(store.load().len(), 0, "nothing was stored yet");
    let origin = Origin::parse("fe1").unwrap();
    let list = SharedDenyList::new(DenyList::default());
    list.change(|list| (0..5_000).try_for_each(|n| list.deny(unix_now(), host(n), denial(), &origin))).unwrap();
    list.change(|list| list.allow(unix_now(), host(7), &origin)).unwrap();
    within("saving", store.save(&list)).await.unwrap();
    let loaded = SharedDenyList::new(store.load());
    assert_eq!(loaded.lock().len(), 4_999);
    assert_eq!(records(&loaded), records(&list));

    let file = dir.path().join("deny");
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    assert_eq!(store.load().len(), 0);
    within("saving", store.save(&list)).await.unwrap();
    assert_eq!(store.load().len(), 4_999);
}

#[tokio::test]
async fn changes_are_stored_by_themselves() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(dir.path());
    let list = SharedDenyList::new(DenyList::default());
    let keeping = tokio::spawn(store.clone().keep(list.clone()));
    // Until the task listens, changes go unseen; it is the last one that counts.
    within("the file", async {
        let origin = Origin::parse("fe1").unwrap();
        for n in 0.. {
            list.change(|list| list.deny(unix_now(), host(n), denial(), &origin)).unwrap();
            if !store.load().is_empty() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    keeping.abort();
}
