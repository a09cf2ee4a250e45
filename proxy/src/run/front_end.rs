//! A front end that serves: everything that runs, from its start to its end.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{sync::watch, task::JoinHandle};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tracing::{info, warn};

use super::{Prepared, Shared, Sockets, serve};
use crate::{
    config::Config,
    dataplane::ProgramLog,
    drivers::{
        abuse::Abuse,
        announcer,
        cluster::{Cluster, View},
        directory::DirectoryDriver,
        gossip,
        listen::Listening,
        steering::{self, Steering},
        streams,
    },
    metrics::{self, Metrics},
    operator::Operator,
    relay::Relay,
    report::{self, Reporter},
    scanner::Scanner,
    transport::Transport,
};

/// The other members have this long to confirm that they send nothing new any more; a fraction of a second is usual.
const HAND_OVER: Duration = Duration::from_secs(5);
/// What is cut off at the end has this long to close its connections.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// See the module's description.
pub(super) struct FrontEnd {
    cluster: Cluster,
    steering: Steering,
    steered: JoinHandle<()>,
    listening: Listening,
    directory: Arc<DirectoryDriver>,
    abuse: Abuse,
    transport: Transport,
    background: Vec<JoinHandle<()>>,
}

impl FrontEnd {
    pub(super) fn start(
        config: &Config,
        prepared: Prepared,
        acceptor: Option<TlsAcceptor>,
        connector: TlsConnector,
        started: Instant,
    ) -> Self {
        let Prepared {
            me,
            settings,
            sockets,
            directory,
            front_ends,
            dataplane,
            abuse: (abuse, deny_maps),
            loggers,
            announcer,
            steering,
            weight,
        } = prepared;
        let Sockets { listeners, metrics: metrics_listener, transport, incoming, control } = sockets;
        let mac = me.mac;
        let streams = streams::divide(incoming.streams);
        let (cluster, digests) = Cluster::spawn(me, settings, transport.clone(), incoming.datagrams);
        let (steering, steered) =
            Steering::spawn(steering, dataplane.clone(), cluster.clone(), transport.clone(), streams.steering);

        let defence = abuse.spawn(deny_maps, transport.clone(), cluster.view(), streams.deny);
        let metrics = Arc::new(Metrics::default());
        let listening = Listening::new(Arc::clone(&metrics));
        let scanner = Scanner::new(config.clamd.clone());
        let relay = Relay { hostname: config.smtp.hostname.clone(), connector, deadline: config.smtp.backend_timeout };
        let shared = Shared { config, acceptor, directory: directory.directory(), relay, listening: &listening };
        serve(&shared, &scanner, listeners);

        if let Some(listener) = metrics_listener {
            let stats = (transport.stats(), cluster.stats());
            let collector = report::collector(
                dataplane.clone(),
                (steering.snapshot(), abuse.clone()),
                stats,
                directory.directory(),
            );
            tokio::spawn(metrics::serve(listener, metrics::registry(&metrics, vec![collector])));
        }
        let reporter = Reporter {
            started,
            name: config.node.name.clone(),
            view: cluster.view(),
            directory: directory.directory(),
            scanner,
            dataplane: dataplane.clone(),
            steering: steering.snapshot(),
            abuse: abuse.clone(),
            weight: weight.clone(),
            metrics,
        };
        let key = config.pool.key;
        let operator = Operator {
            reporter,
            cluster: cluster.clone(),
            steering: steering.clone(),
            dataplane,
            abuse: abuse.clone(),
            weight,
            key,
            mac,
        };
        let mut background = vec![
            tokio::spawn(tell_front_ends(cluster.view(), front_ends)),
            tokio::spawn(announcer::run(announcer, cluster.view())),
            tokio::spawn(Arc::clone(&directory).run(streams.directory)),
            tokio::spawn(gossip::run(cluster.clone(), directory.directory(), digests)),
            tokio::spawn(control.run(move |request| operator.clone().answer(request))),
        ];
        background.extend(loggers.into_iter().map(|logger| tokio::spawn(log_exceptions(logger))));
        background.extend(defence);
        Self { cluster, steering, steered, listening, directory, abuse, transport, background }
    }

    /// First the others must stop sending us new connections; then ours may end, within `grace`.
    pub(super) async fn end(self, grace: Duration) {
        info!("ending: new connections go to the other front ends");
        let end = tokio::time::Instant::now() + grace;
        self.steering.stop(grace.min(HAND_OVER)).await;
        let Listening { shutdown, ending, tasks, .. } = &self.listening;
        shutdown.cancel();
        tasks.close();
        if tokio::time::timeout_at(end, tasks.wait()).await.is_err() {
            warn!(sessions = tasks.len(), "sessions are cut off at the end of the grace period");
        }
        ending.cancel();
        if tokio::time::timeout(LAST_WORDS, tasks.wait()).await.is_err() {
            info!(sessions = tasks.len(), "sessions did not end");
        }
        self.cluster.leave().await;
        // It sees to it that the program answers for nothing any more.
        if self.steered.await.is_err() {
            warn!("the steering driver was lost");
        }
        if let Err(error) = self.directory.store_now().await {
            warn!(error = format!("{error:#}"), "failed to store the directory");
        }
        if let Err(error) = self.abuse.store_now().await {
            warn!(error = format!("{error:#}"), "failed to store the deny list");
        }
        self.background.iter().for_each(JoinHandle::abort);
        if let Err(error) = self.abuse.end() {
            warn!(error = format!("{error:#}"), "the kernel's setting for SYN cookies stays as it is");
        }
        self.transport.shutdown().await;
    }
}

async fn log_exceptions(logger: ProgramLog) {
    if let Err(error) = steering::run_log(logger).await {
        warn!(%error, "the XDP program's exceptions are not logged");
    }
}

/// Keeps the agents told of the live front ends.
async fn tell_front_ends(mut views: watch::Receiver<Arc<View>>, addresses: watch::Sender<Vec<SocketAddr>>) {
    loop {
        let live = views.borrow_and_update().members.iter().map(|member| member.address).collect();
        if addresses.send(live).is_err() || views.changed().await.is_err() {
            return;
        }
    }
}
