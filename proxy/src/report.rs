//! Gathers what `autocluster status` and a Prometheus scrape ask for.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use anyhow::Result;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};
use proxy_core::directory::Counts;
use tokio::sync::watch;

use crate::{
    dataplane::Mode,
    drivers::{
        abuse::Abuse,
        cluster::{ClusterStats, View},
        directory::SharedDirectory,
        steering::{SharedDataplane, Snapshot},
    },
    metrics::{Metrics, Protocol},
    operator,
    scanner::Scanner,
    status::{
        DirectoryStatus, MemberStatus, NodeStatus, ScannerStatus, SourceStatus, Status, SteeringStatus, VipStatus,
        abuse::AbuseStatus,
        steering::{InterfaceStatus, NOT_ATTACHED},
    },
    transport::TransportStats,
    weight::WeightStore,
};

/// Everything that a status is made of.
#[derive(Clone)]
pub struct Reporter {
    pub started: Instant,
    pub name: String,
    pub view: watch::Receiver<Arc<View>>,
    pub directory: SharedDirectory,
    pub scanner: Scanner,
    pub dataplane: SharedDataplane,
    pub steering: watch::Receiver<Arc<Snapshot>>,
    pub abuse: Abuse,
    pub weight: WeightStore,
    pub metrics: Arc<Metrics>,
}

impl Reporter {
    /// Everything at one moment.
    ///
    /// # Errors
    /// The program's counters cannot be read.
    pub async fn status(&self) -> Result<Status> {
        let view = Arc::clone(&self.view.borrow());
        let steering = Arc::clone(&self.steering.borrow());
        let scanner = self.scanner_status().await;
        let counters = self.dataplane.lock().counters()?;
        let (sources, conflicts) = self.sources();
        let settled = self.directory.read().is_settled(Instant::now());
        let sessions = [Protocol::smtp, Protocol::imap, Protocol::pop3];
        Ok(Status {
            node: NodeStatus {
                name: self.name.clone(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                uptime_s: self.started.elapsed().as_secs(),
                state: view.own_state().name().to_owned(),
                weight: self.weight.load(),
                drain: operator::drain_status(&steering),
            },
            members: members(&view, &steering),
            vips: view
                .owners
                .iter()
                .map(|(vip, owner)| VipStatus { address: *vip, owner: Some(owner.to_string()) })
                .collect(),
            directory: DirectoryStatus { users: sources.iter().map(|s| s.users).sum(), conflicts, settled },
            sources,
            scanner,
            steering: SteeringStatus {
                interfaces: self.interfaces(),
                settled: steering.settled,
                connections: steering.connections,
                strays: steering.strays,
                counters: counters.into_iter().map(|(counter, n)| (counter.name().to_owned(), n)).collect(),
            },
            abuse: self.abuse.status(),
            sessions: sessions.map(|p| (p.name().to_owned(), self.metrics.open_sessions(p))).into_iter().collect(),
        })
    }

    /// Where and how the program runs.
    #[must_use]
    pub fn interfaces(&self) -> Vec<InterfaceStatus> {
        let dataplane = self.dataplane.lock();
        let status = |(name, mode): (&str, Option<Mode>)| InterfaceStatus {
            name: name.to_owned(),
            mode: mode.map_or(NOT_ATTACHED, Mode::name).to_owned(),
        };
        dataplane.attachments().map(status).collect()
    }

    async fn scanner_status(&self) -> ScannerStatus {
        let (reachable, detail) = match self.scanner.version().await {
            Ok(version) => (true, version),
            Err(error) => (false, format!("{error:#}")),
        };
        ScannerStatus { address: self.scanner.address(), reachable, detail }
    }

    fn sources(&self) -> (Vec<SourceStatus>, usize) {
        let directory = self.directory.read();
        let mut sources: Vec<_> = directory
            .counts(Instant::now())
            .into_iter()
            .map(|counts| {
                let record = directory.backend(&counts.source).cloned().unwrap_or_default();
                source(counts, &record.services)
            })
            .collect();
        sources.sort_by(|a, b| a.name.cmp(&b.name));
        (sources, directory.conflict_count())
    }
}

fn source(counts: Counts, services: &proxy_core::directory::Services) -> SourceStatus {
    SourceStatus {
        name: counts.source.as_str().to_owned(),
        users: counts.users,
        domains: counts.domains,
        complete: counts.position.is_some(),
        fresh: counts.fresh,
        connected: counts.connected,
        epoch: counts.position.map(|p| p.epoch.0),
        sequence: counts.position.map(|p| p.seq.0),
        age_ms: counts.age.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
        lmtp: services.lmtp.map(|e| e.address),
        smtp: services.smtp.map(|e| e.address),
        imap: services.imap.map(|e| e.address),
        pop3: services.pop3.map(|e| e.address),
    }
}

fn members(view: &View, steering: &Snapshot) -> Vec<MemberStatus> {
    let status = |node: &proxy_core::cluster::Node| MemberStatus {
        name: node.name.to_string(),
        address: node.address,
        state: node.state.name().to_owned(),
        weight: node.weight,
        buckets: steering.shares.get(node.name.as_str()).copied().unwrap_or_default(),
        this_node: node.name == view.me,
    };
    view.members.iter().map(status).collect()
}

/// What is read at each scrape rather than counted by us.
pub fn collector(
    dataplane: SharedDataplane,
    (steering, abuse): (watch::Receiver<Arc<Snapshot>>, Abuse),
    (transport, cluster): (Arc<TransportStats>, Arc<ClusterStats>),
    directory: SharedDirectory,
) -> Box<dyn Collector> {
    Box::new(AtScrape { dataplane, steering, abuse, transport, cluster, directory })
}

struct AtScrape {
    dataplane: SharedDataplane,
    steering: watch::Receiver<Arc<Snapshot>>,
    abuse: Abuse,
    transport: Arc<TransportStats>,
    cluster: Arc<ClusterStats>,
    directory: SharedDirectory,
}

impl std::fmt::Debug for AtScrape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AtScrape")
    }
}

impl Collector for AtScrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        let counters = self.dataplane.lock().counters().unwrap_or_default();
        let values = counters.iter().map(|(counter, n)| (counter.name(), *n));
        family(&mut encoder, "packets", "Packets at the NIC, by verdict and reason", "verdict", values)?;
        let values = self.transport.snapshot().entries();
        family(&mut encoder, "transport_events", "What happened on the pool's transport", "event", values)?;
        let cluster = &self.cluster;
        let events = [
            ("datagrams_malformed", &cluster.datagrams_malformed),
            ("datagrams_impostor", &cluster.datagrams_impostor),
            ("members_up", &cluster.members_up),
            ("members_down", &cluster.members_down),
            ("anomalies", &cluster.anomalies),
        ];
        let values = events.map(|(name, counter)| (name, counter.load(Ordering::Relaxed)));
        family(&mut encoder, "membership_events", "What the membership saw", "event", values)?;
        let (users, conflicts) = {
            let directory = self.directory.read();
            let users: usize = directory.counts(Instant::now()).iter().map(|c| c.users).sum();
            (users, directory.conflict_count())
        };
        gauge(&mut encoder, "directory_users", "Users of all back ends", users)?;
        gauge(&mut encoder, "directory_conflicts", "Addresses that several back ends claim", conflicts)?;
        let snapshot = Arc::clone(&self.steering.borrow());
        steering(&mut encoder, &snapshot)?;
        abuse(&mut encoder, &self.abuse.status())
    }
}

fn steering(encoder: &mut DescriptorEncoder<'_>, snapshot: &Snapshot) -> std::fmt::Result {
    let holdings = snapshot.holdings.values().sum::<u64>();
    let unreachable = snapshot.members.iter().filter(|member| member.flags == 0).count();
    let (draining, settling) = (usize::from(snapshot.drain.is_some()), usize::from(!snapshot.settled));
    gauge(encoder, "steering_settling", "1 while not every member has told what it has", settling)?;
    gauge(encoder, "steering_draining", "1 while an operator's drain is in force", draining)?;
    gauge(encoder, "steering_connections", "Connections that have not ended", snapshot.connections)?;
    gauge(encoder, "steering_strays", "Of them, in buckets of other front ends", snapshot.strays)?;
    let holdings = usize::try_from(holdings).unwrap_or(usize::MAX);
    gauge(encoder, "steering_holdings", "Buckets in which members may have connections that are others'", holdings)?;
    gauge(encoder, "steering_unreachable", "Members that packets cannot be sent to", unreachable)
}

fn abuse(encoder: &mut DescriptorEncoder<'_>, status: &AbuseStatus) -> std::fmt::Result {
    let AbuseStatus { denied_prefixes, limit, cookies } = status;
    let number = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    gauge(encoder, "denied_prefixes", "Prefixes on the deny list", *denied_prefixes)?;
    let rate = number(limit.new_connections_per_second.into());
    gauge(encoder, "new_connection_limit", "New connections per second and source prefix; 0: any number", rate)?;
    gauge(encoder, "syn_cookies", "1 while new connections are answered by SYN cookies", usize::from(cookies.sending))?;
    gauge(encoder, "syns_per_second", "SYNs for this front end, lately", number(cookies.syns_per_second))
}

fn family<'a>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    label: &str,
    values: impl IntoIterator<Item = (&'a str, u64)>,
) -> std::fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (value, n) in values {
        let labels = [(label, value)];
        ConstCounter::new(n).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: usize) -> std::fmt::Result {
    let value = i64::try_from(value).unwrap_or(i64::MAX);
    ConstGauge::new(value).encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)
}
