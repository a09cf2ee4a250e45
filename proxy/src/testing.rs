//! Helpers of the daemon's own tests.

use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use tokio::runtime::Runtime;

use crate::pki::{self, CA_CERTIFICATE_FILE, IssueRequest, Role};
use crate::transport::{Identity, Incoming, Transport, Tuning};

/// Runs a test in a network namespace of its own, which ends with the thread. Without the right to make one the test
/// is skipped and says so.
pub(crate) fn in_network_namespace(name: &'static str, test: impl AsyncFnOnce() + Send + 'static) {
    let run = move || {
        if let Err(error) = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET) {
            eprintln!("skipped {name}: needs CAP_SYS_ADMIN for a network namespace ({error})");
            return;
        }
        // One thread only: the namespace belongs to the thread.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test());
    };
    std::thread::spawn(run).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

/// Runs `ip` with these words in the caller's namespace.
pub(crate) fn ip(words: &str) {
    let output = Command::new("ip").args(words.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Every wait of these tests ends after this at the latest; none takes this long when the code is right.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) struct Pool {
    pub(crate) dir: tempfile::TempDir,
}

impl Pool {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        pki::init(dir.path(), false).unwrap();
        Self { dir }
    }

    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }

    pub(crate) fn identity(&self, role: Role, name: &str) -> Identity {
        identity_of(self.dir.path(), &self.path(CA_CERTIFICATE_FILE), role, name)
    }

    pub(crate) fn frontend(&self, name: &str, tuning: Tuning) -> (Transport, Incoming, SocketAddr) {
        bind(&self.identity(Role::Frontend, name), localhost(0), tuning)
    }
}

pub(crate) fn identity_of(issuer: &Path, trusted_ca: &Path, role: Role, name: &str) -> Identity {
    let request = IssueRequest { dir: issuer, role, name, out: None, sans: &[], force: true };
    let issued = pki::issue(&request).unwrap();
    Identity::load(trusted_ca, &issued.certificate, &issued.key).unwrap()
}

pub(crate) fn localhost(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// A loopback address with a port to be chosen that nothing else uses: a victim's port must not be taken by another
/// test, or another run, between its death and its return.
pub(crate) fn own_loopback() -> SocketAddr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    SocketAddr::from(([127, high | 0x80, low, NEXT.fetch_add(1, Ordering::Relaxed)], 0))
}

pub(crate) fn bind(identity: &Identity, listen: SocketAddr, tuning: Tuning) -> (Transport, Incoming, SocketAddr) {
    let (transport, incoming) = Transport::bind_with(listen, identity, tuning).unwrap();
    let address = transport.local_addr().unwrap();
    (transport, incoming, address)
}

pub(crate) async fn within<F: Future>(what: &str, future: F) -> F::Output {
    tokio::time::timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("{what}: not within {DEADLINE:?}"))
}

pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    within(what, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// Something in a runtime of its own, which can be killed: nothing is said to the peers.
pub(crate) struct Victim {
    runtime: Killable,
    pub(crate) transport: Transport,
    pub(crate) incoming: Incoming,
    pub(crate) address: SocketAddr,
}

/// A runtime that ends without waiting for its tasks (and may, unlike a bare one, be dropped within another).
struct Killable(Option<Runtime>);

impl Drop for Killable {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl Victim {
    pub(crate) fn start(identity: &Identity, listen: SocketAddr, tuning: Tuning) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (transport, incoming, address) = {
            let _entered = runtime.enter();
            bind(identity, listen, tuning)
        };
        Self { runtime: Killable(Some(runtime)), transport, incoming, address }
    }

    /// Runs something that spawns tasks within the victim.
    pub(crate) fn within_runtime<T>(&self, work: impl FnOnce() -> T) -> T {
        let _entered = self.runtime.0.as_ref().unwrap().enter();
        work()
    }

    /// Ends it without a word and returns when its port is free.
    pub(crate) async fn kill(self) -> SocketAddr {
        let address = self.address;
        drop((self.transport, self.incoming));
        drop(self.runtime);
        until("the port", || std::net::UdpSocket::bind(address).is_ok()).await;
        address
    }
}
