#![no_main]
//! The XDP program treats any frame, against any tables, as a reference in Rust says. Needs root: it runs in the kernel.
//! The kernel's side is not instrumented; what guides the fuzzer are the ways through the reference.

use std::sync::{LazyLock, Mutex, PoisonError};

use autocluster::dataplane::fuzzing::Fuzzer;

static FUZZER: LazyLock<Mutex<Fuzzer>> =
    LazyLock::new(|| Mutex::new(Fuzzer::load().expect("the kernel loads the XDP program")));

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let mut fuzzer = FUZZER.lock().unwrap_or_else(PoisonError::into_inner);
    if let Err(error) = fuzzer.run(data) {
        panic!("{error:#}");
    }
});
