//! The candidates.

use anyhow::ensure;
use serde::Serialize;

/// How datagrams or streams travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Carrier {
    Udp,
    Tcp,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Engine {
    pub(crate) name: &'static str,
    pub(crate) package: &'static str,
    pub(crate) carrier: Carrier,
    /// Behind relays every node contacts all before it, or only the first two.
    pub(crate) needs_full_mesh: bool,
    licence: &'static str,
    settings: &'static str,
    sans_io: &'static str,
}

/// What need not be measured.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Facts {
    pub(crate) licence: &'static str,
    pub(crate) settings: &'static str,
    pub(crate) sans_io: &'static str,
}

impl Engine {
    pub(crate) fn facts(&self) -> Facts {
        Facts { licence: self.licence, settings: self.settings, sans_io: self.sans_io }
    }
}

const ALL: [Engine; 4] = [
    Engine {
        name: "foca + quinn",
        package: "foca-node",
        carrier: Carrier::Udp,
        needs_full_mesh: false,
        licence: "MPL-2.0; MIT or Apache-2.0",
        settings: "the core's defaults (cluster::Timing); mutual TLS",
        sans_io: "yes: the same code runs in the simulation",
    },
    Engine {
        name: "chitchat (UDP)",
        package: "chitchat-node",
        carrier: Carrier::Udp,
        needs_full_mesh: false,
        licence: "MIT",
        settings: "gossip every 100 ms, phi 8, first interval 100 ms; no encryption",
        sans_io: "no: tasks, and a clock read in the failure detector",
    },
    Engine {
        name: "zenoh (TCP)",
        package: "zenoh-node",
        carrier: Carrier::Tcp,
        needs_full_mesh: true,
        licence: "EPL-2.0 or Apache-2.0",
        settings: "peers, lease 1 s, 4 keep-alives; no encryption",
        sans_io: "no: own runtimes and threads",
    },
    Engine {
        name: "zenoh (UDP)",
        package: "zenoh-node",
        carrier: Carrier::Udp,
        needs_full_mesh: true,
        licence: "EPL-2.0 or Apache-2.0",
        settings: "the same; nothing is sent again over UDP",
        sans_io: "no: own runtimes and threads",
    },
];

pub(crate) fn select(names: &[String]) -> anyhow::Result<Vec<&'static Engine>> {
    if names.iter().any(|name| name == "all") {
        return Ok(ALL.iter().collect());
    }
    let mut chosen = Vec::new();
    for name in names {
        let before = chosen.len();
        chosen.extend(ALL.iter().filter(|engine| engine.package == format!("{name}-node")));
        ensure!(chosen.len() > before, "--engine is one of foca, chitchat, zenoh, all");
    }
    Ok(chosen)
}
