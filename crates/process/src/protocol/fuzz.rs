//! Whatever an agent writes, or stands in a task's program, is read or refused in few words that tell nothing of it.
//! What is kept in `corpus/` comes first. `ERRAND_FUZZ_SECONDS=600 cargo test -p errand-process fuzz` for a long run.

use std::time::{Duration, Instant};

use errand_core::ErrorCode;
use errand_core::limits::MAX_MESSAGE_BYTES;
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};

use super::{Message, Program, broken, parse};

const NAMES: &[&str] = &[
    "type",
    "message",
    "step",
    "percent",
    "id",
    "interaction",
    "fields",
    "name",
    "label",
    "options",
    "output",
    "error",
    "code",
    "path",
    "kind",
    "data",
    "command",
    "env",
    "directory",
    "",
];
const WORDS: &[&str] = &[
    "progress",
    "interaction",
    "file",
    "output",
    "error",
    "auth_ok",
    "auth_failed",
    "storage",
    "screenshot",
    "auth_locked",
    "mfa",
    "select",
    "auth",
    "..",
    "/etc",
    "a\0b",
    "a=b",
];

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,20}".prop_map(Value::from),
        select(WORDS).prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 30, 5, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..5).prop_map(Value::from),
            btree_map(name(), inner, 0..5).prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![5 => select(NAMES).prop_map(str::to_owned), 1 => ".{0,12}"]
}

fn whole() -> Vec<Value> {
    vec![
        json!({"type": "progress", "message": "m", "step": "s", "percent": 40.4}),
        json!({"type": "interaction", "id": "i", "interaction": {"type": "mfa", "message": "m", "fields": [
            {"name": "a", "type": "code", "label": "l"},
            {"name": "b", "type": "select", "label": "l", "options": ["x", "y"]}]}}),
        json!({"type": "file", "path": "a.csv", "name": "b", "kind": "file", "data": {"a": [1]}}),
        json!({"type": "output", "output": {"a": 1.10}}),
        json!({"type": "error", "error": {"type": "auth", "code": "auth_locked", "message": "m"}}),
        json!({"type": "auth_failed", "code": "auth_invalid"}),
        json!({"command": ["python3", "a.py"], "env": {"A": "b"}, "directory": "x"}),
    ]
}

fn line() -> impl Strategy<Value = Vec<u8>> {
    let typed = (select(WORDS), btree_map(name(), value(), 0..6)).prop_map(|(kind, fields)| {
        let mut fields: serde_json::Map<String, Value> = fields.into_iter().collect();
        fields.insert("type".into(), kind.into());
        Value::Object(fields).to_string().into_bytes()
    });
    let replaced = (select(whole()), name(), value()).prop_map(|(mut whole, name, value)| {
        whole[name] = value;
        whole.to_string().into_bytes()
    });
    let changed = (select(whole()), vec((any::<Index>(), any::<u8>()), 1..5)).prop_map(|(whole, changes)| {
        let mut text = whole.to_string().into_bytes();
        for (at, byte) in changes {
            let at = at.index(text.len());
            text[at] = byte;
        }
        text
    });
    prop_oneof![3 => typed, 3 => replaced, 3 => changed, 1 => vec(any::<u8>(), 0..200)]
}

fn read(line: &[u8]) {
    match parse(line) {
        Ok(Message::Progress { percent, .. }) => assert!(percent.is_none_or(|percent| percent <= 100)),
        Ok(Message::Asks(mut question)) => {
            if question.id.is_empty() {
                question.id.push('-');
            }
            question.check().unwrap();
        }
        Ok(Message::File(file)) => assert!(!file.path.is_empty()),
        Ok(Message::Output(output)) => drop(serde_json::from_slice::<Value>(&output)),
        Ok(Message::Failed(error)) => assert!(error.code.is_agents()),
        Ok(Message::Auth(_)) => {}
        Err(what) => assert!(broken(u64::MAX, &what).message.len() < MAX_MESSAGE_BYTES),
    }
    match Program::parse(line) {
        Ok(program) => assert!(!program.command[0].is_empty()),
        Err(error) => assert!(error.code == ErrorCode::AGENT_ERROR && error.message.len() < MAX_MESSAGE_BYTES),
    }
}

#[test]
fn what_is_kept_of_hard_cases_is_read() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/protocol/corpus");
    let files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(files.len() >= 8);
    for file in files {
        println!("{}", file.display());
        read(&std::fs::read(&file).unwrap());
    }
    for message in whole() {
        read(message.to_string().as_bytes());
    }
}

#[test]
fn no_line_makes_the_reader_panic() {
    let seconds: u64 = std::env::var("ERRAND_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(2);
    let until = Instant::now() + Duration::from_secs(seconds);
    let mut cases = 0;
    while Instant::now() < until {
        let mut runner = TestRunner::new(Config { cases: 500, failure_persistence: None, ..Config::default() });
        let ran = runner.run(&line(), |line| {
            read(&line);
            Ok(())
        });
        ran.unwrap();
        cases += 500;
    }
    println!("{cases} cases in {seconds} s");
    assert!(cases > 0);
}
