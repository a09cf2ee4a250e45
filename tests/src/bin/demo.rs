//! `cargo xtask demo`: makes a lab and shows the pool at work, one line per step.

use std::fs;
use std::io::{self, Write as _};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use autocluster_tests::client::{Mailbox, Message, Reader, Sending, Tls};
use autocluster_tests::lab::{Account, Lab, Progress, Spec, VIP, VIP6};
use autocluster_tests::scenario::{
    arrival, death_of, every_front_end_answers, own_new_connections, spread_connections,
};
use clap::Parser;

const SESSIONS: u32 = 60;
const CONNECTIONS: u32 = 3_000;
const ATTACHMENT: usize = 2_000_000;
const NEW_USER_LIMIT: Duration = Duration::from_secs(1);
const RECOVERY_LIMIT: Duration = Duration::from_secs(2);

#[derive(Parser)]
#[command(name = "cargo xtask demo", about = "Show the pool at work in a lab of this machine")]
struct Cli {
    /// Leave the lab up at the end
    #[arg(long)]
    keep: bool,
    /// Name of the lab
    #[arg(long, default_value = "demo")]
    name: String,
}

fn main() -> ExitCode {
    match demo(&Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            drop(writeln!(io::stderr(), "demo: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn demo(cli: &Cli) -> anyhow::Result<bool> {
    let spec = Spec { name: cli.name.clone(), ..Spec::default() };
    say(&format!("A pool of {} front ends at {VIP} and {VIP6}, {} mail servers", spec.frontends, spec.backends));
    let lab = Lab::up(spec, &Progress::to_stdout())?;
    let mut show = Show { lab: &lab, steps: 0, failed: 0, mails: Vec::new() };
    show.deliveries();
    show.refusals();
    show.new_user();
    show.read_back();
    show.spread();
    show.death();
    show.table();
    let (steps, failed) = (show.steps, show.failed);
    say(&format!("demo: {steps} steps, {failed} failed"));
    if cli.keep {
        invite(&lab);
        lab.keep();
    }
    Ok(failed == 0)
}

fn say(line: &str) {
    // A closed pipe ends nobody's demo.
    drop(writeln!(io::stdout(), "{line}"));
}

fn invite(lab: &Lab) {
    let name = &lab.spec().name;
    say(&format!("\nThe lab stays up. Try:\n  cargo xtask lab status --name {name}"));
    say(&format!("  cargo xtask lab exec --name {name} client -- swaks --server {VIP} --to user1@be1.test --tls"));
    say(&format!("  cargo xtask lab exec --name {name} client -- openssl s_client -quiet -connect {VIP}:993"));
    say(&format!("  (user1@be1.test has the password {})", Account::local(1, 1).password));
    say(&format!("  cargo xtask lab down --name {name}"));
}

struct Show<'a> {
    lab: &'a Lab,
    steps: u32,
    failed: u32,
    /// What was delivered and is to be read back.
    mails: Vec<(Account, Message)>,
}

impl Show<'_> {
    /// One step: what is done, and what came of it.
    fn step<T>(&mut self, what: &str, action: impl FnOnce(&Lab) -> anyhow::Result<(String, T)>) -> Option<T> {
        self.steps += 1;
        let start = Instant::now();
        let outcome = action(self.lab);
        let took = start.elapsed().as_secs_f64() * 1000.0;
        let (mark, detail, value) = match outcome {
            Ok((detail, value)) => ("ok    ", detail, Some(value)),
            Err(error) => {
                self.failed += 1;
                ("FAILED", format!("{error:#}"), None)
            }
        };
        say(&format!("{:>2}  {mark} {took:>7.0} ms  {what}: {detail}", self.steps));
        value
    }

    fn deliveries(&mut self) {
        for backend in 1..=self.lab.spec().backends {
            let address = Account::local(backend, 1).address;
            let message = Message::plain("Hello", "A first message.\r\n");
            self.deliver(&format!("mail to {address}"), Account::local(backend, 1), message, false);
        }
        let message = Message::with_attachment("Data", ATTACHMENT);
        self.deliver("mail with an attachment of 2 MB to user2@be2.test", Account::local(2, 2), message, false);
        let message = Message::plain("Grüße an 世界", "Grüße, Ελλάδα, 世界\r\n");
        self.deliver("SMTPUTF8 mail with a UTF-8 header to user3@be1.test", Account::local(1, 3), message, true);
        self.step("one message to users of both mail servers", both_servers);
        let what = format!("SMTPUTF8 mail to {}, read by IMAP", Account::utf8(1).address);
        self.step(&what, utf8_mailbox);
    }

    fn deliver(&mut self, what: &str, account: Account, message: Message, smtputf8: bool) {
        let mut sending = Sending::to(VIP, &account.address);
        sending.smtputf8 = smtputf8;
        let delivered = self.step(what, |lab| {
            let reply = sending.send(lab, &message)?;
            reply.accepted()?;
            ensure!(is_on(lab, &account, &message)?, "not in the mailbox on be{}", account.backend);
            Ok((format!("{} took it, be{} has it ({})", reply.front_end(), account.backend, reply.text), ()))
        });
        if delivered.is_some() {
            self.mails.push((account, message));
        }
    }

    fn refusals(&mut self) {
        let message = Message::plain("Hello", "Is anybody there?\r\n");
        self.refuse("mail to nobody@be1.test", "nobody@be1.test", &message, "550 5.1.1");
        self.refuse("mail to a foreign domain", "user1@elsewhere.test", &message, "550 5.7.1");
        let virus = Message::plain("Virus", &format!("{}\r\n", Lab::eicar()));
        self.refuse("the EICAR test virus to user1@be1.test", "user1@be1.test", &virus, "554 5.7.1");
    }

    fn refuse(&mut self, what: &str, address: &str, message: &Message, expected: &str) {
        let sending = Sending::to(VIP, address);
        self.step(what, |lab| {
            let reply = sending.send(lab, message)?;
            let said = format!("{} {}", reply.code, reply.text);
            ensure!(said.starts_with(expected), "expected {expected}, got {said}");
            Ok((format!("{} refused it: {said}", reply.front_end()), ()))
        });
    }

    fn new_user(&mut self) {
        self.step("a user added on be2, all front ends asked", |lab| {
            every_front_end_answers(lab, "newcomer@be2.test", "550").context("before")?;
            lab.add_user(2, "newcomer@be2.test", "secret-newcomer")?;
            let took = every_front_end_answers(lab, "newcomer@be2.test", "250")?;
            ensure!(took < NEW_USER_LIMIT, "known only after {took:?}");
            Ok((format!("known to all {} after {} ms", lab.spec().frontends, took.as_millis()), ()))
        });
        let account =
            Account { address: "newcomer@be2.test".to_owned(), password: "secret-newcomer".to_owned(), backend: 2 };
        self.deliver("mail to the new user", account, Message::plain("Welcome", "Good to have you.\r\n"), false);
    }

    fn read_back(&mut self) {
        for (account, message) in self.mails.clone() {
            for (name, protocol, tls) in [
                ("IMAP, port 993", Mailbox::Imap, Tls::Implicit),
                ("POP3 with STLS, port 110", Mailbox::Pop3, Tls::Upgrade),
            ] {
                self.step(&format!("{} reads it by {name}", account.address), |lab| {
                    Reader { server: VIP.into(), protocol, tls }.expect(lab, &account, &message)?;
                    Ok((format!("the very {} octets that were sent", message.body().len()), ()))
                });
            }
        }
    }

    fn spread(&mut self) {
        self.step(&format!("{CONNECTIONS} connections to {VIP}"), |lab| {
            let taken = spread_connections(lab, CONNECTIONS)?;
            let total: u64 = taken.iter().sum();
            ensure!(total == u64::from(CONNECTIONS), "{total} were counted: {taken:?}");
            let parts: Vec<String> =
                taken.iter().zip(1..).map(|(count, number)| format!("fe{number} {count}")).collect();
            Ok((parts.join(", "), ()))
        });
    }

    fn death(&mut self) {
        let what = format!("the front end that owns {VIP} is killed while {SESSIONS} IMAP sessions are open");
        let outcome = self.step(&what, |lab| {
            let victim = lab.vip_owner()?;
            let (death, survivors) = death_of(lab, victim, SESSIONS)?;
            ensure!(death.broken == 0, "{} of {} sessions on the others broke", death.broken, death.others);
            let after = death.new.recovered;
            ensure!(after < RECOVERY_LIMIT, "new connections failed until {after:?}");
            let detail = format!(
                "fe{victim} killed; 0 of {} sessions on the others broke; new connections work after {} ms",
                death.others,
                after.as_millis()
            );
            Ok((detail, (victim, survivors)))
        });
        let Some((victim, mut survivors)) = outcome else { return };
        self.step(&format!("fe{victim} is started again"), |lab| {
            lab.start_front_end(victim)?;
            lab.await_pool()?;
            let broken = survivors.broken()?;
            ensure!(broken == 0, "{broken} sessions on the others broke");
            Ok(("back in the pool; no session broke".to_owned(), ()))
        });
    }

    fn table(&mut self) {
        let Ok(taken) = own_new_connections(self.lab) else {
            self.failed += 1;
            return say("the XDP counters cannot be read");
        };
        let total: u64 = taken.iter().sum();
        say("\nconnections taken, as the XDP programs counted");
        for (count, number) in taken.iter().zip(1..) {
            let percent = (count * 1000).checked_div(total).unwrap_or_default();
            say(&format!("  fe{number}  {count:>7}  {:>3}.{} %", percent / 10, percent % 10));
        }
        say(&format!("  all  {total:>7}\n"));
    }
}

fn both_servers(lab: &Lab) -> anyhow::Result<(String, ())> {
    let accounts = [Account::shared(lab.spec(), 1), Account::shared(lab.spec(), 2)];
    let message = Message::plain("Both", "One transaction, two servers.\r\n");
    let mut sending = Sending::to(VIP, &accounts[0].address);
    sending.recipients.push(accounts[1].address.clone());
    let reply = sending.send(lab, &message)?;
    ensure!(reply.accepted()?.refused.is_empty(), "refused: {:?}", reply.refused);
    for account in &accounts {
        ensure!(is_on(lab, account, &message)?, "{} is not on be{}", account.address, account.backend);
    }
    Ok((format!("{} took it, be{} and be{} have it", reply.front_end(), accounts[0].backend, accounts[1].backend), ()))
}

/// Dovecot takes no such address by LMTP: it goes by SMTP to Postfix on the same back end, which queues it.
fn utf8_mailbox(lab: &Lab) -> anyhow::Result<(String, ())> {
    let account = Account::utf8(1);
    let message = Message::plain("Grüße", "Grüße, Jörg\r\n");
    let sending = Sending { smtputf8: true, ..Sending::to(VIP, &account.address) };
    let reply = sending.send(lab, &message)?;
    reply.accepted()?;
    arrival(lab, &account, &message)?;
    let octets = message.body().len();
    Ok((format!("{} took it, be1 has it by SMTP ({}); {octets} octets as sent", reply.front_end(), reply.text), ()))
}

/// Whether the message is in the mailbox's own directory on the back end.
fn is_on(lab: &Lab, account: &Account, message: &Message) -> anyhow::Result<bool> {
    let needle = message.mark.as_bytes();
    for file in lab.mailbox_files(account)? {
        let content = fs::read(&file).with_context(|| format!("failed to read {}", file.display()))?;
        if content.windows(needle.len()).any(|window| window == needle) {
            return Ok(true);
        }
    }
    Ok(false)
}
