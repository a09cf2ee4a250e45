//! Which bits of `DENY_FILTER` the denied prefixes need.
//!
//! The filter only says where to look closer: a bit is set while any prefix needs it.

use std::collections::HashMap;
use std::net::IpAddr;

use proxy_common::hash::v6_words;
use proxy_common::maps::{DENY_V4_FILTER, DENY_V6_COARSE, DENY_V6_FINE, FilterBit};

use super::prefix::Prefix;

/// A bit that changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BitChange {
    pub bit: FilterBit,
    pub set: bool,
}

/// How many prefixes need each bit. The caller adds no prefix twice and removes none that it has not added.
#[derive(Debug, Default)]
pub struct Filter {
    /// By number of the bit; those that nobody needs are not in it.
    needed: HashMap<u32, u32>,
    /// IPv6 prefixes that are too short for any bit.
    wide: usize,
    prefixes: usize,
}

impl Filter {
    /// Adds a prefix; `change` is told of every bit that must be set now.
    pub fn add(&mut self, prefix: Prefix, mut change: impl FnMut(BitChange)) {
        self.prefixes += 1;
        self.wide += usize::from(is_wide(prefix));
        for_each_bit(prefix, |bit| {
            let needed = self.needed.entry(number(bit)).or_default();
            *needed += 1;
            if *needed == 1 {
                change(BitChange { bit, set: true });
            }
        });
    }

    /// Removes a prefix; `change` is told of every bit that nobody needs any more.
    pub fn remove(&mut self, prefix: Prefix, mut change: impl FnMut(BitChange)) {
        self.prefixes = self.prefixes.saturating_sub(1);
        self.wide = self.wide.saturating_sub(usize::from(is_wide(prefix)));
        for_each_bit(prefix, |bit| {
            let number = number(bit);
            let Some(needed) = self.needed.get_mut(&number) else { return };
            *needed -= 1;
            if *needed == 0 {
                self.needed.remove(&number);
                change(BitChange { bit, set: false });
            }
        });
    }

    /// Whether anything is denied.
    #[must_use]
    pub fn any(&self) -> bool {
        self.prefixes > 0
    }

    /// Whether an IPv6 prefix is denied that the filter cannot tell: every IPv6 source must be looked up.
    #[must_use]
    pub fn wide(&self) -> bool {
        self.wide > 0
    }

    /// How many bits are set.
    #[must_use]
    pub fn bits(&self) -> usize {
        self.needed.len()
    }
}

fn number(bit: FilterBit) -> u32 {
    bit.word * u64::BITS + bit.mask.trailing_zeros()
}

fn is_wide(prefix: Prefix) -> bool {
    prefix.address().is_ipv6() && u32::from(prefix.bits()) < DENY_V6_COARSE
}

/// The bits that a prefix needs: of IPv4, one for each /24 that it touches, and one for each /16; of IPv6, one, or none if it is wide.
fn for_each_bit(prefix: Prefix, mut f: impl FnMut(FilterBit)) {
    let bits = u32::from(prefix.bits());
    match prefix.address() {
        IpAddr::V4(v4) => {
            let (first, shift) = (v4.to_bits(), 32 - DENY_V4_FILTER);
            let count = 1 << DENY_V4_FILTER.saturating_sub(bits);
            (0..count).for_each(|i: u32| f(FilterBit::v4((first + (i << shift)).to_be_bytes())));
            let count = 1 << 16_u32.saturating_sub(bits);
            (0..count).for_each(|i: u32| f(FilterBit::v4_coarse((first + (i << 16)).to_be_bytes())));
        }
        IpAddr::V6(v6) => {
            let [word, _] = v6_words(v6.octets());
            if bits >= DENY_V6_FINE {
                f(FilterBit::v6_fine(word));
            } else if bits >= DENY_V6_COARSE {
                f(FilterBit::v6_coarse(word));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proxy_common::maps::{DENY_V4_WORDS, DENY_WORDS};
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    /// The program's view: the filter's words and the tries.
    #[derive(Default)]
    struct Program {
        words: BTreeMap<u32, u64>,
        trie: BTreeSet<Prefix>,
        filter: Filter,
    }

    impl Program {
        fn apply(words: &mut BTreeMap<u32, u64>, change: BitChange) {
            let word = words.entry(change.bit.word).or_default();
            assert_eq!(*word & change.bit.mask != 0, !change.set, "only real changes are told");
            *word ^= change.bit.mask;
        }

        fn add(&mut self, prefix: Prefix) {
            let words = &mut self.words;
            self.filter.add(prefix, |change| Self::apply(words, change));
            self.trie.insert(prefix);
        }

        fn remove(&mut self, prefix: Prefix) {
            self.trie.remove(&prefix);
            let words = &mut self.words;
            self.filter.remove(prefix, |change| Self::apply(words, change));
        }

        fn is_set(&self, bit: FilterBit) -> bool {
            self.words.get(&bit.word).is_some_and(|word| word & bit.mask != 0)
        }

        /// As `proxy-ebpf` decides.
        fn denies(&self, source: IpAddr) -> bool {
            let look = self.filter.any()
                && match source {
                    IpAddr::V4(v4) => {
                        self.is_set(FilterBit::v4_coarse(v4.octets())) && self.is_set(FilterBit::v4(v4.octets()))
                    }
                    IpAddr::V6(v6) => {
                        let [word, _] = v6_words(v6.octets());
                        self.filter.wide()
                            || self.is_set(FilterBit::v6_fine(word))
                            || self.is_set(FilterBit::v6_coarse(word))
                    }
                };
            look && Prefix::covering(source).any(|prefix| self.trie.contains(&prefix))
        }
    }

    fn random_address(rng: &mut StdRng) -> IpAddr {
        // Few distinct bits, so that prefixes overlap and addresses meet them.
        if rng.random() {
            Ipv4Addr::from_bits(rng.random::<u32>() & 0x0301_0103).into()
        } else {
            Ipv6Addr::from_bits(rng.random::<u128>() & 0x2001_0003_0001_0001_0003_0000_0000_0001).into()
        }
    }

    fn random_prefix(rng: &mut StdRng) -> Prefix {
        let lengths = if rng.random_range(0..10) == 0 { 8..=128 } else { 16..=64 };
        loop {
            let (address, bits) = (random_address(rng), rng.random_range(lengths.clone()));
            match Prefix::new(address, bits) {
                Ok(prefix) => return prefix,
                Err(super::super::prefix::PrefixError::HostBits { canonical }) => return canonical,
                Err(_) => {}
            }
        }
    }

    #[test]
    fn filter_and_trie_deny_exactly_what_the_list_denies() {
        for seed in 0..20 {
            let mut rng = StdRng::seed_from_u64(seed);
            let (mut program, mut list) = (Program::default(), Vec::<Prefix>::new());
            for _ in 0..150 {
                if rng.random_range(0..3) > 0 || list.is_empty() {
                    let prefix = random_prefix(&mut rng);
                    if !list.contains(&prefix) {
                        list.push(prefix);
                        program.add(prefix);
                    }
                } else {
                    program.remove(list.swap_remove(rng.random_range(0..list.len())));
                }
                for _ in 0..20 {
                    let address = random_address(&mut rng);
                    let naive = list.iter().any(|prefix| prefix.contains(address));
                    assert_eq!(program.denies(address), naive, "seed {seed}: {address} of {list:?}");
                }
            }
            list.drain(..).for_each(|prefix| program.remove(prefix));
            assert!(program.words.values().all(|word| *word == 0), "bits that nobody needs");
            assert!(!program.filter.any() && !program.filter.wide() && program.filter.bits() == 0);
        }
    }

    #[test]
    fn short_prefixes_set_the_bits_of_all_that_they_cover() {
        let mut filter = Filter::default();
        let mut bits = BTreeSet::new();
        filter.add("10.0.0.0/8".parse().unwrap(), |change| {
            bits.insert(number(change.bit));
        });
        let fine = bits.iter().filter(|bit| **bit / u64::BITS < DENY_V4_WORDS).count();
        assert_eq!((fine, bits.len() - fine), (65_536, 256));
        filter.add("10.1.2.0/24".parse().unwrap(), |_| panic!("set already"));
        filter.remove("10.0.0.0/8".parse().unwrap(), |change| {
            bits.remove(&number(change.bit));
        });
        let left = [FilterBit::v4([10, 1, 2, 0]), FilterBit::v4_coarse([10, 1, 2, 0])];
        assert_eq!(bits, BTreeSet::from(left.map(number)));
    }

    #[test]
    fn every_bit_is_within_the_map() {
        let mut filter = Filter::default();
        for prefix in ["255.255.255.255", "ffff:ffff:ffff::/48", "ffff:ffff::/32", "0.0.0.0", "::/48"] {
            filter.add(prefix.parse().unwrap(), |change| assert!(change.bit.word < DENY_WORDS, "{prefix}"));
        }
    }
}
