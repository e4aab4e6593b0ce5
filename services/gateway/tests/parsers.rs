//! Whatever comes in, no parser of the gateway panics, and what is refused is refused by a code of the catalogue. A
//! short run with the other tests; `ERRAND_FUZZ_SECONDS=600 cargo test -p errand-gateway --test parsers` for a long one.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the answer")]

use std::time::{Duration, Instant};

use errand_core::Error;
use errand_core::task::Definition;
use errand_gateway::body::parse;
use errand_gateway::query::{Query, time_ms};
use errand_gateway::range::{Part, part};
use errand_gateway::schema::requests::{
    AnswerInteraction, CreateDestination, CreateTask, Empty, Replay, ReviewRun, RunTask, UpdateDestination, UpdateTask,
};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};

/// Names that mean something to some parser, beside those that do not.
const NAMES: &[&str] = &[
    "name",
    "agent_id",
    "prompt",
    "program",
    "input_schema",
    "output_schema",
    "settings",
    "timeout_seconds",
    "retry_on",
    "review",
    "priority",
    "input",
    "metadata",
    "source_id",
    "session_id",
    "decision",
    "comment",
    "type",
    "webhook",
    "nats",
    "events",
    "filter",
    "task_id",
    "ordered",
    "since",
    "max_attempts",
    "",
];

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        (-101i32..1000).prop_map(Value::from),
        ".{0,20}".prop_map(Value::from),
        proptest::sample::select(vec![
            "agt_exec",
            "approve",
            "session_lost",
            "webhook",
            "nats",
            "task_run.*",
            "2026-05-01T12:00:00Z",
            "trun_01h455vb4pex5vsknk084sn02q",
            "-999999999-01-01T00:00:00Z",
        ])
        .prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 40, 6, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..6).prop_map(Value::from),
            btree_map(name(), inner, 0..6).prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![4 => proptest::sample::select(NAMES).prop_map(str::to_owned), 1 => ".{0,12}"]
}

/// A body: an object, its text with some bytes changed, or any bytes.
fn body() -> impl Strategy<Value = Vec<u8>> {
    let object = btree_map(name(), value(), 0..8)
        .prop_map(|fields| Value::Object(fields.into_iter().collect()).to_string().into_bytes());
    let changed = (object, vec((any::<prop::sample::Index>(), any::<u8>()), 0..4)).prop_map(|(mut text, changes)| {
        for (at, byte) in changes {
            let at = at.index(text.len());
            text[at] = byte;
        }
        text
    });
    let whole = btree_map(name(), value(), 0..8)
        .prop_map(|fields| Value::Object(fields.into_iter().collect()).to_string().into_bytes());
    let deep = (1usize..3000).prop_map(|depth| format!("{{\"input\":{}", "[".repeat(depth)).into_bytes());
    prop_oneof![4 => whole, 4 => changed, 2 => vec(any::<u8>(), 0..200), 1 => deep]
}

fn fair<T>(parsed: Result<T, Error>) -> Option<T> {
    match parsed {
        Ok(parsed) => Some(parsed),
        Err(error) => {
            assert!(error.code.kind == "request" && (400..500).contains(&error.code.http), "{error}");
            assert!(error.field.as_ref().is_none_or(|field| field.len() < 4096), "{error}");
            None
        }
    }
}

fn read(body: &[u8]) {
    fair(parse::<Empty>(body));
    fair(parse::<ReviewRun>(body));
    fair(parse::<AnswerInteraction>(body));
    fair(parse::<RunTask>(body));
    if let Some(task) = fair(parse::<CreateTask>(body)) {
        fair(Definition::try_from(task));
    }
    if let Some(change) = fair(parse::<UpdateTask>(body)) {
        let mut definition: Definition = serde_json::from_value(json!({"name": "n", "agent_id": "agt_exec"})).unwrap();
        fair(change.apply(&mut definition));
    }
    if let Some(mut destination) = fair(parse::<CreateDestination>(body)) {
        let configs = destination.configs();
        fair(configs.of(&destination.r#type));
    }
    if let Some(mut destination) = fair(parse::<UpdateDestination>(body)) {
        fair(destination.configs().of("webhook"));
    }
    if let Some(replay) = fair(parse::<Replay>(body)) {
        fair(time_ms("since", &replay.since));
    }
}

fn ask(text: &str) {
    let Some(mut query) = fair(Query::parse(text)) else { return };
    fair(query.page());
    fair(query.metadata());
    fair(query.time("created_after"));
    fair(query.parsed::<u32>("timeout", "a number"));
    fair(query.named("status", &[("failed", 1)]));
    fair(query.many("include"));
    fair(query.finish());
}

/// Which bytes of a file: never others than it has.
fn cut(size: u64, range: &str) {
    for range in [range.to_owned(), format!("bytes={range}")] {
        match part(size, "\"tag\"", Some(&range), Some(&range), Some(&range)) {
            Part::Bytes(range) => assert!(range.start < range.end && range.end <= size, "{range:?} of {size}"),
            Part::Whole | Part::Unsatisfiable | Part::NotModified => {}
        }
        if let Part::Bytes(range) = part(size, "\"tag\"", Some(&range), None, None) {
            assert!(range.start < range.end && range.end <= size, "{range:?} of {size}");
        }
    }
}

#[test]
fn no_body_and_no_query_makes_a_parser_panic() {
    let seconds: u64 = std::env::var("ERRAND_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(2);
    let until = Instant::now() + Duration::from_secs(seconds);
    let query = prop_oneof![
        ".{0,80}",
        "((limit|cursor|status|metadata\\[a\\]|created_after|timeout|include|%[0-9a-f]{2})=[0-9a-z,%]{0,10}&){0,5}",
    ];
    let mut cases = 0;
    while Instant::now() < until {
        let mut runner = TestRunner::new(Config { cases: 500, failure_persistence: None, ..Config::default() });
        let range = "([0-9]{0,21}|.{0,3})-([0-9]{0,21}|.{0,3})";
        let ran = runner.run(&(body(), &query, any::<u64>(), range), |(body, query, size, range)| {
            read(&body);
            ask(&query);
            cut(size, &range);
            cut(size % 100, &range);
            Ok(())
        });
        ran.unwrap();
        cases += 500;
    }
    println!("{cases} cases in {seconds} s");
    assert!(cases > 0);
}
