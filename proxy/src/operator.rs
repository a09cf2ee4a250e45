//! Does what the control socket asks for.

use std::{
    net::SocketAddr,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use proxy_common::{
    hash::SteeringKey,
    maps::{MEMBER_BY_V4, MEMBER_BY_V6},
};
use proxy_core::{
    cluster::Node,
    steering::drain::{Drain, Progress},
};

use crate::{
    control::{Request, Response, SteerRequest, WeightRequest},
    drivers::{
        abuse::Abuse,
        cluster::Cluster,
        steering::{SharedDataplane, Snapshot, Steering},
    },
    netdev::MacAddress,
    report::Reporter,
    status::{
        drain::{DrainState, DrainStatus, WeightStatus},
        steering::{SteerCounter, SteerMember, SteerShow, SteerStats, Trace, share_percent},
    },
    trace,
    weight::WeightStore,
};

/// What an operator may look at and change.
#[derive(Clone)]
pub struct Operator {
    pub reporter: Reporter,
    pub cluster: Cluster,
    pub steering: Steering,
    pub dataplane: SharedDataplane,
    pub abuse: Abuse,
    pub weight: WeightStore,
    pub key: SteeringKey,
    /// Of the first interface that packets are steered on.
    pub mac: MacAddress,
}

impl Operator {
    /// Answers one request of the control socket.
    pub async fn answer(self, request: Request) -> Response {
        let answer = match request {
            Request::Status => self.reporter.status().await.map(|status| Response::Status(Box::new(status))),
            Request::Drain { limit_s } => self.drain(limit_s.map(Duration::from_secs)).await.map(Response::Drain),
            Request::DrainStatus => Ok(Response::Drain(self.drain_status())),
            Request::Undrain => self.undrain().await.map(Response::Drain),
            Request::Weight(request) => self.set_weight(request).await.map(Response::Weight),
            Request::Steer(request) => self.steer(&request),
            Request::Deny(request) => self.abuse.answer_deny(request).map(Response::Deny),
            Request::Limit(request) => self.abuse.answer_limit(&request).map(Response::Limit),
            Request::Cookies(request) => Ok(Response::Cookies(self.abuse.answer_cookies(&request))),
        };
        answer.unwrap_or_else(|error| Response::Error(format!("{error:#}")))
    }

    async fn drain(&self, limit: Option<Duration>) -> Result<DrainStatus> {
        self.steering.drain(limit).await?;
        Ok(self.drain_status())
    }

    async fn undrain(&self) -> Result<DrainStatus> {
        ensure!(self.steering.undrain().await?, "this front end is not draining");
        Ok(self.drain_status())
    }

    fn drain_status(&self) -> DrainStatus {
        drain_status(&self.steering.snapshot().borrow())
    }

    /// First on disk: what was said to be kept must be kept.
    async fn set_weight(&self, request: WeightRequest) -> Result<WeightStatus> {
        let store = self.weight.clone();
        let status = match request {
            WeightRequest::Show => return Ok(self.weight.load()),
            WeightRequest::Set(weight) => {
                ensure!(weight > 0, "the weight should be at least 1; to take no connections: autocluster drain");
                tokio::task::spawn_blocking(move || store.set(weight)).await??
            }
            WeightRequest::Default => tokio::task::spawn_blocking(move || store.reset()).await??,
        };
        self.cluster.set_weight(status.weight).await?;
        Ok(status)
    }

    fn steer(&self, request: &SteerRequest) -> Result<Response> {
        match *request {
            SteerRequest::Show => Ok(Response::Steer(Box::new(self.show()))),
            SteerRequest::Stats => self.stats().map(Response::SteerStats),
            SteerRequest::Trace { source, destination } => {
                self.trace(source, destination).map(|trace| Response::Trace(Box::new(trace)))
            }
        }
    }

    fn show(&self) -> SteerShow {
        let view = std::sync::Arc::clone(&self.cluster.view().borrow());
        let snapshot = std::sync::Arc::clone(&self.steering.snapshot().borrow());
        let member = |node: &Node| steer_member(node, node.name == view.me, &snapshot);
        SteerShow {
            interfaces: self.reporter.interfaces(),
            table_version: snapshot.version,
            settling: !snapshot.settled,
            connections: snapshot.connections,
            strays: snapshot.strays,
            members: view.members.iter().map(member).collect(),
            vips: view.own_vips().collect(),
        }
    }

    fn stats(&self) -> Result<SteerStats> {
        let counters = self.dataplane.lock().per_cpu_counters()?;
        let counter = |(counter, per_cpu): (proxy_common::maps::Counter, Vec<u64>)| SteerCounter {
            name: counter.name().to_owned(),
            total: per_cpu.iter().sum(),
            per_cpu,
        };
        Ok(SteerStats { counters: counters.into_iter().map(counter).collect() })
    }

    fn trace(&self, source: SocketAddr, destination: SocketAddr) -> Result<Trace> {
        let snapshot = std::sync::Arc::clone(&self.steering.snapshot().borrow());
        let plan = snapshot.plan.as_ref().context("no table is in force yet: the members are not known")?;
        let question = trace::Question { source, destination, mac: self.mac, key: self.key };
        trace::trace(&question, plan, &snapshot.members, &mut self.dataplane.lock())
    }
}

fn steer_member(node: &Node, this_node: bool, snapshot: &Snapshot) -> SteerMember {
    let name = node.name.as_str();
    let slots = snapshot.plan.as_ref().map(|plan| plan.members.as_slice()).unwrap_or_default();
    let position = slots.iter().position(|member| member == name);
    let flags = position.and_then(|slot| snapshot.members.get(slot)).map_or(0, |member| member.flags);
    let way = match flags {
        _ if this_node => "this node",
        0 => "unreachable",
        flags if flags & (MEMBER_BY_V4 | MEMBER_BY_V6) != 0 => "encapsulated",
        _ => "direct",
    };
    let buckets = snapshot.shares.get(name).copied().unwrap_or_default();
    SteerMember {
        name: name.to_owned(),
        slot: position.and_then(|slot| u8::try_from(slot).ok()),
        state: node.state.name().to_owned(),
        weight: node.weight,
        buckets,
        share_percent: share_percent(buckets),
        holdings: snapshot.holdings.get(name).copied().unwrap_or_default(),
        way: way.to_owned(),
        this_node,
    }
}

/// How the drain stands, for the status.
#[must_use]
pub fn drain_status(snapshot: &Snapshot) -> DrainStatus {
    let Some(drain) = &snapshot.drain else { return DrainStatus::NONE };
    let (state, connections) = match drain.progress() {
        Progress::Running { left } => (DrainState::Draining, left),
        Progress::Drained => (DrainState::Drained, Some(0)),
        Progress::Expired { left } => (DrainState::Expired, Some(left)),
    };
    DrainStatus { state, connections, deadline_unix_ms: deadline(drain) }
}

/// On the calendar, for people.
fn deadline(drain: &Drain) -> Option<u64> {
    let ahead = drain.deadline()?.saturating_duration_since(Instant::now());
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() + ahead;
    u64::try_from(since_epoch.as_millis()).ok()
}
