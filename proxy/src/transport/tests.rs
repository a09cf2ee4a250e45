use std::sync::atomic::AtomicU64;

use super::*;
use crate::pki::{self, CA_CERTIFICATE_FILE};
use crate::testing::{DEADLINE, Pool, Victim, bind, identity_of, localhost, own_loopback, until, within};
use crate::tls;

fn value(counter: &AtomicU64) -> u64 {
    counter.load(std::sync::atomic::Ordering::Relaxed)
}

/// Sends a datagram every 20 ms until one arrives; returns how long that took. What still lies in the receiver's
/// queue from an earlier call does not count.
async fn gossip_arrives(from: &Transport, to: SocketAddr, at: &mut Incoming) -> Duration {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let payload = Bytes::from(CALLS.fetch_add(1, std::sync::atomic::Ordering::Relaxed).to_be_bytes().to_vec());
    let start = Instant::now();
    let mut tick = tokio::time::interval(Duration::from_millis(20));
    within("a datagram", async {
        loop {
            tokio::select! {
                _ = tick.tick() => from.send_datagram(to, payload.clone()),
                received = at.datagrams.recv() => if received.unwrap().payload == payload { return },
            }
        }
    })
    .await;
    start.elapsed()
}

#[tokio::test]
async fn datagrams_flow_both_ways_and_carry_the_senders_identity() {
    let pool = Pool::new();
    let (a, mut at_a, a_address) = pool.frontend("fe1", Tuning::default());
    let (b, mut at_b, b_address) = pool.frontend("fe2", Tuning::default());
    a.send_datagram(b_address, Bytes::from(vec![7; MAX_DATAGRAM_BYTES]));
    let received = within("a datagram", at_b.datagrams.recv()).await.unwrap();
    assert_eq!(received.payload, vec![7; MAX_DATAGRAM_BYTES]);
    assert_eq!(received.peer, PeerIdentity { name: "fe1".to_owned(), role: Role::Frontend });
    assert_eq!(received.remote, a_address);
    b.send_datagram(received.remote, Bytes::from_static(b"back"));
    assert_eq!(within("an answer", at_a.datagrams.recv()).await.unwrap().peer.name, "fe2");
    assert_eq!(value(&b.stats().connections_dialled), 0, "the answer took the same connection");
    a.send_datagram(b_address, Bytes::from(vec![7; MAX_DATAGRAM_BYTES + 1]));
    assert_eq!(value(&a.stats().datagrams_dropped_too_large), 1);
}

#[tokio::test]
async fn nodes_that_dial_each_other_at_once_both_get_through() {
    let pool = Pool::new();
    let (a, mut at_a, a_address) = pool.frontend("fe1", Tuning::default());
    let (b, mut at_b, b_address) = pool.frontend("fe2", Tuning::default());
    for round in 0..20u8 {
        a.send_datagram(b_address, Bytes::from(vec![round]));
        b.send_datagram(a_address, Bytes::from(vec![round]));
        let (at_b, at_a) = within("both", async { tokio::join!(at_b.datagrams.recv(), at_a.datagrams.recv()) }).await;
        assert_eq!(at_b.unwrap().payload[..], [round], "none is lost");
        assert_eq!(at_a.unwrap().payload[..], [round]);
    }
}

#[tokio::test]
async fn streams_name_their_kind_and_carry_bytes_both_ways() {
    let pool = Pool::new();
    let (frontend, mut incoming, address) = pool.frontend("fe1", Tuning::default());
    let agent_identity = pool.identity(Role::Backend, "be1");
    let (agent, mut at_agent, _) = bind(&agent_identity, localhost(0), Tuning::default());
    let (peer, mut send, mut recv) = within("open", agent.open_stream(address, StreamKind::Directory)).await.unwrap();
    assert_eq!(peer, PeerIdentity { name: "fe1".to_owned(), role: Role::Frontend });
    send.write_all(b"hello").await.unwrap();
    send.finish().unwrap();
    let mut stream = within("stream", incoming.streams.recv()).await.unwrap();
    assert_eq!((stream.peer.role, stream.kind), (Role::Backend, StreamKind::Directory));
    assert_eq!(within("read", stream.recv.read_to_end(100)).await.unwrap(), b"hello");
    stream.send.write_all(b"world").await.unwrap();
    stream.send.finish().unwrap();
    assert_eq!(within("read", recv.read_to_end(100)).await.unwrap(), b"world");
    // The front end finds the agent at the address it came from, though nobody can dial an agent.
    within("open back", frontend.open_stream(stream.remote, StreamKind::Directory)).await.unwrap();
    assert_eq!(within("stream", at_agent.streams.recv()).await.unwrap().peer.name, "fe1");
}

#[tokio::test]
async fn an_agents_datagrams_are_not_gossip() {
    let pool = Pool::new();
    let (frontend, mut incoming, address) = pool.frontend("fe1", Tuning::default());
    let (agent, ..) = bind(&pool.identity(Role::Backend, "be1"), localhost(0), Tuning::default());
    agent.send_datagram(address, Bytes::from_static(b"gossip"));
    let stats = frontend.stats();
    until("the drop", || value(&stats.datagrams_dropped_not_a_frontend) == 1).await;
    incoming.datagrams.try_recv().unwrap_err();
}

#[tokio::test]
async fn a_node_of_another_ca_is_refused_by_both_sides() {
    let (pool, other) = (Pool::new(), Pool::new());
    let (frontend, mut incoming, address) = pool.frontend("fe1", Tuning::default());
    // It trusts our CA, so that only its own certificate is in the way.
    let ca = pool.path(CA_CERTIFICATE_FILE);
    let stranger = identity_of(other.dir.path(), &ca, Role::Frontend, "fe9");
    let (stranger, ..) = bind(&stranger, localhost(0), Tuning::default());
    stranger.send_datagram(address, Bytes::from_static(b"gossip"));
    let stats = frontend.stats();
    until("the refusal", || value(&stats.refused_bad_certificate) == 1).await;
    assert_eq!(value(&stats.connections_accepted), 0);
    incoming.datagrams.try_recv().unwrap_err();

    let (far, _keep, far_address) = other.frontend("fe9", Tuning::default());
    frontend.open_stream(far_address, StreamKind::Directory).await.unwrap_err();
    assert_eq!(value(&stats.refused_bad_certificate), 2);
    assert_eq!(value(&far.stats().connections_accepted), 0);
}

#[tokio::test]
async fn a_peer_without_a_certificate_or_protocol_is_refused() {
    let pool = Pool::new();
    let (frontend, _incoming, address) = pool.frontend("fe1", Tuning::default());
    let stats = frontend.stats();
    let roots = tls::read_roots(&pool.path(CA_CERTIFICATE_FILE)).unwrap();
    let mut bare = rustls::ClientConfig::builder_with_provider(rustls::crypto::aws_lc_rs::default_provider().into())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    bare.alpn_protocols = vec![tls::POOL_ALPN.to_vec()];
    let mut other_protocol = bare.clone();
    other_protocol.alpn_protocols = vec![b"h3".to_vec()];
    let endpoint = Endpoint::client(localhost(0)).unwrap();
    for config in [bare, other_protocol] {
        let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(config).unwrap();
        let config = quinn::ClientConfig::new(Arc::new(crypto));
        let name = Role::Frontend.server_name();
        if let Ok(connection) = within("dial", endpoint.connect_with(config, address, &name).unwrap()).await {
            within("the refusal", connection.closed()).await;
        }
    }
    until("no certificate", || value(&stats.refused_no_certificate) == 1).await;
    until("no protocol", || value(&stats.refused_protocol) == 1).await;
    assert_eq!(value(&stats.connections_accepted), 0);
}

#[tokio::test]
async fn a_back_end_that_plays_front_end_is_refused() {
    let pool = Pool::new();
    let (frontend, ..) = pool.frontend("fe1", Tuning::default());
    let identity = pool.identity(Role::Backend, "be1");
    // Our own transport would not listen with this identity.
    let config = quinn::crypto::rustls::QuicServerConfig::try_from(tls::pool_server(identity.credentials()).unwrap());
    let config = quinn::ServerConfig::with_crypto(Arc::new(config.unwrap()));
    let endpoint = Endpoint::server(config, localhost(0)).unwrap();
    let address = endpoint.local_addr().unwrap();
    let serve = tokio::spawn(async move {
        while let Some(incoming) = endpoint.accept().await {
            drop(incoming.await);
        }
    });
    let error = frontend.open_stream(address, StreamKind::Directory).await.unwrap_err();
    assert_eq!(value(&frontend.stats().refused_role), 1, "{error:#}");
    serve.abort();
}

#[tokio::test]
async fn a_certificate_of_the_ca_that_names_no_node_is_refused() {
    let pool = Pool::new();
    let (frontend, _incoming, address) = pool.frontend("fe1", Tuning::default());
    let identity = nameless_identity(&pool);
    let endpoint = Endpoint::client(localhost(0)).unwrap();
    let config = endpoint::client_config(&identity, &Tuning::default()).unwrap();
    let name = Role::Frontend.server_name();
    let connection = within("dial", endpoint.connect_with(config, address, &name).unwrap()).await.unwrap();
    let reason = within("the refusal", connection.closed()).await;
    assert!(matches!(reason, quinn::ConnectionError::ApplicationClosed(_)), "{reason}");
    assert_eq!(value(&frontend.stats().refused_role), 1);
}

/// A node's credentials, except that its certificate (of the right CA) only names the role.
fn nameless_identity(pool: &Pool) -> Identity {
    let key = rcgen::KeyPair::from_pem(&std::fs::read_to_string(pool.path(pki::CA_KEY_FILE)).unwrap()).unwrap();
    let ca = std::fs::read_to_string(pool.path(CA_CERTIFICATE_FILE)).unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_pem(&ca, key).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec![Role::Frontend.server_name()]).unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap();
    let (certificate_path, key_path) = (pool.path("nameless.pem"), pool.path("nameless.key"));
    std::fs::write(&certificate_path, certificate.pem()).unwrap();
    std::fs::write(&key_path, key.serialize_pem()).unwrap();
    let ca_path = pool.path(CA_CERTIFICATE_FILE);
    Identity::load(&ca_path, &certificate_path, &key_path).unwrap_err();
    Identity::for_tests(&ca_path, &certificate_path, &key_path)
}

#[tokio::test]
async fn connections_per_address_are_limited() {
    let pool = Pool::new();
    let tuning = Tuning { max_connections_per_ip: 2, ..Tuning::default() };
    let (frontend, _incoming, address) = pool.frontend("fe1", tuning);
    let mut agents = Vec::new();
    for name in ["be1", "be2"] {
        let (agent, incoming, _) = bind(&pool.identity(Role::Backend, name), localhost(0), Tuning::default());
        agent.open_stream(address, StreamKind::Directory).await.unwrap();
        agents.push((agent, incoming));
    }
    let (third, _keep, _) = bind(&pool.identity(Role::Backend, "be3"), localhost(0), Tuning::default());
    third.open_stream(address, StreamKind::Directory).await.unwrap_err();
    assert!(value(&frontend.stats().refused_limit) >= 1);
    agents[0].0.shutdown().await;
    let start = Instant::now();
    while third.open_stream(address, StreamKind::Directory).await.is_err() {
        assert!(start.elapsed() < DEADLINE, "a place that was left stays taken");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn full_queues_drop_and_count() {
    let pool = Pool::new();
    let tuning = Tuning { datagram_queue: 1, stream_queue: 1, ..Tuning::default() };
    let (a, mut at_a, address) = pool.frontend("fe1", tuning);
    let (b, ..) = pool.frontend("fe2", Tuning::default());
    let (_, _keep_send, _keep_recv) = b.open_stream(address, StreamKind::Directory).await.unwrap();
    let (_, _send, mut refused) = b.open_stream(address, StreamKind::Directory).await.unwrap();
    let reset = within("the reset", refused.read_to_end(10)).await.unwrap_err();
    assert!(reset.to_string().contains("reset"), "{reset}");
    for _ in 0..3 {
        b.send_datagram(address, Bytes::from_static(b"x"));
    }
    let stats = a.stats();
    until("the drops", || value(&stats.datagrams_dropped_receive_queue) == 2).await;
    assert_eq!((value(&stats.datagrams_received), value(&stats.streams_dropped_queue)), (1, 1));
    at_a.streams.try_recv().unwrap();
}

#[tokio::test]
async fn streams_of_unknown_kind_or_of_none_are_reset() {
    let pool = Pool::new();
    let tuning = Tuning { stream_kind_deadline: Duration::from_millis(50), ..Tuning::default() };
    let (a, mut at_a, address) = pool.frontend("fe1", tuning);
    let (b, ..) = pool.frontend("fe2", Tuning::default());
    let (_, connection) = dial::connection_to(&b.shared, address).await.unwrap();
    let (mut unknown, mut answer) = connection.open_bi().await.unwrap();
    unknown.write_all(&[0xff]).await.unwrap();
    within("the reset", answer.read_to_end(10)).await.unwrap_err();
    let (silent, mut answer) = connection.open_bi().await.unwrap();
    // A stream exists for the peer once it was used; priority and stop alone don't announce it, an empty write neither.
    silent.set_priority(1).unwrap();
    let (mut late, mut late_answer) = connection.open_bi().await.unwrap();
    late.write_all(&[0xff]).await.unwrap();
    within("the reset", late_answer.read_to_end(10)).await.unwrap_err();
    // Opening a later stream opens the earlier ones (RFC 9000, section 3.2).
    within("the reset", answer.read_to_end(10)).await.unwrap_err();
    let stats = a.stats();
    assert_eq!((value(&stats.streams_unknown_kind), value(&stats.streams_kind_timeout)), (2, 1));
    at_a.streams.try_recv().unwrap_err();
}

#[tokio::test]
async fn an_unreachable_address_costs_a_bounded_queue() {
    let pool = Pool::new();
    let tuning = Tuning { dial_deadline: Duration::from_millis(200), ..Tuning::default() };
    let (a, ..) = pool.frontend("fe1", tuning);
    // Bound but silent: nobody else can take the port meanwhile.
    let silent = std::net::UdpSocket::bind(localhost(0)).unwrap();
    let to = silent.local_addr().unwrap();
    for _ in 0..PENDING_DATAGRAMS + 3 {
        a.send_datagram(to, Bytes::from_static(b"x"));
    }
    let stats = a.stats();
    assert_eq!(value(&stats.datagrams_dropped_pending_queue), 3);
    until("the failure", || value(&stats.dials_failed) == 1).await;
    until("the drops", || value(&stats.datagrams_dropped_unreachable) == PENDING_DATAGRAMS as u64).await;
}

/// How fast gossip must flow again after a peer's restart.
const RECOVERY: Duration = Duration::from_millis(500);

#[tokio::test]
async fn a_restarted_peer_that_we_had_dialled_is_found_again_at_once() {
    let pool = Pool::new();
    let (a, _at_a, _) = pool.frontend("fe1", Tuning::default());
    let identity = pool.identity(Role::Frontend, "fe2");
    let mut victim = Victim::start(&identity, own_loopback(), Tuning::default());
    gossip_arrives(&a, victim.address, &mut victim.incoming).await;
    let address = victim.kill().await;
    let mut victim = Victim::start(&identity, address, Tuning::default());
    let took = gossip_arrives(&a, address, &mut victim.incoming).await;
    assert!(took < RECOVERY, "{took:?}");
    assert_eq!(value(&a.stats().connections_reset), 1, "not by chance");
    victim.kill().await;
}

#[tokio::test]
async fn a_restarted_peer_that_dials_us_replaces_its_stale_connection() {
    let pool = Pool::new();
    let (a, mut at_a, a_address) = pool.frontend("fe1", Tuning::default());
    let identity = pool.identity(Role::Frontend, "fe2");
    let victim = Victim::start(&identity, own_loopback(), Tuning::default());
    gossip_arrives(&victim.transport, a_address, &mut at_a).await;
    let address = victim.kill().await;
    let mut victim = Victim::start(&identity, address, Tuning::default());
    let start = Instant::now();
    gossip_arrives(&victim.transport, a_address, &mut at_a).await;
    gossip_arrives(&a, address, &mut victim.incoming).await;
    assert!(start.elapsed() < RECOVERY, "{:?}", start.elapsed());
    assert_eq!(value(&victim.transport.stats().connections_accepted), 0, "it went over the peer's new connection");
    victim.kill().await;
}

#[tokio::test]
async fn a_restarted_peer_that_had_dialled_us_and_is_silent_now_is_found_again() {
    let pool = Pool::new();
    let (a, mut at_a, a_address) = pool.frontend("fe1", Tuning::default());
    let identity = pool.identity(Role::Frontend, "fe2");
    let mut victim = Victim::start(&identity, own_loopback(), Tuning::default());
    gossip_arrives(&victim.transport, a_address, &mut at_a).await;
    gossip_arrives(&a, victim.address, &mut victim.incoming).await;
    let address = victim.kill().await;
    let mut victim = Victim::start(&identity, address, Tuning::default());
    let took = gossip_arrives(&a, address, &mut victim.incoming).await;
    assert!(took < RECOVERY, "{took:?}");
    assert_eq!(value(&a.stats().connections_reset), 1, "not by chance");
    victim.kill().await;
}

#[tokio::test]
async fn a_peer_that_comes_back_after_a_while_is_found_again() {
    let pool = Pool::new();
    let (a, _at_a, _) = pool.frontend("fe1", Tuning::default());
    let identity = pool.identity(Role::Frontend, "fe2");
    let mut victim = Victim::start(&identity, own_loopback(), Tuning::default());
    gossip_arrives(&a, victim.address, &mut victim.incoming).await;
    let address = victim.kill().await;
    let stats = a.stats();
    within("the end of the old connection", async {
        while value(&stats.dials_failed) == 0 {
            a.send_datagram(address, Bytes::from_static(b"gossip"));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    assert_eq!(value(&stats.connections_timed_out), 1);
    let mut victim = Victim::start(&identity, address, Tuning::default());
    let took = gossip_arrives(&a, address, &mut victim.incoming).await;
    assert!(took < RECOVERY, "{took:?}");
    victim.kill().await;
}

#[tokio::test]
async fn a_dual_stack_socket_knows_ipv4_peers_by_their_ipv4_address() {
    let pool = Pool::new();
    let any: SocketAddr = "[::]:0".parse().unwrap();
    let (a, mut at_a, a_address) = bind(&pool.identity(Role::Frontend, "fe1"), any, Tuning::default());
    let (b, mut at_b, b_address) = pool.frontend("fe2", Tuning::default());
    b.send_datagram(localhost(a_address.port()), Bytes::from_static(b"x"));
    let received = within("a datagram", at_a.datagrams.recv()).await.unwrap();
    assert_eq!(received.remote, b_address);
    assert_eq!(a.peer_at(b_address).unwrap().name, "fe2");
    a.send_datagram(b_address, Bytes::from_static(b"y"));
    within("a datagram", at_b.datagrams.recv()).await.unwrap();
}

#[tokio::test]
async fn a_shutdown_is_noticed_at_once() {
    let pool = Pool::new();
    let (a, _at_a, _) = pool.frontend("fe1", Tuning::default());
    let (b, mut at_b, b_address) = pool.frontend("fe2", Tuning::default());
    gossip_arrives(&a, b_address, &mut at_b).await;
    b.shutdown().await;
    until("the end", || a.peer_at(b_address).is_none()).await;
    assert_eq!(value(&a.stats().connections_timed_out), 0);
}
