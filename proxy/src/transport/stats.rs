//! Counters of the transport.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Counters since the start, written by the transport and read by the metrics.
        #[derive(Debug, Default)]
        pub struct TransportStats { $($(#[$doc])* pub $name: AtomicU64),* }

        /// The values of [`TransportStats`] at one moment.
        #[derive(Debug, Default, Clone, PartialEq, Eq)]
        pub struct StatsSnapshot { $($(#[$doc])* pub $name: u64),* }

        impl TransportStats {
            /// Reads every counter.
            pub fn snapshot(&self) -> StatsSnapshot {
                StatsSnapshot { $($name: self.$name.load(Ordering::Relaxed)),* }
            }
        }

        impl StatsSnapshot {
            /// Every counter with its name, for an exporter.
            pub fn entries(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name)),*]
            }
        }
    };
}

counters! {
    /// Datagrams given to a connection.
    datagrams_sent,
    /// Datagrams received from front ends and delivered.
    datagrams_received,
    /// Dropped: the receiver was too slow.
    datagrams_dropped_receive_queue,
    /// Dropped: too many were waiting for a connection.
    datagrams_dropped_pending_queue,
    /// Dropped: the address could not be dialled, or was not dialled again so soon.
    datagrams_dropped_unreachable,
    /// Dropped: larger than the protocol allows.
    datagrams_dropped_too_large,
    /// Dropped: sent by a node that takes no part in the membership.
    datagrams_dropped_not_a_frontend,
    /// Streams opened by this node.
    streams_opened,
    /// Streams opened by peers and delivered.
    streams_accepted,
    /// Reset: too many were waiting to be served.
    streams_dropped_queue,
    /// Reset: of a kind this version does not know.
    streams_unknown_kind,
    /// Reset: the kind did not arrive in time.
    streams_kind_timeout,
    /// Connections established by dialling.
    connections_dialled,
    /// Connections established by accepting.
    connections_accepted,
    /// Dials that failed.
    dials_failed,
    /// Connections ended by a stateless reset: the peer had restarted.
    connections_reset,
    /// Connections that heard nothing for the idle timeout.
    connections_timed_out,
    /// Peers refused: no certificate.
    refused_no_certificate,
    /// Peers refused: a certificate that the pool's CA did not issue, that has expired, or is for another name.
    refused_bad_certificate,
    /// Peers refused: a certificate of the pool's CA that names no node, or a role that has no business here.
    refused_role,
    /// Peers refused: another protocol.
    refused_protocol,
    /// Peers refused: too many connections from their address or altogether.
    refused_limit,
    /// Accepted handshakes that failed otherwise or took too long.
    handshakes_failed,
}

/// Adds one to a counter.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
