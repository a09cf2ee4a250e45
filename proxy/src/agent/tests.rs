//! Agents and front ends together, the same suite over pipes in memory and over QUIC.

use std::collections::HashMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use proxy_core::address::Address;
use proxy_core::directory::{Answer, BackendRecord, SourceName};
use tokio::io::{DuplexStream, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, watch as channel};
use tokio::task::JoinHandle;

use super::config::PasswdFileSource;
use super::*;
use crate::config::{IdentityFiles, Log, LogFormat};
use crate::drivers::directory::{DirectoryDriver, SharedDirectory};
use crate::pki::{self, IssueRequest};

/// Every wait of these tests ends after this at the latest; none takes this long when the code is right.
const DEADLINE: Duration = Duration::from_secs(20);
/// A change must be known so soon.
const PROMPT: Duration = Duration::from_millis(300);

/// How agents reach front ends.
trait Network: Sized {
    type Dialler: Dial;
    fn new() -> Self;
    fn dialler(&self, source: &str) -> Self::Dialler;
    /// Starts to serve a front end, at an address that it had before or at a new one.
    fn listen(&self, at: Option<SocketAddr>, driver: Arc<DirectoryDriver>) -> (SocketAddr, Vec<JoinHandle<()>>);
    /// Ends it without a word.
    fn silence(&self, at: SocketAddr);
}

type Accepted = (SourceName, DuplexStream);

/// Pipes in memory.
#[derive(Clone, Default)]
struct Pipes(Arc<Mutex<HashMap<SocketAddr, mpsc::Sender<Accepted>>>>);

struct PipeDialler(Pipes, SourceName);

impl Dial for PipeDialler {
    type Reader = ReadHalf<DuplexStream>;
    type Writer = WriteHalf<DuplexStream>;

    async fn dial(&self, to: SocketAddr) -> Result<(Self::Reader, Self::Writer)> {
        let listener = self.0.0.lock().unwrap().get(&to).cloned().context("nobody listens")?;
        let (ours, theirs) = tokio::io::duplex(4096); // small: writers do wait
        listener.send((self.1.clone(), theirs)).await?;
        Ok(tokio::io::split(ours))
    }
}

impl Network for Pipes {
    type Dialler = PipeDialler;

    fn new() -> Self {
        Self::default()
    }

    fn dialler(&self, source: &str) -> PipeDialler {
        PipeDialler(self.clone(), SourceName::parse(source).unwrap())
    }

    fn listen(&self, at: Option<SocketAddr>, driver: Arc<DirectoryDriver>) -> (SocketAddr, Vec<JoinHandle<()>>) {
        let (listener, mut accepted) = mpsc::channel::<Accepted>(8);
        let mut listeners = self.0.lock().unwrap();
        let port = 7000 + u16::try_from(listeners.len()).unwrap();
        let at = at.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], port)));
        listeners.insert(at, listener);
        let serving = tokio::spawn(async move {
            let mut streams = tokio::task::JoinSet::new(); // ends them when this task is aborted
            while let Some((source, stream)) = accepted.recv().await {
                let driver = Arc::clone(&driver);
                let (reader, writer) = tokio::io::split(stream);
                streams.spawn(async move { driver.serve(source, reader, writer).await.unwrap_err() });
            }
        });
        (at, vec![serving])
    }

    fn silence(&self, at: SocketAddr) {
        self.0.lock().unwrap().remove(&at);
    }
}

/// The pool's transport.
struct Quic {
    pki: tempfile::TempDir,
    transports: Mutex<HashMap<SocketAddr, Transport>>,
}

impl Quic {
    fn identity(&self, role: Role, name: &str) -> Identity {
        let request = IssueRequest { dir: self.pki.path(), role, name, out: None, sans: &[], force: true };
        let issued = pki::issue(&request).unwrap();
        Identity::load(&self.pki.path().join(pki::CA_CERTIFICATE_FILE), &issued.certificate, &issued.key).unwrap()
    }
}

impl Network for Quic {
    type Dialler = Dialler;

    fn new() -> Self {
        let pki = tempfile::tempdir().unwrap();
        pki::init(pki.path(), false).unwrap();
        Self { pki, transports: Mutex::default() }
    }

    fn dialler(&self, source: &str) -> Dialler {
        Dialler(bind(&self.identity(Role::Backend, source)).unwrap())
    }

    fn listen(&self, at: Option<SocketAddr>, driver: Arc<DirectoryDriver>) -> (SocketAddr, Vec<JoinHandle<()>>) {
        let at = at.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)));
        let identity = self.identity(Role::Frontend, "fe");
        let begun = Instant::now();
        let (transport, incoming) = loop {
            // The last life's socket is closed by a task of its own.
            match Transport::bind(at, &identity) {
                Ok(bound) => break bound,
                Err(error) => assert!(begun.elapsed() < DEADLINE, "{error:#}"),
            }
        };
        let at = transport.local_addr().unwrap();
        self.transports.lock().unwrap().insert(at, transport);
        (at, vec![tokio::spawn(driver.run(incoming.streams))])
    }

    fn silence(&self, at: SocketAddr) {
        if let Some(transport) = self.transports.lock().unwrap().remove(&at) {
            tokio::spawn(async move { transport.shutdown().await });
        }
    }
}

/// A front end and what it stores.
struct FrontEnd {
    state: tempfile::TempDir,
    directory: SharedDirectory,
    address: SocketAddr,
    driver: Arc<DirectoryDriver>,
    list: channel::Sender<Vec<SocketAddr>>,
    tasks: Vec<JoinHandle<()>>,
}

impl FrontEnd {
    fn start(network: &impl Network) -> Self {
        Self::start_at(network, None, tempfile::tempdir().unwrap())
    }

    fn start_at(network: &impl Network, at: Option<SocketAddr>, state: tempfile::TempDir) -> Self {
        let (list, frontends) = channel::channel(Vec::new());
        let driver = DirectoryDriver::open_with(state.path(), frontends, Duration::ZERO).unwrap();
        let (address, tasks) = network.listen(at, Arc::clone(&driver));
        Self { state, directory: driver.directory(), address, driver, list, tasks }
    }

    /// Stops it as a crash would, and starts it again from what it stored.
    async fn restart(self, network: &impl Network, between: impl FnOnce(&Path)) -> Self {
        self.driver.store_now().await.unwrap();
        network.silence(self.address);
        for task in &self.tasks {
            task.abort();
        }
        between(&self.state.path().join("directory"));
        Self::start_at(network, Some(self.address), self.state)
    }

    fn answer(&self, address: &str) -> Answer {
        self.directory.lookup(&Address::parse(address).unwrap())
    }

    fn knows(&self, address: &str) -> bool {
        matches!(self.answer(address), Answer::Known(_))
    }
}

/// A back end's file of users and the agent beside it.
struct BackEnd {
    dir: tempfile::TempDir,
    agent: Option<JoinHandle<Result<Infallible>>>,
    name: String,
}

impl BackEnd {
    fn new(name: &str, users: &[&str]) -> Self {
        let back_end = Self { dir: tempfile::tempdir().unwrap(), agent: None, name: name.into() };
        std::fs::write(back_end.file(), lines(users)).unwrap();
        back_end
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("users")
    }

    fn start(&mut self, network: &impl Network, frontends: &[&FrontEnd]) {
        let nowhere = || PathBuf::from("nowhere");
        let config = AgentConfig {
            name: SourceName::parse(&self.name).unwrap(),
            frontends: frontends.iter().map(|frontend| frontend.address).collect(),
            identity: IdentityFiles { ca: nowhere(), certificate: nowhere(), key: nowhere() },
            source: PasswdFileSource { path: self.file(), default_domain: None },
            record: BackendRecord { recipient_delimiter: Some('+'), ..BackendRecord::default() },
            log: Log { format: LogFormat::Text, filter: String::new() },
        };
        self.agent = Some(tokio::spawn(serve(config, network.dialler(&self.name))));
    }

    fn append(&self, user: &str) {
        let mut file = std::fs::OpenOptions::new().append(true).open(self.file()).unwrap();
        file.write_all(lines(&[user]).as_bytes()).unwrap();
    }

    /// As editors do.
    fn replace(&self, users: &[&str]) {
        let new = self.dir.path().join("users.new");
        std::fs::write(&new, lines(users)).unwrap();
        std::fs::rename(new, self.file()).unwrap();
    }

    fn stop(&mut self) {
        if let Some(agent) = self.agent.take() {
            agent.abort();
        }
    }
}

impl Drop for BackEnd {
    fn drop(&mut self) {
        self.stop();
    }
}

fn lines(users: &[&str]) -> String {
    users.iter().map(|user| format!("{user}:{{PLAIN}}secret:::::\n")).collect()
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) -> Duration {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < DEADLINE, "{what}: not within {DEADLINE:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    begun.elapsed()
}

/// The fastest of a few tries must be prompt: other work on the machine delays one, not all.
async fn promptly(what: &str, tries: usize, mut change: impl FnMut(usize), mut seen: impl FnMut(usize) -> bool) {
    let mut fastest = DEADLINE;
    for nth in 0..tries {
        change(nth);
        fastest = fastest.min(until(what, || seen(nth)).await);
    }
    println!("{what}: {fastest:?}");
    assert!(fastest < PROMPT, "{what}: {fastest:?}");
}

async fn a_change_is_known_at_once<N: Network>() {
    let network = N::new();
    let frontend = FrontEnd::start(&network);
    let mut back_end = BackEnd::new("be1", &["alice@a.test", "Bob@a.test"]);
    back_end.start(&network, &[&frontend]);
    until("the first users", || frontend.answer("nobody@a.test") == Answer::UnknownUser).await;
    assert!(frontend.knows("bob+list@a.test"));
    assert_eq!(frontend.answer("alice@b.test"), Answer::UnknownDomain);
    let user = |nth: usize| format!("new{nth}@a.test");
    promptly("appended", 5, |nth| back_end.append(&user(nth)), |nth| frontend.knows(&user(nth))).await;
    let users = |nth: usize| -> Vec<String> { (0..=nth).map(|n| format!("u{n}@c.test")).collect() };
    let replace = |nth: usize| {
        let mut all = vec!["alice@a.test".into(), "Bob@a.test".into()];
        all.extend((0..5).map(user).chain(users(nth)));
        back_end.replace(&all.iter().map(String::as_str).collect::<Vec<_>>());
    };
    promptly("replaced", 5, replace, |nth| frontend.knows(&format!("u{nth}@c.test"))).await;
    // Removing most of a domain takes longer, but happens.
    back_end.replace(&["alice@a.test", "u0@c.test"]);
    until("removed", || frontend.answer("bob@a.test") == Answer::UnknownUser).await;
    // An emptied file does not.
    std::fs::write(back_end.file(), "").unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(frontend.knows("alice@a.test"));
    back_end.replace(&["u1@c.test"]);
    until("refilled", || frontend.answer("alice@a.test") == Answer::UnknownDomain && frontend.knows("u1@c.test")).await;
}

async fn a_restarted_front_end_knows_its_users<N: Network>() {
    let network = N::new();
    let frontend = FrontEnd::start(&network);
    let (mut one, mut two) = (BackEnd::new("be1", &["alice@a.test"]), BackEnd::new("be2", &["bob@b.test"]));
    one.start(&network, &[&frontend]);
    two.start(&network, &[&frontend]);
    let both = |f: &FrontEnd| f.knows("bob@b.test") && f.answer("nobody@z.test") == Answer::UnknownDomain;
    until("both", || frontend.knows("alice@a.test") && both(&frontend)).await;
    one.stop();
    two.stop();

    let frontend = frontend.restart(&network, |_| {}).await;
    assert!(frontend.knows("alice@a.test") && frontend.knows("bob@b.test"));
    for who in ["nobody@a.test", "nobody@z.test"] {
        assert_eq!(frontend.answer(who), Answer::NotSure, "{who}");
    }
    one.start(&network, &[&frontend]);
    until("one is back", || frontend.answer("nobody@a.test") == Answer::UnknownUser).await;
    assert_eq!(frontend.answer("nobody@b.test"), Answer::NotSure);
    assert_eq!(frontend.answer("nobody@z.test"), Answer::NotSure);
    one.stop();

    // A damaged file: its users are not known, and nobody is unknown before the source has spoken.
    let damage = |dir: &Path| {
        let file = dir.join("sources").join("be2");
        let content = std::fs::read(&file).unwrap();
        std::fs::write(&file, &content[..content.len() - 1]).unwrap();
        std::fs::write(dir.join("registry"), "nonsense").unwrap();
    };
    let frontend = frontend.restart(&network, damage).await;
    one.start(&network, &[&frontend]);
    until("one is back", || frontend.directory.read().counts(Instant::now())[0].fresh).await;
    for who in ["bob@b.test", "nobody@a.test", "nobody@z.test"] {
        assert_eq!(frontend.answer(who), Answer::NotSure, "{who}");
    }
    two.start(&network, &[&frontend]);
    until("both", || both(&frontend)).await;

    // An operator forgets a back end that will not come back.
    two.stop();
    frontend.driver.forget(&SourceName::parse("be2").unwrap()).await.unwrap();
    let frontend = frontend.restart(&network, |_| {}).await;
    until("one is all", || frontend.answer("bob@b.test") == Answer::UnknownDomain).await;
}

async fn an_agent_may_restart_and_learns_front_ends<N: Network>() {
    let network = N::new();
    let (first, second) = (FrontEnd::start(&network), FrontEnd::start(&network));
    let mut back_end = BackEnd::new("be1", &["alice@a.test", "bob@a.test"]);
    back_end.start(&network, &[&first]);
    until("the first", || first.knows("alice@a.test")).await;
    first.list.send_replace(vec![first.address, second.address]);
    until("the second", || second.answer("nobody@a.test") == Answer::UnknownUser).await;

    back_end.stop();
    back_end.replace(&["Alice@a.test", "carol@a.test"]);
    back_end.start(&network, &[&second]);
    until("the new life", || second.answer("bob@a.test") == Answer::UnknownUser).await;
    let Answer::Known(route) = second.answer("alice@a.test") else { panic!("{:?}", second.answer("alice@a.test")) };
    assert_eq!(route.mailbox.to_string(), "Alice@a.test");
    assert!(second.knows("carol@a.test"));
    assert_eq!(second.directory.read().counts(Instant::now()).len(), 1);
}

async fn many_users_arrive_whole<N: Network>() {
    let network = N::new();
    let frontend = FrontEnd::start(&network);
    let users: Vec<String> = (0..30_000).map(|n| format!("user{n}@d{}.test", n % 7)).collect();
    let mut back_end = BackEnd::new("be1", &users.iter().map(String::as_str).collect::<Vec<_>>());
    back_end.start(&network, &[&frontend]);
    until("all", || frontend.answer("nobody@d6.test") == Answer::UnknownUser).await;
    assert_eq!(frontend.directory.read().counts(Instant::now())[0].users, users.len());
    assert!(users.iter().all(|user| frontend.knows(user)));
}

async fn a_false_name_is_refused<N: Network>() {
    let network = N::new();
    let frontend = FrontEnd::start(&network);
    let mut honest = BackEnd::new("be1", &["alice@a.test"]);
    honest.start(&network, &[&frontend]);
    until("the honest one", || frontend.answer("mallory@a.test") == Answer::UnknownUser).await;

    // The certificate says be2, the agent be1.
    let (learn, _learned) = mpsc::channel(1);
    let log = SharedLog::new(epoch());
    let halves = network.dialler("be2").dial(frontend.address).await.unwrap();
    let (name, record) = (SourceName::parse("be1").unwrap(), BackendRecord::default());
    let ended = tokio::time::timeout(DEADLINE, push::push(&log, (&name, &record), halves, &learn));
    let error = ended.await.unwrap().unwrap_err();
    assert!(error.to_string().contains("name"), "{error}");
    assert!(frontend.knows("alice@a.test"));
    assert_eq!(frontend.answer("mallory@a.test"), Answer::UnknownUser);
}

async fn what_cannot_be_read_stays_what_it_was<N: Network>() {
    let network = N::new();
    let frontend = FrontEnd::start(&network);
    let mut back_end = BackEnd::new("be1", &["alice@a.test"]);
    std::fs::remove_file(back_end.file()).unwrap();
    back_end.start(&network, &[&frontend]);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(frontend.directory.read().counts(Instant::now()), [], "an agent without users says nothing");
    back_end.replace(&["alice@a.test"]);
    until("the first users", || frontend.knows("alice@a.test")).await;
    std::fs::remove_file(back_end.file()).unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(frontend.knows("alice@a.test"));
    back_end.replace(&["alice@a.test", "bob@a.test"]);
    until("readable again", || frontend.knows("bob@a.test")).await;
}

macro_rules! suite {
    ($($test:ident),+ $(,)?) => {
        mod over_pipes { $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() { super::$test::<super::Pipes>().await }
        )+ }
        mod over_quic { $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() { super::$test::<super::Quic>().await }
        )+ }
    };
}
suite!(
    a_change_is_known_at_once,
    a_restarted_front_end_knows_its_users,
    an_agent_may_restart_and_learns_front_ends,
    many_users_arrive_whole,
    a_false_name_is_refused,
    what_cannot_be_read_stays_what_it_was,
);
