//! Who a node is, by its certificate.

use std::fmt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use rustls::pki_types::CertificateDer;

use crate::pki::{self, Role};
use crate::tls::{self, PoolCredentials};

/// What a peer's certificate says; the TLS handshake has verified that the pool's CA issued it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PeerIdentity {
    pub name: String,
    pub role: Role,
}

impl fmt::Display for PeerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.role, self.name)
    }
}

impl PeerIdentity {
    /// Reads the one name of the form `NAME.ROLE.autocluster.internal` among a certificate's DNS names.
    ///
    /// # Errors
    /// When the certificate can't be parsed or states no identity, or two different ones.
    pub fn from_certificate(certificate: &CertificateDer<'_>) -> Result<Self> {
        let parsed = webpki::EndEntityCert::try_from(certificate).context("failed to parse the certificate")?;
        let mut found: Option<Self> = None;
        for (name, role) in parsed.valid_dns_names().filter_map(pki::identity_in_name) {
            let identity = Self { name: name.to_owned(), role };
            match &found {
                Some(first) if *first != identity => bail!("the certificate names two nodes: {first} and {identity}"),
                _ => found = Some(identity),
            }
        }
        found.context("the certificate names no node of a pool")
    }
}

/// This node's own certificate, key, and the CA it trusts.
#[derive(Debug)]
pub struct Identity {
    credentials: PoolCredentials,
    own: PeerIdentity,
}

impl Identity {
    /// Loads the three files that `autocluster pki` made.
    ///
    /// # Errors
    /// When a file can't be read or parsed, or the certificate states no identity.
    pub fn load(ca: &Path, certificate: &Path, key: &Path) -> Result<Self> {
        let chain = tls::read_certificates(certificate)?;
        let own = chain
            .first()
            .context("no certificate")
            .and_then(PeerIdentity::from_certificate)
            .with_context(|| format!("failed to read the node's identity from {}", certificate.display()))?;
        let roots = tls::read_roots(ca)?.into();
        let credentials = PoolCredentials { roots, chain, key: tls::read_private_key(key)? };
        Ok(Self { credentials, own })
    }

    /// An identity whose certificate states none.
    #[cfg(test)]
    pub(super) fn for_tests(ca: &Path, certificate: &Path, key: &Path) -> Self {
        let credentials = PoolCredentials {
            roots: tls::read_roots(ca).unwrap().into(),
            chain: tls::read_certificates(certificate).unwrap(),
            key: tls::read_private_key(key).unwrap(),
        };
        Self { credentials, own: PeerIdentity { name: String::new(), role: Role::Frontend } }
    }

    /// Name and role of this node.
    pub fn own(&self) -> &PeerIdentity {
        &self.own
    }

    pub(crate) fn credentials(&self) -> &PoolCredentials {
        &self.credentials
    }

    /// A secret that only this node knows and that survives its restart, different for every purpose.
    pub(crate) fn derived_secret(&self, purpose: &str) -> aws_lc_rs::hmac::Tag {
        let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, self.credentials.key.secret_der());
        aws_lc_rs::hmac::sign(&key, purpose.as_bytes())
    }
}
