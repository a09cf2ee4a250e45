//! All of it with the real program: what the control socket is told, the kernel does.

use proxy_common::hash::SteeringKey;
use proxy_common::maps::{BUCKETS, Chain, Counter, MEMBER_PRESENT, Member, NO_SLOT, Owner};
use proxy_core::steering::Plan;

use super::*;
use crate::config;
use crate::control::{CookiesRequest, DenyRequest, LimitRequest};
use crate::dataplane::{self, Dataplane, InterfaceSettings, Mode};
use crate::status::abuse::{CookiesMode, DenyResponse};
use crate::testing::in_network_namespace;

/// A BPF file system of the test's own, unmounted when it ends.
struct BpfFs(tempfile::TempDir);

impl Drop for BpfFs {
    fn drop(&mut self) {
        let _unmounted = nix::mount::umount(self.0.path());
    }
}

/// None, said aloud, where the kernel lets us load nothing.
fn bpffs() -> Option<BpfFs> {
    if let Err(reason) = dataplane::probe() {
        println!("skipped: {reason}");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    nix::mount::mount(Some("bpf"), dir.path(), Some("bpf"), nix::mount::MsFlags::empty(), None::<&str>).unwrap();
    Some(BpfFs(dir))
}

const CONFIGURED: u32 = 1_000;

/// The plan of a pool of one.
fn alone() -> Plan {
    let buckets = BUCKETS as usize;
    Plan {
        members: vec!["fe1".into()],
        own_slot: 0,
        owners: vec![Owner::new(0, false); buckets],
        successors: vec![NO_SLOT; buckets],
        chains: vec![Chain::EMPTY; buckets],
        settling: false,
    }
}

/// The defence of a daemon that has just started, without a network.
fn start(bpffs: &BpfFs, state: &Path) -> (Abuse, Maps) {
    let settings = dataplane::Settings {
        node: "fe1".into(),
        interfaces: vec![InterfaceSettings { name: "test0".into(), mac: [2, 0, 0, 0, 0, 1], mtu: 1_500 }],
        mode: Mode::Auto,
        bpffs: bpffs.0.path().into(),
        key: SteeringKey { k0: 1, k1: 2 },
    };
    let mut dataplane = Dataplane::load(bpffs.0.path(), &settings).unwrap();
    dataplane.set_vips([("10.77.0.100".parse().unwrap(), true)]).unwrap();
    dataplane.set_services([("10.77.0.100".parse().unwrap(), 25)]).unwrap();
    dataplane.apply_table(&alone(), &[Member { flags: MEMBER_PRESENT, ..Member::default() }]).unwrap();
    dataplane.keep_alive(Duration::from_secs(60)).unwrap();
    let limit = Limit::new(CONFIGURED, 32, 56).unwrap();
    let configured = config::Abuse { limit, syn_cookies_above: 5_000 };
    Abuse::open("fe1", state, configured, SharedDataplane::new(dataplane)).unwrap()
}

/// A SYN from this address to the VIP's port.
fn syn(source: Ipv4Addr) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 9, 8, 0];
    frame.extend([0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0]);
    frame.extend(source.octets());
    frame.extend([10, 77, 0, 100]);
    let sum: u32 = frame[14..].chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(w[1])).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame.extend([0x9c, 0x40, 0, 25, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0]);
    frame
}

/// Whether the program drops it because of this counter.
fn dropped_as(abuse: &Abuse, source: [u8; 4], counter: Counter) -> bool {
    let mut dataplane = abuse.dataplane.lock();
    let before = dataplane.count_of(&[counter]).unwrap();
    dataplane.test_run(&syn(source.into())).unwrap();
    dataplane.count_of(&[counter]).unwrap() > before
}

fn add(abuse: &Abuse, prefixes: &[&str], for_seconds: Option<u64>) -> Result<DenyResponse> {
    let prefixes = prefixes.iter().map(|&text| text.to_owned()).collect();
    abuse.answer_deny(DenyRequest::Add { prefixes, for_seconds, reason: "spam".into() })
}

fn keep_denying(abuse: &Abuse, Maps { maps, difference }: Maps) -> JoinHandle<Result<()>> {
    tokio::spawn(nic::keep_denying(abuse.list.clone(), abuse.dataplane.clone(), maps, difference))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_operator_denies_the_program_drops() {
    let (Some(bpffs), state) = (bpffs(), tempfile::tempdir().unwrap()) else { return };
    let (abuse, maps) = start(&bpffs, state.path());
    let keeping = keep_denying(&abuse, maps);
    let denied = |last| dropped_as(&abuse, [192, 0, 2, last], Counter::Denied);
    add(&abuse, &["192.0.2.0/25", "192.0.2.200"], None).unwrap();
    until("the program to deny", || denied(7) && denied(200)).await;
    assert!(!denied(201));
    let tested = abuse.answer_deny(DenyRequest::Test { address: "192.0.2.7".into() }).unwrap();
    let DenyResponse::Tested(Some(entry)) = tested else { panic!("{tested:?}") };
    assert_eq!((&*entry.prefix, &*entry.reason, &*entry.set_by), ("192.0.2.0/25", "spam", "fe1"));
    // For a second only.
    add(&abuse, &["192.0.2.0/25"], Some(1)).unwrap();
    until("the end", || !denied(7)).await;
    assert!(denied(200));
    abuse.answer_deny(DenyRequest::Remove { prefixes: vec!["192.0.2.200".into()] }).unwrap();
    until("the program to allow", || !denied(200)).await;
    assert!(abuse.status().denied_prefixes == 0 && !keeping.is_finished());
    keeping.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_daemon_denies_what_was_stored_and_nothing_else() {
    let (Some(bpffs), state) = (bpffs(), tempfile::tempdir().unwrap()) else { return };
    let (abuse, maps) = start(&bpffs, state.path());
    let keeping = keep_denying(&abuse, maps);
    add(&abuse, &["192.0.2.1", "192.0.2.2"], None).unwrap();
    until("the program to deny", || dropped_as(&abuse, [192, 0, 2, 2], Counter::Denied)).await;
    abuse.store_now().await.unwrap();
    // What is said now is not stored: the daemon dies.
    abuse.answer_deny(DenyRequest::Remove { prefixes: vec!["192.0.2.1".into()] }).unwrap();
    add(&abuse, &["192.0.2.3"], None).unwrap();
    until("the program to deny", || dropped_as(&abuse, [192, 0, 2, 3], Counter::Denied)).await;
    keeping.abort();
    drop(abuse);

    let (abuse, maps) = start(&bpffs, state.path());
    let denied = |last| dropped_as(&abuse, [192, 0, 2, last], Counter::Denied);
    assert!(denied(3) && denied(2) && !denied(1), "the program goes on as it was");
    assert_eq!(maps.difference.len(), 2, "{:?}", maps.difference);
    let keeping = keep_denying(&abuse, maps);
    until("the program to follow the list", || denied(1) && denied(2) && !denied(3)).await;
    keeping.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_say_what_was_done_and_what_to_do() {
    let (Some(bpffs), state) = (bpffs(), tempfile::tempdir().unwrap()) else { return };
    let (abuse, _maps) = start(&bpffs, state.path());
    let error = |prefixes: &[&str]| {
        let prefixes = prefixes.iter().map(|&text| text.to_owned()).collect();
        abuse.answer_deny(DenyRequest::Remove { prefixes }).unwrap_err().to_string()
    };
    add(&abuse, &["192.0.2.0/24", "192.0.3.1"], None).unwrap();
    assert_eq!(error(&["192.0.2.7"]), "192.0.2.7: is not denied, but 192.0.2.0/24 is");
    assert_eq!(error(&["192.0.3.1", "192.0.3.1"]), "192.0.3.1: is not denied (1 prefixes before it were done)");
    assert_eq!(error(&["192.0.2.1/24"]), "192.0.2.1/24: has bits after its prefix; did you mean 192.0.2.0/24?");
    add(&abuse, &["192.0.2.1/24", "192.0.9.1"], None).unwrap_err();
    assert_eq!(abuse.status().denied_prefixes, 1, "all are read before the first is denied");
    let many = vec!["192.0.2.1"; crate::control::MAX_PREFIXES + 1];
    assert!(add(&abuse, &many, None).unwrap_err().to_string().contains("more than 500 prefixes"));
}

#[test]
fn limit_and_cookies_are_changed_until_the_next_start() {
    // The kernel's setting for cookies is the namespace's.
    in_network_namespace("limit_and_cookies_are_changed_until_the_next_start", limit_and_cookies);
}

async fn limit_and_cookies() {
    let (Some(bpffs), state) = (bpffs(), tempfile::tempdir().unwrap()) else { return };
    let (abuse, _maps) = start(&bpffs, state.path());
    let limited = || (0..20).filter(|_| dropped_as(&abuse, [192, 0, 2, 1], Counter::Limited)).count();
    assert_eq!(limited(), 0);
    let status = abuse.answer_limit(&LimitRequest::Set(2)).unwrap();
    assert_eq!((status.new_connections_per_second, status.configured), (2, CONFIGURED));
    assert!(limited() > 10);
    assert!(abuse.answer_limit(&LimitRequest::Set(u32::MAX)).is_err());
    abuse.answer_limit(&LimitRequest::Set(0)).unwrap();
    assert_eq!(limited(), 0);
    let status = abuse.answer_limit(&LimitRequest::Default).unwrap();
    assert_eq!(status.new_connections_per_second, CONFIGURED);

    let status = abuse.answer_cookies(&CookiesRequest::Set(CookiesMode::On));
    assert!(status.sending && status.out && status.mode == CookiesMode::On);
    let status = abuse.answer_cookies(&CookiesRequest::Set(CookiesMode::Auto));
    assert!(!status.sending && status.out, "those that were sent may come back");
    let kernel = || std::fs::read_to_string("/proc/sys/net/ipv4/tcp_syncookies").unwrap();
    assert_eq!(kernel(), "1\n");
    abuse.answer_cookies(&CookiesRequest::Set(CookiesMode::On));
    assert_eq!(kernel(), "2\n");
    abuse.end().unwrap();
    assert_eq!(kernel(), "1\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_list_comes_in_pages() {
    let (Some(bpffs), state) = (bpffs(), tempfile::tempdir().unwrap()) else { return };
    let (abuse, _maps) = start(&bpffs, state.path());
    let all = u32::try_from(crate::control::PAGE).unwrap() + 10;
    for n in 0..all {
        abuse.list.change(|list| list.deny(unix_now(), host(n), denial(), &abuse.origin)).unwrap();
    }
    let (mut seen, mut after) = (std::collections::BTreeSet::new(), None);
    loop {
        let DenyResponse::Entries(entries) = abuse.answer_deny(DenyRequest::List { after }).unwrap() else { panic!() };
        let Some(last) = entries.last() else { break };
        assert!(entries.len() <= crate::control::PAGE);
        after = Some(last.prefix.clone());
        entries.into_iter().for_each(|entry| assert!(seen.insert(entry.prefix), "each comes once"));
    }
    assert_eq!(seen.len(), all as usize);
}
