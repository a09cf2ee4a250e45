//! What a person's mail program does, done from the lab's client host by libraries that know nothing of us.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::IpAddr;
use std::process::{Child, ChildStdin, ChildStdout};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use crate::lab::{Account, Lab, MAIL_NAME};

const SCRIPT: &str = include_str!("mail_client.py");
/// Debian's own, which the set-up installs; a developer's `python3` may be anything.
const PYTHON: &str = "/usr/bin/python3";

/// How a connection is encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tls {
    /// From the first byte: ports 993 and 995.
    Implicit,
    /// By STARTTLS or STLS: ports 143 and 110.
    Upgrade,
}

/// A protocol that reads a mailbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mailbox {
    Imap,
    Pop3,
}

impl Mailbox {
    const fn port(self, tls: Tls) -> u16 {
        match (self, tls) {
            (Self::Imap, Tls::Implicit) => 993,
            (Self::Imap, Tls::Upgrade) => 143,
            (Self::Pop3, Tls::Implicit) => 995,
            (Self::Pop3, Tls::Upgrade) => 110,
        }
    }

    const fn command(self) -> &'static str {
        match self {
            Self::Imap => "imap",
            Self::Pop3 => "pop3",
        }
    }
}

/// A message that can be told from all others.
#[derive(Debug, Clone)]
pub struct Message {
    /// Value of its `X-Lab-Mark` header.
    pub mark: String,
    /// Header and body with CRLF line ends.
    pub content: Vec<u8>,
}

static NEXT_MARK: AtomicU64 = AtomicU64::new(1);

impl Message {
    /// A plain text message. Lines of `body` end in CRLF.
    #[must_use]
    pub fn plain(subject: &str, body: &str) -> Self {
        Self::with_header(&format!("Subject: {subject}\r\nContent-Type: text/plain; charset=utf-8\r\n"), body)
    }

    /// A message with a binary attachment of `size` octets.
    #[must_use]
    pub fn with_attachment(subject: &str, size: usize) -> Self {
        let bytes: Vec<u8> = (0..size).map(|at| at.wrapping_mul(2_654_435_761).to_le_bytes()[2]).collect();
        let mut body = String::from("--cut\r\nContent-Type: text/plain\r\n\r\nSee attachment.\r\n--cut\r\n");
        body.push_str("Content-Type: application/octet-stream\r\nContent-Transfer-Encoding: base64\r\n");
        body.push_str("Content-Disposition: attachment; filename=data.bin\r\n\r\n");
        for line in bytes.chunks(57) {
            body.push_str(&BASE64_STANDARD.encode(line));
            body.push_str("\r\n");
        }
        body.push_str("--cut--\r\n");
        let header =
            format!("Subject: {subject}\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=cut\r\n");
        Self::with_header(&header, &body)
    }

    fn with_header(header: &str, body: &str) -> Self {
        let mark = format!("{}-{}", std::process::id(), NEXT_MARK.fetch_add(1, Ordering::Relaxed));
        let content = format!("From: sender@client.test\r\n{header}X-Lab-Mark: {mark}\r\n\r\n{body}").into_bytes();
        Self { mark, content }
    }

    /// What follows the first empty line.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        body_of(&self.content)
    }
}

/// What follows the first empty line of a message.
#[must_use]
pub fn body_of(content: &[u8]) -> &[u8] {
    let at = content.windows(4).position(|four| four == b"\r\n\r\n");
    at.map_or(&[], |at| &content[at + 4..])
}

/// The server's last word on a message.
#[derive(Debug, Clone)]
pub struct Reply {
    /// `connect`, `starttls`, `mail`, `rcpt` or `data`.
    pub stage: String,
    pub code: u64,
    pub text: String,
    /// What the front end called itself.
    pub greeting: String,
    /// Recipients that were refused while others were accepted: code and text.
    pub refused: Vec<(u64, String)>,
}

impl Reply {
    /// Fails unless the message was accepted.
    ///
    /// # Errors
    /// With the reply.
    pub fn accepted(&self) -> anyhow::Result<&Self> {
        self.expect("data", 250, "")
    }

    /// Fails unless the reply is this one.
    ///
    /// # Errors
    /// With the reply.
    pub fn expect(&self, stage: &str, code: u64, text: &str) -> anyhow::Result<&Self> {
        let right = self.stage == stage && self.code == code && self.text.contains(text);
        ensure!(right, "expected {code} {text:?} at {stage}, got {} {:?} at {}", self.code, self.text, self.stage);
        Ok(self)
    }

    /// The first label of the name that the front end greeted with: `fe1`.
    #[must_use]
    pub fn front_end(&self) -> &str {
        self.greeting.split(['.', ' ']).next().unwrap_or_default()
    }
}

/// How a message is to be sent; made by [`Sending::to`], then adjusted.
#[derive(Debug, Clone)]
pub struct Sending {
    pub server: IpAddr,
    pub sender: String,
    pub recipients: Vec<String>,
    pub tls: bool,
    pub smtputf8: bool,
}

impl Sending {
    /// One recipient, without TLS.
    #[must_use]
    pub fn to(server: impl Into<IpAddr>, recipient: &str) -> Self {
        Self {
            server: server.into(),
            sender: "sender@client.test".to_owned(),
            recipients: vec![recipient.to_owned()],
            tls: false,
            smtputf8: false,
        }
    }

    /// Sends from the client host; the answer is the reply that decided.
    ///
    /// # Errors
    /// If the connection broke before there was one.
    pub fn send(&self, lab: &Lab, message: &Message) -> anyhow::Result<Reply> {
        let answer = call(
            lab,
            &json!({
                "command": "send", "server": self.server, "port": 25, "name": MAIL_NAME, "ca": lab.ca_file(),
                "tls": self.tls, "smtputf8": self.smtputf8, "sender": self.sender, "recipients": self.recipients,
                "content": BASE64_STANDARD.encode(&message.content),
            }),
        )?;
        let text = |key: &str| answer[key].as_str().unwrap_or_default().to_owned();
        let refused = answer["refused"].as_array().map(Vec::as_slice).unwrap_or_default();
        Ok(Reply {
            stage: text("stage"),
            code: answer["code"].as_u64().unwrap_or_default(),
            text: text("text"),
            greeting: text("greeting"),
            refused: refused
                .iter()
                .map(|one| (one["code"].as_u64().unwrap_or_default(), one["text"].to_string()))
                .collect(),
        })
    }
}

/// A mailbox as its owner sees it.
#[derive(Debug, Clone)]
pub struct Reader {
    pub server: IpAddr,
    pub protocol: Mailbox,
    pub tls: Tls,
}

impl Reader {
    fn request(&self, lab: &Lab, command: &str, account: &Account) -> Value {
        json!({
            "command": command, "server": self.server, "port": self.protocol.port(self.tls), "name": MAIL_NAME,
            "ca": lab.ca_file(), "user": account.address, "password": account.password,
            "tls": match self.tls { Tls::Implicit => "implicit", Tls::Upgrade => "starttls" },
            // imaplib's LOGIN is ASCII only.
            "method": if account.address.is_ascii() { "login" } else { "plain" },
        })
    }

    /// Logs in and takes the message with this mark; how often it is there, and its content.
    ///
    /// # Errors
    /// If the login was refused or the connection broke.
    pub fn fetch(&self, lab: &Lab, account: &Account, mark: &str) -> anyhow::Result<(u64, Option<Vec<u8>>)> {
        let (count, content, _) = self.fetch_by(lab, account, mark)?;
        Ok((count, content))
    }

    /// The same, and the front end that the session was with.
    fn fetch_by(&self, lab: &Lab, account: &Account, mark: &str) -> anyhow::Result<(u64, Option<Vec<u8>>, String)> {
        let mut request = self.request(lab, self.protocol.command(), account);
        request["mark"] = json!(mark);
        let answer = call(lab, &request)?;
        let content = answer["content"].as_str().map(unbase64).transpose()?;
        let greeting = answer["greeting"].as_str().unwrap_or_default();
        let name = greeting.split_whitespace().find_map(|word| word.strip_suffix(".pool.test"));
        Ok((answer["count"].as_u64().unwrap_or_default(), content, name.unwrap_or_default().to_owned()))
    }

    /// Fails unless the message is there exactly once with the very body that was sent.
    ///
    /// # Errors
    /// With what is there instead.
    pub fn expect(&self, lab: &Lab, account: &Account, message: &Message) -> anyhow::Result<()> {
        self.expect_by(lab, account, message).map(drop)
    }

    /// The same; the front end that the session was with.
    ///
    /// # Errors
    /// With what is there instead.
    pub fn expect_by(&self, lab: &Lab, account: &Account, message: &Message) -> anyhow::Result<String> {
        let (count, content, front_end) = self.fetch_by(lab, account, &message.mark)?;
        ensure!(count == 1, "{}: the message is there {count} times by {self:?}", account.address);
        let content = content.unwrap_or_default();
        let (sent, got) = (message.body(), body_of(&content));
        let first = sent.iter().zip(got).position(|(a, b)| a != b);
        ensure!(sent == got, "{} octets sent, {} read by {self:?}; differ at {first:?}", sent.len(), got.len());
        Ok(front_end)
    }
}

/// Opens connections one after the other for a while.
#[derive(Debug, Clone, Copy)]
pub struct Reconnects {
    pub attempts: u64,
    pub failures: u64,
    /// When the last failure ended, since the beginning.
    pub recovered: Duration,
}

/// Connects to a port of the pool again and again; each time the greeting is awaited.
///
/// # Errors
/// If the client could not be run.
pub fn reconnect(lab: &Lab, server: IpAddr, port: u16, during: Duration) -> anyhow::Result<Reconnects> {
    let seconds = during.as_secs_f64();
    let answer = call(lab, &json!({"command": "connect", "server": server, "port": port, "seconds": seconds}))?;
    Ok(Reconnects {
        attempts: answer["attempts"].as_u64().unwrap_or_default(),
        failures: answer["failures"].as_u64().unwrap_or_default(),
        recovered: Duration::from_secs_f64(answer["recovered_s"].as_f64().unwrap_or_default()),
    })
}

/// Speaks `before` in the clear, then `upgrade` (the command that starts TLS and one more in the same write), and
/// `after` by TLS. What the server said unasked after the handshake, and its answer to `after`.
///
/// # Errors
/// If the connection broke or its TLS could not be verified.
pub fn tls_injection(
    lab: &Lab,
    server: IpAddr,
    port: u16,
    [before, upgrade, after]: [&str; 3],
) -> anyhow::Result<(String, String)> {
    let answer = call(
        lab,
        &json!({
            "command": "inject", "server": server, "port": port, "name": MAIL_NAME, "ca": lab.ca_file(),
            "before": before, "upgrade": upgrade, "after": after,
        }),
    )?;
    let text = |key: &str| answer[key].as_str().unwrap_or_default().to_owned();
    Ok((text("unasked"), text("answer")))
}

/// What a session does while nobody wants anything of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pastime {
    /// Nothing.
    Silence,
    /// IMAP's IDLE: the server tells news unasked.
    Idle,
}

/// How long an answer of a held session may take: three repetitions of a lost packet.
const HELD_PATIENCE_S: u32 = 5;

/// IMAP sessions that stay logged in.
#[derive(Debug)]
pub struct HeldSessions {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    /// The client's port of each.
    pub ports: Vec<u64>,
}

impl HeldSessions {
    /// Logs in `count` times.
    ///
    /// # Errors
    /// If one login fails.
    pub fn open(lab: &Lab, reader: &Reader, account: &Account, count: u32, pastime: Pastime) -> anyhow::Result<Self> {
        let mut request = reader.request(lab, "hold", account);
        request["count"] = json!(count);
        request["idle"] = json!(pastime == Pastime::Idle);
        request["patience_s"] = json!(HELD_PATIENCE_S);
        let mut child = lab.spawn("client", &[PYTHON, "-c", SCRIPT])?;
        let mut input = child.stdin.take().context("no standard input")?;
        let output = BufReader::new(child.stdout.take().context("no standard output")?);
        writeln!(input, "{request}")?;
        let mut held = Self { child, input, output, ports: Vec::new() };
        let answer = held.answer()?;
        held.ports = ports_in(&answer["ports"]);
        ensure!(held.ports.len() == count as usize, "logged in {} times of {count}: {answer}", held.ports.len());
        Ok(held)
    }

    /// Tries all of them; the ports of those that broke since the last time.
    ///
    /// # Errors
    /// If the client itself ended.
    pub fn broken(&mut self) -> anyhow::Result<Vec<u64>> {
        writeln!(self.input, "check")?;
        Ok(ports_in(&self.answer()?["broken"]))
    }

    fn answer(&mut self) -> anyhow::Result<Value> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        serde_json::from_str(&line).with_context(|| format!("the mail client said {line:?}"))
    }
}

impl Drop for HeldSessions {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn ports_in(value: &Value) -> Vec<u64> {
    value.as_array().map(|ports| ports.iter().filter_map(Value::as_u64).collect()).unwrap_or_default()
}

/// Runs the mail client on the client host with one request.
fn call(lab: &Lab, request: &Value) -> anyhow::Result<Value> {
    let mut child = lab.spawn("client", &[PYTHON, "-c", SCRIPT])?;
    if let Some(mut input) = child.stdin.take() {
        writeln!(input, "{request}")?;
    }
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    let answer: Value =
        serde_json::from_slice(&output.stdout).with_context(|| format!("the mail client failed: {said}"))?;
    if let Some(error) = answer["error"].as_str() {
        bail!("mail client: {error}");
    }
    Ok(answer)
}

fn unbase64(text: &str) -> anyhow::Result<Vec<u8>> {
    BASE64_STANDARD.decode(text).context("the mail client's answer is no base64")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_told_apart() {
        let (one, two) = (Message::plain("a", "b\r\n"), Message::with_attachment("a", 1000));
        assert_ne!(one.mark, two.mark);
        assert_eq!(one.body(), b"b\r\n");
        assert!(two.body().ends_with(b"--cut--\r\n"));
    }
}
