use std::os::unix::fs::PermissionsExt;

use super::*;

fn request<'a>(dir: &'a Path, role: Role, name: &'a str) -> IssueRequest<'a> {
    IssueRequest { dir, role, name, out: None, sans: &[], force: false }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn init_writes_secrets_that_only_the_owner_reads() {
    let dir = tempfile::tempdir().unwrap();
    let pki = dir.path().join("deep/pki");
    init(&pki, false).unwrap();
    assert_eq!(mode(&pki.join(CA_KEY_FILE)), 0o600);
    assert_eq!(mode(&pki.join(POOL_KEY_FILE)), 0o600);
    let text = fs::read_to_string(pki.join(POOL_KEY_FILE)).unwrap();
    let key = read_pool_key(&pki.join(POOL_KEY_FILE)).unwrap();
    assert_eq!(format!("{:032x}", u128::from_be_bytes(key)), text.trim());
    assert_eq!(fs::read_dir(&pki).unwrap().count(), 3, "no temporary file stays");
}

#[test]
fn init_never_replaces_a_ca_unless_forced() {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path(), false).unwrap();
    let before = fs::read(dir.path().join(CA_CERTIFICATE_FILE)).unwrap();
    let error = format!("{:#}", init(dir.path(), false).unwrap_err());
    assert!(error.contains("--force"), "{error}");
    assert_eq!(fs::read(dir.path().join(CA_CERTIFICATE_FILE)).unwrap(), before);
    init(dir.path(), true).unwrap();
    assert_ne!(fs::read(dir.path().join(CA_CERTIFICATE_FILE)).unwrap(), before);
}

#[test]
fn init_refuses_when_only_the_pool_key_is_there() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(POOL_KEY_FILE), "x").unwrap();
    assert!(init(dir.path(), false).is_err());
    assert!(!dir.path().join(CA_KEY_FILE).exists());
}

#[test]
fn issue_writes_a_chain_with_the_node_and_role_names() {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path(), false).unwrap();
    let out = dir.path().join("out");
    let sans = ["Mail.Example.org".to_owned(), "10.0.0.7".to_owned(), "fd77::1".to_owned()];
    let issued =
        issue(&IssueRequest { out: Some(&out), sans: &sans, ..request(dir.path(), Role::Backend, "be1") }).unwrap();
    assert_eq!(issued.certificate, out.join("be1.pem"));
    assert_eq!(mode(&issued.key), 0o600);
    let chain = crate::tls::read_certificates(&issued.certificate).unwrap();
    let certificate = webpki::EndEntityCert::try_from(&chain[0]).unwrap();
    let names: Vec<_> = certificate.valid_dns_names().collect();
    assert_eq!(names, ["be1.backend.autocluster.internal", "backend.autocluster.internal", "mail.example.org"]);
}

#[test]
fn issue_refuses_to_overwrite_and_names_the_missing_ca() {
    let dir = tempfile::tempdir().unwrap();
    let error = format!("{:#}", issue(&request(dir.path(), Role::Frontend, "fe1")).unwrap_err());
    assert!(error.contains("pki init"), "{error}");
    init(dir.path(), false).unwrap();
    issue(&request(dir.path(), Role::Frontend, "fe1")).unwrap();
    let error = format!("{:#}", issue(&request(dir.path(), Role::Frontend, "fe1")).unwrap_err());
    assert!(error.contains("--force"), "{error}");
    issue(&IssueRequest { force: true, ..request(dir.path(), Role::Frontend, "fe1") }).unwrap();
}

#[test]
fn issue_refuses_names_that_would_lie() {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path(), false).unwrap();
    for name in ["", "a.b", "Fe1", "-a", "a-", "a/b", "ä", &"a".repeat(64), "ca", "pool"] {
        assert!(issue(&request(dir.path(), Role::Frontend, name)).is_err(), "{name:?}");
    }
    for san in ["fe1.frontend.autocluster.internal", "X.AutoCluster.Internal", "autocluster.internal", "a b", ""] {
        let sans = [san.to_owned()];
        let request = IssueRequest { sans: &sans, ..request(dir.path(), Role::Backend, "be1") };
        assert!(issue(&request).is_err(), "{san:?}");
    }
}

#[test]
fn an_identity_is_one_label_and_a_role() {
    assert_eq!(identity_in_name("fe1.frontend.autocluster.internal"), Some(("fe1", Role::Frontend)));
    assert_eq!(identity_in_name("be-1.backend.autocluster.internal"), Some(("be-1", Role::Backend)));
    for other in [
        "frontend.autocluster.internal",
        "a.b.frontend.autocluster.internal",
        "fe1.admin.autocluster.internal",
        "fe1.frontend.autocluster.internal.example.org",
        "fe1.frontendautocluster.internal",
        ".frontend.autocluster.internal",
        "autocluster.internal",
        "",
    ] {
        assert_eq!(identity_in_name(other), None, "{other}");
    }
}

#[test]
fn a_pool_key_is_exactly_32_digits() {
    assert_eq!(parse_pool_key("000102030405060708090a0b0c0d0e0f").unwrap()[15], 15);
    for bad in ["", "00", "+00102030405060708090a0b0c0d0e0f", "g00102030405060708090a0b0c0d0e0f"] {
        assert_eq!(parse_pool_key(bad), None, "{bad}");
    }
}
