//! The XDP program, loaded, attached and kept in step with what the pool wants. aya is in this module only.
//!
//! Maps and links are pinned. When the daemon dies, the program goes on steering by its last table; the
//! next daemon takes the maps over and swaps the program inside the same links, so that no packet passes
//! unsteered. Where it cannot take the maps over (they are of another version), the old program steers on until the new
//! one has its first table.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::atomic::{Ordering, fence},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use aya::{
    Ebpf, EbpfLoader, Pod, VerifierLogLevel,
    maps::{HashMap, MapData, PerCpuArray},
    programs::{TestRun, TestRunOptions, Xdp},
};
use nix::time::{ClockId, clock_getres};
use proxy_common::{
    hash::SteeringKey,
    maps::{
        self, AddressKey, BUCKETS, Chain, Control, Counter, HALVES, Interface, MAX_MEMBERS, Member, Owner,
        SERVICE_SLOTS, SLOTS, Service, TableState, VIP_OWNED,
    },
};
use proxy_core::steering::{Plan, services};

pub use self::attach::Mode;
pub use self::deny::DenyMaps;
use self::{mapped::Mapped, peers::Peers};

mod abuse;
mod attach;
#[cfg(feature = "bench")]
pub mod bench;
pub mod deny;
mod explain;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod mapped;
mod peers;

static PROGRAM: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/autocluster-xdp"));
const PROGRAM_NAME: &str = "autocluster";
const CLOCK_NAME: &str = "clock";

/// Where and how to steer.
#[derive(Debug, Clone)]
pub struct Settings {
    /// This front end's name: several may share a BPF file system.
    pub node: String,
    pub interfaces: Vec<InterfaceSettings>,
    pub mode: Mode,
    /// A mounted BPF file system.
    pub bpffs: PathBuf,
    pub key: SteeringKey,
}

/// One interface whose packets are steered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfaceSettings {
    pub name: String,
    pub mac: [u8; 6],
    /// Largest IP packet in octets.
    pub mtu: u16,
}

/// What of `Control` the daemon sets besides table and sign of life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Network {
    /// This machine's addresses, to which other front ends encapsulate.
    pub address_v4: Option<[u8; 4]>,
    pub address_v6: Option<[u8; 16]>,
    pub encapsulation_port: u16,
    /// Largest IP packet in octets that reaches every front end.
    pub path_mtu: u32,
    /// Next hops of the default routes; zero: not known.
    pub gateway_v4: [u8; 6],
    pub gateway_v6: [u8; 6],
    /// Network and mask of the segment's addresses; of IPv6 the first half. Zero: none.
    pub on_link_v4: [[u8; 4]; 2],
    pub on_link_v6: [[u8; 8]; 2],
}

/// The loaded program and its maps.
pub struct Dataplane {
    /// One instance for each interface, all with the same maps; the first one's handles are used.
    programs: Vec<Instance>,
    settings: Settings,
    control: Mapped<Control>,
    owners: Mapped<Owner>,
    successors: Mapped<u8>,
    chains: Mapped<Chain>,
    members: Mapped<Member>,
    services: Mapped<Service>,
    clock: Mapped<u64>,
    peers: Peers,
}

struct Instance {
    ebpf: Ebpf,
    interface: String,
    attached: Option<Mode>,
}

/// Reads what the program says of exceptions.
pub type ProgramLog = aya_log::EbpfLogger<&'static dyn log::Log>;

/// What the kernel did with one packet.
#[derive(Debug, PartialEq, Eq)]
pub struct TestVerdict {
    /// XDP_PASS and the like.
    pub action: u32,
    pub packet: Vec<u8>,
}

impl Dataplane {
    /// Loads the program for every interface, taking over the maps of an earlier daemon if there are any.
    ///
    /// # Errors
    /// What is missing, and what to do about it.
    pub fn open(settings: &Settings) -> Result<Self> {
        attach::check_bpffs(&settings.bpffs)?;
        let pins = attach::maps(settings);
        let taken_over = pins.exists();
        fs::create_dir_all(&pins).with_context(|| format!("failed to create {}", pins.display()))?;
        let loaded = Self::load(&pins, settings);
        if loaded.is_err() && !taken_over {
            // Some maps were made and pinned before the kernel refused the next one.
            fs::remove_dir_all(&pins).with_context(|| format!("failed to remove {}", pins.display()))?;
        }
        loaded
    }

    /// Attaches the program to its interfaces. Where it cannot be, nothing stays behind.
    ///
    /// An interface where another version's program steers is left to it until the first table is here.
    ///
    /// # Errors
    /// What is missing, and what to do about it.
    pub fn attach(&mut self) -> Result<()> {
        let has_table = self.control.read(0).table != TableState::NONE.0;
        let result = self.attach_where(|settings, interface| has_table || !attach::is_attached(settings, interface));
        if result.is_err() {
            attach::remove_all(&self.settings, &self.interfaces())?;
        }
        result
    }

    fn attach_where(&mut self, wanted: impl Fn(&Settings, &str) -> bool) -> Result<()> {
        let settings = self.settings.clone();
        for instance in &mut self.programs {
            if instance.attached.is_none() && wanted(&settings, &instance.interface) {
                let program = program(&mut instance.ebpf, PROGRAM_NAME)?;
                instance.attached = Some(attach::attach(program, &settings, &instance.interface)?);
            }
        }
        if self.programs.iter().all(|instance| instance.attached.is_some()) {
            attach::remove_leftovers(&settings)?;
        }
        Ok(())
    }

    fn interfaces(&self) -> Vec<&str> {
        self.settings.interfaces.iter().map(|interface| interface.name.as_str()).collect()
    }

    /// How the program runs at each interface.
    pub fn attachments(&self) -> impl Iterator<Item = (&str, Option<Mode>)> {
        self.programs.iter().map(|instance| (instance.interface.as_str(), instance.attached))
    }

    /// Loads the program and pins its maps in `pins`, without attaching it.
    ///
    /// # Errors
    /// The kernel refused the program or a map.
    pub fn load(pins: &Path, settings: &Settings) -> Result<Self> {
        let programs: Vec<Instance> = settings.interfaces.iter().map(|i| load_one(pins, i)).collect::<Result<_>>()?;
        let first = &programs.first().context("steering.interface: no interface is named")?.ebpf;
        let control = Mapped::<Control>::new(first, maps::CONTROL, 1)?;
        let halves = |of: u32| (HALVES * of) as usize;
        let dataplane = Self {
            owners: Mapped::new(first, maps::OWNERS, halves(BUCKETS))?,
            successors: Mapped::new(first, maps::SUCCESSORS, halves(BUCKETS))?,
            chains: Mapped::new(first, maps::CHAINS, halves(BUCKETS))?,
            members: Mapped::new(first, maps::MEMBERS, halves(SLOTS))?,
            services: Mapped::new(first, maps::SERVICES, halves(SERVICE_SLOTS))?,
            clock: Mapped::new(first, maps::CLOCK, 1)?,
            control,
            settings: settings.clone(),
            peers: Peers::default(),
            programs,
        };
        dataplane.begin();
        Ok(dataplane)
    }

    /// New maps are all zero, which is a table in which slot 0 owns everything.
    fn begin(&self) {
        let control = self.control.read(0);
        if control.key == (SteeringKey { k0: 0, k1: 0 }) {
            self.control.set_table(TableState::NONE.0);
        }
        self.control.set_alive_until(0);
        self.control.update(|control| control.key = self.settings.key);
    }

    fn ebpf(&mut self) -> Result<&mut Ebpf> {
        Ok(&mut self.programs.first_mut().context("no program is loaded")?.ebpf)
    }

    /// Puts a plan in force. `members` are those of the plan's slots.
    ///
    /// # Errors
    /// A map update was refused, or the plan contradicts itself.
    pub fn apply(&mut self, plan: &Plan, members: &[Member]) -> Result<()> {
        self.apply_table(plan, members)?;
        // Where another version's program steered until now.
        self.attach_where(|_, _| true)
    }

    /// Writes the half that is not read, then switches to it by one store.
    pub(crate) fn apply_table(&mut self, plan: &Plan, members: &[Member]) -> Result<()> {
        ensure!(members.len() == plan.members.len(), "{} members for {} slots", members.len(), plan.members.len());
        ensure!(members.len() <= MAX_MEMBERS as usize, "{} members are too many", members.len());
        let buckets = BUCKETS as usize;
        ensure!(plan.owners.len() == buckets && plan.chains.len() == buckets, "the plan is no whole table");
        let state = TableState(self.control.read(0).table);
        let half = if state != TableState::NONE && state.half() == 0 { 1 } else { 0 };
        self.peers.set_half(half, plan.own_slot, members);
        self.write_peers()?;
        for slot in 0..SLOTS as usize {
            self.members.write(half * SLOTS as usize + slot, members.get(slot).copied().unwrap_or_default());
        }
        self.owners.write_all(half * buckets, &plan.owners);
        self.successors.write_all(half * buckets, &plan.successors);
        self.chains.write_all(half * buckets, &plan.chains);
        // The half must be complete before any CPU can see that it is in force.
        fence(Ordering::Release);
        self.control.set_table(TableState::new(u32::from(half == 1), plan.own_slot, plan.settling).0);
        Ok(())
    }

    /// Declares from which further MAC addresses a member may send packets on, by the one that packets are sent to.
    ///
    /// # Errors
    /// A map update was refused.
    pub fn set_more_macs(&mut self, macs: impl IntoIterator<Item = ([u8; 6], Vec<[u8; 6]>)>) -> Result<()> {
        if self.peers.set_more_macs(macs) { self.write_peers() } else { Ok(()) }
    }

    fn write_peers(&mut self) -> Result<()> {
        let entries = self.peers.entries();
        reconcile::<AddressKey>(self.ebpf()?, maps::PEERS, entries.into_iter())
    }

    /// Declares the virtual addresses, and for which of them this front end answers.
    ///
    /// # Errors
    /// A map update was refused.
    pub fn set_vips(&mut self, vips: impl IntoIterator<Item = (IpAddr, bool)>) -> Result<()> {
        let entries = vips.into_iter().map(|(vip, owned)| (address_key(vip), if owned { VIP_OWNED } else { 0 }));
        reconcile::<AddressKey>(self.ebpf()?, maps::VIPS, entries)
    }

    /// Declares which TCP ports of which virtual addresses are steered.
    ///
    /// # Errors
    /// They are more than the program holds.
    pub fn set_services(&mut self, services: impl IntoIterator<Item = (IpAddr, u16)>) -> Result<()> {
        let services: BTreeSet<(AddressKey, u16)> =
            services.into_iter().map(|(vip, port)| (address_key(vip), port)).collect();
        let slots = services::place(&services)?;
        let half = 1 - (self.control.read(0).services_half & 1);
        self.services.write_all((half * SERVICE_SLOTS) as usize, &slots);
        fence(Ordering::Release);
        self.control.update(|control| control.services_half = half);
        Ok(())
    }

    /// Declares where this machine stands in the network.
    pub fn set_network(&mut self, network: &Network) {
        self.control.update(|control| {
            control.address_v4 = network.address_v4.unwrap_or_default();
            control.address_v6 = network.address_v6.unwrap_or_default();
            control.encapsulation_port = network.encapsulation_port.to_be_bytes();
            control.path_mtu = network.path_mtu;
            control.gateway_v4 = maps::mac_word(network.gateway_v4);
            control.gateway_v6 = maps::mac_word(network.gateway_v6);
            control.on_link_v4 = network.on_link_v4.map(u32::from_ne_bytes);
            control.on_link_v6 = network.on_link_v6.map(u64::from_ne_bytes);
        });
    }

    /// For `time` from now this daemon is taken to be alive: the program answers for the VIPs that this front end owns, and
    /// takes new connections of its buckets. Zero: no longer.
    ///
    /// # Errors
    /// The program's clock cannot be read.
    pub fn keep_alive(&mut self, time: Duration) -> Result<()> {
        let until = if time.is_zero() { 0 } else { self.jiffies()? + jiffies_of(time) };
        self.control.set_alive_until(until);
        Ok(())
    }

    /// The kernel's clock, as the program reads it.
    fn jiffies(&mut self) -> Result<u64> {
        // Any frame will do; the kernel wants an Ethernet header at least.
        let frame = [0; 64];
        let options = TestRunOptions { data_in: Some(&frame), repeat: 1, ..TestRunOptions::new() };
        program(self.ebpf()?, CLOCK_NAME)?.test_run(options).context("failed to read the XDP program's clock")?;
        Ok(self.clock.read(0))
    }

    /// Packets by verdict and reason since the maps were made, all CPUs together.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn counters(&self) -> Result<Vec<(Counter, u64)>> {
        let sum = |(counter, values): (Counter, Vec<u64>)| (counter, values.iter().sum());
        Ok(self.per_cpu_counters()?.into_iter().map(sum).collect())
    }

    /// Packets by verdict and reason since the maps were made, for each CPU.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn per_cpu_counters(&self) -> Result<Vec<(Counter, Vec<u64>)>> {
        let first = self.programs.first().context("no program is loaded")?;
        let map = first.ebpf.map(maps::COUNTERS).context("the program has no counters")?;
        let counters = PerCpuArray::<&MapData, u64>::try_from(map)?;
        let read = |&counter: &Counter| Ok((counter, counters.get(&(counter as u32), 0)?.to_vec()));
        Counter::ALL.iter().map(read).collect()
    }

    /// The programs' readers of their own logs (exceptions only), to be drained whenever they are readable.
    ///
    /// # Errors
    /// A program has no log.
    pub fn loggers(&mut self) -> Result<Vec<ProgramLog>> {
        let logger = |instance: &mut Instance| aya_log::EbpfLogger::init(&mut instance.ebpf);
        let loggers = self.programs.iter_mut().map(logger).collect::<Result<_, _>>();
        loggers.map_err(|e| anyhow!("failed to open the XDP program's log: {e}"))
    }

    /// What the kernel does with one packet (`BPF_PROG_TEST_RUN`).
    ///
    /// # Errors
    /// The kernel refused to run it.
    pub fn test_run(&mut self, packet: &[u8]) -> Result<TestVerdict> {
        let mut out = vec![0; packet.len() + 256];
        let options =
            TestRunOptions { data_in: Some(packet), data_out: Some(&mut out), repeat: 1, ..TestRunOptions::new() };
        let result = program(self.ebpf()?, PROGRAM_NAME)?.test_run(options)?;
        out.truncate(result.data_size_out as usize);
        Ok(TestVerdict { action: result.return_value, packet: out })
    }
}

/// Detaches the program from all its interfaces and forgets its maps. Packets are no longer steered. Returns the
/// interfaces that it was attached to. `interfaces`: those where the first version may have left one.
///
/// # Errors
/// A pin could not be removed.
pub fn detach(settings: &Settings, interfaces: &[&str]) -> Result<Vec<String>> {
    attach::remove_all(settings, interfaces)
}

/// True if this machine lets us load XDP programs; otherwise why not, in one line.
///
/// # Errors
/// The reason.
pub fn probe() -> Result<()> {
    match aya::sys::is_program_supported(aya::programs::ProgramType::Xdp) {
        Ok(true) => Ok(()),
        Ok(false) => bail!("this kernel has no XDP (CONFIG_BPF_SYSCALL, CONFIG_XDP_SOCKETS)"),
        Err(e) => bail!("loading XDP programs is not permitted ({e}): run as root, or with CAP_BPF and CAP_NET_ADMIN"),
    }
}

fn load_one(pins: &Path, interface: &InterfaceSettings) -> Result<Instance> {
    let facts = Facts(Interface { mac: interface.mac, mtu: interface.mtu });
    let mut ebpf = EbpfLoader::new()
        .default_map_pin_directory(pins)
        .override_global(maps::INTERFACE, &facts, true)
        // Complaints only. The log of every step would be megabytes, for which the program is verified again and again.
        .verifier_log_level(VerifierLogLevel::STATS)
        .load(PROGRAM)
        .map_err(explain::object)?;
    for name in [PROGRAM_NAME, CLOCK_NAME] {
        program(&mut ebpf, name)?.load().map_err(explain::program)?;
    }
    Ok(Instance { ebpf, interface: interface.name.clone(), attached: None })
}

#[derive(Clone, Copy)]
#[repr(transparent)]
struct Facts(Interface);

// SAFETY: plain octets without padding, of which every bit pattern is a value.
unsafe impl Pod for Facts {}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    let program = ebpf.program_mut(name).with_context(|| format!("the embedded object has no program {name}"))?;
    Ok(program.try_into()?)
}

/// Jiffies that pass in `time`, at least one.
fn jiffies_of(time: Duration) -> u64 {
    // The coarse clock moves by one jiffy.
    let jiffy = clock_getres(ClockId::CLOCK_MONOTONIC_COARSE).map_or(Duration::from_millis(4), Duration::from);
    u64::try_from(time.as_nanos() / jiffy.as_nanos().max(1)).unwrap_or(u64::MAX / 2).max(1)
}

/// The key of an address in the maps.
fn address_key(address: IpAddr) -> AddressKey {
    match address {
        IpAddr::V4(v4) => maps::mapped_v4(v4.octets()),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// Makes a hash map hold exactly these entries, touching only those that differ.
fn reconcile<K: Pod + Ord>(ebpf: &mut Ebpf, name: &str, wanted: impl Iterator<Item = (K, u32)>) -> Result<()> {
    let map = ebpf.map_mut(name).with_context(|| format!("the program has no map {name}"))?;
    let mut map = HashMap::<&mut MapData, K, u32>::try_from(map)?;
    let wanted: BTreeMap<K, u32> = wanted.collect();
    let present: Vec<(K, u32)> = map.iter().collect::<Result<_, _>>()?;
    for (key, _) in present.iter().filter(|(key, _)| !wanted.contains_key(key)) {
        map.remove(key)?;
    }
    for (key, value) in wanted {
        if !present.contains(&(key, value)) {
            map.insert(key, value, 0).with_context(|| format!("failed to write to the map {name}"))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
