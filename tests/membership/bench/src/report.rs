//! The table.

use serde::Serialize;

use crate::builds::Build;
use crate::engine::Facts;
use crate::measure::{Figures, Times};

#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) engine: &'static str,
    pub(crate) facts: Facts,
    pub(crate) figures: Figures,
    pub(crate) build: Option<Build>,
    pub(crate) packages: usize,
}

/// Markdown, one column per engine.
pub(crate) fn table(rows: &[Row]) -> String {
    let times = |t: &Times| format!("{:.0} / {:.0} ms ({} runs)", t.p50_ms, t.p99_ms, t.count);
    let fine_times = |t: &Times| format!("{:.1} / {:.1} ms", t.p50_ms, t.p99_ms);
    let build = |row: &Row| match row.build {
        Some(build) => format!("{:.0} s / {:.0} s", build.wall_s, build.cpu_s),
        None => "not measured".to_owned(),
    };
    type Cell<'a> = Box<dyn Fn(&Row) -> String + 'a>;
    let lines: Vec<(&str, Cell<'_>)> = vec![
        ("settings", Box::new(|r| r.facts.settings.to_owned())),
        ("pool of 5 formed", Box::new(|r| format!("{:.0} ms", r.figures.formed_ms))),
        ("process killed: all know, p50 / p99", Box::new(|r| times(&r.figures.killed))),
        ("process silent: all know, p50 / p99", Box::new(|r| times(&r.figures.silenced))),
        (
            "living nodes declared down, 30 % loss, 0-200 ms",
            Box::new(|r| format!("{} in {} s", r.figures.false_alarms, r.figures.false_alarm_seconds)),
        ),
        (
            "one silenced there: all know",
            Box::new(|r| match r.figures.silenced_on_bad_network_ms {
                Some(ms) => format!("{ms:.0} ms (1 run)"),
                None => "not all, in 15 s".to_owned(),
            }),
        ),
        ("small change known to all, p50 / p99", Box::new(|r| fine_times(&r.figures.change))),
        (
            "50 MB to a peer",
            Box::new(|r| match r.figures.bulk_mb_per_s {
                0.0 => "nothing arrived".to_owned(),
                rate => format!("{rate:.1} MB/s"),
            }),
        ),
        ("RSS per node", Box::new(|r| format!("{:.1} MiB", r.figures.rss_kib as f64 / 1024.0))),
        ("clean build, 2 jobs, wall / CPU", Box::new(build)),
        ("packages", Box::new(|r| r.packages.to_string())),
        ("licence", Box::new(|r| r.facts.licence.to_owned())),
        ("sans-IO", Box::new(|r| r.facts.sans_io.to_owned())),
    ];
    let mut out = String::from("| |");
    out.extend(rows.iter().map(|row| format!(" {} |", row.engine)));
    out.push_str("\n|---|");
    out.push_str(&"---|".repeat(rows.len()));
    for (title, cell) in &lines {
        out.push_str(&format!("\n| {title} |"));
        out.extend(rows.iter().map(|row| format!(" {} |", cell(row))));
    }
    out
}
