use std::collections::BTreeMap;

use super::*;

const EVENT: &str = "evt_01h455vb4pex5vsknk084sn02q";
const RUN: &str = "trun_01h455vb4pex5vsknk084sn02q";
const SESSION: &str = "sess_01h455vb4pex5vsknk084sn02q";
const TASK: &str = "task_01h455vb4pex5vsknk084sn02q";
const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const CREATED: i64 = 1_750_000_000_123;

fn event(kind: &str, object_id: &str, data: v1::event::Data) -> v1::Event {
    v1::Event {
        id: EVENT.into(),
        r#type: kind.into(),
        tenant: "acme".into(),
        object_id: object_id.into(),
        seq: 3,
        created_at_ms: CREATED,
        data: Some(data),
        traceparent: TRACE.into(),
    }
}

fn of_run() -> v1::Event {
    let question = v1::Interaction {
        id: "mfa-1".into(),
        r#type: "mfa".into(),
        message: "The code from your phone".into(),
        fields: vec![v1::InteractionField {
            name: "code".into(),
            r#type: "code".into(),
            label: "Code".into(),
            options: Vec::new(),
        }],
        expires_at_ms: CREATED + 600_000,
    };
    let summary = v1::RunSummary {
        id: RUN.into(),
        status: v1::RunStatus::InteractionRequired.into(),
        result: None,
        task_id: TASK.into(),
        task_version: 2,
        session_id: SESSION.into(),
        agent_id: "agt_browser".into(),
        source_id: "src_01h455vb4pex5vsknk084sn02q".into(),
        credential_id: String::new(),
        attempt: 1,
        errors: Vec::new(),
        interaction: Some(question),
        metadata: BTreeMap::from([("order".into(), "42".into())]),
        created_at_ms: CREATED - 2_000,
        started_at_ms: Some(CREATED - 1_000),
        finished_at_ms: None,
        runtime_ms: None,
        deadlines: vec![v1::Deadline {
            kind: v1::DeadlineKind::Interaction.into(),
            at_ms: CREATED + 600_000,
            window_ms: 0,
        }],
        retry_of: String::new(),
    };
    event("task_run.interaction_required", RUN, v1::event::Data::Run(summary))
}

fn of_session() -> v1::Event {
    let summary = v1::SessionSummary {
        id: SESSION.into(),
        status: v1::SessionStatus::Running.into(),
        agent_id: "agt_browser".into(),
        runner_id: "rnr_01h455vb4pex5vsknk084sn02q".into(),
        run_id: RUN.into(),
        reason: String::new(),
        created_at_ms: CREATED - 5_000,
    };
    event("session.running", SESSION, v1::event::Data::Session(summary))
}

fn of_task() -> v1::Event {
    let summary = v1::TaskSummary { id: TASK.into(), version: 2, name: "Pay".into(), agent_id: "agt_browser".into() };
    event("task.updated", TASK, v1::event::Data::Task(summary))
}

#[test]
fn the_json_form_of_each_object_is_the_contracts() {
    for (name, event) in [("task_run", of_run()), ("session", of_session()), ("task", of_task())] {
        let told = telling(&event.encode_to_vec()).unwrap();
        assert_eq!((told.event.tenant.as_str(), told.object_and_action().0), ("acme", name));
        assert_eq!((told.id.to_string().as_str(), told.traceparent()), (EVENT, Some(TRACE)));
        let value: serde_json::Value = serde_json::from_slice(&told.json()).unwrap();
        insta::assert_snapshot!(name, serde_json::to_string_pretty(&value).unwrap());
    }
}

#[test]
fn the_subject_is_made_of_words_only() {
    let told = telling(&of_run().encode_to_vec()).unwrap();
    assert_eq!(told.object_and_action(), ("task_run", "interaction_required"));
    for kind in ["", "task_run", "task_run.", ".failed", "task_run.>", "task_run.*", "a.b.c", "Task.updated", "a b.c"] {
        let event = v1::Event { r#type: kind.into(), ..of_run() };
        assert!(telling(&event.encode_to_vec()).unwrap_err().starts_with("type:"), "{kind}");
    }
    for tenant in ["", ">", "a.b", "_other"] {
        let event = v1::Event { tenant: tenant.into(), ..of_run() };
        assert!(telling(&event.encode_to_vec()).unwrap_err().starts_with("tenant:"), "{tenant}");
    }
    let warm = v1::Event { tenant: "_system".into(), ..of_session() };
    assert_eq!(telling(&warm.encode_to_vec()).unwrap().event.tenant, "_system");
}

#[test]
fn what_cannot_be_told_on_has_a_reason() {
    assert!(telling(b"\xff\xff\xff").unwrap_err().starts_with("it is no event"));
    let anonymous = v1::Event { id: String::new(), ..of_task() };
    assert!(telling(&anonymous.encode_to_vec()).unwrap_err().starts_with("id:"));
    let empty = v1::Event { data: None, ..of_task() };
    assert!(telling(&empty.encode_to_vec()).unwrap_err().contains("data"));
}

#[test]
fn each_subject_is_asked_for_once_and_no_object_overtakes_itself() {
    let chosen = |events: &[(&str, &str)]| {
        let First { asked, told } = first(events.iter().copied());
        (asked.into_iter().collect::<Vec<_>>(), told.into_iter().collect::<Vec<_>>())
    };
    assert_eq!(chosen(&[]), (vec![], vec![]));
    assert_eq!(chosen(&[("queued", "a"), ("queued", "b"), ("running", "c")]), (vec![0, 2], vec![0, 2]));
    // Of a run that is told of from its beginning no later event goes ahead where another run's will do.
    assert_eq!(chosen(&[("queued", "a"), ("running", "a"), ("running", "b")]), (vec![0, 2], vec![0, 2]));
    // Else what is before it goes along.
    let one = [("queued", "x"), ("queued", "a"), ("running", "a"), ("queued", "b"), ("completed", "a")];
    assert_eq!(chosen(&one), (vec![0, 2, 4], vec![0, 1, 2, 4]));
}
