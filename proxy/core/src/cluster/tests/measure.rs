//! Figures: `cargo test --release -p proxy-core measure -- --nocapture`. The debug build runs the same
//! scenarios with fewer seeds, and asserts what the default timing promises.

use std::time::Duration;

use super::*;

const RUNS: u64 = if cfg!(debug_assertions) { 12 } else { 400 };
const LOSSY_RUNS: u64 = if cfg!(debug_assertions) { 1 } else { 30 };
const LOSSY_SPAN: Duration = Duration::from_secs(if cfg!(debug_assertions) { 20 } else { 60 });

fn quantile(sorted: &[Duration], q: f64) -> Duration {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index within the slice")]
    let at = ((sorted.len() - 1) as f64 * q).round() as usize;
    sorted[at]
}

/// How long until every survivor has a killed node out.
fn detection(size: usize, timing: &Timing, link: Link, warm_up: Duration) -> Vec<Duration> {
    let mut times: Vec<Duration> = (0..RUNS)
        .map(|seed| {
            let mut pool = Pool::settled(size, timing.clone(), seed);
            pool.net.set_everywhere(link);
            // A different phase of everybody's timers in each run.
            pool.run(warm_up + Duration::from_millis(seed * 37 % 1000));
            let victim = usize::try_from(seed).unwrap() % size;
            pool.crash(victim);
            let gone = Pool::name(victim);
            let out = move |pool: &Pool| pool.machines().all(|(_, m)| m.members().all(|n| n.name != gone));
            pool.run_until(secs(60), out).unwrap()
        })
        .collect();
    times.sort();
    times
}

/// Living nodes declared dead, per node and hour of a pool on a bad network.
fn false_alarms(size: usize, timing: &Timing, spoil: impl Fn(&mut Pool)) -> f64 {
    let mut alarms = 0;
    for seed in 0..LOSSY_RUNS {
        let mut pool = Pool::settled(size, timing.clone(), seed);
        spoil(&mut pool);
        pool.run(LOSSY_SPAN);
        let mut dead: Vec<_> = pool
            .log
            .iter()
            .filter_map(|h| if let Event::MemberDown(node) = &h.event { Some(node) } else { None })
            .map(|node| (node.name.clone(), node.generation, node.revision))
            .collect();
        dead.sort();
        dead.dedup();
        alarms += dead.len();
    }
    alarms as f64 / (size as f64 * LOSSY_RUNS as f64 * LOSSY_SPAN.as_secs_f64() / 3600.0)
}

fn everywhere(pool: &mut Pool) {
    pool.net.set_everywhere(Link::AWFUL);
}

fn one_slow_node(pool: &mut Pool) {
    pool.net.set_at(Pool::address(1), Link::AWFUL);
}

/// foca alone with the same periods, and foca alone with the time to death that a bad network takes.
fn plain(timing: &Timing, suspect_to_down_after: Duration) -> Timing {
    Timing { ask_interval: Duration::ZERO, suspect_to_down_after, ..timing.clone() }
}

#[test]
fn measure_detection() {
    let timing = Timing::default();
    for size in [3, 5, 8, 16] {
        let times = detection(size, &timing, Link::LAN, Duration::ZERO);
        let (p50, p99) = (quantile(&times, 0.5), quantile(&times, 0.99));
        println!("detection, {size} nodes, LAN: p50 {p50:?} p99 {p99:?} max {:?}", times[times.len() - 1]);
        assert!(p99 < secs(1), "{size} nodes: {p99:?}");
    }
}

#[test]
fn measure_detection_on_an_awful_network() {
    let times = detection(5, &Timing::default(), Link::AWFUL, secs(5));
    let (p50, p99) = (quantile(&times, 0.5), quantile(&times, 0.99));
    println!("detection, 5 nodes, 30 % loss, 0-200 ms: p50 {p50:?} p99 {p99:?}");
    assert!(p99 < secs(5), "{p99:?}");
}

#[test]
fn measure_false_alarms() {
    let timing = Timing::default();
    let patient_swim = plain(&timing, timing.patience);
    let hasty_swim = plain(&timing, timing.suspect_to_down_after);
    let engines = [("ours", &timing), ("foca, same", &hasty_swim), ("foca, patient", &patient_swim)];
    // The comparison takes minutes.
    let engines = if cfg!(debug_assertions) { &engines[..1] } else { &engines[..] };
    for size in [3, 5, 16] {
        for (engine, timing) in engines {
            let all = false_alarms(size, timing, everywhere);
            let one = false_alarms(size, timing, one_slow_node);
            println!(
                "false alarms per node-hour, {size} nodes, {engine}: all links awful {all:.2}, one node's {one:.2}"
            );
            assert!(*engine != "ours" || all + one < 1.0, "{all} {one}");
        }
    }
}

#[test]
fn measure_propagation() {
    for (name, link) in [("LAN", Link::LAN), ("30 % loss, 0-200 ms", Link::AWFUL)] {
        let mut times: Vec<Duration> = (0..RUNS)
            .map(|seed| {
                let mut pool = Pool::settled(5, Timing::default(), seed);
                pool.net.set_everywhere(link);
                pool.with(0, |machine, now| machine.set_digest(now, digest("be1", 1))).unwrap();
                let known = |pool: &Pool| pool.machines().all(|(_, m)| m.digest("be1").is_some());
                pool.run_until(secs(60), known).unwrap()
            })
            .collect();
        times.sort();
        let (p50, p99) = (quantile(&times, 0.5), quantile(&times, 0.99));
        println!("a digest known to all 5, {name}: p50 {p50:?} p99 {p99:?}");
    }
}

#[test]
fn measure_traffic() {
    for size in [3, 16] {
        let mut pool = Pool::settled(size, Timing::default(), 1);
        pool.run(secs(30));
        let before = pool.net.sent();
        pool.run(secs(10));
        let rate = (pool.net.sent() - before) as f64 / 10.0 / size as f64;
        println!("datagrams sent per node and second, {size} nodes at rest: {rate:.0}");
    }
}
