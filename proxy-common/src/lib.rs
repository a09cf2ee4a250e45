//! What the XDP program and the daemon share: the layout of the maps, the steering hash, the decision about a
//! packet. One definition each, so that kernel and user space cannot disagree.
//!
//! Invariant: `no_std`, no allocation, no floating point: everything here runs inside the kernel or
//! must give the same result on every front end.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(feature = "bench")]
pub mod bench;
pub mod hash;
pub mod maps;
pub mod steer;
