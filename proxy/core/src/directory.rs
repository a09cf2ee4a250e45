//! The recipient directory: which back end holds which mailbox, and how sure we are of it.
//!
//! Every back end is described by one **source**, a single-writer log ([`Log`]): an epoch, a sequence of
//! changes and a root hash over the users it leads to. Every front end keeps a **replica** of every
//! source and answers for all of them ([`Directory`]). Between the two runs one stream of framed
//! messages ([`wire`]): [`Feed`] decides what the source's end says, [`Receiver`] and
//! [`Directory::handle_update`] what the front end's end does.
//!
//! A false 550 is a lost mail. Whatever is not certain is [`Answer::NotSure`].

mod feed;
mod intake;
mod log;
mod lookup;
pub mod passwd_file;
pub mod persist;
mod receiver;
mod record;
mod replica;
mod users;
pub mod wire;

#[cfg(test)]
mod answers;
#[cfg(test)]
mod simulation;

pub use feed::{Feed, FeedError, HEARTBEAT_EVERY, SILENT_FOR};
pub use intake::{CONFIRMATIONS, Fingerprint, HOLD_PERCENT, Held, Intake, Reading};
pub use log::{Batch, Log, RETAINED_CHANGES};
pub use lookup::{Answer, Conflict, ConnectionId, Counts, Digest, Directory, MAX_SOURCES, Route};
pub use receiver::{MAX_USERS_PER_SOURCE, ProtocolError, Receiver, Snapshot, Update};
pub use record::{
    BackendRecord, Change, Endpoint, EndpointTls, Entry, Epoch, MAX_NAME, NameError, Position, Seq, Services,
    SourceName,
};
pub use replica::FRESH_FOR;
pub use users::{RootHash, Users};
