//! The end-to-end tests: real servers, the real daemon; one lab and one test at a time, in this order.
#![allow(clippy::print_stderr, reason = "a test runner talks to its user")]

mod abuse;
mod bad_config;
mod delivery;
mod directory;
mod failover;
mod failures;
mod injection;
mod lab_itself;
mod refusals;
mod sight;
mod smuggling;
mod steering;
mod steering_apart;
mod steering_crowd;
mod steering_flood;
mod steering_handmade;
mod steering_interfaces;
mod steering_restart;

use std::path::Path;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

use autocluster_tests::lab::{self, Lab, Progress, Spec};
use libtest_mimic::{Arguments, Failed, Trial};

/// Labs of this program are called so, and by its process id: two runs at a time are in each other's way otherwise.
const LAB: &str = "e2e";

/// The lab that a test makes and takes away beside it.
pub(crate) const SECOND: &str = "e2esecond";

type Test = (&'static str, fn(&Lab) -> anyhow::Result<()>);

/// What a test's lab looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pool {
    /// Three front ends, two back ends.
    Usual,
    /// Five front ends that take tens of thousands of sessions, and a sixth that is not started.
    Large,
    /// Two front ends on the client's segment, one behind a router.
    Apart,
}

impl Pool {
    fn spec(self) -> Spec {
        let usual = Spec { name: lab_name(LAB), ..Spec::default() };
        match self {
            Self::Usual => usual,
            Self::Large => Spec { frontends: 6, late: 1, backends: 1, crowd: true, ..usual },
            Self::Apart => Spec { far: 1, backends: 1, ..usual },
        }
    }
}

/// The lab, made when the first test asks for it; or why it could not be made, which is told once.
static THE_LAB: Mutex<Option<(Pool, Result<Lab, String>)>> = Mutex::new(None);

/// A name for a lab that no other run uses.
pub(crate) fn lab_name(kind: &str) -> String {
    format!("{kind}{}", std::process::id())
}

/// Takes away what runs left behind that died.
fn clear_leftovers() {
    let names = std::fs::read_dir(lab::RUN_DIR).into_iter().flatten().flatten();
    for name in names.filter_map(|entry| entry.file_name().into_string().ok()) {
        let Some(pid) = name.strip_prefix(SECOND).or_else(|| name.strip_prefix(LAB)) else { continue };
        let dead = pid.parse::<u32>().is_ok_and(|pid| !Path::new(&format!("/proc/{pid}")).exists());
        if dead && let Err(error) = lab::down(&name) {
            eprintln!("failed to take the leftover lab {name} away: {error:#}");
        }
    }
}

fn main() -> ExitCode {
    clear_leftovers();
    let mut arguments = Arguments::from_args();
    // They share the lab and stop parts of it.
    arguments.test_threads = Some(1);
    let obstacle = lab::obstacle();
    let tests = [
        (Pool::Usual, lab_itself::TESTS),
        (Pool::Usual, delivery::TESTS),
        (Pool::Usual, refusals::TESTS),
        (Pool::Usual, sight::TESTS),
        (Pool::Usual, smuggling::TESTS),
        (Pool::Usual, injection::TESTS),
        (Pool::Usual, directory::TESTS),
        (Pool::Usual, steering::TESTS),
        (Pool::Usual, steering_interfaces::TESTS),
        (Pool::Usual, abuse::TESTS),
        (Pool::Usual, failures::TESTS),
        (Pool::Usual, bad_config::TESTS),
        // Want a pool whose front ends have been up for minutes, so before any of them dies.
        (Pool::Usual, steering_handmade::COOKIE_TESTS),
        (Pool::Usual, failover::TESTS),
        // Counts what all the others caused.
        (Pool::Usual, steering::CLOSING_TESTS),
        (Pool::Large, steering_handmade::TESTS),
        (Pool::Large, steering_flood::TESTS),
        (Pool::Large, steering_restart::TESTS),
        (Pool::Large, steering_crowd::TESTS),
        (Pool::Large, steering::CLOSING_TESTS_OF_LARGE),
        (Pool::Apart, steering_apart::TESTS),
        (Pool::Apart, steering::CLOSING_TESTS_OF_APART),
    ];
    let trials = tests
        .iter()
        .flat_map(|(pool, theme)| theme.iter().map(|test| trial(*pool, *test, obstacle.as_deref())))
        .collect();
    if let Some(reason) = &obstacle {
        eprintln!("end-to-end tests are skipped: {reason}");
        // Set where everything that a lab needs is here: then a skipped test hides a fault.
        if std::env::var_os("AUTOCLUSTER_LAB_REQUIRED").is_some() {
            return ExitCode::FAILURE;
        }
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    let taken_away = take_away();
    if conclusion.has_failed() || !taken_away { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn trial(pool: Pool, (name, test): Test, obstacle: Option<&str>) -> Trial {
    let trial = Trial::test(name, move || with_lab(pool, test).map_err(|error| Failed::from(format!("{error:#}"))));
    match obstacle {
        // The runner prints the kind before the name: a skipped test says why.
        Some(reason) => trial.with_kind(reason.split(':').next().unwrap_or(reason)).with_ignored_flag(true),
        None => trial,
    }
}

fn with_lab(pool: Pool, test: fn(&Lab) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let mut slot = THE_LAB.lock().unwrap_or_else(PoisonError::into_inner);
    // Two labs at a time would only take memory from each other.
    if slot.as_ref().is_some_and(|(made, _)| *made != pool) {
        *slot = None;
    }
    let (_, made) = slot.get_or_insert_with(|| {
        let made = Lab::up(pool.spec(), &Progress::quiet()).map_err(|error| format!("no lab: {error:#}"));
        (pool, made)
    });
    match made {
        Ok(lab) => test(lab),
        Err(error) => anyhow::bail!(std::mem::replace(error, "no lab (see the first failure)".to_owned())),
    }
}

/// Statics are not dropped.
fn take_away() -> bool {
    let lab = THE_LAB.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some((_, Ok(lab))) = lab else { return true };
    lab.keep();
    if std::env::var_os("AUTOCLUSTER_LAB_KEEP").is_some() {
        eprintln!("the lab stays: cargo xtask lab status --name {}", lab_name(LAB));
        return true;
    }
    match lab::down(&lab_name(LAB)) {
        Ok(()) => true,
        Err(error) => {
            eprintln!("failed to take the lab away: {error:#}");
            false
        }
    }
}
