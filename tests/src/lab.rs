//! A lab: what it consists of, and how it is made, used and taken away.
//!
//! Everything a lab makes is found again by its name alone (namespaces `ac-NAME-HOST`, files under
//! [`RUN_DIR`]`/NAME`), so `down` works after a crash and from another process.

mod backend;
mod command;
mod frontend;
mod handle;
mod layout;
pub mod namespace;
mod network;
mod observe;
mod obstacle;
mod pki;
mod postfix;
mod process;
mod progress;
mod scanner;
mod spec;
mod status;
mod teardown;
mod users;
mod wait;
mod xdp_pass;

pub use backend::Service;
pub use handle::Lab;
pub use layout::{Layout, RUN_DIR};
pub use obstacle::obstacle;
pub use pki::{MAIL_NAME, program, tool};
pub use progress::Progress;
pub use spec::{Host, HostKind, MAX_BACKENDS, MAX_FRONTENDS, Spec, VIP, VIP6};
pub use status::{HostStatus, ProcessStatus};
pub use teardown::down;
pub use users::{Account, mailbox_count, password_of};
pub use wait::{until, until_some};
