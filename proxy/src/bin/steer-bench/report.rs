//! What people and programs read.

use std::io::{self, Write};

use serde_json::{Value, json};

use crate::{
    cases::{self, Case, FLOWS},
    checks::Check,
    measure::{Effort, Figures, Key},
    table::{Quality, Rebuild},
};

const HEADER: &str = "\
CPU ns for each packet, net of the empty program: minimum / median of the runs
                                                       1 flow     1 k flows    64 k flows     1 M flows
";

/// Measured once, beside a bare stateless prototype, on a 2.6 GHz EPYC: no figures of this machine.
const ANCHORS: &str = "
For context, measured once on a 2.6 GHz EPYC (see the project's design), net ns at 1, 64 k and 1 M flows:
  Katran (LRU + Maglev, IPIP)        99 / 384 / 433
  Cilium (DSR-IPIP)                 309 / 604 / 677
  GLB (second chance, GUE)           82 /  86 /  89
";

/// Everything that was found out.
pub(crate) struct Report {
    pub(crate) effort: Effort,
    pub(crate) figures: Figures,
    pub(crate) quality: Quality,
    pub(crate) rebuild: Rebuild,
    pub(crate) checks: Vec<Check>,
}

impl Report {
    pub(crate) fn failed(&self) -> usize {
        self.checks.iter().filter(|check| !check.holds()).count()
    }

    /// # Errors
    /// Nobody reads it.
    pub(crate) fn print(&self, out: &mut impl Write) -> io::Result<()> {
        write!(out, "{HEADER}")?;
        for case in cases::all() {
            self.print_row(out, &case)?;
        }
        writeln!(out, "{ANCHORS}")?;
        for check in &self.checks {
            let verdict = if check.holds() { "ok    " } else { "FAILED" };
            writeln!(out, "{verdict} {:<42} {:>8.3} {:<6} limit {}", check.name, check.value, check.unit, check.limit)?;
        }
        writeln!(out, "longest rebuild: {:.2} ms", self.rebuild.longest().as_secs_f64() * 1e3)?;
        writeln!(out, "bench: {} checks, {} failed", self.checks.len(), self.failed())
    }

    fn print_row(&self, out: &mut impl Write, case: &Case) -> io::Result<()> {
        write!(out, "{} {:<44}", case.frames.family.name(), case.path.title())?;
        for flows in FLOWS {
            match self.figures.figure(key(case, flows)) {
                Some(figure) => write!(out, " {:>6.1}/{:>6.1}", figure.min, figure.median)?,
                None => write!(out, " {:>13}", "-")?,
            }
        }
        writeln!(out)
    }

    pub(crate) fn json(&self) -> Value {
        let figures = cases::all().into_iter().flat_map(|case| FLOWS.map(|flows| self.json_figure(&case, flows)));
        let checks = self.checks.iter().map(|check| {
            json!({"name": check.name, "value": check.value, "limit": check.limit, "unit": check.unit, "ok": check.holds()})
        });
        let builds: Vec<f64> = self.rebuild.samples.iter().map(|sample| sample.as_secs_f64() * 1e3).collect();
        json!({
            "packets": self.effort.packets,
            "rounds": self.effort.rounds,
            "figures": figures.flatten().collect::<Vec<_>>(),
            "table": {
                "rebuild_ms": builds,
                "share_error_16": self.quality.share_small,
                "share_error_64": self.quality.share_large,
                "moved_by_join": self.quality.join,
                "moved_by_death": self.quality.death,
            },
            "checks": checks.collect::<Vec<_>>(),
            "failed": self.failed(),
        })
    }

    fn json_figure(&self, case: &Case, flows: u64) -> Option<Value> {
        let key = key(case, flows);
        let figure = self.figures.figure(key)?;
        Some(json!({
            "path": case.path.key(),
            "family": case.frames.family.name(),
            "flows": flows,
            "net_min_ns": figure.min,
            "net_median_ns": figure.median,
            "gross_min_ns": figure.gross_min,
            "gross_median_ns": figure.gross_median,
            "gross_samples_ns": self.figures.samples(key),
        }))
    }
}

fn key(case: &Case, flows: u64) -> Key {
    Key { path: case.path, family: case.frames.family, flows }
}
