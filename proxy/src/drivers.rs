//! The loops that feed the core's machines and obey them.

pub mod abuse;
pub mod announcer;
pub mod cluster;
pub mod directory;
pub mod gossip;
pub mod listen;
pub mod mailbox;
pub mod smtp;
pub mod steering;
pub mod streams;
