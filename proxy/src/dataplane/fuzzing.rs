//! Any frame against any tables: what the XDP program does with them is compared with a reference that was written from
//! the specification and shares no code with the program but the steering hash.
//!
//! One input is a scene (what is in the maps), then frames that arrive in it one after the other. Not here: sockets and
//! the limit of new connections, which are states of the kernel.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount, umount};
use proxy_common::{
    hash::SteeringKey,
    maps::{BUCKETS, Chain, Counter, NO_SLOT, Owner, TableState},
};
use proxy_core::{abuse::Change, steering::Plan};

use self::{check::Observed, input::Input, pool::DENIED, reference::Memory, scene::Scene};
use super::{Dataplane, InterfaceSettings, Mode, Network, Settings};

mod answers;
mod check;
mod decision;
mod frames;
mod input;
mod pool;
mod reference;
mod scene;

const KEY: SteeringKey = SteeringKey { k0: 0x0123_4567_89ab_cdef, k1: 0xfedc_ba98_7654_3210 };
/// Frames of one input at the most.
const MAX_FRAMES: usize = 6;

/// The program, loaded but attached nowhere, and what its counters were.
pub struct Fuzzer {
    dataplane: Dataplane,
    counters: Vec<u64>,
}

impl Fuzzer {
    /// Loads the program and fills its maps.
    ///
    /// # Errors
    /// The kernel refused the program or a map.
    pub fn load() -> Result<Self> {
        let bpffs = tempfile::tempdir()?;
        mount(Some("bpf"), bpffs.path(), Some("bpf"), MsFlags::empty(), None::<&str>)?;
        let loaded = Self::load_at(bpffs.path());
        // Its maps live on without their names.
        umount(bpffs.path())?;
        loaded
    }

    fn load_at(bpffs: &Path) -> Result<Self> {
        let settings = Settings {
            node: "fe0".to_owned(),
            interfaces: vec![InterfaceSettings { name: "test0".to_owned(), mac: pool::MAC, mtu: pool::MTU }],
            mode: Mode::Auto,
            bpffs: bpffs.to_owned(),
            key: KEY,
        };
        let mut dataplane = Dataplane::load(bpffs, &settings)?;
        dataplane.set_vips([
            (pool::VIP4.into(), true),
            (pool::OTHER_VIP4.into(), false),
            (pool::VIP6.into(), true),
            (pool::OTHER_VIP6.into(), false),
        ])?;
        dataplane.set_services(pool::SERVICES)?;
        // A fresh program takes the first table into the half 0, the second into the half 1.
        for half in [0, 1] {
            let members = pool::members(half);
            let buckets = BUCKETS as usize;
            let plan = Plan {
                members: (0..members.len()).map(|slot| format!("fe{slot}")).collect(),
                own_slot: pool::own_slot(half),
                // Nobody's: whoever looks for a bucket in the wrong place finds it so.
                owners: vec![Owner::new(NO_SLOT, false); buckets],
                successors: vec![NO_SLOT; buckets],
                chains: vec![Chain::EMPTY; buckets],
                settling: false,
            };
            let members: Vec<_> = members.into_iter().map(pool::Peer::member).collect();
            dataplane.apply_table(&plan, &members)?;
        }
        let (mut deny, _none) = dataplane.take_deny_maps()?;
        let denied = DENIED.iter().map(|text| text.parse().map(Change::Deny)).collect::<Result<Vec<_>, _>>()?;
        deny.apply(&denied)?;
        let counters = read_counters(&dataplane)?;
        Ok(Self { dataplane, counters })
    }

    /// Runs one input. Returns how many frames it was.
    ///
    /// # Errors
    /// What the program did, and what it should have done.
    pub fn run(&mut self, input: &[u8]) -> Result<usize> {
        let mut input = Input::new(input);
        let scene = Scene::of(&mut input);
        self.set(&scene);
        let mut memory = Memory::default();
        let mut frames = 0;
        while frames < MAX_FRAMES && (frames == 0 || !input.is_empty()) {
            let frame = frames::frame(&mut input);
            self.run_frame(&scene, &mut memory, &frame)
                .map_err(|error| error.context(format!("frame {frames} in {scene:?}: {}", check::hex(&frame))))?;
            frames += 1;
        }
        self.forget(&memory)?;
        Ok(frames)
    }

    /// Everything that the program has counted frames as.
    pub fn seen(&self) -> impl Iterator<Item = Counter> {
        Counter::ALL.iter().zip(&self.counters).filter(|(_, count)| **count > 0).map(|(counter, _)| *counter)
    }

    fn run_frame(&mut self, scene: &Scene, memory: &mut Memory, frame: &[u8]) -> Result<()> {
        let expected = reference::predict(scene, memory, frame);
        if let Some(bucket) = expected.bucket {
            self.set_bucket(scene.half, bucket, scene.owner, scene.successor, scene.chain);
        }
        let verdict = self.dataplane.test_run(frame)?;
        if let Some(bucket) = expected.bucket {
            self.set_bucket(scene.half, bucket, Owner::new(NO_SLOT, false), NO_SLOT, Chain::EMPTY);
        }
        let observed = Observed { action: verdict.action, counted: self.counted()?, frame: verdict.packet };
        check::rules(frame, &observed)?;
        check::same(&expected, &observed)
    }

    /// Puts the scene into the maps.
    fn set(&mut self, scene: &Scene) {
        let network = Network {
            address_v4: Some(pool::OWN4.octets()),
            address_v6: Some(pool::OWN6.octets()),
            encapsulation_port: pool::OUTER_PORT,
            path_mtu: 1_448,
            gateway_v4: scene.gateway().unwrap_or_default(),
            gateway_v6: scene.gateway().unwrap_or_default(),
            on_link_v4: pool::ON_LINK_V4,
            on_link_v6: pool::ON_LINK_V6,
        };
        self.dataplane.set_network(&network);
        let control = &self.dataplane.control;
        control.set_flags(scene.flags);
        control.set_alive_until(if scene.alive { u64::MAX } else { 0 });
        let state = if scene.table {
            TableState::new(u32::from(scene.half), scene.own_slot, scene.settling)
        } else {
            TableState::NONE
        };
        control.set_table(state.0);
    }

    fn set_bucket(&self, half: u8, bucket: u32, owner: Owner, successor: u8, chain: Chain) {
        let at = usize::from(half) * BUCKETS as usize + bucket as usize;
        self.dataplane.owners.write(at, owner);
        self.dataplane.successors.write(at, successor);
        self.dataplane.chains.write(at, chain);
    }

    /// Which counters rose since the last call, and by how much.
    fn counted(&mut self) -> Result<Vec<(Counter, u64)>> {
        let after = read_counters(&self.dataplane)?;
        let before = std::mem::replace(&mut self.counters, after);
        let risen =
            Counter::ALL.iter().zip(self.counters.iter().zip(before)).map(|(c, (after, before))| (*c, after - before));
        Ok(risen.filter(|(_, n)| *n > 0).collect())
    }

    /// Takes away what first fragments left in the program's memory, and checks that there is no more than that.
    fn forget(&mut self, memory: &Memory) -> Result<()> {
        let map = self.dataplane.ebpf()?.map_mut(proxy_common::maps::FRAGMENTS).context("no map of fragments")?;
        let mut map = aya::maps::HashMap::<_, [u8; 40], u32>::try_from(map)?;
        for key in memory.keys() {
            ensure!(map.remove(key).is_ok(), "a first fragment was not remembered as {key:02x?}");
        }
        Ok(())
    }
}

fn read_counters(dataplane: &Dataplane) -> Result<Vec<u64>> {
    Ok(dataplane.counters()?.into_iter().map(|(_, value)| value).collect())
}
