//! chitchat on its own UDP transport.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use chitchat::transport::UdpTransport;
use chitchat::{Chitchat, ChitchatConfig, ChitchatId, FailureDetectorConfig, ProtocolVersion, spawn_chitchat};
use membership_node::{Command, Report, Setup, listen};
use tokio::sync::mpsc;

/// Phi 8 over heartbeats every 100 ms: dead after about 0.8 s.
const GOSSIP_INTERVAL: Duration = Duration::from_millis(100);
/// One value of the bulk: state of any size has to be cut into keys.
const PIECE: usize = 8 * 1024;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let setup = Setup::from_args().map_err(anyhow::Error::msg)?;
    let config = ChitchatConfig {
        chitchat_id: ChitchatId::new(setup.name.as_str(), setup.generation, setup.advertise),
        cluster_id: "pool".to_owned(),
        gossip_interval: GOSSIP_INTERVAL,
        listen_addr: setup.listen,
        seed_nodes: setup.seeds.iter().map(ToString::to_string).collect(),
        failure_detector_config: FailureDetectorConfig {
            // The default of 5 s makes a young node's death take 40 s to notice.
            initial_interval: GOSSIP_INTERVAL,
            max_interval: Duration::from_secs(2),
            ..FailureDetectorConfig::default()
        },
        marked_for_deletion_grace_period: Duration::from_secs(3600),
        catchup_callback: None,
        extra_liveness_predicate: None,
        protocol_version: ProtocolVersion::V1,
    };
    let handle = spawn_chitchat(config, Vec::new(), &UdpTransport).await?;
    handle.with_chitchat(subscribe).await;
    let mut live = handle.with_chitchat(|chitchat| chitchat.live_nodes_watcher()).await;
    let (sender, mut commands) = mpsc::unbounded_channel();
    listen(move |command| drop(sender.send(command)));
    let mut seen = BTreeSet::new();
    loop {
        tokio::select! {
            Some(command) = commands.recv() => handle.with_chitchat(|chitchat| obey(chitchat, &command)).await,
            changed = live.changed() => {
                changed?;
                let now: BTreeSet<String> = live.borrow_and_update().keys().map(|id| id.node_id.to_string()).collect();
                now.difference(&seen).filter(|name| **name != setup.name).for_each(|name| Report::Up(name.clone()).send());
                seen.difference(&now).filter(|name| **name != setup.name).for_each(|name| Report::Down(name.clone()).send());
                seen = now;
            }
        }
    }
}

fn subscribe(chitchat: &mut Chitchat) {
    let value = chitchat.subscribe_event("v", |event| {
        if let Ok(value) = event.value.parse() {
            Report::Value(event.node.node_id.to_string(), value).send();
        }
    });
    value.forever();
    let octets = AtomicUsize::new(0);
    let bulk = chitchat.subscribe_event("b/", move |event| {
        Report::Bulk(octets.fetch_add(event.value.len(), Ordering::Relaxed) + event.value.len()).send();
    });
    bulk.forever();
}

fn obey(chitchat: &mut Chitchat, command: &Command) {
    let state = chitchat.self_node_state();
    match command {
        Command::Set(value) => state.set("v", value),
        Command::Bulk { octets, .. } => {
            // Not "xxxx…": chitchat compresses, the other engines do not.
            let mut random = 1_u64;
            for i in 0..octets / PIECE {
                let piece: String = (0..PIECE).map(|_| printable(&mut random)).collect();
                state.set(format!("b/{i}"), piece);
            }
        }
    }
}

fn printable(state: &mut u64) -> char {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    char::from(b' ' + u8::try_from(*state % 95).unwrap_or(0))
}
