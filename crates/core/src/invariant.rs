//! The invariants of DESIGN section 5 that show over time and between objects, as named predicates: for the simulator
//! and the chaos tests alike. What one run or session shows by itself is checked beside its state machine.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::ErrorCode;
use crate::id::{EventId, RunId, SessionId};
use crate::run::{Broken, LeaseToken, Run, RunStatus, armed, check};
use crate::session::{self, Session};

fn hold(number: u8, holds: bool, what: impl FnOnce() -> String) -> Result<(), Broken> {
    if holds { Ok(()) } else { Err(Broken { number, what: what() }) }
}

/// What holds between a run in the store and what one commit made of it, with `events` events: several changes may
/// have been committed at once.
///
/// # Errors
/// The first invariant that does not hold.
pub fn check_commit(before: Option<&Run>, after: &Run, events: &[u64]) -> Result<(), Broken> {
    check(after)?;
    let first = before.map_or(1, |run| run.seq + 1);
    hold(2, events.iter().copied().eq(first..=after.seq), || {
        format!("{} went from {} to {} with the events {events:?}", after.id, first - 1, after.seq)
    })?;
    let Some(before) = before else { return Ok(()) };
    hold(3, !before.status().is_final(), || format!("{} was {} already", after.id, before.status().as_str()))?;
    hold(1, before.id == after.id && before.tenant == after.tenant && before.spec == after.spec, || {
        format!("{} is another run now", after.id)
    })?;
    hold(3, before.attempt <= after.attempt, || format!("{} goes back to attempt {}", after.id, after.attempt))?;
    let (old, new) = (before.lease().map(|lease| lease.token), after.lease().map(|lease| lease.token));
    let grows = old.zip(new).is_none_or(|(old, new)| old <= new);
    hold(5, grows, || format!("{} goes back from lease {old:?} to {new:?}", after.id))?;
    hold(5, new.is_none() || old == new || before.status() == RunStatus::Queued || after.seq > before.seq + 1, || {
        format!("{} got lease {new:?} without having waited", after.id)
    })
}

/// A run that fails because its time is over has had a deadline that passed (invariant 6). Later activity than the
/// store knows may have moved the deadline, but never to an earlier time.
///
/// # Errors
/// Where no deadline had passed.
pub fn check_expired(before: &Run, after: &Run) -> Result<(), Broken> {
    let timeouts = [
        ErrorCode::SESSION_TIMEOUT,
        ErrorCode::TASK_TIMEOUT,
        ErrorCode::INTERACTION_TIMEOUT,
        ErrorCode::REVIEW_TIMEOUT,
    ];
    // Several changes in one commit: what was armed in between is not known.
    let expired = after.seq == before.seq + 1 && after.errors.iter().any(|error| timeouts.contains(&error.code));
    let passed = armed(before).deadlines().iter().any(|deadline| deadline.at <= after.updated_at);
    hold(6, !expired || passed, || format!("{} has failed before its time", after.id))
}

/// What holds between a session in the store and what one commit made of it.
///
/// # Errors
/// The first invariant that does not hold.
pub fn check_session_commit(before: Option<&Session>, after: &Session, events: &[u64]) -> Result<(), Broken> {
    session::check(after)?;
    let first = before.map_or(1, |session| session.seq + 1);
    hold(2, events.iter().copied().eq(first..=after.seq), || {
        format!("{} went from {} to {} with the events {events:?}", after.id, first - 1, after.seq)
    })?;
    let Some(before) = before else { return Ok(()) };
    hold(7, !before.status().is_final(), || format!("{} was {} already", after.id, before.status().as_str()))?;
    hold(7, before.runner_id == after.runner_id, || format!("{} has moved to another runner", after.id))?;
    if before.runs_served > 0 {
        let same = before.tenant == after.tenant
            && before.source_id == after.source_id
            && before.credential_id == after.credential_id;
        hold(7, same, || format!("{} serves other tenants, sources or credentials now", after.id))?;
    }
    let (old, new) = (before.holder(), after.holder());
    let handed_over = old.zip(new).is_some_and(|(old, new)| old != new) && after.seq < before.seq + 2;
    hold(7, !handed_over, || format!("{} was {old:?}'s and is {new:?}'s without having been given back", after.id))
}

/// Lease tokens only grow, and name one run and session each (invariant 5).
#[derive(Debug, Default)]
pub struct Tokens(BTreeMap<LeaseToken, (RunId, SessionId)>);

impl Tokens {
    /// This lease is in the store.
    ///
    /// # Errors
    /// Where the token was another lease's.
    pub fn leased(&mut self, token: LeaseToken, run: RunId, session: SessionId) -> Result<(), Broken> {
        let known = *self.0.entry(token).or_insert((run, session));
        hold(5, known == (run, session), || format!("token {token} is {known:?}'s and {run}'s in {session}"))
    }

    /// The newest lease that a session ever gave a run.
    #[must_use]
    pub fn newest(&self, run: RunId, session: SessionId) -> Option<LeaseToken> {
        self.0.iter().rev().find(|(_, of)| **of == (run, session)).map(|(token, _)| *token)
    }

    /// Whether this lease ever was in the store.
    #[must_use]
    pub fn knows(&self, token: LeaseToken, run: RunId, session: SessionId) -> bool {
        self.0.get(&token) == Some(&(run, session))
    }
}

/// What somebody hears who reads a stream of events and drops by id what he has heard: each object's events in the
/// order of `seq`, without a gap (invariant 4).
#[derive(Debug, Default, Clone)]
pub struct Heard {
    ids: BTreeSet<EventId>,
    last: BTreeMap<[u8; 16], u64>,
}

impl Heard {
    /// An event arrives. Whether it is new.
    ///
    /// # Errors
    /// Where it is not the next one of its object.
    pub fn hear(&mut self, id: EventId, object: [u8; 16], seq: u64) -> Result<bool, Broken> {
        if !self.ids.insert(id) {
            return Ok(false);
        }
        let last = self.last.entry(object).or_default();
        hold(4, seq == *last + 1, || format!("{id} is number {seq} of its object, and {last} was the last"))?;
        *last = seq;
        Ok(true)
    }

    /// The number of the last event of an object; 0: none came.
    #[must_use]
    pub fn last_of(&self, object: [u8; 16]) -> u64 {
        self.last.get(&object).copied().unwrap_or_default()
    }
}

/// What executes where (invariant 7): one run at a time in a session.
#[derive(Debug, Default)]
pub struct Occupancy {
    executes: BTreeMap<SessionId, LeaseToken>,
    newest: BTreeMap<SessionId, LeaseToken>,
}

impl Occupancy {
    /// An agent begins.
    ///
    /// # Errors
    /// Where another one is at work there, or a newer lease has been before (invariant 5).
    pub fn begins(&mut self, session: SessionId, token: LeaseToken) -> Result<(), Broken> {
        let newest = self.newest.entry(session).or_default();
        hold(5, *newest < token, || format!("{token} begins in {session} behind {newest}"))?;
        *newest = token;
        let other = self.executes.insert(session, token);
        hold(7, other.is_none(), || format!("{token} begins in {session}, where {other:?} executes"))
    }

    /// An agent is gone, or was dropped.
    pub fn ends(&mut self, session: SessionId, token: LeaseToken) {
        if self.executes.get(&session) == Some(&token) {
            self.executes.remove(&session);
        }
    }

    /// The session is taken away.
    ///
    /// # Errors
    /// Where an agent is at work there still.
    pub fn closes(&mut self, session: SessionId) -> Result<(), Broken> {
        let left = self.executes.remove(&session);
        hold(7, left.is_none(), || format!("{session} ends while {left:?} executes there"))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use uuid::Uuid;

    use super::*;
    use crate::run::Command;
    use crate::run::tests::{each_state, expire, hand_over, must, settings};
    use crate::session::tests as sessions;

    #[test]
    fn a_gap_and_a_wrong_order_are_heard_and_repetitions_are_not() {
        let id = |n: u128| EventId::from_uuid(Uuid::from_u128(n));
        let mut heard = Heard::default();
        assert_eq!(heard.hear(id(1), [1; 16], 1), Ok(true));
        assert_eq!(heard.hear(id(1), [1; 16], 1), Ok(false));
        assert_eq!(heard.hear(id(2), [2; 16], 1), Ok(true));
        assert_eq!(heard.hear(id(3), [1; 16], 3).unwrap_err().number, 4);
        assert_eq!(heard.hear(id(4), [1; 16], 2), Ok(true));
        assert_eq!([1, 2, 3].map(|object| heard.last_of([object; 16])), [2, 1, 0]);
    }

    #[test]
    fn one_agent_a_session_and_one_lease_a_token() {
        let session = |n: u128| SessionId::from_uuid(Uuid::from_u128(n));
        let run = |n: u128| RunId::from_uuid(Uuid::from_u128(n));
        let mut occupancy = Occupancy::default();
        assert_eq!(occupancy.begins(session(1), 1), Ok(()));
        assert_eq!(occupancy.begins(session(1), 2).unwrap_err().number, 7);
        occupancy.ends(session(1), 1);
        assert_eq!(occupancy.closes(session(1)).unwrap_err().number, 7, "the second is there still");
        assert_eq!(occupancy.begins(session(1), 3), Ok(()));
        occupancy.ends(session(1), 3);
        assert_eq!(occupancy.begins(session(1), 3).unwrap_err().number, 5, "a lease begins once");
        assert_eq!(occupancy.begins(session(1), 2).unwrap_err().number, 5, "an older lease");
        assert_eq!(occupancy.begins(session(1), 4), Ok(()), "the third has left");
        occupancy.ends(session(1), 4);
        assert_eq!((occupancy.closes(session(1)), occupancy.closes(session(2))), (Ok(()), Ok(())));
        let mut tokens = Tokens::default();
        assert_eq!(tokens.leased(1, run(1), session(1)), Ok(()));
        assert_eq!(tokens.leased(1, run(2), session(1)).unwrap_err().number, 5);
        assert_eq!(tokens.leased(1, run(1), session(2)).unwrap_err().number, 5);
        assert!(tokens.knows(1, run(1), session(1)) && !tokens.knows(2, run(1), session(1)));
        for (token, of) in [(3, 1), (5, 1), (8, 2)] {
            assert_eq!(tokens.leased(token, run(of), session(1)), Ok(()));
        }
        assert_eq!([1, 2, 3].map(|of| tokens.newest(run(of), session(1))), [Some(5), Some(8), None]);
    }

    /// What was in the store, and what is after it was spoilt; the events; the invariant that is broken.
    type Case<'a, T> = (Option<&'a T>, &'a T, &'a [u64], u8, fn(&mut T));

    #[test]
    fn each_broken_commit_of_a_run_is_noticed() {
        let [queued, running, asking, .., completed, failed, canceling, _] = &each_state(&settings())[..] else {
            panic!()
        };
        let second = Run { attempt: 2, ..running.clone() };
        let cases: [Case<Run>; 16] = [
            (None, queued, &[], 2, |_| ()),
            (None, queued, &[2], 2, |_| ()),
            (Some(running), asking, &[], 2, |_| ()),
            (Some(running), asking, &[2, 3], 2, |_| ()),
            (Some(running), asking, &[3, 3], 2, |_| ()),
            (Some(queued), asking, &[3], 2, |_| ()),
            (Some(queued), asking, &[3, 2], 2, |_| ()),
            (Some(completed), failed, &[4], 3, |run| run.seq = 4),
            (Some(&second), asking, &[3], 3, |_| ()),
            (Some(running), asking, &[3], 1, |run| run.id = RunId::from_uuid(Uuid::from_u128(9))),
            (Some(running), asking, &[3], 1, |run| run.tenant = "other".parse().unwrap()),
            (Some(running), asking, &[3], 1, |run| Arc::make_mut(&mut run.spec).task_version = 2),
            // Lost and granted again in one commit, but to an older lease.
            (Some(running), running, &[3, 4], 5, |run| {
                run.seq = 4;
                hand_over(run, 6);
            }),
            // Granted while another lease held it, and before it could have waited.
            (Some(running), asking, &[3], 5, |run| hand_over(run, 8)),
            (Some(canceling), running, &[4], 5, |run| {
                run.seq = 4;
                hand_over(run, 8);
            }),
            (Some(running), asking, &[3], 7, |run| run.session_id = None),
        ];
        for (case, (before, after, events, number, spoil)) in cases.into_iter().enumerate() {
            let mut spoiled = after.clone();
            spoil(&mut spoiled);
            assert_eq!(check_commit(before, &spoiled, events).unwrap_err().number, number, "{case}");
        }
    }

    #[test]
    fn a_commit_may_hold_several_changes_of_a_run() {
        let [queued, running, asking, _, completed, failed, canceling, canceled] = &each_state(&settings())[..] else {
            panic!()
        };
        let mut granted_again = Run { seq: 4, attempt: 2, ..running.clone() };
        hand_over(&mut granted_again, 8);
        let cases: [(Option<&Run>, &Run, &[u64]); 11] = [
            (None, queued, &[1]),
            (None, running, &[1, 2]),
            (Some(queued), running, &[2]),
            (Some(queued), asking, &[2, 3]),
            (Some(queued), completed, &[2, 3]),
            (Some(running), asking, &[3]),
            (Some(running), completed, &[3]),
            (Some(running), failed, &[3]),
            (Some(running), canceled, &[3, 4]),
            (Some(canceling), canceled, &[4]),
            (Some(running), &granted_again, &[3, 4]),
        ];
        for (before, after, events) in cases {
            assert_eq!(check_commit(before, after, events), Ok(()), "{events:?}");
        }
    }

    #[test]
    fn no_run_times_out_before_its_time() {
        let states = each_state(&settings());
        let mut judged = BTreeSet::new();
        for before in &states {
            let armed = armed(before);
            let Some(first) = armed.deadlines().iter().map(|deadline| deadline.at).min() else { continue };
            for deadline in armed.deadlines() {
                let after = must(before, expire(deadline.kind, before.seq), deadline.at);
                assert_eq!(check_expired(before, &after), Ok(()), "{deadline:?}");
                let early = Run { updated_at: first.plus_millis(-1), ..after };
                let broken = check_expired(before, &early).err().map(|broken| broken.number);
                // Who has not stopped in time is canceled, not failed: that may come at any time.
                assert_eq!(broken, (early.status() == RunStatus::Failed).then_some(6), "{deadline:?}");
                judged.extend(early.errors.iter().map(|error| error.code));
                // What was armed between several changes is not known.
                assert_eq!(check_expired(before, &Run { seq: early.seq + 1, ..early }), Ok(()));
            }
        }
        let timeouts = [
            ErrorCode::INTERACTION_TIMEOUT,
            ErrorCode::SESSION_TIMEOUT,
            ErrorCode::REVIEW_TIMEOUT,
            ErrorCode::TASK_TIMEOUT,
        ];
        assert_eq!(judged, BTreeSet::from(timeouts));
        let other = ErrorCode::SOURCE_ERROR.with("x");
        let failed = must(&states[1], Command::Fail { token: 7, errors: vec![other] }, states[1].updated_at);
        assert_eq!(check_expired(&states[1], &failed), Ok(()), "an agent fails when it likes");
    }

    #[test]
    fn each_broken_commit_of_a_session_is_noticed() {
        use crate::session::Command::{Ready, Release};
        let [fresh, running, idle, _, completed, failed] = &sessions::each_state()[..] else { panic!() };
        let leased = sessions::after(&[Ready, sessions::lease(2)]);
        let released = sessions::after(&[Ready, sessions::lease(2), Release { token: 2 }]);
        let again = sessions::after(&[Ready, sessions::lease(2), Release { token: 2 }, sessions::lease(3)]);
        let taken = Session { seq: 4, ..again.clone() };
        let cases: [Case<Session>; 11] = [
            (None, fresh, &[], 2, |_| ()),
            (Some(fresh), running, &[1, 2], 2, |_| ()),
            (Some(fresh), &leased, &[3], 2, |_| ()),
            (Some(completed), failed, &[4], 7, |session| session.seq = 4),
            (Some(fresh), running, &[2], 7, |session| session.runner_id = crate::RunnerId::from_uuid(Uuid::nil())),
            (Some(&released), &again, &[5], 7, |session| session.tenant = "other".parse().ok()),
            (Some(&released), &again, &[5], 7, |session| {
                session.source_id = Some(crate::SourceId::from_uuid(Uuid::nil()));
            }),
            (Some(&released), &again, &[5], 7, |session| {
                session.credential_id = Some(crate::CredentialId::from_uuid(Uuid::nil()));
            }),
            // Another run's from one change to the next.
            (Some(&leased), &taken, &[4], 7, |_| ()),
            (Some(fresh), idle, &[2], 7, |session| session.ended_at = Some(session.updated_at)),
            (Some(&leased), &released, &[4, 5], 2, |_| ()),
        ];
        for (case, (before, after, events, number, spoil)) in cases.into_iter().enumerate() {
            let mut spoiled = after.clone();
            spoil(&mut spoiled);
            assert_eq!(check_session_commit(before, &spoiled, events).unwrap_err().number, number, "{case}");
        }
    }

    #[test]
    fn a_commit_may_hold_several_changes_of_a_session() {
        use crate::session::Command::{Ready, Release};
        let [fresh, running, idle, ..] = &sessions::each_state()[..] else { panic!() };
        let leased = sessions::after(&[Ready, sessions::lease(2)]);
        let released = sessions::after(&[Ready, sessions::lease(2), Release { token: 2 }]);
        let again = sessions::after(&[Ready, sessions::lease(2), Release { token: 2 }, sessions::lease(3)]);
        let cases: [(Option<&Session>, &Session, &[u64]); 7] = [
            (None, fresh, &[1]),
            (Some(fresh), running, &[2]),
            (Some(fresh), idle, &[2]),
            (Some(fresh), &leased, &[2, 3]),
            (Some(&leased), &released, &[4]),
            (Some(&released), &again, &[5]),
            // Given back and leased again in one commit.
            (Some(&leased), &again, &[4, 5]),
        ];
        for (before, after, events) in cases {
            assert_eq!(check_session_commit(before, after, events), Ok(()), "{events:?}");
        }
    }
}
