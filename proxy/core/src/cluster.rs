//! Who is in the pool: SWIM membership (the crate foca) with what a pool of mail front ends needs
//! around it. [`Machine`] does no IO: datagrams and the time go in, datagrams, events and the next
//! deadline come out.
//!
//! What foca does: probing, indirect probing, suspicion, refutation, gossip. What is added here:
//! contact with seeds of which only the address is known ([`Machine::handle_announce`]), a second
//! opinion before a suspect is declared dead (`suspicion`), a change of state or weight that reaches
//! everybody at once, and the gossip of directory digests with repair for what was lost.
//!
//! What it is not: a transport (the daemon has QUIC), an authority (names are proven by certificates,
//! compare [`Machine::sender`]), or consensus: two halves of a cut pool both go on and meet again later.

mod digest;
mod machine;
mod node;
pub mod ownership;
mod seeds;
mod suspicion;
mod timing;
mod wire;

#[cfg(test)]
mod tests;

pub use digest::{Digest, DigestRefused, DigestVersion, MAX_DIGEST_PAYLOAD, MAX_DIGESTS, MAX_SOURCE_NAME};
pub use machine::{Event, Machine, Transmit};
pub use node::{BadNodeName, MAX_NODE_NAME, Node, NodeName, NodeState};
pub use timing::Timing;
pub use wire::{MAX_DATAGRAM, MAX_KNOWN_NODES, MalformedDatagram};
