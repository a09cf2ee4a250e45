//! SMTP smuggling: no sequence but CRLF.CRLF ends a message, and none that another server might take for an end
//! is passed on.

use anyhow::ensure;
use autocluster_tests::client::Message;
use autocluster_tests::lab::{Account, Lab, VIP};
use autocluster_tests::scenario::imap;
use autocluster_tests::wire::Wire;

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("smuggling::false_ends_of_data", false_ends_of_data),
    ("smuggling::bare_octets_in_content", bare_octets_in_content),
    ("smuggling::bare_line_feed_in_commands", bare_line_feed_in_commands),
];

const FALSE_ENDS: [&str; 12] = [
    "\n.\n",
    "\n.\r\n",
    "\r\n.\n",
    "\r.\r",
    "\r\n.\r",
    "\r.\r\n",
    "\n.\r",
    "\r.\n",
    "\r\n.\0\r\n",
    "\r\n\0.\r\n",
    "\r\r\n.\r\r\n",
    "\r\n.\r\r\n",
];
/// Neither may be in a message, wherever it stands.
const BARE: [&str; 4] = ["a\nb", "a\rb", "a\0b", "a\r\r\nb"];

fn send_data(lab: &Lab, content: &[u8]) -> anyhow::Result<(Wire, String)> {
    let mut wire = Wire::smtp(lab, "client", VIP)?;
    wire.command("MAIL FROM:<sender@client.test>", 250)?;
    wire.command("RCPT TO:<user9@be1.test>", 250)?;
    wire.command("DATA", 354)?;
    wire.send(content)?;
    let reply = wire.reply()?;
    Ok((wire, reply))
}

fn false_ends_of_data(lab: &Lab) -> anyhow::Result<()> {
    for end in FALSE_ENDS {
        let (outer, inner) = (Message::plain("outer", "x"), Message::plain("inner", "smuggled\r\n"));
        let mut content = outer.content.clone();
        content.extend(end.bytes());
        content.extend(b"MAIL FROM:<evil@client.test>\r\nRCPT TO:<user9@be1.test>\r\nDATA\r\n");
        content.extend(&inner.content);
        content.extend(b".\r\n");
        let (mut wire, reply) = send_data(lab, &content)?;
        ensure!(reply.starts_with("550 5.6.0"), "{end:?}: {reply:?}");
        // One message, one reply: the next reply is the next command's.
        let reply = wire.ask("NOOP")?;
        ensure!(reply.starts_with("250") || reply.is_empty(), "{end:?}: a second reply: {reply:?}");
        nothing_delivered(lab, &[&outer, &inner])?;
    }
    Ok(())
}

fn bare_octets_in_content(lab: &Lab) -> anyhow::Result<()> {
    for bare in BARE {
        let message = Message::plain("bare", &format!("{bare}\r\n"));
        let mut content = message.content.clone();
        content.extend(b".\r\n");
        let (_, reply) = send_data(lab, &content)?;
        ensure!(reply.starts_with("550 5.6.0"), "{bare:?}: {reply:?}");
        nothing_delivered(lab, &[&message])?;
    }
    Ok(())
}

fn nothing_delivered(lab: &Lab, messages: &[&Message]) -> anyhow::Result<()> {
    let reader = imap();
    for message in messages {
        let (count, _) = reader.fetch(lab, &Account::local(1, 9), &message.mark)?;
        ensure!(count == 0, "a refused message was delivered");
    }
    Ok(())
}

fn bare_line_feed_in_commands(lab: &Lab) -> anyhow::Result<()> {
    for command in ["NOOP\n", "EHLO x\nMAIL FROM:<a@client.test>\r\n", "NOOP\0\r\n", "NO\rOP\r\n"] {
        let mut wire = Wire::smtp(lab, "client", VIP)?;
        wire.send(command.as_bytes())?;
        let reply = wire.reply()?;
        ensure!(reply.starts_with("500 5.5.2"), "{command:?}: {reply:?}");
    }
    Ok(())
}
