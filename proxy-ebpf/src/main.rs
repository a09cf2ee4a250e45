//! The XDP program: shares the pool's connections at the NIC.
//!
//! It keeps no state of connections: the owner of a packet is a function of its addresses, its ports and
//! the members. What it does not do, on purpose: it never answers TCP but by a SYN cookie in a flood, never changes
//! more of an IP packet than its hop limit, and never touches what is not for a known service of a virtual address,
//! an encapsulated packet of another front end, or a question for a virtual address's MAC.
#![no_std]
#![no_main]

mod abuse;
mod cookie;
mod error;
mod flow;
mod forward;
mod fragment;
mod icmp;
mod maps;
mod neighbour;
mod outer;
mod packet;
mod sockets;
mod steer;
mod too_big;

use aya_ebpf::{
    bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX},
    macros::xdp,
    programs::XdpContext,
};
use aya_log_ebpf::warn;
use proxy_common::maps::Counter;

use crate::error::Error;

/// What becomes of a packet that nothing is wrong with.
pub enum Verdict {
    /// To this machine's own stack.
    Pass(Counter),
    /// Back out of the interface that it came in by, rewritten.
    Transmit(Counter),
    Drop(Counter),
}

#[xdp(frags)]
pub fn autocluster(ctx: XdpContext) -> u32 {
    let Some(control) = maps::ControlRef::open() else { return XDP_PASS };
    let (action, counter) = match steer::frame(&ctx, control) {
        Ok(Verdict::Pass(counter)) => (XDP_PASS, counter),
        Ok(Verdict::Transmit(counter)) => (XDP_TX, counter),
        Ok(Verdict::Drop(counter)) => (XDP_DROP, counter),
        Err(error) => exception(&ctx, error),
    };
    maps::count(counter);
    action
}

/// Tells the daemon, which runs it as a test, what time it is here.
#[xdp]
pub fn clock(_ctx: XdpContext) -> u32 {
    if let Some(now) = maps::CLOCK.get_ptr_mut(0) {
        // SAFETY: an aligned store into the map's own memory.
        unsafe { core::ptr::write_volatile(now, maps::jiffies()) };
    }
    XDP_PASS
}

// Not `#[cold]`: that puts it into a section of its own, whose calls aya 0.14 relocates wrongly.
#[inline(always)]
fn exception(ctx: &XdpContext, error: Error) -> (u32, Counter) {
    let disposition = error.disposition();
    if disposition.log {
        warn!(ctx, "{}: the daemon's maps contradict each other, or the driver refused", disposition.counter.name());
    }
    (disposition.action, disposition.counter)
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
