//! `cargo xtask lab`: makes, shows, uses and takes away a lab.

use std::io::{self, Write as _};
use std::process::ExitCode;

use autocluster_tests::lab::{self, Lab, Progress, Spec};
use clap::{Args, Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask lab", about = "A pool, its back ends and a client as namespaces of this machine")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make the lab and start everything in it
    Up(Up),
    /// End its processes and remove all of it
    Down(Name),
    /// Show its hosts and their daemons
    Status(Name),
    /// Run a command on one host (client, fe1.., be1..)
    Exec(Exec),
}

#[derive(Args)]
struct Name {
    /// Which lab
    #[arg(long, default_value = "lab")]
    name: String,
}

#[derive(Args)]
struct Up {
    #[command(flatten)]
    name: Name,
    #[arg(long, default_value_t = 3)]
    frontends: u8,
    #[arg(long, default_value_t = 2)]
    backends: u8,
    /// Accounts in each back end's domain, and in shared.test
    #[arg(long, default_value_t = 100)]
    users: u32,
    /// Network, Dovecot, Postfix and clamd only
    #[arg(long)]
    bare: bool,
    /// So many of the front ends, the last ones, stand behind a router
    #[arg(long, default_value_t = 0)]
    far: u8,
    /// So many of the front ends, the last ones, are not started
    #[arg(long, default_value_t = 0)]
    late: u8,
    /// Front ends take tens of thousands of sessions, and bear with silent ones
    #[arg(long)]
    crowd: bool,
}

#[derive(Args)]
struct Exec {
    #[command(flatten)]
    name: Name,
    host: String,
    #[arg(required = true, last = true)]
    command: Vec<String>,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Up(args) => up(args),
        Command::Down(args) => lab::down(&args.name),
        Command::Status(args) => status(&args.name),
        Command::Exec(args) => exec(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            drop(writeln!(io::stderr(), "lab: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn up(args: Up) -> anyhow::Result<()> {
    let progress = Progress::to_stdout();
    let spec = Spec {
        name: args.name.name,
        frontends: args.frontends,
        backends: args.backends,
        users: args.users,
        bare: args.bare,
        far: args.far,
        late: args.late,
        crowd: args.crowd,
    };
    let lab = Lab::up(spec, &progress)?;
    progress.step(&format!("lab {:?} is up: {}", lab.spec().name, lab.layout().dir().display()));
    lab.keep();
    Ok(())
}

fn status(name: &str) -> anyhow::Result<()> {
    let lab = Lab::attach(name)?;
    let mut out = io::stdout().lock();
    writeln!(out, "{:<8} {:<12} {:<10} daemons", "host", "IPv4", "IPv6")?;
    for status in lab.hosts() {
        let daemons: Vec<String> = status
            .processes
            .iter()
            .map(|process| {
                format!("{} {} {}", process.name, process.pid, if process.alive { "running" } else { "ENDED" })
            })
            .collect();
        let (v4, v6) = (lab.spec().v4(status.host).to_string(), lab.spec().v6(status.host).to_string());
        let daemons = daemons.join(", ");
        writeln!(out, "{:<8} {v4:<12} {v6:<10} {daemons}", status.host.to_string())?;
    }
    Ok(())
}

fn exec(args: &Exec) -> anyhow::Result<()> {
    let lab = Lab::attach(&args.name.name)?;
    let argv: Vec<&str> = args.command.iter().map(String::as_str).collect();
    Err(lab.exec_replace(&args.host, &argv))
}
