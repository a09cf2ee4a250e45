#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| autocluster_fuzz::client::<proxy_core::pop3::PreLogin>(data));
