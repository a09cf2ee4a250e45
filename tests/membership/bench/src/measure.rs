//! The scenarios.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use membership_node::Report;
use serde::Serialize;
use tokio::task::JoinSet;

use crate::cluster::{Cluster, Line, SIZE, name};
use crate::engine::Engine;

const FORM_LIMIT: Duration = Duration::from_secs(30);
const DEATH_LIMIT: Duration = Duration::from_secs(30);
const BAD_DEATH_LIMIT: Duration = Duration::from_secs(15);
const CHANGES: u64 = 100;
const CHANGE_PAUSE: Duration = Duration::from_millis(25);
const CHANGE_LIMIT: Duration = Duration::from_secs(10);
const BULK_OCTETS: usize = 50 * 1024 * 1024;
/// Who has not sent all by then is judged by what came.
const BULK_LIMIT: Duration = Duration::from_secs(8);
/// Pools in which nodes die at the same time; they are idle most of the time.
const PARALLEL: usize = 5;

pub(crate) struct Plan<'a> {
    pub(crate) engine: &'static Engine,
    pub(crate) pki: &'a Path,
    pub(crate) runs: usize,
    pub(crate) lossy_seconds: u64,
}

/// Milliseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Times {
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) count: usize,
}

impl Times {
    fn of(mut times: Vec<Duration>) -> anyhow::Result<Self> {
        times.sort();
        // The nearest rank, rounded up: of 20 runs p99 is the worst.
        let rank = |percent: usize| times.get((times.len() * percent).div_ceil(100).saturating_sub(1));
        let ms = |percent| rank(percent).map(|t| t.as_secs_f64() * 1000.0).context("nothing was measured");
        Ok(Self { p50_ms: ms(50)?, p99_ms: ms(99)?, count: times.len() })
    }
}

#[derive(Debug, Clone, Serialize)]
pub(crate) struct Figures {
    /// From start to every node seeing the other four.
    pub(crate) formed_ms: f64,
    pub(crate) rss_kib: u64,
    pub(crate) killed: Times,
    pub(crate) silenced: Times,
    pub(crate) change: Times,
    pub(crate) bulk_mb_per_s: f64,
    /// Living nodes that any node declared down on the bad network.
    pub(crate) false_alarms: usize,
    pub(crate) false_alarm_seconds: u64,
    /// One node is silenced on the bad network: an engine that never calls anybody dead has no false
    /// alarms either. `None`: not all knew in time.
    pub(crate) silenced_on_bad_network_ms: Option<f64>,
}

pub(crate) async fn all(plan: &Plan<'_>) -> anyhow::Result<Figures> {
    let began = Instant::now();
    let mut cluster = formed(plan, false).await?;
    let formed_ms = began.elapsed().as_secs_f64() * 1000.0;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut rss: Vec<u64> = (0..SIZE).map(|node| cluster.rss_kib(node)).collect::<Result<_, _>>()?;
    rss.sort_unstable();
    let change = changes(&mut cluster).await?;
    let bulk_mb_per_s = bulk(&mut cluster).await?;
    drop(cluster);
    let killed = deaths(plan, Death::Kill).await?;
    let silenced = deaths(plan, Death::Silence).await?;
    let mut cluster = bad_network(plan).await?;
    let false_alarms = false_alarms(&mut cluster, plan.lossy_seconds).await;
    Ok(Figures {
        formed_ms,
        rss_kib: rss[SIZE / 2],
        killed,
        silenced,
        change,
        bulk_mb_per_s,
        false_alarms,
        false_alarm_seconds: plan.lossy_seconds,
        silenced_on_bad_network_ms: silence_on_bad_network(&mut cluster).await?,
    })
}

async fn formed(plan: &Plan<'_>, relayed: bool) -> anyhow::Result<Cluster> {
    let mut cluster = Cluster::start(plan.engine, plan.pki, relayed).await?;
    let mut seen = BTreeSet::new();
    let all_seen = |line: &Line| {
        match &line.report {
            Report::Up(name) => drop(seen.insert((line.node, name.clone()))),
            Report::Down(name) => drop(seen.remove(&(line.node, name.clone()))),
            Report::Value(..) | Report::Bulk(_) => {}
        }
        seen.len() == SIZE * (SIZE - 1)
    };
    cluster.wait(FORM_LIMIT, "the pool forms", all_seen).await?;
    Ok(cluster)
}

/// From the order at one node to the report of the last of the other four.
async fn changes(cluster: &mut Cluster) -> anyhow::Result<Times> {
    let mut times = Vec::new();
    for (value, node) in (1..=CHANGES).zip((0..SIZE).cycle()) {
        let began = cluster.command(node, &format!("set {value}")).await?;
        let expected = Report::Value(name(node), value);
        let mut told = BTreeSet::new();
        let last = |line: &Line| {
            if line.report == expected && line.node != node {
                told.insert(line.node);
            }
            told.len() == SIZE - 1
        };
        times.push(cluster.wait(CHANGE_LIMIT, "a change spreads", last).await? - began);
        tokio::time::sleep(CHANGE_PAUSE).await;
    }
    Times::of(times)
}

async fn bulk(cluster: &mut Cluster) -> anyhow::Result<f64> {
    let (from, to) = (0, 1);
    let began = cluster.command(from, &format!("bulk {} {} {BULK_OCTETS}", name(to), cluster.advertised(to))).await?;
    let (mut octets, mut last) = (0, began);
    while let Some(line) = cluster.next(began + BULK_LIMIT).await {
        if let (Report::Bulk(so_far), true) = (line.report, line.node == to) {
            (octets, last) = (so_far, line.at);
        }
        if octets >= BULK_OCTETS {
            break;
        }
    }
    Ok(octets as f64 / 1e6 / (last - began).as_secs_f64().max(f64::EPSILON))
}

#[derive(Debug, Clone, Copy)]
enum Death {
    Kill,
    Silence,
}

/// From the death to the report of the last of the four survivors.
async fn deaths(plan: &Plan<'_>, how: Death) -> anyhow::Result<Times> {
    let mut pools = JoinSet::new();
    for pool in 0..PARALLEL {
        let runs = (pool..plan.runs).step_by(PARALLEL).collect::<Vec<_>>();
        let cluster = formed(plan, false).await?;
        pools.spawn(deaths_in(cluster, how, runs));
    }
    let mut times = Vec::new();
    while let Some(pool) = pools.join_next().await {
        times.extend(pool??);
    }
    Times::of(times)
}

async fn deaths_in(mut cluster: Cluster, how: Death, runs: Vec<usize>) -> anyhow::Result<Vec<Duration>> {
    let mut times = Vec::new();
    for run in runs {
        // The pool rests, for a different time in each run, so that no phase of a period is preferred.
        tokio::time::sleep(Duration::from_millis(700 + (run as u64 * 137) % 500)).await;
        let victim = run % SIZE;
        let began = match how {
            Death::Kill => cluster.kill(victim).await?,
            Death::Silence => cluster.silence(victim).await?,
        };
        let down = Report::Down(name(victim));
        times.push(everybody(&mut cluster, victim, DEATH_LIMIT, &down).await? - began);
        if let Death::Silence = how {
            cluster.kill(victim).await?;
        }
        cluster.boot(victim)?;
        everybody(&mut cluster, victim, FORM_LIMIT, &Report::Up(name(victim))).await?;
    }
    Ok(times)
}

/// Waits until all but `victim` have reported it.
async fn everybody(cluster: &mut Cluster, victim: usize, limit: Duration, report: &Report) -> anyhow::Result<Instant> {
    let mut told = BTreeSet::new();
    let last = |line: &Line| {
        if line.report == *report && line.node != victim {
            told.insert(line.node);
        }
        told.len() == SIZE - 1
    };
    cluster.wait(limit, &format!("{report:?}"), last).await
}

async fn bad_network(plan: &Plan<'_>) -> anyhow::Result<Cluster> {
    let cluster = formed(plan, true).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    cluster.spoil_network();
    Ok(cluster)
}

/// Nobody dies. One node declared down by several within a second is one alarm.
async fn false_alarms(cluster: &mut Cluster, seconds: u64) -> usize {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    let mut alarms: Vec<(String, Instant)> = Vec::new();
    while let Some(line) = cluster.next(deadline).await {
        if let Report::Down(name) = line.report
            && !alarms.iter().any(|(other, at)| *other == name && line.at - *at < Duration::from_secs(1))
        {
            alarms.push((name, line.at));
        }
    }
    alarms.len()
}

async fn silence_on_bad_network(cluster: &mut Cluster) -> anyhow::Result<Option<f64>> {
    let victim = SIZE - 1;
    let began = cluster.silence(victim).await?;
    let known = everybody(cluster, victim, BAD_DEATH_LIMIT, &Report::Down(name(victim))).await;
    Ok(known.ok().map(|at| (at - began).as_secs_f64() * 1000.0))
}
