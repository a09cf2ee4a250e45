//! A back end: a real Dovecot (LMTP, IMAP, POP3), a real Postfix (SMTP) and our agent beside them.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use nix::unistd::{Gid, Uid, chown};

use super::layout::Layout;
use super::spec::{Host, Spec};
use super::{frontend, namespace, pki, postfix, process, users};

pub(super) const DOVECOT: &str = "dovecot";
pub(super) const AGENT: &str = "agent";
/// Debian's `mail`: on every machine, with no login and no files of value.
pub(super) const MAIL_USER: &str = "mail";
const MAIL_UID: u32 = 8;
const MAIL_GID: u32 = 8;
/// Dovecot takes a tenth of a second; the rest is for a busy machine.
const START_LIMIT: Duration = Duration::from_secs(15);
const GREETING_LIMIT: Duration = Duration::from_secs(2);

/// What a back end offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    Lmtp,
    Imap,
    Pop3,
}

impl Service {
    const ALL: [Self; 3] = [Self::Lmtp, Self::Imap, Self::Pop3];

    /// The port without TLS.
    #[must_use]
    pub const fn port(self) -> u16 {
        match self {
            Self::Lmtp => 24,
            Self::Imap => 143,
            Self::Pop3 => 110,
        }
    }

    const fn greeting(self) -> &'static str {
        match self {
            Self::Lmtp => "220 ",
            Self::Imap => "* OK",
            Self::Pop3 => "+OK",
        }
    }
}

/// Dovecot's configuration; Postfix hands it to the delivery agent.
pub(super) fn dovecot_config_file(layout: &Layout, host: Host) -> PathBuf {
    layout.host_dir(host).join("dovecot.conf")
}

/// Starts Dovecot without waiting for it.
pub(super) fn start_dovecot(layout: &Layout, spec: &Spec, host: Host) -> anyhow::Result<()> {
    let dir = layout.host_dir(host);
    let config = dovecot_config_file(layout, host);
    if !config.exists() {
        fs::write(&config, dovecot_config(layout, spec, host))
            .with_context(|| format!("failed to write {}", config.display()))?;
        let mail = dir.join("mail");
        fs::create_dir_all(&mail)?;
        chown(&mail, Some(Uid::from_raw(MAIL_UID)), Some(Gid::from_raw(MAIL_GID)))
            .with_context(|| format!("failed to change the owner of {}", mail.display()))?;
    }
    let argv = ["dovecot", "-F", "-c", &config.display().to_string()].map(str::to_owned);
    process::start(layout, host, DOVECOT, &argv)?;
    Ok(())
}

/// Waits until all three services greet.
pub(super) fn await_dovecot(layout: &Layout, host: Host) -> anyhow::Result<()> {
    for service in Service::ALL {
        process::await_ready(layout, host, DOVECOT, START_LIMIT, || {
            let line = greeting(layout, host, SocketAddr::from((host.v4(), service.port())))?;
            Ok(line.starts_with(service.greeting()))
        })?;
    }
    Ok(())
}

/// The first line that a server says to a host.
pub(super) fn greeting(layout: &Layout, from: Host, server: SocketAddr) -> anyhow::Result<String> {
    namespace::enter(&layout.namespace(from), || {
        let stream = TcpStream::connect_timeout(&server, GREETING_LIMIT)?;
        stream.set_read_timeout(Some(GREETING_LIMIT))?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        Ok(line)
    })
}

fn dovecot_config(layout: &Layout, spec: &Spec, host: Host) -> String {
    let dir = layout.host_dir(host);
    let (certificate, key) = if spec.bare { (String::new(), String::new()) } else { tls_lines(layout, host) };
    let ssl = if spec.bare { "no" } else { "yes" };
    format!(
        "# One back end of the lab; see tests/src/lab/backend.rs.\n\
         base_dir = {dir}/dovecot\n\
         state_dir = {dir}/dovecot\n\
         instance_name = {host}\n\
         hostname = {host}.test\n\
         log_path = /dev/stderr\n\
         auth_verbose = yes\n\
         listen = *, ::\n\
         protocols = imap pop3 lmtp\n\
         postmaster_address = postmaster@{host}.test\n\
         recipient_delimiter = +\n\
         # Empty: every character, UTF-8 too.\n\
         auth_username_chars =\n\
         auth_mechanisms = plain login\n\
         auth_failure_delay = 0\n\
         ssl = {ssl}\n{certificate}{key}\
         mail_location = maildir:{dir}/mail/%d/%n\n\
         mail_uid = {MAIL_UID}\n\
         mail_gid = {MAIL_GID}\n\
         first_valid_uid = {MAIL_UID}\n\
         # All sessions come from the few addresses of the front ends.\n\
         mail_max_userip_connections = 10000\n\
         passdb {{\n  driver = passwd-file\n  args = username_format=%u {users}\n}}\n\
         userdb {{\n  driver = passwd-file\n  args = username_format=%u {users}\n}}\n\
         service lmtp {{\n  inet_listener lmtp {{\n    port = 24\n  }}\n}}\n\
         service imap-login {{\n  service_count = 0\n  client_limit = 4000\n}}\n\
         service pop3-login {{\n  service_count = 0\n  client_limit = 4000\n}}\n\
         service imap {{\n  process_limit = 4000\n}}\n\
         # Postfix's delivery agent is no root, and asks for any user.\n\
         service auth {{\n  unix_listener auth-userdb {{\n    user = {MAIL_USER}\n  }}\n}}\n\
         service stats {{\n  client_limit = 5000\n  unix_listener stats-writer {{\n    user = {MAIL_USER}\n  }}\n}}\n\
         service anvil {{\n  client_limit = 5000\n}}\n",
        dir = dir.display(),
        users = users::file(layout, host.number).display(),
    )
}

fn tls_lines(layout: &Layout, host: Host) -> (String, String) {
    let (certificate, key) = pki::node_files(layout, host);
    (format!("ssl_cert = <{}\n", certificate.display()), format!("ssl_key = <{}\n", key.display()))
}

/// Starts the agent.
pub(super) fn start_agent(layout: &Layout, spec: &Spec, host: Host) -> anyhow::Result<()> {
    let config = layout.host_dir(host).join("agent.toml");
    fs::write(&config, agent_config(layout, spec, host))
        .with_context(|| format!("failed to write {}", config.display()))?;
    let argv = frontend::autocluster_argv("agent", &config)?;
    process::start(layout, host, AGENT, &argv)?;
    Ok(())
}

fn agent_config(layout: &Layout, spec: &Spec, host: Host) -> String {
    let (v4, users) = (host.v4(), users::file(layout, host.number));
    format!(
        "[agent]\nname = \"{host}\"\nfrontends = [{seeds}]\n\n{identity}\n\
         [source.passwd_file]\npath = \"{users}\"\nrecipient_delimiter = \"+\"\n\n\
         [services]\n\
         lmtp = {{ address = \"{v4}:24\" }}\n\
         smtp = {{ address = \"{v4}:{smtp}\" }}\n\
         imap = {{ address = \"{v4}:993\", tls = true }}\n\
         pop3 = {{ address = \"{v4}:995\", tls = true }}\n",
        seeds = frontend::seeds(spec),
        identity = frontend::identity(layout, host),
        users = path(&users),
        smtp = postfix::PORT,
    )
}

fn path(path: &Path) -> String {
    path.display().to_string()
}
