//! The daemon: it obeys proxy-core and touches the world for it.

pub mod config;
pub mod dataplane;
pub mod pki;
pub mod tls;
pub mod transport;
