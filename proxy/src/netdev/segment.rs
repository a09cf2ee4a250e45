//! The interfaces that packets are steered on. What comes in by one of them is sent on by the same one, to the one
//! Ethernet address that each member has for it: so all of them must be on one segment.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};

use super::{Interface, InterfaceAddress, MacAddress, interface, loosen_reverse_path, restrict_arp};

/// Interfaces on one segment, at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    interfaces: Vec<Interface>,
}

impl Segment {
    /// Reads the facts about the interfaces of these names.
    ///
    /// # Errors
    /// One of them is not there, or they cannot be steered on together.
    pub async fn read(names: &[String]) -> Result<Self> {
        let mut interfaces = vec![];
        for name in names {
            interfaces.push(interface(name).await?);
        }
        Self::new(interfaces)
    }

    fn new(interfaces: Vec<Interface>) -> Result<Self> {
        ensure!(!interfaces.is_empty(), "no interface is named");
        for (n, interface) in interfaces.iter().enumerate() {
            if let Some(upper) = &interface.upper {
                let both = interfaces.iter().any(|other| other.index == upper.index);
                ensure!(!both, "{} is part of {}: name one or the other", interface.name, upper.name);
            }
            if let Some(other) = interfaces[..n].iter().find(|other| apart(other, interface)) {
                anyhow::bail!(
                    "{} and {} have addresses of different networks; packets leave by the interface that they came in \
                     by, so all interfaces must be on one segment",
                    other.name,
                    interface.name
                );
            }
        }
        Ok(Self { interfaces })
    }

    #[must_use]
    pub fn interfaces(&self) -> &[Interface] {
        &self.interfaces
    }

    /// Largest IP packet in octets that all of them take.
    #[must_use]
    pub fn mtu(&self) -> u32 {
        self.interfaces.iter().map(|interface| interface.mtu).min().unwrap_or_default()
    }

    /// The addresses that this machine has on the segment.
    #[must_use]
    pub fn networks(&self) -> Vec<InterfaceAddress> {
        let mut networks: Vec<InterfaceAddress> = vec![];
        for address in self.interfaces.iter().flat_map(|interface| &interface.addresses) {
            if !networks.contains(address) {
                networks.push(*address);
            }
        }
        networks
    }

    /// Those that the kernel has routes and neighbours for.
    #[must_use]
    pub fn routed(&self) -> Vec<u32> {
        let mut seen = BTreeSet::new();
        self.interfaces.iter().map(Interface::routed).filter(|index| seen.insert(*index)).collect()
    }

    /// The Ethernet addresses that packets are sent on from; the first one is the one that they are sent to.
    #[must_use]
    pub fn macs(&self) -> Vec<MacAddress> {
        let mut seen = BTreeSet::new();
        self.interfaces.iter().map(|interface| interface.mac).filter(|mac| seen.insert(*mac)).collect()
    }

    /// Where to announce addresses, and from which Ethernet address.
    #[must_use]
    pub fn voices(&self) -> Vec<(u32, MacAddress)> {
        let mut seen = BTreeSet::new();
        let voices = self.interfaces.iter().map(|interface| (interface.routed(), interface.mac));
        voices.filter(|voice| seen.insert(*voice)).collect()
    }

    /// Makes all of them answer ARP only for addresses of their own, see [`restrict_arp`], and where there are several,
    /// take packets whose answers leave by another one.
    ///
    /// # Errors
    /// /proc/sys may not be written.
    pub fn prepare(&self) -> Result<()> {
        let uppers = self.interfaces.iter().filter_map(|interface| interface.upper.as_ref().map(|upper| &upper.name));
        for name in self.interfaces.iter().map(|interface| &interface.name).chain(uppers) {
            restrict_arp(name)?;
            if self.interfaces.len() > 1 {
                loosen_reverse_path(name)?;
            }
        }
        Ok(())
    }
}

/// True if the addresses tell that two interfaces are on different segments. Those without addresses tell nothing.
fn apart(a: &Interface, b: &Interface) -> bool {
    [true, false].into_iter().any(|v4| {
        let of = |interface: &Interface| -> Vec<InterfaceAddress> {
            let addresses = interface.addresses.iter().filter(|a| a.address.is_ipv4() == v4 && !a.is_link_local());
            addresses.copied().collect()
        };
        let (a, b) = (of(a), of(b));
        let together = a.iter().any(|a| b.iter().any(|b| a.covers(b.address) || b.covers(a.address)));
        !a.is_empty() && !b.is_empty() && !together
    })
}

#[cfg(test)]
mod tests {
    use super::{super::Upper, *};

    fn address(text: &str, prefix_length: u8) -> InterfaceAddress {
        InterfaceAddress { address: text.parse().unwrap(), prefix_length }
    }

    fn eth(n: u8, addresses: &[InterfaceAddress]) -> Interface {
        Interface {
            name: format!("eth{n}"),
            index: u32::from(n) + 10,
            mac: [2, 0, 0, 0, 0, n],
            mtu: 1_500 + u32::from(n),
            addresses: addresses.to_vec(),
            upper: None,
        }
    }

    #[test]
    fn two_interfaces_on_one_segment_are_taken_together() {
        let (own, other) = (address("10.77.0.11", 24), address("10.77.0.12", 24));
        let segment = Segment::new(vec![eth(1, &[own]), eth(0, &[own, other]), eth(2, &[])]).unwrap();
        assert_eq!(segment.mtu(), 1_500);
        assert_eq!(segment.networks(), [own, other]);
        assert_eq!(segment.macs().iter().map(|mac| mac[5]).collect::<Vec<_>>(), [1, 0, 2], "in the operator's order");
        assert_eq!(segment.routed(), [11, 10, 12]);
        assert_eq!(segment.voices().len(), 3);
    }

    #[test]
    fn different_segments_are_refused_as_far_as_addresses_tell() {
        let near = [address("10.77.0.11", 24), address("fe80::1", 64), address("fd77::11", 64)];
        for (other, together) in [
            (vec![address("10.78.0.11", 24)], false),
            (vec![address("10.77.0.12", 24), address("fd78::11", 64)], false),
            (vec![address("fd77::12", 64)], true),
            (vec![address("10.77.9.12", 16)], true),
            (vec![address("fe80::2", 64)], true),
            (vec![], true),
        ] {
            let outcome = Segment::new(vec![eth(0, &near), eth(1, &other)]);
            assert_eq!(outcome.is_ok(), together, "{other:?}");
            if let Err(error) = outcome {
                assert!(error.to_string().contains("eth0 and eth1"), "{error}");
            }
        }
        Segment::new(vec![]).unwrap_err();
    }

    #[test]
    fn parts_of_a_bond_speak_by_it() {
        let bond = Upper { name: "bond0".into(), index: 5 };
        let part = |n| Interface { upper: Some(bond.clone()), mac: [2; 6], ..eth(n, &[address("10.77.0.11", 24)]) };
        let segment = Segment::new(vec![part(0), part(1)]).unwrap();
        assert_eq!((segment.routed(), segment.voices()), (vec![5], vec![(5, [2; 6])]));
        assert_eq!((segment.macs(), segment.networks().len()), (vec![[2; 6]], 1));
        let whole = Interface { index: 5, name: "bond0".into(), ..eth(0, &[]) };
        let error = Segment::new(vec![part(0), whole]).unwrap_err();
        assert!(error.to_string().contains("eth0 is part of bond0"), "{error}");
    }
}
