#![no_main]
//! Whatever a peer says about the deny list is refused or is the same when said again; heard twice it is no news, and the
//! order in which it is heard changes nothing.

use proxy_core::abuse::wire::{self, Decoder, Message};
use proxy_core::abuse::{DenyList, Merged, Record};

/// A day of 2026, in milliseconds.
const NOW: u64 = 1_770_000_000_000;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    wire::fuzz(data);
    let mut decoder = Decoder::<Message>::default();
    decoder.handle_input(data);
    let mut said = vec![];
    while let Ok(Some(message)) = decoder.poll_message() {
        let mut again = Decoder::<Message>::default();
        again.handle_input(&wire::encode(&message).expect("what could be read can be written"));
        assert_eq!(again.poll_message().as_ref(), Ok(&Some(message.clone())));
        if let Message::Records(records) = message {
            said.extend(records);
        }
    }
    let forwards = merged(said.iter());
    assert_eq!(forwards.sum(), merged(said.iter().rev()).sum());
});

fn merged<'a>(records: impl Iterator<Item = &'a Record>) -> DenyList {
    let mut list = DenyList::default();
    for record in records {
        list.merge(NOW, record.clone());
        assert_eq!(list.merge(NOW, record.clone()), Merged::Known);
    }
    while list.poll_change().is_some() {}
    let mut later = list.poll_timeout().unwrap_or(NOW);
    for _ in 0..4 {
        list.handle_timeout(later);
        later = list.poll_timeout().map_or(later, |next| next.max(later));
    }
    list
}
