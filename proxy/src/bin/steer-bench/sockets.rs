//! A network namespace of the bench's own, with connections to the virtual addresses in it.

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::AsRawFd,
    process::Command,
};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, unshare};
use socket2::{Domain, Protocol, Socket, Type};

use crate::frames::{self, Family};

/// Connections of each family.
pub(crate) const CONNECTIONS: u32 = 1 << 16;

/// Everything that is addressed to in the namespace is local to it.
const ROUTES: [&[&str]; 5] = [
    &["link", "set", "lo", "up"],
    &["route", "add", "local", "10.77.0.0/24", "dev", "lo"],
    &["route", "add", "local", "10.200.0.0/16", "dev", "lo"],
    &["-6", "route", "add", "local", "fd77::/64", "dev", "lo"],
    &["-6", "route", "add", "local", "fd00:200::/32", "dev", "lo"],
];

/// Leaves the machine's network, and its mounts, for the rest of this process's life.
///
/// # Errors
/// Not root, or no `ip`.
pub(crate) fn leave_the_network() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
        .context("failed to make a network namespace: the bench needs root")?;
    for arguments in ROUTES {
        let output = Command::new("ip").args(arguments).output().context("failed to run ip")?;
        if !output.status.success() {
            bail!("ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
    }
    // The connections wait in the accept queue, where they need no file descriptor.
    set("core/somaxconn", &(2 * CONNECTIONS).to_string())
}

/// Has the kernel make SYN cookies whenever it is asked for one, as the daemon does.
///
/// # Errors
/// The kernel refused.
pub(crate) fn allow_cookies() -> Result<()> {
    set("ipv4/tcp_syncookies", "2")
}

fn set(name: &str, value: &str) -> Result<()> {
    std::fs::write(format!("/proc/sys/net/{name}"), value).with_context(|| format!("failed to set {name}"))
}

/// Makes [`CONNECTIONS`] established connections to the VIP of a family; they live as long as the listener.
///
/// # Errors
/// The kernel refused one.
pub(crate) fn connect(family: Family) -> Result<Socket> {
    let vip = SocketAddr::new(vip(family), frames::SERVICE);
    let listener = socket(family)?;
    listener.bind(&vip.into()).with_context(|| format!("failed to bind {vip}"))?;
    // A queue that is full gives no SYN cookie.
    listener.listen(i32::try_from(2 * CONNECTIONS)?)?;
    for k in 0..CONNECTIONS {
        let from = SocketAddr::new(client(family, k), frames::SOCKETS_PORT);
        connect_and_vanish(family, from, vip).with_context(|| format!("failed to connect {from} to {vip}"))?;
    }
    Ok(listener)
}

/// The client's end is gone without a packet: it would be another socket in the kernel's table, and need a descriptor.
fn connect_and_vanish(family: Family, from: SocketAddr, to: SocketAddr) -> Result<()> {
    let client = socket(family)?;
    client.bind(&from.into())?;
    client.connect(&to.into())?;
    let on: libc::c_int = 1;
    // SAFETY: the option takes one int, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            client.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_REPAIR,
            (&raw const on).cast(),
            size_of_val(&on).try_into()?,
        )
    };
    nix::errno::Errno::result(result).context("failed to set TCP_REPAIR")?;
    Ok(())
}

fn socket(family: Family) -> Result<Socket> {
    let domain = match family {
        Family::V4 => Domain::IPV4,
        Family::V6 => Domain::IPV6,
    };
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
    match family {
        Family::V4 => socket.set_freebind_v4(true)?,
        Family::V6 => socket.set_freebind_v6(true)?,
    }
    Ok(socket)
}

fn vip(family: Family) -> IpAddr {
    match family {
        Family::V4 => frames::VIP_V4.into(),
        Family::V6 => frames::VIP_V6.into(),
    }
}

fn client(family: Family, k: u32) -> IpAddr {
    match family {
        Family::V4 => frames::connected_v4(k).into(),
        Family::V6 => frames::connected_v6(k).into(),
    }
}
