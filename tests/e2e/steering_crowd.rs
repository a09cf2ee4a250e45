//! Many connections live through every planned change of the pool, and lose only what a dead front end had.
//!
//! `AUTOCLUSTER_CROWD` says how many: 5,000 unless it is set, which is what fits into a test run; 50,000 take minutes.

use std::env;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use autocluster_tests::client::{HeldSessions, Pastime};
use autocluster_tests::crowd::{Census, Crowd, NOBODY, total};
use autocluster_tests::lab::{Account, Lab, until_some};
use autocluster_tests::scenario::imap;

use crate::Test;

pub(crate) const TESTS: &[Test] = &[("steering_crowd::planned_changes_and_a_death", planned_changes_and_a_death)];

const USUAL_CROWD: u32 = 5_000;
/// For each connection of the crowd, so many IMAP sessions that are logged in and wait by IDLE.
const IDLE_SHARE: u32 = 50;
/// Beyond three repetitions of a packet (0.2, 0.4 and 0.8 s), on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
const AGREEMENT_LIMIT: Duration = Duration::from_secs(10);
const LATE: u8 = 6;

fn crowd_size() -> anyhow::Result<u32> {
    let Ok(text) = env::var("AUTOCLUSTER_CROWD") else { return Ok(USUAL_CROWD) };
    text.parse().with_context(|| format!("AUTOCLUSTER_CROWD={text}: not a number"))
}

fn planned_changes_and_a_death(lab: &Lab) -> anyhow::Result<()> {
    let size = crowd_size()?;
    let mut story = Story::begin(lab, size)?;
    story.change("fe2 drains", || lab.cli(2, &["drain"]).map(drop))?;
    story.come(size / 10, &["fe2"])?;
    story.change("fe3 drains", || lab.cli(3, &["drain"]).map(drop))?;
    story.change("fe4's weight is 30", || lab.cli(4, &["weight", "30"]).map(drop))?;
    story.come(size / 50, &["fe2", "fe3"])?;
    story.change("fe2 takes part again", || lab.cli(2, &["undrain"]).map(drop))?;
    story.change("fe6 joins", || lab.start_front_end(LATE))?;
    let newcomers = story.come(size / 10, &["fe3"])?;
    ensure!(newcomers.contains_key("fe6"), "fe6 took none of {newcomers:?}");
    story.die(1)?;
    lab.start_front_end(1)?;
    lab.await_pool().context("after the restart")?;
    story.check("fe1 is back")?;
    drop(story);
    lab.cli(3, &["undrain"])?;
    lab.cli(4, &["weight", "default"])?;
    await_agreement(lab)
}

/// Waits until all front ends have the same table in force and none awaits anybody's word any more.
pub(crate) fn await_agreement(lab: &Lab) -> anyhow::Result<()> {
    let (_, took) = until_some("all front ends agree", AGREEMENT_LIMIT, || {
        let tables = lab.started().into_iter().map(|number| table_of(lab, number));
        let tables: Vec<String> = tables.collect::<anyhow::Result<_>>()?;
        let differing = tables.iter().find(|table| **table != tables[0]);
        ensure!(differing.is_none(), "{differing:?} and {:?}", tables.first());
        Ok(Some(()))
    })?;
    eprintln!("  agreed after {took:.1?}");
    Ok(())
}

/// The members and their buckets, as a front end has them in force.
fn table_of(lab: &Lab, number: u8) -> anyhow::Result<String> {
    let shown = lab.cli_json(number, &["steer", "show"])?;
    ensure!(shown["settling"] == false, "fe{number} is settling");
    let members = shown["members"].as_array().context("no members")?;
    ensure!(members.len() == lab.started().len(), "fe{number} knows {} members", members.len());
    let mut lines = Vec::new();
    for member in members {
        let [name, state, weight, buckets] = ["name", "state", "weight", "buckets"].map(|key| &member[key]);
        // The state is known before the table is written.
        let in_force = *state == "active" && *buckets != 0 || *state == "draining" && *buckets == 0;
        ensure!(in_force, "fe{number} has {state} {name} with {buckets} buckets");
        lines.push(format!("{name} {state} {weight} {buckets}"));
    }
    Ok(lines.join(", "))
}

/// A crowd's life.
struct Story<'a> {
    lab: &'a Lab,
    crowd: Crowd,
    idle: HeldSessions,
    begin: Instant,
}

impl<'a> Story<'a> {
    fn begin(lab: &'a Lab, size: u32) -> anyhow::Result<Self> {
        let begin = Instant::now();
        let mut crowd = Crowd::gather(lab, size + size / 4)?;
        let idle = HeldSessions::open(lab, &imap(), &Account::local(1, 1), size / IDLE_SHARE, Pastime::Idle)?;
        eprintln!("  {:>5.1} s  {} sessions are logged in and idle", begin.elapsed().as_secs_f64(), idle.ports.len());
        let opened = crowd.open(size, PATIENCE)?;
        let mut story = Self { lab, crowd, idle, begin };
        story.tell("have come", &opened);
        ensure!(total(&opened).lost() == 0, "not all came in: {opened:?}");
        ensure!(opened.len() == lab.started().len(), "not every front end has some: {opened:?}");
        story.check("nothing has changed")?;
        Ok(story)
    }

    fn tell(&self, what: &str, census: &Census) {
        let by_front_end: Vec<String> =
            census.iter().map(|(name, fates)| format!("{name} {}/{}", fates.alive, fates.lost())).collect();
        let (seconds, repeated) = (self.begin.elapsed().as_secs_f64(), total(census).repeated);
        eprintln!("  {seconds:>5.1} s  {what}: alive/lost {}; {repeated} packets lost", by_front_end.join(", "));
    }

    /// Changes something. Everybody speaks while the change goes round, and again when all agree.
    fn change(&mut self, what: &str, change: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
        change().with_context(|| what.to_owned())?;
        self.check(&format!("{what}, at once"))?;
        await_agreement(self.lab).with_context(|| what.to_owned())?;
        self.check(&format!("{what}, agreed"))
    }

    /// Everybody speaks, and nobody may be lost.
    fn check(&mut self, what: &str) -> anyhow::Result<()> {
        let census = self.crowd.check(PATIENCE)?;
        self.tell(what, &census);
        ensure!(total(&census).lost() == 0, "{what}: lost {census:?}");
        let broken = self.idle.broken()?;
        ensure!(broken.is_empty(), "{what}: {} of the idle sessions broke: {broken:?}", broken.len());
        Ok(())
    }

    /// New connections; none of these front ends may get one.
    fn come(&mut self, count: u32, closed: &[&str]) -> anyhow::Result<Census> {
        let opened = self.crowd.open(count, PATIENCE)?;
        self.tell(&format!("{count} more"), &opened);
        ensure!(!opened.contains_key(NOBODY), "not all came in: {opened:?}");
        for name in closed {
            ensure!(!opened.contains_key(*name), "{name} drains, and took new ones: {opened:?}");
        }
        Ok(opened)
    }

    /// A front end is killed: exactly what it had is lost.
    fn die(&mut self, victim: u8) -> anyhow::Result<()> {
        let doomed = self.lab.client_ports(victim, 993)?;
        let name = format!("fe{victim}");
        let before = self.crowd.check(PATIENCE)?;
        self.lab.kill_front_end(victim)?;
        let after = self.crowd.check(PATIENCE)?;
        self.tell(&format!("{name} was killed"), &after);
        for (other, fates) in &after {
            let had = before[other].alive;
            let expected = if *other == name { (0, had) } else { (had, 0) };
            ensure!((fates.alive, fates.lost()) == expected, "{other} had {had}, alive and lost are {fates:?}");
        }
        let broken = self.idle.broken()?;
        let others: Vec<&u64> = broken.iter().filter(|port| !doomed.contains(port)).collect();
        ensure!(others.is_empty(), "idle sessions on others broke: {others:?}");
        ensure!(broken.len() == doomed.len(), "{} of {} idle sessions of the dead broke", broken.len(), doomed.len());
        Ok(())
    }
}
