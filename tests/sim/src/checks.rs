//! What is checked after every step, by the named predicates of `errand_core`, and when all has become quiet.

use std::collections::{BTreeMap, BTreeSet};

use errand_core::invariant::{Heard, Tokens, check_commit, check_expired, check_session_commit};
use errand_core::run::{Broken, LeaseToken, Run, RunStatus, State};
use errand_core::session::{Session, State as SessionState};
use errand_core::{ErrorCode, EventId, RunId, SessionId, Timestamp};
use errand_proto::v1;
use errand_store::Stored;
use prost::Message as _;

use crate::line::{Request, To};
use crate::stores::Committed;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    pub(crate) runs: BTreeMap<RunId, Run>,
    pub(crate) sessions: BTreeMap<SessionId, Session>,
    pub(crate) accepted: BTreeSet<RunId>,
    /// Leases that the pool has committed.
    granted: Tokens,
    /// Leases that runs have had in the store, and in which attempt.
    held: BTreeMap<(RunId, LeaseToken), u32>,
    committed: BTreeSet<EventId>,
    /// Leases whose sessions are to be discarded, as soon as the pool has answered.
    discarding: BTreeMap<LeaseToken, SessionId>,
    /// Sessions that may not serve again.
    discarded: BTreeSet<SessionId>,
    /// The world's own time, and since when nothing goes wrong.
    pub(crate) now: i64,
    pub(crate) calm_since: Option<i64>,
    /// When runs came into their states.
    changed_at: BTreeMap<RunId, i64>,
    /// Of which runs the newest pool has heard that they want a session, and when one was given to any.
    asked: BTreeSet<RunId>,
    granted_at: i64,
    /// What a reader of the event stream hears who is always there.
    pub(crate) heard: Heard,
}

fn broken(number: u8, what: String) -> Result<(), Broken> {
    Err(Broken { number, what })
}

impl Checks {
    /// Something was committed. Gives lines for the trace.
    pub(crate) fn commit(&mut self, committed: Committed) -> Result<Vec<String>, Broken> {
        let mut told = Vec::new();
        match committed {
            Committed::Runs(runs, events) => {
                self.committed.extend(events.iter().map(|event| event.id));
                for run in runs {
                    self.commit_run(&run, &events)?;
                    told.push(format!("{} is {} ({})", run.id, run.status().as_str(), run.seq));
                    self.changed_at.insert(run.id, self.now);
                    self.runs.insert(run.id, run);
                }
            }
            // Tried again after an outcome that nobody learned: it was done the first time.
            Committed::Sessions(_, events) if events.first().is_some_and(|one| self.committed.contains(&one.id)) => {}
            Committed::Sessions(changes, events) => {
                self.committed.extend(events.iter().map(|event| event.id));
                let last: BTreeMap<SessionId, Session> =
                    changes.iter().map(|change| (change.session.id, change.session.clone())).collect();
                for change in &changes {
                    if let Some((run, token)) = change.session.holder() {
                        self.granted.leased(token, run, change.session.id)?;
                        self.granted_at = self.now;
                    }
                }
                for (id, session) in last {
                    self.commit_session(&session, &events)?;
                    told.push(format!("{id} is {} ({})", session.status().as_str(), session.seq));
                    self.sessions.insert(id, session);
                }
            }
        }
        Ok(told)
    }

    fn commit_run(&mut self, run: &Run, events: &[Stored]) -> Result<(), Broken> {
        let before = self.runs.get(&run.id);
        check_commit(before, run, &seqs(events, *run.id.uuid().as_bytes()))?;
        if let Some(before) = before {
            Self::check_fence(before, run)?;
            check_expired(before, run)?;
            self.check_calm(before, run)?;
        }
        if let Some(lease) = run.lease() {
            self.held.insert((run.id, lease.token), run.attempt);
        }
        self.note_passed(run, events)
    }

    /// A lease that was taken and lost in one batch was held, too: only the run's event tells of it.
    fn note_passed(&mut self, run: &Run, events: &[Stored]) -> Result<(), Broken> {
        for event in events.iter().filter(|event| event.object == *run.id.uuid().as_bytes()) {
            let event = v1::Event::decode(event.payload.clone());
            let Ok(v1::Event { data: Some(v1::event::Data::Run(passed)), .. }) = event else {
                return broken(2, format!("an event of {} cannot be read", run.id));
            };
            let session = passed.session_id.parse().ok().filter(|_| passed.status() == v1::RunStatus::Running);
            if let Some(token) = session.and_then(|session| self.granted.newest(run.id, session)) {
                self.held.entry((run.id, token)).or_insert(passed.attempt);
            }
        }
        Ok(())
    }

    /// When nothing goes wrong any more, nobody waits in vain: a lost message is sent again long before a deadline has
    /// to end what it was to begin (invariant 10).
    fn check_calm(&self, before: &Run, after: &Run) -> Result<(), Broken> {
        let Some(calm) = self.calm_since else { return Ok(()) };
        let failed = |code| after.errors.iter().any(|error| error.code == code);
        // What was there when calm came may have kept a runner busy for so long; and where there is but one, many may have
        // been ahead of it.
        let in_its_queue = self.asked.contains(&after.id) && self.now - self.granted_at < 50_000;
        if failed(ErrorCode::SESSION_TIMEOUT) && self.now - calm > 50_000 && !in_its_queue {
            return broken(10, format!("{} waited for a session until its time was over", after.id));
        }
        let since = self.changed_at.get(&after.id).copied().unwrap_or_default();
        let begun = matches!(before.state, State::Running(_)) && since - calm > 15_000;
        // The time for all attempts together may be over whatever happens; and to find a runner lost, or an answer, takes
        // longer than the shortest inactivity.
        let settings = &before.spec.settings;
        let may_end = settings.timeout_seconds.is_some() || settings.inactivity_seconds < 12;
        if failed(ErrorCode::TASK_TIMEOUT) && begun && !may_end {
            return broken(10, format!("{} was to begin, and nothing was heard of it", after.id));
        }
        Ok(())
    }

    /// What an agent says holds its token: whatever moved the run was said under the lease that the run had.
    fn check_fence(before: &Run, after: &Run) -> Result<(), Broken> {
        let Some(token) = before.lease().map(|lease| lease.token) else { return Ok(()) };
        // Several changes in one commit: the lease may be another by then.
        if after.seq > before.seq + 2 {
            return Ok(());
        }
        let text = token.to_string();
        let said = after.output.as_ref().filter(|_| before.output.is_none());
        let output_fits = said.is_none_or(|output| {
            output.as_ref() == text.as_bytes() || output.as_ref() == format!("\"{text}\"").as_bytes()
        });
        let asked = match &after.state {
            State::InteractionRequired { interaction, .. } => Some(&interaction.question.id),
            _ => None,
        };
        let question_fits = asked.is_none_or(|id| id.starts_with(&format!("q-{text}-")));
        let failed = after.errors.iter().find(|error| error.message.starts_with("under "));
        let failure_fits = failed.is_none_or(|error| error.message == format!("under {text}"));
        if output_fits && question_fits && failure_fits {
            return Ok(());
        }
        broken(5, format!("{} was moved by another lease than {token}", after.id))
    }

    fn commit_session(&mut self, session: &Session, events: &[Stored]) -> Result<(), Broken> {
        check_session_commit(self.sessions.get(&session.id), session, &seqs(events, *session.id.uuid().as_bytes()))?;
        let serves = matches!(session.state, SessionState::Idle { .. } | SessionState::Running { .. });
        let same_holder = self.sessions.get(&session.id).and_then(Session::holder) == session.holder();
        if serves && self.discarded.contains(&session.id) && !(session.holder().is_some() && same_holder) {
            return broken(7, format!("{} serves although it was to be discarded", session.id));
        }
        Ok(())
    }

    /// An event reaches the stream (invariants 2 and 4).
    pub(crate) fn published(&mut self, event: &Stored) -> Result<(), Broken> {
        if !self.committed.contains(&event.id) {
            return broken(2, format!("{} is published and not committed", event.id));
        }
        self.heard.hear(event.id, event.object, u64::try_from(event.seq).unwrap_or(0)).map(drop)
    }

    /// A request leaves: what it tells of is committed (invariant 2).
    pub(crate) fn sent(&mut self, to: To, request: &Request) -> Result<(), Broken> {
        match request {
            Request::Assign(request) => request.assignments.iter().try_for_each(|assignment| {
                let token = assignment.lease.as_ref().map_or(0, |lease| lease.token);
                self.must_have_held(&assignment.run_id, token, "assigned")
            }),
            Request::Stop(request) => self.must_have_held(&request.run_id, request.lease_token, "stopped"),
            Request::Acquire(request) => request.wants.iter().try_for_each(|want| self.check_want(want)),
            Request::Release(request) => request.releases.iter().try_for_each(|release| self.check_release(release)),
            Request::Grant(request) => request.grants.iter().try_for_each(|grant| {
                let lease = grant.lease.clone().unwrap_or_default();
                let known = grant.run_id.parse().ok().zip(lease.session_id.parse().ok());
                match known.is_some_and(|(run, session)| self.granted.knows(lease.token, run, session)) {
                    true => Ok(()),
                    false => broken(2, format!("lease {} is granted and not committed", lease.token)),
                }
            }),
            Request::Start(request) => self.must_exist(&request.session_id, to),
            Request::TearDown(request) => self.must_exist(&request.session_id, to),
            _ => Ok(()),
        }
    }

    fn must_exist(&self, session: &str, to: To) -> Result<(), Broken> {
        let known = session.parse::<SessionId>().ok().and_then(|id| self.sessions.get(&id));
        match known.is_some_and(|session| to == To::Runner(session.runner_id)) {
            true => Ok(()),
            false => broken(2, format!("{session} is started or torn down and not committed")),
        }
    }

    fn must_have_held(&self, run: &str, token: LeaseToken, what: &str) -> Result<(), Broken> {
        let known = run.parse::<RunId>().is_ok_and(|id| self.held.contains_key(&(id, token)));
        if known { Ok(()) } else { broken(2, format!("{run} is {what} under {token}, which it never had")) }
    }

    fn check_want(&self, want: &v1::Want) -> Result<(), Broken> {
        let run = want.run_id.parse::<RunId>().ok().and_then(|id| self.runs.get(&id));
        match run.is_some_and(|run| run.attempt >= want.attempt) {
            true => Ok(()),
            false => broken(2, format!("{} wants a session for an attempt that is not committed", want.run_id)),
        }
    }

    fn check_release(&mut self, release: &v1::Release) -> Result<(), Broken> {
        let run = release.run_id.parse::<RunId>().ok().and_then(|id| self.runs.get(&id));
        let Some(run) = run else { return broken(2, format!("{} releases and is not there", release.run_id)) };
        let Some(lease) = &release.lease else {
            let gone = run.status() != RunStatus::Queued;
            return if gone { Ok(()) } else { broken(2, format!("{} is withdrawn and waits", run.id)) };
        };
        if run.lease().is_some_and(|held| held.token == lease.token) {
            return broken(2, format!("{} releases {} and holds it", run.id, lease.token));
        }
        Ok(())
    }

    /// A pool begins, and has heard of nothing.
    pub(crate) fn pool_begins(&mut self) {
        self.asked.clear();
    }

    /// A request reaches the pool: which sessions it is to tear down that are the release's still.
    pub(crate) fn arrived(&mut self, request: &Request) {
        if let Request::Acquire(request) = request {
            self.asked.extend(request.wants.iter().filter_map(|want| want.run_id.parse::<RunId>().ok()));
        }
        let Request::Release(request) = request else { return };
        for lease in request.releases.iter().filter(|release| release.discard).filter_map(|one| one.lease.as_ref()) {
            let session = lease.session_id.parse::<SessionId>().ok();
            let held = session.and_then(|id| self.sessions.get(&id)?.holder().map(|(_, token)| (id, token)));
            if let Some((session, token)) = held.filter(|(_, token)| *token == lease.token) {
                self.discarding.insert(token, session);
            }
        }
    }

    /// The pool has answered a release: what it was to tear down is never to serve again.
    pub(crate) fn released(&mut self, request: &v1::ReleaseRequest) -> Result<(), Broken> {
        for release in request.releases.iter().filter(|release| release.discard) {
            let token = release.lease.as_ref().map_or(0, |lease| lease.token);
            let Some(session) = self.discarding.remove(&token) else { continue };
            let serves = self.sessions.get(&session).is_some_and(|session| {
                matches!(session.state, SessionState::Idle { .. } | SessionState::Running { .. })
            });
            if serves {
                return broken(7, format!("{session} is given back to be discarded, and serves on"));
            }
            self.discarded.insert(session);
        }
        Ok(())
    }

    /// A client was told yes (invariant 1).
    pub(crate) fn accepted(&mut self, run: RunId) -> Result<(), Broken> {
        if !self.runs.contains_key(&run) {
            return broken(1, format!("{run} is accepted and not in the store"));
        }
        self.accepted.insert(run);
        Ok(())
    }

    /// A runner was told that its reports were taken: no lease of theirs is held any more where the run is over.
    pub(crate) fn reported(&self, request: &v1::ReportRequest, answer: &v1::ReportResponse) -> Result<(), Broken> {
        for (report, answer) in request.reports.iter().zip(&answer.answers) {
            let last = !matches!(report.what, Some(v1::report::What::Interaction(_)));
            let run = report.run_id.parse::<RunId>().ok().and_then(|id| self.runs.get(&id));
            let holds = run.and_then(Run::lease).is_some_and(|lease| lease.token == report.lease_token);
            if answer.accepted && last && holds {
                return broken(1, format!("a report of {} is taken and not committed", report.run_id));
            }
        }
        Ok(())
    }

    /// A pool was told which grants stand.
    pub(crate) fn grants_taken(&self, request: &v1::GrantRequest, answer: &v1::GrantResponse) -> Result<(), Broken> {
        for (grant, answer) in request.grants.iter().zip(&answer.answers) {
            let token = grant.lease.as_ref().map_or(0, |lease| lease.token);
            if answer.accepted {
                self.must_have_held(&grant.run_id, token, "granted")?;
                let run = grant.run_id.parse::<RunId>().ok();
                let attempt = run.and_then(|id| self.held.get(&(id, token)));
                if attempt.is_some_and(|attempt| *attempt != grant.attempt) {
                    return broken(5, format!("{} took a grant for attempt {}", grant.run_id, grant.attempt));
                }
            }
        }
        Ok(())
    }

    /// A run that holds a lease on a session which has been gone for `millis` by `now`: its loss was not told.
    pub(crate) fn forgotten_loss(&self, now: i64, millis: u64) -> Option<String> {
        let gone = |run: &&Run| {
            let session = run.lease().and_then(|lease| self.sessions.get(&lease.session_id));
            session.is_some_and(|session| {
                session.status().is_final() && Timestamp(now).millis_since(session.updated_at) > millis
            })
        };
        self.runs
            .values()
            .find(gone)
            .map(|run| format!("invariant 7 does not hold: {} has lost its session and nobody says so", run.id))
    }

    /// What keeps the world from being quiet; none: nothing.
    pub(crate) fn unrest(&self) -> Option<String> {
        let missing = self.accepted.iter().find(|id| !self.runs.contains_key(id));
        if let Some(id) = missing {
            return Some(format!("{id} was accepted and is not in the store"));
        }
        if let Some(run) = self.runs.values().find(|run| !run.status().is_final()) {
            return Some(format!("{} is {}: {:?}", run.id, run.status().as_str(), run.state));
        }
        let busy =
            |session: &&Session| !matches!(session.state, SessionState::Idle { .. }) && !session.status().is_final();
        if let Some(session) = self.sessions.values().find(busy) {
            return Some(format!("{} is {} still: {:?}", session.id, session.status().as_str(), session.state));
        }
        let unheard = self.runs.values().find(|run| self.heard.last_of(*run.id.uuid().as_bytes()) != run.seq);
        if let Some(run) = unheard {
            return Some(format!("{} has {} events, not all of them published", run.id, run.seq));
        }
        let unheard = self.sessions.values().find(|one| self.heard.last_of(*one.id.uuid().as_bytes()) != one.seq);
        unheard.map(|session| format!("{} has {} events, not all of them published", session.id, session.seq))
    }

    /// What somebody reads who comes now and reads the stream from its beginning (invariant 4).
    pub(crate) fn stream<'a>(&self, events: impl Iterator<Item = &'a Stored>) -> Result<(), Broken> {
        let mut heard = Heard::default();
        for event in events {
            heard.hear(event.id, event.object, u64::try_from(event.seq).unwrap_or(0))?;
        }
        for run in self.runs.values() {
            let last = heard.last_of(*run.id.uuid().as_bytes());
            if last != run.seq {
                return broken(4, format!("the stream has {last} of the {} events of {}", run.seq, run.id));
            }
        }
        Ok(())
    }
}

fn seqs(events: &[Stored], object: [u8; 16]) -> Vec<u64> {
    let own = events.iter().filter(|event| event.object == object);
    own.map(|event| u64::try_from(event.seq).unwrap_or(0)).collect()
}
