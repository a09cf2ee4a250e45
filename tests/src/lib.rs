//! The lab: a pool of front ends, its back ends and a mail client as network namespaces of one machine,
//! with real servers (Dovecot, clamd) in them. The end-to-end tests, the demo and `cargo xtask lab` share it.

pub mod client;
pub mod crowd;
pub mod lab;
pub mod packet;
pub mod scenario;
pub mod wire;
