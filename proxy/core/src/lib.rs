//! The part of AutoCluster that decides: protocols, routing, membership, policy. It does no IO, reads
//! no clock and rolls no dice; the daemon feeds it events and obeys the actions it asks for.
#![forbid(unsafe_code)]

pub mod abuse;
pub mod address;
pub mod cluster;
pub mod directory;
pub mod imap;
pub mod pop3;
pub mod prelogin;
pub mod sasl;
#[cfg(test)]
mod sim;
pub mod smtp;
pub mod steering;
