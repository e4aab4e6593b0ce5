//! The clients: they submit, cancel, answer, review and end, and ask again where nobody has answered.

use std::collections::BTreeSet;
use std::sync::Arc;

use errand_core::run::{Decision, Run, RunStatus, Spec, State};
use errand_core::{CredentialId, Error, RunId, SourceId, Tenant, Timestamp};
use uuid::Uuid;

use super::{Event, World};
use crate::line::{Reply, Request, To};
use crate::process::EPOCH;
use crate::rng::Rng;
use crate::tasks;

/// What a client wants.
#[derive(Debug, Clone)]
pub(crate) enum Wish {
    Submit(Box<Run>),
    SubmitToStream(Box<Run>),
    Cancel(Tenant, RunId),
    Interact(Tenant, RunId, bool),
    Review(Tenant, RunId, bool),
    /// Ends a session, or drains a runner: whatever comes of it.
    Once(To, Box<Request>),
}

#[derive(Debug)]
pub(super) struct Client {
    rng: Rng,
    seen: BTreeSet<(RunId, u64)>,
}

const TENANTS: [&str; 3] = ["acme", "blue", "cyan"];

impl Client {
    pub(super) fn new(rng: Rng) -> Self {
        Self { rng, seen: BTreeSet::new() }
    }

    fn run(&mut self, at: i64) -> Option<Run> {
        let task = self.rng.pick(tasks::all())?.clone();
        let definition = &task.task.definition;
        let number = u128::from(self.rng.below(2));
        let source_id = self.rng.chance(5_000).then(|| SourceId::from_uuid(Uuid::from_u128(number + 1)));
        let credential_id = self.rng.chance(3_000).then(|| CredentialId::from_uuid(Uuid::from_u128(number + 1)));
        let spec = Spec {
            task_id: task.task.id,
            task_version: 1,
            agent_id: Some(definition.agent_id.clone()),
            source_id,
            credential_id,
            wanted_session: None,
            metadata: std::collections::BTreeMap::new(),
            settings: definition.settings.clone(),
            retry_of: None,
            traceparent: None,
        };
        let tenant: Tenant = self.rng.pick(&TENANTS)?.parse().ok()?;
        let start = Timestamp::default();
        Some(Run {
            id: RunId::from_uuid(self.rng.uuid(EPOCH + at)),
            tenant,
            spec: Arc::new(spec),
            seq: 0,
            attempt: 1,
            state: State::Queued { since: start },
            session_id: None,
            errors: Vec::new(),
            created_at: start,
            started_at: None,
            finished_at: None,
            canceled_at: None,
            updated_at: start,
            last_activity: start,
            input: "1".into(),
            output: None,
        })
    }
}

impl World {
    pub(super) fn plan_client(&mut self) {
        // In bursts, so that batches are more than one.
        let mut at = 0;
        for _ in 0..self.plan.runs {
            if self.client.rng.chance(4_000) {
                at = self.client.rng.between(100, (self.plan.horizon - 2_000).max(200));
            }
            let Some(run) = self.client.run(at) else { continue };
            let run = Box::new(run);
            let over_stream = self.client.rng.chance(4_000);
            let wish = if over_stream { Wish::SubmitToStream(run) } else { Wish::Submit(run) };
            self.at(at, Event::Client(wish));
        }
    }

    /// A client does what it wants.
    pub(super) fn wish(&mut self, wish: Wish) {
        let again = wish.clone();
        match wish {
            Wish::Submit(run) => self.ask_for_client(again, To::Dispatcher, Request::Submit(run)),
            Wish::SubmitToStream(run) => self.submit_to_stream(*run),
            Wish::Cancel(tenant, run) => self.ask_for_client(again, To::Dispatcher, Request::Cancel(tenant, run)),
            Wish::Interact(tenant, run, right) => {
                let input = if right { "{\"code\":\"1\"}" } else { "{\"wrong\":1}" };
                self.ask_for_client(again, To::Dispatcher, Request::Interact(tenant, run, input.into()));
            }
            Wish::Review(tenant, run, good) => {
                let decision = if good { Decision::Approve } else { Decision::Reject };
                self.ask_for_client(again, To::Dispatcher, Request::Review(tenant, run, decision));
            }
            Wish::Once(to, request) => self.ask_for_client(again, to, *request),
        }
    }

    fn submit_to_stream(&mut self, run: Run) {
        if !self.broker.is_up {
            return self.after(500, Event::Client(Wish::SubmitToStream(Box::new(run))));
        }
        self.say("client", format_args!("-> stream {}", run.id));
        let lose = self.plan.rates.lose;
        let id = run.id;
        let submission = self.broker.submit(run.clone(), self.now);
        self.after(1, Event::Deliver(submission));
        if self.unlucky(lose) {
            // The ack is lost: once more, under the same id.
            self.after(2_000, Event::Client(Wish::SubmitToStream(Box::new(run))));
        } else {
            self.checks.accepted.insert(id);
        }
    }

    /// Nobody has answered a client.
    pub(super) fn unheard(&mut self, wish: Wish) {
        if !matches!(wish, Wish::Once(..)) {
            self.after(700, Event::Client(wish));
        }
    }

    pub(super) fn heard(&mut self, wish: Wish, answer: Result<Reply, Error>) {
        match answer {
            // Not now.
            Err(error) if error.code.kind == "api" => self.unheard(wish),
            Err(_) | Ok(_) => {}
        }
    }

    /// A run has changed: what its owner makes of it.
    pub(super) fn see(&mut self, run: &Run) {
        if !self.client.seen.insert((run.id, run.seq)) {
            return;
        }
        let (tenant, id) = (run.tenant.clone(), run.id);
        let rng = &mut self.client.rng;
        let delay = rng.between(20, 4_000);
        let wish = match run.status() {
            RunStatus::InteractionRequired if rng.chance(8_000) => Wish::Interact(tenant, id, rng.chance(8_500)),
            RunStatus::ReviewRequired if rng.chance(8_000) => Wish::Review(tenant, id, rng.chance(7_000)),
            RunStatus::Queued | RunStatus::Running | RunStatus::InteractionRequired if rng.chance(600) => {
                Wish::Cancel(tenant, id)
            }
            RunStatus::Completed | RunStatus::Failed | RunStatus::Canceled if rng.chance(100) => {
                Wish::Cancel(tenant, id)
            }
            _ => return,
        };
        self.after(delay, Event::Client(wish));
    }

    /// When nothing goes wrong any more, every question is answered.
    pub(super) fn wish_in_calm(&mut self) {
        let mut wishes = Vec::new();
        for run in self.checks.runs.values() {
            match run.status() {
                RunStatus::InteractionRequired => wishes.push(Wish::Interact(run.tenant.clone(), run.id, true)),
                RunStatus::ReviewRequired => wishes.push(Wish::Review(run.tenant.clone(), run.id, true)),
                _ => {}
            }
        }
        for wish in wishes {
            self.wish(wish);
        }
    }
}
