//! Content: every way to fake an end, and the round trip through stuffing.

use super::{Dice, is_clean};
use crate::smtp::data::{Decoder, Progress};
use crate::smtp::stuff::DotStuffer;

const END: &[u8] = b"\r\n.\r\n";
const ALPHABET: &[u8] = b"\r\n\0.a";

/// Where the message in `wire` ends by the book: behind the first CRLF.CRLF, the CRLF of DATA's line counted.
fn end_by_the_book(wire: &[u8]) -> usize {
    let whole = [b"\r\n", wire].concat();
    whole.windows(END.len()).position(|window| window == END).unwrap() + END.len() - 2
}

/// Content by the book, or none if it is not made of clean lines. `message`: without the final dot's line.
fn content_by_the_book(message: &[u8]) -> Option<Vec<u8>> {
    let mut content = Vec::new();
    let mut rest = message;
    while let Some(at) = rest.windows(2).position(|pair| pair == b"\r\n") {
        let (line, next) = rest.split_at(at + 2);
        content.extend_from_slice(line.strip_prefix(b".").unwrap_or(line));
        rest = next;
    }
    (rest.is_empty() && is_clean(&content)).then_some(content)
}

/// Decodes pieces; returns content, octets taken up to the end, and whether a fault was found.
fn decode(pieces: &[&[u8]]) -> (Vec<u8>, usize, bool) {
    let (mut decoder, mut content, mut taken) = (Decoder::new(1_000_000), Vec::new(), 0);
    for piece in pieces {
        let (used, progress) = decoder.push(piece, &mut content);
        taken += used;
        match progress {
            Progress::End => return (content, taken, decoder.fault().is_some()),
            Progress::More => assert_eq!(used, piece.len()),
            Progress::Flood => panic!("no flood here"),
        }
    }
    panic!("no end found in {pieces:?}")
}

fn check(wire: &[u8], all_cuts: bool) {
    let end = end_by_the_book(wire);
    let expected = content_by_the_book(&wire[..end - 3]);
    let verify = |pieces: &[&[u8]]| {
        let (content, taken, faulty) = decode(pieces);
        assert_eq!(taken, end, "{:?}", wire.escape_ascii().to_string());
        assert!(is_clean(&content), "{:?}", wire.escape_ascii().to_string());
        assert_eq!(faulty, expected.is_none(), "{:?}", wire.escape_ascii().to_string());
        if let Some(expected) = &expected {
            assert_eq!(&content, expected, "{:?}", wire.escape_ascii().to_string());
        }
    };
    verify(&[wire]);
    if all_cuts {
        verify(&wire.chunks(1).collect::<Vec<_>>());
        for at in 0..=wire.len() {
            verify(&[&wire[..at], &wire[at..]]);
        }
    }
}

/// All strings over CR, LF, NUL, dot and a letter, in front of and between true ends.
#[test]
fn exactly_one_end_and_nothing_unclean() {
    for length in 0..=7_u32 {
        for number in 0..ALPHABET.len().pow(length) {
            let mut rest = number;
            let mut wire = Vec::new();
            for _ in 0..length {
                wire.push(ALPHABET[rest % ALPHABET.len()]);
                rest /= ALPHABET.len();
            }
            wire.extend_from_slice(b"\r\n.\r\nMAIL FROM:<>\r\n.\r\n");
            check(&wire, length <= 5);
        }
    }
}

/// The fake terminators that have fooled servers, within a message, cut everywhere.
#[test]
fn known_fakes() {
    for fake in [
        "\n.\n",
        "\n.\r\n",
        "\r\n.\n",
        "\r.\r",
        "\r.\r\n",
        "\r\n.\r",
        "\n.\r",
        "\r.\n",
        "\r\n\0.\r\n",
        "\r\n.\0\r\n",
        "\r\n.\r\0\n",
        "\r\n.\r\r\n",
        "\r\n..\r\n",
        "\0\n.\r\n",
        "\r\r\n.\n\r\n",
    ] {
        check(format!("Subject: x\r\n\r\nhello{fake}MAIL FROM:<a@b.test>\r\nx\r\n.\r\n").as_bytes(), true);
    }
}

fn random_lines(dice: &mut Dice) -> Vec<u8> {
    let mut content = Vec::new();
    for _ in 0..dice.roll(8) {
        for _ in 0..dice.roll(6) {
            content.push(b"..a\xff \t"[dice.roll(6)]);
        }
        content.extend_from_slice(b"\r\n");
    }
    content
}

fn random_pieces<'a>(dice: &mut Dice, mut bytes: &'a [u8]) -> Vec<&'a [u8]> {
    let mut pieces = Vec::new();
    while !bytes.is_empty() {
        let (piece, rest) = bytes.split_at((1 + dice.roll(9)).min(bytes.len()));
        pieces.push(piece);
        bytes = rest;
    }
    pieces
}

#[test]
fn stuffing_and_decoding_are_inverse() {
    let mut dice = Dice(7);
    for _ in 0..20_000 {
        let content = random_lines(&mut dice);
        let (mut stuffer, mut wire) = (DotStuffer::new(), Vec::new());
        for piece in random_pieces(&mut dice, &content) {
            stuffer.push(piece, &mut wire);
        }
        stuffer.finish(&mut wire);
        let (decoded, taken, faulty) = decode(&random_pieces(&mut dice, &wire));
        assert_eq!((decoded, taken, faulty), (content, wire.len(), false));
    }
}
