use std::collections::BTreeMap;
use std::io::Write;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket as Socket2, Type};

use super::*;
use crate::testing::{in_network_namespace, ip};

const VIP: &str = "10.77.0.100:25";
const CLIENT: &str = "10.9.9.9:0";

/// Client and server ends of one connection.
struct Pair {
    client: TcpStream,
    server: TcpStream,
}

impl Pair {
    fn new(listener: &TcpListener) -> Self {
        let client = dial(&listener.local_addr().unwrap().to_string());
        let (server, _) = listener.accept().unwrap();
        Self { client, server }
    }

    fn remote(&self) -> SocketAddr {
        self.client.local_addr().unwrap()
    }
}

fn dial(service: &str) -> TcpStream {
    let service: SocketAddr = service.parse().unwrap();
    let socket = Socket2::new(Domain::for_address(service), Type::STREAM, None).unwrap();
    let from: SocketAddr = if service.is_ipv4() { CLIENT } else { "[fd99::9]:0" }.parse().unwrap();
    socket.bind(&from.into()).unwrap();
    let begun = Instant::now();
    // The kernel takes a moment to route to an IPv6 address that it has just been given.
    while let Err(error) = socket.connect(&service.into()) {
        assert!(begun.elapsed() < Duration::from_secs(5), "{service}: {error}");
        std::thread::yield_now();
    }
    socket.into()
}

fn set_up() {
    ip("link set lo up");
    ip("address add 10.77.0.100/32 dev lo");
    ip("address add 10.9.9.9/32 dev lo");
    ip("address add fd77::100/128 dev lo nodad");
    ip("address add fd99::9/128 dev lo nodad");
}

/// Connections of the services, by the client's end.
fn seen(ports: &[u16]) -> BTreeMap<SocketAddr, State> {
    let mut seen = BTreeMap::new();
    connections(|c| {
        if ports.contains(&c.local.port()) {
            seen.insert(c.remote, c.state);
        }
    })
    .unwrap();
    seen
}

fn await_states(ports: &[u16], expected: &BTreeMap<SocketAddr, State>) {
    let begun = Instant::now();
    while seen(ports) != *expected {
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}\ninstead of\n{expected:?}", seen(ports));
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn connections_of_every_state_are_found() {
    in_network_namespace("connections_of_every_state_are_found", async || {
        set_up();
        let listener = TcpListener::bind(VIP).unwrap();
        let deferring = TcpListener::bind("10.77.0.100:143").unwrap();
        defer_accept(&deferring);
        let handshake = dial("10.77.0.100:143");
        let [open, half, closing_soon, acked, ended, last, fin] = std::array::from_fn(|_| Pair::new(&listener));
        half.client.shutdown(Shutdown::Write).unwrap();
        last.client.shutdown(Shutdown::Write).unwrap();
        acked.server.shutdown(Shutdown::Write).unwrap();
        let remote = [&open, &half, &closing_soon, &acked, &ended, &last, &fin].map(Pair::remote);
        let ended_client = ended.client;
        drop(ended.server);
        drop(ended_client);
        let mut expected = BTreeMap::from([
            (handshake.local_addr().unwrap(), State::SynReceived),
            (remote[0], State::Established),
            (remote[1], State::CloseWait),
            (remote[2], State::Established),
            (remote[3], State::FinWait2),
            (remote[4], State::TimeWait),
            (remote[5], State::CloseWait),
            (remote[6], State::Established),
        ]);
        await_states(&[25, 143], &expected);
        // From now on nothing reaches the clients, so nothing of the server's is acknowledged.
        ip("rule add pref 10 lookup local");
        ip("rule del pref 0");
        ip("rule add pref 5 from 10.77.0.100 to 10.9.9.9 blackhole");
        fin.server.shutdown(Shutdown::Write).unwrap();
        closing_soon.server.shutdown(Shutdown::Write).unwrap();
        closing_soon.client.shutdown(Shutdown::Write).unwrap();
        drop(last.server);
        expected.extend([(remote[2], State::Closing), (remote[5], State::LastAck), (remote[6], State::FinWait1)]);
        await_states(&[25, 143], &expected);
    });
}

fn defer_accept(listener: &TcpListener) {
    use std::os::fd::AsRawFd as _;
    let seconds: libc::c_int = 60;
    let length = libc::socklen_t::try_from(size_of_val(&seconds)).unwrap();
    // SAFETY: the descriptor is open, and the option's value is an int that lives until the call returns.
    let result = unsafe {
        libc::setsockopt(
            listener.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_DEFER_ACCEPT,
            (&raw const seconds).cast(),
            length,
        )
    };
    assert_eq!(result, 0);
}

#[test]
fn both_families_are_found_and_mapped_addresses_are_plain() {
    in_network_namespace("both_families_are_found_and_mapped_addresses_are_plain", async || {
        set_up();
        let v6 = TcpListener::bind("[fd77::100]:25").unwrap();
        let dual = Socket2::new(Domain::IPV6, Type::STREAM, None).unwrap();
        dual.set_only_v6(false).unwrap();
        dual.bind(&"[::]:110".parse::<SocketAddr>().unwrap().into()).unwrap();
        dual.listen(8).unwrap();
        let dual: TcpListener = dual.into();
        let over_v6 = Pair::new(&v6);
        let client = dial("10.77.0.100:110");
        let (mapped, _) = dual.accept().unwrap();
        let mut found = vec![];
        connections(|c| found.push(c)).unwrap();
        let end = |local: &str, remote| Connection { local: local.parse().unwrap(), remote, state: State::Established };
        assert!(found.contains(&end("[fd77::100]:25", over_v6.remote())), "{found:?}");
        assert!(found.contains(&end("10.77.0.100:110", client.local_addr().unwrap())), "{found:?}");
        // Client ends are connections as well.
        assert_eq!(found.len(), 4, "{found:?}");
        drop(mapped);
    });
}

/// Not by the clock, which other work on the machine would upset; prints how long it took.
#[test]
fn thousands_of_connections_are_listed_whole() {
    in_network_namespace("thousands_of_connections_are_listed_whole", async || {
        set_up();
        let listener = TcpListener::bind(VIP).unwrap();
        let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap().0;
        let count = usize::try_from(limit).unwrap().min(8_000) / 4;
        let mut pairs: Vec<_> = (0..count).map(|_| Pair::new(&listener)).collect();
        let begun = Instant::now();
        let mut listed = 0;
        connections(|c| listed += usize::from(c.local.port() == 25)).unwrap();
        println!("{count} connections (and their clients' ends) listed in {:?}", begun.elapsed());
        assert_eq!(listed, count);
        pairs[0].client.write_all(b"x").unwrap();
    });
}

#[test]
fn nonsense_from_the_kernel_is_an_error() {
    let mut ignore = |_| {};
    read_reply(&[1, 2, 3], &mut ignore).unwrap_err();
    let mut short = vec![0; 20];
    short[0] = 20;
    short[4] = 20;
    read_reply(&short, &mut ignore).unwrap_err();
    let mut refused = short;
    refused[4] = 2;
    refused[16..20].copy_from_slice(&(-libc::EPERM).to_ne_bytes());
    let error = format!("{:#}", read_reply(&refused, &mut ignore).unwrap_err());
    assert!(error.contains("not permitted"), "{error}");
}
