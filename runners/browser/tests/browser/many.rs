//! Many sessions at once, and what they take.

use errand_client::v1;
use futures::future::join_all;
use serde_json::{Value, json};

use crate::world::{Portal, World, browsers, descendants};

const SESSIONS: usize = 20;

/// What a process takes of the memory, what it shares divided among who shares it, in KiB.
fn proportional(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_sessions_at_once() {
    let mut world = World::start(&["--capacity", &SESSIONS.to_string()]).await;
    let portal = Portal::start(&world, &[]).await;
    let steps = json!([
        {"goto": {"url": "{{input.url}}"}},
        {"fill": {"target": {"label": "E-mail address"}, "value": "{{input.email}}"}, "timeout_ms": 60_000},
        {"click": {"role": "button", "name": "Send me a code"}, "timeout_ms": 60_000},
        {"extract": {"vars.reference": {"from": {"css": "#reference"}}}},
        {"ask": {"type": "mfa", "message": "The code, reference {{vars.reference}}.",
                 "fields": [{"name": "code", "type": "code", "label": "Code"}]}},
        {"fill": {"target": {"label": "One-time code"}, "value": "{{answer.code}}"}},
        {"click": {"role": "button", "name": "Continue"}, "timeout_ms": 60_000},
        {"wait": {"exists": {"role": "table"}}, "timeout_ms": 60_000},
        {"extract": {"bills": {"as": "list", "from": {"css": "#bills tbody tr"}, "items": {"from": {"css": "th"}}}}},
    ]);
    let began = std::time::Instant::now();
    let mut runs = Vec::new();
    for number in 0..SESSIONS {
        let email = format!("many{number}@example.com");
        let input = json!({"url": portal.url(), "email": email});
        runs.push((world.run_with(json!({}), json!({"steps": steps}), input).await, email));
    }
    join_all(runs.iter().map(|(run, _)| world.reaches(*run, v1::RunStatus::InteractionRequired))).await;
    let all_there = began.elapsed();
    assert_eq!(browsers(&world.work).len(), SESSIONS);
    let family = descendants(world.runner_pid());
    let memory: u64 = family.iter().map(|pid| proportional(*pid)).sum();
    let runner = proportional(world.runner_pid());
    println!(
        "{SESSIONS} sessions, all at a question {:.1} s after the first was asked for: {} MiB a session ({} processes), \
         the runner {} MiB",
        all_there.as_secs_f64(),
        memory / 1024 / SESSIONS as u64,
        family.len() / SESSIONS,
        runner / 1024,
    );
    assert!(memory / 1024 / (SESSIONS as u64) < 600, "a session takes more than this machine could have");
    for (run, email) in &runs {
        portal.answer(&world, *run, email, true).await;
    }
    let outputs: Vec<Value> = join_all(runs.iter().map(|(run, _)| world.output(*run))).await;
    assert!(outputs.iter().all(|output| output["bills"].as_array().unwrap().len() == 7));
    world.end().await;
}
