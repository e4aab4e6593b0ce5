//! The agents: quick, slow, stuck, curious, deaf, wrong, and mortal. What they produce holds the token of the lease
//! that they work under, so that a report which moved a run under another lease shows in the store.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use errand_core::invariant::Occupancy;
use errand_core::run::{Broken, InteractionField, LeaseToken, Question};
use errand_core::{Error, ErrorCode, SessionId};
use errand_runner::{Assigned, Control, Ending, Host, SessionStart, Unanswered};
use tokio::time::sleep;

use crate::line::{Call, Line};
use crate::rng::Rng;

struct Shared {
    rng: Rng,
    occupancy: Occupancy,
    sessions: BTreeSet<SessionId>,
}

/// A runner's host. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Agent {
    line: Line,
    shared: Arc<Mutex<Shared>>,
}

/// Notes the end of an execution, also of one that is dropped.
struct Guard(Agent, SessionId, LeaseToken);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.shared().occupancy.ends(self.1, self.2);
    }
}

impl Agent {
    pub(crate) fn new(line: Line) -> Self {
        let rng = line.fork();
        let shared = Shared { rng, occupancy: Occupancy::default(), sessions: BTreeSet::new() };
        Self { line, shared: Arc::new(Mutex::new(shared)) }
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The sessions that are here.
    pub(crate) fn sessions(&self) -> Vec<SessionId> {
        self.shared().sessions.iter().copied().collect()
    }

    fn check(&self, held: Result<(), Broken>) {
        if let Err(broken) = held {
            self.line.push(Call::Broken(broken.to_string()));
        }
    }

    fn between(&self, low: i64, high: i64) -> Duration {
        Duration::from_millis(u64::try_from(self.shared().rng.between(low, high)).unwrap_or(0))
    }

    fn below(&self, bound: u64) -> u64 {
        self.shared().rng.below(bound)
    }

    fn chance(&self, of_10000: u64) -> bool {
        !self.line.is_calm() && self.shared().rng.chance(of_10000)
    }

    /// Works for a while; shows that it lives, unless it is silent.
    async fn work(&self, control: &Control, time: Duration, silent: bool) {
        let step = Duration::from_millis(1_500);
        let mut left = time;
        while !left.is_zero() {
            let now = step.min(left);
            sleep(now).await;
            left -= now;
            if !silent {
                control.progress("at work", "", None);
            }
        }
    }

    async fn ask(&self, control: &Control, token: LeaseToken, number: u64) -> Result<(), Unanswered> {
        let field =
            InteractionField { name: "code".into(), r#type: "code".into(), label: String::new(), options: Vec::new() };
        let id = format!("q-{token}-{number}");
        let question = Question { id, r#type: "mfa".into(), message: "code?".into(), fields: vec![field] };
        control.ask(question).await.map(drop)
    }
}

fn output(token: LeaseToken) -> Ending {
    Ending::Finished(token.to_string().into())
}

impl Host for Agent {
    async fn start_session(&self, session: SessionStart) -> Result<(), Error> {
        let takes = if self.chance(150) { self.between(18_000, 24_000) } else { self.between(2, 600) };
        sleep(takes).await;
        if self.chance(500) {
            return Err(ErrorCode::PROVISION_FAILED.with("no"));
        }
        if !self.shared().sessions.insert(session.id) {
            self.line.push(Call::Broken(format!("invariant 7 does not hold: {} was made twice", session.id)));
        }
        if self.chance(400) {
            let dies = self.between(100, 20_000);
            tokio::spawn(async move {
                sleep(dies).await;
                session.handle.lost("it died");
            });
        }
        Ok(())
    }

    async fn end_session(&self, id: SessionId) {
        let closed = self.shared().occupancy.closes(id);
        self.check(closed);
        let takes = if self.chance(200) { self.between(5_000, 9_000) } else { self.between(1, 200) };
        sleep(takes).await;
        self.shared().sessions.remove(&id);
    }

    async fn execute(&self, run: Assigned, control: Control) -> Ending {
        let (session, token) = (run.lease.session_id, run.lease.token);
        if !self.shared().sessions.contains(&session) {
            self.line.push(Call::Broken(format!("invariant 7 does not hold: {token} begins where no session is")));
        }
        let begun = self.shared().occupancy.begins(session, token);
        self.check(begun);
        let _guard = Guard(self.clone(), session, token);
        if self.line.is_calm() {
            sleep(self.between(5, 400)).await;
            return output(token);
        }
        let kind = self.below(100);
        self.behave(kind, &control, token).await
    }
}

impl Agent {
    async fn behave(&self, kind: u64, control: &Control, token: LeaseToken) -> Ending {
        match kind {
            // Quick.
            0..40 => {
                sleep(self.between(1, 1_500)).await;
                output(token)
            }
            // Slow, and shows that it lives; stops when it is asked to.
            40..55 => {
                let time = self.between(3_000, 25_000);
                tokio::select! {
                    biased;
                    _ = control.stop() => Ending::Stopped,
                    () = self.work(control, time, false) => output(token),
                }
            }
            // Curious.
            55..70 => {
                let last = self.below(2);
                for number in 0..=last {
                    sleep(self.between(5, 800)).await;
                    if let Err(Unanswered::Stopped(_)) = self.ask(control, token, number).await {
                        return Ending::Stopped;
                    }
                }
                sleep(self.between(5, 800)).await;
                output(token)
            }
            // Asks, and does not wait for the answer.
            70..74 => {
                tokio::select! {
                    biased;
                    _ = self.ask(control, token, 7) => {}
                    () = sleep(self.between(100, 3_000)) => {}
                }
                output(token)
            }
            // Stuck: alive as a process, without a sign of life, deaf.
            74..80 => {
                sleep(Duration::from_secs(3_600)).await;
                output(token)
            }
            // Busy for ever, and deaf.
            80..83 => {
                self.work(control, Duration::from_secs(40), false).await;
                output(token)
            }
            83..88 => {
                sleep(self.between(5, 1_000)).await;
                Ending::Failed(vec![ErrorCode::AGENT_ERROR.with(format!("under {token}"))])
            }
            // Its output does not fit.
            88..92 => {
                sleep(self.between(5, 1_000)).await;
                Ending::Finished(format!("\"{token}\"").into())
            }
            92..98 => {
                sleep(self.between(5, 3_000)).await;
                Ending::SessionLost("it died".into())
            }
            // Ends without a result.
            _ => Ending::Stopped,
        }
    }
}
