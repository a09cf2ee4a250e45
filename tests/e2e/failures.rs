//! Parts that are down: the sender is asked to come again, and nothing is lost or promised.

use anyhow::ensure;
use autocluster_tests::client::{Message, Sending};
use autocluster_tests::lab::{Account, Lab, VIP};
use autocluster_tests::scenario::imap;

use crate::Test;

pub(crate) const TESTS: &[Test] =
    &[("failures::scanner_stopped", scanner_stopped), ("failures::back_end_stopped", back_end_stopped)];

fn scanner_stopped(lab: &Lab) -> anyhow::Result<()> {
    let account = Account::local(1, 10);
    let message = Message::plain("unscanned", "x\r\n");
    for number in 1..=lab.spec().frontends {
        lab.stop_scanner(number)?;
    }
    let reply = Sending::to(VIP, &account.address).send(lab, &message);
    for number in 1..=lab.spec().frontends {
        lab.start_scanner(number)?;
    }
    reply?.expect("data", 451, "4.7.1")?;
    Sending::to(VIP, &account.address).send(lab, &message)?.accepted()?;
    imap().expect(lab, &account, &message)
}

fn back_end_stopped(lab: &Lab) -> anyhow::Result<()> {
    let (down, up) = (Account::local(1, 11), Account::local(2, 11));
    let message = Message::plain("later", "x\r\n");
    lab.stop_dovecot(1)?;
    let to_down = Sending::to(VIP, &down.address).send(lab, &message);
    // The directory still knows who exists there.
    let to_nobody = Sending::to(VIP, "nobody@be1.test").send(lab, &message);
    let to_up = Sending::to(VIP, &up.address).send(lab, &message);
    let reader = imap();
    let login = reader.fetch(lab, &down, "none");
    lab.start_dovecot(1)?;
    let reply = to_down?;
    ensure!(reply.code == 451 && matches!(reply.stage.as_str(), "rcpt" | "data"), "{reply:?}");
    to_nobody?.expect("rcpt", 550, "5.1.1")?;
    to_up?.accepted()?;
    let said = login.err().map(|error| format!("{error:#}")).unwrap_or_default();
    ensure!(said.contains("UNAVAILABLE"), "a login while the back end is down: {said:?}");
    Sending::to(VIP, &down.address).send(lab, &message)?.accepted()?;
    reader.expect(lab, &down, &message)
}
