//! Mutual TLS, as in the pool: every node shows a certificate of the pool's CA.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;

/// The name in every node's certificate.
pub(crate) const SERVER_NAME: &str = "frontend.autocluster.internal";
/// Gossip is worth nothing when it is old: a longer queue only delays what is new.
const DATAGRAM_QUEUE: usize = 16 * 1024;

pub(crate) fn configs(pki: &Path) -> anyhow::Result<(quinn::ServerConfig, quinn::ClientConfig)> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(pki.join("ca.pem")).context("failed to read ca.pem")?)?;
    let roots = Arc::new(roots);
    let chain = vec![CertificateDer::from_pem_file(pki.join("node.pem")).context("failed to read node.pem")?];
    let key = || PrivateKeyDer::from_pem_file(pki.join("node.key")).context("failed to read node.key");
    let verifier = WebPkiClientVerifier::builder(roots.clone()).build()?;
    let server =
        rustls::ServerConfig::builder().with_client_cert_verifier(verifier).with_single_cert(chain.clone(), key()?)?;
    let client = rustls::ClientConfig::builder().with_root_certificates(roots).with_client_auth_cert(chain, key()?)?;
    let mut server = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(server)?));
    let mut client = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(client)?));
    let transport = Arc::new(transport()?);
    server.transport_config(transport.clone());
    client.transport_config(transport);
    Ok((server, client))
}

fn transport() -> anyhow::Result<quinn::TransportConfig> {
    let mut transport = quinn::TransportConfig::default();
    transport
        .max_idle_timeout(Some(Duration::from_secs(10).try_into()?))
        .keep_alive_interval(Some(Duration::from_secs(2)))
        .datagram_send_buffer_size(DATAGRAM_QUEUE);
    Ok(transport)
}
