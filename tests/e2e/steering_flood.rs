//! A SYN flood from random addresses, the deny list and the limit: honest users hardly notice.

use std::net::{IpAddr, SocketAddr};
use std::process::Child;
use std::time::Duration;

use anyhow::{Context, ensure};
use autocluster_tests::crowd::{Crowd, Pace, total};
use autocluster_tests::lab::{Lab, VIP, VIP6, tool, until, until_some};
use autocluster_tests::packet::puppet::Puppet;
use serde_json::Value;

use crate::Test;
use crate::steering_handmade::{STAND_IN, STAND_IN6, Stage, watched};

pub(crate) const TESTS: &[Test] = &[
    ("steering_flood::honest_users_hardly_notice", honest_users_hardly_notice),
    ("steering_flood::deny_list", deny_list),
    ("steering_flood::limit", limit),
];

/// Where the flood comes from.
const ATTACKER: &str = "be1";
/// Is not started yet, so it is just a machine.
const BYSTANDER: &str = "fe6";
const SESSIONS: u32 = 200;
const SPEAK_EVERY: Duration = Duration::from_millis(100);
const COME_EVERY: Duration = Duration::from_millis(10);
const DURING: Duration = Duration::from_secs(5);
/// A flood that the test does not end.
const LONGEST_FLOOD_S: &str = "60";
/// Of the quiet figure.
const SHARE: f64 = 0.9;
/// What a machine must reach whose two cores make the flood as well, whatever else runs on them: a test is not a benchmark.
const LEAST_SHARE: f64 = 0.1;
const PATIENCE: Duration = Duration::from_secs(10);
/// Two looks of the daemon, and the time to ask five of them on a busy machine.
const ON_LIMIT: Duration = Duration::from_secs(10);
/// The switch waits ten seconds for the flood to return.
const OFF_LIMIT: Duration = Duration::from_secs(20);
const KNOWN_LIMIT: Duration = Duration::from_secs(1);
const SILENCE: Duration = Duration::from_millis(300);

/// A real flood comes from other machines than the honest users, so it has a cable of its own here. But its generator, the
/// switch and all front ends share the processors: so the figure that the flood is compared with is taken while the same
/// generator floods another machine on the same switch. The processors do the same work then, but that of the pool. It
/// stays on one of them, at a low priority.
fn honest_users_hardly_notice(lab: &Lab) -> anyhow::Result<()> {
    let stage = Stage::new(lab)?;
    let routes = Routes::add(lab)?;
    let mut crowd = Crowd::gather(lab, SESSIONS)?;
    let opened = crowd.open(2 * SESSIONS, PATIENCE)?;
    ensure!(total(&opened).lost() == 0, "{opened:?}");
    let elsewhere = Flood::start(lab, lab.mac(BYSTANDER)?, [STAND_IN.into(), STAND_IN6.into()])?;
    let quiet = crowd.pace(SPEAK_EVERY, COME_EVERY, DURING)?;
    let elsewhere = elsewhere.end()?;
    let sent_before = lab.counter_of_all("cookie_sent")?;
    let flood = Flood::start(lab, stage.entrance(0), [VIP.into(), VIP6.into()])?;
    let (_, on) = until_some("cookies are on", ON_LIMIT, || Ok((cookies_on(lab)? > 0).then_some(())))?;
    let flooded = crowd.pace(SPEAK_EVERY, COME_EVERY, DURING)?;
    let here = flood.end()?;
    let cookies = lab.counter_of_all("cookie_sent")? - sent_before;
    let off = until("cookies are off again", OFF_LIMIT, || cookies_on(lab).is_ok_and(|on| on == 0))?;
    drop(routes);
    eprintln!("  {cookies} cookies sent; on after {on:.1?}, off again after {off:.1?}");
    eprintln!("  {elsewhere:.0} SYNs a second to another: sessions {:?}, new {:?}", quiet.0, quiet.1);
    eprintln!("  {here:.0} SYNs a second to the pool: sessions {:?}, new {:?}", flooded.0, flooded.1);
    ensure!(cookies > 0, "no cookie was sent");
    hardly_less("commands answered", flooded.0, quiet.0)?;
    hardly_less("new connections", flooded.1, quiet.1)?;
    let after = crowd.check(PATIENCE)?;
    ensure!(total(&after).lost() == 0, "sessions were lost: {after:?}");
    Ok(())
}

fn hardly_less(what: &str, flooded: Pace, quiet: Pace) -> anyhow::Result<()> {
    let count = |number: u64| -> anyhow::Result<f64> { Ok(f64::from(u32::try_from(number)?)) };
    let share = count(flooded.done)? / count(quiet.done)?;
    if share < SHARE {
        eprintln!(
            "  {what}: {:.1} % is less than the {:.0} % that a quiet machine reaches",
            share * 100.0,
            SHARE * 100.0
        );
    }
    ensure!(share >= LEAST_SHARE, "{what}: {:.1} % of the quiet figure: {flooded:?} after {quiet:?}", share * 100.0);
    Ok(())
}

/// How many front ends answer by cookies now.
fn cookies_on(lab: &Lab) -> anyhow::Result<usize> {
    let states =
        lab.started().into_iter().map(|number| Ok(lab.cli_json(number, &["cookies", "show"])?["sending"] == true));
    Ok(states.collect::<anyhow::Result<Vec<bool>>>()?.into_iter().filter(|on| *on).count())
}

/// The flood's program.
struct Flood(Child);

impl Flood {
    /// As many SYNs as go, in frames for `to`.
    fn start(lab: &Lab, to: [u8; 6], targets: [IpAddr; 2]) -> anyhow::Result<Self> {
        let text = |mac: [u8; 6]| mac.map(|octet| format!("{octet:02x}")).join(":");
        let program = tool("flood")?.display().to_string();
        let (from, to) = (text(lab.mac(ATTACKER)?), text(to));
        let [v4, v6] = targets.map(|target| SocketAddr::new(target, 25).to_string());
        let argv = ["taskset", "--cpu-list", "0", "nice", "-n", "10", &program, "--from", &from, "--to", &to];
        let rest = ["--target", &v4, "--target", &v6, "--seconds", LONGEST_FLOOD_S];
        Ok(Self(lab.spawn(ATTACKER, &[&argv[..], &rest].concat())?))
    }

    /// Ends it; how many SYNs it sent in a second.
    fn end(mut self) -> anyhow::Result<f64> {
        drop(self.0.stdin.take());
        self.0.wait()?;
        let mut said = String::new();
        let mut output = self.0.stdout.take().context("no standard output")?;
        std::io::Read::read_to_string(&mut output, &mut said)?;
        let report: Value = serde_json::from_str(&said).with_context(|| format!("the flood said {said:?}"))?;
        let number = |key: &str| report[key].as_f64().with_context(|| format!("no {key}: {report}"));
        Ok(number("sent")? / number("seconds")?)
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Ways to everywhere, so that front ends try to answer the whole world. The client drops what comes.
pub(crate) struct Routes<'a>(&'a Lab);

impl<'a> Routes<'a> {
    pub(crate) fn add(lab: &'a Lab) -> anyhow::Result<Self> {
        let routes = Self(lab);
        routes.change("add")?;
        Ok(routes)
    }

    fn change(&self, verb: &str) -> anyhow::Result<()> {
        for number in self.0.started() {
            for via in [STAND_IN.to_string(), STAND_IN6.to_string()] {
                let output = self.0.exec(&format!("fe{number}"), &["ip", "route", verb, "default", "via", &via])?;
                ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            }
        }
        Ok(())
    }
}

impl Drop for Routes<'_> {
    fn drop(&mut self) {
        // The lab goes soon; a route that stays does no harm.
        drop(self.change("del"));
    }
}

/// Whether a SYN by this front end is answered.
fn is_answered(puppet: &mut Puppet, by: [u8; 6]) -> anyhow::Result<bool> {
    puppet.syn(by)?;
    Ok(puppet.await_where(SILENCE, |tcp| tcp.flags.syn)?.is_some())
}

/// Whether SYNs from a new port to the VIPs of both families are answered by each front end as entrance.
fn answered_by_all(lab: &Lab, stage: &Stage<'_>, expected: bool) -> anyhow::Result<()> {
    for number in lab.started() {
        for _ in 0..2 {
            let mut puppet = stage.puppet(25)?;
            let answered = is_answered(&mut puppet, stage.mac(number))?;
            ensure!(answered == expected, "{} by fe{number}: answered: {answered}", puppet.own);
        }
    }
    Ok(())
}

fn deny_list(lab: &Lab) -> anyhow::Result<()> {
    watched(lab, |stage| {
        answered_by_all(lab, stage, true)?;
        let before = lab.counter_of_all("denied")?;
        // Told to one, known to all.
        for prefix in ["10.77.0.144/28".to_owned(), format!("{STAND_IN6}/128")] {
            lab.cli(2, &["deny", "add", &prefix, "--for", "4s", "--reason", "a test"])?;
        }
        let known = until("every front end knows", KNOWN_LIMIT, || {
            lab.started().into_iter().all(|number| listed(lab, number) == Some(2))
        })?;
        answered_by_all(lab, stage, false)?;
        let denied = lab.counter_of_all("denied")? - before;
        let expired = until("it expires", Duration::from_secs(10), || {
            lab.started().into_iter().all(|number| listed(lab, number) == Some(0))
        })?;
        eprintln!("  known to all after {known:.1?}, {denied} packets denied, expired after {expired:.1?} more");
        ensure!(denied >= 2 * u64::try_from(lab.started().len())?, "{denied} denied");
        answered_by_all(lab, stage, true)
    })
}

/// How many prefixes a front end denies.
fn listed(lab: &Lab, number: u8) -> Option<usize> {
    lab.cli_json(number, &["deny", "ls"]).ok()?.as_array().map(Vec::len)
}

fn limit(lab: &Lab) -> anyhow::Result<()> {
    const LIMIT: u32 = 10;
    const SYNS: u16 = 100;
    watched(lab, |stage| {
        for number in lab.started() {
            lab.cli(number, &["limit", "set", &LIMIT.to_string()])?;
        }
        let before = lab.counter_of_all("limited")?;
        let puppets = (0..SYNS).map(|_| stage.puppet(25)).collect::<anyhow::Result<Vec<_>>>()?;
        puppets.iter().try_for_each(|puppet| puppet.syn(stage.entrance(0)))?;
        until("SYNs are dropped", KNOWN_LIMIT, || lab.counter_of_all("limited").is_ok_and(|now| now > before))?;
        let limited = lab.counter_of_all("limited")? - before;
        for number in lab.started() {
            lab.cli(number, &["limit", "set", "off"])?;
        }
        eprintln!("  {limited} of {SYNS} SYNs at once were dropped, at {LIMIT} a second from one prefix");
        // Two prefixes (IPv4 and IPv6), and the SYNs may lie in two periods.
        let most_passed = u64::from(4 * LIMIT);
        ensure!(limited >= u64::from(SYNS) - most_passed, "only {limited} of {SYNS} were dropped");
        ensure!(limited <= u64::from(SYNS) - u64::from(LIMIT), "{limited} of {SYNS} were dropped");
        answered_by_all(lab, stage, true)
    })
}
