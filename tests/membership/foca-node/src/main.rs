//! The core's membership machine (foca inside) on QUIC datagrams: in small what the daemon does.

mod links;
mod tls;

use std::time::Instant;

use membership_node::{Command, Report, Setup, listen};
use proxy_core::cluster::{Digest, DigestVersion, Event, Machine, Node, NodeName, Timing};
use tokio::sync::mpsc;

use crate::links::{Input, Links};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let setup = Setup::from_args().map_err(anyhow::Error::msg)?;
    let (inputs, mut input) = mpsc::channel(1024);
    let mut links = Links::new(&setup, inputs.clone())?;
    listen(move |command| drop(inputs.blocking_send(Input::Command(command))));
    let me = Node::new(NodeName::parse(&setup.name)?, setup.generation, setup.advertise, [0; 6], 100);
    let mut machine = Machine::new(me, Timing::default(), setup.generation);
    for seed in &setup.seeds {
        machine.handle_announce(Instant::now(), *seed);
    }
    loop {
        drain(&mut machine, &mut links);
        let deadline = machine.poll_timeout().map(tokio::time::Instant::from_std);
        tokio::select! {
            // Datagrams before timers: an answer that waits here is not missing.
            biased;
            Some(input) = input.recv() => take(&mut machine, &mut links, input, &setup.name),
            () = sleep_until(deadline) => machine.handle_timeout(Instant::now()),
        }
    }
}

async fn sleep_until(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

fn take(machine: &mut Machine, links: &mut Links, input: Input, me: &str) {
    let now = Instant::now();
    match input {
        Input::Datagram(from, bytes) => {
            if let Err(error) = machine.handle_datagram(now, from, &bytes) {
                eprintln!("{from}: {error}");
            }
        }
        Input::Open(connection) => links.opened(&connection),
        Input::Closed(to, id) => links.closed(to, id),
        Input::Command(Command::Set(value)) => {
            let version = DigestVersion { epoch: machine.me().generation, sequence: value };
            let digest = Digest { source: me.to_owned(), version, payload: value.to_be_bytes().to_vec() };
            if let Err(error) = machine.set_digest(now, digest) {
                eprintln!("{error}");
            }
        }
        Input::Command(Command::Bulk { to, octets, .. }) => links.send_bulk(to, octets),
    }
}

fn drain(machine: &mut Machine, links: &mut Links) {
    while let Some(transmit) = machine.poll_transmit() {
        links.send(transmit);
    }
    while let Some(event) = machine.poll_event() {
        match event {
            Event::MemberUp(node) => Report::Up(node.name.to_string()).send(),
            Event::MemberDown(node) => {
                links.forget(node.address);
                Report::Down(node.name.to_string()).send();
            }
            Event::Digest(digest) => Report::Value(digest.source, digest.version.sequence).send(),
            Event::Joined | Event::Alone | Event::MemberChanged(_) | Event::Rejoined(_) | Event::NameConflict(_) => {}
        }
    }
}
