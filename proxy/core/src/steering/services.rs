//! Where each service stands in the program's table: two places are possible for each (cuckoo hashing, Pagh and Rodler
//! 2001), so that a packet costs one look or two, never a search.

use std::collections::BTreeSet;

use proxy_common::{
    hash::v6_words,
    maps::{AddressKey, MAX_SERVICES, SERVICE_SLOTS, Service},
};

/// More pairs of virtual address and port than the program's table holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} pairs of virtual address and port, but the steering program holds {MAX_SERVICES}")]
pub struct TooManyServices(usize);

/// The program's table of services: `SERVICE_SLOTS` slots. Ports are in host order.
///
/// # Errors
/// [`TooManyServices`].
pub fn place(services: &BTreeSet<(AddressKey, u16)>) -> Result<Vec<Service>, TooManyServices> {
    let too_many = TooManyServices(services.len());
    if services.len() > MAX_SERVICES as usize {
        return Err(too_many);
    }
    let mut slots = vec![Service::default(); SERVICE_SLOTS as usize];
    for (address, port) in services {
        insert(&mut slots, Service::new(v6_words(*address), port.to_be_bytes())).map_err(|Full| too_many)?;
    }
    Ok(slots)
}

struct Full;

/// Puts a service into one of its places; whoever stood there moves to its other one.
fn insert(slots: &mut [Service], service: Service) -> Result<(), Full> {
    let mut homeless = service;
    let mut place = Service::slots(homeless.address, homeless.port)[0];
    for _ in 0..slots.len() {
        let slot = slots.get_mut(place as usize).ok_or(Full)?;
        let evicted = std::mem::replace(slot, homeless);
        if evicted.used == 0 {
            return Ok(());
        }
        let [one, other] = Service::slots(evicted.address, evicted.port);
        place = if place == one { other } else { one };
        homeless = evicted;
    }
    Err(Full)
}

#[cfg(test)]
mod tests {
    use proxy_common::maps::mapped_v4;

    use super::*;

    fn many(addresses: u32, ports: u16) -> BTreeSet<(AddressKey, u16)> {
        let address = |n: u32| mapped_v4((0x0a4d_0000 + n).to_be_bytes());
        (0..addresses).flat_map(|n| (0..ports).map(move |port| (address(n), 20 + port))).collect()
    }

    #[test]
    fn every_service_is_in_one_of_its_places() {
        for services in [many(1, 5), many(4, 1_024), many(512, 8)] {
            let slots = place(&services).unwrap();
            for (address, port) in &services {
                let wanted = Service::new(v6_words(*address), port.to_be_bytes());
                let found = Service::slots(wanted.address, wanted.port).map(|slot| slots[slot as usize] == wanted);
                assert!(found.contains(&true), "{wanted:?}");
            }
            assert_eq!(slots.iter().filter(|s| s.used != 0).count(), services.len());
        }
    }

    #[test]
    fn too_many_are_refused() {
        assert_eq!(place(&many(513, 8)).unwrap_err(), TooManyServices(4_104));
    }
}
