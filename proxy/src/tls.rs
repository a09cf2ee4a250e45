//! All rustls configuration of the daemon. The crypto provider (aws-lc-rs) is passed explicitly everywhere,
//! so that no process-wide default decides which one is used.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

/// Application protocol of the pool's own connections (ALPN, RFC 7301).
pub const POOL_ALPN: &[u8] = b"autocluster/1";

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// Reads every certificate of a PEM file, the end entity's first.
///
/// # Errors
/// When the file can't be read, is not PEM, or holds no certificate.
pub fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let certificates: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .with_context(|| format!("failed to read certificates from {}", path.display()))?;
    ensure!(!certificates.is_empty(), "{} holds no certificate", path.display());
    Ok(certificates)
}

/// Reads the first private key of a PEM file (PKCS#8, SEC1 or PKCS#1).
///
/// # Errors
/// When the file can't be read or holds no private key.
pub fn read_private_key(path: &Path) -> Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_file(path).with_context(|| format!("failed to read a private key from {}", path.display()))
}

/// Reads the pool's CA certificates (more than one while a CA is being replaced).
///
/// # Errors
/// When the file can't be read or a certificate in it can't be a trust anchor.
pub fn read_roots(path: &Path) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates(path)? {
        roots.add(certificate).with_context(|| format!("failed to trust a certificate of {}", path.display()))?;
    }
    Ok(roots)
}

/// What a node of the pool presents and trusts.
#[derive(Debug)]
pub struct PoolCredentials {
    pub roots: Arc<RootCertStore>,
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
}

/// QUIC server side of the pool: TLS 1.3, and the client must show a certificate of the pool's CA.
///
/// # Errors
/// When the certificate and the key do not belong together.
pub fn pool_server(credentials: &PoolCredentials) -> Result<ServerConfig> {
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&credentials.roots), provider())
        .build()
        .context("failed to build the verifier of the pool's nodes")?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .context("failed to choose TLS 1.3")?
        .with_client_cert_verifier(verifier)
        .with_single_cert(credentials.chain.clone(), credentials.key.clone_key())
        .context("failed to use the node's certificate and key")?;
    config.alpn_protocols = vec![POOL_ALPN.to_vec()];
    // A resumed session would skip the look at the peer's certificate; full handshakes are rare and cheap here.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(config)
}

/// QUIC client side of the pool: TLS 1.3, verifies the server against the pool's CA and shows its own certificate.
///
/// # Errors
/// When the certificate and the key do not belong together.
pub fn pool_client(credentials: &PoolCredentials) -> Result<ClientConfig> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .context("failed to choose TLS 1.3")?
        .with_root_certificates(Arc::clone(&credentials.roots))
        .with_client_auth_cert(credentials.chain.clone(), credentials.key.clone_key())
        .context("failed to use the node's certificate and key")?;
    config.alpn_protocols = vec![POOL_ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// What mail clients and sending servers meet: TLS 1.2 and 1.3, no client certificate asked for, no ALPN
/// (mail clients send none that we could insist on).
///
/// # Errors
/// When a file can't be read or the certificate and the key do not belong together.
pub fn mail_server(certificate: &Path, key: &Path) -> Result<Arc<ServerConfig>> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13, &TLS12])
        .context("failed to choose TLS 1.2 and 1.3")?
        .with_no_client_auth()
        .with_single_cert(read_certificates(certificate)?, read_private_key(key)?)
        .with_context(|| format!("failed to use {} with {}", certificate.display(), key.display()))?;
    // Tickets keep no state per client here, unlike the default cache of 256 sessions.
    config.ticketer =
        rustls::crypto::aws_lc_rs::Ticketer::new().context("failed to make the key of the session tickets")?;
    Ok(Arc::new(config))
}

/// What dials a back end's IMAP, POP3 or LMTP over TLS: verified against the pool's CA, under the name
/// `NAME.backend.autocluster.internal` (see [`crate::pki::Role::node_server_name`]).
///
/// # Errors
/// When the CA file can't be read.
pub fn backend_client(ca: &Path) -> Result<Arc<ClientConfig>> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13, &TLS12])
        .context("failed to choose TLS 1.2 and 1.3")?
        .with_root_certificates(read_roots(ca)?)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::ServerName;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::pki::{self, IssueRequest, Role};

    fn pool_with_node(dir: &Path, name: &str) -> pki::Issued {
        pki::init(dir, false).unwrap();
        pki::issue(&IssueRequest { dir, role: Role::Backend, name, out: None, sans: &[], force: false }).unwrap()
    }

    async fn handshake(client: Arc<ClientConfig>, server: Arc<ServerConfig>, name: &str) -> std::io::Result<Vec<u8>> {
        let (near, far) = tokio::io::duplex(16 * 1024);
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let serve = async {
            let mut stream = tokio_rustls::TlsAcceptor::from(server).accept(far).await?;
            stream.write_all(b"220 ready").await?;
            stream.shutdown().await
        };
        let dial = async {
            let mut stream = tokio_rustls::TlsConnector::from(client).connect(name, near).await?;
            let mut text = Vec::new();
            stream.read_to_end(&mut text).await?;
            std::io::Result::Ok(text)
        };
        let (served, dialled) = tokio::join!(serve, dial);
        let text = dialled?;
        served.map(|()| text)
    }

    #[tokio::test]
    async fn a_back_end_is_verified_against_the_pool_ca_and_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let issued = pool_with_node(dir.path(), "be1");
        let server = mail_server(&issued.certificate, &issued.key).unwrap();
        let client = backend_client(&dir.path().join(pki::CA_CERTIFICATE_FILE)).unwrap();
        let right = Role::Backend.node_server_name("be1");
        let text = handshake(Arc::clone(&client), Arc::clone(&server), &right).await.unwrap();
        assert_eq!(text, b"220 ready");
        let wrong = Role::Backend.node_server_name("be2");
        handshake(client, Arc::clone(&server), &wrong).await.unwrap_err();

        let other = tempfile::tempdir().unwrap();
        pki::init(other.path(), false).unwrap();
        let stranger = backend_client(&other.path().join(pki::CA_CERTIFICATE_FILE)).unwrap();
        handshake(stranger, server, &right).await.unwrap_err();
    }

    #[tokio::test]
    async fn mail_clients_may_speak_tls_1_2() {
        let dir = tempfile::tempdir().unwrap();
        let issued = pool_with_node(dir.path(), "be1");
        let server = mail_server(&issued.certificate, &issued.key).unwrap();
        assert!(server.alpn_protocols.is_empty());
        let old = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS12])
            .unwrap()
            .with_root_certificates(read_roots(&dir.path().join(pki::CA_CERTIFICATE_FILE)).unwrap())
            .with_no_client_auth();
        handshake(Arc::new(old), server, &Role::Backend.server_name()).await.unwrap();
    }

    #[test]
    fn errors_name_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let issued = pool_with_node(dir.path(), "be1");
        let missing = dir.path().join("missing.pem");
        let error = format!("{:#}", mail_server(&missing, &issued.key).unwrap_err());
        assert!(error.contains("missing.pem"), "{error}");
        let error = format!("{:#}", mail_server(&issued.key, &issued.key).unwrap_err());
        assert!(error.contains("be1.key holds no certificate"), "{error}");
        let other = tempfile::tempdir().unwrap();
        let stranger = pool_with_node(other.path(), "be1");
        assert!(mail_server(&issued.certificate, &stranger.key).is_err(), "key of another certificate");
    }
}
