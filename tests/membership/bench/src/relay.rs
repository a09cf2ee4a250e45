//! A network that can be spoiled: each node is reached through a relay. For UDP it loses and delays
//! datagrams. TCP hides its losses, so there the relay does to the stream what they would: a piece that
//! would be lost comes a retransmission timeout later, and everything behind it waits.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::engine::Carrier;

const LOSS: f64 = 0.3;
const JITTER: Duration = Duration::from_millis(200);
/// Linux's least retransmission timeout; it doubles with each loss of the same piece.
const RETRANSMIT: Duration = Duration::from_millis(200);
const RETRANSMIT_MAX: Duration = Duration::from_secs(6);
const LARGEST: usize = 65_535;

/// Whether the network is spoiled.
#[derive(Debug, Clone, Default)]
pub(crate) struct Fault(Arc<AtomicBool>);

impl Fault {
    pub(crate) fn spoil(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// How long a datagram is on its way; `None`: for ever.
    fn datagram(&self, rng: &mut SmallRng) -> Option<Duration> {
        if !self.0.load(Ordering::Relaxed) {
            return Some(Duration::ZERO);
        }
        let delay = rng.random_range(Duration::ZERO..=JITTER);
        (!rng.random_bool(LOSS)).then_some(delay)
    }

    /// How long a piece of a stream is on its way.
    fn piece(&self, rng: &mut SmallRng) -> Duration {
        let (mut delay, mut timeout) = (Duration::ZERO, RETRANSMIT);
        loop {
            if let Some(way) = self.datagram(rng) {
                return delay + way;
            }
            delay += timeout;
            timeout = (timeout * 2).min(RETRANSMIT_MAX);
        }
    }
}

pub(crate) struct Relay {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Relay {
    pub(crate) async fn start(carrier: Carrier, to: SocketAddr, fault: Fault, seed: u64) -> anyhow::Result<Self> {
        let any = "127.0.0.1:0";
        let rng = SmallRng::seed_from_u64(seed);
        match carrier {
            Carrier::Udp => {
                let socket = Arc::new(UdpSocket::bind(any).await?);
                Ok(Self { address: socket.local_addr()?, task: tokio::spawn(relay_udp(socket, to, fault, rng)) })
            }
            Carrier::Tcp => {
                let listener = TcpListener::bind(any).await?;
                Ok(Self { address: listener.local_addr()?, task: tokio::spawn(relay_tcp(listener, to, fault, rng)) })
            }
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Like a NAT: each client gets an own socket towards the node, so that the node can answer it.
async fn relay_udp(front: Arc<UdpSocket>, to: SocketAddr, fault: Fault, mut rng: SmallRng) {
    let mut clients: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
    let mut backward = tokio::task::JoinSet::new();
    let mut buffer = vec![0; LARGEST];
    loop {
        let Ok((length, client)) = front.recv_from(&mut buffer).await else { continue };
        let back = match clients.get(&client) {
            Some(back) => back.clone(),
            None => {
                let Ok(back) = UdpSocket::bind("127.0.0.1:0").await else { continue };
                let back = Arc::new(back);
                clients.insert(client, back.clone());
                let rng = SmallRng::seed_from_u64(rng.random());
                backward.spawn(answer_udp(back.clone(), front.clone(), client, fault.clone(), rng));
                back
            }
        };
        forward(&fault, &mut rng, &back, buffer[..length].to_vec(), to);
    }
}

async fn answer_udp(back: Arc<UdpSocket>, front: Arc<UdpSocket>, client: SocketAddr, fault: Fault, mut rng: SmallRng) {
    let mut buffer = vec![0; LARGEST];
    loop {
        let Ok((length, _)) = back.recv_from(&mut buffer).await else { continue };
        forward(&fault, &mut rng, &front, buffer[..length].to_vec(), client);
    }
}

fn forward(fault: &Fault, rng: &mut SmallRng, socket: &Arc<UdpSocket>, datagram: Vec<u8>, to: SocketAddr) {
    let Some(delay) = fault.datagram(rng) else { return };
    let socket = socket.clone();
    tokio::spawn(async move {
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        // A receiver that is down loses it, as on a network.
        drop(socket.send_to(&datagram, to).await);
    });
}

async fn relay_tcp(listener: TcpListener, to: SocketAddr, fault: Fault, mut rng: SmallRng) {
    let mut streams = tokio::task::JoinSet::new();
    loop {
        let Ok((client, _)) = listener.accept().await else { continue };
        let Ok(node) = TcpStream::connect(to).await else { continue };
        let (client_read, client_write) = client.into_split();
        let (node_read, node_write) = node.into_split();
        let (one, other) = (SmallRng::seed_from_u64(rng.random()), SmallRng::seed_from_u64(rng.random()));
        streams.spawn(pump(client_read, node_write, fault.clone(), one));
        streams.spawn(pump(node_read, client_write, fault.clone(), other));
    }
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, fault: Fault, mut rng: SmallRng) {
    let (sender, mut pieces) = mpsc::channel::<(Instant, Vec<u8>)>(1024);
    let writer = tokio::spawn(async move {
        while let Some((due, piece)) = pieces.recv().await {
            tokio::time::sleep_until(due).await;
            if to.write_all(&piece).await.is_err() {
                return;
            }
        }
    });
    let mut buffer = vec![0; LARGEST];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        let due = Instant::now() + fault.piece(&mut rng);
        if sender.send((due, buffer[..length].to_vec())).await.is_err() {
            break;
        }
    }
    drop(sender);
    // The rest still arrives; a panic in the writer cannot happen.
    drop(writer.await);
}
