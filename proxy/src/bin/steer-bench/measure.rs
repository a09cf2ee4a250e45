//! Runs every case in turn, many times over: A B C A B C. What disturbs the machine for a while disturbs all alike.

use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};
use autocluster::dataplane::{
    Dataplane,
    bench::{Bench, Run},
};
use proxy_common::maps::{DENY_ANY, SYN_COOKIES};

use crate::{
    cases::{self, Case, FLOWS, Path},
    frames::Family,
    pool::Pool,
};

/// So many new connections that nobody reaches it.
const UNREACHED: u32 = u32::MAX / 2;

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Effort {
    /// Packets of one run.
    pub(crate) packets: u32,
    /// Runs of each case.
    pub(crate) rounds: u32,
}

/// What a figure is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) path: Path,
    pub(crate) family: Family,
    pub(crate) flows: u64,
}

/// Nanoseconds of CPU for one packet.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Figure {
    /// All that a packet cost, prologue and all.
    pub(crate) gross_min: f64,
    pub(crate) gross_median: f64,
    /// Beyond the empty program; that one's own figures are gross.
    pub(crate) min: f64,
    pub(crate) median: f64,
}

/// All figures.
#[derive(Debug, Clone, Default)]
pub(crate) struct Figures {
    samples: HashMap<Key, Vec<f64>>,
}

impl Figures {
    pub(crate) fn samples(&self, key: Key) -> Option<&[f64]> {
        self.samples.get(&key).map(Vec::as_slice)
    }

    /// `None` where nothing was measured.
    pub(crate) fn figure(&self, key: Key) -> Option<Figure> {
        let gross = self.samples.get(&key)?;
        let (gross_min, gross_median) = (least(gross), median(gross.clone()));
        let Some(base) = key.path.net_of() else {
            return Some(Figure { gross_min, gross_median, min: gross_min, median: gross_median });
        };
        let base = self.samples.get(&Key { path: base, ..key })?;
        // The minima are of undisturbed runs; the medians are of differences within one round.
        let differences = gross.iter().zip(base).map(|(gross, base)| gross - base).collect();
        Some(Figure { gross_min, gross_median, min: gross_min - least(base), median: median(differences) })
    }

    fn add(&mut self, key: Key, nanoseconds: f64) {
        self.samples.entry(key).or_default().push(nanoseconds);
    }
}

fn least(samples: &[f64]) -> f64 {
    samples.iter().copied().fold(f64::INFINITY, f64::min)
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The laboratory: programs, maps and pool.
pub(crate) struct Stand<'a> {
    pub(crate) dataplane: &'a mut Dataplane,
    pub(crate) bench: &'a mut Bench,
    pub(crate) pool: &'a Pool,
}

impl Stand<'_> {
    /// Measures all cases; `progress` hears of each round.
    ///
    /// # Errors
    /// A run failed, or its packets did not go the way that they were to.
    pub(crate) fn measure(&mut self, effort: Effort, mut progress: impl FnMut(u32)) -> Result<Figures> {
        let cases = cases::all();
        let mut figures = Figures::default();
        for round in 0..effort.rounds {
            progress(round);
            for flows in FLOWS {
                for case in cases.iter().filter(|case| case.can_have(flows)) {
                    let key = Key { path: case.path, family: case.frames.family, flows };
                    let nanoseconds = self
                        .run(case, flows, effort.packets)
                        .with_context(|| format!("{}, {}, {flows} flows", case.path.title(), key.family.name()))?;
                    figures.add(key, nanoseconds);
                }
            }
        }
        Ok(figures)
    }

    fn run(&mut self, case: &Case, flows: u64, packets: u32) -> Result<f64> {
        self.pool.apply(case.state.owners, self.dataplane)?;
        let deny = if case.state.deny { DENY_ANY } else { 0 };
        let cookies = if case.state.cookies { SYN_COOKIES } else { 0 };
        self.dataplane.set_checks(deny | cookies, if case.state.limit { UNREACHED } else { 0 });
        self.bench.aim(case.target, case.frames.workload(flows), self.dataplane)?;
        let run = self.bench.run(case.prologue(), packets, self.dataplane)?;
        check(case, &run, packets)?;
        Ok(run.cpu.as_secs_f64() * 1e9 / f64::from(packets))
    }
}

/// Every packet must have gone the way that is measured.
fn check(case: &Case, run: &Run, packets: u32) -> Result<()> {
    let (action, counter) = case.expected;
    ensure!(
        run.action == action,
        "the last packet's verdict was {}, not {action}; counted: {:?}",
        run.action,
        run.counted
    );
    let Some(counter) = counter else {
        ensure!(run.counted.is_empty(), "no packet was to reach the XDP program: {:?}", run.counted);
        return Ok(());
    };
    if !run.counted.contains(&(counter, packets.into())) {
        bail!("not all of {packets} packets were counted as {}: {:?}", counter.name(), run.counted);
    }
    Ok(())
}
