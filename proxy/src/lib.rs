//! The daemon.

pub mod pki;
pub mod tls;
pub mod transport;
