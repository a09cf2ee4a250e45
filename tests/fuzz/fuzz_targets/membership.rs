#![no_main]

use std::time::Instant;

use proxy_core::cluster::{Machine, Node, NodeName, Timing};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let (now, address) = (Instant::now(), "192.0.2.1:7400".parse().expect("a constant"));
    let me = Node::new(NodeName::parse("fe1").expect("a constant"), 1, address, [2, 0, 0, 0, 0, 1], 100);
    let mut machine = Machine::new(me, Timing::default(), 7);
    for datagram in data.split(|b| *b == 0xff) {
        let _refused = machine.handle_datagram(now, "192.0.2.2:7400".parse().expect("a constant"), datagram);
        while machine.poll_transmit().is_some() {}
        while machine.poll_event().is_some() {}
    }
    assert!(machine.members().count() >= 1, "a node is always a member of its own pool");
});
