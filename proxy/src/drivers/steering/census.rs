//! The kernel's connections to steered services, counted by bucket.

use std::{collections::BTreeSet, net::SocketAddr};

use anyhow::Result;
use proxy_common::hash::{SteeringKey, connection_bucket};

use crate::sockets::{self, State};

/// All connections of this front end at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Census {
    /// The bucket of each, in no order.
    pub(super) buckets: Vec<u32>,
    /// Those that have not ended: all but TIME_WAIT.
    pub(super) open: usize,
}

impl Census {
    /// Asks the kernel; blocks for milliseconds.
    pub(super) fn take(key: SteeringKey, services: &BTreeSet<SocketAddr>) -> Result<Self> {
        let mut census = Self::default();
        sockets::connections(|connection| {
            if services.contains(&connection.local) {
                census.buckets.push(connection_bucket(key, connection.remote, connection.local));
                census.open += usize::from(connection.state != State::TimeWait);
            }
        })?;
        Ok(census)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    const KEY: SteeringKey = SteeringKey { k0: 1, k1: 2 };

    #[test]
    fn only_connections_to_services_count() {
        let [service, other] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let address = service.local_addr().unwrap();
        let client = TcpStream::connect(address).unwrap();
        let _else = TcpStream::connect(other.local_addr().unwrap()).unwrap();
        let (_accepted, remote) = service.accept().unwrap();
        let census = Census::take(KEY, &BTreeSet::from([address])).unwrap();
        let expected = Census { buckets: vec![connection_bucket(KEY, remote, address)], open: 1 };
        assert_eq!(census, expected);
        drop(client);
    }
}
