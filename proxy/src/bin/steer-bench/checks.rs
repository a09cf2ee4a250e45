//! What must be true of the figures.

use crate::{
    cases::{FLOWS, Path},
    frames::Family,
    measure::{Figures, Key},
    table::{Quality, Rebuild},
};

/// A value and what it may be at the most.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Check {
    pub(crate) name: String,
    pub(crate) value: f64,
    pub(crate) limit: f64,
    pub(crate) unit: &'static str,
}

impl Check {
    fn new(name: impl Into<String>, value: f64, limit: f64, unit: &'static str) -> Self {
        Self { name: name.into(), value, limit, unit }
    }

    /// A value that is no number has failed.
    pub(crate) fn holds(&self) -> bool {
        self.value <= self.limit
    }
}

/// Steering, with everything checked, over the least that it must do.
const OVER_FLOOR: f64 = 1.6;
/// A million flows over a thousand.
const MANY_FLOWS: f64 = 1.15;
/// A new flow's SYN over a packet of an established one.
const NEW_FLOW: f64 = 1.2;
const REBUILD_MS: f64 = 20.0;
const SHARE_SMALL_PERCENT: f64 = 3.0;
const SHARE_LARGE_PERCENT: f64 = 5.0;
const MOVED: f64 = 1.05;

const THOUSAND: u64 = FLOWS[1];
const MILLION: u64 = FLOWS[3];

/// The checks of the packet paths.
pub(crate) fn packets(figures: &Figures) -> Vec<Check> {
    let family = |family: Family| {
        let name = family.name();
        let worst =
            |of, to| FLOWS.map(|flows| ratio(figures, family, (of, flows), (to, flows))).into_iter().fold(0.0, worse);
        let flows = |path| ratio(figures, family, (path, MILLION), (path, THOUSAND));
        [
            Check::new(format!("{name}: steer by MAC / floor"), worst(Path::Steer, Path::FloorMac), OVER_FLOOR, "x"),
            Check::new(
                format!("{name}: encapsulate / floor"),
                worst(Path::Encapsulate, Path::FloorEncapsulate),
                OVER_FLOOR,
                "x",
            ),
            Check::new(format!("{name}: steer by MAC, 1 M flows / 1 k"), flows(Path::Steer), MANY_FLOWS, "x"),
            Check::new(format!("{name}: encapsulate, 1 M flows / 1 k"), flows(Path::Encapsulate), MANY_FLOWS, "x"),
            Check::new(
                format!("{name}: steer by MAC, SYN / established"),
                worst(Path::SteerSyn, Path::Steer),
                NEW_FLOW,
                "x",
            ),
            Check::new(
                format!("{name}: encapsulate, SYN / established"),
                worst(Path::EncapsulateSyn, Path::Encapsulate),
                NEW_FLOW,
                "x",
            ),
        ]
    };
    Family::ALL.into_iter().flat_map(family).collect()
}

/// The checks of the table by itself.
pub(crate) fn table(quality: &Quality, rebuild: &Rebuild) -> Vec<Check> {
    vec![
        Check::new("new table of 64 members in force, median", rebuild.median().as_secs_f64() * 1e3, REBUILD_MS, "ms"),
        Check::new("share of a member, up to 16 members", quality.share_small * 100.0, SHARE_SMALL_PERCENT, "% off"),
        Check::new("share of a member, 64 members", quality.share_large * 100.0, SHARE_LARGE_PERCENT, "% off"),
        Check::new("buckets moved by a join / minimum", quality.join, MOVED, "x"),
        Check::new("buckets moved by a death / minimum", quality.death, MOVED, "x"),
    ]
}

fn ratio(figures: &Figures, family: Family, of: (Path, u64), to: (Path, u64)) -> f64 {
    let min = |(path, flows)| figures.figure(Key { path, family, flows }).map_or(f64::NAN, |figure| figure.min);
    min(of) / min(to)
}

/// The larger one; no number at all is the worst.
fn worse(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) }
}
