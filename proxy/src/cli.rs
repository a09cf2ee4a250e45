//! The command line. It knows the control socket and the configuration, nothing of the drivers.

pub mod abuse;
pub mod drain;
pub mod stats;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

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
    /// Take no new connections on this front end, and finish those it has
    #[command(
        after_help = "It answers for no virtual address any more and gets no new connection; those it has go on until their ends.\nIt stays so until `autocluster undrain` or the daemon's next start. At the deadline the drain has failed: what is\nleft is told and goes on. Without a deadline it waits as long as it takes: mail clients idle for hours.\n\nExamples:\n  autocluster drain --deadline 1h --wait && systemctl stop autocluster\n  autocluster drain\n  autocluster undrain"
    )]
    Drain(DrainArgs),
    /// Take new connections again
    #[command(after_help = "Example:\n  autocluster undrain")]
    Undrain(SocketArgs),
    /// Show or set this front end's share of new connections relative to the others
    #[command(
        after_help = "What is set is kept over restarts, before steering.weight of the configuration, until `weight default`.\n\nExamples:\n  autocluster weight          show it\n  autocluster weight 50       half of what a front end of weight 100 gets\n  autocluster weight default  the configuration's again"
    )]
    Weight(WeightArgs),
    /// Make the pool's certificates
    #[command(subcommand)]
    Pki(PkiCommand),
    /// The XDP program and its tables
    #[command(subcommand)]
    Steer(SteerCommand),
    /// The pool's list of denied sources
    #[command(subcommand)]
    Deny(abuse::DenyCommand),
    /// This front end's limit of new connections from one source
    #[command(subcommand)]
    Limit(abuse::LimitCommand),
    /// This front end's SYN cookies
    #[command(subcommand)]
    Cookies(abuse::CookiesCommand),
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
pub struct SocketArgs {
    /// The daemon's control socket
    #[arg(long, value_name = "PATH", default_value = DEFAULT_CONTROL_SOCKET)]
    pub socket: PathBuf,
}

#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub daemon: SocketArgs,
}

#[derive(Debug, Args)]
pub struct DrainArgs {
    /// Give up after this time: 90s, 30min, 1h; none: never
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub deadline: Option<Duration>,
    /// Show how many connections are left until none is (exit code 0) or the deadline has passed (exit code 1)
    #[arg(long)]
    pub wait: bool,
    #[command(flatten)]
    pub daemon: SocketArgs,
}

#[derive(Debug, Args)]
pub struct WeightArgs {
    /// A number from 1 to 65535, or `default`; none: show it
    #[arg(value_name = "WEIGHT", value_parser = parse_weight)]
    pub weight: Option<Weight>,
    #[command(flatten)]
    pub daemon: SocketArgs,
}

/// What the weight is set to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    Number(u16),
    Default,
}

fn parse_weight(text: &str) -> Result<Weight, String> {
    match text.parse() {
        _ if text == "default" => Ok(Weight::Default),
        Ok(0) => Err("to take no new connections: autocluster drain".to_owned()),
        Ok(number) => Ok(Weight::Number(number)),
        Err(_no_number) => Err("should be a number from 1 to 65535, or `default`".to_owned()),
    }
}

#[derive(Debug, Subcommand)]
pub enum SteerCommand {
    /// Show the table in force: members, weights, shares, connections
    #[command(
        after_help = "HOLDINGS are buckets of others in which a front end may still have connections. WAY is how packets get there:\ndirect on the same segment, encapsulated beyond it.\n\nExamples:\n  autocluster steer show\n  autocluster steer show --json | jq .members"
    )]
    Show(StatusArgs),
    /// Show packets by verdict and reason, for each CPU
    #[command(
        after_help = "Examples:\n  autocluster steer stats\n  autocluster steer stats --watch\n  autocluster steer stats --json | jq '.counters[] | select(.total > 0)'"
    )]
    Stats(StatsArgs),
    /// Show what becomes of a connection, and why: the kernel is asked
    #[command(
        after_help = "The program is run on a SYN and on an ACK made for the connection; nothing is sent. The two packets are counted.\n\nExamples:\n  autocluster steer trace 192.0.2.1:40000 10.77.0.100:25\n  autocluster steer trace '[2001:db8::1]:40000' '[fd77::100]:993' --json"
    )]
    Trace(TraceArgs),
    /// Detach the XDP program from its interfaces and remove its pinned maps
    #[command(
        after_help = "The program goes on steering when the daemon ends, so that a restart loses no packet. This takes it off for good.\n\nExample:\n  autocluster steer detach --config /etc/autocluster/autocluster.toml"
    )]
    Detach(ConfigArgs),
}

#[derive(Debug, Args)]
pub struct StatsArgs {
    /// Show them every second, with rates, until it is interrupted
    #[arg(long)]
    pub watch: bool,
    #[command(flatten)]
    pub output: StatusArgs,
}

#[derive(Debug, Args)]
pub struct TraceArgs {
    /// Address and port of the client
    #[arg(value_name = "SRC:PORT")]
    pub source: SocketAddr,
    /// Virtual address and port
    #[arg(value_name = "DST:PORT")]
    pub destination: SocketAddr,
    #[command(flatten)]
    pub output: StatusArgs,
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
    use clap::{CommandFactory, Parser as _};

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_drain_takes_a_time() {
        let drain = |words: &[&str]| match Cli::try_parse_from([&["autocluster", "drain"], words].concat()) {
            Ok(Cli { command: Command::Drain(args) }) => Some(args.deadline),
            _ => None,
        };
        assert_eq!(drain(&["--deadline", "1h"]), Some(Some(Duration::from_secs(3600))));
        assert_eq!(drain(&["--wait"]), Some(None));
        assert_eq!(drain(&["--deadline", "soon"]), None);
    }

    #[test]
    fn a_weight_is_a_number_or_the_default() {
        assert_eq!(parse_weight("50"), Ok(Weight::Number(50)));
        assert_eq!(parse_weight("default"), Ok(Weight::Default));
        assert!(parse_weight("0").unwrap_err().contains("drain"));
        for bad in ["", "-1", "65536", "half"] {
            parse_weight(bad).unwrap_err();
        }
    }
}
