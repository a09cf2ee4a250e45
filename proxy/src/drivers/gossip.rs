//! Ties the directory to the membership: what this front end holds of each source is gossiped as a digest, and
//! what the others hold makes their sources known here.

use std::time::Duration;

use proxy_core::{
    cluster::{Digest as GossipDigest, DigestVersion},
    directory::Digest,
};
use tokio::sync::mpsc;
use tracing::{debug, warn};

use super::{cluster::Cluster, directory::SharedDirectory};

/// How often our digests are compared with those told last. Changes themselves go by streams, at once; a digest
/// only tells who is missing some.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// Runs until the membership ends.
pub async fn run(cluster: Cluster, directory: SharedDirectory, mut heard: mpsc::Receiver<GossipDigest>) {
    let mut told = vec![];
    let mut tick = tokio::time::interval(TELL_EVERY);
    loop {
        tokio::select! {
            digest = heard.recv() => {
                let Some(digest) = digest else { return };
                match postcard::from_bytes::<Digest>(&digest.payload) {
                    Ok(decoded) => directory.observe(&[decoded]),
                    Err(error) => debug!(source = digest.source, %error, "a digest of another version"),
                }
            }
            _ = tick.tick() => {
                let digests = directory.read().digests();
                if digests == told {
                    continue;
                }
                if let Err(error) = cluster.set_digests(digests.iter().filter_map(encode).collect()).await {
                    warn!(error = format!("{error:#}"), "failed to tell the digests");
                }
                told = digests;
            }
        }
    }
}

/// `None` for a source that was never complete here: there is nothing to tell but its name, which whoever has it
/// tells already.
fn encode(digest: &Digest) -> Option<GossipDigest> {
    let position = digest.position?;
    let version = DigestVersion { epoch: position.epoch.0, sequence: position.seq.0 };
    let payload = postcard::to_stdvec(digest).ok()?;
    Some(GossipDigest { source: digest.source.as_str().to_owned(), version, payload })
}
