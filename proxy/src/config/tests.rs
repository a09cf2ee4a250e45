use super::*;

struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for file in ["ca.pem", "node.pem", "node.key"] {
            std::fs::write(dir.path().join(file), "").unwrap();
        }
        std::fs::write(dir.path().join("pool.key"), "0123456789abcdefFEDCBA9876543210\n").unwrap();
        Self(dir)
    }

    fn load(&self, text: &str) -> Result<Config, Problems> {
        let file = self.0.path().join("autocluster.toml");
        std::fs::write(&file, text).unwrap();
        load(&file)
    }
}

const GOOD: &str = r#"[node]
name = "fe1"
[identity]
ca = "ca.pem"
certificate = "node.pem"
key = "node.key"
[pool]
listen = "10.77.0.11:7400"
seeds = ["10.77.0.12:7400"]
vips = ["10.77.0.100", "fd77::100"]
key_file = "pool.key"
[steering]
interface = "lo"
[smtp]
hostname = "mx.pool.test"
[scanner]
clamd = "unix:/run/clamav/clamd.ctl"
"#;

#[test]
fn a_good_file_reads_with_its_defaults() {
    let config = Files::new().load(GOOD).unwrap();
    assert_eq!(config.pool.key, SteeringKey { k0: 0x0123_4567_89ab_cdef, k1: 0xfedc_ba98_7654_3210 });
    assert_eq!((config.smtp.port, config.imap.tls_port, config.pop3.port), (25, 993, 110));
    assert_eq!(config.clamd, ClamdAddress::Unix("/run/clamav/clamd.ctl".into()));
    assert!(config.tls.is_none());
    assert_eq!(config.node.control_socket, Path::new(DEFAULT_CONTROL_SOCKET));
}

#[test]
fn faults_come_together_with_key_and_line() {
    let text = GOOD
        .replace("10.77.0.100", "10.77.0.1000")
        .replace("\"lo\"", "\"nosuch0\"\ncolour = 3")
        .replace("unix:/run", "http://run");
    let problems = Files::new().load(&text).unwrap_err();
    let told: Vec<_> = problems.problems.iter().map(|p| (p.line.unwrap(), p.key.as_str())).collect();
    assert_eq!(told, [(10, "pool.vips"), (13, "steering.interface"), (14, "steering.colour"), (18, "scanner.clamd")]);
    assert_eq!(problems.to_string().lines().count(), 4);
}

#[test]
fn what_is_missing_is_named() {
    let problems = Files::new().load("").unwrap_err().problems;
    let keys: Vec<_> = problems.iter().map(|p| p.key.as_str()).collect();
    for key in [
        "node.name",
        "identity.ca",
        "pool.listen",
        "pool.vips",
        "pool.key_file",
        "steering.interface",
        "smtp.hostname",
        "scanner.clamd",
    ] {
        assert!(keys.contains(&key), "{key} of {keys:?}");
    }
}

#[test]
fn one_interface_or_several_are_named() {
    let files = Files::new();
    let with = |value: &str| files.load(&GOOD.replace("\"lo\"", value));
    assert_eq!(with("\"lo\"").unwrap().steering.interfaces, ["lo"]);
    assert_eq!(with("[\"lo\"]").unwrap().steering.interfaces, ["lo"]);
    for (value, faults) in [
        ("[]", &["1 to 4"][..]),
        ("[\"lo\", \"lo\"]", &["lo twice"]),
        ("[\"lo\", \"nosuch0\", \"nosuch1\"]", &["nosuch0", "nosuch1"]),
        ("3", &["a string"]),
        ("[\"lo\", 3]", &["a string"]),
    ] {
        let problems = with(value).unwrap_err().problems;
        assert_eq!(problems.len(), faults.len(), "{value}: {problems:?}");
        for (problem, word) in problems.iter().zip(faults) {
            assert_eq!((problem.line, problem.key.as_str()), (Some(13), "steering.interface"));
            assert!(problem.fault.contains(word), "{value}: {}", problem.fault);
        }
    }
}

#[test]
fn limits_are_read_and_checked() {
    let (files, line) = (Files::new(), GOOD.lines().count() + 2);
    let config = files.load(&format!("{GOOD}[abuse]\nnew_connections_per_second = 0\nprefix_v6 = 64\n")).unwrap();
    assert_eq!((config.abuse.limit.per_second, config.abuse.limit.prefix_v6), (None, 64));
    for (key, value) in
        [("prefix_v4", 0), ("prefix_v4", 288), ("prefix_v6", 65), ("new_connections_per_second", 100_000_000)]
    {
        let problems = files.load(&format!("{GOOD}[abuse]\n{key} = {value}\n")).unwrap_err().problems;
        let told: Vec<_> = problems.iter().map(|p| (p.line, p.key.as_str())).collect();
        assert_eq!(told, [(Some(line), &*format!("abuse.{key}"))], "{value}");
    }
}

#[test]
fn a_pool_key_is_32_hexadecimal_digits() {
    let files = Files::new();
    std::fs::write(files.0.path().join("pool.key"), "0123").unwrap();
    let problems = files.load(GOOD).unwrap_err().problems;
    assert_eq!(problems[0].key, "pool.key_file");
}

/// docs/configuration.md lists every key with its default; it must not lie.
#[test]
fn the_documented_defaults_are_true() {
    let docs = include_str!("../../../docs/configuration.md");
    let config = Files::new().load(GOOD).unwrap();
    let seconds = |d: Duration| d.as_secs_f64().to_string();
    for (key, default) in [
        ("smtp.port", config.smtp.port.to_string()),
        ("smtp.max_message_bytes", config.smtp.max_message_bytes.to_string()),
        ("smtp.max_recipients", config.smtp.max_recipients.to_string()),
        ("smtp.max_sessions", config.smtp.max_sessions.to_string()),
        ("smtp.greet_pause", seconds(config.smtp.greet_pause)),
        ("smtp.command_timeout", seconds(config.smtp.command_timeout)),
        ("smtp.backend_timeout", seconds(config.smtp.backend_timeout)),
        ("imap.port", config.imap.port.to_string()),
        ("imap.tls_port", config.imap.tls_port.to_string()),
        ("imap.max_sessions", config.imap.max_sessions.to_string()),
        ("imap.login_timeout", seconds(config.imap.login_timeout)),
        ("imap.idle_timeout", seconds(config.imap.idle_timeout)),
        ("pop3.port", config.pop3.port.to_string()),
        ("pop3.tls_port", config.pop3.tls_port.to_string()),
        ("steering.mode", format!("{:?}", config.steering.mode.name())),
        ("steering.encapsulation_port", config.steering.encapsulation_port.to_string()),
        ("steering.weight", config.steering.weight.to_string()),
        ("steering.bpffs", format!("{:?}", config.steering.bpffs)),
        ("abuse.new_connections_per_second", config.abuse.limit.per_second.unwrap().to_string()),
        ("abuse.prefix_v4", config.abuse.limit.prefix_v4.to_string()),
        ("abuse.prefix_v6", config.abuse.limit.prefix_v6.to_string()),
        ("abuse.syn_cookies_above", config.abuse.syn_cookies_above.to_string()),
        ("node.shutdown_grace", seconds(config.node.shutdown_grace)),
        ("node.state_dir", format!("{:?}", config.node.state_dir)),
        ("node.control_socket", format!("{:?}", config.node.control_socket)),
        ("log.format", "\"text\"".into()),
        ("log.filter", format!("{:?}", config.log.filter)),
    ] {
        let row = docs
            .lines()
            .find(|line| line.starts_with(&format!("| `{key}` |")))
            .unwrap_or_else(|| panic!("no row for {key}"));
        assert!(row.contains(&format!("| `{default}` |")), "{key}: the default is {default}, the docs say: {row}");
    }
}
