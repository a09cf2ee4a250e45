//! One message on its way through: scanned and kept while it arrives, then handed on.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicU32, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use proxy_core::{
    directory::Answer,
    smtp::{Envelope, Outcome, Transaction, conclude},
};
use time::{OffsetDateTime, format_description::well_known::Rfc2822};
use tracing::{error, info, warn};

use super::Smtp;
use crate::{
    content::ContentWriter,
    relay::{Groups, Outgoing},
    scanner::{Scan, Verdict},
};

/// A message that is being received.
pub(super) struct Message<'a> {
    service: &'a Smtp,
    id: String,
    envelope: Envelope,
    peer: SocketAddr,
    content: ContentWriter<'a>,
    scan: Scan,
    /// The first failure to keep it: it is not promised any more.
    broken: Option<std::io::Error>,
}

impl<'a> Message<'a> {
    pub(super) fn begin(service: &'a Smtp, envelope: Envelope, peer: SocketAddr) -> Self {
        Self {
            service,
            id: next_id(&service.node),
            envelope,
            peer,
            content: ContentWriter::new(&service.spill_directory),
            scan: service.scanner.start(),
            broken: None,
        }
    }

    pub(super) async fn push(&mut self, piece: Vec<u8>) {
        if self.broken.is_some() {
            return;
        }
        if let Err(error) = self.content.push(&piece).await {
            error!(message = %self.id, %error, "failed to keep a message");
            self.broken = Some(error);
            return;
        }
        self.scan.push(Bytes::from(piece)).await;
    }

    pub(super) fn abort(self) {
        self.scan.abort();
    }

    /// The verdict, then the back ends; the promise is theirs.
    pub(super) async fn finish(self) -> (String, Outcome) {
        let Self { service, id, envelope, peer, content, scan, broken } = self;
        service.metrics.message_bytes.inc_by(content.length());
        let refuse = |outcome| (id.clone(), outcome);
        if broken.is_some() {
            scan.abort();
            return refuse(Outcome::Deferred { text: "No room to keep the message".to_owned() });
        }
        match scan.finish().await {
            Ok(Verdict::Clean) => {}
            Ok(Verdict::Infected { signature }) => return refuse(Outcome::Infected { signature }),
            Err(error) => {
                warn!(message = %id, error = format!("{error:#}"), "not scanned");
                return refuse(Outcome::ScannerUnavailable);
            }
        }
        let content = match content.finish().await {
            Ok(content) => content,
            Err(error) => {
                error!(message = %id, %error, "failed to keep a message");
                return refuse(Outcome::Deferred { text: "No room to keep the message".to_owned() });
            }
        };
        let Some(groups) = groups(service, &envelope, content.length()) else {
            return refuse(Outcome::Deferred { text: "A recipient has just gone".to_owned() });
        };
        let backends: Vec<_> = groups.keys().map(ToString::to_string).collect();
        info!(message = %id, bytes = content.length(), recipients = envelope.recipients.len(), backends = backends.join(","), "relaying");
        let outgoing = Outgoing { trace: trace(service, &id, &envelope, peer), content };
        let outcome = conclude(service.relay.deliver(groups, &outgoing).await);
        (id.clone(), named(outcome, &id))
    }
}

/// The reply to the sender names our id for the message, so that both logs can be found by it.
fn named(outcome: Outcome, id: &str) -> Outcome {
    if let Outcome::Accepted(accepted) = outcome { Outcome::Accepted(accepted.with_id(id)) } else { outcome }
}

/// Recipients by back end; `None` if one is no longer known, which only happens between its RCPT and now.
fn groups(service: &Smtp, envelope: &Envelope, size: u64) -> Option<Groups> {
    let mut groups = Groups::new();
    for recipient in &envelope.recipients {
        let Answer::Known(route) = service.directory.lookup(recipient) else { return None };
        let record = service.directory.backend(&route.backend)?;
        let transaction = Transaction {
            sender: envelope.sender.clone(),
            recipients: vec![],
            smtputf8: envelope.smtputf8,
            body_8bit: envelope.body_8bit,
            size,
        };
        let (_, transaction) = groups.entry(route.backend).or_insert((record, transaction));
        transaction.recipients.push(route.mailbox);
    }
    Some(groups)
}

/// Received (RFC 5321 section 4.4): where it came from is what its bearer cannot forge.
fn trace(service: &Smtp, id: &str, envelope: &Envelope, peer: SocketAddr) -> Vec<u8> {
    // RFC 3848, RFC 6531 section 4.3.
    let with = match (envelope.smtputf8, envelope.esmtp, envelope.tls) {
        (true, _, true) => "UTF8SMTPS",
        (true, _, false) => "UTF8SMTP",
        (false, true, true) => "ESMTPS",
        (false, true, false) => "ESMTP",
        (false, false, _) => "SMTP",
    };
    let address = match peer.ip().to_canonical() {
        std::net::IpAddr::V4(v4) => format!("[{v4}]"),
        std::net::IpAddr::V6(v6) => format!("[IPv6:{v6}]"),
    };
    let date = OffsetDateTime::now_utc().format(&Rfc2822).unwrap_or_default();
    let helo = &envelope.helo;
    let hostname = &service.config.hostname;
    format!("Received: from {helo} ({address})\r\n\tby {hostname} (AutoCluster) with {with} id {id};\r\n\t{date}\r\n")
        .into_bytes()
}

/// Node, time and a count: unique in the pool for as long as clocks do not repeat a microsecond.
fn next_id(node: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let micros = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_micros());
    format!("{node}-{micros:x}-{:x}", COUNT.fetch_add(1, Ordering::Relaxed))
}
