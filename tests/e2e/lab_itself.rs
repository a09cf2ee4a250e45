//! The lab keeps what it promises, or the other tests prove nothing.

use std::fs;
use std::time::Duration;

use anyhow::ensure;
use autocluster_tests::lab::{self, Lab, Layout, Progress, Spec, VIP, namespace};
use autocluster_tests::packet::Flags;
use autocluster_tests::packet::capture::Watch;
use autocluster_tests::packet::puppet::Puppet;

use crate::{SECOND, Test, lab_name};

pub(crate) const TESTS: &[Test] = &[
    ("lab_itself::exit_code_and_environment_of_exec", exit_code_and_environment_of_exec),
    ("lab_itself::a_second_lab_comes_and_goes_without_trace", a_second_lab_comes_and_goes_without_trace),
    ("lab_itself::half_a_lab_is_taken_away", half_a_lab_is_taken_away),
    ("lab_itself::captures_see_everything_and_every_fault", captures_see_everything),
];

const REAP_LIMIT: Duration = Duration::from_secs(5);

fn exit_code_and_environment_of_exec(lab: &Lab) -> anyhow::Result<()> {
    let output = lab.exec("client", &["sh", "-c", "echo $VIP $VIP6 $LAB_DIR; exit 7"])?;
    let said = String::from_utf8(output.stdout)?;
    ensure!(said == format!("10.77.0.100 fd77::100 {}\n", lab.layout().dir().display()), "{said}");
    ensure!(output.status.code() == Some(7), "{}", output.status);
    ensure!(lab.exec("fe99", &["true"]).is_err(), "there is no fe99");
    Ok(())
}

/// What of a lab is there: namespaces, mounts, files.
fn traces(name: &str) -> anyhow::Result<Vec<String>> {
    let layout = Layout::new(name);
    let mut found: Vec<String> = namespace::list().into_iter().filter(|ns| layout.host_of(ns).is_some()).collect();
    let dir = layout.dir().display().to_string();
    found.extend(fs::read_to_string("/proc/self/mounts")?.lines().filter(|m| m.contains(&dir)).map(str::to_owned));
    found.extend(layout.dir().exists().then_some(dir));
    Ok(found)
}

fn a_second_lab_comes_and_goes_without_trace(lab: &Lab) -> anyhow::Result<()> {
    let name = lab_name(SECOND);
    let spec = Spec { name: name.clone(), frontends: 1, backends: 1, users: 3, bare: true, ..Spec::default() };
    let second = Lab::up(spec, &Progress::quiet())?;
    let daemons: Vec<i32> = second.hosts().iter().flat_map(|host| &host.processes).map(|process| process.pid).collect();
    ensure!(daemons.len() == 3, "clamd, Dovecot and Postfix should run: {daemons:?}");
    let hosts = second.spec().hosts();
    let all: Vec<i32> = hosts.iter().flat_map(|host| namespace::pids(&second.layout().namespace(*host))).collect();
    ensure!(all.len() > daemons.len(), "the daemons have no children: {all:?}");
    drop(second);
    ensure!(traces(&name)?.is_empty(), "left behind: {:?}", traces(&name)?);
    // The dead are there until init has reaped them.
    lab::until("all its processes are gone", REAP_LIMIT, || {
        !all.iter().any(|pid| fs::exists(format!("/proc/{pid}")).unwrap_or(true))
    })?;
    let all_alive = lab.hosts().iter().flat_map(|host| &host.processes).all(|process| process.alive);
    ensure!(all_alive, "taking one lab away ended a process of another");
    Ok(())
}

fn half_a_lab_is_taken_away(_lab: &Lab) -> anyhow::Result<()> {
    let name = lab_name(SECOND);
    let spec = Spec { name: name.clone(), frontends: 2, backends: 1, users: 3, bare: true, ..Spec::default() };
    Lab::up(spec, &Progress::quiet())?.keep();
    // As if `up` had died: no record of what it is made of.
    fs::remove_file(Layout::new(&name).dir().join("lab.json"))?;
    lab::down(&name)?;
    ensure!(traces(&name)?.is_empty(), "left behind: {:?}", traces(&name)?);
    lab::down(&name)
}

/// What the captures of other tests prove, they prove only if a fault is noticed.
fn captures_see_everything(lab: &Lab) -> anyhow::Result<()> {
    const FRAMES: u16 = 500;
    let own = "10.77.0.151:9999".parse()?;
    let mut puppet = Puppet::new(lab, own, (VIP, 9).into())?;
    let fe1 = lab.mac("fe1")?;
    let watch = Watch::start(lab)?;
    for _ in 0..FRAMES {
        puppet.ack(fe1, b"x")?;
    }
    let captures = watch.finish(lab)?;
    for (host, outgoing) in [("client", true), ("fe1", true)] {
        let mine = captures[host].packets().filter(|(seen, packet)| {
            seen.outgoing == outgoing && packet.tcp().is_some_and(|tcp| tcp.source == own.port())
        });
        let count = mine.count();
        ensure!(count == usize::from(FRAMES), "{count} of {FRAMES} frames were seen at {host}");
    }
    let watch = Watch::start(lab)?;
    let mut damaged = puppet.segment(Flags { ack: true, ..Flags::default() }, b"x").packet()?;
    if let Some(last) = damaged.last_mut() {
        *last ^= 1;
    }
    // To nobody: the switch sends it to all, and no kernel counts it as received. The lab's last test looks at that.
    puppet.send_packet([2, 0, 0, 0, 0, 0xfe], None, &damaged)?;
    let Err(error) = watch.finish(lab) else { anyhow::bail!("a bad checksum was not noticed") };
    ensure!(format!("{error:#}").contains("bad TCP checksum"), "{error:#}");
    let file = lab.layout().dir().join("client.pcap").display().to_string();
    let output = lab.exec("client", &["tcpdump", "-nvr", &file, "src", "10.77.0.151"])?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(said.contains("incorrect"), "tcpdump reads the file otherwise: {said}");
    Ok(())
}
