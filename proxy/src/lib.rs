//! The daemon: it obeys proxy-core and touches the world for it.

pub mod announce;
pub mod config;
pub mod content;
pub mod dataplane;
pub mod drivers;
pub mod io;
pub mod metrics;
pub mod netdev;
pub mod pki;
pub mod relay;
pub mod scanner;
#[cfg(test)]
pub(crate) mod testing;
pub mod tls;
pub mod transport;
