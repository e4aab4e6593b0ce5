//! Whatever bytes come in, no message is read and converted into a panic, and what is refused is refused by a code of
//! the catalogue. What is kept in `corpus/` (bytes in hexadecimal) comes first. A short run with the other tests;
//! `ERRAND_FUZZ_SECONDS=600 cargo test -p errand-proto --test decoders` for a long one. (cargo-fuzz would need a nightly
//! compiler, so this is proptest, which runs with all the other tests.)

#![expect(clippy::unwrap_used, reason = "in a test a panic is the answer")]

use std::time::{Duration, Instant};

use errand_core::run::{Deadline, Question};
use errand_core::task::Definition;
use errand_core::{Error, RunId, SessionId, Tenant};
use errand_proto::event::TaskRef;
use errand_proto::{id, json, lease, optional_id, page, submission, v1, verdict};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, TestRunner};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};

const ID: &str = "trun_01h455vb4pex5vsknk084sn02q";
const TEXTS: &[&str] = &[
    "",
    "acme",
    "_system",
    "*",
    "name:",
    "name:bills",
    ID,
    "trun_7zzzzzzzzzzzzzzzzzzzzzzzzz",
    "trun_8zzzzzzzzzzzzzzzzzzzzzzzzz",
    "agt_exec",
    "task_run.queued",
    "session_lost",
    "{\"a\":1e999}",
    "[[[[",
    "\"\\ud800\"",
    "\0",
    "\u{202e}",
];
const NUMBERS: &[u64] = &[0, 1, 2, 100, 101, 1 << 31, u32::MAX as u64, 1 << 62, i64::MAX as u64, 1 << 63, u64::MAX];

fn fair<T>(parsed: Result<T, Error>) -> Option<T> {
    match parsed {
        Ok(parsed) => Some(parsed),
        Err(error) => {
            assert!(error.code.kind == "request" && (400..500).contains(&error.code.http), "{error}");
            // It is an answer, so it must fit into one.
            let long = error.message.len() + error.field.as_ref().map_or(0, String::len);
            assert!(long < 4096, "{long} bytes of {:?}", error.code);
            let wire = v1::Error::from(&error);
            assert_eq!(Error::from(wire).code, error.code);
            None
        }
    }
}

fn requests(bytes: &[u8]) {
    if let Ok(request) = v1::RunRequest::decode(bytes) {
        fair(submission(request));
    }
    if let Ok(request) = v1::SubmitRunsRequest::decode(bytes) {
        fair(id::<Tenant>("tenant", &request.tenant));
        request.requests.into_iter().for_each(|request| drop(fair(submission(request))));
    }
    if let Ok(task) = v1::Task::decode(bytes) {
        let _ = json::task(&task);
        if let Some(definition) = fair(Definition::try_from(task)) {
            let again = Definition::try_from(v1::Task::from(&definition)).unwrap();
            assert_eq!(again, definition, "what is written is read as it was");
        }
    }
    if let Ok(request) = v1::ListRunsRequest::decode(bytes) {
        fair(page(request.page.as_ref()));
        request.task_id.iter().for_each(|task| drop(fair(TaskRef::parse("task_id", task))));
    }
    if let Ok(wire) = v1::Lease::decode(bytes) {
        fair(lease(Some(&wire)));
        fair(optional_id::<SessionId>("session_id", &wire.session_id));
    }
    if let Ok(wire) = v1::Deadline::decode(bytes) {
        let _ = Deadline::try_from(&wire);
    }
    if let Ok(wire) = v1::GrantAnswer::decode(bytes) {
        let _ = RunId::try_from(&wire);
    }
    if let Ok(wire) = v1::Interaction::decode(bytes) {
        let _ = json::interaction(Some(&wire));
        let _ = Question::from(wire).check();
    }
    if let Ok(wire) = v1::Error::decode(bytes) {
        let _ = json::error(&wire);
        let error = Error::from(wire);
        assert!(!error.code.code.is_empty());
    }
    let text = String::from_utf8_lossy(bytes);
    fair(verdict(&text));
    fair(TaskRef::parse("task_id", &text));
}

/// Everything that people read as JSON.
fn views(bytes: &[u8]) {
    macro_rules! shown {
        ($($wire:ident => $view:ident),* $(,)?) => {$(
            if let Ok(wire) = v1::$wire::decode(bytes) {
                let text = json::$view(&wire).to_string();
                let _: serde_json::Value = serde_json::from_str(&text).unwrap();
            }
        )*};
    }
    shown! {
        Run => run, Task => task, Artifact => artifact, Session => session, Runner => runner, Agent => agent,
        ApiKey => api_key, Destination => destination, Source => source, Credential => credential,
        Delivery => delivery, Event => event,
    }
    let _ = json::stored(bytes);
}

fn read(bytes: &[u8]) {
    requests(bytes);
    views(bytes);
}

/// A message by its fields, as deep as `depth`.
fn fields(depth: u32) -> BoxedStrategy<Vec<u8>> {
    let text = prop_oneof![select(TEXTS).prop_map(|text| text.as_bytes().to_vec()), vec(any::<u8>(), 0..40)];
    let bytes = if depth == 0 { text.boxed() } else { prop_oneof![2 => text, 1 => fields(depth - 1)].boxed() };
    let number = prop_oneof![select(NUMBERS), any::<u64>()];
    let field = (1u32..28, prop_oneof![3 => bytes.prop_map(Ok), 2 => number.prop_map(Err)]);
    vec(field, 0..10)
        .prop_map(|fields| {
            let mut message = Vec::new();
            for (number, value) in fields {
                match value {
                    Ok(bytes) => {
                        encode_key(number, WireType::LengthDelimited, &mut message);
                        encode_varint(bytes.len() as u64, &mut message);
                        message.extend(bytes);
                    }
                    Err(value) => {
                        encode_key(number, WireType::Varint, &mut message);
                        encode_varint(value, &mut message);
                    }
                }
            }
            message
        })
        .boxed()
}

fn event() -> v1::Event {
    let interaction = v1::Interaction {
        id: "int_1".into(),
        r#type: "mfa".into(),
        message: "Code?".into(),
        fields: vec![v1::InteractionField { name: "code".into(), r#type: "code".into(), ..Default::default() }],
        ..Default::default()
    };
    let run = v1::RunSummary {
        id: ID.into(),
        status: v1::RunStatus::InteractionRequired.into(),
        interaction: Some(interaction),
        metadata: [("a".to_owned(), "b".to_owned())].into(),
        started_at_ms: Some(1_790_000_000_000),
        deadlines: vec![v1::Deadline { kind: 4, at_ms: i64::MAX, ..Default::default() }],
        ..Default::default()
    };
    v1::Event {
        id: "evt_01h455vb4pex5vsknk084sn02q".into(),
        r#type: "task_run.interaction_required".into(),
        tenant: "acme".into(),
        object_id: ID.into(),
        seq: 3,
        created_at_ms: 1_790_000_000_000,
        data: Some(v1::event::Data::Run(run)),
        ..Default::default()
    }
}

/// Whole messages of the kinds that have most in them.
fn whole() -> Vec<Vec<u8>> {
    let request = v1::RunRequest {
        run_id: ID.into(),
        task_id: "name:bills".into(),
        input: r#"{"a":[1,2,{"b":null}]}"#.into(),
        priority: Some(-100),
        metadata: [("a".to_owned(), "b".to_owned())].into(),
        timeout_seconds: Some(60),
        ..Default::default()
    };
    let task = v1::Task {
        name: "bills".into(),
        agent_id: "agt_exec".into(),
        program: r#"{"command":["true"]}"#.into(),
        input_schema: r#"{"type":"object"}"#.into(),
        settings: Some(v1::TaskSettings { max_attempts: Some(3), priority: 5, ..Default::default() }),
        storage: Some(v1::TaskStorage { enabled: Some(true), ..Default::default() }),
        ..Default::default()
    };
    let many = v1::SubmitRunsRequest { tenant: "acme".into(), requests: vec![request.clone(); 3] };
    vec![request.encode_to_vec(), many.encode_to_vec(), task.encode_to_vec(), event().encode_to_vec()]
}

fn message() -> impl Strategy<Value = Vec<u8>> {
    let changed = (select(whole()), vec((any::<Index>(), any::<u8>()), 1..6), any::<Option<Index>>());
    let changed = changed.prop_map(|(mut bytes, changes, cut)| {
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(cut.map_or(bytes.len(), |cut| cut.index(bytes.len())));
        bytes
    });
    // Of the same field, the later one counts; of messages, both.
    let joined = (select(whole()), fields(2)).prop_map(|(mut first, second)| {
        first.extend(second);
        first
    });
    prop_oneof![3 => changed, 3 => fields(3), 2 => joined, 1 => vec(any::<u8>(), 0..300)]
}

/// What `corpus/` holds: one message a file, in hexadecimal; white space does not count.
fn corpus() -> Vec<(String, Vec<u8>)> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    files
        .map(|path| {
            let text: String = std::fs::read_to_string(&path).unwrap().split_whitespace().collect();
            let digits: Vec<u32> = text.chars().map(|digit| digit.to_digit(16).unwrap()).collect();
            let bytes = digits.chunks_exact(2).map(|pair| (pair[0] * 16 + pair[1]) as u8).collect();
            (path.display().to_string(), bytes)
        })
        .collect()
}

#[test]
fn what_is_kept_of_hard_cases_is_read() {
    let corpus = corpus();
    assert!(corpus.len() >= 8);
    for (name, bytes) in corpus {
        println!("{name}");
        read(&bytes);
    }
    whole().iter().for_each(|bytes| read(bytes));
}

#[test]
fn an_id_of_any_length_is_refused_in_few_words() {
    let long = v1::RunRequest { task_id: "t".repeat(1_000_000), ..Default::default() };
    assert!(fair(submission(long)).is_none());
    let long = v1::Lease { session_id: "s".repeat(1_000_000), token: 1, ..Default::default() };
    assert!(fair(lease(Some(&long))).is_none());
    let key = "k".repeat(1_000_000);
    let long =
        v1::RunRequest { task_id: "name:a".into(), metadata: [(key, String::new())].into(), ..Default::default() };
    assert!(fair(submission(long)).is_none());
    let settings = v1::TaskSettings { retry_on: vec!["x".repeat(1_000_000)], ..Default::default() };
    let long = v1::Task { name: "a".into(), agent_id: "agt_a".into(), settings: Some(settings), ..Default::default() };
    assert!(fair(Definition::try_from(long)).is_none());
}

#[test]
fn no_message_makes_a_decoder_panic() {
    let seconds: u64 = std::env::var("ERRAND_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(2);
    let until = Instant::now() + Duration::from_secs(seconds);
    let mut cases = 0;
    while Instant::now() < until {
        let mut runner = TestRunner::new(Config { cases: 500, failure_persistence: None, ..Config::default() });
        let ran = runner.run(&message(), |bytes| {
            read(&bytes);
            Ok(())
        });
        ran.unwrap();
        cases += 500;
    }
    println!("{cases} cases in {seconds} s");
    assert!(cases > 0);
}
