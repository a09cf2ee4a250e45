#![no_main]
//! Whatever is an address is one again when written, cannot break out of a command line, and keeps the
//! limits.

use proxy_core::address::{Address, MAX_DOMAIN, MAX_LOCAL_PART};

libfuzzer_sys::fuzz_target!(|text: &str| {
    let Ok(address) = Address::parse(text) else { return };
    assert!(address.local().len() <= MAX_LOCAL_PART && !address.local().is_empty());
    assert!(address.domain().len() <= MAX_DOMAIN, "{}", address.domain().len());
    let written = address.to_string();
    assert!(!written.contains(char::is_control), "{written:?}");
    assert_eq!(Address::parse(&written).as_ref(), Ok(&address), "{written:?}");
    if let Some(user) = address.without_tag('+') {
        assert_eq!(Address::parse(&user.to_string()), Ok(user));
    }
});
