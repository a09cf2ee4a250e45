//! What depends on this machine's sockets: who has a connection, and SYN cookies. With real sockets, in a network
//! namespace of the test's own: the kernel looks them up there.

use std::{
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::Instant,
};

use proxy_common::{
    maps::{COOKIES_OUT, SYN_COOKIES},
    steer::HOPS,
};

use super::{packets::*, *};
use crate::testing::{in_network_namespace, ip};

/// A fixture in a namespace that has the VIPs and the client's address on `lo`.
fn with_sockets(name: &'static str, test: impl FnOnce(Fixture) + Send + 'static) {
    in_network_namespace(name, async move || {
        ip("link set lo up");
        for address in ["10.77.0.100/32", "10.77.0.2/32", "fd77::100/128", "fd77::2/128"] {
            ip(&format!("address add {address} dev lo"));
        }
        until_usable(VIP6, CLIENT6);
        until_usable(CLIENT6, VIP6);
        if let Some(fixture) = fixture() {
            test(fixture);
        }
    });
}

/// The kernel lets an IPv6 address be used, and has a way to it, only some time after it was added.
fn until_usable(from: Ipv6Addr, to: Ipv6Addr) {
    let began = Instant::now();
    while UdpSocket::bind((from, 0)).and_then(|socket| socket.connect((to, 25))).is_err() {
        assert!(began.elapsed() < Duration::from_secs(5), "{from} cannot reach {to}");
        std::thread::yield_now();
    }
}

/// A connection to the VIP's port 25 from the client's address and the given port.
fn connect(client: IpAddr, port: u16, vip: IpAddr) -> TcpStream {
    let family = if client.is_ipv4() { socket2::Domain::IPV4 } else { socket2::Domain::IPV6 };
    let socket = socket2::Socket::new(family, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::new(client, port).into()).unwrap();
    socket.connect(&SocketAddr::new(vip, 25).into()).unwrap();
    socket.into()
}

#[test]
fn a_connection_that_is_here_is_found_wherever_its_bucket_went() {
    with_sockets("a_connection_that_is_here_is_found_wherever_its_bucket_went", |mut fixture| {
        for (client, vip, port, packet, bucket) in [
            (
                CLIENT4.into(),
                VIP4.into(),
                fixture.port4(SELF),
                packet4 as fn(u16, u16, u8) -> Vec<u8>,
                bucket4 as fn(u16) -> u32,
            ),
            (CLIENT6.into(), VIP6.into(), fixture.port6(SELF), packet6, bucket6),
        ] {
            let listener = TcpListener::bind(SocketAddr::new(vip, 25)).unwrap();
            let (stream, _) = (connect(client, port, vip), ());
            let (accepted, _) = listener.accept().unwrap();
            let ack = packet(port, 25, ACK);
            // Its owner, while others may have some: it need not ask.
            fixture.set_bucket(bucket(port), SELF, &[NEAR], true);
            assert_eq!(fixture.counted(&ack), (XDP_PASS, Counter::Own));
            assert_eq!(fixture.counted(&packet(port, 25, SYN)), (XDP_PASS, Counter::OwnNew), "a repeated SYN");
            // Another's bucket by now: asked, it has it.
            fixture.set_bucket(bucket(port), NEAR, &[], false);
            for flags in [ACK, SYN] {
                let asked = from_member(&packet(port, 25, flags), NEAR, HOPS - 2);
                assert_eq!(fixture.counted(&asked), (XDP_PASS, Counter::Found));
            }
            // The listener alone is no connection.
            let other = packet(port ^ 1, 25, ACK);
            fixture.set_bucket(bucket(port ^ 1), NEAR, &[], false);
            let asked = from_member(&other, NEAR, HOPS - 2);
            assert_eq!(fixture.counted(&asked), (XDP_TX, Counter::HandedOn));
            drop((stream, accepted));
        }
    });
}

#[test]
fn one_that_has_ended_takes_its_last_packets_but_no_new_connection() {
    with_sockets("one_that_has_ended_takes_its_last_packets_but_no_new_connection", |mut fixture| {
        let port = fixture.port4(SELF);
        let listener = TcpListener::bind(SocketAddr::new(VIP4.into(), 25)).unwrap();
        let stream = connect(CLIENT4.into(), port, VIP4.into());
        // Who closes first waits.
        drop(listener.accept().unwrap().0);
        let mut rest = vec![];
        std::io::Read::read_to_end(&mut &stream, &mut rest).unwrap();
        drop(stream);
        fixture.set_bucket(bucket4(port), NEAR, &[], false);
        let asked = |flags, hop_limit| from_member(&packet4(port, 25, flags), NEAR, hop_limit);
        // Others are asked first: they may have a younger connection of the same 4-tuple.
        assert_eq!(fixture.counted(&asked(ACK, HOPS - 2)), (XDP_TX, Counter::HandedOn));
        assert_eq!(fixture.counted(&asked(ACK, ASKED_LAST)), (XDP_PASS, Counter::Found));
        assert_eq!(fixture.counted(&asked(SYN, ASKED_LAST)), (XDP_TX, Counter::HandedOnNew));
    });
}

/// A SYN with options, as Linux sends it.
fn syn(v6: bool, port: u16, sequence: u32) -> Vec<u8> {
    let mut tcp = tcp(port, 25, SYN);
    tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
    tcp[12] = 10 << 4;
    tcp.extend([2, 4, 5, 0xb4, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7]);
    if v6 { frame6(&ipv6(CLIENT6, VIP6, 6, TTL, &tcp)) } else { frame4(&ipv4_of(CLIENT4, VIP4, 6, &tcp)) }
}

/// The ACK of a SYN-ACK.
fn ack_of(syn_ack: &[u8], v6: bool, port: u16, sequence: u32) -> Vec<u8> {
    let l4 = if v6 { 54 } else { 34 };
    let cookie = u32::from_be_bytes(syn_ack[l4 + 4..l4 + 8].try_into().unwrap());
    let mut tcp = tcp(port, 25, ACK);
    tcp[4..8].copy_from_slice(&(sequence + 1).to_be_bytes());
    tcp[8..12].copy_from_slice(&(cookie.wrapping_add(1)).to_be_bytes());
    if v6 { frame6(&ipv6(CLIENT6, VIP6, 6, TTL, &tcp)) } else { frame4(&ipv4_of(CLIENT4, VIP4, 6, &tcp)) }
}

/// The kernel makes cookies for the program only where it would make them itself at any time.
fn always_cookies() {
    // /proc/sys shows the namespace of the thread that opens it.
    fs::write("/proc/sys/net/ipv4/tcp_syncookies", "2").unwrap();
}

#[test]
fn in_a_flood_syns_are_answered_by_the_kernels_own_cookies() {
    with_sockets("in_a_flood_syns_are_answered_by_the_kernels_own_cookies", |mut fixture| {
        always_cookies();
        for (v6, vip, port, path) in [
            (false, IpAddr::from(VIP4), fixture.port4(SELF), 1_448 - 40),
            (true, IpAddr::from(VIP6), fixture.port6(SELF), 1_448 - 60),
        ] {
            let _listener = TcpListener::bind(SocketAddr::new(vip, 25)).unwrap();
            let question = syn(v6, port, 7_000);
            fixture.dataplane.control.update(|control| control.flags = 0);
            assert_eq!(fixture.counted(&question), (XDP_PASS, Counter::OwnNew));
            fixture.dataplane.control.update(|control| control.flags = SYN_COOKIES);
            let answer = fixture.run(&question);
            assert_eq!(answer.action, XDP_TX);
            assert_syn_ack(&answer.packet, v6, port, 7_001, path);
            assert_eq!(fixture.counted(&question), (XDP_TX, Counter::CookieSent));
            // The ACK is known by what it acknowledges, once cookies are known to be out.
            let ack = ack_of(&answer.packet, v6, port, 7_000);
            let bucket = if v6 { bucket6(port) } else { bucket4(port) };
            fixture.set_bucket(bucket, SELF, &[NEAR], false);
            assert_eq!(fixture.counted(&ack), (XDP_TX, Counter::HandedOn));
            fixture.dataplane.control.update(|control| control.flags = COOKIES_OUT);
            assert_eq!(fixture.counted(&ack), (XDP_PASS, Counter::Own));
            let mut wrong = ack.clone();
            let l4 = if v6 { 54 } else { 34 };
            wrong[l4 + 9] ^= 1;
            assert_eq!(fixture.counted(&wrong), (XDP_TX, Counter::HandedOn));
            fixture.set_bucket(bucket, SELF, &[], false);
        }
    });
}

fn assert_syn_ack(frame: &[u8], v6: bool, port: u16, acknowledged: u32, mss: u16) {
    let (l3, l4) = (14, if v6 { 54 } else { 34 });
    assert_eq!(frame.len(), l4 + 24);
    assert_eq!((&frame[..6], &frame[6..12]), (&CLIENT_MAC[..], &MAC[..]));
    let (source, destination) = if v6 { (8..24, 24..40) } else { (12..16, 16..20) };
    let ip = &frame[l3..l4];
    let (from, to) = (&ip[source], &ip[destination]);
    if v6 {
        assert_eq!((from, to), (&VIP6.octets()[..], &CLIENT6.octets()[..]));
    } else {
        assert_eq!((from, to), (&VIP4.octets()[..], &CLIENT4.octets()[..]));
        assert_eq!(checksum(ip), 0, "the IP header's checksum");
    }
    let tcp = &frame[l4..];
    assert_eq!((&tcp[..2], &tcp[2..4]), (&[0, 25][..], &port.to_be_bytes()[..]));
    assert_eq!(tcp[8..12], acknowledged.to_be_bytes());
    assert_eq!((tcp[12], tcp[13]), (6 << 4, SYN | ACK));
    assert_eq!(tcp[20..], [&[2, 4][..], &mss.to_be_bytes()].concat());
    assert_eq!(transport_checksum(from, to, 6, tcp), 0, "the TCP checksum");
}

#[test]
fn without_a_listener_or_a_way_back_the_kernel_has_the_syn() {
    with_sockets("without_a_listener_or_a_way_back_the_kernel_has_the_syn", |mut fixture| {
        always_cookies();
        fixture.dataplane.control.update(|control| control.flags = SYN_COOKIES);
        let port = fixture.port4(SELF);
        assert_eq!(fixture.counted(&syn(false, port, 1)), (XDP_PASS, Counter::OwnNew), "nobody listens");
        let _listener = TcpListener::bind(SocketAddr::new(VIP4.into(), 25)).unwrap();
        assert_eq!(fixture.counted(&syn(false, port, 1)), (XDP_TX, Counter::CookieSent));
        // It came by a member, and its sender is on this segment: its MAC address is not in the frame.
        let by_member = from_member(&syn(false, port, 1), NEAR, HOPS);
        assert_eq!(fixture.counted(&by_member), (XDP_PASS, Counter::OwnNew));
        // One from beyond the gateway is answered by it.
        let far = Ipv4Addr::new(192, 0, 2, 9);
        let port = (1_024..u16::MAX)
            .find(|port| {
                let bucket = bucket_of(hash_v4(KEY, far.octets(), VIP4.octets(), ports(*port)));
                fixture.plan.owners[bucket as usize].slot() == SELF
            })
            .unwrap();
        let by_member = from_member(&frame4(&ipv4_of(far, VIP4, 6, &tcp(port, 25, SYN))), NEAR, HOPS);
        let answer = fixture.run(&by_member);
        assert_eq!((answer.action, &answer.packet[..6]), (XDP_TX, &ROUTER_MAC[..]));
        fixture.dataplane.set_network(&Network::default());
        assert_eq!(fixture.counted(&by_member), (XDP_PASS, Counter::OwnNew), "no gateway is known");
    });
}
