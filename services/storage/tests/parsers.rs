//! Whatever a file is called, claims to be or holds, and whatever a link says: names are safe, no link is good that was not
//! made here, nothing panics. What is kept in `corpus/` comes first. A short run with the other tests;
//! `ERRAND_FUZZ_SECONDS=600 cargo test -p errand-storage --test parsers` for a long one.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the answer")]

use std::collections::HashSet;
use std::time::{Duration, Instant};

use errand_core::StorageId;
use errand_core::limits::MAX_FILE_NAME_BYTES;
use errand_storage::extraction::Format;
use errand_storage::signing::{LinkKey, sign, verify};
use errand_storage::{content, names};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, TestRunner};

const PIECES: &[&str] = &[
    "/",
    "\\",
    "..",
    ".",
    " ",
    "\0",
    "\r\n",
    "\u{202e}",
    "\u{200b}",
    "con",
    "NUL",
    "com¹",
    ".pdf",
    "İ",
    "ß",
    "👩‍👩‍👧",
    "PK\u{3}\u{4}",
    "xl/",
    "word/",
    "_rels/.rels",
    "%PDF-1.7",
    "<html>",
    "{\"a\":",
    "a,b;c\t",
    "0000000000000000000000000000000000000000",
];

fn text() -> impl Strategy<Value = Vec<u8>> {
    let joined = vec(select(PIECES), 0..12).prop_map(|pieces| pieces.concat().into_bytes());
    let long = (select(PIECES), 1usize..400).prop_map(|(piece, times)| piece.repeat(times).into_bytes());
    prop_oneof![3 => joined, 2 => ".{0,80}".prop_map(String::into_bytes), 1 => long, 1 => vec(any::<u8>(), 0..300)]
}

fn read(bytes: &[u8], expires: i64, now: i64) {
    let text = String::from_utf8_lossy(bytes);
    let name = names::safe(&text);
    assert!(!name.is_empty() && name.len() <= MAX_FILE_NAME_BYTES + 1, "{name:?}");
    assert!(!name.contains(['/', '\\', '\0', '\r', '\n']) && name != "." && name != "..", "{name:?}");
    let mut taken = HashSet::new();
    for _ in 0..12 {
        let free = names::free(&name, |name| taken.contains(&names::key(name)));
        assert!(free.len() <= MAX_FILE_NAME_BYTES + 1, "{free:?}");
        assert!(taken.insert(names::key(&free)), "{free:?} is taken");
    }
    for is_whole in [true, false] {
        let mime = content::mime_type(bytes, is_whole, &name);
        assert!(mime.contains('/'));
        let _ = Format::of(mime);
    }
    let (key, id) = (LinkKey::new(&[7; 32]).unwrap(), StorageId::from_uuid(uuid::Uuid::from_u128(1)));
    assert!(!verify(&key, id, expires, &text, now), "{text} is no signature of ours");
    assert_eq!(verify(&key, id, expires, &sign(&key, id, expires), now), now < expires);
}

#[test]
fn what_is_kept_of_hard_cases_is_read() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus");
    let files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(files.len() >= 8);
    for file in files {
        println!("{}", file.display());
        let bytes = std::fs::read(&file).unwrap();
        for (expires, now) in [(i64::MIN, i64::MAX), (i64::MAX, i64::MIN), (0, 0), (1, 0)] {
            read(&bytes, expires, now);
        }
    }
}

#[test]
fn no_name_and_no_link_makes_a_parser_panic() {
    let seconds: u64 = std::env::var("ERRAND_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(2);
    let until = Instant::now() + Duration::from_secs(seconds);
    let mut cases = 0;
    while Instant::now() < until {
        let mut runner = TestRunner::new(Config { cases: 500, failure_persistence: None, ..Config::default() });
        let ran = runner.run(&(text(), any::<i64>(), any::<i64>()), |(text, expires, now)| {
            read(&text, expires, now);
            Ok(())
        });
        ran.unwrap();
        cases += 500;
    }
    println!("{cases} cases in {seconds} s");
    assert!(cases > 0);
}
