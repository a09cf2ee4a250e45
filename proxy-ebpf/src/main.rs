//! The XDP program: shares the pool's connections at the NIC.
//!
//! It keeps no state of connections: the owner of a packet is a function of its addresses, its ports and
//! the members. What it does not do, on purpose: it never answers TCP, never changes an IP or TCP header,
//! and never touches what is not TCP to a known service of a virtual address, or a question for its MAC.
#![no_std]
#![no_main]

mod error;
mod maps;
mod neighbour;
mod packet;
mod steer;

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
    let Some(control) = maps::CONTROL.get(0) else { return XDP_PASS };
    let (action, counter) = match steer::frame(&ctx, control) {
        Ok(Verdict::Pass(counter)) => (XDP_PASS, counter),
        Ok(Verdict::Transmit(counter)) => (XDP_TX, counter),
        Ok(Verdict::Drop(counter)) => (XDP_DROP, counter),
        Err(error) => exception(&ctx, error),
    };
    maps::count(counter);
    action
}

// Not `#[cold]`: that puts it into a section of its own, whose calls aya 0.14 relocates wrongly.
#[inline(never)]
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
