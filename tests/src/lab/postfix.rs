//! Postfix on a back end, in front of the same mailboxes as Dovecot: Dovecot 2.3 takes no UTF-8 address by LMTP.
//!
//! Whoever is in Dovecot's passwd-file gets mail, and Postfix has no list of its own: it takes every address of the
//! back end's domains and leaves the question to Dovecot's delivery agent. A user whom Dovecot does not know (yet: it
//! looks at its file once a second) is tried again and not bounced.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;

use super::layout::Layout;
use super::spec::Host;
use super::users::SHARED_DOMAIN;
use super::{backend, process};

pub(super) const PROCESS: &str = "postfix";
/// The port of SMTP.
pub(super) const PORT: u16 = 25;
/// Dovecot's delivery agent; by `-e` it leaves what it refuses to Postfix.
const LDA: &str = "/usr/lib/dovecot/dovecot-lda";
/// Postfix's own scripts look at all of its files first, two seconds long; the rest is for a busy machine.
const START_LIMIT: Duration = Duration::from_secs(15);

/// Starts Postfix without waiting for it.
pub(super) fn start(layout: &Layout, host: Host) -> anyhow::Result<()> {
    let dir = dir(layout, host);
    // Not one in the other: Postfix wants all below its configuration to be root's. It fills the queue itself.
    let (config, queue) = (dir.join("config"), dir.join("queue"));
    for made in [&config, &queue] {
        fs::create_dir_all(made).with_context(|| format!("failed to create {}", made.display()))?;
    }
    for (name, text) in [("main.cf", main_config(layout, host)), ("master.cf", master_config(layout, host))] {
        let path = config.join(name);
        fs::write(&path, text).with_context(|| format!("failed to write {}", path.display()))?;
    }
    // In the foreground, each of the two programs replaces itself by the next: the last is Postfix's master.
    let argv = ["postfix", "-c", &config.display().to_string(), "start-fg"].map(str::to_owned);
    process::start(layout, host, PROCESS, &argv)?;
    Ok(())
}

/// Waits until it greets.
pub(super) fn await_ready(layout: &Layout, host: Host) -> anyhow::Result<()> {
    process::await_ready(layout, host, PROCESS, START_LIMIT, || {
        Ok(backend::greeting(layout, host, SocketAddr::from((host.v4(), PORT)))?.starts_with("220 "))
    })?;
    Ok(())
}

fn dir(layout: &Layout, host: Host) -> PathBuf {
    layout.host_dir(host).join("postfix")
}

fn main_config(layout: &Layout, host: Host) -> String {
    format!(
        "# One back end of the lab; see tests/src/lab/postfix.rs.\n\
         compatibility_level = 3.7\n\
         queue_directory = {dir}/queue\n\
         data_directory = {dir}/data\n\
         # start-fg's standard output, which is the log of this process.\n\
         maillog_file = /dev/stdout\n\
         myhostname = {host}.test\n\
         inet_interfaces = {v4}, {v6}\n\
         inet_protocols = all\n\
         smtputf8_enable = yes\n\
         # The front ends: no limit on what comes from so few addresses.\n\
         mynetworks = 10.77.0.0/24, [fd77::]/64\n\
         smtpd_relay_restrictions = reject_unauth_destination\n\
         # There is no DNS in a lab.\n\
         disable_dns_lookups = yes\n\
         smtpd_peername_lookup = no\n\
         # Dovecot knows the users, and what else it takes is no business of Postfix.\n\
         mydestination =\n\
         virtual_mailbox_domains = {host}.test, {SHARED_DOMAIN}\n\
         virtual_mailbox_maps = static:all\n\
         virtual_transport = dovecot\n\
         dovecot_destination_recipient_limit = 1\n\
         recipient_delimiter = +\n\
         message_size_limit = 0\n\
         # Nothing leaves a lab: a message that cannot be returned is dropped.\n\
         local_transport = error:5.1.2 no local mail\n\
         default_transport = error:5.4.4 no way out of the lab\n\
         alias_maps =\n\
         alias_database =\n\
         fast_flush_domains =\n\
         # What waits for Dovecot is tried again at once.\n\
         queue_run_delay = 1s\n\
         minimal_backoff_time = 1s\n\
         maximal_backoff_time = 2s\n",
        v4 = host.v4(),
        v6 = host.v6(),
        dir = dir(layout, host).display(),
    )
}

/// The daemons that taking mail and delivering it by a pipe need; none in a chroot.
fn master_config(layout: &Layout, host: Host) -> String {
    format!(
        "# service type private unprivileged chroot wakeup maxproc command\n\
         smtp inet n - n - - smtpd\n\
         postlog unix-dgram n - n - 1 postlogd\n\
         cleanup unix n - n - 0 cleanup\n\
         qmgr unix n - n 1 1 qmgr\n\
         rewrite unix - - n - - trivial-rewrite\n\
         bounce unix - - n - 0 bounce\n\
         defer unix - - n - 0 bounce\n\
         trace unix - - n - 0 bounce\n\
         proxymap unix - - n - - proxymap\n\
         anvil unix - - n - 1 anvil\n\
         error unix - - n - - error\n\
         retry unix - - n - - error\n\
         showq unix n - n - - showq\n\
         # -a is for Sieve alone. Without it the agent takes the user for an address, and ends if it is not ASCII.\n\
         dovecot unix - n n - - pipe -o soft_bounce=yes flags=DR user={user}\n  \
           argv={LDA} -e -c {config} -f ${{sender}} -a postmaster@{host}.test -d ${{user}}@${{domain}}\n",
        user = backend::MAIL_USER,
        config = backend::dovecot_config_file(layout, host).display(),
    )
}
