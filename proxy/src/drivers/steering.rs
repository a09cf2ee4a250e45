//! Keeps the XDP program in step with the membership view.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result};
use proxy_core::{
    cluster::{Node, NodeState},
    steering::{Member, Plan},
};
use tokio::{io::unix::AsyncFd, sync::watch};
use tracing::{error, info};

use super::cluster::View;
use crate::dataplane::{Dataplane, ProgramLog};

/// The program answers for VIPs only for so long after a sign of life from its daemon: when that dies, another front
/// end becomes the owner, and two must not answer.
const ANSWER_FOR: Duration = Duration::from_millis(800);
const ALIVE_EVERY: Duration = Duration::from_millis(200);

/// The program, for the driver that writes it and the status that reads it.
#[derive(Clone)]
pub struct SharedDataplane(Arc<Mutex<Dataplane>>);

impl SharedDataplane {
    #[must_use]
    pub fn new(dataplane: Dataplane) -> Self {
        Self(Arc::new(Mutex::new(dataplane)))
    }

    /// Exclusive use, for microseconds.
    pub fn lock(&self) -> MutexGuard<'_, Dataplane> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Applies every new view: the table first, then who answers for the virtual addresses, so that a front end never
/// draws packets that it cannot steer.
pub async fn run(dataplane: SharedDataplane, mut views: watch::Receiver<Arc<View>>, vips: Vec<IpAddr>) {
    let mut alive = tokio::time::interval(ALIVE_EVERY);
    loop {
        let view = Arc::clone(&views.borrow_and_update());
        // Until the members are known, the table of an earlier life is the best there is.
        if view.settled
            && let Err(error) = apply(&dataplane, &view, &vips)
        {
            error!(error = format!("{error:#}"), version = view.version, "failed to steer by the new members");
        }
        loop {
            tokio::select! {
                changed = views.changed() => match changed {
                    Ok(()) => break,
                    // This front end has left the pool: from now on others answer for all of them.
                    Err(_ended) => {
                        let unowned = vips.iter().map(|vip| (*vip, false));
                        if let Err(error) = dataplane.lock().set_vips(unowned) {
                            error!(error = format!("{error:#}"), "failed to give the virtual addresses up");
                        }
                        return;
                    }
                },
                _ = alive.tick() => dataplane.lock().keep_answering(ANSWER_FOR),
            }
        }
    }
}

/// The view's members, as steering sees them.
#[must_use]
pub fn members(view: &View) -> Vec<Member> {
    let member = |node: &Node| Member {
        name: node.name.as_str().to_owned(),
        mac: node.mac,
        weight: node.weight,
        active: node.state == NodeState::Active,
    };
    view.members.iter().map(member).collect()
}

fn apply(dataplane: &SharedDataplane, view: &View, vips: &[IpAddr]) -> Result<()> {
    let members = members(view);
    let started = std::time::Instant::now();
    let plan = Plan::build(&members, view.me.as_str())?;
    let mut dataplane = dataplane.lock();
    dataplane.apply(&plan).context("failed to switch the table")?;
    let owned = |vip: &IpAddr| view.owners.get(vip) == Some(&view.me);
    dataplane.set_vips(vips.iter().map(|vip| (*vip, owned(vip)))).context("failed to declare the virtual addresses")?;
    let names: Vec<_> = members.iter().map(|m| m.name.as_str()).collect();
    info!(
        version = view.version,
        members = names.join(","),
        vips = vips.iter().filter(|vip| owned(vip)).map(ToString::to_string).collect::<Vec<_>>().join(","),
        took_us = started.elapsed().as_micros(),
        "steering"
    );
    Ok(())
}

/// Prints what the program says of exceptions, as it says it.
///
/// # Errors
/// Its log cannot be waited for.
pub async fn run_log(logger: ProgramLog) -> Result<()> {
    // SAFETY: the logger's file descriptor is its ring buffer's, which it owns and keeps for as long as it lives.
    let mut logger = unsafe { AsyncFd::register(logger) }.context("failed to wait for the XDP program's log")?;
    loop {
        let mut ready = logger.readable_mut().await.context("failed to wait for the XDP program's log")?;
        ready.get_inner_mut().flush();
        ready.clear_ready();
    }
}
