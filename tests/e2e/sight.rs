//! What an operator sees: status, metrics, logs.

use std::fs;

use anyhow::{Context as _, ensure};
use autocluster_tests::client::{Message, Sending};
use autocluster_tests::lab::{Account, Host, Lab, VIP};

use crate::Test;

pub(crate) const TESTS: &[Test] =
    &[("sight::status", status), ("sight::metrics", metrics), ("sight::one_id_follows_a_message", one_id)];

fn status(lab: &Lab) -> anyhow::Result<()> {
    for number in 1..=lab.spec().frontends {
        let status = lab.status(number)?;
        let count = |key: &str| status[key].as_array().map_or(0, Vec::len);
        let spec = lab.spec();
        ensure!(
            count("members") == usize::from(spec.frontends) && count("sources") == usize::from(spec.backends),
            "{status}"
        );
        let buckets: u64 =
            status["members"].as_array().into_iter().flatten().filter_map(|m| m["buckets"].as_u64()).sum();
        ensure!(buckets == 262_144, "every bucket has an owner: {status}");
        ensure!(
            status["vips"].as_array().is_some_and(|vips| vips.iter().all(|vip| vip["owner"].is_string())),
            "{status}"
        );
        ensure!(status["scanner"]["reachable"] == true, "{status}");
    }
    let socket = lab.layout().control_socket(Host::frontend(1)).display().to_string();
    let output = lab.exec("fe1", &["autocluster", "status", "--socket", &socket])?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    for part in ["FRONT END", "this node", "ANSWERED BY", "be2", "Scanner:", "Steering:"] {
        ensure!(text.contains(part), "no {part:?} in {text}");
    }
    Ok(())
}

fn metrics(lab: &Lab) -> anyhow::Result<()> {
    let account = Account::local(1, 20);
    Sending::to(VIP, &account.address).send(lab, &Message::plain("counted", "x\r\n"))?.accepted()?;
    let mut accepted = 0;
    for number in 1..=lab.spec().frontends {
        let output = lab.exec(&format!("fe{number}"), &["curl", "-s", "http://127.0.0.1:9104/metrics"])?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(text.ends_with("# EOF\n"), "no metrics on fe{number}: {text:?}");
        accepted += value(&text, "autocluster_messages_total{outcome=\"accepted\"}").unwrap_or(0);
        let passed = value(&text, "autocluster_packets_total{verdict=\"passed\"}").context("no packets counted")?;
        ensure!(passed > 0, "{text}");
    }
    ensure!(accepted > 0, "no front end counted the message");
    Ok(())
}

fn value(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

/// The reply's id finds the message in the log, under one session.
fn one_id(lab: &Lab) -> anyhow::Result<()> {
    let account = Account::local(2, 20);
    let reply = Sending::to(VIP, &account.address).send(lab, &Message::plain("traced", "x\r\n"))?;
    let id = reply.text.split(' ').find(|word| word.starts_with("fe")).context("the reply has no id")?.to_owned();
    let host = id.split('-').next().context("the id names no front end")?;
    let log = fs::read_to_string(lab.layout().host_dir(host.parse()?).join("autocluster.log"))?;
    let lines: Vec<&str> = log.lines().filter(|line| line.contains(&id)).collect();
    ensure!(lines.len() >= 2, "relaying and outcome are logged under {id}: {lines:?}");
    let session = |line: &str| line.split(" id=\"").nth(1).map(|rest| rest.split('"').next().unwrap_or("").to_owned());
    let first = session(lines[0]).context("no session id")?;
    ensure!(lines.iter().all(|line| session(line).as_deref() == Some(&first)), "{lines:?}");
    Ok(())
}
