//! Gathers what `autocluster status` and a Prometheus scrape ask for.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use anyhow::Result;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};
use proxy_core::{
    cluster::NodeState,
    directory::Counts,
    steering::{Member, Plan},
};
use tokio::sync::watch;

use crate::{
    control::{Request, Response},
    drivers::{
        cluster::{ClusterStats, View},
        directory::SharedDirectory,
        steering::SharedDataplane,
    },
    metrics::{Metrics, Protocol},
    scanner::Scanner,
    status::{
        DirectoryStatus, MemberStatus, NodeStatus, ScannerStatus, SourceStatus, Status, SteeringStatus, VipStatus,
    },
    transport::TransportStats,
};

/// Everything that a status is made of.
#[derive(Clone)]
pub struct Reporter {
    pub started: Instant,
    pub name: String,
    pub interface: String,
    pub view: watch::Receiver<Arc<View>>,
    pub directory: SharedDirectory,
    pub scanner: Scanner,
    pub dataplane: SharedDataplane,
    pub metrics: Arc<Metrics>,
}

impl Reporter {
    /// Answers one request of the control socket.
    pub async fn answer(self, request: Request) -> Response {
        let Request::Status = request;
        match self.status().await {
            Ok(status) => Response::Status(Box::new(status)),
            Err(error) => Response::Error(format!("{error:#}")),
        }
    }

    async fn status(&self) -> Result<Status> {
        let view = Arc::clone(&self.view.borrow());
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
            },
            members: members(&view)?,
            vips: view
                .owners
                .iter()
                .map(|(vip, owner)| VipStatus { address: *vip, owner: Some(owner.to_string()) })
                .collect(),
            directory: DirectoryStatus { users: sources.iter().map(|s| s.users).sum(), conflicts, settled },
            sources,
            scanner,
            steering: SteeringStatus {
                interface: self.interface.clone(),
                counters: counters.into_iter().map(|(counter, n)| (counter.name().to_owned(), n)).collect(),
            },
            sessions: sessions.map(|p| (p.name().to_owned(), self.metrics.open_sessions(p))).into_iter().collect(),
        })
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

fn members(view: &View) -> Result<Vec<MemberStatus>> {
    let members: Vec<Member> = crate::drivers::steering::members(view);
    let plan = Plan::build(&members, view.me.as_str())?;
    let shares: BTreeMap<_, _> = plan.members.iter().map(|slot| slot.name.as_str()).zip(plan.shares()).collect();
    let status = |node: &proxy_core::cluster::Node| MemberStatus {
        name: node.name.to_string(),
        address: node.address,
        state: if node.state == NodeState::Active { "active" } else { "draining" }.to_owned(),
        weight: node.weight,
        buckets: shares.get(node.name.as_str()).copied().unwrap_or(0),
        this_node: node.name == view.me,
    };
    Ok(view.members.iter().map(status).collect())
}

/// What is read at each scrape rather than counted by us.
pub fn collector(
    dataplane: SharedDataplane,
    (transport, cluster): (Arc<TransportStats>, Arc<ClusterStats>),
    directory: SharedDirectory,
) -> Box<dyn Collector> {
    Box::new(AtScrape { dataplane, transport, cluster, directory })
}

struct AtScrape {
    dataplane: SharedDataplane,
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
        gauge(&mut encoder, "directory_conflicts", "Addresses that several back ends claim", conflicts)
    }
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
