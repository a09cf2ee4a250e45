//! A host's interface, frame by frame (packet(7)).

use std::io::{self, ErrorKind};
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::Duration;

use anyhow::Context;
use nix::libc;
use nix::net::if_::if_nametoindex;

/// The longest frame that is taken whole.
const MAX_FRAME: usize = 65_536 + 64;
/// Room for what comes while the reader is not running; beyond the system's usual limit, which root may exceed.
const RECEIVE_BUFFER: libc::c_int = 64 << 20;
const ETHERTYPE_AT: usize = 12;

/// A socket that sends and receives whole frames. It belongs to the host on which it was opened.
#[derive(Debug)]
pub struct LinkSocket {
    fd: OwnedFd,
    buffer: Vec<u8>,
}

/// A frame that was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Sent by this host, not received.
    pub outgoing: bool,
    /// The kernel left the checksum to a NIC: it is not in the frame yet.
    pub unfinished: bool,
    pub octets: Vec<u8>,
}

impl LinkSocket {
    /// Opens an interface of the namespace that this thread is in.
    ///
    /// # Errors
    /// If there is no such interface, or this is not root.
    pub fn open(interface: &str) -> anyhow::Result<Self> {
        let all = u16::try_from(libc::ETH_P_ALL)?.to_be();
        // No protocol yet: until it is bound, it would get the frames of all interfaces.
        // SAFETY: no memory is passed.
        let raw = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if raw < 0 {
            return Err(io::Error::last_os_error()).context("failed to open a packet socket");
        }
        // SAFETY: just opened, and nobody else has it.
        let socket = Self { fd: unsafe { OwnedFd::from_raw_fd(raw) }, buffer: vec![0; MAX_FRAME] };
        let index = if_nametoindex(interface).with_context(|| format!("no interface {interface}"))?;
        socket.bind(index, all).with_context(|| format!("failed to bind to {interface}"))?;
        socket.set(libc::SOL_PACKET, libc::PACKET_AUXDATA, &1i32)?;
        socket.set(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &RECEIVE_BUFFER)?;
        Ok(socket)
    }

    fn bind(&self, index: u32, protocol: u16) -> anyhow::Result<()> {
        // SAFETY: all zeros is a valid address of no interface.
        let mut address: libc::sockaddr_ll = unsafe { zeroed() };
        address.sll_family = u16::try_from(libc::AF_PACKET)?;
        address.sll_protocol = protocol;
        address.sll_ifindex = i32::try_from(index)?;
        let size = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>())?;
        // SAFETY: the pointer is to `size` octets that live through the call.
        check(unsafe { libc::bind(self.fd.as_raw_fd(), (&raw const address).cast(), size) })?;
        Ok(())
    }

    fn set<T>(&self, level: i32, option: i32, value: &T) -> anyhow::Result<()> {
        let size = libc::socklen_t::try_from(size_of::<T>())?;
        // SAFETY: the pointer is to `size` octets that live through the call.
        let done = unsafe { libc::setsockopt(self.fd.as_raw_fd(), level, option, (&raw const *value).cast(), size) };
        check(done).with_context(|| format!("failed to set option {option}"))?;
        Ok(())
    }

    /// How long [`LinkSocket::receive`] waits for a frame; zero: for ever.
    ///
    /// # Errors
    /// If the socket refuses.
    pub fn set_patience(&self, patience: Duration) -> anyhow::Result<()> {
        let value =
            libc::timeval { tv_sec: i64::try_from(patience.as_secs())?, tv_usec: patience.subsec_micros().into() };
        self.set(libc::SOL_SOCKET, libc::SO_RCVTIMEO, &value)
    }

    /// Sends past the queueing discipline, as fast as the driver takes it.
    ///
    /// # Errors
    /// If the socket refuses.
    pub fn bypass_queue(&self) -> anyhow::Result<()> {
        self.set(libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, &1i32)
    }

    /// Sends a frame as it is.
    ///
    /// # Errors
    /// If the interface is down or the frame too long for it.
    pub fn send(&self, frame: &[u8]) -> anyhow::Result<()> {
        // SAFETY: the pointer is to the frame's octets, which live through the call.
        let sent = unsafe { libc::send(self.fd.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        check(sent).with_context(|| format!("failed to send a frame of {} octets", frame.len()))?;
        Ok(())
    }

    /// Sends several frames by one system call; how many went.
    ///
    /// # Errors
    /// If not even the first one could be sent. `ENOBUFS`: the driver's queue is full.
    pub fn send_many(&self, frames: &[Vec<u8>]) -> io::Result<usize> {
        let mut pieces: Vec<libc::iovec> = frames
            .iter()
            .map(|frame| libc::iovec { iov_base: frame.as_ptr().cast_mut().cast(), iov_len: frame.len() })
            .collect();
        let mut messages: Vec<libc::mmsghdr> =
            pieces.iter_mut().map(|piece| libc::mmsghdr { msg_hdr: message(piece), msg_len: 0 }).collect();
        let count = u32::try_from(messages.len()).unwrap_or(u32::MAX);
        // SAFETY: each message points to one piece, each piece to one frame; all live through the call, and sending
        // writes into none of the frames.
        let sent = unsafe { libc::sendmmsg(self.fd.as_raw_fd(), messages.as_mut_ptr(), count, 0) };
        check(sent)
    }

    /// The next frame; None if none came within the patience, or none is there and `at_once` is set.
    ///
    /// # Errors
    /// If the interface went away.
    pub fn receive(&mut self, at_once: bool) -> anyhow::Result<Option<Frame>> {
        // SAFETY: all zeros is a valid address.
        let mut address: libc::sockaddr_ll = unsafe { zeroed() };
        let mut control = [0u64; 16];
        let mut piece = libc::iovec { iov_base: self.buffer.as_mut_ptr().cast(), iov_len: self.buffer.len() };
        let mut header = message(&mut piece);
        header.msg_name = (&raw mut address).cast();
        header.msg_namelen = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>())?;
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = size_of::<[u64; 16]>();
        let flags = if at_once { libc::MSG_DONTWAIT } else { 0 };
        // SAFETY: all that the header points to lives through the call and has the length that it says.
        let received = check(unsafe { libc::recvmsg(self.fd.as_raw_fd(), &raw mut header, flags) });
        let length = match received {
            Ok(length) => length,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => return Ok(None),
            Err(error) => return Err(error).context("failed to receive frames"),
        };
        let auxiliary = auxiliary(&header);
        let outgoing = i32::from(address.sll_pkttype) == i32::from(libc::PACKET_OUTGOING);
        Ok(Some(self.frame(length, outgoing, auxiliary)))
    }

    /// The kernel takes a VLAN tag out of the frame and tells it beside.
    fn frame(&self, length: usize, outgoing: bool, auxiliary: Option<libc::tpacket_auxdata>) -> Frame {
        let mut octets = self.buffer[..length.min(self.buffer.len())].to_vec();
        let status = auxiliary.map_or(0, |aux| aux.tp_status);
        if let Some(aux) = auxiliary.filter(|aux| aux.tp_status & libc::TP_STATUS_VLAN_VALID != 0) {
            let tpid = if status & libc::TP_STATUS_VLAN_TPID_VALID != 0 { aux.tp_vlan_tpid } else { 0x8100 };
            let tag = [tpid.to_be_bytes(), aux.tp_vlan_tci.to_be_bytes()].concat();
            octets.splice(ETHERTYPE_AT..ETHERTYPE_AT, tag);
        }
        Frame { outgoing, unfinished: status & libc::TP_STATUS_CSUMNOTREADY != 0, octets }
    }

    /// Frames that came while the buffer was full, since the last time.
    ///
    /// # Errors
    /// If the socket refuses.
    pub fn lost(&self) -> anyhow::Result<u32> {
        // SAFETY: all zeros is a valid value.
        let mut statistics: libc::tpacket_stats = unsafe { zeroed() };
        let mut size = libc::socklen_t::try_from(size_of::<libc::tpacket_stats>())?;
        // SAFETY: the pointer is to `size` octets that live through the call.
        check(unsafe {
            let value = (&raw mut statistics).cast();
            libc::getsockopt(self.fd.as_raw_fd(), libc::SOL_PACKET, libc::PACKET_STATISTICS, value, &raw mut size)
        })?;
        Ok(statistics.tp_drops)
    }
}

fn message(piece: &mut libc::iovec) -> libc::msghdr {
    // SAFETY: all zeros is a valid header of nothing.
    let mut header: libc::msghdr = unsafe { zeroed() };
    header.msg_iov = piece;
    header.msg_iovlen = 1;
    header
}

/// What the kernel tells beside a frame.
fn auxiliary(header: &libc::msghdr) -> Option<libc::tpacket_auxdata> {
    // SAFETY: recvmsg has filled the header; the macros keep within the control data that it says.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(header).as_ref() };
    while let Some(control) = next {
        if control.cmsg_level == libc::SOL_PACKET && control.cmsg_type == libc::PACKET_AUXDATA {
            // SAFETY: this kind of control message carries this structure, and it need not be aligned.
            return Some(unsafe { libc::CMSG_DATA(control).cast::<libc::tpacket_auxdata>().read_unaligned() });
        }
        // SAFETY: as above.
        next = unsafe { libc::CMSG_NXTHDR(header, control).as_ref() };
    }
    None
}

/// What a system call returned, or its error.
fn check<T: TryInto<usize>>(returned: T) -> io::Result<usize> {
    returned.try_into().map_err(|_negative| io::Error::last_os_error())
}
