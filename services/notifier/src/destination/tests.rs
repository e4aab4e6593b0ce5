use errand_core::ErrorCode;
use errand_proto::event::TYPES;

use super::*;

const TASK: &str = "task_01h455vb4pex5vsknk084sn02q";

fn run_event(task: &str, metadata: &[(&str, &str)]) -> v1::Event {
    let metadata = metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let run =
        v1::RunSummary { task_id: task.into(), agent_id: "agt_exec".into(), metadata, ..v1::RunSummary::default() };
    v1::Event { data: Some(v1::event::Data::Run(run)), ..v1::Event::default() }
}

#[test]
fn patterns_mean_what_they_say() {
    for (pattern, event_type, fits) in [
        ("*", "task_run.completed", true),
        ("task_run.*", "task_run.completed", true),
        ("task_run.*", "task.created", false),
        ("task.*", "task_run.completed", false),
        ("task_run.completed", "task_run.completed", true),
        ("task_run.completed", "task_run.failed", false),
    ] {
        assert_eq!(pattern.parse::<Pattern>().unwrap().fits(event_type), fits, "{pattern} {event_type}");
    }
}

#[test]
fn a_type_that_is_none_is_refused_by_name() {
    for text in
        ["", "task_run", "task_run.", "task_run.finished", "runs.*", ".*", "**", "event_destination.test", "Task.*"]
    {
        let reason = text.parse::<Pattern>().unwrap_err();
        assert!(reason.contains(&format!("{text:?}")), "{reason}");
    }
    for text in TYPES {
        assert_eq!(text.parse::<Pattern>().unwrap().to_string(), *text);
    }
}

#[test]
fn a_filter_needs_all_its_fields_and_any_of_their_values() {
    let filter = |task_id: &[&str], agent_id: &[&str], metadata: &[(&str, &str)]| {
        Filter::try_from(v1::DestinationFilter {
            task_id: task_id.iter().map(ToString::to_string).collect(),
            agent_id: agent_id.iter().map(ToString::to_string).collect(),
            metadata: metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        })
        .unwrap()
    };
    let other = "task_01h455vb4pex5vsknk084sn02r";
    let run = run_event(TASK, &[("order", "1"), ("kind", "a")]);
    assert!(filter(&[], &[], &[]).fits(&run));
    assert!(filter(&[other, TASK], &["agt_exec"], &[("order", "1")]).fits(&run));
    assert!(!filter(&[other], &[], &[]).fits(&run));
    assert!(!filter(&[TASK], &["agt_browser"], &[]).fits(&run));
    assert!(!filter(&[], &[], &[("order", "1"), ("kind", "b")]).fits(&run));
    let session = v1::Event {
        data: Some(v1::event::Data::Session(v1::SessionSummary { agent_id: "agt_exec".into(), ..Default::default() })),
        ..v1::Event::default()
    };
    assert!(filter(&[], &["agt_exec"], &[]).fits(&session));
    assert!(!filter(&[TASK], &[], &[]).fits(&session) && !filter(&[], &[], &[("a", "b")]).fits(&session));
}

#[test]
fn what_a_request_says_is_checked_by_field() {
    let make = |name: &str, events: &[&str], filter: Option<v1::DestinationFilter>| {
        let events: Vec<String> = events.iter().map(ToString::to_string).collect();
        Definition::new(name.into(), "webhook".into(), &events, filter, true)
    };
    assert_eq!(make("n", &["*", "*"], None).unwrap().events, [Pattern::All]);
    let bad_task = v1::DestinationFilter { task_id: vec!["x".into()], ..Default::default() };
    let long = "n".repeat(200);
    for (made, code, field) in [
        (make("", &["*"], None), ErrorCode::INPUT_MISSING, "name"),
        (make(&long, &["*"], None), ErrorCode::INPUT_INVALID, "name"),
        (make("a\nb", &["*"], None), ErrorCode::INPUT_INVALID, "name"),
        (make("n", &[], None), ErrorCode::INPUT_MISSING, "events"),
        (make("n", &["task_run.done"], None), ErrorCode::INPUT_INVALID, "events"),
        (make("n", &["*"; 51], None), ErrorCode::INPUT_INVALID, "events"),
        (make("n", &["*"], Some(bad_task)), ErrorCode::INPUT_INVALID, "filter.task_id"),
    ] {
        let error = made.unwrap_err();
        assert_eq!((error.code, error.field.as_deref()), (code, Some(field)));
    }
}

#[test]
fn secrets_are_bound_to_their_destination_and_shown_nowhere() {
    let vault = Vault::new(errand_seal::Keyring::parse(&errand_seal::new_key()).unwrap());
    let id = DestinationId::from_uuid(uuid::Uuid::now_v7());
    let secret = new_secret();
    assert!(secret.starts_with("whsec_") && secret.len() == 6 + 44);
    let private = Private { config: "{\"k\":1}".into(), secret: Some(secret.clone()), old_secret: Some("old".into()) };
    let sealed = vault.seal(id, &private).unwrap();
    assert_eq!(vault.open(id, &sealed).unwrap(), private);
    assert!(vault.open(DestinationId::from_uuid(uuid::Uuid::now_v7()), &sealed).is_err());
    assert!(!format!("{private:?}{vault:?}").contains(&secret));
    let (now, later) = (Timestamp(10), Timestamp(11));
    assert_eq!(private.secrets(Some(later), now), [secret.clone(), "old".to_owned()]);
    for expired in [None, Some(now)] {
        assert_eq!(private.secrets(expired, now), std::slice::from_ref(&secret));
    }
}
