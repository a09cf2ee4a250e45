//! The command line. It knows the control socket and the configuration, nothing of the drivers.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::config::DEFAULT_CONTROL_SOCKET;

/// A pool of mail front ends that configures itself.
#[derive(Debug, Parser)]
#[command(name = "autocluster", version, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

/// What can be done.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a front end: steer, relay mail, proxy mail clients
    #[command(
        after_help = "Examples:\n  autocluster run --config /etc/autocluster/autocluster.toml\n  RUST_LOG=debug autocluster run --config fe1.toml"
    )]
    Run(ConfigArgs),
    /// Run the agent on a back end: tell the front ends who its users are
    #[command(after_help = "Example:\n  autocluster agent --config /etc/autocluster/agent.toml")]
    Agent(ConfigArgs),
    /// Check a configuration and report every fault with key and line; nothing is started
    #[command(
        after_help = "Examples:\n  autocluster check --config autocluster.toml\n  autocluster check --agent --config agent.toml"
    )]
    Check(CheckArgs),
    /// Show this front end, its pool, and what it serves
    #[command(
        after_help = "Examples:\n  autocluster status\n  autocluster status --json | jq .members\n  autocluster status --socket /run/autocluster/control.sock"
    )]
    Status(StatusArgs),
    /// Make the pool's certificates
    #[command(subcommand)]
    Pki(PkiCommand),
    /// The XDP program
    #[command(subcommand)]
    Steer(SteerCommand),
}

#[derive(Debug, Args)]
pub struct ConfigArgs {
    /// The configuration (docs/configuration.md)
    #[arg(long, value_name = "FILE", default_value = "/etc/autocluster/autocluster.toml")]
    pub config: PathBuf,
}

#[derive(Debug, Args)]
pub struct CheckArgs {
    #[command(flatten)]
    pub file: ConfigArgs,
    /// It is an agent's configuration
    #[arg(long)]
    pub agent: bool,
}

#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// The daemon's control socket
    #[arg(long, value_name = "PATH", default_value = DEFAULT_CONTROL_SOCKET)]
    pub socket: PathBuf,
}

#[derive(Debug, Subcommand)]
pub enum SteerCommand {
    /// Detach the XDP program from its interface and remove its pinned maps
    #[command(
        after_help = "The program goes on steering when the daemon ends, so that a restart loses no packet. This takes it off for good.\n\nExample:\n  autocluster steer detach --config /etc/autocluster/autocluster.toml"
    )]
    Detach(ConfigArgs),
}

#[derive(Debug, Subcommand)]
pub enum PkiCommand {
    /// Make a pool's CA and its steering key
    #[command(after_help = "Example:\n  autocluster pki init --dir /etc/autocluster/pki")]
    Init {
        /// Where ca.pem, ca.key and pool.key go
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// Replace what is there: every certificate of the old CA becomes worthless
        #[arg(long)]
        force: bool,
    },
    /// Issue a node's certificate
    #[command(
        after_help = "Examples:\n  autocluster pki issue --dir pki --role frontend --name fe1\n  autocluster pki issue --dir pki --role backend --name be1 --out /etc/autocluster --san mail.example.com --san 192.0.2.7"
    )]
    Issue {
        /// The directory of `pki init`
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        #[arg(long, value_enum)]
        role: Role,
        /// The node's name: one lower-case label
        #[arg(long)]
        name: String,
        /// Where NAME.pem and NAME.key go, if not to DIR
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
        /// A further DNS name or IP address for the certificate
        #[arg(long = "san", value_name = "NAME_OR_ADDRESS")]
        sans: Vec<String>,
        /// Replace what is there
        #[arg(long)]
        force: bool,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Role {
    Frontend,
    Backend,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
