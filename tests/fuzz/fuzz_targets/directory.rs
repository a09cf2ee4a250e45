#![no_main]

use proxy_core::directory::{passwd_file::PasswdFile, wire};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    wire::fuzz(data);
    let _read = PasswdFile::parse(data, Some("default.test"));
});
