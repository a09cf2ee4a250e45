//! Every test of the project, and one line that sums them up.

use std::collections::BTreeSet;
use std::env;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, ExitCode, Stdio};

use anyhow::Context;

use crate::run::{build_all, cargo};
use crate::{setup, tidy};

#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: u64,
    failed: u64,
    skipped: u64,
    /// Names of skipped tests with the reason, as the test runner printed them.
    skips: BTreeSet<String>,
}

/// `cargo xtask test`
pub(crate) fn command(filter: Option<&str>) -> anyhow::Result<ExitCode> {
    let ready = setup::ensure()?;
    ready.require_daemon()?;
    let mut tally = Tally::default();
    // A filter asks for some tests, not for everything that CI checks.
    if filter.is_none() && env::var_os("CI").is_some_and(|value| value == "true") {
        count_step(&mut tally, "formatting and lints", tidy::check());
    }
    let mut unit = vec!["test", "--workspace", "--no-fail-fast", "--"];
    unit.extend(filter);
    // The packet table is a part of steering, whatever its module is called.
    unit.extend(filter.filter(|name| name.starts_with("steer")).map(|_| "dataplane"));
    run_tests(&mut tally, &mut cargo(&unit))?;
    let built = build_all();
    let runnable = built.is_ok();
    count_step(&mut tally, "build", built);
    if runnable {
        let mut e2e = vec!["test", "--package", "autocluster-tests", "--test", "e2e"];
        e2e.extend(["--", "--test-threads", "1"]);
        e2e.extend(filter);
        let mut command = cargo(&e2e);
        if ready.require_lab().is_ok() {
            command.env("AUTOCLUSTER_LAB_REQUIRED", "1");
        }
        run_tests(&mut tally, &mut command)?;
    }
    Ok(conclude(&tally))
}

/// A step that is no test counts only if it fails.
fn count_step(tally: &mut Tally, what: &str, result: anyhow::Result<()>) {
    if let Err(error) = result {
        eprintln!("{what}: {error:#}");
        tally.failed += 1;
    }
}

fn conclude(tally: &Tally) -> ExitCode {
    if !tally.skips.is_empty() {
        println!("\nskipped:");
        for skip in &tally.skips {
            println!("  {skip}");
        }
    }
    let nothing_ran = tally.passed + tally.failed == 0;
    if nothing_ran {
        eprintln!("no test ran");
    }
    let skipped = if tally.skipped > 0 { format!(", {} skipped", tally.skipped) } else { String::new() };
    println!("\n{} passed, {} failed{skipped}", tally.passed, tally.failed);
    if tally.failed > 0 || nothing_ran { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Runs a test command, shows what it prints and counts what it reports.
fn run_tests(tally: &mut Tally, command: &mut Command) -> anyhow::Result<()> {
    let mut child = command.stdout(Stdio::piped()).spawn().context("failed to start cargo test")?;
    let stdout = child.stdout.take().context("cargo test has no output")?;
    let failed_before = tally.failed;
    for line in BufReader::new(stdout).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        println!("{line}");
        tally.read(&line);
    }
    let status = child.wait()?;
    if !status.success() && tally.failed == failed_before {
        eprintln!("{command:?}: {status}, and no failed test was reported");
        tally.failed += 1;
    }
    Ok(())
}

impl Tally {
    /// Takes in one line of a test runner's output.
    fn read(&mut self, line: &str) {
        if let Some((name, reason)) = line.strip_prefix("test ").and_then(|rest| rest.split_once(" ... ignored")) {
            let reason = reason.trim_start_matches(", ");
            self.skips.insert(if reason.is_empty() { name.to_owned() } else { format!("{name}: {reason}") });
        }
        let Some(result) = line.strip_prefix("test result: ") else { return };
        for part in result.split(['.', ';']) {
            let mut words = part.split_whitespace();
            let (Some(Ok(count)), Some(what)) = (words.next().map(str::parse::<u64>), words.next()) else { continue };
            match what {
                "passed" => self.passed += count,
                "failed" => self.failed += count,
                "ignored" => self.skipped += count,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_what_the_test_runners_print() {
        let mut tally = Tally::default();
        for line in [
            "test a::b ... ok",
            "test c ... ignored, not root",
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.01s",
            "test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.20s",
        ] {
            tally.read(line);
        }
        let skips = BTreeSet::from(["c: not root".to_owned()]);
        assert_eq!(tally, Tally { passed: 14, failed: 1, skipped: 1, skips });
    }
}
