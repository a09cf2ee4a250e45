//! The QUIC endpoint and its configuration.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;

use anyhow::{Context, Result};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{Endpoint, EndpointConfig, IdleTimeout, TransportConfig, VarInt};
use socket2::{Domain, Protocol, Socket, Type};

use super::{INITIAL_RTT, Identity, MAX_STREAMS_PER_CONNECTION, RETRY_ABOVE_HANDSHAKES, Role, Tuning};
use crate::tls;

/// What a peer may send on one stream before it is read: enough for a gigabit at 20 ms.
const STREAM_WINDOW_BYTES: u32 = 2 << 20;
/// What a peer may send on all streams of a connection before it is read.
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;
/// Unsent datagrams of a connection; when full, the oldest gives way to the newest.
const DATAGRAM_SEND_BUFFER_BYTES: usize = 64 << 10;
/// Received datagrams of a connection that were not read yet.
const DATAGRAM_RECEIVE_BUFFER_BYTES: usize = 256 << 10;
/// First packets that wait to be accepted; the accept loop never waits for long.
const MAX_UNACCEPTED: usize = 4 * RETRY_ABOVE_HANDSHAKES;
/// What may be buffered of a connection that waits to be accepted.
const UNACCEPTED_BUFFER_BYTES: u64 = 16 << 10;

/// IPv4 addresses as such, also when they came in through a dual-stack socket: addresses are keys here.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

pub(super) fn bind(listen: SocketAddr, identity: &Identity, tuning: &Tuning) -> Result<Endpoint> {
    let server = match identity.own().role {
        Role::Frontend => Some(server_config(identity, tuning)?),
        Role::Backend => None,
    };
    let runtime = quinn::default_runtime().context("no tokio runtime is running")?;
    let config = endpoint_config(identity);
    Endpoint::new(config, server, bind_socket(listen)?, runtime).context("failed to start QUIC")
}

fn bind_socket(listen: SocketAddr) -> Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(listen), Type::DGRAM, Some(Protocol::UDP))?;
    if listen.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.bind(&listen.into())?;
    Ok(socket.into())
}

/// The keys of stateless resets and of connection ids follow from the private key: a restarted process can tell
/// peers that their connection is gone, and they can believe it.
fn endpoint_config(identity: &Identity) -> EndpointConfig {
    let reset_secret = identity.derived_secret("autocluster stateless reset 1");
    let reset_key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, reset_secret.as_ref());
    let mut config = EndpointConfig::new(Arc::new(reset_key));
    let id_secret = identity.derived_secret("autocluster connection id 1");
    let id_key = id_secret.as_ref().iter().take(8).fold(0u64, |key, byte| key << 8 | u64::from(*byte));
    config.cid_generator(move || Box::new(quinn_proto::HashedConnectionIdGenerator::from_key(id_key)));
    config
}

fn server_config(identity: &Identity, tuning: &Tuning) -> Result<quinn::ServerConfig> {
    let tls = tls::pool_server(identity.credentials())?;
    let crypto = QuicServerConfig::try_from(tls).context("failed to configure QUIC's TLS")?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(Arc::new(transport_config(tuning)?));
    // Nodes have fixed addresses, and addresses are keys here.
    config.migration(false);
    config.max_incoming(MAX_UNACCEPTED);
    config.incoming_buffer_size(UNACCEPTED_BUFFER_BYTES);
    config.incoming_buffer_size_total(UNACCEPTED_BUFFER_BYTES.saturating_mul(MAX_UNACCEPTED as u64));
    Ok(config)
}

pub(super) fn client_config(identity: &Identity, tuning: &Tuning) -> Result<quinn::ClientConfig> {
    let tls = tls::pool_client(identity.credentials())?;
    let crypto = QuicClientConfig::try_from(tls).context("failed to configure QUIC's TLS")?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(Arc::new(transport_config(tuning)?));
    Ok(config)
}

fn transport_config(tuning: &Tuning) -> Result<TransportConfig> {
    let idle_timeout = IdleTimeout::try_from(tuning.idle_timeout).context("the idle timeout is too long")?;
    let mut config = TransportConfig::default();
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(MAX_STREAMS_PER_CONNECTION))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES))
        .send_window(u64::from(CONNECTION_WINDOW_BYTES))
        .datagram_send_buffer_size(DATAGRAM_SEND_BUFFER_BYTES)
        .datagram_receive_buffer_size(Some(DATAGRAM_RECEIVE_BUFFER_BYTES))
        .keep_alive_interval(Some(tuning.keep_alive))
        .max_idle_timeout(Some(idle_timeout))
        .initial_rtt(INITIAL_RTT);
    Ok(config)
}
