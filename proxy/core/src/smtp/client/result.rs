//! What became of a transaction, and the proof that a promise to the sender needs.

use crate::address::Address;
use crate::smtp::reply::Reply;
use crate::smtp::server::Outcome;

/// How a back end settled one recipient.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecipientResult {
    /// It has the message; this is the text of its reply.
    Accepted(String),
    /// Not now; nothing is known to be delivered.
    Deferred(Reply),
    /// Never.
    Refused(Reply),
}

/// What one back end said to each recipient of its transaction, in the order given to it.
///
/// Only a [`super::Delivery`] makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeliveryResult {
    recipients: Vec<(Address, RecipientResult)>,
    unknown: usize,
}

impl DeliveryResult {
    pub(super) fn new(recipients: Vec<(Address, RecipientResult)>, unknown: usize) -> Self {
        Self { recipients, unknown }
    }

    /// The back end knows none of the recipients, and so has none of the message: asking again in a moment is safe,
    /// and right if the directory has heard of a user before the back end's own mail server.
    #[must_use]
    pub fn unknown_everywhere(&self) -> bool {
        self.unknown > 0 && self.unknown == self.recipients.len()
    }

    #[must_use]
    pub fn recipients(&self) -> &[(Address, RecipientResult)] {
        &self.recipients
    }
}

/// Proof that back ends took the message for every recipient that they were asked for. There is no other way
/// to get one than [`conclude`]:
///
/// ```compile_fail,E0451
/// let forged = proxy_core::smtp::BackendAccepted { recipients: 1, text: String::new() };
/// ```
#[derive(Debug)]
pub struct BackendAccepted {
    recipients: usize,
    text: String,
}

impl BackendAccepted {
    /// How many recipients were accepted.
    #[must_use]
    pub fn recipients(&self) -> usize {
        self.recipients
    }

    /// The same promise, said under our own id for the message.
    #[must_use]
    pub fn with_id(self, id: &str) -> Self {
        Self { text: format!("{id} {}", self.text), ..self }
    }

    /// The text of the first acceptance; servers put their queue or message id there.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }
}

/// Combines what all back ends of one transaction said.
///
/// If anyone deferred, all is deferred: the sender tries again, which may deliver twice but loses nothing.
/// Otherwise, if anyone refused, all is refused, and the text names the refused recipient if others were
/// accepted. No recipients at all is a deferral too.
#[must_use]
pub fn conclude(results: Vec<DeliveryResult>) -> Outcome {
    let mut accepted: Vec<String> = Vec::new();
    let mut refused = None;
    for (address, result) in results.into_iter().flat_map(|result| result.recipients) {
        match result {
            RecipientResult::Accepted(text) => accepted.push(text),
            RecipientResult::Deferred(reply) => return Outcome::Deferred { text: deferral_text(&reply) },
            RecipientResult::Refused(reply) => {
                refused.get_or_insert((address, reply));
            }
        }
    }
    if let Some((address, reply)) = refused {
        return Outcome::Refused { reply: if accepted.is_empty() { reply } else { naming(&address, &reply) } };
    }
    let recipients = accepted.len();
    let Some(first) = accepted.into_iter().next() else {
        return Outcome::Deferred { text: "No back end took part".to_owned() };
    };
    let text = if recipients > 1 { format!("{first} (and {} more)", recipients - 1) } else { first };
    Outcome::Accepted(BackendAccepted { recipients, text })
}

fn deferral_text(reply: &Reply) -> String {
    if reply.text().is_empty() { "Try again later".to_owned() } else { reply.text().to_owned() }
}

/// Many servers name the recipient themselves.
fn naming(address: &Address, reply: &Reply) -> Reply {
    let name = format!("<{address}>");
    if reply.text().contains(&name) {
        return reply.clone();
    }
    Reply::new(reply.code(), reply.enhanced(), &format!("{name} {}", reply.text()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(recipients: &[(&str, RecipientResult)]) -> DeliveryResult {
        let named = |(address, result): &(&str, RecipientResult)| (Address::parse(address).unwrap(), result.clone());
        DeliveryResult::new(recipients.iter().map(named).collect(), 0)
    }

    fn yes() -> RecipientResult {
        RecipientResult::Accepted("id1 Saved".to_owned())
    }

    fn later() -> RecipientResult {
        RecipientResult::Deferred(Reply::own(452, (4, 2, 2), "Full"))
    }

    fn no() -> RecipientResult {
        RecipientResult::Refused(Reply::own(552, (5, 2, 2), "Over quota"))
    }

    #[test]
    fn a_promise_needs_every_recipient_of_every_back_end() {
        let outcome =
            conclude(vec![result(&[("a@b.test", yes()), ("c@b.test", yes())]), result(&[("d@b.test", yes())])]);
        let Outcome::Accepted(accepted) = outcome else { panic!("{outcome:?}") };
        assert_eq!((accepted.recipients(), accepted.text()), (3, "id1 Saved (and 2 more)"));
        for nobody in [vec![], vec![result(&[])]] {
            assert!(matches!(conclude(nobody), Outcome::Deferred { .. }));
        }
    }

    #[test]
    fn deferral_beats_refusal_beats_acceptance() {
        let all = [yes(), later(), no()];
        for (a, b) in all.iter().flat_map(|a| all.iter().map(move |b| (a.clone(), b.clone()))) {
            let outcome = conclude(vec![result(&[("a@b.test", a.clone())]), result(&[("c@b.test", b.clone())])]);
            let either = |what: &RecipientResult| a == *what || b == *what;
            if either(&later()) {
                assert!(matches!(outcome, Outcome::Deferred { ref text } if text == "Full"), "{outcome:?}");
            } else if either(&no()) {
                let Outcome::Refused { reply } = outcome else { panic!("{outcome:?}") };
                assert_eq!((reply.code(), reply.text().starts_with('<')), (552, either(&yes())));
            } else {
                assert!(matches!(outcome, Outcome::Accepted(_)));
            }
        }
    }
}
