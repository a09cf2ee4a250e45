//! The project's own commands. Nothing of the project is imported here: this must build and run on a machine that
//! cannot build the rest yet.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line tool talks to its user")]

mod run;
mod setup;
mod test;
mod tidy;

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Set up, try and test AutoCluster on this machine")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what building and testing need and this machine lacks
    Setup {
        /// Only say what is missing; fails if anything is
        #[arg(long)]
        check: bool,
    },
    /// A pool with real mail servers in network namespaces: up, down, status, exec (see `lab --help`)
    #[command(disable_help_flag = true)]
    Lab(Passed),
    /// Show the pool at work, step by step
    #[command(disable_help_flag = true)]
    Demo(Passed),
    /// Measure, beside a peer or the floor: `membership` compares the engines, `steer` weighs the XDP program
    /// (`bench steer -- --help`)
    Bench {
        what: Bench,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Run every test; with FILTER those whose name contains it
    Test { filter: Option<String> },
    /// Check formatting and lints
    Tidy,
}

/// What can be measured.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Bench {
    Membership,
    Steer,
}

/// Arguments that another program reads.
#[derive(Args)]
struct Passed {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

fn main() -> ExitCode {
    match dispatch(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Setup { check } => setup::command(check),
        Command::Lab(passed) => run::lab(&passed.arguments),
        Command::Demo(passed) => run::demo(&passed.arguments),
        Command::Bench { what: Bench::Membership, arguments } => run::bench_membership(&arguments),
        Command::Bench { what: Bench::Steer, arguments } => run::bench_steer(&arguments),
        Command::Test { filter } => test::command(filter.as_deref()),
        Command::Tidy => {
            setup::ensure()?.require_daemon()?;
            tidy::check()?;
            Ok(ExitCode::SUCCESS)
        }
    }
}
