//! The daemon: it obeys proxy-core and touches the world for it.

pub mod agent;
pub mod config;
pub mod dataplane;
pub mod drivers;
pub mod pki;
pub mod tls;
pub mod transport;
