//! zenoh, peers in a full mesh; membership is liveliness tokens.

use membership_node::{Command, Report, Setup, listen};
use tokio::sync::mpsc;
use zenoh::sample::SampleKind;
use zenoh::{Config, Session};

/// A peer that is silent for so long is gone; four keep-alives fall into it.
const LEASE_MS: u64 = 1000;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let setup = Setup::from_args().map_err(anyhow::Error::msg)?;
    let session = zenoh::open(config(&setup).map_err(anyhow::Error::msg)?).await.map_err(anyhow::Error::msg)?;
    watch_members(&session, &setup.name).await.map_err(anyhow::Error::msg)?;
    watch_values(&session, &setup.name).await.map_err(anyhow::Error::msg)?;
    let token = session.liveliness().declare_token(format!("pool/{}", setup.name));
    let _alive = token.await.map_err(anyhow::Error::msg)?;
    let (sender, mut commands) = mpsc::unbounded_channel();
    listen(move |command| drop(sender.send(command)));
    while let Some(command) = commands.recv().await {
        let put = match command {
            Command::Set(value) => session.put(format!("value/{}", setup.name), value.to_string()),
            Command::Bulk { name, octets, .. } => session.put(format!("bulk/{name}"), vec![7_u8; octets]),
        };
        let put = put.congestion_control(zenoh::qos::CongestionControl::Block);
        put.await.map_err(anyhow::Error::msg)?;
    }
    Ok(())
}

fn config(setup: &Setup) -> zenoh::Result<Config> {
    let endpoint = |address| format!("\"{}/{address}\"", setup.link);
    let mut config = Config::default();
    config.insert_json5("mode", "\"peer\"")?;
    config.insert_json5("listen/endpoints", &format!("[{}]", endpoint(setup.listen)))?;
    let seeds: Vec<String> = setup.seeds.iter().map(|seed| endpoint(*seed)).collect();
    config.insert_json5("connect/endpoints", &format!("[{}]", seeds.join(",")))?;
    let retry = "{ period_init_ms: 100, period_max_ms: 1000, period_increase_factor: 2 }";
    config.insert_json5("connect/retry", retry)?;
    config.insert_json5("scouting/multicast/enabled", "false")?;
    // Behind relays gossip would tell the others where we really listen.
    let direct = setup.listen == setup.advertise;
    config.insert_json5("scouting/gossip/enabled", if direct { "true" } else { "false" })?;
    config.insert_json5("transport/link/tx/lease", &LEASE_MS.to_string())?;
    Ok(config)
}

async fn watch_members(session: &Session, me: &str) -> zenoh::Result<()> {
    let me = me.to_owned();
    let subscriber = session.liveliness().declare_subscriber("pool/*").history(true).callback(move |sample| {
        let name = sample.key_expr().as_str().trim_start_matches("pool/").to_owned();
        if name == me {
            return;
        }
        match sample.kind() {
            SampleKind::Put => Report::Up(name).send(),
            SampleKind::Delete => Report::Down(name).send(),
        }
    });
    subscriber.background().await
}

async fn watch_values(session: &Session, me: &str) -> zenoh::Result<()> {
    let values = session.declare_subscriber("value/*").callback(|sample| {
        let name = sample.key_expr().as_str().trim_start_matches("value/").to_owned();
        if let Some(value) = sample.payload().try_to_string().ok().and_then(|text| text.parse().ok()) {
            Report::Value(name, value).send();
        }
    });
    values.background().await?;
    let bulk = session.declare_subscriber(format!("bulk/{me}"));
    bulk.callback(|sample| Report::Bulk(sample.payload().len()).send()).background().await
}
