//! The loops that feed the core's machines and obey them.

pub mod announcer;
pub mod cluster;
