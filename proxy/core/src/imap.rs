//! IMAP (RFC 9051, RFC 3501) as far as a proxy speaks it: with the client until a login names the user,
//! and with the back end until it has taken that login. After that, bytes pass through unread.

mod backend;
mod command;
mod prelogin;

pub use backend::BackendLogin;
pub use prelogin::PreLogin;

pub use crate::prelogin::BackendAction;

#[cfg(test)]
mod tests;
