//! What the XDP program and the daemon share.
#![no_std]
#![forbid(unsafe_code)]
