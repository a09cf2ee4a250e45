//! The deny list as the XDP program reads it: a trie for each address family, and before them a filter of bits that
//! answers for nearly all packets.
//!
//! A prefix is denied from the moment that it is in the trie and all of its bits are set. So bits are set before the
//! prefix enters the trie, and cleared after it has left it: a prefix is in force or it is not, and no other prefix that
//! needs the same bits is ever without them.

use std::io::ErrorKind;
use std::net::IpAddr;
use std::sync::atomic::{Ordering, fence};

use anyhow::{Context, Result, anyhow, bail};
use aya::{
    Ebpf, Pod,
    maps::{
        Map, MapData, MapError,
        lpm_trie::{Key, LpmTrie},
    },
};
use proxy_common::maps::{self, DENY_ANY, DENY_V6_WIDE, DENY_WORDS, FilterBit, MAX_DENIED};
use proxy_core::abuse::{BitChange, Change, Filter, Prefix};

use super::mapped::Mapped;

/// Flags of `Control` that [`DenyMaps::flags`] speaks of.
pub const FLAGS: u32 = DENY_ANY | DENY_V6_WIDE;

const WORDS: usize = DENY_WORDS as usize;

type Trie<K> = LpmTrie<MapData, K, u32>;

/// The maps. Whoever has them is the only one that writes them.
pub struct DenyMaps {
    v4: Trie<[u8; 4]>,
    v6: Trie<[u8; 16]>,
    words: Mapped<u64>,
    filter: Filter,
}

impl DenyMaps {
    /// Takes the maps out of the program's, with what an earlier daemon left in them; returns that too.
    ///
    /// # Errors
    /// A map is missing or cannot be read.
    pub fn take(ebpf: &mut Ebpf) -> Result<(Self, Vec<Prefix>)> {
        let mut take = |name| ebpf.take_map(name).with_context(|| format!("the program has no map {name}"));
        let (v4, v6) = (take(maps::DENY_V4)?, take(maps::DENY_V6)?);
        let Map::Array(filter) = take(maps::DENY_FILTER)? else { bail!("{} is no array", maps::DENY_FILTER) };
        Self::open(v4.try_into()?, v6.try_into()?, &filter)
    }

    fn open(v4: Trie<[u8; 4]>, v6: Trie<[u8; 16]>, filter: &MapData) -> Result<(Self, Vec<Prefix>)> {
        let words = Mapped::of(filter, maps::DENY_FILTER, WORDS)?;
        let mut maps = Self { v4, v6, words, filter: Filter::default() };
        let present = maps.present()?;
        maps.rebuild_filter(&present);
        Ok((maps, present))
    }

    /// What is in the tries. Keys that no version of ours writes are removed, or nobody would ever remove them.
    fn present(&mut self) -> Result<Vec<Prefix>> {
        let mut prefixes = vec![];
        for key in keys(&self.v4)? {
            match prefix(key.prefix_len(), IpAddr::from(key.data())) {
                Some(prefix) => prefixes.push(prefix),
                None => _ = remove(&mut self.v4, &key)?,
            }
        }
        for key in keys(&self.v6)? {
            match prefix(key.prefix_len(), IpAddr::from(key.data())) {
                Some(prefix) if prefix.address().is_ipv6() => prefixes.push(prefix),
                _ => _ = remove(&mut self.v6, &key)?,
            }
        }
        Ok(prefixes)
    }

    /// Makes the filter what the tries need: a daemon that died between filter and trie left bits that nobody needs.
    fn rebuild_filter(&mut self, present: &[Prefix]) {
        let mut wanted = vec![0_u64; WORDS];
        for prefix in present {
            self.filter.add(*prefix, |BitChange { bit, .. }| wanted[bit.word as usize] |= bit.mask);
        }
        for (index, word) in wanted.into_iter().enumerate() {
            if self.words.read(index) != word {
                self.words.write(index, word);
            }
        }
    }

    /// Puts changes in force, in their order. One that fails does not keep the others from it.
    ///
    /// # Errors
    /// The first that failed, and how many did.
    pub fn apply(&mut self, changes: &[Change]) -> Result<()> {
        let failures = changes.iter().filter_map(|change| self.apply_one(*change).err());
        let failures: Vec<anyhow::Error> = failures.collect();
        let count = failures.len();
        match failures.into_iter().next() {
            Some(error) if count > 1 => {
                Err(error.context(format!("{count} changes of the deny list failed; the first")))
            }
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn apply_one(&mut self, change: Change) -> Result<()> {
        match change {
            Change::Deny(prefix) => self.deny(prefix),
            Change::Allow(prefix) => self.allow(prefix),
        }
    }

    fn deny(&mut self, prefix: Prefix) -> Result<()> {
        self.filter.add(prefix, |change| self.words.change(change));
        // Whoever finds the prefix must not have looked for its bits in vain a moment before.
        fence(Ordering::SeqCst);
        let inserted = match prefix.address() {
            IpAddr::V4(v4) => self.v4.insert(&Key::new(prefix.bits().into(), v4.octets()), 1, 0),
            IpAddr::V6(v6) => self.v6.insert(&Key::new(prefix.bits().into(), v6.octets()), 1, 0),
        };
        inserted.map_err(|error| {
            self.filter.remove(prefix, |change| self.words.change(change));
            explain_insert(prefix, error)
        })
    }

    fn allow(&mut self, prefix: Prefix) -> Result<()> {
        let removed = match prefix.address() {
            IpAddr::V4(v4) => remove(&mut self.v4, &Key::new(prefix.bits().into(), v4.octets())),
            IpAddr::V6(v6) => remove(&mut self.v6, &Key::new(prefix.bits().into(), v6.octets())),
        };
        // It is not there if it could not be inserted; then its bits are not counted either.
        if removed.with_context(|| format!("failed to take {prefix} off the NIC's deny list"))? {
            fence(Ordering::SeqCst);
            self.filter.remove(prefix, |change| self.words.change(change));
        }
        Ok(())
    }

    /// Which of [`FLAGS`] belong into `Control` now: to be written after [`DenyMaps::apply`].
    #[must_use]
    pub fn flags(&self) -> u32 {
        let any = if self.filter.any() { DENY_ANY } else { 0 };
        any | if self.filter.wide() { DENY_V6_WIDE } else { 0 }
    }
}

fn keys<K: Pod>(trie: &Trie<K>) -> Result<Vec<Key<K>>> {
    trie.keys().collect::<Result<_, _>>().context("failed to read what an earlier daemon denied")
}

fn prefix(bits: u32, address: IpAddr) -> Option<Prefix> {
    Prefix::new(address, u8::try_from(bits).ok()?).ok()
}

/// True if it was there.
fn remove<K: Pod>(trie: &mut Trie<K>, key: &Key<K>) -> Result<bool, MapError> {
    match trie.remove(key) {
        Ok(()) => Ok(true),
        Err(MapError::SyscallError(error)) if error.io_error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn explain_insert(prefix: Prefix, error: MapError) -> anyhow::Error {
    let errno = if let MapError::SyscallError(error) = &error { error.io_error.raw_os_error() } else { None };
    match errno {
        Some(libc::ENOSPC) => anyhow!("{prefix} is not denied: the kernel's table is full ({MAX_DENIED} prefixes)"),
        Some(libc::ENOMEM) => anyhow!("{prefix} is not denied: the kernel has no memory for it"),
        _ => anyhow!(error).context(format!("failed to deny {prefix} at the NIC")),
    }
}

impl Mapped<u64> {
    fn change(&self, BitChange { bit: FilterBit { word, mask }, set }: BitChange) {
        let former = self.read(word as usize);
        self.write(word as usize, if set { former | mask } else { former & !mask });
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use aya::maps::{Array, IterableMap};
    use nix::time::{ClockId, clock_gettime};
    use proxy_common::maps::{MMAPABLE, NO_PREALLOC};

    use super::*;

    /// Real maps, of any size, without a program.
    struct Kernel {
        maps: DenyMaps,
        filter: Array<MapData, u64>,
    }

    impl Kernel {
        fn new(entries: u32) -> Option<Self> {
            let Ok(filter) = Array::create(DENY_WORDS, MMAPABLE) else {
                eprintln!("skipped: needs CAP_BPF for maps");
                return None;
            };
            let (v4, v6) = (Trie::create(entries, NO_PREALLOC).unwrap(), Trie::create(entries, NO_PREALLOC).unwrap());
            let (maps, present) = DenyMaps::open(v4, v6, filter.map()).unwrap();
            assert!(present.is_empty());
            Some(Self { maps, filter })
        }

        /// As another process sees it.
        fn is_set(&self, bit: FilterBit) -> bool {
            self.filter.get(&bit.word, 0).unwrap() & bit.mask != 0
        }

        fn denies(&self, address: &str) -> bool {
            match address.parse().unwrap() {
                IpAddr::V4(v4) => {
                    self.is_set(FilterBit::v4(v4.octets())) && self.maps.v4.get(&Key::new(32, v4.octets()), 0).is_ok()
                }
                IpAddr::V6(v6) => self.maps.v6.get(&Key::new(128, v6.octets()), 0).is_ok(),
            }
        }
    }

    fn deny(text: &str) -> Change {
        Change::Deny(text.parse().unwrap())
    }

    fn allow(text: &str) -> Change {
        Change::Allow(text.parse().unwrap())
    }

    #[test]
    fn what_is_denied_is_found_and_what_is_allowed_is_not() {
        let Some(mut kernel) = Kernel::new(64) else { return };
        kernel
            .maps
            .apply(&[deny("192.0.2.0/25"), deny("192.0.2.200"), deny("2001:db8::/32"), deny("10.0.0.0/8")])
            .unwrap();
        let all = ["192.0.2.7", "192.0.2.200", "10.200.3.4", "2001:db8::1"];
        assert!(all.iter().all(|address| kernel.denies(address)));
        assert!(!kernel.denies("192.0.2.201") && !kernel.denies("2001:db9::1") && !kernel.denies("11.0.0.0"));
        assert_eq!(kernel.maps.flags(), DENY_ANY);
        kernel.maps.apply(&[deny("2001::/16"), allow("192.0.2.0/25"), allow("192.0.2.0/24")]).unwrap();
        assert_eq!(kernel.maps.flags(), DENY_ANY | DENY_V6_WIDE);
        assert!(kernel.denies("192.0.2.200"), "its bit is still needed");
        assert!(!kernel.denies("192.0.2.7"));
        let rest = [allow("192.0.2.200"), allow("2001::/16"), allow("2001:db8::/32"), allow("10.0.0.0/8")];
        kernel.maps.apply(&rest).unwrap();
        assert_eq!(kernel.maps.flags(), 0);
        assert!((0..DENY_WORDS).all(|word| kernel.filter.get(&word, 0).unwrap() == 0));
    }

    #[test]
    fn a_full_map_is_told_and_the_others_are_denied() {
        let Some(mut kernel) = Kernel::new(2) else { return };
        let error =
            kernel.maps.apply(&[deny("192.0.2.1"), deny("192.0.2.2"), deny("192.0.3.1"), deny("::1")]).unwrap_err();
        assert!(error.to_string().contains("192.0.3.1 is not denied: the kernel's table is full"), "{error}");
        assert!(kernel.denies("192.0.2.2") && kernel.denies("::1") && !kernel.denies("192.0.3.1"));
        assert!(!kernel.is_set(FilterBit::v4([192, 0, 3, 1])), "no bit without a prefix");
        kernel.maps.apply(&[allow("192.0.3.1"), allow("192.0.2.1")]).unwrap();
        kernel.maps.apply(&[deny("192.0.3.1")]).unwrap();
        assert!(kernel.denies("192.0.3.1"));
        let error = kernel.maps.apply(&[deny("192.0.4.1"), deny("192.0.5.1")]).unwrap_err();
        assert_eq!(error.to_string(), "2 changes of the deny list failed; the first");
    }

    #[test]
    fn the_next_daemon_takes_over_what_is_there() {
        let Some(mut kernel) = Kernel::new(64) else { return };
        kernel.maps.apply(&[deny("192.0.2.0/24"), deny("2001:db8::/48")]).unwrap();
        // What a crash may leave behind: a bit without a prefix, a prefix that nobody writes, one without its bit.
        kernel.maps.words.change(BitChange { bit: FilterBit::v4([1, 2, 3, 4]), set: true });
        kernel.maps.v4.insert(&Key::new(4, [16, 0, 0, 0]), 1, 0).unwrap();
        kernel.maps.v4.insert(&Key::new(32, [9, 9, 9, 9]), 1, 0).unwrap();
        let Kernel { maps, filter } = kernel;
        let (maps, present) = DenyMaps::open(maps.v4, maps.v6, filter.map()).unwrap();
        let kernel = Kernel { maps, filter };
        let present: BTreeSet<String> = present.iter().map(ToString::to_string).collect();
        assert_eq!(present, BTreeSet::from(["192.0.2.0/24", "2001:db8::/48", "9.9.9.9"].map(str::to_owned)));
        assert!(kernel.denies("9.9.9.9") && kernel.denies("192.0.2.1") && !kernel.denies("16.0.0.1"));
        assert!(!kernel.is_set(FilterBit::v4([1, 2, 3, 4])));
        assert_eq!(kernel.maps.flags(), DENY_ANY);
    }

    /// Time that this thread was computing: a machine with more to do is not our fault.
    fn computing() -> Duration {
        clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap().into()
    }

    #[test]
    fn a_hundred_thousand_prefixes_take_less_than_a_second() {
        let Some(mut kernel) = Kernel::new(MAX_DENIED) else { return };
        let host = |n: u32| Prefix::host(Ipv4Addr::from_bits(n.wrapping_mul(0x9e37_79b1) | 0x0100_0000).into());
        let prefixes: BTreeSet<Prefix> = (0..100_000).map(host).collect();
        let (denied, allowed): (Vec<_>, Vec<_>) =
            prefixes.iter().map(|prefix| (Change::Deny(*prefix), Change::Allow(*prefix))).unzip();
        let begun = computing();
        kernel.maps.apply(&denied).unwrap();
        let deny_time = computing() - begun;
        kernel.maps.apply(&allowed).unwrap();
        let allow_time = computing() - begun - deny_time;
        println!("{} prefixes denied in {deny_time:?}, allowed in {allow_time:?}", prefixes.len());
        assert!(deny_time < Duration::from_secs(1) && allow_time < Duration::from_secs(1));
        assert_eq!(kernel.maps.flags(), 0);
    }
}
