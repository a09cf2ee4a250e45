//! Facts about the host's network interfaces, and the VIPs on its loopback interface.
//!
//! Every front end holds every VIP on `lo`, so that the kernel accepts whatever XDP hands up. So that only the VIP's
//! owner attracts its traffic, the steering interfaces answer ARP for their own addresses only (`arp_ignore`), and never
//! speak in a VIP's name (`arp_announce`); for IPv6 Linux answers neighbour solicitations per interface anyway.

mod next_hop;
mod segment;

use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use futures_util::TryStreamExt;
use rtnetlink::packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope};
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::{Error as NetlinkError, Handle, LinkGetRequest};

pub use next_hop::next_hops;
pub use segment::Segment;

/// The interface that holds the VIPs.
const LOOPBACK: &str = "lo";
/// "Reply only if the target IP address is local address configured on the incoming interface."
const ARP_IGNORE: (&str, &str) = ("arp_ignore", "1");
/// "Always use the best local address for this target."
const ARP_ANNOUNCE: (&str, &str) = ("arp_announce", "2");
/// "Loose mode": the way back may be by another interface.
const RP_FILTER: (&str, &str) = ("rp_filter", "2");
const RP_FILTER_STRICT: &str = "1";
const SYSCTL_IPV4_CONF: &str = "/proc/sys/net/ipv4/conf";

/// An Ethernet address.
pub type MacAddress = [u8; 6];

/// An address of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InterfaceAddress {
    pub address: IpAddr,
    /// Length of the on-link prefix in bits.
    pub prefix_length: u8,
}

impl InterfaceAddress {
    /// True if the address is in this one's network.
    #[must_use]
    pub fn covers(&self, address: IpAddr) -> bool {
        let same = |difference: u128, bits: u8| difference.checked_shr(u32::from(bits - self.prefix_length.min(bits)));
        match (self.address, address) {
            (IpAddr::V4(a), IpAddr::V4(b)) => same(u128::from(u32::from(a) ^ u32::from(b)), 32).unwrap_or(0) == 0,
            (IpAddr::V6(a), IpAddr::V6(b)) => same(u128::from(a) ^ u128::from(b), 128).unwrap_or(0) == 0,
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }

    /// Of a network that every segment has (RFC 4291 section 2.5.6).
    fn is_link_local(&self) -> bool {
        matches!(self.address, IpAddr::V6(v6) if v6.is_unicast_link_local())
    }
}

/// What is known of an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    pub name: String,
    pub index: u32,
    /// All zero on interfaces without one (`lo`).
    pub mac: MacAddress,
    pub mtu: u32,
    /// Its own, or those of the interface that it is part of.
    pub addresses: Vec<InterfaceAddress>,
    /// The bond or bridge that it is part of and that has the addresses.
    pub upper: Option<Upper>,
}

/// An interface that others are part of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upper {
    pub name: String,
    pub index: u32,
}

impl Interface {
    /// The interface that the kernel has routes, neighbours and multicast groups for.
    #[must_use]
    pub fn routed(&self) -> u32 {
        self.upper.as_ref().map_or(self.index, |upper| upper.index)
    }
}

/// Reads the facts about an interface.
///
/// # Errors
/// When there is none of that name, or it has no Ethernet address.
pub async fn interface(name: &str) -> Result<Interface> {
    with_netlink(async |handle| read_interface(&handle, name).await)
        .await
        .with_context(|| format!("failed to read interface {name:?}"))
}

/// Puts every VIP on `lo` (as /32 or /128, without duplicate address detection) that is not there yet.
/// Returns those that were added. Calling it again changes nothing.
///
/// # Errors
/// When the kernel refuses, e.g. for want of CAP_NET_ADMIN.
pub async fn ensure_vips(vips: &[IpAddr]) -> Result<Vec<IpAddr>> {
    with_netlink(async |handle| {
        let index = read_interface(&handle, LOOPBACK).await?.index;
        let mut added = Vec::new();
        for vip in vips {
            if add_vip(&handle, index, *vip).await? {
                added.push(*vip);
            }
        }
        Ok(added)
    })
    .await
    .context("failed to put the VIPs on the loopback interface")
}

/// Takes addresses off `lo` again; those that are not there are no error.
///
/// # Errors
/// When the kernel refuses.
pub async fn remove_vips(vips: &[IpAddr]) -> Result<()> {
    with_netlink(async |handle| {
        let index = read_interface(&handle, LOOPBACK).await?.index;
        for vip in vips {
            let mut message = handle.address().add(index, *vip, host_prefix(*vip)).message_mut().clone();
            message.header.scope = AddressScope::Universe;
            match handle.address().del(message).execute().await {
                Ok(()) => {}
                Err(NetlinkError::NetlinkError(message)) if message.raw_code() == -libc::EADDRNOTAVAIL => {}
                Err(error) => return Err(netlink_error(error).context(format!("failed to remove {vip}"))),
            }
        }
        Ok(())
    })
    .await
    .context("failed to take the VIPs off the loopback interface")
}

/// Makes an interface answer ARP only for addresses it has itself, and use only such addresses in its own requests.
///
/// # Errors
/// When there is no such interface, or /proc/sys may not be written.
pub fn restrict_arp(interface: &str) -> Result<()> {
    ensure!(is_interface_name(interface), "{interface:?} is no interface name");
    for (setting, value) in [ARP_IGNORE, ARP_ANNOUNCE] {
        write_sysctl(&Path::new(SYSCTL_IPV4_CONF).join(interface).join(setting), value)?;
    }
    Ok(())
}

/// Lets an interface take packets whose answers leave by another one, where that is forbidden.
///
/// # Errors
/// When there is no such interface, or /proc/sys may not be written.
pub fn loosen_reverse_path(interface: &str) -> Result<()> {
    ensure!(is_interface_name(interface), "{interface:?} is no interface name");
    let path = |of: &str| Path::new(SYSCTL_IPV4_CONF).join(of).join(RP_FILTER.0);
    // The greater one of both counts.
    let values = ["all", interface].map(|of| std::fs::read_to_string(path(of)).unwrap_or_default());
    if values.iter().map(|value| value.trim()).max() == Some(RP_FILTER_STRICT) {
        write_sysctl(&path(interface), RP_FILTER.1)?;
    }
    Ok(())
}

fn write_sysctl(path: &Path, value: &str) -> Result<()> {
    std::fs::write(path, value).map_err(|error| {
        let refused = [ErrorKind::PermissionDenied, ErrorKind::ReadOnlyFilesystem].contains(&error.kind());
        let why = if refused {
            "not permitted: set it from outside, or run as root with a writable /proc/sys"
        } else if error.kind() == ErrorKind::NotFound {
            "no such interface in this network namespace"
        } else {
            "the kernel refused it"
        };
        anyhow!(error).context(format!("failed to write {value} to {}: {why}", path.display()))
    })
}

/// A name that can't lead out of the directory (netdevice(7): no slash, no white space, at most 15 bytes).
fn is_interface_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() < libc::IFNAMSIZ
        && name != "."
        && name != ".."
        && !name.bytes().any(|b| b == b'/' || b.is_ascii_whitespace() || b == 0)
}

/// Runs `work` with a netlink connection that lives as long as it.
async fn with_netlink<T>(work: impl AsyncFnOnce(Handle) -> Result<T>) -> Result<T> {
    let (connection, handle, _messages) = rtnetlink::new_connection().context("failed to open a netlink socket")?;
    // It ends by itself when the handle is dropped.
    drop(tokio::spawn(connection));
    work(handle).await
}

async fn read_interface(handle: &Handle, name: &str) -> Result<Interface> {
    let link = link(handle.link().get().match_name(name.to_owned())).await?;
    let (mut mac, mut mtu, mut controller) = ([0; 6], 0, None);
    for attribute in &link.attributes {
        if let LinkAttribute::Address(bytes) = attribute {
            mac = bytes.as_slice().try_into().ok().context("it has no Ethernet address")?;
        } else if let LinkAttribute::Mtu(value) = attribute {
            mtu = *value;
        } else if let LinkAttribute::Controller(index) = attribute {
            controller = Some(*index);
        }
    }
    let index = link.header.index;
    let mut interface =
        Interface { name: name.to_owned(), index, mac, mtu, addresses: addresses(handle, index).await?, upper: None };
    if let Some(index) = controller
        && interface.addresses.iter().all(InterfaceAddress::is_link_local)
    {
        let upper = link_name(&link_by_index(handle, index).await?)?;
        interface.addresses = addresses(handle, index).await?;
        interface.upper = Some(Upper { name: upper, index });
    }
    Ok(interface)
}

async fn link(request: LinkGetRequest) -> Result<LinkMessage> {
    request.execute().try_next().await.map_err(netlink_error)?.context("there is no such interface")
}

async fn link_by_index(handle: &Handle, index: u32) -> Result<LinkMessage> {
    link(handle.link().get().match_index(index)).await.context("failed to read what it is part of")
}

fn link_name(link: &LinkMessage) -> Result<String> {
    let name = |attribute: &LinkAttribute| {
        if let LinkAttribute::IfName(name) = attribute { Some(name.clone()) } else { None }
    };
    link.attributes.iter().find_map(name).context("the kernel gave an interface no name")
}

async fn addresses(handle: &Handle, index: u32) -> Result<Vec<InterfaceAddress>> {
    let request = handle.address().get().set_link_index_filter(index);
    let messages: Vec<AddressMessage> = request.execute().try_collect().await.map_err(netlink_error)?;
    Ok(messages.iter().filter_map(address_of).collect())
}

fn address_of(message: &AddressMessage) -> Option<InterfaceAddress> {
    let prefix_length = message.header.prefix_len;
    let mut address = None;
    for attribute in &message.attributes {
        // On point-to-point links the plain address is the peer's.
        if let AddressAttribute::Local(local) = attribute {
            return Some(InterfaceAddress { address: *local, prefix_length });
        }
        if let AddressAttribute::Address(plain) = attribute {
            address = Some(*plain);
        }
    }
    address.map(|address| InterfaceAddress { address, prefix_length })
}

/// Length of the prefix that holds one address only.
fn host_prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// True when it was added, false when it was there.
async fn add_vip(handle: &Handle, index: u32, vip: IpAddr) -> Result<bool> {
    let mut request = handle.address().add(index, vip, host_prefix(vip));
    request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
    request.message_mut().header.scope = AddressScope::Universe;
    match request.execute().await {
        Ok(()) => Ok(true),
        Err(NetlinkError::NetlinkError(message)) if message.raw_code() == -libc::EEXIST => Ok(false),
        Err(error) => Err(netlink_error(error).context(format!("failed to add {vip}"))),
    }
}

/// The kernel's errors as the operating system says them; the crate's own wording has their number only.
fn netlink_error(error: NetlinkError) -> anyhow::Error {
    if let NetlinkError::NetlinkError(message) = &error {
        return anyhow!(message.to_io());
    }
    anyhow!(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{in_network_namespace, ip};

    fn vips() -> Vec<IpAddr> {
        vec!["10.77.0.100".parse().unwrap(), "fd77::100".parse().unwrap()]
    }

    #[test]
    fn interface_facts_are_read() {
        in_network_namespace("interface_facts_are_read", async || {
            ip("link add va address 02:00:00:00:00:0a mtu 1400 type veth peer name vb");
            ip("address add 10.77.0.11/24 dev va");
            ip("address add fd77::11/64 dev va nodad");
            let facts = interface("va").await.unwrap();
            assert_eq!((facts.mac, facts.mtu), ([2, 0, 0, 0, 0, 10], 1400));
            let address =
                |text: &str, prefix_length| InterfaceAddress { address: text.parse().unwrap(), prefix_length };
            assert_eq!(facts.addresses, [address("10.77.0.11", 24), address("fd77::11", 64)]);
            let error = format!("{:#}", interface("nope").await.unwrap_err());
            assert!(error.contains("\"nope\""), "{error}");
        });
    }

    #[test]
    fn a_port_has_the_addresses_of_what_it_is_part_of() {
        in_network_namespace("a_port_has_the_addresses_of_what_it_is_part_of", async || {
            ip("link add br0 type bridge");
            ip("address add 10.77.0.11/24 dev br0");
            ip("link add va address 02:00:00:00:00:0a type veth peer name vb");
            ip("link set va master br0");
            let (bridge, port) = (interface("br0").await.unwrap(), interface("va").await.unwrap());
            assert_eq!((&port.addresses, port.mac), (&bridge.addresses, [2, 0, 0, 0, 0, 10]));
            assert_eq!(port.upper, Some(Upper { name: "br0".into(), index: bridge.index }));
            assert_eq!((port.routed(), bridge.routed()), (bridge.index, bridge.index));
            ip("address add 10.78.0.11/24 dev va");
            let port = interface("va").await.unwrap();
            assert_eq!((port.upper, port.addresses.len()), (None, 1), "it has its own");
        });
    }

    #[test]
    fn vips_are_added_once_and_bindable_at_once() {
        in_network_namespace("vips_are_added_once_and_bindable_at_once", async || {
            ip("link set lo up");
            assert_eq!(ensure_vips(&vips()).await.unwrap(), vips());
            assert_eq!(ensure_vips(&vips()).await.unwrap(), [] as [IpAddr; 0]);
            let on_loopback = interface("lo").await.unwrap().addresses;
            for vip in vips() {
                let prefix_length = if vip.is_ipv4() { 32 } else { 128 };
                assert!(on_loopback.contains(&InterfaceAddress { address: vip, prefix_length }), "{on_loopback:?}");
                std::net::TcpListener::bind((vip, 25)).unwrap();
            }
            for _again in 0..2 {
                remove_vips(&vips()).await.unwrap();
                std::net::TcpListener::bind((vips()[0], 25)).unwrap_err();
            }
            assert_eq!(ensure_vips(&vips()).await.unwrap(), vips());
        });
    }

    #[test]
    fn arp_is_restricted_and_refusals_are_told() {
        in_network_namespace("arp_is_restricted_and_refusals_are_told", async || {
            ip("link add va type veth peer name vb");
            restrict_arp("va").unwrap();
            let read = |setting| std::fs::read_to_string(format!("{SYSCTL_IPV4_CONF}/va/{setting}")).unwrap();
            assert_eq!((read("arp_ignore").trim(), read("arp_announce").trim()), ("1", "2"));
            let error = format!("{:#}", restrict_arp("nope").unwrap_err());
            assert!(error.contains("no such interface"), "{error}");
            restrict_arp("../conf/va").unwrap_err();
        });
    }

    #[test]
    fn only_a_strict_reverse_path_filter_is_loosened() {
        in_network_namespace("only_a_strict_reverse_path_filter_is_loosened", async || {
            ip("link add va type veth peer name vb");
            let path = |of: &str| format!("{SYSCTL_IPV4_CONF}/{of}/rp_filter");
            for (all, own, expected) in
                [("0", "0", "0"), ("0", "1", "2"), ("1", "0", "2"), ("2", "1", "1"), ("1", "2", "2")]
            {
                std::fs::write(path("all"), all).unwrap();
                std::fs::write(path("va"), own).unwrap();
                loosen_reverse_path("va").unwrap();
                assert_eq!(std::fs::read_to_string(path("va")).unwrap().trim(), expected, "all {all}, own {own}");
            }
            loosen_reverse_path("../conf/va").unwrap_err();
        });
    }
}
