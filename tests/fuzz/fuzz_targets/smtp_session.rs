#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| autocluster_fuzz::smtp::session(data));
