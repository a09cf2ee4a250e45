//! The pool's own certificate authority: one CA per pool, one certificate per node, and the key of the
//! steering hash. Everything lives in plain PEM and hex files that an operator can copy and inspect.
//!
//! Absent on purpose: revocation lists. A node is expelled by making a new CA and issuing anew.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

/// Domain of the names that only this module writes into certificates (`.internal` is reserved for private use).
pub const POOL_DOMAIN: &str = "autocluster.internal";
/// File names inside a PKI directory.
pub const CA_CERTIFICATE_FILE: &str = "ca.pem";
pub const CA_KEY_FILE: &str = "ca.key";
pub const POOL_KEY_FILE: &str = "pool.key";
/// Length of the key that keys the steering hash on every front end.
pub const POOL_KEY_BYTES: usize = 16;
/// Longest DNS label (RFC 1035, section 2.3.4); a node's name is one label.
pub const MAX_NODE_NAME_BYTES: usize = 63;

const DAY: Duration = Duration::from_secs(24 * 3600);
const CA_VALIDITY: Duration = DAY.saturating_mul(3650);
const NODE_VALIDITY: Duration = DAY.saturating_mul(2 * 365);
/// Certificates are valid from a little before they are made, so that nodes with slow clocks accept them.
const CLOCK_SKEW: Duration = Duration::from_secs(3600);
const SECRET_MODE: u32 = 0o600;
const PUBLIC_MODE: u32 = 0o644;

/// What a node is in the pool; part of the names in its certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Takes part in the membership and in steering, accepts connections from every node.
    Frontend,
    /// An agent beside a mail server: it dials front ends and serves its directory over streams.
    Backend,
}

impl Role {
    /// The role as it is written in certificates and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Frontend => "frontend",
            Self::Backend => "backend",
        }
    }

    /// The name every node of this role answers to: `ROLE.autocluster.internal`.
    pub fn server_name(self) -> String {
        format!("{}.{POOL_DOMAIN}", self.as_str())
    }

    /// The name only one node answers to: `NAME.ROLE.autocluster.internal`.
    pub fn node_server_name(self, name: &str) -> String {
        format!("{name}.{}", self.server_name())
    }
}

impl std::str::FromStr for Role {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "frontend" => Ok(Self::Frontend),
            "backend" => Ok(Self::Backend),
            other => bail!("unknown role {other:?}: it is \"frontend\" or \"backend\""),
        }
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// True when `name` can be a node's name: one lower-case DNS label.
pub fn is_node_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !name.is_empty()
        && name.len() <= MAX_NODE_NAME_BYTES
        && name.bytes().all(allowed)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

/// The identity that a certificate's DNS name states, if it is of the form `NAME.ROLE.autocluster.internal`.
pub fn identity_in_name(dns_name: &str) -> Option<(&str, Role)> {
    let rest = dns_name.strip_suffix(POOL_DOMAIN)?.strip_suffix('.')?;
    let (name, role) = rest.rsplit_once('.')?;
    let role = role.parse().ok()?;
    is_node_name(name).then_some((name, role))
}

/// Makes a pool's CA (`ca.pem`, `ca.key`) and steering key (`pool.key`) in `dir`, which is created if needed.
///
/// # Errors
/// When one of the files is there already and `force` is false, or when a file can't be written.
pub fn init(dir: &Path, force: bool) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("failed to create {}", dir.display()))?;
    let (certificate, key) = (dir.join(CA_CERTIFICATE_FILE), dir.join(CA_KEY_FILE));
    let pool_key = dir.join(POOL_KEY_FILE);
    refuse_overwriting(&[&certificate, &key, &pool_key], force)
        .context("a new CA makes every certificate of the old one worthless")?;
    let ca = make_ca()?;
    write_file(&key, &ca.key_pem, SECRET_MODE)?;
    write_file(&certificate, &ca.certificate_pem, PUBLIC_MODE)?;
    write_file(&pool_key, &random_pool_key()?, SECRET_MODE)
}

/// What [`issue`] is asked for.
#[derive(Debug, Clone)]
pub struct IssueRequest<'a> {
    /// The PKI directory that [`init`] made.
    pub dir: &'a Path,
    pub role: Role,
    /// One lower-case DNS label, unique in the pool for its role.
    pub name: &'a str,
    /// Where NAME.pem and NAME.key go; the PKI directory by default.
    pub out: Option<&'a Path>,
    /// Further DNS names and IP addresses for the certificate (for mail clients or back ends that check them).
    pub sans: &'a [String],
    pub force: bool,
}

/// The files that [`issue`] wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// Issues a node's certificate chain and key.
///
/// # Errors
/// When the name or a SAN is not acceptable, the CA can't be read, or a file exists and `force` is false.
pub fn issue(request: &IssueRequest<'_>) -> Result<Issued> {
    let sans = subject_names(request)?;
    let out = request.out.unwrap_or(request.dir);
    let issued = Issued {
        certificate: out.join(format!("{}.pem", request.name)),
        key: out.join(format!("{}.key", request.name)),
    };
    let reserved = [CA_CERTIFICATE_FILE, CA_KEY_FILE, POOL_KEY_FILE];
    let clashes = |path: &Path| path.file_name().is_some_and(|file| reserved.iter().any(|r| file == *r));
    ensure!(
        !clashes(&issued.certificate) && !clashes(&issued.key),
        "the name {:?} belongs to the pool's own files",
        request.name
    );
    refuse_overwriting(&[&issued.certificate, &issued.key], request.force)?;
    let (certificate_pem, key_pem) = sign_node(request, sans)?;
    fs::create_dir_all(out).with_context(|| format!("failed to create {}", out.display()))?;
    write_file(&issued.key, &key_pem, SECRET_MODE)?;
    write_file(&issued.certificate, &certificate_pem, PUBLIC_MODE)?;
    Ok(issued)
}

/// Reads the 16-byte steering key that [`init`] wrote as hexadecimal digits.
///
/// # Errors
/// When the file can't be read or does not hold exactly 32 hexadecimal digits.
pub fn read_pool_key(path: &Path) -> Result<[u8; POOL_KEY_BYTES]> {
    let text = fs::read_to_string(path).with_context(|| format!("failed to read {}", path.display()))?;
    parse_pool_key(text.trim())
        .with_context(|| format!("{} does not hold {} hexadecimal digits", path.display(), 2 * POOL_KEY_BYTES))
}

fn parse_pool_key(text: &str) -> Option<[u8; POOL_KEY_BYTES]> {
    // from_str_radix would take a sign, so the digits are checked first.
    if text.len() != 2 * POOL_KEY_BYTES || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    u128::from_str_radix(text, 16).ok().map(u128::to_be_bytes)
}

struct CaPem {
    certificate_pem: String,
    key_pem: String,
}

fn make_ca() -> Result<CaPem> {
    let key = KeyPair::generate().context("failed to generate the CA's key")?;
    let mut params = CertificateParams::default();
    // A number of its own, so that two pools' CAs are never mistaken for each other in a log.
    let mut serial = [0u8; 4];
    fill_randomly(&mut serial)?;
    let serial = u32::from_be_bytes(serial);
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("AutoCluster pool CA {serial:08x}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_validity(&mut params, CA_VALIDITY);
    let certificate = params.self_signed(&key).context("failed to sign the CA's certificate")?;
    Ok(CaPem { certificate_pem: certificate.pem(), key_pem: key.serialize_pem() })
}

fn sign_node(request: &IssueRequest<'_>, sans: Vec<String>) -> Result<(String, String)> {
    let (ca_path, key_path) = (request.dir.join(CA_CERTIFICATE_FILE), request.dir.join(CA_KEY_FILE));
    let read = |path: &Path| {
        fs::read_to_string(path)
            .with_context(|| format!("failed to read {} (`autocluster pki init` makes it)", path.display()))
    };
    let ca_key = KeyPair::from_pem(&read(&key_path)?)
        .with_context(|| format!("failed to parse the CA's key {}", key_path.display()))?;
    let issuer = Issuer::from_ca_cert_pem(&read(&ca_path)?, ca_key)
        .with_context(|| format!("failed to parse the CA's certificate {}", ca_path.display()))?;
    let key = KeyPair::generate().context("failed to generate the node's key")?;
    let mut params = CertificateParams::new(sans).context("failed to write the names into the certificate")?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, request.name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    set_validity(&mut params, NODE_VALIDITY);
    let certificate = params.signed_by(&key, &issuer).context("failed to sign the node's certificate")?;
    Ok((certificate.pem(), key.serialize_pem()))
}

/// The names of a node's certificate: its own, its role's, and what the operator added.
fn subject_names(request: &IssueRequest<'_>) -> Result<Vec<String>> {
    ensure!(
        is_node_name(request.name),
        "{:?} can't be a node's name: use 1 to {MAX_NODE_NAME_BYTES} lower-case letters, digits and inner hyphens",
        request.name
    );
    let mut names = vec![request.role.node_server_name(request.name), request.role.server_name()];
    for san in request.sans {
        let lower = san.to_ascii_lowercase();
        // Such a name would give the node a second identity.
        ensure!(
            lower != POOL_DOMAIN && !lower.ends_with(&format!(".{POOL_DOMAIN}")),
            "{san:?}: names under {POOL_DOMAIN} follow from the role and the name"
        );
        ensure!(
            san.parse::<IpAddr>().is_ok() || is_dns_name(&lower),
            "{san:?} is neither a DNS name nor an IP address"
        );
        names.push(lower);
    }
    Ok(names)
}

fn is_dns_name(name: &str) -> bool {
    let name = name.strip_prefix("*.").unwrap_or(name);
    name.len() <= 253 && name.split('.').all(|label| is_node_name(&label.replace('_', "-")))
}

fn set_validity(params: &mut CertificateParams, validity: Duration) {
    let now = SystemTime::now();
    params.not_before = (now - CLOCK_SKEW).into();
    params.not_after = (now + validity).into();
}

fn random_pool_key() -> Result<String> {
    let mut key = [0u8; POOL_KEY_BYTES];
    fill_randomly(&mut key)?;
    Ok(format!("{:032x}\n", u128::from_be_bytes(key)))
}

fn fill_randomly(bytes: &mut [u8]) -> Result<()> {
    aws_lc_rs::rand::fill(bytes).context("failed to get random bytes")
}

fn refuse_overwriting(paths: &[&Path], force: bool) -> Result<()> {
    for path in paths {
        // symlink_metadata: a dangling link is also something that was put there on purpose.
        if !force && fs::symlink_metadata(path).is_ok() {
            bail!("{} exists: give --force to replace it", path.display());
        }
    }
    Ok(())
}

/// Writes through a temporary file of the right mode, so that no secret is ever readable, or half there.
fn write_file(path: &Path, content: &str, mode: u32) -> Result<()> {
    let temporary = path.with_extension(format!("tmp.{}", std::process::id()));
    let write = || -> std::io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(content.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    let result = write();
    if result.is_err() {
        // The first error is the one to tell; the leftover may not even exist.
        drop(fs::remove_file(&temporary));
    }
    result.with_context(|| format!("failed to write {}", path.display()))
}

#[cfg(test)]
mod tests;
