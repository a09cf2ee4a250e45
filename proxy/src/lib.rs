//! The daemon.

pub mod announce;
pub mod drivers;
pub mod netdev;
pub mod pki;
#[cfg(test)]
pub(crate) mod testing;
pub mod tls;
pub mod transport;
