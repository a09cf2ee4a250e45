//! The XDP program, loaded, attached and kept in step with what the pool wants. Everything of aya is in
//! this file.
//!
//! Maps and link are pinned. When the daemon dies, the program goes on steering by its last table; the
//! next daemon takes the maps over and swaps the program inside the same link, so that no packet passes
//! unsteered.

use std::{
    collections::BTreeSet,
    fs,
    net::IpAddr,
    os::fd::{AsFd, AsRawFd},
    path::{Path, PathBuf},
    ptr::{read_volatile, write_volatile},
    sync::atomic::{Ordering, fence},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{HashMap, Map, MapData, PerCpuArray},
    programs::{
        ProgramError, TestRun, TestRunOptions, Xdp, XdpMode,
        links::{FdLink, PinnedLink},
        xdp::XdpLink,
    },
};
use memmap2::{MmapOptions, MmapRaw};
use nix::time::{ClockId, clock_gettime};
use proxy_common::{
    hash::SteeringKey,
    maps::{
        self, ABI_VERSION, BUCKETS, Bucket, Control, Counter, HALVES, MAX_MEMBERS, MEMBER_PRESENT, MEMBER_SELF, Member,
        NO_TABLE, ServiceKey, VIP_OWNED, VipKey,
    },
};
use proxy_core::steering::Plan;

static PROGRAM: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/autocluster-xdp"));
const PROGRAM_NAME: &str = "autocluster";

/// Where and how to steer.
#[derive(Debug, Clone)]
pub struct Settings {
    pub interface: String,
    pub mac: [u8; 6],
    /// A mounted BPF file system.
    pub bpffs: PathBuf,
    pub key: SteeringKey,
}

/// The loaded program and its maps.
pub struct Dataplane {
    ebpf: Ebpf,
    control: Mapped<Control>,
    table: Mapped<Bucket>,
    members: Mapped<Member>,
}

/// Reads what the program says of exceptions.
pub type ProgramLog = aya_log::EbpfLogger<&'static dyn log::Log>;

/// What the packet table of the tests asks the kernel.
#[derive(Debug, PartialEq, Eq)]
pub struct TestVerdict {
    /// XDP_PASS and the like.
    pub action: u32,
    pub packet: Vec<u8>,
}

impl Dataplane {
    /// Loads the program, taking over the maps of an earlier daemon if there are any.
    ///
    /// # Errors
    /// What is missing, and what to do about it.
    pub fn open(settings: &Settings) -> Result<Self> {
        check_bpffs(&settings.bpffs)?;
        let pins = pin_directory(settings);
        fs::create_dir_all(&pins).with_context(|| format!("failed to create {}", pins.display()))?;
        Self::load(&pins, settings)
    }

    /// Attaches the program in driver mode, in the place of an earlier daemon's if that is still attached. Where it
    /// cannot be, nothing stays behind.
    ///
    /// # Errors
    /// What is missing, and what to do about it.
    pub fn attach(&mut self, settings: &Settings) -> Result<()> {
        let attached = self.attach_program(&settings.interface, &link_pin(settings));
        if attached.is_err() {
            detach(settings)?;
        }
        attached
    }

    /// Loads the program and pins its maps in `pins`, without attaching it.
    ///
    /// # Errors
    /// The kernel refused the program or a map.
    pub fn load(pins: &Path, settings: &Settings) -> Result<Self> {
        let mut ebpf =
            EbpfLoader::new().default_map_pin_directory(pins).load(PROGRAM).map_err(|e| explain_load(anyhow!(e)))?;
        let control = Mapped::<Control>::new(&ebpf, maps::CONTROL, 1)?;
        let fresh = control.read(0).mac == [0; 6];
        control.write(0, initial_control(settings, (!fresh).then(|| control.read(0).active_half)));
        let table = Mapped::new(&ebpf, maps::TABLE, (HALVES * BUCKETS) as usize)?;
        let members = Mapped::new(&ebpf, maps::MEMBERS, (HALVES * MAX_MEMBERS) as usize)?;
        program(&mut ebpf)?.load().map_err(|e| explain_load(anyhow!(e)))?;
        Ok(Self { ebpf, control, table, members })
    }

    fn attach_program(&mut self, interface: &str, pin: &Path) -> Result<()> {
        let program = program(&mut self.ebpf)?;
        let taken_over = match PinnedLink::from_pin(pin) {
            Ok(pinned) => {
                let link: FdLink = pinned.into();
                program.attach_to_link(XdpLink::try_from(link)?).ok()
            }
            Err(_nothing_pinned) => None,
        };
        if taken_over.is_some() {
            // The pin holds the link; dropping our handle of it detaches nothing.
            return Ok(());
        }
        // A pin whose interface is gone: the link is dead and cannot be updated.
        match fs::remove_file(pin) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(e).with_context(|| format!("failed to remove the stale pin {}", pin.display()));
            }
            _ => {}
        }
        let id = program.attach(interface, XdpMode::Driver).map_err(|e| explain_attach(interface, e))?;
        let link: FdLink = program
            .take_link(id)?
            .try_into()
            .map_err(|_e| anyhow!("the kernel gave no BPF link for {interface}: Linux 5.9 or newer is needed"))?;
        link.pin(pin).with_context(|| format!("failed to pin the XDP link at {}", pin.display()))?;
        Ok(())
    }

    /// Puts a plan in force: writes the half that is not read, then switches to it by one store.
    ///
    /// # Errors
    /// A map update was refused.
    pub fn apply(&mut self, plan: &Plan) -> Result<()> {
        let current = self.control.read(0);
        let half = if current.active_half == 0 { 1 } else { 0 };
        self.set_peers(plan)?;
        for slot in 0..MAX_MEMBERS as usize {
            let member = plan.members.get(slot).map_or_else(Member::default, |s| Member {
                mac: s.mac,
                flags: MEMBER_PRESENT | if s.is_self { MEMBER_SELF } else { 0 },
            });
            self.members.write(half * MAX_MEMBERS as usize + slot, member);
        }
        for (index, bucket) in plan.buckets.iter().enumerate() {
            self.table.write(half * BUCKETS as usize + index, *bucket);
        }
        // The half must be complete before any CPU can see that it is in force.
        fence(Ordering::Release);
        self.control.switch(u32::from(half == 1));
        Ok(())
    }

    fn set_peers(&mut self, plan: &Plan) -> Result<()> {
        let wanted: BTreeSet<[u8; 6]> = plan.members.iter().filter(|s| !s.is_self).map(|s| s.mac).collect();
        reconcile::<[u8; 6]>(&mut self.ebpf, maps::PEERS, wanted.into_iter().map(|mac| (mac, 1)))
    }

    /// Declares the virtual addresses, and for which of them this front end answers.
    ///
    /// # Errors
    /// A map update was refused.
    pub fn set_vips(&mut self, vips: impl IntoIterator<Item = (IpAddr, bool)>) -> Result<()> {
        let entries = vips.into_iter().map(|(vip, owned)| (vip_key(vip), if owned { VIP_OWNED } else { 0 }));
        reconcile::<VipKey>(&mut self.ebpf, maps::VIPS, entries)
    }

    /// Declares which TCP ports of which virtual addresses are steered.
    ///
    /// # Errors
    /// A map update was refused.
    pub fn set_services(&mut self, services: impl IntoIterator<Item = (IpAddr, u16)>) -> Result<()> {
        let entries = services.into_iter().map(|(vip, port)| (ServiceKey::new(vip_key(vip), port).to_bytes(), 1));
        reconcile::<[u8; 20]>(&mut self.ebpf, maps::SERVICES, entries)
    }

    /// Lets the program answer ARP and neighbour solicitations for `time` from now.
    pub fn keep_answering(&self, time: Duration) {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
        let until = u64::try_from((now + time).as_nanos()).unwrap_or(u64::MAX);
        self.control.answer_until(until);
    }

    /// Packets by verdict and reason since the maps were made, all CPUs together.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn counters(&self) -> Result<Vec<(Counter, u64)>> {
        let map = self.ebpf.map(maps::COUNTERS).context("the program has no counters")?;
        let counters = PerCpuArray::<&MapData, u64>::try_from(map)?;
        let read = |&counter: &Counter| {
            let values = counters.get(&(counter as u32), 0)?;
            Ok((counter, values.iter().sum()))
        };
        Counter::ALL.iter().map(read).collect()
    }

    /// The program's reader of its own log (exceptions only), to be drained whenever it is readable.
    ///
    /// # Errors
    /// The program has no log.
    pub fn logger(&mut self) -> Result<ProgramLog> {
        aya_log::EbpfLogger::init(&mut self.ebpf).map_err(|e| anyhow!("failed to open the XDP program's log: {e}"))
    }

    /// What the kernel does with one packet (`BPF_PROG_TEST_RUN`).
    ///
    /// # Errors
    /// The kernel refused to run it.
    pub fn test_run(&mut self, packet: &[u8]) -> Result<TestVerdict> {
        let mut out = vec![0; packet.len() + 256];
        let options =
            TestRunOptions { data_in: Some(packet), data_out: Some(&mut out), repeat: 1, ..TestRunOptions::new() };
        let result = program(&mut self.ebpf)?.test_run(options)?;
        out.truncate(result.data_size_out as usize);
        Ok(TestVerdict { action: result.return_value, packet: out })
    }
}

/// Detaches the program from the interface and forgets its maps. Packets are no longer steered.
///
/// # Errors
/// A pin could not be removed.
pub fn detach(settings: &Settings) -> Result<bool> {
    let root = pin_root(settings);
    if !root.exists() {
        return Ok(false);
    }
    fs::remove_dir_all(&root).with_context(|| format!("failed to remove the pins in {}", root.display()))?;
    Ok(true)
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

fn program(ebpf: &mut Ebpf) -> Result<&mut Xdp> {
    let program = ebpf.program_mut(PROGRAM_NAME).context("the embedded object has no program of our name")?;
    Ok(program.try_into()?)
}

fn initial_control(settings: &Settings, active_half: Option<u32>) -> Control {
    Control {
        active_half: active_half.unwrap_or(NO_TABLE),
        reserved: 0,
        key: settings.key,
        mac: settings.mac,
        reserved2: [0; 2],
        answer_until_ns: 0,
    }
}

fn vip_key(vip: IpAddr) -> VipKey {
    match vip {
        IpAddr::V4(v4) => maps::mapped_v4(v4.octets()),
        IpAddr::V6(v6) => v6.octets(),
    }
}

fn pin_root(settings: &Settings) -> PathBuf {
    settings.bpffs.join("autocluster").join(&settings.interface)
}

fn pin_directory(settings: &Settings) -> PathBuf {
    pin_root(settings).join(format!("v{ABI_VERSION}"))
}

fn link_pin(settings: &Settings) -> PathBuf {
    pin_root(settings).join("link")
}

fn check_bpffs(path: &Path) -> Result<()> {
    const BPF_FS_MAGIC: i64 = 0xcafe_4a11;
    let mounted = nix::sys::statfs::statfs(path).is_ok_and(|s| s.filesystem_type().0 == BPF_FS_MAGIC);
    if mounted {
        return Ok(());
    }
    bail!("steering.bpffs: {path} is no BPF file system; mount one: mount -t bpf bpf {path}", path = path.display())
}

fn explain_load(error: anyhow::Error) -> anyhow::Error {
    let text = format!("{error:#}");
    if text.contains("Operation not permitted") || text.contains("os error 1)") {
        return anyhow!("loading the XDP program is not permitted: run as root, or with CAP_BPF and CAP_NET_ADMIN");
    }
    error.context("the kernel refused the XDP program or its maps")
}

fn explain_attach(interface: &str, error: ProgramError) -> anyhow::Error {
    if matches!(error, ProgramError::UnknownInterface { .. }) {
        return anyhow!("steering.interface: there is no interface {interface}");
    }
    let errno = if let ProgramError::SyscallError(e) = &error { e.io_error.raw_os_error() } else { None };
    match errno {
        Some(libc::EOPNOTSUPP | libc::EINVAL) => anyhow!(
            "steering.interface: the driver of {interface} has no native XDP; name an interface whose driver has \
             (ethtool -i {interface} tells the driver)"
        ),
        Some(libc::EBUSY | libc::EEXIST) => anyhow!(
            "steering.interface: another XDP program is attached to {interface}; remove it: ip link set dev {interface} xdp off"
        ),
        _ => anyhow!(error).context(format!("failed to attach the XDP program to {interface}")),
    }
}

/// Makes a hash map hold exactly these entries, touching only those that differ.
fn reconcile<K: Pod + Ord>(ebpf: &mut Ebpf, name: &str, wanted: impl Iterator<Item = (K, u32)>) -> Result<()> {
    let map = ebpf.map_mut(name).with_context(|| format!("the program has no map {name}"))?;
    let mut map = HashMap::<&mut MapData, K, u32>::try_from(map)?;
    let wanted: std::collections::BTreeMap<K, u32> = wanted.collect();
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

/// The elements of a `BPF_F_MMAPABLE` array, in memory that the kernel reads.
struct Mapped<T> {
    memory: MmapRaw,
    length: usize,
    element: std::marker::PhantomData<T>,
}

impl<T: Copy> Mapped<T> {
    fn new(ebpf: &Ebpf, name: &str, length: usize) -> Result<Self> {
        // The kernel rounds elements up to 8 octets; the types of proxy-common are that long already.
        const { assert!(size_of::<T>().is_multiple_of(8)) };
        let Some(Map::Array(data)) = ebpf.map(name) else { bail!("the program has no array {name}") };
        let size = (length * size_of::<T>()).next_multiple_of(4096);
        let memory = MmapOptions::new()
            .len(size)
            .map_raw(data.fd().as_fd().as_raw_fd())
            .with_context(|| format!("failed to map {name} into memory"))?;
        Ok(Self { memory, length, element: std::marker::PhantomData })
    }

    fn element(&self, index: usize) -> *mut T {
        assert!(index < self.length, "index {index} in an array of {}", self.length);
        self.memory.as_mut_ptr().cast::<T>().wrapping_add(index)
    }

    fn read(&self, index: usize) -> T {
        // SAFETY: `element` checked the index; the mapping lives as long as `self` and is page-aligned;
        // every bit pattern is a value of the plain types that are mapped here.
        unsafe { read_volatile(self.element(index)) }
    }

    fn write(&self, index: usize, value: T) {
        // SAFETY: as in `read`; the kernel program reads these words and is written to bear any mix.
        unsafe { write_volatile(self.element(index), value) }
    }
}

impl Mapped<Control> {
    fn answer_until(&self, ns: u64) {
        // SAFETY: as in `switch`.
        unsafe { write_volatile(&raw mut (*self.element(0)).answer_until_ns, ns) }
    }

    fn switch(&self, half: u32) {
        // SAFETY: as in `write`, and the field is aligned: the program sees the old value or the new one.
        unsafe { write_volatile(&raw mut (*self.element(0)).active_half, half) }
    }
}

#[cfg(test)]
mod tests;
