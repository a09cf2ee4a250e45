//! Sockets: plain or encrypted, accepted or dialled. Knows nothing of mail.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::atomic::{AtomicU64, Ordering},
    task::{Context, Poll},
    time::Duration,
};

use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::{TcpListener, TcpSocket, TcpStream},
};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 1_024;
/// A peer that is gone without a word is noticed after this and a few probes: mail clients idle for hours.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(120);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
/// After `accept(2)` failed for want of a resource (file descriptors, mostly), before it is tried again: closing
/// sessions will help, spinning will not.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// What one direction of a joined session copies at a time.
const COPY_BUFFER: usize = 16 * 1024;

/// A TCP connection that TLS may have been started on.
#[derive(Debug)]
pub enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Binds a listening socket.
///
/// # Errors
/// As `bind(2)` and `listen(2)`.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A restarted daemon must not wait for the connections of the last one.
    socket.set_reuseaddr(true)?;
    if address.is_ipv6() {
        SockRef::from(&socket).set_only_v6(true)?;
    }
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Sets what every connection of ours has: no waiting for more to send, and probes of silent peers.
///
/// # Errors
/// As `setsockopt(2)`.
pub fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL);
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

impl Stream {
    /// Dials.
    ///
    /// # Errors
    /// As `connect(2)`; [`io::ErrorKind::TimedOut`] after `deadline`.
    pub async fn connect(address: SocketAddr, deadline: Duration) -> io::Result<Self> {
        let stream = tokio::time::timeout(deadline, TcpStream::connect(address)).await??;
        prepare(&stream)?;
        Ok(Self::Plain(stream))
    }

    /// Shakes hands as the server.
    ///
    /// # Errors
    /// The handshake failed, or TLS is active already.
    pub async fn accept_tls(self, acceptor: &TlsAcceptor) -> io::Result<Self> {
        let stream = acceptor.accept(self.into_plain()?).await?;
        Ok(Self::Tls(Box::new(stream.into())))
    }

    /// Shakes hands as the client.
    ///
    /// # Errors
    /// The handshake failed, or TLS is active already.
    pub async fn connect_tls(self, connector: &TlsConnector, name: ServerName<'static>) -> io::Result<Self> {
        let stream = connector.connect(name, self.into_plain()?).await?;
        Ok(Self::Tls(Box::new(stream.into())))
    }

    fn into_plain(self) -> io::Result<TcpStream> {
        match self {
            Self::Plain(stream) => Ok(stream),
            Self::Tls(_) => Err(io::Error::other("TLS is active already")),
        }
    }

    /// Waits until the peer has said something, without taking it; false if `patience` ends first.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn speaks_within(&self, patience: Duration) -> io::Result<bool> {
        let Self::Plain(stream) = self else { return Ok(false) };
        match tokio::time::timeout(patience, stream.peek(&mut [0])).await {
            Ok(peeked) => Ok(peeked? > 0),
            Err(_elapsed) => Ok(false),
        }
    }
}

/// Joins two connections: what one says goes to the other, until both have ended, one breaks, or neither says
/// anything for `idle`. Returns the bytes that went to `a` and to `b`.
///
/// # Errors
/// [`io::ErrorKind::TimedOut`] after silence; whatever broke a connection.
pub async fn join(a: &mut Stream, b: &mut Stream, idle: Duration) -> io::Result<(u64, u64)> {
    let (mut a_read, mut a_write) = tokio::io::split(a);
    let (mut b_read, mut b_write) = tokio::io::split(b);
    let heard = Heard::new();
    let both =
        async { tokio::try_join!(copy(&mut b_read, &mut a_write, &heard), copy(&mut a_read, &mut b_write, &heard)) };
    tokio::select! {
        copied = both => copied,
        () = heard.silence(idle) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// When something was last heard, for both directions of a session: milliseconds after the start.
struct Heard {
    start: tokio::time::Instant,
    last_ms: AtomicU64,
}

impl Heard {
    fn new() -> Self {
        Self { start: tokio::time::Instant::now(), last_ms: AtomicU64::new(0) }
    }

    fn now(&self) {
        let elapsed = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_ms.store(elapsed, Ordering::Relaxed);
    }

    async fn silence(&self, idle: Duration) {
        loop {
            let until = self.start + Duration::from_millis(self.last_ms.load(Ordering::Relaxed)) + idle;
            if until <= tokio::time::Instant::now() {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }
}

async fn copy(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    heard: &Heard,
) -> io::Result<u64> {
    let mut buffer = vec![0; COPY_BUFFER];
    let mut total = 0;
    loop {
        let read = match from.read(&mut buffer).await {
            // Many clients close TLS without saying so; it ends this direction all the same.
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => 0,
            read => read?,
        };
        heard.now();
        if read == 0 {
            to.shutdown().await?;
            return Ok(total);
        }
        to.write_all(&buffer[..read]).await?;
        to.flush().await?;
        total += read as u64;
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
