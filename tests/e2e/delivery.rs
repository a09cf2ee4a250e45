//! Mail comes in through the VIP and is read back through the VIP.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::ensure;
use autocluster_tests::client::{Mailbox, Message, Reader, Sending, Tls};
use autocluster_tests::lab::{Account, Lab, VIP, VIP6, until_some};
use autocluster_tests::scenario::{arrival, imap};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("delivery::every_back_end_over_ipv4", every_back_end_over_ipv4),
    ("delivery::every_back_end_over_ipv6", every_back_end_over_ipv6),
    ("delivery::swaks_over_both", swaks_over_both),
    ("delivery::recipients_on_several_back_ends", recipients_on_several_back_ends),
    ("delivery::sub_address", sub_address),
    ("delivery::lines_that_begin_with_dots", lines_that_begin_with_dots),
    ("delivery::attachment", attachment),
    ("delivery::utf8_in_header_and_body", utf8_in_header_and_body),
    ("delivery::utf8_mailbox_by_smtp", utf8_mailbox_by_smtp),
    ("delivery::utf8_sender_by_smtp", utf8_sender_by_smtp),
    ("delivery::utf8_user_just_added", utf8_user_just_added),
    ("delivery::ascii_addresses_by_lmtp", ascii_addresses_by_lmtp),
];

const READERS: [(Mailbox, Tls); 4] = [
    (Mailbox::Imap, Tls::Implicit),
    (Mailbox::Imap, Tls::Upgrade),
    (Mailbox::Pop3, Tls::Implicit),
    (Mailbox::Pop3, Tls::Upgrade),
];

/// Until a front end knows of a user; each try runs a whole mail client.
const NEW_USER_LIMIT: Duration = Duration::from_secs(5);

fn read_back(lab: &Lab, server: IpAddr, account: &Account, message: &Message) -> anyhow::Result<()> {
    let reader = Reader { server, protocol: Mailbox::Imap, tls: Tls::Implicit };
    reader.expect(lab, account, message)
}

fn every_back_end(lab: &Lab, server: IpAddr) -> anyhow::Result<()> {
    for backend in 1..=lab.spec().backends {
        for tls in [false, true] {
            let account = Account::local(backend, 1);
            let message = Message::plain("hello", "first line\r\n\r\nlast line\r\n");
            let sending = Sending { tls, ..Sending::to(server, &account.address) };
            sending.send(lab, &message)?.accepted()?;
            for (protocol, tls) in READERS {
                Reader { server, protocol, tls }.expect(lab, &account, &message)?;
            }
        }
    }
    Ok(())
}

fn every_back_end_over_ipv4(lab: &Lab) -> anyhow::Result<()> {
    every_back_end(lab, VIP.into())
}

fn every_back_end_over_ipv6(lab: &Lab) -> anyhow::Result<()> {
    every_back_end(lab, VIP6.into())
}

fn swaks_over_both(lab: &Lab) -> anyhow::Result<()> {
    let account = Account::local(1, 2);
    for (server, tls) in [(VIP.to_string(), false), (VIP.to_string(), true), (VIP6.to_string(), true)] {
        let message = Message::plain("swaks", "sent by swaks\r\n");
        let mark = format!("X-Lab-Mark: {}", message.mark);
        let body = String::from_utf8_lossy(message.body()).into_owned();
        let mut argv = vec!["swaks", "--server", &server, "--to", &account.address, "--from", "sender@client.test"];
        argv.extend(["--helo", "client.test", "--add-header", &mark, "--body", &body]);
        if tls {
            argv.push("--tls");
        }
        let output = lab.exec("client", &argv)?;
        ensure!(output.status.success(), "swaks: {}", String::from_utf8_lossy(&output.stdout));
        let reader = imap();
        let (count, content) = reader.fetch(lab, &account, &message.mark)?;
        let content = String::from_utf8(content.unwrap_or_default())?;
        ensure!(count == 1 && content.contains("sent by swaks"), "{count} × {content:?}");
    }
    Ok(())
}

fn recipients_on_several_back_ends(lab: &Lab) -> anyhow::Result<()> {
    let spread = [Account::shared(lab.spec(), 1), Account::shared(lab.spec(), 2)];
    ensure!(spread[0].backend != spread[1].backend, "this test needs two back ends");
    let message = Message::plain("to both", "one transaction, two servers\r\n");
    let mut sending = Sending::to(VIP, &spread[0].address);
    sending.recipients.push(spread[1].address.clone());
    let reply = sending.send(lab, &message)?;
    ensure!(reply.accepted()?.refused.is_empty(), "refused: {:?}", reply.refused);
    spread.iter().try_for_each(|account| read_back(lab, VIP.into(), account, &message))
}

fn sub_address(lab: &Lab) -> anyhow::Result<()> {
    let account = Account::local(2, 3);
    let message = Message::plain("tagged", "to user+tag\r\n");
    Sending::to(VIP, "user3+lists.rust@be2.test").send(lab, &message)?.accepted()?;
    read_back(lab, VIP.into(), &account, &message)
}

fn lines_that_begin_with_dots(lab: &Lab) -> anyhow::Result<()> {
    let account = Account::local(1, 4);
    let message = Message::plain("dots", ".\r\n..\r\n.hidden\r\n...\r\n\r\n. \r\nend.\r\n");
    Sending::to(VIP, &account.address).send(lab, &message)?.accepted()?;
    for (protocol, tls) in READERS {
        Reader { server: VIP.into(), protocol, tls }.expect(lab, &account, &message)?;
    }
    Ok(())
}

fn attachment(lab: &Lab) -> anyhow::Result<()> {
    let account = Account::local(2, 5);
    for size in [100_000, 8_000_000] {
        let message = Message::with_attachment("data", size);
        Sending { tls: true, ..Sending::to(VIP, &account.address) }.send(lab, &message)?.accepted()?;
        read_back(lab, VIP.into(), &account, &message)?;
    }
    Ok(())
}

fn utf8_in_header_and_body(lab: &Lab) -> anyhow::Result<()> {
    let account = Account::local(1, 6);
    let message = Message::plain("Grüße an 世界", "Grüße, Ελλάδα, 世界\r\n");
    let sending = Sending { smtputf8: true, ..Sending::to(VIP, &account.address) };
    sending.send(lab, &message)?.accepted()?;
    read_back(lab, VIP.into(), &account, &message)
}

/// What only Postfix writes into a message: it took it with SMTPUTF8 (RFC 6531 section 4.3).
const BY_SMTP: &str = "be1.test (Postfix) with UTF8SMTP";
/// What only Dovecot's LMTP server writes into a message.
const BY_LMTP: &str = "be1.test with LMTP";

fn utf8_mailbox_by_smtp(lab: &Lab) -> anyhow::Result<()> {
    let account = Account::utf8(1);
    for address in [account.address.clone(), account.address.replace('@', "+täg@")] {
        let message = Message::plain("Grüße", ".\r\nGrüße, Jörg\r\n\r\n..\r\n");
        Sending { smtputf8: true, ..Sending::to(VIP, &address) }.send(lab, &message)?.accepted()?;
        let content = arrival(lab, &account, &message)?;
        ensure!(content.contains(BY_SMTP) && !content.contains(BY_LMTP), "{content}");
        Reader { server: VIP.into(), protocol: Mailbox::Pop3, tls: Tls::Implicit }.expect(lab, &account, &message)?;
    }
    Ok(())
}

fn utf8_sender_by_smtp(lab: &Lab) -> anyhow::Result<()> {
    let account = Account::local(1, 7);
    let message = Message::plain("sender", "x\r\n");
    let sender = "jürgen@client.test".to_owned();
    let sending = Sending { smtputf8: true, sender, ..Sending::to(VIP, &account.address) };
    sending.send(lab, &message)?.accepted()?;
    let content = arrival(lab, &account, &message)?;
    // LMTP would have lost the sender.
    ensure!(content.contains("Return-Path: <jürgen@client.test>") && content.contains(BY_SMTP), "{content}");
    Ok(())
}

/// Postfix has no list of users, and one whom Dovecot does not know yet is not bounced.
fn utf8_user_just_added(lab: &Lab) -> anyhow::Result<()> {
    let account = Account { address: "zoë@be1.test".to_owned(), password: "secret-zoe".to_owned(), backend: 1 };
    let sending = Sending { smtputf8: true, ..Sending::to(VIP, &account.address) };
    let message = Message::plain("welcome", "x\r\n");
    sending.send(lab, &message)?.expect("rcpt", 550, "5.1.1")?;
    lab.add_user(account.backend, &account.address, &account.password)?;
    until_some("the new user's mail is taken", NEW_USER_LIMIT, || {
        sending.send(lab, &message)?.accepted()?;
        Ok(Some(()))
    })?;
    arrival(lab, &account, &message)?;
    Ok(())
}

fn ascii_addresses_by_lmtp(lab: &Lab) -> anyhow::Result<()> {
    let account = Account::local(1, 7);
    // With SMTPUTF8 as well: what counts are the addresses.
    for smtputf8 in [false, true] {
        let message = Message::plain("ASCII", "x\r\n");
        Sending { smtputf8, ..Sending::to(VIP, &account.address) }.send(lab, &message)?.accepted()?;
        let content = arrival(lab, &account, &message)?;
        ensure!(content.contains(BY_LMTP) && !content.contains("(Postfix)"), "{content}");
    }
    Ok(())
}
