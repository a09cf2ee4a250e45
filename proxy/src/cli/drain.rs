//! `autocluster drain`: gives the order, and waits for its end if that is wanted.

use std::{
    io::{IsTerminal, Write, stdout},
    thread::sleep,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use super::DrainArgs;
use crate::{
    control::{self, Request, Response},
    status::drain::{DrainState, DrainStatus},
};

/// The daemon counts once a second.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// Begins a drain; with `--wait` returns when it is over.
///
/// # Errors
/// No daemon answers, or connections are left at the deadline: how many.
pub fn run(args: &DrainArgs, out: &mut impl Write) -> Result<()> {
    // A part of a second is a whole one: 0 would mean that the drain has failed before it began.
    let limit_s = args.deadline.map(|limit| limit.as_secs() + u64::from(limit.subsec_nanos() > 0));
    let status = ask(args, &Request::Drain { limit_s })?;
    if args.wait {
        let live = stdout().is_terminal();
        return wait(out, live, status, || {
            sleep(ASK_EVERY);
            ask(args, &Request::DrainStatus)
        });
    }
    writeln!(out, "{status}\nautocluster drain --wait shows how it goes on, autocluster undrain takes it back")
        .context(UNTOLD)
}

const UNTOLD: &str = "failed to write to standard output";

fn ask(args: &DrainArgs, request: &Request) -> Result<DrainStatus> {
    let Response::Drain(status) = control::ask(&args.daemon.socket, request)? else {
        bail!("the daemon answered something else: is it of another version?");
    };
    Ok(status)
}

/// Shows the drain until it is over. `live`: each line in the place of the last one.
fn wait(
    out: &mut impl Write,
    live: bool,
    mut status: DrainStatus,
    mut next: impl FnMut() -> Result<DrainStatus>,
) -> Result<()> {
    let mut shown = None;
    loop {
        // The time that is left is no news where lines stay.
        let news = Some((status.state, status.connections));
        if live {
            write!(out, "\r\x1b[K{status}").and_then(|()| out.flush()).context(UNTOLD)?;
        } else if news != shown {
            writeln!(out, "{status}").context(UNTOLD)?;
        }
        shown = news;
        match status.state {
            DrainState::Draining => status = next()?,
            DrainState::Drained => {
                return if live { writeln!(out).context(UNTOLD) } else { Ok(()) };
            }
            DrainState::Expired => {
                if live {
                    writeln!(out).context(UNTOLD)?;
                }
                bail!("{} left at the deadline", status.connections.unwrap_or_default());
            }
            DrainState::None => bail!("the drain was taken back"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(state: DrainState, connections: usize) -> DrainStatus {
        DrainStatus { state, connections: Some(connections), deadline_unix_ms: None }
    }

    fn waited(live: bool, states: &[(DrainState, usize)]) -> (String, Result<()>) {
        let mut rest = states.iter().map(|(state, left)| status(*state, *left));
        let (mut out, first) = (vec![], rest.next().unwrap());
        let result = wait(&mut out, live, first, || Ok(rest.next().unwrap()));
        (String::from_utf8(out).unwrap(), result)
    }

    #[test]
    fn progress_is_shown_until_nothing_is_left() {
        let states =
            [(DrainState::Draining, 2), (DrainState::Draining, 2), (DrainState::Draining, 1), (DrainState::Drained, 0)];
        let (text, result) = waited(false, &states);
        result.unwrap();
        assert_eq!(text.lines().count(), 3, "one line for each change: {text}");
        assert!(text.starts_with("draining, 2 connections left") && text.contains("drained"), "{text}");
        assert_eq!(waited(true, &states).0.matches('\r').count(), 4);
    }

    #[test]
    fn the_deadline_is_a_failure_that_tells_the_number() {
        let (_, result) = waited(false, &[(DrainState::Draining, 9), (DrainState::Expired, 7)]);
        assert!(result.unwrap_err().to_string().starts_with("7 left"));
        let (_, result) = waited(false, &[(DrainState::Draining, 9), (DrainState::None, 0)]);
        assert!(result.unwrap_err().to_string().contains("taken back"));
    }
}
