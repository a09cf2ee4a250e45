//! Memory stays bounded, whatever is sent and however slowly the shell drains.

use std::sync::Arc;

use crate::smtp::{Action, Limits, RecipientAnswer, ServerConfig, Session};

const HUNDRED_MB: usize = 100 * 1024 * 1024;
/// More than the session may ever hold for the shell: a full queue, one step of content and a reply.
const MOST_WAITING: usize = 3 * 64 * 1024;

fn session(limits: Limits) -> Session {
    let mut session =
        Session::new(Arc::new(ServerConfig { hostname: "mx.pool.test".to_owned(), starttls: false, limits }));
    while session.poll_action().is_some() {}
    session
}

fn say(session: &mut Session, line: &str) -> String {
    let mut replies = Vec::new();
    session.handle_input(line.as_bytes());
    while let Some(action) = session.poll_action() {
        match action {
            Action::Send(bytes) => replies.extend(bytes),
            Action::Resolve(_) => session.handle_recipient(RecipientAnswer::Accept),
            Action::Close => replies.extend(b"[close]"),
            Action::StartTls
            | Action::BeginMessage(_)
            | Action::Body(_)
            | Action::EndMessage
            | Action::AbortMessage => {}
        }
    }
    String::from_utf8(replies).unwrap()
}

fn begin_message(session: &mut Session) {
    say(session, "EHLO a\r\n");
    say(session, "MAIL FROM:<>\r\n");
    say(session, "RCPT TO:<a@b.test>\r\n");
    assert!(say(session, "DATA\r\n").starts_with("354"));
}

fn bytes_of(action: &Action) -> usize {
    match action {
        Action::Send(bytes) | Action::Body(bytes) => bytes.len(),
        Action::StartTls
        | Action::Resolve(_)
        | Action::BeginMessage(_)
        | Action::EndMessage
        | Action::AbortMessage
        | Action::Close => 0,
    }
}

#[test]
fn a_hundred_megabytes_of_one_command_line() {
    let mut session = session(Limits::default());
    let piece = [b'x'; 97];
    let mut replies = String::new();
    for _ in 0..HUNDRED_MB / piece.len() {
        replies.push_str(&say(&mut session, std::str::from_utf8(&piece).unwrap()));
        assert!(session.waiting_input() <= Limits::default().command_line * 2);
    }
    assert_eq!(replies, "500 5.5.2 Line too long\r\n[close]");
}

#[test]
fn a_hundred_megabytes_of_one_content_line() {
    let limits = Limits { message_bytes: u64::MAX, ..Limits::default() };
    let mut session = session(limits);
    begin_message(&mut session);
    let piece = vec![b'x'; 1024 * 1024];
    let mut total = 0;
    for _ in 0..HUNDRED_MB / piece.len() {
        let mut rest = piece.as_slice();
        while !rest.is_empty() {
            let used = session.handle_input(rest);
            rest = &rest[used..];
            let mut waiting = 0;
            while let Some(action) = session.poll_action() {
                waiting += bytes_of(&action);
            }
            assert!(waiting <= MOST_WAITING, "{waiting}");
            total += waiting;
        }
    }
    assert_eq!(total, HUNDRED_MB);
}

/// Nobody drains: the session stops taking input, of commands as of content.
#[test]
fn an_idle_shell_stops_the_client() {
    let limits = Limits { message_bytes: u64::MAX, idle_commands: u32::MAX, ..Limits::default() };
    for content in [false, true] {
        let mut session = session(limits);
        if content {
            begin_message(&mut session);
        }
        let input = b"NOOP\r\n".repeat(1000);
        let mut taken = 0;
        for _ in 0..1000 {
            taken += session.handle_input(&input);
        }
        assert!(taken < 1_000_000, "{taken}");
        let mut waiting = 0;
        while let Some(action) = session.poll_action() {
            waiting += bytes_of(&action);
        }
        assert!(waiting <= MOST_WAITING, "{waiting}");
        assert!(session.handle_input(&input) > 0, "drained, it goes on");
    }
}

#[test]
fn a_message_without_end_is_cut_off() {
    let mut session = session(Limits { message_bytes: 10_000, ..Limits::default() });
    begin_message(&mut session);
    let mut replies = String::new();
    for sent in 0..1000 {
        replies.push_str(&say(&mut session, "0123456789012345678901234567890123456789\r\n"));
        assert!(replies.is_empty() == (sent < 476), "at line {sent}: {replies}");
    }
    assert_eq!(replies, "552 5.3.4 Message is far larger than the limit\r\n[close]");
}
