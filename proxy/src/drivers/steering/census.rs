//! The kernel's connections to steered services, counted by bucket.

use std::{collections::BTreeSet, net::SocketAddr};

use anyhow::Result;
use proxy_common::hash::{SteeringKey, connection_bucket};

use crate::sockets::{self, State};

/// The bucket of each connection that has not ended (TIME_WAIT), in no order. Blocks for milliseconds.
///
/// # Errors
/// The kernel does not list them.
pub(super) fn take(key: SteeringKey, services: &BTreeSet<SocketAddr>) -> Result<Vec<u32>> {
    let mut buckets = vec![];
    sockets::connections(|connection| {
        if connection.state != State::TimeWait && services.contains(&connection.local) {
            buckets.push(connection_bucket(key, connection.remote, connection.local));
        }
    })?;
    Ok(buckets)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    const KEY: SteeringKey = SteeringKey { k0: 1, k1: 2 };

    #[test]
    fn only_connections_to_services_count_and_only_until_they_have_ended() {
        let [service, other] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let address = service.local_addr().unwrap();
        let client = TcpStream::connect(address).unwrap();
        let _else = TcpStream::connect(other.local_addr().unwrap()).unwrap();
        let (accepted, remote) = service.accept().unwrap();
        let services = BTreeSet::from([address]);
        assert_eq!(take(KEY, &services).unwrap(), [connection_bucket(KEY, remote, address)]);
        drop(accepted);
        drop(client);
        // It is in TIME_WAIT as soon as the client's end is acknowledged.
        while !take(KEY, &services).unwrap().is_empty() {
            std::thread::yield_now();
        }
    }
}
