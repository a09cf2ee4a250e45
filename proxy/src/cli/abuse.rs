//! `autocluster deny`, `limit` and `cookies`: words to requests, answers to text.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write, stdin},
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::{Args, Subcommand};
use proxy_core::abuse::{Prefix, Reason};

use super::{SocketArgs, StatusArgs};
use crate::{
    control::{self, CookiesRequest, DenyRequest, LimitRequest, MAX_PREFIXES, Request, Response},
    status::abuse::{CookiesMode, DenyEntry, DenyResponse},
};

const UNTOLD: &str = "failed to write to standard output";

#[derive(Debug, Subcommand)]
pub enum DenyCommand {
    /// Deny prefixes on all front ends
    #[command(
        after_help = "Only connections to the virtual addresses are denied, running ones too; the machines' own services are not touched.\nWho is denied already gets the new time and reason.\n\nExamples:\n  autocluster deny add 192.0.2.0/24 --for 1h --reason 'dictionary attack'\n  autocluster deny add 192.0.2.7 2001:db8::/48\n  autocluster deny add --from drop.txt --for 7d --reason DROP"
    )]
    Add(AddArgs),
    /// Deny prefixes no longer
    #[command(after_help = "Examples:\n  autocluster deny rm 192.0.2.0/24\n  autocluster deny rm --from drop.txt")]
    Rm(RmArgs),
    /// List what is denied
    #[command(
        after_help = "Examples:\n  autocluster deny ls\n  autocluster deny ls --json | jq -r '.[] | select(.set_by == \"fe1\") | .prefix'"
    )]
    Ls(StatusArgs),
    /// Show whether an address is denied, and by which prefix
    #[command(after_help = "Examples:\n  autocluster deny test 192.0.2.7\n  autocluster deny test 2001:db8::1 --json")]
    Test(TestArgs),
}

#[derive(Debug, Args)]
pub struct Prefixes {
    /// Address or prefix: 192.0.2.7, 192.0.2.0/24, 2001:db8::/32
    #[arg(value_name = "PREFIX", required_unless_present = "from")]
    prefixes: Vec<Prefix>,
    /// A file with a prefix in each line, `-` for standard input; what follows # or ; is a comment
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct AddArgs {
    #[command(flatten)]
    prefixes: Prefixes,
    /// For so long: 90s, 30min, 1h, 7d; else until they are removed
    #[arg(long = "for", value_name = "TIME", value_parser = humantime::parse_duration)]
    time: Option<Duration>,
    /// Why: one line, shown by `deny ls`
    #[arg(long, value_name = "TEXT", default_value = "", value_parser = parse_reason)]
    reason: String,
    #[command(flatten)]
    output: StatusArgs,
}

#[derive(Debug, Args)]
pub struct RmArgs {
    #[command(flatten)]
    prefixes: Prefixes,
    #[command(flatten)]
    output: StatusArgs,
}

#[derive(Debug, Args)]
pub struct TestArgs {
    #[arg(value_name = "ADDRESS")]
    address: IpAddr,
    #[command(flatten)]
    output: StatusArgs,
}

#[derive(Debug, Subcommand)]
pub enum LimitCommand {
    /// Show the limit in force on this front end
    #[command(after_help = "Examples:\n  autocluster limit show\n  autocluster limit show --json")]
    Show(StatusArgs),
    /// Change the limit of this front end until its daemon restarts
    #[command(
        after_help = "For good: abuse.new_connections_per_second in the configuration. How long a source prefix is stands there too.\n\nExamples:\n  autocluster limit set 200\n  autocluster limit set off\n  autocluster limit set default"
    )]
    Set {
        /// New connections per second from one source prefix, `off`, or `default`: the configuration's
        #[arg(value_name = "N|off|default", value_parser = parse_rate)]
        rate: Rate,
        #[command(flatten)]
        output: StatusArgs,
    },
}

/// What the limit is set to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rate {
    Number(u32),
    Off,
    Default,
}

#[derive(Debug, Subcommand)]
pub enum CookiesCommand {
    /// Send SYN cookies while there is a flood (abuse.syn_cookies_above)
    #[command(after_help = "Example:\n  autocluster cookies auto")]
    Auto(StatusArgs),
    /// Answer every new connection by a SYN cookie, until the daemon restarts
    #[command(after_help = "Example:\n  autocluster cookies on")]
    On(StatusArgs),
    /// Send no SYN cookies at the NIC, until the daemon restarts; the kernel may still send its own
    #[command(after_help = "Example:\n  autocluster cookies off")]
    Off(StatusArgs),
    /// Show whether they are sent, and the rate of SYNs
    #[command(after_help = "Examples:\n  autocluster cookies show\n  autocluster cookies show --json")]
    Show(StatusArgs),
}

fn parse_reason(text: &str) -> Result<String, String> {
    Reason::parse(text).map(String::from).map_err(|error| error.to_string())
}

fn parse_rate(text: &str) -> Result<Rate, String> {
    match text.parse() {
        _ if text == "off" => Ok(Rate::Off),
        _ if text == "default" => Ok(Rate::Default),
        Ok(0) => Err("would let nobody in; for no limit: off".to_owned()),
        Ok(rate) => Ok(Rate::Number(rate)),
        Err(_no_number) => Err("should be a number of connections per second, `off` or `default`".to_owned()),
    }
}

/// Changes or shows the pool's deny list.
///
/// # Errors
/// No daemon answers, or it refuses.
pub fn deny(command: DenyCommand, out: &mut impl Write) -> Result<()> {
    match command {
        DenyCommand::Add(AddArgs { prefixes, time, reason, output }) => {
            // A part of a second is a whole one.
            let for_seconds = time.map(|time| time.as_secs() + u64::from(time.subsec_nanos() > 0));
            ensure!(
                for_seconds != Some(0),
                "--for: should be longer than nothing; to allow again: autocluster deny rm"
            );
            change(&prefixes, &output, out, |prefixes| DenyRequest::Add {
                prefixes,
                for_seconds,
                reason: reason.clone(),
            })
        }
        DenyCommand::Rm(RmArgs { prefixes, output }) => {
            change(&prefixes, &output, out, |prefixes| DenyRequest::Remove { prefixes })
        }
        DenyCommand::Ls(output) => list(&output, out),
        DenyCommand::Test(TestArgs { address, output }) => {
            let request = DenyRequest::Test { address: address.to_string() };
            show(&output, out, &Response::Deny(ask(&output.daemon, request)?))
        }
    }
}

/// A long list goes in several requests.
fn change(
    prefixes: &Prefixes,
    output: &StatusArgs,
    out: &mut impl Write,
    request: impl Fn(Vec<String>) -> DenyRequest,
) -> Result<()> {
    let mut changed = 0;
    for chunk in read(prefixes)?.chunks(MAX_PREFIXES) {
        let chunk = chunk.iter().map(ToString::to_string).collect();
        let answer = ask(&output.daemon, request(chunk));
        let answer = if changed > 0 { answer.with_context(|| format!("after {changed} prefixes")) } else { answer };
        let DenyResponse::Changed(count) = answer? else { bail!(OTHER) };
        changed += count;
    }
    show(output, out, &Response::Deny(DenyResponse::Changed(changed)))
}

/// All are read before the first is sent.
fn read(prefixes: &Prefixes) -> Result<Vec<Prefix>> {
    let mut all = prefixes.prefixes.clone();
    if let Some(file) = &prefixes.from {
        all.extend(parse_file(file, &read_file(file)?)?);
    }
    Ok(all)
}

fn read_file(file: &Path) -> Result<String> {
    let mut text = String::new();
    let read = if file == Path::new("-") {
        stdin().read_to_string(&mut text).map(|_octets| text)
    } else {
        fs::read_to_string(file)
    };
    read.with_context(|| format!("failed to read {}", file.display()))
}

fn parse_file(file: &Path, text: &str) -> Result<Vec<Prefix>> {
    let lines =
        (1..).zip(text.lines()).map(|(number, line)| (number, line.split(['#', ';']).next().unwrap_or("").trim()));
    let prefixes = lines.filter(|(_, line)| !line.is_empty()).map(|(number, line): (u32, &str)| {
        line.parse().map_err(|error| anyhow!("{}:{number}: {line}: {error}", file.display()))
    });
    prefixes.collect()
}

const OTHER: &str = "the daemon answered something else: is it of another version?";

fn ask(daemon: &SocketArgs, request: DenyRequest) -> Result<DenyResponse> {
    let Response::Deny(answer) = control::ask(&daemon.socket, &Request::Deny(request))? else { bail!(OTHER) };
    Ok(answer)
}

fn show(output: &StatusArgs, out: &mut impl Write, response: &Response) -> Result<()> {
    let text = if output.json { response.to_json()? } else { response.to_string() };
    writeln!(out, "{text}").context(UNTOLD)
}

fn list(output: &StatusArgs, out: &mut impl Write) -> Result<()> {
    let entries = entries(|after| ask(&output.daemon, DenyRequest::List { after }))?;
    if output.json {
        let text = serde_json::to_string_pretty(&entries).context("failed to print the list")?;
        return writeln!(out, "{text}").context(UNTOLD);
    }
    write_table(&entries, out).context(UNTOLD)
}

/// Page by page, then in the order of the addresses.
fn entries(mut page: impl FnMut(Option<String>) -> Result<DenyResponse>) -> Result<Vec<DenyEntry>> {
    let mut sorted = BTreeMap::<Prefix, DenyEntry>::new();
    let mut after = None;
    loop {
        let DenyResponse::Entries(entries) = page(after)? else { bail!(OTHER) };
        let Some(last) = entries.last() else { return Ok(sorted.into_values().collect()) };
        after = Some(last.prefix.clone());
        for entry in entries {
            sorted.insert(entry.prefix.parse().context(OTHER)?, entry);
        }
    }
}

fn write_table(entries: &[DenyEntry], out: &mut impl Write) -> std::io::Result<()> {
    let width = entries.iter().map(|entry| entry.prefix.len()).max().unwrap_or(0).max("PREFIX".len());
    let by_width = entries.iter().map(|entry| entry.set_by.len()).max().unwrap_or(0).max("SET BY".len());
    writeln!(out, "{:width$}  {:14}  {:by_width$}  REASON", "PREFIX", "UNTIL", "SET BY")?;
    for entry in entries {
        let line = format!("{:width$}  {:14}  {:by_width$}  {}", entry.prefix, entry.end(), entry.set_by, entry.reason);
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

/// Shows or changes this front end's limit of new connections.
///
/// # Errors
/// No daemon answers, or it refuses.
pub fn limit(command: &LimitCommand, out: &mut impl Write) -> Result<()> {
    let (request, output) = match command {
        LimitCommand::Show(output) => (LimitRequest::Show, output),
        LimitCommand::Set { rate: Rate::Number(rate), output } => (LimitRequest::Set(*rate), output),
        LimitCommand::Set { rate: Rate::Off, output } => (LimitRequest::Set(0), output),
        LimitCommand::Set { rate: Rate::Default, output } => (LimitRequest::Default, output),
    };
    show(output, out, &control::ask(&output.daemon.socket, &Request::Limit(request))?)
}

/// Shows or changes whether this front end sends SYN cookies.
///
/// # Errors
/// No daemon answers.
pub fn cookies(command: &CookiesCommand, out: &mut impl Write) -> Result<()> {
    let (request, output) = match command {
        CookiesCommand::Show(output) => (CookiesRequest::Show, output),
        CookiesCommand::Auto(output) => (CookiesRequest::Set(CookiesMode::Auto), output),
        CookiesCommand::On(output) => (CookiesRequest::Set(CookiesMode::On), output),
        CookiesCommand::Off(output) => (CookiesRequest::Set(CookiesMode::Off), output),
    };
    show(output, out, &control::ask(&output.daemon.socket, &Request::Cookies(request))?)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::{Cli, Command};
    use super::*;

    fn parse(words: &str) -> Result<Command, String> {
        Cli::try_parse_from(words.split_whitespace()).map(|cli| cli.command).map_err(|error| error.to_string())
    }

    #[test]
    fn words_are_read() {
        let Ok(Command::Deny(DenyCommand::Add(args))) =
            parse("autocluster deny add 192.0.2.0/24 2001:db8::1 --for 1h --reason spam")
        else {
            panic!("deny add")
        };
        assert_eq!(args.prefixes.prefixes.len(), 2);
        assert_eq!((args.time, &*args.reason), (Some(Duration::from_secs(3_600)), "spam"));
        for (words, part) in [
            ("autocluster deny add", "PREFIX"),
            ("autocluster deny add 192.0.2.7/24", "did you mean 192.0.2.0/24?"),
            ("autocluster deny add 192.0.2.7 --for soon", "--for"),
            ("autocluster deny add 0.0.0.0/0", "denies too much"),
            ("autocluster limit set 0", "off"),
            ("autocluster limit set many", "`off`"),
        ] {
            let error = parse(words).unwrap_err();
            assert!(error.contains(part), "{words}: {error}");
        }
        let set = |rate| parse(&format!("autocluster limit set {rate}")).map(|command| format!("{command:?}"));
        for (rate, read) in [("off", "Off"), ("default", "Default"), ("200", "Number(200)")] {
            assert!(set(rate).unwrap().contains(read), "{rate}");
        }
        assert!(matches!(parse("autocluster cookies on"), Ok(Command::Cookies(CookiesCommand::On(_)))));
    }

    #[test]
    fn a_file_has_a_prefix_in_each_line() {
        let text = "; a list\n192.0.2.0/24 ; SBL1\n\n  2001:db8::/32\t# two\n";
        let file = Path::new("drop.txt");
        let prefixes: Vec<String> = parse_file(file, text).unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(prefixes, ["192.0.2.0/24", "2001:db8::/32"]);
        let error = parse_file(file, "192.0.2.0/24\n192.0.2.1/24\n").unwrap_err().to_string();
        assert!(error.starts_with("drop.txt:2: 192.0.2.1/24: has bits after its prefix"), "{error}");
    }

    fn entry(prefix: &str) -> DenyEntry {
        DenyEntry {
            prefix: prefix.into(),
            until_ms: None,
            seconds_left: None,
            reason: "because".into(),
            set_by: "fe1".into(),
            changed_ms: 1,
        }
    }

    #[test]
    fn a_list_comes_in_pages_and_is_shown_in_order() {
        let mut pages = vec![vec![], vec![entry("2001:db8::/32")], vec![entry("192.0.2.10"), entry("192.0.2.9")]];
        let mut asked = vec![];
        let all = entries(|after| {
            asked.push(after);
            Ok(DenyResponse::Entries(pages.pop().unwrap()))
        });
        let all = all.unwrap();
        assert_eq!(asked, [None, Some("192.0.2.9".into()), Some("2001:db8::/32".into())]);
        let mut text = vec![];
        write_table(&all, &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        let first: Vec<&str> = text.lines().map(|line| line.split_whitespace().next().unwrap()).collect();
        assert_eq!(first, ["PREFIX", "192.0.2.9", "192.0.2.10", "2001:db8::/32"]);
        assert!(text.ends_with("until removed   fe1     because\n"), "{text}");
    }
}
