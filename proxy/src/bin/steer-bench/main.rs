//! `cargo xtask bench steer`: what a packet costs on each way through the XDP program, beside the least that such a
//! program must do, and how good and how quick the table is.

mod cases;
mod checks;
mod frames;
mod measure;
mod pool;
mod report;
mod sockets;
mod table;

use std::{
    io::{Write, stderr, stdout},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result};
use autocluster::dataplane::{self, Dataplane, InterfaceSettings, Mode, Network, Settings, bench::Bench};
use clap::Parser;
use nix::{
    mount::{MsFlags, mount},
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use proxy_common::hash::SteeringKey;

use crate::{
    frames::{DENIED_BITS, Family},
    measure::{Effort, Stand},
    pool::Pool,
    report::Report,
};

/// Measure the XDP program beside its floors
#[derive(Parser)]
#[command(name = "cargo xtask bench steer", after_help = "Example: cargo xtask bench steer --json figures.json")]
struct Cli {
    /// Write all figures to this file too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Runs of each case
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Packets of each run
    #[arg(long, default_value_t = 1 << 20, value_parser = clap::value_parser!(u32).range(1..))]
    packets: u32,
    /// CPU to run on
    #[arg(long, default_value_t = 0)]
    cpu: usize,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_failed) => ExitCode::FAILURE,
        Err(error) => {
            tell(&format!("bench: {error:#}\n"));
            ExitCode::from(2)
        }
    }
}

/// How many checks failed.
fn run(cli: &Cli) -> Result<usize> {
    dataplane::probe()?;
    pin(cli.cpu)?;
    sockets::leave_the_network()?;
    let effort = Effort { packets: cli.packets, rounds: cli.rounds };
    let pins = mount_bpffs()?;
    let report = measure(effort, pins.path())?;
    report.print(&mut stdout().lock()).context("failed to write to standard output")?;
    if let Some(file) = &cli.json {
        let text = serde_json::to_string_pretty(&report.json())?;
        std::fs::write(file, text + "\n").with_context(|| format!("failed to write {}", file.display()))?;
    }
    Ok(report.failed())
}

fn measure(effort: Effort, bpffs: &Path) -> Result<Report> {
    let mut dataplane = open(bpffs)?;
    let pool = Pool::new()?;
    // Their sockets are what the program finds, as long as the listeners live.
    let _listeners = Family::ALL.map(sockets::connect).into_iter().collect::<Result<Vec<_>>>()?;
    sockets::allow_cookies()?;
    let mut bench = Bench::load(bpffs)?;
    let mut stand = Stand { dataplane: &mut dataplane, bench: &mut bench, pool: &pool };
    let figures = stand.measure(effort, |round| tell(&format!("\rround {} of {} ", round + 1, effort.rounds)))?;
    tell("\rtables           \r");
    let rebuild = table::rebuild(&mut dataplane)?;
    let quality = table::quality()?;
    let mut checks = checks::packets(&figures);
    checks.extend(checks::table(&quality, &rebuild));
    Ok(Report { effort, figures, quality, rebuild, checks })
}

/// Loads the XDP program and gives it all that the paths need: services, a full deny list, a long life.
fn open(bpffs: &Path) -> Result<Dataplane> {
    const LONG: Duration = Duration::from_secs(24 * 3_600);
    let interface = InterfaceSettings { name: "lo".to_owned(), mac: frames::MAC, mtu: 1_500 };
    let key = SteeringKey { k0: 0x0123_4567_89ab_cdef, k1: 0xfedc_ba98_7654_3210 };
    let settings = Settings {
        node: "bench".to_owned(),
        interfaces: vec![interface],
        mode: Mode::Driver,
        bpffs: bpffs.to_owned(),
        key,
    };
    let mut dataplane = Dataplane::load(bpffs, &settings)?;
    dataplane.set_vips([(frames::VIP_V4.into(), true), (frames::VIP_V6.into(), true)])?;
    dataplane.set_services([(frames::VIP_V4.into(), frames::SERVICE), (frames::VIP_V6.into(), frames::SERVICE)])?;
    dataplane.set_network(&Network {
        address_v4: Some(frames::OUTER_OWN.octets()),
        encapsulation_port: frames::ENCAPSULATION_PORT,
        path_mtu: 1_500,
        ..Network::default()
    });
    dataplane.keep_alive(LONG)?;
    let denied = 0..1 << DENIED_BITS;
    dataplane.fill_deny_list(denied.clone().map(frames::denied_v4), denied.map(frames::denied_v6))?;
    Ok(dataplane)
}

/// A BPF file system that nobody else sees, and that ends with this process.
fn mount_bpffs() -> Result<tempfile::TempDir> {
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("failed to leave the mounts")?;
    let directory = tempfile::tempdir()?;
    mount(Some("bpf"), directory.path(), Some("bpf"), MsFlags::empty(), none)
        .context("failed to mount a BPF file system")?;
    Ok(directory)
}

fn pin(cpu: usize) -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &cpus).with_context(|| format!("failed to run on CPU {cpu}"))
}

fn tell(text: &str) {
    // Where standard error is closed there is nobody to tell.
    let _untold = stderr().write_all(text.as_bytes());
}
