//! The XDP program: shares the pool's connections at the NIC.
//!
//! It keeps no state of connections: the owner of a packet is a function of its addresses, its ports and
//! the members. What it does not do, on purpose: it never answers TCP but by a SYN cookie in a flood, never changes
//! more of an IP packet than its hop limit, and never touches what is not for a known service of a virtual address,
//! an encapsulated packet of another front end, or a question for a virtual address's MAC.
#![no_std]
#![no_main]
// Building `core` for this target needs an unstable compiler anyhow.
#![feature(asm_experimental_arch)]

mod abuse;
mod cookie;
mod error;
mod fast;
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
    bindings::{
        xdp_action::{XDP_DROP, XDP_PASS, XDP_TX},
        xdp_md,
    },
    macros::xdp,
    programs::XdpContext,
};
use aya_log_ebpf::warn;
use proxy_common::maps::Counter;

use crate::{error::Error, fragment::Later, too_big::TooBig};

/// What becomes of a packet: action and counter in one word, since a BPF function returns no more.
#[derive(Clone, Copy)]
pub struct Verdict(u64);

impl Verdict {
    /// A person should hear of it.
    const LOG: u64 = 1 << 63;
    /// It does not fit: its sender is to be told. With [`TooBig::pack`]'s word.
    const TOO_BIG: u64 = 1 << 62;
    const TOO_BIG_SHIFT: u64 = 40;
    /// A later fragment, which is to follow its first one. With [`Later::pack`]'s word.
    const FOLLOW: u64 = 1 << 61;

    #[inline(always)]
    fn new(action: u32, counter: Counter) -> Self {
        Self(u64::from(action) << 32 | u64::from(counter as u32))
    }

    /// To this machine's own stack.
    #[inline(always)]
    pub fn pass(counter: Counter) -> Self {
        Self::new(XDP_PASS, counter)
    }

    /// Back out of the interface that it came in by, rewritten.
    #[inline(always)]
    pub fn transmit(counter: Counter) -> Self {
        Self::new(XDP_TX, counter)
    }

    /// The same; the counter's number.
    #[inline(always)]
    pub fn transmit_counted(counter: u32) -> Self {
        Self(u64::from(XDP_TX) << 32 | u64::from(counter))
    }

    #[inline(always)]
    pub fn drop(counter: Counter) -> Self {
        Self::new(XDP_DROP, counter)
    }

    #[inline(always)]
    pub fn too_big(what: TooBig) -> Self {
        Self(Self::drop(Counter::TooBig).0 | Self::TOO_BIG | what.pack() << Self::TOO_BIG_SHIFT)
    }

    #[inline(always)]
    pub fn follow(what: Later) -> Self {
        Self(Self::FOLLOW | what.pack())
    }

    #[inline(always)]
    fn action(self) -> u32 {
        (self.0 >> 32) as u32 & 0xff
    }

    #[inline(always)]
    fn counter(self) -> u32 {
        self.0 as u32
    }

    /// What a function of its own returns.
    #[inline(always)]
    pub fn word(result: Result<Self, Error>) -> u64 {
        match result {
            Ok(verdict) => verdict.0,
            Err(error) => {
                let disposition = error.disposition();
                let log = if disposition.log { Self::LOG } else { 0 };
                Self::new(disposition.action, disposition.counter).0 | log
            }
        }
    }

    /// As the caller of such a function sees it.
    #[inline(always)]
    pub fn returned(word: u64) -> Result<Self, Error> {
        Ok(Self(word))
    }
}

/// A context on its way into a function of its own. As a number, or the compiler would read the packet's ends before
/// the call and hand them over as numbers, which the kernel's verifier takes for no pointers.
#[derive(Clone, Copy)]
pub struct Handle(usize);

impl Handle {
    #[inline(always)]
    pub fn of(ctx: &XdpContext) -> Self {
        Self(ctx.ctx as usize)
    }

    #[inline(always)]
    pub fn open(self) -> XdpContext {
        XdpContext::new(self.0 as *mut xdp_md)
    }
}

#[xdp(frags)]
pub fn autocluster(ctx: XdpContext) -> u32 {
    let Some(control) = maps::ControlRef::open() else { return XDP_PASS };
    let verdict = match fast::decide(&ctx, control) {
        Some(verdict) => verdict,
        None => long_way(&ctx, control),
    };
    maps::count(verdict.counter());
    verdict.action()
}

/// Here, and not where it is found out, is done what takes much stack: the functions of one chain of calls share 512
/// octets of it.
#[inline(always)]
fn long_way(ctx: &XdpContext, control: maps::ControlRef) -> Verdict {
    let mut verdict = Verdict(Verdict::word(steer::frame(ctx, control)));
    if verdict.0 & Verdict::FOLLOW != 0 {
        verdict = Verdict(fragment::follow(Handle::of(ctx), verdict.0));
    }
    if verdict.0 & Verdict::TOO_BIG != 0 {
        verdict = Verdict(too_big::tell(Handle::of(ctx), verdict.0 >> Verdict::TOO_BIG_SHIFT & 0xf));
    }
    if verdict.0 & Verdict::LOG != 0 {
        complain(Handle::of(ctx), verdict.counter());
    }
    verdict
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
#[inline(never)]
fn complain(handle: Handle, counter: u32) {
    let ctx = handle.open();
    warn!(&ctx, "counter {}: the daemon's maps contradict each other, or the driver refused", counter);
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
