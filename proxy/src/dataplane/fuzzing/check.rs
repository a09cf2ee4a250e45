//! What is demanded of the program, frame by frame.

use anyhow::{Result, ensure};
use proxy_common::maps::Counter;

use super::{
    answers::{checksum, header_v4},
    pool,
    reference::{Expected, XDP_DROP, XDP_PASS, XDP_TX, be},
};

/// What the program did.
#[derive(Debug)]
pub(super) struct Observed {
    pub(super) action: u32,
    /// The counters that rose, and by how much.
    pub(super) counted: Vec<(Counter, u64)>,
    pub(super) frame: Vec<u8>,
}

/// Hexadecimal digits, as packet tools read them.
pub(super) fn hex(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02x}")).collect()
}

/// The rules that hold whatever was predicted.
pub(super) fn rules(came: &[u8], observed: &Observed) -> Result<()> {
    let Observed { action, counted, frame } = observed;
    ensure!([XDP_DROP, XDP_PASS, XDP_TX].contains(action), "verdict {action}");
    let reasons: Vec<_> = counted.iter().filter(|(counter, _)| *counter != Counter::Decapsulated).collect();
    ensure!(reasons.len() == 1 && counted.iter().all(|(_, n)| *n == 1), "it is counted as {counted:?}");
    let is_unpacked = counted.len() == 2;
    let reason = reasons[0].0;
    if *action == XDP_PASS && !is_unpacked {
        let longer = reason == Counter::OwnNew && frame.len() > came.len();
        ensure!(frame == came || longer && frame.starts_with(came), "what passes was changed");
    }
    if *action == XDP_TX {
        let to: &[u8] = &frame[..6];
        let is_member = (0..2).flat_map(pool::members).any(|peer| peer.mac() == to && peer != pool::Peer::This);
        let l3 = if came[12..14] == [0x81, 0] || came[12..14] == [0x88, 0xa8] { 18 } else { 14 };
        let is_asker = [Some(&came[6..12]), came.get(l3 + 8..l3 + 14)].contains(&Some(to));
        let is_answer = matches!(reason, Counter::TooBig | Counter::NeighbourAnswered);
        ensure!(is_member || is_answer && (is_asker || *to == pool::ROUTER_MAC), "it goes to {to:02x?}");
        ensure!(frame[6..12] == pool::MAC, "it comes from {:02x?}", &frame[6..12]);
        if !is_answer && !is_unpacked {
            lower(came, frame, l3)?;
        }
    }
    Ok(())
}

/// A packet that is sent on has a lower hop limit, and a right checksum if it came with one.
fn lower(came: &[u8], went: &[u8], l3: usize) -> Result<()> {
    let added = went.len() - came.len();
    let is_v6 = came[l3 - 2..l3] == [0x86, 0xdd];
    let at = if is_v6 { 7 } else { 8 };
    let (before, after) = (came[l3 + at], went[l3 + added + at]);
    ensure!(after < before && after <= 16 && after > 0, "its hop limit goes from {before} to {after}");
    let headers = (header_v4(came, l3), header_v4(went, l3 + added));
    if let (false, Some(first), Some(second)) = (is_v6, headers.0, headers.1) {
        let right = [checksum(&[&came[first]]) == 0, checksum(&[&went[second]]) == 0];
        ensure!(right[0] == right[1], "its header's checksum: {right:?}");
    }
    Ok(())
}

/// The program did what was predicted.
pub(super) fn same(expected: &Expected, observed: &Observed) -> Result<()> {
    let (action, counter) = expected.verdict;
    let mut counters = vec![(counter, 1)];
    if expected.unpacked {
        counters.push((Counter::Decapsulated, 1));
    }
    let mut counted = observed.counted.clone();
    counted.sort_by_key(|(counter, _)| *counter as u32);
    counters.sort_by_key(|(counter, _)| *counter as u32);
    ensure!(
        (observed.action, &counted) == (action, &counters),
        "verdict {} and {counted:?}, not {action} and {counters:?}",
        observed.action
    );
    if action == XDP_DROP {
        return Ok(());
    }
    let (mut wanted, mut frame) = (expected.frame.clone(), observed.frame.clone());
    if action == XDP_TX {
        mask_port(&mut wanted, &mut frame)?;
    }
    let differs = wanted.iter().zip(&frame).position(|(a, b)| a != b);
    ensure!(
        wanted == frame,
        "it went as {}, not as {} (octet {differs:?})",
        hex(&observed.frame),
        hex(&expected.frame)
    );
    Ok(())
}

/// Takes away what is the program's own choice: an outer source port.
fn mask_port(wanted: &mut [u8], frame: &mut [u8]) -> Result<()> {
    let l3 = if wanted[12..14] == [0x81, 0] || wanted[12..14] == [0x88, 0xa8] { 18 } else { 14 };
    // Nothing else that is sent is UDP.
    let outer = match wanted.get(l3 - 2..l3) {
        Some([0x08, 0x00]) if wanted.get(l3 + 9) == Some(&17) => 20,
        Some([0x86, 0xdd]) if wanted.get(l3 + 6) == Some(&17) => 40,
        _ => 0,
    };
    if outer != 0 && frame.len() == wanted.len() {
        let port = l3 + outer..l3 + outer + 2;
        ensure!(be(&frame[port.clone()]) >= 0xc000, "its outer source port is {}", be(&frame[port.clone()]));
        frame[port.clone()].fill(0);
        wanted[port].fill(0);
    }
    Ok(())
}
