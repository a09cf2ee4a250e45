//! One QUIC connection to each peer, dialled when there is something to send.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use membership_node::{Command, Report, Setup};
use proxy_core::cluster::Transmit;
use quinn::{Connection, Endpoint};
use tokio::sync::mpsc::Sender;

use crate::tls;

/// Datagrams that wait for a connection; the oldest give way.
const MAX_WAITING: usize = 16;
const DIAL_TIMEOUT: Duration = Duration::from_secs(3);
const PIECE: usize = 64 * 1024;

pub(crate) enum Input {
    Datagram(SocketAddr, Bytes),
    Open(Connection),
    Closed(SocketAddr, Option<usize>),
    Command(Command),
}

pub(crate) struct Links {
    endpoint: Endpoint,
    inputs: Sender<Input>,
    open: HashMap<SocketAddr, Connection>,
    dialling: HashMap<SocketAddr, Vec<Bytes>>,
}

impl Links {
    pub(crate) fn new(setup: &Setup, inputs: Sender<Input>) -> anyhow::Result<Self> {
        let (server, client) = tls::configs(&setup.pki)?;
        let mut endpoint = Endpoint::server(server, setup.listen)?;
        endpoint.set_default_client_config(client);
        tokio::spawn(accept(endpoint.clone(), inputs.clone()));
        Ok(Self { endpoint, inputs, open: HashMap::new(), dialling: HashMap::new() })
    }

    pub(crate) fn send(&mut self, transmit: Transmit) {
        let payload = Bytes::from(transmit.payload);
        if let Some(connection) = self.open.get(&transmit.to) {
            // A connection that cannot send is about to be reported closed.
            if connection.send_datagram(payload).is_err() {
                self.open.remove(&transmit.to);
            }
            return;
        }
        let is_new = !self.dialling.contains_key(&transmit.to);
        let waiting = self.dialling.entry(transmit.to).or_default();
        if waiting.len() >= MAX_WAITING {
            waiting.remove(0);
        }
        waiting.push(payload);
        if is_new {
            tokio::spawn(dial(self.endpoint.clone(), transmit.to, self.inputs.clone()));
        }
    }

    pub(crate) fn opened(&mut self, connection: &Connection) {
        let peer = connection.remote_address();
        for payload in self.dialling.remove(&peer).unwrap_or_default() {
            drop(connection.send_datagram(payload));
        }
        // The newest is the best: the peer may have been restarted.
        self.open.insert(peer, connection.clone());
        tokio::spawn(read_datagrams(connection.clone(), self.inputs.clone()));
        tokio::spawn(read_bulk(connection.clone()));
    }

    pub(crate) fn closed(&mut self, to: SocketAddr, id: Option<usize>) {
        match id {
            None => drop(self.dialling.remove(&to)),
            Some(id) if self.open.get(&to).is_some_and(|open| open.stable_id() == id) => drop(self.open.remove(&to)),
            Some(_) => {}
        }
    }

    /// The peer is dead: do not wait for the idle timeout.
    pub(crate) fn forget(&mut self, peer: SocketAddr) {
        if let Some(connection) = self.open.remove(&peer) {
            connection.close(0_u8.into(), b"dead");
        }
    }

    pub(crate) fn send_bulk(&self, to: SocketAddr, octets: usize) {
        let Some(connection) = self.open.get(&to).cloned() else { return };
        tokio::spawn(async move {
            let mut stream = connection.open_uni().await?;
            let piece = vec![7_u8; PIECE];
            let mut left = octets;
            while left > 0 {
                let now = left.min(PIECE);
                stream.write_all(&piece[..now]).await?;
                left -= now;
            }
            stream.finish()?;
            stream.stopped().await?;
            anyhow::Ok(())
        });
    }
}

async fn accept(endpoint: Endpoint, inputs: Sender<Input>) {
    while let Some(incoming) = endpoint.accept().await {
        let inputs = inputs.clone();
        tokio::spawn(async move {
            if let Ok(connection) = incoming.await {
                drop(inputs.send(Input::Open(connection)).await);
            }
        });
    }
}

async fn dial(endpoint: Endpoint, to: SocketAddr, inputs: Sender<Input>) {
    let outcome = match endpoint.connect(to, tls::SERVER_NAME) {
        Ok(connecting) => tokio::time::timeout(DIAL_TIMEOUT, connecting).await.ok().and_then(Result::ok),
        Err(_) => None,
    };
    let input = outcome.map_or(Input::Closed(to, None), Input::Open);
    drop(inputs.send(input).await);
}

async fn read_datagrams(connection: Connection, inputs: Sender<Input>) {
    let peer = connection.remote_address();
    while let Ok(bytes) = connection.read_datagram().await {
        if inputs.send(Input::Datagram(peer, bytes)).await.is_err() {
            return;
        }
    }
    drop(inputs.send(Input::Closed(peer, Some(connection.stable_id()))).await);
}

async fn read_bulk(connection: Connection) {
    while let Ok(mut stream) = connection.accept_uni().await {
        let mut octets = 0;
        while let Ok(Some(chunk)) = stream.read_chunk(usize::MAX, true).await {
            octets += chunk.bytes.len();
        }
        Report::Bulk(octets).send();
    }
}
