//! `autocluster run`: a front end, from its configuration to its end.

mod front_end;

use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Instant,
};

use anyhow::{Context, Result, anyhow, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use proxy_core::{
    cluster::Node,
    smtp::{Limits, ServerConfig},
};
use socket2::SockRef;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    announce::Announcer,
    config::{self, Config},
    control::Control,
    dataplane::{self, Dataplane, InterfaceSettings, ProgramLog},
    drivers::{
        abuse::{self, Abuse},
        cluster::{Settings, own_node},
        directory::{DirectoryDriver, SharedDirectory},
        listen::{Accepted, Listening},
        mailbox::Mailbox,
        smtp::{Smtp, TOO_MANY_SESSIONS},
        steering::{self, Here, Link, SharedDataplane},
    },
    io as sockets,
    metrics::Protocol,
    netdev::{self, Interface, Segment},
    relay::Relay,
    scanner::Scanner,
    tls,
    transport::{Identity, Incoming, Transport},
    weight::WeightStore,
};
use front_end::FrontEnd;

/// What is bound before anything starts, so that a front end either serves everything or says what is wrong.
struct Sockets {
    listeners: Vec<Bound>,
    metrics: Option<TcpListener>,
    transport: Transport,
    incoming: Incoming,
    control: Control,
}

struct Bound {
    protocol: Protocol,
    tls_first: bool,
    listener: TcpListener,
}

/// Everything that can fail for a reason that only the operator can mend.
struct Prepared {
    me: Node,
    settings: Settings,
    sockets: Sockets,
    directory: Arc<DirectoryDriver>,
    /// Who the agents are told to push to.
    front_ends: watch::Sender<Vec<SocketAddr>>,
    dataplane: SharedDataplane,
    abuse: (Abuse, abuse::Maps),
    loggers: Vec<ProgramLog>,
    announcer: Announcer,
    steering: steering::Settings,
    weight: WeightStore,
}

/// Runs a front end until `shutdown`.
///
/// # Errors
/// It cannot start: what is missing, in one line.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<()> {
    let started = Instant::now();
    dataplane::probe()?;
    raise_file_limit(&config);
    std::fs::create_dir_all(&config.node.state_dir)
        .with_context(|| format!("node.state_dir: failed to create {}", config.node.state_dir.display()))?;
    let identity = load_identity(&config)?;
    let acceptor = acceptor(&config)?;
    let connector = TlsConnector::from(tls::backend_client(&config.identity.ca)?);
    let added = netdev::ensure_vips(&config.pool.vips).await.context("pool.vips")?;
    let prepared = match prepare(&config, &identity, acceptor.is_some()).await {
        Ok(prepared) => prepared,
        Err(error) => {
            // What did not start must not leave addresses behind that nobody serves.
            netdev::remove_vips(&added).await?;
            return Err(error);
        }
    };
    let front_end = FrontEnd::start(&config, prepared, acceptor, connector, started);
    info!(node = config.node.name, vips = ?config.pool.vips, "serving");
    shutdown.cancelled().await;
    front_end.end(config.node.shutdown_grace).await;
    Ok(())
}

/// The listening sockets again, for what is set on them while they listen.
fn listening_sockets(listeners: &[Bound]) -> Result<Vec<(SocketAddr, socket2::Socket)>> {
    let again = |bound: &Bound| {
        let socket = SockRef::from(&bound.listener).try_clone()?;
        Ok::<_, std::io::Error>((bound.listener.local_addr()?, socket))
    };
    listeners.iter().map(again).collect::<Result<_, _>>().context("failed to share the listening sockets")
}

/// Every session takes up to two sockets; the soft limit that most systems start us with is far below.
fn raise_file_limit(config: &Config) {
    let sessions = config.smtp.max_sessions + config.imap.max_sessions + config.pop3.max_sessions;
    let wanted = 2 * u64::try_from(sessions).unwrap_or(u64::MAX / 2);
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map(|()| hard));
    match raised {
        Ok(limit) if limit >= wanted => {}
        Ok(limit) => warn!(limit, wanted, "fewer files may be open than max_sessions can need: raise LimitNOFILE"),
        Err(error) => warn!(%error, "the limit of open files could not be raised"),
    }
}

fn load_identity(config: &Config) -> Result<Identity> {
    let files = &config.identity;
    let identity = Identity::load(&files.ca, &files.certificate, &files.key).context("identity")?;
    ensure!(
        identity.own().name == config.node.name,
        "identity.certificate: it was issued for {}, but node.name is {}",
        identity.own(),
        config.node.name
    );
    Ok(identity)
}

fn acceptor(config: &Config) -> Result<Option<TlsAcceptor>> {
    let Some(files) = &config.tls else {
        warn!("no [tls]: STARTTLS and the TLS ports are not offered, and no password is taken");
        return Ok(None);
    };
    Ok(Some(TlsAcceptor::from(tls::mail_server(&files.certificate, &files.key).context("tls")?)))
}

/// Binds and opens what serving needs. The XDP program is attached last: from then on packets are steered.
async fn prepare(config: &Config, identity: &Identity, with_tls: bool) -> Result<Prepared> {
    let segment = Segment::read(&config.steering.interfaces).await.context("steering.interface")?;
    let weight = WeightStore::new(&config.node.state_dir, config.steering.weight);
    let here = Here { address: config.pool.listen.ip(), networks: segment.networks() };
    let me = own_node(identity.own(), config.pool.listen, &segment.macs(), weight.load().weight)?;
    let me = Node { on_vip_segment: config.pool.vips.iter().any(|vip| here.is_near(*vip)), ..me };
    let sockets = bind(config, identity, with_tls)?;
    let announcer = Announcer::open(segment.voices())?;
    // Only the owner of a VIP answers for it, and that is the XDP program's business, not the kernel's.
    segment.prepare().context("steering.interface")?;
    let (front_ends, front_ends_seen) = watch::channel(vec![config.pool.listen]);
    let directory = DirectoryDriver::open(&config.node.state_dir, front_ends_seen).context("node.state_dir")?;
    let settings = Settings::new(config.pool.seeds.clone(), config.pool.vips.clone())?;
    let (dataplane, loggers) = prepare_dataplane(config, &segment, with_tls)?;
    let dataplane = SharedDataplane::new(dataplane);
    let abuse = Abuse::open(&config.node.name, &config.node.state_dir, config.abuse, dataplane.clone())?;
    let encapsulation_port = config.steering.encapsulation_port;
    let link = Link { indexes: segment.routed(), mtu: segment.mtu(), encapsulation_port };
    let services = listening_sockets(&sockets.listeners)?;
    let steering = steering::Settings { key: config.pool.key, vips: config.pool.vips.clone(), services, here, link };
    Ok(Prepared {
        me,
        settings,
        sockets,
        directory,
        front_ends,
        dataplane,
        abuse,
        loggers,
        announcer,
        steering,
        weight,
    })
}

fn prepare_dataplane(config: &Config, segment: &Segment, with_tls: bool) -> Result<(Dataplane, Vec<ProgramLog>)> {
    let interface = |interface: &Interface| InterfaceSettings {
        name: interface.name.clone(),
        mac: interface.mac,
        mtu: u16::try_from(interface.mtu).unwrap_or(u16::MAX),
    };
    let interfaces = segment.interfaces().iter().map(interface).collect();
    let settings = dataplane::Settings { interfaces, ..dataplane_settings(config) };
    let mut dataplane = Dataplane::open(&settings)?;
    // Whatever an earlier daemon owned may be another's by now.
    let unowned = config.pool.vips.iter().map(|vip| (*vip, false));
    dataplane.set_vips(unowned).context("failed to declare the virtual addresses")?;
    dataplane.set_services(services(config, with_tls)).context("failed to declare the services")?;
    let loggers = dataplane.loggers()?;
    dataplane.attach()?;
    Ok((dataplane, loggers))
}

/// What the dataplane needs of the configuration; the interfaces are not looked at.
#[must_use]
pub fn dataplane_settings(config: &Config) -> dataplane::Settings {
    dataplane::Settings {
        node: config.node.name.clone(),
        interfaces: vec![],
        mode: config.steering.mode,
        bpffs: config.steering.bpffs.clone(),
        key: config.pool.key,
    }
}

/// Ports by protocol; `true`: TLS comes first.
fn ports(config: &Config, with_tls: bool) -> Vec<(Protocol, u16, bool)> {
    let mut ports = vec![
        (Protocol::smtp, config.smtp.port, false),
        (Protocol::imap, config.imap.port, false),
        (Protocol::pop3, config.pop3.port, false),
    ];
    if with_tls {
        ports.push((Protocol::imap, config.imap.tls_port, true));
        ports.push((Protocol::pop3, config.pop3.tls_port, true));
    }
    ports
}

fn services(config: &Config, with_tls: bool) -> Vec<(IpAddr, u16)> {
    let ports = ports(config, with_tls);
    config.pool.vips.iter().flat_map(|vip| ports.iter().map(|(_, port, _)| (*vip, *port))).collect()
}

fn bind(config: &Config, identity: &Identity, with_tls: bool) -> Result<Sockets> {
    let mut listeners = vec![];
    for vip in &config.pool.vips {
        for (protocol, port, tls_first) in ports(config, with_tls) {
            let address = SocketAddr::new(*vip, port);
            let key = format!("{}.{}", protocol.name(), if tls_first { "tls_port" } else { "port" });
            let listener = sockets::listen(address).map_err(|e| explain_listen(&key, address, &e))?;
            listeners.push(Bound { protocol, tls_first, listener });
        }
    }
    let metrics = config
        .node
        .metrics_listen
        .map(|address| sockets::listen(address).map_err(|e| explain_listen("node.metrics_listen", address, &e)));
    let metrics = metrics.transpose()?;
    let control = Control::bind(&config.node.control_socket)?;
    let (transport, incoming) = Transport::bind(config.pool.listen, identity).context("pool.listen")?;
    Ok(Sockets { listeners, metrics, transport, incoming, control })
}

fn explain_listen(key: &str, address: SocketAddr, error: &std::io::Error) -> anyhow::Error {
    let kind = error.kind();
    if kind == ErrorKind::AddrInUse {
        anyhow!("{key}: {address} is in use by another program (ss -ltnp tells which); stop it, or choose another port")
    } else if kind == ErrorKind::AddrNotAvailable {
        let ip = address.ip();
        anyhow!("{key}: {ip} is not an address of this machine (ip address add {ip} dev lo)")
    } else if kind == ErrorKind::PermissionDenied {
        anyhow!("{key}: not permitted to listen on {address}: run as root, or with CAP_NET_BIND_SERVICE")
    } else {
        anyhow!("{key}: failed to listen on {address}: {error}")
    }
}

struct Shared<'a> {
    config: &'a Config,
    acceptor: Option<TlsAcceptor>,
    directory: SharedDirectory,
    relay: Relay,
    listening: &'a Listening,
}

fn serve(shared: &Shared<'_>, scanner: &Scanner, listeners: Vec<Bound>) {
    let config = shared.config;
    let smtp = Arc::new(smtp(shared, scanner));
    let imap = Arc::new(mailbox(shared, Protocol::imap, &config.imap));
    let pop3 = Arc::new(mailbox(shared, Protocol::pop3, &config.pop3));
    let limits = [config.smtp.max_sessions, config.imap.max_sessions, config.pop3.max_sessions];
    let [smtp_limit, imap_limit, pop3_limit] = limits.map(|limit| Arc::new(Semaphore::new(limit)));
    for Bound { protocol, tls_first, listener } in listeners {
        match protocol {
            Protocol::smtp => {
                let service = Arc::clone(&smtp);
                let serve = move |accepted: Accepted| Arc::clone(&service).serve(accepted);
                shared.listening.spawn(listener, protocol, &smtp_limit, serve, || Some(TOO_MANY_SESSIONS));
            }
            Protocol::imap | Protocol::pop3 => {
                let (service, limit) =
                    if protocol == Protocol::imap { (&imap, &imap_limit) } else { (&pop3, &pop3_limit) };
                let service = Arc::clone(service);
                let serve = move |accepted: Accepted| Arc::clone(&service).serve(accepted, tls_first);
                // Mail clients take a closed connection for what it is: try again.
                shared.listening.spawn(listener, protocol, limit, serve, || None);
            }
        }
    }
}

fn smtp(shared: &Shared<'_>, scanner: &Scanner) -> Smtp {
    let config = &shared.config.smtp;
    let limits =
        Limits { message_bytes: config.max_message_bytes, recipients: config.max_recipients, ..Limits::default() };
    let server = ServerConfig { hostname: config.hostname.clone(), starttls: shared.acceptor.is_some(), limits };
    Smtp {
        config: Arc::new(server),
        acceptor: shared.acceptor.clone(),
        directory: shared.directory.clone(),
        scanner: scanner.clone(),
        relay: shared.relay.clone(),
        metrics: Arc::clone(&shared.listening.metrics),
        shutdown: shared.listening.shutdown.clone(),
        node: shared.config.node.name.clone(),
        spill_directory: shared.config.node.state_dir.clone(),
        greet_pause: config.greet_pause,
        command_timeout: config.command_timeout,
    }
}

fn mailbox(shared: &Shared<'_>, protocol: Protocol, config: &config::Mailbox) -> Mailbox {
    Mailbox {
        protocol,
        hostname: shared.config.smtp.hostname.clone(),
        acceptor: shared.acceptor.clone(),
        directory: shared.directory.clone(),
        relay: shared.relay.clone(),
        metrics: Arc::clone(&shared.listening.metrics),
        shutdown: shared.listening.shutdown.clone(),
        login_timeout: config.login_timeout,
        idle_timeout: config.idle_timeout,
        ending: shared.listening.ending.clone(),
    }
}
