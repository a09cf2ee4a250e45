//! The program at real interfaces, in a network namespace of its own.

use std::process::Command;

use aya::programs::{
    XdpMode,
    links::{FdLink, PinnedLink},
};
use socket2::Socket;

use super::{packets::*, *};
use crate::{
    announce::tests::{tap, try_receive},
    netdev,
    testing::{in_network_namespace, ip, until, within},
};

const SECOND_MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];
const FIRST: &str = "va";
const SECOND: &str = "vc";

fn may_load() -> bool {
    probe().inspect_err(|reason| println!("skipped: {reason}")).is_ok()
}

fn at(bpffs: &BpfFs, interfaces: &[(&str, [u8; 6])], mode: Mode) -> Settings {
    let interface = |(name, mac): &(&str, [u8; 6])| InterfaceSettings { name: (*name).to_owned(), mac: *mac, mtu: MTU };
    Settings { interfaces: interfaces.iter().map(interface).collect(), mode, ..settings(bpffs.0.path()) }
}

/// Opens and attaches a daemon's program, with a table.
fn start(settings: &Settings) -> Dataplane {
    let mut dataplane = Dataplane::open(settings).unwrap();
    declare(&mut dataplane);
    dataplane.attach().unwrap();
    dataplane
}

fn modes(dataplane: &Dataplane) -> Vec<Option<Mode>> {
    dataplane.attachments().map(|(_, mode)| mode).collect()
}

/// How the kernel says that a program runs at the interface.
fn xdp_at(interface: &str) -> String {
    let output = Command::new("ip").args(["link", "show", "dev", interface]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.split_whitespace().find(|word| word.starts_with("xdp")).unwrap_or("none").to_owned()
}

fn id_of_program_at(interface: &str) -> u64 {
    let output = Command::new("ip").args(["-j", "-d", "link", "show", "dev", interface]).output().unwrap();
    let links: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    links[0]["xdp"]["prog"]["id"].as_u64().unwrap()
}

fn own_id(dataplane: &mut Dataplane) -> u64 {
    let program = program(&mut dataplane.programs[0].ebpf, PROGRAM_NAME).unwrap();
    u64::from(program.info().unwrap().id())
}

fn veth(name: &str, mac: [u8; 6], peer: &str) {
    let mac = mac.map(|octet| format!("{octet:02x}")).join(":");
    ip(&format!("link add {name} address {mac} type veth peer name {peer}"));
    for end in [name, peer] {
        ip(&format!("link set {end} up"));
    }
}

/// Two interfaces of this machine and a client on one bridge; the client's end, and what keeps it up.
async fn one_segment(bpffs: &BpfFs) -> (Socket, Dataplane) {
    ip("link add br0 type bridge mcast_snooping 0");
    ip("link set br0 up");
    // A veth sends back only to a peer that has a program too. Without a table, ours passes everything.
    let pins = bpffs.0.path().join("switch");
    fs::create_dir(&pins).unwrap();
    let mut switch = Dataplane::load(&pins, &at(bpffs, &[("switch", [0; 6])], Mode::Driver)).unwrap();
    for (name, mac, port) in [(FIRST, MAC, "porta"), (SECOND, SECOND_MAC, "portc"), ("client", CLIENT_MAC, "porte")] {
        veth(name, mac, port);
        ip(&format!("link set {port} master br0"));
        program(&mut switch.programs[0].ebpf, PROGRAM_NAME).unwrap().attach(port, XdpMode::Driver).unwrap();
    }
    (tap(netdev::interface("client").await.unwrap().index), switch)
}

async fn answered(client: &Socket, question: &[u8], answers: &[Vec<u8>]) {
    client.send(question).unwrap();
    let mut missing = answers.to_vec();
    within("the answers", async {
        while !missing.is_empty() {
            while let Some(frame) = try_receive(client) {
                missing.retain(|answer| *answer != frame);
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

#[test]
fn what_comes_in_by_either_interface_is_steered_by_it() {
    in_network_namespace("what_comes_in_by_either_interface_is_steered_by_it", async || {
        if !may_load() {
            return;
        }
        let bpffs = BpfFs::mount();
        let (client, _switch) = one_segment(&bpffs).await;
        let dataplane = start(&at(&bpffs, &[(FIRST, MAC), (SECOND, SECOND_MAC)], Mode::Driver));
        assert_eq!(modes(&dataplane), [Some(Mode::Driver); 2]);
        let plan = plan();
        let port = (1_024..u16::MAX).find(|port| plan.owners[bucket4(*port) as usize].slot() == NEAR).unwrap();
        for mac in [MAC, SECOND_MAC] {
            let mut packet = packet4(port, 25, SYN);
            packet[..6].copy_from_slice(&mac);
            let mut expected = steered(&packet, NEAR, proxy_common::steer::HOPS).packet;
            expected[6..12].copy_from_slice(&mac);
            answered(&client, &packet, &[expected]).await;
        }
        let answers = [MAC, SECOND_MAC].map(|mac| neighbours::arp_reply(mac, VIP4));
        answered(&client, &neighbours::arp_request(CLIENT4, VIP4), &answers).await;
        let counted = dataplane.counters().unwrap();
        let of = |counter| counted.iter().find(|(c, _)| *c == counter).unwrap().1;
        assert_eq!((of(Counter::SteeredNew), of(Counter::NeighbourAnswered)), (2, 2), "both count in the same maps");
    });
}

#[test]
fn a_driver_without_native_xdp_gets_the_slow_way_unless_it_is_refused() {
    in_network_namespace("a_driver_without_native_xdp_gets_the_slow_way_unless_it_is_refused", async || {
        if !may_load() {
            return;
        }
        ip("link set lo up");
        veth(FIRST, MAC, "porta");
        let bpffs = BpfFs::mount();
        let both = [(FIRST, MAC), ("lo", [0; 6])];
        let mut strict = Dataplane::open(&at(&bpffs, &both, Mode::Driver)).unwrap();
        let error = format!("{:#}", strict.attach().unwrap_err());
        assert!(error.contains("driver of lo has no native XDP"), "{error}");
        assert_eq!([FIRST, "lo"].map(xdp_at), ["none"; 2], "not by half");
        assert!(!bpffs.0.path().join("autocluster/fe0").exists(), "nothing stays behind");
        drop(strict);
        let dataplane = start(&at(&bpffs, &both, Mode::Auto));
        assert_eq!(modes(&dataplane), [Some(Mode::Driver), Some(Mode::Generic)]);
        assert_eq!([FIRST, "lo"].map(xdp_at), ["xdp", "xdpgeneric"]);
        let next = start(&at(&bpffs, &both, Mode::Auto));
        assert_eq!(modes(&next), [Some(Mode::Driver), Some(Mode::Generic)], "taken over as they are");
        let slow = start(&at(&bpffs, &both, Mode::Generic));
        assert_eq!(modes(&slow), [Some(Mode::Generic); 2], "the mode may change");
        assert_eq!([FIRST, "lo"].map(xdp_at), ["xdpgeneric"; 2]);
    });
}

#[test]
fn interfaces_that_are_no_longer_named_are_left_alone() {
    in_network_namespace("interfaces_that_are_no_longer_named_are_left_alone", async || {
        if !may_load() {
            return;
        }
        veth(FIRST, MAC, "porta");
        veth(SECOND, SECOND_MAC, "portc");
        let bpffs = BpfFs::mount();
        let both = start(&at(&bpffs, &[(FIRST, MAC), (SECOND, SECOND_MAC)], Mode::Auto));
        drop(both);
        assert_eq!([FIRST, SECOND].map(xdp_at), ["xdp"; 2], "a dead daemon's program stays");
        let settings = at(&bpffs, &[(SECOND, SECOND_MAC)], Mode::Auto);
        let one = start(&settings);
        assert_eq!([FIRST, SECOND].map(xdp_at), ["none", "xdp"]);
        // The daemon that took the link over still lives.
        assert_eq!(detach(&settings, &[FIRST, SECOND]).unwrap(), [SECOND]);
        assert_eq!([FIRST, SECOND].map(xdp_at), ["none"; 2]);
        assert_eq!(detach(&settings, &[FIRST, SECOND]).unwrap(), [""; 0]);
        drop(one);
    });
}

/// Leaves behind what the first version's daemon did; its link's number.
fn first_version(bpffs: &BpfFs) -> u32 {
    let root = bpffs.0.path().join("autocluster").join(FIRST);
    fs::create_dir_all(root.join("v1")).unwrap();
    let mut former = Dataplane::load(&root.join("v1"), &at(bpffs, &[(FIRST, MAC)], Mode::Driver)).unwrap();
    let program = program(&mut former.programs[0].ebpf, PROGRAM_NAME).unwrap();
    let id = program.attach(FIRST, XdpMode::Driver).unwrap();
    let link: FdLink = program.take_link(id).unwrap().try_into().unwrap();
    let number = link.info().unwrap().id();
    link.pin(root.join("link")).unwrap();
    number
}

fn number_of_link(pin: &Path) -> u32 {
    let link: FdLink = PinnedLink::from_pin(pin).unwrap().into();
    link.info().unwrap().id()
}

#[test]
fn the_first_versions_link_is_taken_over_once_there_is_a_table() {
    in_network_namespace("the_first_versions_link_is_taken_over_once_there_is_a_table", async || {
        if !may_load() {
            return;
        }
        veth(FIRST, MAC, "porta");
        // A node may be called as its interface is.
        for node in ["fe0", FIRST] {
            let bpffs = BpfFs::mount();
            let former_link = first_version(&bpffs);
            let former = id_of_program_at(FIRST);
            let settings = Settings { node: node.to_owned(), ..at(&bpffs, &[(FIRST, MAC)], Mode::Auto) };
            let mut dataplane = Dataplane::open(&settings).unwrap();
            dataplane.attach().unwrap();
            assert_eq!((modes(&dataplane), id_of_program_at(FIRST)), (vec![None], former), "it steers on");
            dataplane.apply(&plan(), &members()).unwrap();
            assert_eq!(modes(&dataplane), [Some(Mode::Driver)]);
            assert_eq!(id_of_program_at(FIRST), own_id(&mut dataplane));
            let pins = bpffs.0.path().join("autocluster");
            assert_eq!(number_of_link(&pins.join(node).join("link-driver-va")), former_link, "no packet passed by it");
            let left: Vec<_> = fs::read_dir(&pins).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            assert_eq!(left, [node]);
            assert!(!pins.join(FIRST).join("v1").exists() && !pins.join(FIRST).join("link").exists());
            assert_eq!(detach(&settings, &[FIRST]).unwrap(), [FIRST]);
            until("it is detached", || xdp_at(FIRST) == "none").await;
        }
    });
}

#[test]
fn what_the_first_version_left_is_in_nobodys_way() {
    in_network_namespace("what_the_first_version_left_is_in_nobodys_way", async || {
        if !may_load() {
            return;
        }
        veth(FIRST, MAC, "porta");
        let bpffs = BpfFs::mount();
        first_version(&bpffs);
        // Another mode is wanted: its program has to go.
        let settings = at(&bpffs, &[(FIRST, MAC)], Mode::Generic);
        drop(start(&settings));
        assert_eq!(xdp_at(FIRST), "xdpgeneric");
        assert_eq!(detach(&settings, &[FIRST]).unwrap(), [FIRST]);
        // Its interface went away and came back.
        first_version(&bpffs);
        ip(&format!("link del {FIRST}"));
        veth(FIRST, MAC, "porta");
        let mut dataplane = Dataplane::open(&at(&bpffs, &[(FIRST, MAC)], Mode::Auto)).unwrap();
        dataplane.attach().unwrap();
        dataplane.apply(&plan(), &members()).unwrap();
        assert_eq!((modes(&dataplane), xdp_at(FIRST)), (vec![Some(Mode::Driver)], "xdp".to_owned()));
        // Somebody takes it off before any daemon of this version has run.
        assert_eq!(detach(&settings, &[FIRST]).unwrap(), [FIRST]);
        first_version(&bpffs);
        assert_eq!(detach(&settings, &[FIRST]).unwrap(), [FIRST]);
        assert_eq!(xdp_at(FIRST), "none");
        assert!(!bpffs.0.path().join("autocluster").join(FIRST).exists());
    });
}

#[test]
fn another_program_at_the_interface_is_told_of() {
    in_network_namespace("another_program_at_the_interface_is_told_of", async || {
        if !may_load() {
            return;
        }
        veth(FIRST, MAC, "porta");
        let (bpffs, other) = (BpfFs::mount(), BpfFs::mount());
        let first = start(&at(&bpffs, &[(FIRST, MAC)], Mode::Auto));
        let mut second = Dataplane::open(&at(&other, &[(FIRST, MAC)], Mode::Auto)).unwrap();
        let error = format!("{:#}", second.attach().unwrap_err());
        assert!(error.contains("another XDP program is attached to va"), "{error}");
        assert_eq!(xdp_at(FIRST), "xdp", "and left alone");
        drop(first);
    });
}
