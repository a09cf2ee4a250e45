//! What is not taken, and the reply that says why.

use anyhow::ensure;
use autocluster_tests::client::{Mailbox, Message, Reader, Sending, Tls};
use autocluster_tests::lab::{Account, Lab, VIP};
use autocluster_tests::scenario::imap;
use autocluster_tests::wire::Wire;

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("refusals::unknown_recipient", unknown_recipient),
    ("refusals::unknown_recipient_beside_a_known_one", unknown_recipient_beside_a_known_one),
    ("refusals::foreign_domain", foreign_domain),
    ("refusals::virus", virus),
    ("refusals::virus_in_attachment", virus_in_attachment),
    ("refusals::too_large", too_large),
    ("refusals::wrong_password", wrong_password),
    ("refusals::plaintext_password", plaintext_password),
];

fn unknown_recipient(lab: &Lab) -> anyhow::Result<()> {
    for address in ["nobody@be1.test", "user@be2.test", "user101@shared.test", "nobody+user1@be1.test"] {
        let reply = Sending::to(VIP, address).send(lab, &Message::plain("x", "x\r\n"))?;
        reply.expect("rcpt", 550, "5.1.1")?;
    }
    Ok(())
}

fn unknown_recipient_beside_a_known_one(lab: &Lab) -> anyhow::Result<()> {
    let account = Account::local(1, 7);
    let message = Message::plain("half", "one of two\r\n");
    let mut sending = Sending::to(VIP, &account.address);
    sending.recipients.push("nobody@be2.test".to_owned());
    let reply = sending.send(lab, &message)?;
    reply.accepted()?;
    ensure!(reply.refused.len() == 1 && reply.refused[0].0 == 550, "refused: {:?}", reply.refused);
    imap().expect(lab, &account, &message)
}

fn foreign_domain(lab: &Lab) -> anyhow::Result<()> {
    let reply = Sending::to(VIP, "user1@elsewhere.test").send(lab, &Message::plain("x", "x\r\n"))?;
    reply.expect("rcpt", 550, "5.7.1")?;
    Ok(())
}

fn virus(lab: &Lab) -> anyhow::Result<()> {
    let message = Message::plain("virus", &format!("{}\r\n", Lab::eicar()));
    refused_and_not_delivered(lab, &message)
}

fn virus_in_attachment(lab: &Lab) -> anyhow::Result<()> {
    use base64::Engine as _;
    let encoded = base64::prelude::BASE64_STANDARD.encode(Lab::eicar());
    let body = format!(
        "--cut\r\nContent-Type: application/octet-stream\r\nContent-Transfer-Encoding: base64\r\n\r\n{encoded}\r\n--cut--\r\n"
    );
    let mut message = Message::plain("virus", &body);
    let text = String::from_utf8(message.content)?;
    let multipart = "MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=cut";
    message.content = text.replace("Content-Type: text/plain; charset=utf-8", multipart).into_bytes();
    refused_and_not_delivered(lab, &message)
}

fn refused_and_not_delivered(lab: &Lab, message: &Message) -> anyhow::Result<()> {
    let account = Account::local(1, 8);
    let reply = Sending::to(VIP, &account.address).send(lab, message)?;
    reply.expect("data", 554, "5.7.1")?.expect("data", 554, "Eicar-Test-Signature")?;
    let reader = imap();
    let (count, _) = reader.fetch(lab, &account, &message.mark)?;
    ensure!(count == 0, "the refused message was delivered");
    Ok(())
}

fn too_large(lab: &Lab) -> anyhow::Result<()> {
    let mut wire = Wire::smtp(lab, "client", VIP)?;
    let reply = wire.ask("MAIL FROM:<sender@client.test> SIZE=10000000000")?;
    ensure!(reply.starts_with("552 5.3.4"), "{reply}");
    Ok(())
}

fn wrong_password(lab: &Lab) -> anyhow::Result<()> {
    for protocol in [Mailbox::Imap, Mailbox::Pop3] {
        let reader = Reader { server: VIP.into(), protocol, tls: Tls::Implicit };
        let known = Account { password: "wrong".to_owned(), ..Account::local(1, 1) };
        let unknown = Account { address: "nobody@be1.test".to_owned(), ..known.clone() };
        let said: Vec<String> = [known, unknown]
            .iter()
            .map(|account| match reader.fetch(lab, account, "none") {
                Ok(_) => "let in".to_owned(),
                Err(error) => format!("{error:#}"),
            })
            .collect();
        // The answer must not tell which addresses exist.
        ensure!(!said[0].contains("let in") && said[0] == said[1], "{protocol:?}: {said:?}");
    }
    Ok(())
}

fn plaintext_password(lab: &Lab) -> anyhow::Result<()> {
    let mut imap = Wire::open(lab, "client", VIP, 143)?;
    imap.send(b"a LOGIN user1@be1.test secret-user1\r\n")?;
    let line = imap.line()?;
    ensure!(line.starts_with("a NO [PRIVACYREQUIRED]") || line.starts_with("a BAD"), "IMAP: {line}");
    let mut pop3 = Wire::open(lab, "client", VIP, 110)?;
    pop3.send(b"USER user1@be1.test\r\n")?;
    let line = pop3.line()?;
    ensure!(line.starts_with("-ERR"), "POP3: {line}");
    Ok(())
}
