//! The Ethernet addresses to which packets to machines beyond the segment are sent.

use std::{collections::BTreeMap, net::IpAddr};

use anyhow::{Context, Result};
use futures_util::TryStreamExt;
use rtnetlink::{
    Handle, RouteMessageBuilder,
    packet_route::{
        AddressFamily,
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteVia},
    },
};

use super::{MacAddress, host_prefix, netlink_error, with_netlink};

/// Finds the next hop's Ethernet address for each destination, by the routes that leave through one of the interfaces and
/// its neighbours; the first interface that has both is believed. A destination without a route, or whose next hop the
/// kernel has not found yet, is left out.
///
/// # Errors
/// The kernel does not list its neighbours.
pub async fn next_hops(interfaces: &[u32], destinations: &[IpAddr]) -> Result<BTreeMap<IpAddr, MacAddress>> {
    with_netlink(async |handle| {
        let mut found = BTreeMap::new();
        for interface in interfaces {
            let neighbours = neighbours(&handle, *interface).await?;
            for destination in destinations {
                if found.contains_key(destination) {
                    continue;
                }
                let hop = next_hop(&handle, *interface, *destination).await;
                if let Some(mac) = hop.and_then(|hop| neighbours.get(&hop)) {
                    found.insert(*destination, *mac);
                }
            }
        }
        Ok(found)
    })
    .await
    .context("failed to find the next hops")
}

/// The gateway of the route to `destination`, or `destination` itself where it is on the link.
async fn next_hop(handle: &Handle, interface: u32, destination: IpAddr) -> Option<IpAddr> {
    let request = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(destination, host_prefix(destination))
        .ok()?
        .output_interface(interface)
        .build();
    let mut routes = handle.route().get(request).execute();
    // An error is the kernel's way to say that there is no route.
    let route = routes.try_next().await.ok()??;
    Some(gateway(&route).unwrap_or(destination))
}

fn gateway(route: &RouteMessage) -> Option<IpAddr> {
    route.attributes.iter().find_map(|attribute| {
        if let RouteAttribute::Gateway(RouteAddress::Inet(v4)) | RouteAttribute::Via(RouteVia::Inet(v4)) = attribute {
            return Some(IpAddr::from(*v4));
        }
        if let RouteAttribute::Gateway(RouteAddress::Inet6(v6)) | RouteAttribute::Via(RouteVia::Inet6(v6)) = attribute {
            return Some(IpAddr::from(*v6));
        }
        None
    })
}

async fn neighbours(handle: &Handle, interface: u32) -> Result<BTreeMap<IpAddr, MacAddress>> {
    let mut known = BTreeMap::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut messages = handle.neighbours().get().set_address_family(family).execute();
        while let Some(message) = messages.try_next().await.map_err(netlink_error)? {
            if message.header.ifindex == interface {
                known.extend(neighbour(&message));
            }
        }
    }
    Ok(known)
}

fn neighbour(message: &NeighbourMessage) -> Option<(IpAddr, MacAddress)> {
    if matches!(message.header.state, NeighbourState::Incomplete | NeighbourState::Failed | NeighbourState::None) {
        return None;
    }
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        if let NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) = attribute {
            address = Some(IpAddr::from(*v4));
        } else if let NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) = attribute {
            address = Some(IpAddr::from(*v6));
        } else if let NeighbourAttribute::LinkLayerAddress(bytes) = attribute {
            mac = bytes.as_slice().try_into().ok();
        }
    }
    address.zip(mac)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        netdev,
        testing::{in_network_namespace, ip},
    };

    #[test]
    fn packets_beyond_the_segment_go_to_the_gateway() {
        in_network_namespace("packets_beyond_the_segment_go_to_the_gateway", async || {
            ip("link add va type veth peer name vb");
            ip("link add vc type veth peer name vd");
            for link in ["va", "vb", "vc", "vd"] {
                ip(&format!("link set {link} up"));
            }
            ip("address add 10.77.0.11/24 dev va");
            ip("address add fd77::11/64 dev va nodad");
            ip("route add 10.78.0.0/24 via 10.77.0.1");
            ip("route add 10.79.0.0/24 via inet6 fd77::1 dev va");
            ip("route add fd78::/64 via fd77::1 dev va");
            ip("route add 10.80.0.0/24 dev vc");
            ip("neigh add 10.77.0.1 lladdr 02:00:00:00:00:01 dev va");
            ip("neigh add 10.77.0.12 lladdr 02:00:00:00:00:12 dev va");
            ip("neigh add fd77::1 lladdr 02:00:00:00:00:06 dev va");
            ip("neigh add 10.80.0.1 lladdr 02:00:00:00:00:80 dev vc");
            let index = netdev::interface("va").await.unwrap().index;
            let address = |text: &str| text.parse::<IpAddr>().unwrap();
            let asked = ["10.78.0.21", "10.77.0.12", "10.79.0.1", "fd78::21", "10.77.0.13", "10.80.0.1", "192.0.2.1"]
                .map(address);
            let found = next_hops(&[index], &asked).await.unwrap();
            let last = |text| found.get(&address(text)).map(|mac| mac[5]);
            assert_eq!(last("10.78.0.21"), Some(0x01), "through the gateway");
            assert_eq!(last("10.77.0.12"), Some(0x12), "on the link");
            assert_eq!(last("10.79.0.1"), Some(0x06), "through a gateway of the other family");
            assert_eq!(last("fd78::21"), Some(0x06));
            assert_eq!(found.len(), 4, "{found:?}: not resolved, another interface, no route");
            let second = netdev::interface("vc").await.unwrap().index;
            let found = next_hops(&[index, second], &["10.80.0.1", "10.78.0.21"].map(address)).await.unwrap();
            assert_eq!(found.values().map(|mac| mac[5]).collect::<Vec<_>>(), [0x01, 0x80], "either has its own");
        });
    }
}
