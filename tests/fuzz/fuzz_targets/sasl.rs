#![no_main]
//! Whatever PLAIN decodes to is the same when said again, and no exchange takes more than two responses.

use proxy_core::prelogin::Credentials;
use proxy_core::sasl::{Exchange, Mechanism, Step, decode_plain, encode_plain};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(credentials) = decode_plain(data) {
        said_again(&credentials);
    }
    let lines: Vec<_> = data.split(|&b| b == b'\n').collect();
    for mechanism in [Mechanism::Plain, Mechanism::Login] {
        let mut exchange = Exchange::new(mechanism);
        let mut step = exchange.start(lines.first().copied().filter(|line| !line.is_empty()));
        let mut responses = lines.iter().skip(1);
        for _ in 0..2 {
            if let (Ok(Step::Challenge(_)), Some(line)) = (&step, responses.next()) {
                step = exchange.handle_response(line);
            }
        }
        match step {
            Ok(Step::Complete(credentials)) => said_again(&credentials),
            Ok(Step::Challenge(_)) => assert!(lines.len() <= 2, "a third question"),
            Err(_) => {}
        }
    }
});

fn said_again(credentials: &Credentials) {
    assert!(!credentials.user.is_empty() && !credentials.user.contains('\0') && !credentials.password.contains('\0'));
    let encoded = encode_plain(credentials);
    let step = Exchange::new(Mechanism::Plain).handle_response(encoded.as_bytes());
    assert_eq!(step, Ok(Step::Complete(credentials.clone())));
}
