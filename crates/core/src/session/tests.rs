//! The whole table as a snapshot, and random histories against the invariant.

use std::fmt::Write;

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::limits::MAX_MESSAGE_BYTES;
use crate::testing::is_one_word;

const START: Timestamp = Timestamp(1_700_000_000_000);
const LATER: Timestamp = Timestamp(1_700_000_001_000);

fn uuid(number: u128) -> Uuid {
    Uuid::from_u128(number)
}

fn tenant() -> Tenant {
    "acme".parse().unwrap()
}

pub(crate) fn lease(token: LeaseToken) -> Command {
    Command::Lease {
        run_id: RunId::from_uuid(uuid(u128::from(token))),
        token,
        tenant: tenant(),
        source_id: None,
        credential_id: None,
    }
}

pub(crate) fn fresh() -> Session {
    Session {
        id: SessionId::from_uuid(uuid(1)),
        tenant: None,
        agent_id: "agt_exec".parse().unwrap(),
        runner_id: RunnerId::from_uuid(uuid(2)),
        source_id: None,
        credential_id: None,
        seq: 1,
        state: State::Queued,
        runs_served: 0,
        reason: None,
        created_at: START,
        updated_at: START,
        ended_at: None,
    }
}

/// The session after these commands, each of which must change it.
pub(crate) fn after(commands: &[Command]) -> Session {
    commands.iter().fold(fresh(), |session, command| match apply(&session, command.clone(), START) {
        Outcome::Changed(next) => *next,
        Outcome::Ignored(why) => panic!("{command:?} of {}: {why:?}", session.status().as_str()),
    })
}

fn end(token: Option<LeaseToken>) -> Command {
    Command::End { token, reason: "enough".into() }
}

fn fail() -> Command {
    Command::Fail { reason: "it died".into() }
}

/// One session in each state; where one is leased, by token 2.
pub(crate) fn each_state() -> Vec<Session> {
    vec![
        fresh(),
        after(&[lease(2)]),
        after(&[Command::Ready]),
        after(&[lease(2), end(None)]),
        after(&[end(None), Command::Ended]),
        after(&[fail()]),
    ]
}

/// Each command, with each relation to the lease that may hold the session.
fn each_command() -> Vec<(&'static str, Command)> {
    vec![
        ("ready", Command::Ready),
        ("lease, older", lease(1)),
        ("lease, the same", lease(2)),
        ("lease, newer", lease(3)),
        ("release, older", Command::Release { token: 1 }),
        ("release, the same", Command::Release { token: 2 }),
        ("end, whoever holds it", end(None)),
        ("end, of an older lease", end(Some(1))),
        ("end, of the same lease", end(Some(2))),
        ("ended", Command::Ended),
        ("fail", fail()),
    ]
}

#[test]
fn the_whole_table() {
    let states = each_state();
    assert!(states.iter().map(Session::status).eq(SessionStatus::ALL), "every status is there");
    let mut table = String::new();
    for session in states {
        writeln!(table, "{}", session.status().as_str()).unwrap();
        for (name, command) in each_command() {
            let outcome = match apply(&session, command, LATER) {
                Outcome::Changed(next) => {
                    let holder = next.holder().map_or(String::new(), |(_, token)| format!(", held by {token}"));
                    format!("-> {}{holder}", next.status().as_str())
                }
                Outcome::Ignored(why) => format!("ignored: {why:?}"),
            };
            writeln!(table, "    {name:<24} {outcome}").unwrap();
        }
    }
    insta::assert_snapshot!(table);
}

#[test]
fn a_status_is_one_word_wherever_it_stands() {
    is_one_word(&SessionStatus::ALL, SessionStatus::as_str);
    for session in each_state() {
        // Stores filter by the column and read the document.
        assert_eq!(serde_json::to_value(&session.state).unwrap()["status"], session.status().as_str());
    }
}

#[test]
fn a_session_keeps_when_and_why_it_ended_and_whom_it_served() {
    let ended: Vec<_> = each_state().into_iter().map(|session| (session.ended_at, session.reason)).collect();
    let reason = |text: &str| Some(text.to_owned());
    let (enough, died) = (reason("enough"), reason("it died"));
    let open = (None, None);
    let expected =
        [open.clone(), open.clone(), open, (None, enough.clone()), (Some(START), enough), (Some(START), died)];
    assert_eq!(ended, expected);
    let served = after(&[lease(2), Command::Release { token: 2 }, lease(3), Command::Release { token: 3 }, lease(4)]);
    assert_eq!((served.runs_served, served.tenant), (3, Some(tenant())));
}

#[test]
fn a_long_reason_is_cut_at_a_character() {
    let limit = MAX_MESSAGE_BYTES;
    for (reason, kept) in
        [("x".repeat(limit), limit), ("x".repeat(limit + 1), limit), (format!("x{}", "é".repeat(limit)), limit - 1)]
    {
        let cut = reason[..kept].to_owned();
        assert_eq!(after(&[Command::Fail { reason }]).reason, Some(cut));
    }
}

#[test]
fn each_broken_session_is_noticed() {
    let [queued, running, idle, completing, completed, failed] = &each_state()[..] else { panic!() };
    type Spoil = fn(&mut Session);
    let cases: [(&Session, Spoil); 6] = [
        (completed, |session| session.ended_at = None),
        (failed, |session| session.ended_at = None),
        (idle, |session| session.ended_at = Some(START)),
        (completing, |session| session.ended_at = Some(START)),
        (running, |session| session.tenant = None),
        (queued, |session| session.seq = 0),
    ];
    for (case, (session, spoil)) in cases.into_iter().enumerate() {
        let mut spoiled = session.clone();
        spoil(&mut spoiled);
        assert_eq!(check(session), Ok(()), "{case}");
        assert_eq!(check(&spoiled).unwrap_err().number, 7, "{case}");
    }
}

proptest! {
    /// Duplicates, reordering and stale leases: a session is leased, idle or torn down, its events count by one, only
    /// the lease that holds it gives it back, and a final one stays as it is.
    #[test]
    fn random_histories_keep_the_invariant(history in prop::collection::vec(0..each_command().len(), 1..40)) {
        let mut session = fresh();
        for at in history {
            let (name, command) = each_command().swap_remove(at);
            let Outcome::Changed(next) = apply(&session, command.clone(), LATER) else { continue };
            prop_assert_eq!(check(&next), Ok(()));
            prop_assert!(!session.status().is_final(), "{} moved a final session", name);
            prop_assert_eq!(next.seq, session.seq + 1);
            if let (Some((_, held)), Command::Release { token } | Command::End { token: Some(token), .. }) =
                (session.holder(), command)
            {
                prop_assert_eq!(held, token, "a stale lease moved the session");
            }
            session = *next;
        }
    }
}
