//! `autocluster steer stats --watch`: the packets of each second.

use std::{
    io::{IsTerminal, Write, stdout},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::StatusArgs;
use crate::{
    control::{self, Request, Response, SteerRequest},
    status::{self, steering::SteerStats},
};

const EVERY: Duration = Duration::from_secs(1);
/// Clears the terminal and goes to its first line (ECMA-48).
const CLEAR: &str = "\x1b[2J\x1b[H";

/// Shows the counters every second until the daemon or the reader is gone. JSON is one object a line.
///
/// # Errors
/// No daemon answers, or nobody reads.
pub fn watch(args: &StatusArgs, out: &mut impl Write) -> Result<()> {
    let clear = if stdout().is_terminal() && !args.json { CLEAR } else { "" };
    let (mut before, mut asked) = (ask(args)?, Instant::now());
    loop {
        sleep(EVERY);
        let (now, at) = (ask(args)?, Instant::now());
        let text = if args.json {
            serde_json::to_string(&now).context("failed to print the counters")?
        } else {
            with_rates(&now, &now.since(&before), at - asked)
        };
        writeln!(out, "{clear}{text}").and_then(|()| out.flush()).context("failed to write to standard output")?;
        (before, asked) = (now, at);
    }
}

fn ask(args: &StatusArgs) -> Result<SteerStats> {
    let Response::SteerStats(stats) = control::ask(&args.daemon.socket, &Request::Steer(SteerRequest::Stats))? else {
        bail!("the daemon answered something else: is it of another version?");
    };
    Ok(stats)
}

fn with_rates(now: &SteerStats, moved: &SteerStats, time: Duration) -> String {
    let rate = |name: &str| {
        let packets = moved.counters.iter().find(|c| c.name == name).map_or(0, |c| c.total);
        let millis = time.as_millis().max(1);
        (u128::from(packets) * 1000 / millis).to_string()
    };
    let head = now.head(true);
    let head: Vec<&str> = head.iter().map(String::as_str).collect();
    status::table_text(&head, now.rows(|counter| Some(rate(&counter.name))).into_iter())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::steering::SteerCounter;

    #[test]
    fn rates_are_per_second() {
        let stats = |n| SteerStats { counters: vec![SteerCounter { name: "own".into(), total: n, per_cpu: vec![n] }] };
        let (now, before) = (stats(1_500), stats(500));
        let text = with_rates(&now, &now.since(&before), Duration::from_millis(500));
        let row = text.lines().last().unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(row, "own 1500 2000 1500");
    }
}
