//! The daemon: it obeys proxy-core and touches the world for it.

pub mod agent;
pub mod announce;
pub mod cli;
pub mod config;
pub mod content;
pub mod control;
pub mod dataplane;
pub mod drivers;
pub mod files;
pub mod io;
pub mod logging;
pub mod metrics;
pub mod netdev;
pub mod operator;
pub mod pki;
pub mod relay;
pub mod report;
pub mod run;
pub mod scanner;
pub mod sockets;
pub mod status;
#[cfg(test)]
pub(crate) mod testing;
pub mod tls;
pub mod trace;
pub mod transport;
pub mod weight;
