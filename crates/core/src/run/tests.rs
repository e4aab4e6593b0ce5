//! The whole state x command table as a snapshot, and random histories against the named invariants.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use uuid::Uuid;

use super::*;
use crate::error::ErrorCode;
use crate::id::{RunId, RunnerId, SessionId, TaskId};
use crate::limits;
use crate::task::Settings;
use crate::testing::is_one_word;
use crate::time::Timestamp;

pub(crate) const START: Timestamp = Timestamp(1_000_000);

pub(crate) fn lease(token: LeaseToken) -> Lease {
    let session_id = SessionId::from_uuid(Uuid::from_u128(u128::from(token)));
    Lease { session_id, runner_id: RunnerId::from_uuid(Uuid::from_u128(1)), token }
}

fn described(settings: Settings) -> Run {
    let spec = Spec {
        task_id: TaskId::from_uuid(Uuid::from_u128(2)),
        task_version: 1,
        agent_id: "agt_exec".parse().ok(),
        source_id: None,
        credential_id: None,
        wanted_session: None,
        metadata: BTreeMap::new(),
        settings,
        retry_of: None,
        traceparent: None,
    };
    Run {
        id: RunId::from_uuid(Uuid::from_u128(3)),
        tenant: "acme".parse().unwrap(),
        spec: Arc::new(spec),
        seq: 0,
        attempt: 1,
        state: State::Queued { since: START },
        session_id: None,
        errors: Vec::new(),
        created_at: START,
        started_at: None,
        finished_at: None,
        canceled_at: None,
        updated_at: START,
        last_activity: START,
        input: Bytes::from_static(b"{}"),
        output: None,
    }
}

pub(crate) fn settings() -> Settings {
    Settings { timeout_seconds: Some(7200), review_seconds: Some(60), max_attempts: 2, ..Settings::default() }
}

pub(crate) fn question(id: &str) -> Question {
    let field = InteractionField { name: "code".into(), r#type: "code".into(), label: String::new(), options: vec![] };
    Question { id: id.into(), r#type: "mfa".into(), message: "code?".into(), fields: vec![field] }
}

fn output(misfit: Option<&str>) -> Output {
    Output { json: Bytes::from_static(b"1"), misfit: misfit.map(Into::into) }
}

pub(crate) fn expire(kind: DeadlineKind, version: u64) -> Command {
    Command::Expire { kind, version, last_activity: START }
}

pub(crate) fn must(run: &Run, command: Command, now: Timestamp) -> Run {
    match apply(run, command, now) {
        Outcome::Changed(change) => {
            assert_eq!(check_change(run, &change.next), Ok(()));
            change.next
        }
        other => panic!("{other:?}"),
    }
}

/// A run in each state; those with a lease hold token 7.
pub(crate) fn each_state(settings: &Settings) -> Vec<Run> {
    let at = START.plus_seconds(1);
    let queued = submit(described(settings.clone()), Ok(()), START).next;
    let running = must(&queued, Command::Grant { lease: lease(7), attempt: 1 }, at);
    let asking = must(&running, Command::Ask { token: 7, question: question("q1") }, at);
    let reviewed = Settings { review: true, ..settings.clone() };
    let review = must(
        &must(&submit(described(reviewed), Ok(()), START).next, Command::Grant { lease: lease(7), attempt: 1 }, at),
        Command::Finish { token: 7, output: output(None) },
        at,
    );
    let completed = must(&running, Command::Finish { token: 7, output: output(None) }, at);
    let failed = must(&running, Command::Fail { token: 7, errors: Vec::new() }, at);
    let canceling = must(&running, Command::Cancel, at);
    let canceled = must(&canceling, Command::Stopped { token: 7 }, at);
    vec![queued, running, asking, review, completed, failed, canceling, canceled]
}

fn each_command(seq: u64) -> Vec<(&'static str, Command)> {
    let lost = |token, reason| Command::Lost { token, reason, message: "gone".into() };
    let mut commands = vec![
        ("grant", Command::Grant { lease: lease(8), attempt: 1 }),
        ("grant, the same", Command::Grant { lease: lease(7), attempt: 1 }),
        ("grant, other attempt", Command::Grant { lease: lease(8), attempt: 2 }),
        ("ask", Command::Ask { token: 7, question: question("q2") }),
        ("ask, the same", Command::Ask { token: 7, question: question("q1") }),
        ("ask, stale", Command::Ask { token: 6, question: question("q2") }),
        ("ask, no fields", Command::Ask { token: 7, question: Question { fields: vec![], ..question("q2") } }),
        ("answered", Command::Answered { interaction_id: "q1".into() }),
        ("answered, other", Command::Answered { interaction_id: "q0".into() }),
        ("finish, fits", Command::Finish { token: 7, output: output(None) }),
        ("finish, misfit", Command::Finish { token: 7, output: output(Some("no")) }),
        ("finish, stale", Command::Finish { token: 6, output: output(None) }),
        ("fail", Command::Fail { token: 7, errors: vec![ErrorCode::SOURCE_ERROR.with("x")] }),
        ("fail, stale", Command::Fail { token: 6, errors: Vec::new() }),
        ("stopped", Command::Stopped { token: 7 }),
        ("stopped, stale", Command::Stopped { token: 6 }),
        ("lost", lost(7, LostReason::RunnerLost)),
        ("lost, ended by a user", lost(7, LostReason::SessionEnded)),
        ("lost, stale", lost(6, LostReason::RunnerLost)),
        ("cancel", Command::Cancel),
        ("approve", Command::Review { decision: Decision::Approve, comment: String::new() }),
        ("reject", Command::Review { decision: Decision::Reject, comment: "no".into() }),
    ];
    for (name, kind) in [
        ("expire queue", DeadlineKind::Queue),
        ("expire inactivity", DeadlineKind::Inactivity),
        ("expire total", DeadlineKind::Total),
        ("expire interaction", DeadlineKind::Interaction),
        ("expire review", DeadlineKind::Review),
        ("expire stop grace", DeadlineKind::StopGrace),
    ] {
        commands.push((name, expire(kind, seq)));
    }
    commands.push(("expire inactivity, older version", expire(DeadlineKind::Inactivity, seq - 1)));
    commands
}

fn told(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Changed(change) => {
            let next = &change.next;
            let errors: Vec<String> =
                next.errors.iter().map(|error| format!("{}/{}", error.code.kind, error.code.code)).collect();
            let effects: Vec<String> = change
                .effects
                .iter()
                .map(|effect| match effect {
                    Effect::Acquire => "acquire".into(),
                    Effect::Withdraw => "withdraw".into(),
                    Effect::Assign(lease) => format!("assign {}", lease.token),
                    Effect::Stop(lease, _) => format!("stop {}", lease.token),
                    Effect::Release { lease, discard } => {
                        format!("{} {}", if *discard { "discard" } else { "release" }, lease.token)
                    }
                })
                .collect();
            format!("-> {} {} [{}]", next.status().as_str(), errors.join(" "), effects.join(", "))
        }
        Outcome::Ignored(reason) => format!("ignored: {reason:?}"),
        Outcome::Rejected(error) => format!("rejected: {}/{}", error.code.kind, error.code.code),
    }
}

#[test]
fn the_whole_table() {
    let late = START.plus_seconds(100_000);
    let mut table = String::new();
    for run in each_state(&settings()) {
        assert_eq!(check(&run), Ok(()));
        writeln!(table, "{}", run.status().as_str()).unwrap();
        for (name, command) in each_command(run.seq) {
            let outcome = apply(&run, command, late);
            if let Outcome::Changed(change) = &outcome {
                assert_eq!(check_change(&run, &change.next), Ok(()), "{} {name}", run.status().as_str());
            }
            writeln!(table, "    {name:<32} {}", told(&outcome)).unwrap();
        }
    }
    insta::assert_snapshot!(table);
}

#[test]
fn an_invalid_submission_fails_with_its_error_and_one_event() {
    let change = submit(described(settings()), Err(ErrorCode::INPUT_INVALID.with("no")), START);
    assert_eq!((change.next.status(), change.next.seq, check(&change.next)), (RunStatus::Failed, 1, Ok(())));
    assert!(change.effects.is_empty());
}

#[test]
fn a_deadline_that_has_not_passed_changes_nothing() {
    for run in each_state(&settings()) {
        for deadline in armed(&run).deadlines() {
            let just_before = Timestamp(deadline.at.0 - 1);
            let command = expire(deadline.kind, run.seq);
            assert_eq!(apply(&run, command.clone(), just_before), Outcome::Ignored(Ignored::NotYet));
            assert!(matches!(apply(&run, command, deadline.at), Outcome::Changed(_)), "{deadline:?}");
        }
    }
}

#[test]
fn activity_moves_the_inactivity_deadline_and_waiting_for_a_person_stops_the_clocks() {
    let mut run = each_state(&settings()).swap_remove(1);
    assert!(touch(&mut run, 7, START.plus_seconds(600)) && !touch(&mut run, 6, START.plus_seconds(900)));
    assert!(!touch(&mut run, 7, START.plus_seconds(600)), "what does not move is not written");
    assert_eq!(armed(&run).deadlines()[0].at, START.plus_seconds(600 + 1800));
    let total = armed(&run).deadlines()[1].at;
    let asking = must(&run, Command::Ask { token: 7, question: question("q1") }, START.plus_seconds(700));
    assert_eq!(armed(&asking).deadlines().len(), 1);
    let answered = must(&asking, Command::Answered { interaction_id: "q1".into() }, START.plus_seconds(1000));
    assert_eq!(armed(&answered).deadlines()[1].at, total.plus_seconds(300));
}

#[test]
fn a_question_that_was_answered_is_not_opened_again_by_its_late_repetition() {
    let at = START.plus_seconds(2);
    let asking = each_state(&settings()).swap_remove(2);
    let answered = must(&asking, Command::Answered { interaction_id: "q1".into() }, at);
    let repeated = Command::Ask { token: 7, question: question("q1") };
    assert_eq!(apply(&answered, repeated, at), Outcome::Ignored(Ignored::Repeated));
    must(&answered, Command::Ask { token: 7, question: question("q2") }, at);
}

#[test]
fn an_agent_that_goes_on_has_left_its_question() {
    let asking = each_state(&settings()).swap_remove(2);
    let answered = Command::Answered { interaction_id: "q1".into() };
    for (command, goes_on) in [
        (Command::Finish { token: 7, output: output(None) }, true),
        (Command::Fail { token: 7, errors: Vec::new() }, true),
        (Command::Stopped { token: 7 }, true),
        (Command::Ask { token: 7, question: question("q2") }, true),
        (Command::Ask { token: 7, question: question("q1") }, false),
        (Command::Finish { token: 6, output: output(None) }, false),
        (Command::Cancel, false),
        (answered.clone(), false),
    ] {
        assert_eq!(implied(&asking, &command), goes_on.then(|| answered.clone()), "{command:?}");
    }
    for other in each_state(&settings()).iter().filter(|run| run.status() != RunStatus::InteractionRequired) {
        assert_eq!(implied(other, &Command::Finish { token: 7, output: output(None) }), None);
    }
}

#[test]
fn review_without_a_limit_says_so() {
    let unlimited = Settings { review_seconds: None, ..settings() };
    assert_eq!(armed(&each_state(&unlimited)[3]), Armed::ReviewWithoutLimit);
}

#[test]
fn an_answer_is_checked_against_the_fields_without_telling_it() {
    let question = question("q");
    let check = |json: &str| check_answer(&question, &serde_json::from_str(json).unwrap());
    assert_eq!(check(r#"{"code":"123456"}"#), Ok(()));
    for (json, code) in [
        ("[]", ErrorCode::INPUT_INVALID),
        ("{}", ErrorCode::INPUT_MISSING),
        (r#"{"code":null}"#, ErrorCode::INPUT_MISSING),
        (r#"{"code":424242}"#, ErrorCode::INPUT_INVALID),
        (r#"{"code":"424242","other":"424242"}"#, ErrorCode::FIELD_UNKNOWN),
    ] {
        let error = check(json).unwrap_err();
        assert_eq!(error.code, code, "{json}");
        assert!(!error.message.contains("424242"), "{error}");
    }
}

#[test]
fn an_answer_is_within_the_limit_and_of_a_select_one_of_its_options() {
    let select = InteractionField {
        name: "account".into(),
        r#type: "select".into(),
        label: String::new(),
        options: vec!["a".into(), "b".into()],
    };
    let code = question("q").fields.swap_remove(0);
    let question = Question { fields: vec![code, select], ..question("q") };
    let limit = limits::MAX_MESSAGE_BYTES;
    for (code, account, wrong) in [
        ("x".repeat(limit), "b", None),
        ("x".repeat(limit + 1), "b", Some("input.code")),
        ("1".into(), "c", Some("input.account")),
        ("1".into(), "", Some("input.account")),
    ] {
        let answer = serde_json::json!({ "code": code, "account": account });
        let error = check_answer(&question, &answer).err();
        assert_eq!(error.as_ref().and_then(|error| error.field.as_deref()), wrong, "{account}");
        assert!(error.is_none_or(|error| error.code == ErrorCode::INPUT_INVALID));
    }
}

#[test]
fn a_question_is_taken_up_to_its_limits() {
    type Size = fn(&mut Question, usize);
    let cases: [(&str, usize, usize, Size); 8] = [
        ("id", 1, 128, |q, n| q.id = "x".repeat(n)),
        ("type", 1, 64, |q, n| q.r#type = "x".repeat(n)),
        ("message", 0, limits::MAX_MESSAGE_BYTES, |q, n| q.message = "x".repeat(n)),
        ("fields", 1, limits::MAX_INTERACTION_FIELDS, |q, n| {
            q.fields = (0..n).map(|at| InteractionField { name: format!("f{at}"), ..q.fields[0].clone() }).collect();
        }),
        ("fields.0", 1, 64, |q, n| q.fields[0].name = "x".repeat(n)),
        ("fields.0", 0, limits::MAX_MESSAGE_BYTES, |q, n| q.fields[0].label = "x".repeat(n)),
        ("fields.0", 1, limits::MAX_INTERACTION_OPTIONS, |q, n| {
            q.fields[0].r#type = "select".into();
            q.fields[0].options = (0..n).map(|at| at.to_string()).collect();
        }),
        ("fields.0", 0, limits::MAX_MESSAGE_BYTES, |q, n| {
            q.fields[0].r#type = "select".into();
            q.fields[0].options = vec!["short".into(), "x".repeat(n)];
        }),
    ];
    for (case, (field, least, most, size)) in cases.into_iter().enumerate() {
        let checked = |n| {
            let mut question = question("q");
            size(&mut question, n);
            question.check()
        };
        assert_eq!((checked(least), checked(most)), (Ok(()), Ok(())), "{case}");
        for beyond in least.checked_sub(1).into_iter().chain([most + 1]) {
            let error = checked(beyond).unwrap_err();
            let expected = (ErrorCode::INTERACTION_INVALID, Some(format!("interaction.{field}")));
            assert_eq!((error.code, error.field), expected, "{case}: {beyond}");
        }
    }
}

#[test]
fn the_fields_of_a_question_are_of_known_types_and_other_names() {
    let field = |name: &str, r#type: &str, options: &[&str]| InteractionField {
        name: name.into(),
        r#type: r#type.into(),
        label: String::new(),
        options: options.iter().map(ToString::to_string).collect(),
    };
    for (fields, wrong) in [
        (vec![field("a", "text", &[]), field("b", "password", &[]), field("c", "code", &[])], None),
        (vec![field("a", "select", &["x"]), field("b", "text", &[])], None),
        (vec![field("a", "number", &[])], Some("interaction.fields.0")),
        (vec![field("a", "text", &[]), field("b", "text", &["x"])], Some("interaction.fields.1")),
        (
            vec![field("a", "text", &[]), field("b", "text", &[]), field("a", "code", &[])],
            Some("interaction.fields.2.name"),
        ),
    ] {
        let error = Question { fields, ..question("q") }.check().err();
        assert_eq!(error.and_then(|error| error.field).as_deref(), wrong);
    }
}

#[test]
fn a_status_is_one_word_wherever_it_stands() {
    is_one_word(&RunStatus::ALL, RunStatus::as_str);
    is_one_word(&[RunResult::Success, RunResult::Failure, RunResult::Unknown], RunResult::as_str);
    for run in each_state(&settings()) {
        // Stores filter by the column and read the document.
        assert_eq!(serde_json::to_value(&run.state).unwrap()["status"], run.status().as_str());
    }
}

#[test]
fn what_a_run_shows_follows_from_its_state() {
    let at = START.plus_seconds(1);
    for run in each_state(&settings()) {
        let asks = run.status() == RunStatus::InteractionRequired;
        let expected = Interaction { question: question("q1"), expires_at: at.plus_seconds(600) };
        assert_eq!(run.interaction(), asks.then_some(&expected), "{:?}", run.status());
        assert_eq!(run.runtime_ms(), run.status().is_final().then_some(0), "{:?}", run.status());
    }
    let [queued, running, ..] = &each_state(&settings())[..] else { panic!() };
    let finished = must(running, Command::Finish { token: 7, output: output(None) }, at.plus_millis(1234));
    assert_eq!(finished.runtime_ms(), Some(1234));
    assert_eq!(must(queued, Command::Cancel, at).runtime_ms(), None, "it never began");
}

#[test]
fn a_lost_session_costs_one_attempt_until_none_is_left() {
    let lost = |token| Command::Lost { token, reason: LostReason::RunnerLost, message: "gone".into() };
    let mut run = submit(described(Settings { max_attempts: 3, ..settings() }), Ok(()), START).next;
    for attempt in 1..=3 {
        assert_eq!((run.status(), run.attempt), (RunStatus::Queued, attempt));
        let running = must(&run, Command::Grant { lease: lease(attempt.into()), attempt }, START);
        run = must(&running, lost(attempt.into()), START);
    }
    assert_eq!((run.status(), run.attempt, run.errors[0].code), (RunStatus::Failed, 3, ErrorCode::SESSION_LOST));
}

type Spoil = fn(&mut Run);

#[test]
fn each_broken_run_is_noticed() {
    let [queued, running, _, _, completed, failed, ..] = &each_state(&settings())[..] else { panic!() };
    let last_attempt = Run { attempt: 2, ..running.clone() };
    assert_eq!(check(&last_attempt), Ok(()));
    let cases: [(&Run, u8, Spoil); 8] = [
        (completed, 3, |run| run.finished_at = None),
        (running, 3, |run| run.finished_at = Some(START)),
        (failed, 3, |run| run.errors.clear()),
        (completed, 3, |run| run.errors.push(ErrorCode::AGENT_ERROR.with("x"))),
        (queued, 4, |run| run.seq = 0),
        (running, 7, |run| run.session_id = Some(lease(8).session_id)),
        (running, 7, |run| run.session_id = None),
        (&last_attempt, 9, |run| run.attempt += 1),
    ];
    for (case, (run, number, spoil)) in cases.into_iter().enumerate() {
        let mut spoiled = run.clone();
        spoil(&mut spoiled);
        assert_eq!(check(&spoiled).unwrap_err().number, number, "{case}");
    }
}

#[test]
fn each_broken_change_is_noticed() {
    let states = each_state(&settings());
    let [queued, running, asking, review, completed, failed, ..] = &states[..] else { panic!() };
    let cases: [(&Run, &Run, u8, Spoil); 11] = [
        (running, asking, 1, |next| next.id = RunId::from_uuid(Uuid::from_u128(9))),
        (running, asking, 1, |next| next.tenant = "other".parse().unwrap()),
        (running, asking, 1, |next| Arc::make_mut(&mut next.spec).task_version = 2),
        (running, asking, 1, |next| next.input = Bytes::from_static(b"[]")),
        (completed, failed, 3, |next| next.seq += 1),
        (completed, completed, 3, |next| next.seq += 1),
        (running, asking, 4, |next| next.seq -= 1),
        (running, asking, 4, |next| next.seq += 1),
        (running, asking, 5, |next| hand_over(next, 8)),
        (running, asking, 5, |next| hand_over(next, 6)),
        (review, running, 5, |next| next.seq = 4),
    ];
    for (case, (before, after, number, spoil)) in cases.into_iter().enumerate() {
        let mut spoiled = after.clone();
        // Of a run that asks for review the spec is another.
        spoiled.spec = before.spec.clone();
        spoil(&mut spoiled);
        assert_eq!(check(&spoiled), Ok(()), "{case}: broken as a change only");
        assert_eq!(check_change(before, &spoiled).unwrap_err().number, number, "{case}");
    }
    let broken_by_itself = Run { session_id: None, ..asking.clone() };
    assert_eq!(check_change(running, &broken_by_itself).unwrap_err().number, 7);
    for (before, after) in [(queued, running), (running, asking), (running, completed), (running, failed)] {
        assert_eq!(check_change(before, after), Ok(()));
    }
}

/// The run, under another lease.
pub(crate) fn hand_over(run: &mut Run, token: LeaseToken) {
    let (State::Running(active) | State::InteractionRequired { active, .. } | State::Canceling { active, .. }) =
        &mut run.state
    else {
        panic!("{:?} has no lease", run.status())
    };
    active.lease = lease(token);
    run.session_id = Some(active.lease.session_id);
}

fn any_command() -> impl Strategy<Value = (usize, u64, i64)> {
    (0..each_command(1).len(), 0u64..4, 0i64..4_000_000)
}

/// The commands of the table, under any of a few tokens and attempts.
fn with_token(command: Command, token: LeaseToken, run: &Run) -> Command {
    match command {
        Command::Grant { .. } => Command::Grant { lease: lease(token), attempt: run.attempt },
        Command::Ask { question, .. } => Command::Ask { token, question },
        Command::Finish { output, .. } => Command::Finish { token, output },
        Command::Fail { errors, .. } => Command::Fail { token, errors },
        Command::Stopped { .. } => Command::Stopped { token },
        Command::Lost { reason, message, .. } => Command::Lost { token, reason, message },
        Command::Expire { kind, last_activity, .. } => Command::Expire { kind, version: run.seq, last_activity },
        other => other,
    }
}

/// Where the process dies while it handles a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Crash {
    Nowhere,
    /// The change is lost; the command comes again.
    BeforeCommit,
    /// The change stands, nobody was told; the command comes again, and the event is published after the restart.
    BeforePublish,
}

fn any_crash() -> impl Strategy<Value = Crash> {
    prop_oneof![6 => Just(Crash::Nowhere), 1 => Just(Crash::BeforeCommit), 1 => Just(Crash::BeforePublish)]
}

/// A run with its outbox: events are committed with the run, and published from a mark that a crash may leave behind.
struct World {
    run: Run,
    committed: Vec<u64>,
    marked: usize,
    published: Vec<u64>,
}

impl World {
    /// Publishes what the mark says is not; the mark moves unless the process dies before it is written.
    fn publish(&mut self, mark_is_written: bool) {
        self.published.extend(&self.committed[self.marked..]);
        if mark_is_written {
            self.marked = self.committed.len();
        }
    }

    fn handle(
        &mut self,
        command: &Command,
        token: LeaseToken,
        at: Timestamp,
        crash: Crash,
    ) -> Result<(), TestCaseError> {
        let before = self.run.clone();
        let holder = before.lease().map(|lease| lease.token);
        let Outcome::Changed(change) = apply(&before, command.clone(), at) else { return Ok(()) };
        prop_assert_eq!(check_change(&before, &change.next), Ok(()));
        let reported = matches!(
            command,
            Command::Ask { .. }
                | Command::Finish { .. }
                | Command::Fail { .. }
                | Command::Stopped { .. }
                | Command::Lost { .. }
        );
        prop_assert!(!reported || holder == Some(token), "a stale lease moved the run");
        prop_assert!(
            holder.is_none()
                || change.next.lease().is_some()
                || change.effects.iter().any(|effect| matches!(effect, Effect::Release { lease, .. }
                if Some(lease.token) == holder)),
            "a lease was dropped without a release"
        );
        if crash != Crash::BeforeCommit {
            self.run = change.next;
            self.committed.push(self.run.seq);
        }
        if crash == Crash::Nowhere {
            self.publish(at.0 % 2 == 0);
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Duplicates, reordering, stale leases, clocks that jump, crashes before a commit and between a commit and its
    /// publication: the invariants hold after each step, a final run stays as it is, and whoever drops what he has seen
    /// hears 1, 2, 3 ...
    #[test]
    fn random_histories_keep_the_invariants(
        history in prop::collection::vec((any_command(), any::<bool>(), any_crash()), 1..60),
        review in any::<bool>(),
    ) {
        let run = submit(described(Settings { review, ..settings() }), Ok(()), START).next;
        prop_assert_eq!(check(&run), Ok(()));
        let mut world = World { committed: vec![run.seq], run, marked: 0, published: Vec::new() };
        for ((at, token, offset), twice, crash) in history {
            let command = with_token(each_command(world.run.seq).swap_remove(at).1, token, &world.run);
            for time in 0..=usize::from(twice || crash != Crash::Nowhere) {
                let crash = if time == 0 { crash } else { Crash::Nowhere };
                world.handle(&command, token, START.plus_millis(offset), crash)?;
            }
        }
        world.publish(true);
        let expected: Vec<u64> = (1..=world.run.seq).collect();
        prop_assert_eq!(&world.committed, &expected);
        let mut heard: Vec<u64> = Vec::new();
        for seq in world.published {
            if !heard.contains(&seq) {
                heard.push(seq);
            }
        }
        prop_assert_eq!(heard, expected);
        let run = world.run;
        let stored: Run = serde_json::from_str(&serde_json::to_string(&run).unwrap()).unwrap();
        prop_assert_eq!(Run { input: run.input.clone(), output: run.output.clone(), ..stored }, run);
    }
}
