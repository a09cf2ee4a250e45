//! The bench's side of the data plane: loads the prologues and floors beside the XDP program, over the same maps, puts
//! the maps into the states that are measured, and times runs.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{
        MapData, ProgramArray,
        lpm_trie::{Key, LpmTrie},
    },
    programs::{TestRun, TestRunOptions},
};
use nix::time::{ClockId, clock_gettime};
use proxy_common::{
    bench::{NEXT, WORDS, WORDS_ENCAPSULATED, WORKLOAD, Workload},
    hash::v6_words,
    maps::{self, Counter, DENY_V4_FILTER, DENY_V6_FINE, DENY_WORDS, FilterBit, Member},
};
use proxy_core::steering::Plan;

use super::{Dataplane, Mapped, PROGRAM_NAME, program};

/// A period of 256 jiffies: about a second.
const PERIOD_SHIFT: u32 = 8;

static PROGRAMS: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/autocluster-bench"));

/// What makes the packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prologue {
    V4,
    V6,
    V4Encapsulated,
    V6Encapsulated,
}

impl Prologue {
    const ALL: [Self; 4] = [Self::V4, Self::V6, Self::V4Encapsulated, Self::V6Encapsulated];

    const fn program(self) -> &'static str {
        match self {
            Self::V4 => "prologue_v4",
            Self::V6 => "prologue_v6",
            Self::V4Encapsulated => "prologue_v4_encapsulated",
            Self::V6Encapsulated => "prologue_v6_encapsulated",
        }
    }

    /// Octets of the frames that it makes.
    const fn length(self) -> usize {
        match self {
            Self::V4 | Self::V6 => 8 * WORDS,
            Self::V4Encapsulated | Self::V6Encapsulated => 8 * WORDS_ENCAPSULATED,
        }
    }
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    Empty,
    FloorMacV4,
    FloorMacV6,
    FloorEncapsulateV4,
    FloorEncapsulateV6,
    /// The XDP program itself.
    Autocluster,
}

impl Target {
    const OWN: [Self; 5] =
        [Self::Empty, Self::FloorMacV4, Self::FloorMacV6, Self::FloorEncapsulateV4, Self::FloorEncapsulateV6];

    /// The program in the bench's own object, if it is there.
    const fn program(self) -> Option<&'static str> {
        match self {
            Self::Empty => Some("empty"),
            Self::FloorMacV4 => Some("floor_mac_v4"),
            Self::FloorMacV6 => Some("floor_mac_v6"),
            Self::FloorEncapsulateV4 => Some("floor_encapsulate_v4"),
            Self::FloorEncapsulateV6 => Some("floor_encapsulate_v6"),
            Self::Autocluster => None,
        }
    }
}

/// One measurement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// CPU time of this thread for all packets together.
    pub cpu: Duration,
    /// Verdict on the last packet: `XDP_PASS` and the like.
    pub action: u32,
    /// Which counters of the program rose, and by how much.
    pub counted: Vec<(Counter, u64)>,
}

/// The programs of the bench, loaded.
pub struct Bench {
    ebpf: Ebpf,
    next: ProgramArray<MapData>,
    workload: Mapped<Workload>,
}

impl Bench {
    /// Loads the bench's programs over the maps that the XDP program has pinned in `pins`.
    ///
    /// # Errors
    /// The kernel refused a program.
    pub fn load(pins: &Path) -> Result<Self> {
        let mut ebpf = EbpfLoader::new().default_map_pin_directory(pins).load(PROGRAMS)?;
        for name in
            Prologue::ALL.map(Prologue::program).into_iter().chain(Target::OWN.iter().filter_map(|t| t.program()))
        {
            program(&mut ebpf, name)?.load().with_context(|| format!("the kernel refused the program {name}"))?;
        }
        let workload = Mapped::new(&ebpf, WORKLOAD, 1)?;
        let next = ebpf.take_map(NEXT).with_context(|| format!("the bench has no map {NEXT}"))?;
        Ok(Self { ebpf, next: next.try_into()?, workload })
    }

    /// Has a target's packets made by a prologue from now on.
    ///
    /// # Errors
    /// The kernel refused the target.
    pub fn aim(&mut self, target: Target, workload: Workload, dataplane: &mut Dataplane) -> Result<()> {
        self.workload.write(0, workload);
        let program = match target.program() {
            Some(name) => program(&mut self.ebpf, name)?,
            None => program(dataplane.ebpf()?, PROGRAM_NAME)?,
        };
        self.next.set(0, program.fd()?, 0).context("the kernel refused the tail call")
    }

    /// Runs what was aimed at, and says how long it took and what the program counted meanwhile.
    ///
    /// # Errors
    /// The kernel refused to run it, or fewer packets were made than were to be.
    pub fn run(&mut self, prologue: Prologue, packets: u32, dataplane: &Dataplane) -> Result<Run> {
        let (made, counters) = (self.workload.read(0).count, dataplane.counters()?);
        let frame = vec![0; prologue.length()];
        let program = program(&mut self.ebpf, prologue.program())?;
        let options = TestRunOptions { data_in: Some(&frame), repeat: packets, ..TestRunOptions::new() };
        let begin = thread_time()?;
        let result = program.test_run(options)?;
        let cpu = thread_time()?.saturating_sub(begin);
        let made = self.workload.read(0).count - made;
        ensure!(made == u64::from(packets), "{made} of {packets} packets were made");
        let counted = dataplane.counters()?.into_iter().zip(counters);
        let risen = counted.map(|((counter, after), (_, before))| (counter, after - before));
        Ok(Run { cpu, action: result.return_value, counted: risen.filter(|(_, n)| *n > 0).collect() })
    }
}

/// What the bench sets in the maps beyond what the daemon does.
impl Dataplane {
    /// Puts a plan in force, as [`Dataplane::apply`] does, without attaching the program anywhere.
    ///
    /// # Errors
    /// As for [`Dataplane::apply`].
    pub fn apply_unattached(&mut self, plan: &Plan, members: &[Member]) -> Result<()> {
        self.apply_table(plan, members)
    }

    /// Which checks the program makes: flags of `Control`, and a limit of new connections; 0: none.
    pub fn set_checks(&mut self, flags: u32, new_connection_limit: u32) {
        self.control.update(|control| {
            control.flags = flags;
            control.new_connection_limit = new_connection_limit;
            (control.period_shift, control.prefix_v4, control.prefix_v6) = (PERIOD_SHIFT, 32, 64);
        });
    }

    /// Fills the deny list: with /24s and /48s.
    ///
    /// # Errors
    /// A map is missing or full.
    pub fn fill_deny_list(
        &mut self,
        v4: impl Iterator<Item = Ipv4Addr>,
        v6: impl Iterator<Item = Ipv6Addr>,
    ) -> Result<()> {
        let ebpf = self.ebpf()?;
        let filter = Mapped::<u64>::new(ebpf, maps::DENY_FILTER, DENY_WORDS as usize)?;
        let set = |bit: FilterBit| filter.write(bit.word as usize, filter.read(bit.word as usize) | bit.mask);
        let mut denied = trie::<[u8; 4]>(ebpf, maps::DENY_V4)?;
        for address in v4.map(|address| address.octets()) {
            set(FilterBit::v4(address));
            set(FilterBit::v4_coarse(address));
            denied.insert(&Key::new(DENY_V4_FILTER, address), 1, 0)?;
        }
        let mut denied = trie::<[u8; 16]>(ebpf, maps::DENY_V6)?;
        for address in v6.map(|address| address.octets()) {
            set(FilterBit::v6_fine(v6_words(address)[0]));
            denied.insert(&Key::new(DENY_V6_FINE, address), 1, 0)?;
        }
        Ok(())
    }
}

fn trie<'a, K: Pod>(ebpf: &'a mut Ebpf, name: &str) -> Result<LpmTrie<&'a mut MapData, K, u32>> {
    Ok(ebpf.map_mut(name).with_context(|| format!("the program has no map {name}"))?.try_into()?)
}

/// What this thread has used of a CPU: time that other processes take is not ours.
///
/// # Errors
/// The kernel has no such clock.
pub fn thread_time() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}
