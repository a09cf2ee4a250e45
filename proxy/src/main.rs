//! `autocluster`: the one binary of the product.

use std::{
    io::{Write, stderr, stdout},
    process::ExitCode,
};

use anyhow::{Context, Result};
use autocluster::{
    agent,
    cli::{
        self, Cli, Command, ConfigArgs, PkiCommand, Role, SocketArgs, StatusArgs, SteerCommand, TraceArgs, Weight,
        WeightArgs,
    },
    config::{self, Problems},
    control::{self, Request, SteerRequest, WeightRequest},
    dataplane, logging, pki, run,
};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Exit code for a configuration that is wrong: nothing was started.
const BAD_CONFIGURATION: u8 = 2;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match execute(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Where standard error is closed there is nobody to tell.
            let _untold = writeln!(stderr(), "autocluster: {error:#}");
            if error.is::<Problems>() { ExitCode::from(BAD_CONFIGURATION) } else { ExitCode::FAILURE }
        }
    }
}

fn execute(command: Command) -> Result<()> {
    match command {
        Command::Run(args) => run_front_end(&args),
        Command::Agent(args) => run_agent(&args),
        Command::Check(args) => {
            if args.agent {
                agent::config::load(&args.file.config)?;
            } else {
                config::load(&args.file.config)?;
            }
            say(&format!("{}: no faults", args.file.config.display()))
        }
        Command::Status(args) => show(&args, &Request::Status),
        Command::Drain(args) => cli::drain::run(&args, &mut stdout()),
        Command::Undrain(args) => undrain(&args),
        Command::Weight(args) => weight(&args),
        Command::Pki(command) => make_certificates(command),
        Command::Steer(command) => steer(command),
        Command::Deny(command) => cli::abuse::deny(command, &mut stdout()),
        Command::Limit(command) => cli::abuse::limit(&command, &mut stdout()),
        Command::Cookies(command) => cli::abuse::cookies(&command, &mut stdout()),
    }
}

fn steer(command: SteerCommand) -> Result<()> {
    match command {
        SteerCommand::Show(args) => show(&args, &Request::Steer(SteerRequest::Show)),
        SteerCommand::Stats(args) if args.watch => cli::stats::watch(&args.output, &mut stdout()),
        SteerCommand::Stats(args) => show(&args.output, &Request::Steer(SteerRequest::Stats)),
        SteerCommand::Trace(TraceArgs { source, destination, output }) => {
            show(&output, &Request::Steer(SteerRequest::Trace { source, destination }))
        }
        SteerCommand::Detach(args) => detach(&args),
    }
}

fn say(text: &str) -> Result<()> {
    writeln!(stdout(), "{text}").context("failed to write to standard output")
}

#[tokio::main]
async fn run_front_end(args: &ConfigArgs) -> Result<()> {
    let config = config::load(&args.config)?;
    logging::start(&config.log);
    run::run(config, end_at_signal()?).await
}

#[tokio::main]
async fn run_agent(args: &ConfigArgs) -> Result<()> {
    let config = agent::config::load(&args.config)?;
    logging::start(&config.log);
    let shutdown = end_at_signal()?;
    agent::run(config, async move { shutdown.cancelled().await }).await
}

/// Cancelled by SIGTERM or SIGINT.
fn end_at_signal() -> Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate()).context("failed to watch for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("failed to watch for SIGINT")?;
    let token = CancellationToken::new();
    let cancel = token.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        cancel.cancel();
    });
    Ok(token)
}

/// Asks, and prints the answer as it is wanted.
fn show(args: &StatusArgs, request: &Request) -> Result<()> {
    let response = control::ask(&args.daemon.socket, request)?;
    say(&if args.json { response.to_json()? } else { response.to_string() })
}

fn undrain(args: &SocketArgs) -> Result<()> {
    control::ask(&args.socket, &Request::Undrain)?;
    say("new connections are taken again")
}

fn weight(args: &WeightArgs) -> Result<()> {
    let request = match args.weight {
        None => WeightRequest::Show,
        Some(Weight::Number(weight)) => WeightRequest::Set(weight),
        Some(Weight::Default) => WeightRequest::Default,
    };
    say(&control::ask(&args.daemon.socket, &Request::Weight(request))?.to_string())
}

fn make_certificates(command: PkiCommand) -> Result<()> {
    match command {
        PkiCommand::Init { dir, force } => {
            pki::init(&dir, force)?;
            say(&format!(
                "The pool's CA is in {}. Keep ca.key safe and off the front ends; pool.key goes to every front end.",
                dir.display()
            ))
        }
        PkiCommand::Issue { dir, role, name, out, sans, force } => {
            let role = match role {
                Role::Frontend => pki::Role::Frontend,
                Role::Backend => pki::Role::Backend,
            };
            let request = pki::IssueRequest { dir: &dir, role, name: &name, out: out.as_deref(), sans: &sans, force };
            let issued = pki::issue(&request)?;
            say(&format!("{}\n{}", issued.certificate.display(), issued.key.display()))
        }
    }
}

fn detach(args: &ConfigArgs) -> Result<()> {
    let config = config::load(&args.config)?;
    let interfaces: Vec<&str> = config.steering.interfaces.iter().map(String::as_str).collect();
    let detached = dataplane::detach(&run::dataplane_settings(&config), &interfaces)?;
    for interface in &detached {
        say(&format!("{interface}: detached; its packets are no longer steered"))?;
    }
    for interface in interfaces.iter().filter(|name| !detached.iter().any(|detached| detached == *name)) {
        say(&format!("{interface}: nothing was attached"))?;
    }
    Ok(())
}
