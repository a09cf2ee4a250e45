//! Hands a message on to back ends: one transaction to each, all at once.

use std::{collections::BTreeMap, io, net::SocketAddr, time::Duration};

use bytes::{Buf, BytesMut};
use proxy_core::{
    directory::{BackendRecord, Endpoint, EndpointTls, SourceName},
    smtp::{Delivery, DeliveryAction, DeliveryResult, DotStuffer, Protocol, Transaction},
};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;
use tracing::{debug, info, warn};

use crate::{content::Content, io::Stream, pki::Role};

/// From the final dot to the reply: the back end is storing the message (RFC 5321 section 4.5.3.2.6 says 10 minutes).
const FINAL_REPLY_DEADLINE: Duration = Duration::from_secs(600);
/// A back end that does not know a user whom the directory knows is asked again after this: Dovecot looks at its
/// passwd-file once a second.
const UNKNOWN_PAUSE: Duration = Duration::from_millis(1_200);
/// Pieces of content are written in blocks of about this.
const WRITE_BLOCK: usize = 64 * 1024;
const READ_BUFFER: usize = 4 * 1024;

/// How to reach back ends.
#[derive(Clone)]
pub struct Relay {
    pub hostname: String,
    pub connector: TlsConnector,
    /// Connecting, and each reply but the final one.
    pub deadline: Duration,
}

/// A message, ready to be handed on.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// Our trace header (RFC 5321 section 4.4), in front of the content.
    pub trace: Vec<u8>,
    pub content: Content,
}

/// Recipients by back end.
pub type Groups = BTreeMap<SourceName, (BackendRecord, Transaction)>;

impl Relay {
    /// Delivers to every back end and waits for all of them.
    pub async fn deliver(&self, groups: Groups, message: &Outgoing) -> Vec<DeliveryResult> {
        let deliveries = groups.into_iter().map(|(backend, (record, transaction))| async move {
            self.deliver_to(&backend, &record, transaction, message).await
        });
        futures_util::future::join_all(deliveries).await
    }

    async fn deliver_to(
        &self,
        backend: &SourceName,
        record: &BackendRecord,
        transaction: Transaction,
        message: &Outgoing,
    ) -> DeliveryResult {
        let first = self.attempt(backend, record, transaction.clone(), message).await;
        if !first.unknown_everywhere() {
            return first;
        }
        debug!(%backend, "the back end does not know its user yet");
        tokio::time::sleep(UNKNOWN_PAUSE).await;
        self.attempt(backend, record, transaction, message).await
    }

    async fn attempt(
        &self,
        backend: &SourceName,
        record: &BackendRecord,
        transaction: Transaction,
        message: &Outgoing,
    ) -> DeliveryResult {
        let (protocol, endpoint) = choose(record, &transaction);
        let mut delivery = Delivery::new(protocol, &self.hostname, transaction);
        let mut result = None;
        let attempt = async {
            let endpoint = endpoint.ok_or_else(|| io::Error::other("the back end takes no mail"))?;
            let stream = self.connect(backend, endpoint).await?;
            converse(stream, &mut delivery, message, self.deadline, &mut result).await?;
            Ok::<SocketAddr, io::Error>(endpoint.address)
        };
        match attempt.await {
            Ok(address) => info!(%backend, %address, "delivered"),
            Err(error) => warn!(%backend, %error, "delivery broke off"),
        }
        result.unwrap_or_else(|| settle(&mut delivery))
    }

    /// Connects to a service of a back end, by TLS if it wants so.
    ///
    /// # Errors
    /// It cannot be reached, or it is not who the directory says.
    pub async fn connect(&self, backend: &SourceName, endpoint: Endpoint) -> io::Result<Stream> {
        let stream = Stream::connect(endpoint.address, self.deadline).await?;
        match endpoint.tls {
            EndpointTls::None => Ok(stream),
            EndpointTls::Implicit => {
                let name = Role::Backend.node_server_name(backend.as_str());
                let name = ServerName::try_from(name).map_err(io::Error::other)?;
                tokio::time::timeout(self.deadline, stream.connect_tls(&self.connector, name)).await?
            }
        }
    }
}

/// LMTP is preferred: it is final delivery, with an answer for each recipient. But the LMTP servers in use
/// know no SMTPUTF8, so addresses that need it go by SMTP where the back end has both.
fn choose(record: &BackendRecord, transaction: &Transaction) -> (Protocol, Option<Endpoint>) {
    let services = &record.services;
    let ascii = transaction.sender.iter().chain(&transaction.recipients).all(proxy_core::address::Address::is_ascii);
    match (services.lmtp, services.smtp) {
        (Some(lmtp), None) => (Protocol::Lmtp, Some(lmtp)),
        (Some(lmtp), Some(_)) if ascii => (Protocol::Lmtp, Some(lmtp)),
        (_, smtp) => (Protocol::Smtp, smtp),
    }
}

/// Whoever is not settled when the conversation has ended is deferred by the machine.
fn settle(delivery: &mut Delivery) -> DeliveryResult {
    loop {
        match delivery.poll_action() {
            Some(DeliveryAction::Done(result)) => return result,
            Some(DeliveryAction::Send(_) | DeliveryAction::SendBody) => {}
            None => delivery.handle_eof(),
        }
    }
}

async fn converse(
    mut stream: Stream,
    delivery: &mut Delivery,
    message: &Outgoing,
    deadline: Duration,
    result: &mut Option<DeliveryResult>,
) -> io::Result<()> {
    let mut input = BytesMut::with_capacity(READ_BUFFER);
    let mut patience = deadline;
    loop {
        while let Some(action) = delivery.poll_action() {
            match action {
                DeliveryAction::Send(bytes) => tokio::time::timeout(deadline, write(&mut stream, &bytes)).await??,
                DeliveryAction::SendBody => {
                    send_body(&mut stream, message, deadline).await?;
                    delivery.body_sent();
                    patience = FINAL_REPLY_DEADLINE;
                }
                DeliveryAction::Done(done) => {
                    *result = Some(done);
                    // The machine may still want to say QUIT; nobody waits for the answer.
                    if let Some(DeliveryAction::Send(quit)) = delivery.poll_action() {
                        let _impolite = tokio::time::timeout(deadline, write(&mut stream, &quit)).await;
                    }
                    return Ok(());
                }
            }
        }
        input.clear();
        if tokio::time::timeout(patience, stream.read_buf(&mut input)).await?? == 0 {
            delivery.handle_eof();
        }
        while !input.is_empty() {
            let used = delivery.handle_input(&input);
            input.advance(used);
            if used == 0 {
                break;
            }
        }
    }
}

async fn write(stream: &mut Stream, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await
}

/// The trace header and the content, dot-stuffed, and the final dot.
async fn send_body(stream: &mut Stream, message: &Outgoing, deadline: Duration) -> io::Result<()> {
    let mut stuffer = DotStuffer::new();
    let mut block = Vec::with_capacity(WRITE_BLOCK + WRITE_BLOCK / 8);
    stuffer.push(&message.trace, &mut block);
    let mut offset = 0;
    loop {
        let piece = message.content.read_at(offset).await?;
        if piece.is_empty() {
            break;
        }
        offset += piece.len() as u64;
        stuffer.push(&piece, &mut block);
        if block.len() >= WRITE_BLOCK {
            tokio::time::timeout(deadline, stream.write_all(&block)).await??;
            block.clear();
        }
    }
    stuffer.finish(&mut block);
    tokio::time::timeout(deadline, write(stream, &block)).await?
}
