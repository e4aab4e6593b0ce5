//! Whatever bytes a program is made of, it is read, or refused in few words. What is kept in `corpus/` comes first.
//! `ERRAND_FUZZ_SECONDS=600 cargo test -p errand-browser fuzz` for a long run.

use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, TestRunner};

use super::values::{date, number, place};
use super::*;

/// What may stand anywhere in a text of a program.
const PIECES: &[&str] = &[
    "{{",
    "}}",
    "{{input.",
    "{{vars.a|\"b\"}}",
    "{{output.length}}",
    "[]",
    "\"",
    "\\u0000",
    "\\ud800",
    "{",
    "}",
    "[",
    "]",
    ":",
    "1e999",
    "-1",
    "18446744073709551616",
    "null",
    "steps",
    "\"when\":",
    "\"for_each\":",
    "\u{202e}",
    "(a*)*",
    "{1,9999}",
];

/// A program with every word, and pieces put in or bytes changed.
fn changed() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![select(PIECES).prop_map(|piece| piece.as_bytes().to_vec()), vec(any::<u8>(), 1..4)];
    vec((any::<Index>(), 0usize..12, piece), 0..6).prop_map(|changes| {
        let mut text = tests::everything().to_string().into_bytes();
        for (at, cut, piece) in changes {
            let at = at.index(text.len());
            text.splice(at..(at + cut).min(text.len()), piece);
        }
        text
    })
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let joined = vec(select(PIECES), 0..30).prop_map(|pieces| pieces.concat().into_bytes());
    prop_oneof![6 => changed(), 1 => joined, 1 => vec(any::<u8>(), 0..300)]
}

fn read(program: &[u8]) {
    match Program::parse(program) {
        Ok(Program::Steps(program)) => assert!(!program.steps.is_empty()),
        Ok(Program::Agent(program)) => assert!(!program.command.is_empty()),
        Err(error) => {
            assert_eq!(error.code, ErrorCode::AGENT_ERROR);
            assert!(error.message.len() <= 2048, "{} bytes", error.message.len());
            assert!(error.field.is_none_or(|field| field.len() <= 2048));
        }
    }
    let text = String::from_utf8_lossy(program);
    let short: String = text.chars().take(200).collect();
    let _ = place(&short);
    for decimal in [Separator::Point, Separator::Comma] {
        let _ = number(&short, decimal);
    }
    for format in ["D.M.YYYY", "YYYY-MM-DD", &short] {
        let _ = date(&short, Some(format));
    }
}

#[test]
fn what_is_kept_of_hard_cases_is_read() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/program/corpus");
    let files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(files.len() >= 8);
    for file in files {
        println!("{}", file.display());
        read(&std::fs::read(&file).unwrap());
    }
}

#[test]
fn no_program_makes_the_reader_panic() {
    let seconds: u64 = std::env::var("ERRAND_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(2);
    let until = Instant::now() + Duration::from_secs(seconds);
    let mut cases = 0;
    while Instant::now() < until {
        let mut runner = TestRunner::new(Config { cases: 200, failure_persistence: None, ..Config::default() });
        let ran = runner.run(&bytes(), |program| {
            read(&program);
            Ok(())
        });
        ran.unwrap();
        cases += 200;
    }
    println!("{cases} cases in {seconds} s");
    assert!(cases > 0);
}
