//! SMTP on both sides of the relay: the server that the world talks to (RFC 5321) and the client that
//! replays a transaction to a back end by LMTP (RFC 2033) or SMTP.
//!
//! The shell's loop is the same for both machines: feed a `handle_*` method, then take every action that
//! `poll_action` gives, in order. Neither machine reads a socket, a clock or a random number.
//!
//! What it does not do, on purpose: BDAT (CHUNKING is not offered), AUTH (this is an MX, not a submission
//! server), DSN parameters, line-ending repair. Content that is not made of CRLF lines is refused, never
//! repaired: two servers that disagree on where a message ends are what SMTP smuggling needs.

pub mod client;
mod command;
mod data;
mod path;
mod reply;
pub mod server;
mod stuff;

pub use client::{
    BackendAccepted, Delivery, DeliveryAction, DeliveryResult, Protocol, RecipientResult, Transaction, conclude,
};
pub use reply::{EnhancedCode, Reply};
pub use server::{Action, Envelope, Limits, Outcome, RecipientAnswer, ServerConfig, Session};
pub use stuff::DotStuffer;

#[cfg(test)]
mod tests;
