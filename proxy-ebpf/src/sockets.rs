//! This machine's own sockets.

use aya_ebpf::{
    helpers::{bpf_sk_release, bpf_skc_lookup_tcp, bpf_tcp_raw_check_syncookie_ipv4, bpf_tcp_raw_check_syncookie_ipv6},
    programs::XdpContext,
};
use proxy_common::steer::Socket;

use crate::{
    error::Error,
    flow::{Place, V6},
    packet::{Ipv4, Ipv6, Tcp, at},
};

/// The network namespace of the interface (BPF_F_CURRENT_NETNS).
const OWN_NETNS: u64 = u64::MAX;
/// TCP states of include/net/tcp_states.h.
const TIME_WAIT: u32 = 6;
const CLOSE: u32 = 7;
const LISTEN: u32 = 10;

/// `bpf_sock_tuple`, IPv4.
#[repr(C, align(8))]
pub struct TupleV4 {
    pub source: u32,
    pub destination: u32,
    pub ports: u32,
}

/// `bpf_sock_tuple`, IPv6.
#[repr(C, align(8))]
pub struct TupleV6 {
    pub source: [u64; 2],
    pub destination: [u64; 2],
    pub ports: u32,
}

pub const TUPLE_V4: u32 = 12;
pub const TUPLE_V6: u32 = 36;

#[inline(always)]
pub fn v4(ctx: &XdpContext, source: u32, destination: u32, ports: u32) -> Socket {
    let tuple = TupleV4 { source, destination, ports };
    kind(state_v4(ctx, &tuple))
}

#[inline(always)]
pub fn v6(ctx: &XdpContext, flow: &V6) -> Socket {
    let tuple = TupleV6 { source: flow.source, destination: flow.destination, ports: flow.ports };
    kind(state_v6(ctx, &tuple))
}

#[inline(always)]
fn kind(state: u32) -> Socket {
    match state {
        0 | CLOSE | LISTEN => Socket::None,
        TIME_WAIT => Socket::TimeWait,
        _ => Socket::Connection,
    }
}

#[inline(never)]
fn state_v4(ctx: &XdpContext, tuple: &TupleV4) -> u32 {
    state(ctx, (&raw const *tuple).cast(), TUPLE_V4)
}

#[inline(never)]
fn state_v6(ctx: &XdpContext, tuple: &TupleV6) -> u32 {
    state(ctx, (&raw const *tuple).cast(), TUPLE_V6)
}

/// The TCP state of the socket that the tuple names; 0: there is none.
#[inline(always)]
fn state(ctx: &XdpContext, tuple: *const u8, size: u32) -> u32 {
    // SAFETY: the tuple has the size given; the kernel gives a socket that is released below, or null.
    unsafe {
        let socket = bpf_skc_lookup_tcp(ctx.ctx.cast(), tuple.cast_mut().cast(), size, OWN_NETNS, 0);
        if socket.is_null() {
            return 0;
        }
        let state = (*socket).state;
        bpf_sk_release(socket.cast());
        state
    }
}

#[inline(always)]
pub fn answers_cookie_v4(ctx: &XdpContext, place: Place) -> Result<bool, Error> {
    let (ip, tcp) = (at::<Ipv4>(ctx, place.l3())?, at::<Tcp>(ctx, place.l4)?);
    // SAFETY: `at` checked the bounds.
    Ok(unsafe { bpf_tcp_raw_check_syncookie_ipv4(ip.cast(), tcp.cast()) } == 0)
}

#[inline(always)]
pub fn answers_cookie_v6(ctx: &XdpContext, place: Place) -> Result<bool, Error> {
    let (ip, tcp) = (at::<Ipv6>(ctx, place.l3())?, at::<Tcp>(ctx, place.l4)?);
    // SAFETY: `at` checked the bounds.
    Ok(unsafe { bpf_tcp_raw_check_syncookie_ipv6(ip.cast(), tcp.cast()) } == 0)
}
