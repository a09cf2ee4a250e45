//! What drives the core's machines: sockets, clocks and files in, actions out.

pub mod directory;
