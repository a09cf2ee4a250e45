//! All frames that pass an interface of a lab host while something happens there.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, anyhow, ensure};

use super::Packet;
use super::link::{Frame, LinkSocket};
use crate::lab::Lab;

/// How often a running capture looks whether it is to end.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// pcap with microseconds (draft-ietf-opsawg-pcap): magic number, version 2.4, zone, accuracy, length, Ethernet.
const PCAP_HEADER: [u32; 6] = [0xa1b2_c3d4, 0x0004_0002, 0, 0, 65_535, 1];

/// A capture that is running.
#[derive(Debug)]
pub struct Capture {
    stop: Arc<AtomicBool>,
    reader: Option<JoinHandle<anyhow::Result<Captured>>>,
}

/// What a capture saw, in order.
#[derive(Debug, Default)]
pub struct Captured {
    pub frames: Vec<Seen>,
    /// Frames that came faster than they were read.
    pub lost: u32,
}

/// One frame of a capture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub at: SystemTime,
    /// Sent by the interface's host; else it received it.
    pub outgoing: bool,
    /// The kernel had left the checksum to a NIC.
    pub unfinished: bool,
    pub octets: Vec<u8>,
}

impl Capture {
    /// Begins; every frame from now on is seen. What a front end's XDP program drops or sends on never reaches its own
    /// interface's captures: look at the switch (host `net`, interface `p-feN`) for that.
    ///
    /// # Errors
    /// If there is no such host or interface.
    pub fn start(lab: &Lab, host: &str, interface: &str) -> anyhow::Result<Self> {
        let socket = lab.in_host(host, || LinkSocket::open(interface))?;
        socket.set_patience(LOOK_INTERVAL)?;
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let reader = thread::spawn(move || read_all(socket, &told));
        Ok(Self { stop, reader: Some(reader) })
    }

    /// Ends; what was on the interface before this call is in it.
    ///
    /// # Errors
    /// If the interface went away in between.
    pub fn stop(mut self) -> anyhow::Result<Captured> {
        self.stop.store(true, Ordering::Release);
        let reader = self.reader.take().context("ended twice")?;
        reader.join().map_err(|_panic| anyhow!("the capture's thread panicked"))?
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
    }
}

fn read_all(mut socket: LinkSocket, stop: &AtomicBool) -> anyhow::Result<Captured> {
    let mut captured = Captured::default();
    loop {
        // Read before the frames: what came before the stop is taken.
        let last = stop.load(Ordering::Acquire);
        while let Some(frame) = socket.receive(last)? {
            captured.frames.push(seen(frame));
            if !last && stop.load(Ordering::Acquire) {
                break;
            }
        }
        if last {
            captured.lost = socket.lost()?;
            return Ok(captured);
        }
    }
}

fn seen(frame: Frame) -> Seen {
    let Frame { outgoing, unfinished, octets } = frame;
    Seen { at: SystemTime::now(), outgoing, unfinished, octets }
}

/// Captures of the client and of everything that front ends send and receive.
#[derive(Debug)]
pub struct Watch(Vec<(String, Capture)>);

impl Watch {
    /// Begins.
    ///
    /// # Errors
    /// If an interface cannot be opened.
    pub fn start(lab: &Lab) -> anyhow::Result<Self> {
        let client = ("client".to_owned(), Capture::start(lab, "client", "eth0")?);
        let front_ends = (1..=lab.spec().frontends).map(|number| {
            let name = format!("fe{number}");
            // What its XDP program sends on is seen at the other end of its cable only.
            let capture = Capture::start(lab, "net", &format!("p-{name}"))?;
            Ok((name, capture))
        });
        Ok(Self(std::iter::once(Ok(client)).chain(front_ends).collect::<anyhow::Result<_>>()?))
    }

    /// Ends, checks every frame and returns them by host; those of `feN` as the switch saw them, so `outgoing` are the
    /// ones that the front end received.
    ///
    /// # Errors
    /// If a checksum is wrong; the frames are in the lab's directory then.
    pub fn finish(self, lab: &Lab) -> anyhow::Result<BTreeMap<String, Captured>> {
        let mut all = BTreeMap::new();
        for (name, capture) in self.0 {
            let captured = capture.stop()?;
            let path = lab.layout().dir().join(format!("{name}.pcap"));
            if let Err(error) = captured.check() {
                captured.write(&path)?;
                return Err(error.context(format!("at {name}, see {}", path.display())));
            }
            all.insert(name, captured);
        }
        Ok(all)
    }
}

impl Captured {
    /// All that can be read.
    pub fn packets(&self) -> impl Iterator<Item = (&Seen, Packet)> {
        self.frames.iter().filter_map(|seen| Some((seen, Packet::parse(&seen.octets).ok()?)))
    }

    /// Fails if a checksum is wrong, or frames were lost, which would prove little; how many frames were checked.
    ///
    /// # Errors
    /// Names the first wrong one.
    pub fn check(&self) -> anyhow::Result<usize> {
        ensure!(self.lost == 0, "{} frames were not captured", self.lost);
        for (seen, packet) in self.packets() {
            ensure!(!seen.unfinished, "a checksum was left to a NIC that is not there: {packet:?}");
            if let Some(fault) = packet.faults.first() {
                return Err(anyhow!("{fault}: {packet:?}"));
            }
        }
        Ok(self.frames.len())
    }

    /// Writes a pcap file, for tcpdump(8) and wireshark(1).
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        let file = File::create(path).with_context(|| format!("failed to create {}", path.display()))?;
        let mut out = BufWriter::new(file);
        for word in PCAP_HEADER {
            out.write_all(&word.to_le_bytes())?;
        }
        for seen in &self.frames {
            let since = seen.at.duration_since(UNIX_EPOCH).unwrap_or_default();
            let length = u32::try_from(seen.octets.len())?;
            for word in [u32::try_from(since.as_secs())?, since.subsec_micros(), length, length] {
                out.write_all(&word.to_le_bytes())?;
            }
            out.write_all(&seen.octets)?;
        }
        out.flush().with_context(|| format!("failed to write {}", path.display()))
    }
}
