#![no_main]
//! Whatever a peer's octets are, they are refused or name buckets that exist, each once; and they are the same when told
//! on, in no more octets than are allowed.

use proxy_common::maps::BUCKETS;
use proxy_core::steering::{Holdings, MAX_HOLDINGS};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(holdings) = Holdings::decode(data) else { return };
    let buckets: Vec<u32> = holdings.buckets.iter().collect();
    assert!(buckets.iter().all(|bucket| *bucket < BUCKETS));
    assert!(buckets.is_sorted_by(|a, b| a < b), "a bucket is named twice, or out of order");
    assert_eq!(buckets.len() as u64, holdings.buckets.len());
    assert!(buckets.iter().all(|bucket| holdings.buckets.contains(*bucket)));
    let written = holdings.encode();
    assert!(written.len() <= MAX_HOLDINGS, "{} octets", written.len());
    assert_eq!(Holdings::decode(&written).as_ref(), Ok(&holdings));
});
