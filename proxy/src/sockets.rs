//! The TCP connections that the kernel has in this network namespace, by `sock_diag(7)`: those that no process has
//! accepted yet and those that all processes have closed included, which no list of our own could name.

use std::{io, net::SocketAddr};

use anyhow::{Context, Result, anyhow, bail};
use netlink_packet_sock_diag::{
    AF_INET, AF_INET6, IPPROTO_TCP, SockDiagMessage,
    inet::{ExtensionFlags, InetRequest, InetResponseHeader, SocketId, StateFlags},
};
use rtnetlink::packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NLMSG_NOOP, NetlinkBuffer, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, Parseable as _,
};
use rtnetlink::sys::{Socket, protocols::NETLINK_SOCK_DIAG};

/// What one reply of the kernel may hold; it makes replies as large as we ask for, up to this.
const REPLY_BYTES: usize = 32 * 1024;
/// Netlink messages begin at multiples of this.
const ALIGNMENT: usize = 4;
/// The kernel answers at once, or something is very wrong.
const DEADLINE_MS: i32 = 5_000;

/// What of a connection is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum State {
    /// The SYN is answered, the handshake not complete.
    SynReceived,
    Established,
    FinWait1,
    FinWait2,
    CloseWait,
    LastAck,
    Closing,
    /// It has ended; its last packets may be repeated.
    TimeWait,
}

impl State {
    fn from_kernel(state: u8) -> Option<Self> {
        // include/net/tcp_states.h; a request socket is told as TCP_SYN_RECV.
        match state {
            1 => Some(Self::Established),
            3 => Some(Self::SynReceived),
            4 => Some(Self::FinWait1),
            5 => Some(Self::FinWait2),
            6 => Some(Self::TimeWait),
            8 => Some(Self::CloseWait),
            9 => Some(Self::LastAck),
            11 => Some(Self::Closing),
            _ => None,
        }
    }

    fn asked_for() -> StateFlags {
        StateFlags::SYN_RECV
            | StateFlags::ESTABLISHED
            | StateFlags::FIN_WAIT1
            | StateFlags::FIN_WAIT2
            | StateFlags::CLOSE_WAIT
            | StateFlags::LAST_ACK
            | StateFlags::CLOSING
            | StateFlags::TIME_WAIT
    }
}

/// A connection as the kernel knows it; IPv4 addresses are never in their IPv6 form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Connection {
    pub local: SocketAddr,
    pub remote: SocketAddr,
    pub state: State,
}

/// Hands over every connection of the calling thread's network namespace, in no order. One that changes its state
/// meanwhile may be missed or come twice. Blocks for milliseconds.
///
/// # Errors
/// The kernel refuses.
pub fn connections(mut each: impl FnMut(Connection)) -> Result<()> {
    for family in [AF_INET, AF_INET6] {
        dump(family, &mut each).context("failed to list the kernel's TCP connections")?;
    }
    Ok(())
}

fn dump(family: u8, each: &mut impl FnMut(Connection)) -> Result<()> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG).context("failed to open a netlink socket")?;
    socket.bind_auto().context("failed to bind a netlink socket")?;
    socket.send(&request(family), 0).context("failed to ask")?;
    let mut reply = Vec::with_capacity(REPLY_BYTES);
    loop {
        await_reply(&socket)?;
        reply.clear();
        socket.recv(&mut reply, 0).context("failed to read the answer")?;
        if !read_reply(&reply, each)? {
            return Ok(());
        }
    }
}

fn request(family: u8) -> Vec<u8> {
    let socket_id = if family == AF_INET { SocketId::new_v4() } else { SocketId::new_v6() };
    let request = InetRequest {
        family,
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states: State::asked_for(),
        socket_id,
    };
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(SockDiagMessage::InetRequest(request)));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

fn await_reply(socket: &Socket) -> Result<()> {
    use std::os::fd::AsFd as _;

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let mut descriptors = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(DEADLINE_MS).unwrap_or(PollTimeout::MAX);
    match poll(&mut descriptors, timeout) {
        Ok(0) => bail!("the kernel does not answer"),
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
        Err(error) => Err(error).context("failed to wait for the answer"),
    }
}

/// True if more is to come.
fn read_reply(mut bytes: &[u8], each: &mut impl FnMut(Connection)) -> Result<bool> {
    while !bytes.is_empty() {
        let message = NetlinkBuffer::new_checked(bytes).map_err(|e| anyhow!("malformed answer: {e}"))?;
        match message.message_type() {
            NLMSG_DONE => return Ok(false),
            NLMSG_NOOP => {}
            NLMSG_ERROR => return Err(refusal(message.payload())),
            _ => {
                if let Some(connection) = connection(message.payload())? {
                    each(connection);
                }
            }
        }
        let length = (message.length() as usize).next_multiple_of(ALIGNMENT);
        bytes = bytes.get(length..).unwrap_or_default();
    }
    Ok(true)
}

/// An error message begins with a negative errno.
fn refusal(payload: &[u8]) -> anyhow::Error {
    let code = payload.first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
    anyhow!(io::Error::from_raw_os_error(code.saturating_neg())).context("the kernel refused")
}

fn connection(payload: &[u8]) -> Result<Option<Connection>> {
    // The attributes behind the header say nothing that is wanted here.
    let header = InetResponseHeader::parse(payload).map_err(|e| anyhow!("malformed answer: {e}"))?;
    let id = header.socket_id;
    let state = State::from_kernel(header.state);
    Ok(state.map(|state| Connection {
        local: SocketAddr::new(id.source_address.to_canonical(), id.source_port),
        remote: SocketAddr::new(id.destination_address.to_canonical(), id.destination_port),
        state,
    }))
}

#[cfg(test)]
mod tests;
