//! The packet table: packet in, verdict and packet out, asked of the kernel by `BPF_PROG_TEST_RUN`.

mod abuse;
mod deny;
mod encapsulation;
mod family;
mod fragments;
mod fuzzed;
mod icmp;
mod interfaces;
mod malformed;
mod neighbours;
mod packets;
mod refusals;
mod sockets;
mod steering;
mod takeover;

use std::{
    mem::ManuallyDrop,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Mutex, PoisonError},
};

use proxy_common::{
    hash::{hash_v4, hash_v6, v6_words},
    maps::{BUCKET_BITS, MEMBER_BY_V4, MEMBER_BY_V6, MEMBER_PRESENT},
};

use super::*;

const XDP_ABORTED: u32 = 0;
const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;

const KEY: SteeringKey = SteeringKey { k0: 0x0123_4567_89ab_cdef, k1: 0xfedc_ba98_7654_3210 };
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xcc];
const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xee];
const VIP4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 100);
const OTHER_VIP4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 101);
const VIP6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 0x100);
const CLIENT4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
const CLIENT6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 2);
const OWN4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 11);
const OWN6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 0x11);
const FAR4: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 14);
const FAR6: Ipv6Addr = Ipv6Addr::new(0xfd88, 0, 0, 0, 0, 0, 0, 0x15);
const OUTER_PORT: u16 = 6_080;
const MTU: u16 = 1_500;
/// Hop limit of a packet that the last of a chain is asked about (the table in `proxy_common::steer`).
const ASKED_LAST: u8 = 2;

/// Slots of the fixture's plan: this machine, two on its segment, one by IPv4 and one by IPv6 beyond a router.
const SELF: u8 = 0;
const NEAR: u8 = 1;
const NEAR_TOO: u8 = 2;
const FAR_V4: u8 = 3;
const FAR_V6: u8 = 4;
const MEMBERS: u8 = 5;

/// A BPF file system of the test's own, unmounted when it ends.
struct BpfFs(tempfile::TempDir);

impl BpfFs {
    fn mount() -> Self {
        let dir = tempfile::tempdir().unwrap();
        nix::mount::mount(Some("bpf"), dir.path(), Some("bpf"), nix::mount::MsFlags::empty(), None::<&str>).unwrap();
        Self(dir)
    }
}

impl Drop for BpfFs {
    fn drop(&mut self) {
        let _unmounted = nix::mount::umount(self.0.path());
    }
}

/// Loaded programs. The kernel takes a second to verify one, so tests hand it on to the next.
static LOADED: Mutex<Vec<Dataplane>> = Mutex::new(vec![]);

struct Fixture {
    dataplane: ManuallyDrop<Dataplane>,
    plan: Plan,
}

fn near_mac(slot: u8) -> [u8; 6] {
    [2, 0, 0, 0, 1, slot]
}

fn members() -> Vec<Member> {
    let near = |slot| Member { mac: near_mac(slot), flags: MEMBER_PRESENT, ..Member::default() };
    vec![near(SELF), near(NEAR), near(NEAR_TOO), far_v4(), far_v6()]
}

fn far_v4() -> Member {
    let mut member = Member { mac: ROUTER_MAC, flags: MEMBER_PRESENT | MEMBER_BY_V4, ..Member::default() };
    member.outer_source[..4].copy_from_slice(&OWN4.octets());
    member.outer_destination[..4].copy_from_slice(&FAR4.octets());
    let addresses = [OWN4.octets(), FAR4.octets()].concat();
    let words = addresses.chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(w[1]));
    member.outer_sum = 0x4500 + 0x4000 + 0x4011 + words.sum::<u32>();
    member
}

fn far_v6() -> Member {
    Member {
        mac: ROUTER_MAC,
        flags: MEMBER_PRESENT | MEMBER_BY_V6,
        outer_source: OWN6.octets(),
        outer_destination: FAR6.octets(),
        ..Member::default()
    }
}

fn plan() -> Plan {
    let owner = |bucket: u32| u8::try_from(bucket % u32::from(MEMBERS)).unwrap();
    Plan {
        members: (0..MEMBERS).map(|slot| format!("fe{slot}")).collect(),
        own_slot: SELF,
        owners: (0..BUCKETS).map(|bucket| Owner::new(owner(bucket), false)).collect(),
        successors: vec![NEAR; BUCKETS as usize],
        chains: vec![Chain::EMPTY; BUCKETS as usize],
        settling: false,
    }
}

fn settings(bpffs: &Path) -> Settings {
    Settings {
        node: "fe0".to_owned(),
        interfaces: vec![InterfaceSettings { name: "test0".to_owned(), mac: MAC, mtu: MTU }],
        mode: Mode::Auto,
        bpffs: bpffs.to_owned(),
        key: KEY,
    }
}

/// None, said aloud, where the kernel lets us load nothing.
fn fixture() -> Option<Fixture> {
    if let Err(reason) = probe() {
        println!("skipped: {reason}");
        return None;
    }
    let idle = LOADED.lock().unwrap_or_else(PoisonError::into_inner).pop();
    let mut dataplane = idle.unwrap_or_else(|| {
        // Its maps live on without their names.
        let bpffs = BpfFs::mount();
        Dataplane::load(bpffs.0.path(), &settings(bpffs.0.path())).unwrap()
    });
    forget(&mut dataplane);
    Some(begin(dataplane))
}

fn begin(mut dataplane: Dataplane) -> Fixture {
    let plan = declare(&mut dataplane);
    Fixture { dataplane: ManuallyDrop::new(dataplane), plan }
}

/// Declares what all tests have in common; the plan in force.
fn declare(dataplane: &mut Dataplane) -> Plan {
    dataplane.set_vips([(VIP4.into(), true), (OTHER_VIP4.into(), false), (VIP6.into(), true)]).unwrap();
    dataplane.set_services([(VIP4.into(), 25), (OTHER_VIP4.into(), 25), (VIP6.into(), 25)]).unwrap();
    dataplane.set_network(&network());
    let plan = plan();
    // Twice, so that both halves and what is known of the peers are this test's.
    for _half in 0..2 {
        dataplane.apply_table(&plan, &members()).unwrap();
    }
    dataplane.keep_alive(Duration::from_secs(600)).unwrap();
    plan
}

fn network() -> Network {
    Network {
        address_v4: Some(OWN4.octets()),
        address_v6: Some(OWN6.octets()),
        encapsulation_port: OUTER_PORT,
        path_mtu: 1_448,
        gateway_v4: ROUTER_MAC,
        gateway_v6: ROUTER_MAC,
        on_link_v4: [[10, 77, 0, 0], [255, 255, 255, 0]],
        on_link_v6: [[0xfd, 0x77, 0, 0, 0, 0, 0, 0], [0xff; 8]],
    }
}

/// Takes away what an earlier test left in the maps.
fn forget(dataplane: &mut Dataplane) {
    dataplane.control.update(|control| {
        (control.flags, control.new_connection_limit) = (0, 0);
    });
    let ebpf = dataplane.ebpf().unwrap();
    let counts = Mapped::<u64>::new(ebpf, maps::NEW_CONNECTIONS, maps::NEW_CONNECTION_SLOTS as usize).unwrap();
    counts.write_all(0, &vec![0; maps::NEW_CONNECTION_SLOTS as usize]);
    let filter = Mapped::<u64>::new(ebpf, maps::DENY_FILTER, maps::DENY_WORDS as usize).unwrap();
    filter.write_all(0, &vec![0; maps::DENY_WORDS as usize]);
    let mut fragments = HashMap::<&mut MapData, [u8; size_of::<maps::FragmentKey>()], u32>::try_from(
        ebpf.map_mut(maps::FRAGMENTS).unwrap(),
    )
    .unwrap();
    let keys: Vec<_> = fragments.keys().collect::<Result<_, _>>().unwrap();
    for key in keys {
        fragments.remove(&key).unwrap();
    }
    forget_prefixes::<[u8; 4]>(ebpf, maps::DENY_V4);
    forget_prefixes::<[u8; 16]>(ebpf, maps::DENY_V6);
}

fn forget_prefixes<K: Pod>(ebpf: &mut Ebpf, name: &str) {
    let mut trie = aya::maps::LpmTrie::<&mut MapData, K, u32>::try_from(ebpf.map_mut(name).unwrap()).unwrap();
    let keys: Vec<_> = trie.keys().collect::<Result<_, _>>().unwrap();
    for key in keys {
        trie.remove(&key).unwrap();
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        // SAFETY: it is not used again.
        let dataplane = unsafe { ManuallyDrop::take(&mut self.dataplane) };
        // A test that failed may have left anything, and some take maps away.
        let whole = dataplane.programs.iter().all(|instance| instance.ebpf.map(maps::DENY_FILTER).is_some());
        if whole && !std::thread::panicking() {
            LOADED.lock().unwrap_or_else(PoisonError::into_inner).push(dataplane);
        }
    }
}

impl Fixture {
    fn run(&mut self, packet: &[u8]) -> TestVerdict {
        self.dataplane.test_run(packet).unwrap()
    }

    /// Runs a packet and says which one counter rose by one (besides that of unpacking).
    fn counted(&mut self, packet: &[u8]) -> (u32, Counter) {
        let before = self.dataplane.counters().unwrap();
        let action = self.run(packet).action;
        let after = self.dataplane.counters().unwrap();
        let risen: Vec<_> = before.iter().zip(&after).filter(|(b, a)| a.1 > b.1).map(|(_, a)| a.0).collect();
        let reasons: Vec<_> = risen.into_iter().filter(|counter| *counter != Counter::Decapsulated).collect();
        assert_eq!(reasons.len(), 1, "each packet is counted once: {reasons:?}");
        (action, reasons[0])
    }

    /// Puts the changed plan in force.
    fn apply(&mut self) {
        self.dataplane.apply_table(&self.plan, &members()).unwrap();
    }

    /// Gives the bucket of a packet's 4-tuple an owner and a chain.
    fn set_bucket(&mut self, bucket: u32, owner: u8, chain: &[u8], lately: bool) {
        self.plan.owners[bucket as usize] = Owner::new(owner, !chain.is_empty());
        self.plan.chains[bucket as usize] = Chain::new(chain.iter().copied(), lately);
        self.apply();
    }

    /// A client port whose connection to `VIP4:25` is `slot`'s.
    fn port4(&self, slot: u8) -> u16 {
        (1_024..u16::MAX).find(|port| self.plan.owners[bucket4(*port) as usize].slot() == slot).unwrap()
    }

    /// The same for `VIP6:25`.
    fn port6(&self, slot: u8) -> u16 {
        (1_024..u16::MAX).find(|port| self.plan.owners[bucket6(*port) as usize].slot() == slot).unwrap()
    }
}

fn bucket_of(hash: u64) -> u32 {
    u32::try_from(hash >> (64 - BUCKET_BITS)).unwrap()
}

fn ports(port: u16) -> [u8; 4] {
    let [a, b] = port.to_be_bytes();
    [a, b, 0, 25]
}

/// Bucket of a connection from `CLIENT4` and this port to `VIP4:25`.
fn bucket4(port: u16) -> u32 {
    bucket_of(hash_v4(KEY, CLIENT4.octets(), VIP4.octets(), ports(port)))
}

fn bucket6(port: u16) -> u32 {
    bucket_of(hash_v6(KEY, v6_words(CLIENT6.octets()), v6_words(VIP6.octets()), ports(port)))
}

/// What a packet that is steered to a near `slot` must come out as.
fn steered(packet: &[u8], slot: u8, hop_limit: u8) -> TestVerdict {
    let mut packet = packet.to_vec();
    packet[..6].copy_from_slice(&near_mac(slot));
    packet[6..12].copy_from_slice(&MAC);
    packets::set_hop_limit(&mut packet, hop_limit);
    TestVerdict { action: XDP_TX, packet }
}

fn passed(packet: &[u8]) -> TestVerdict {
    TestVerdict { action: XDP_PASS, packet: packet.to_vec() }
}
