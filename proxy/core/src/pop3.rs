//! POP3 (RFC 1939, 2449, 2595, 5034) as far as a proxy speaks it: with the client until a login names the
//! user, and with the back end until it has taken that login. After that, bytes pass through unread.

mod backend;
mod prelogin;

pub use backend::BackendLogin;
pub use prelogin::PreLogin;

pub use crate::prelogin::BackendAction;

#[cfg(test)]
mod tests;
