//! What becomes of a process's calls.

use errand_bus::{BusError, RequestError, Verdict};
use errand_core::Error;
use errand_proto::v1;
use errand_store::Stored;
use tokio::sync::oneshot;

use super::client::Wish;
use super::{Asker, Event, Pending, Who, World};
use crate::line::{Call, Fate, Note, Reply, Request, StoreWork, StreamAsk, To};
use crate::process::Kind;

/// How long the broker waits for an ack of a submission.
const ACK_WAIT: i64 = 10_000;

fn lost(what: &str) -> BusError {
    BusError::Stream { name: "EVENT".into(), what: what.into() }
}

/// A request in a few words.
pub(super) fn told(request: &Request) -> String {
    let ids = |ids: Vec<&str>| ids.join(" ");
    match request {
        Request::Submit(run) => format!("submit {}", run.id),
        Request::FromStream(run) => format!("submission {}", run.id),
        Request::Cancel(_, run) => format!("cancel {run}"),
        Request::Review(_, run, decision) => format!("review {run} {decision:?}"),
        Request::Interact(_, run, _) => format!("interact {run}"),
        Request::Grant(r) => format!("grant {}", leases(r.grants.iter().map(|one| (&one.run_id, one.lease.as_ref())))),
        Request::Lost(r) => format!("lost {}", leases(r.losses.iter().map(|one| (&one.run_id, one.lease.as_ref())))),
        Request::Leases(r) => {
            format!("leases {}", leases(r.checks.iter().map(|one| (&one.run_id, one.lease.as_ref()))))
        }
        Request::Report(r) => {
            let one = |one: &v1::Report| format!("{} under {}: {}", one.run_id, one.lease_token, what(one));
            format!("report {}", r.reports.iter().map(one).collect::<Vec<_>>().join(", "))
        }
        Request::Expire(r) => {
            let one = |one: &v1::Expiry| format!("{} {:?} of {}", one.run_id, one.kind(), one.version);
            format!("expire {}", r.expiries.iter().map(one).collect::<Vec<_>>().join(", "))
        }
        Request::Deadlines(after) => format!("deadlines behind {after}"),
        Request::Acquire(r) => format!("acquire {}", ids(r.wants.iter().map(|want| want.run_id.as_str()).collect())),
        Request::Release(r) => {
            let one = |one: &v1::Release| {
                let token = one.lease.as_ref().map_or(0, |lease| lease.token);
                format!("{} of {token}{}", one.run_id, if one.discard { " (discard)" } else { "" })
            };
            format!("release {}", r.releases.iter().map(one).collect::<Vec<_>>().join(", "))
        }
        Request::Register(r) => format!("register {} with {} sessions", r.runner_id, r.sessions.len()),
        Request::Heartbeat(r) => format!("heartbeat with {} sessions", r.sessions.len()),
        Request::SessionLost(r) => format!("session lost {}", r.session_id),
        Request::Deregister(_) => "deregister".into(),
        Request::EndSession(_, session) => format!("end {session}"),
        Request::Drain(runner) => format!("drain {runner}"),
        Request::Start(r) => format!("start {}", r.session_id),
        Request::TearDown(r) => format!("tear down {}", r.session_id),
        Request::Assign(r) => {
            format!("assign {}", leases(r.assignments.iter().map(|one| (&one.run_id, one.lease.as_ref()))))
        }
        Request::Stop(r) => format!("stop {} under {}", r.run_id, r.lease_token),
        Request::Input(r) => format!("input {} {}", r.run_id, r.interaction_id),
    }
}

fn leases<'a>(all: impl Iterator<Item = (&'a String, Option<&'a v1::Lease>)>) -> String {
    let one = |(run, lease): (&String, Option<&v1::Lease>)| format!("{run} under {}", lease.map_or(0, |one| one.token));
    all.map(one).collect::<Vec<_>>().join(", ")
}

fn what(report: &v1::Report) -> &'static str {
    match report.what {
        Some(v1::report::What::Interaction(_)) => "asks",
        Some(v1::report::What::Finished(_)) => "finished",
        Some(v1::report::What::Failed(_)) => "failed",
        Some(v1::report::What::Stopped(_)) => "stopped",
        None => "nothing",
    }
}

impl World {
    pub(super) fn call(&mut self, who: Who, call: Call) {
        let crash = self.plan.rates.crash;
        let dies = !matches!(self.slots[who.0].kind, Kind::Runner { .. }) && self.unlucky(crash);
        if dies && self.rng.chance(5_000) {
            return self.kill(who.0, "dies before its next step");
        }
        self.handle(who, call);
        if dies && self.is_alive(who) {
            self.kill(who.0, "dies behind its last step");
        }
    }

    fn handle(&mut self, who: Who, call: Call) {
        match call {
            Call::Store { what, work } => {
                let delay = self.rng.between(0, 3);
                self.after(delay, Event::Store(who, what, work));
            }
            Call::Request { to, request, within, reply } => {
                let sent = self.checks.sent(to, &request);
                self.must(sent);
                self.say_of(who.0, format_args!("-> {}", told(&request)));
                let asker = Asker::Process(who, Some(reply));
                self.ask(asker, Some(who.0), to, request, within);
            }
            Call::Answer { token, answer } => self.answer(who, token, answer),
            Call::Event { link, event, ack } => {
                let delay = self.rng.between(0, 3);
                let at = self.in_order(who, true, delay);
                self.at(at, Event::Published(who, link, Box::new(event), ack));
            }
            Call::Stream { link, ask } => {
                let delay = self.rng.between(0, 3);
                let at = self.in_order(who, true, delay);
                self.at(at, Event::Stream(who, link, ask));
            }
            Call::Note(note) => self.note(who, &note),
            Call::TakeTurn(base, taken) => {
                let holder = *self.turns.entry(base).or_insert(who);
                let wake = move || {
                    // Who no longer waits does not take it.
                    let _ = taken.send(holder == who);
                };
                self.after(0, Event::Wake(who, Box::new(wake)));
            }
            Call::GiveTurn(base) => {
                if self.turns.get(&base) == Some(&who) {
                    self.turns.remove(&base);
                }
            }
            Call::Started => self.say_of(who.0, "serves"),
            Call::Broken(what) => drop(self.broken.get_or_insert(what)),
            Call::Died(why) => self.kill(who.0, &why),
        }
    }

    /// When a message that takes `delay` arrives, if it may not overtake those before.
    fn in_order(&mut self, who: Who, up: bool, delay: i64) -> i64 {
        let last = self.fifo.entry((who, up)).or_default();
        *last = (*last).max(self.now + delay);
        *last
    }

    pub(super) fn store(&mut self, who: Who, what: &str, work: StoreWork) {
        // What was under way when its process died may be done or not.
        if !self.is_alive(who) && self.rng.chance(5_000) {
            return;
        }
        let (refused, unknown) = (self.plan.rates.refused, self.plan.rates.unknown);
        let fate = if self.unlucky(refused) {
            Fate::Refused
        } else if self.unlucky(unknown) {
            Fate::Unknown
        } else {
            Fate::Done
        };
        let wake = work(&mut self.stores, fate);
        match fate {
            Fate::Done => self.say_of(who.0, format_args!("store: {what}")),
            _ => self.say_of(who.0, format_args!("store: {what} ({fate:?})")),
        }
        self.committed();
        let delay = self.rng.between(0, 3);
        self.after(delay, Event::Wake(who, wake));
    }

    /// Looks at what was committed.
    fn committed(&mut self) {
        for committed in std::mem::take(&mut self.stores.log) {
            if let crate::stores::Committed::Runs(runs, _) = &committed {
                for run in runs {
                    self.see(run);
                }
            }
            let checked = self.checks.commit(committed);
            for line in self.must(checked).unwrap_or_default() {
                self.say("store", line);
            }
        }
    }

    /// Sends a request on its way.
    pub(super) fn ask(&mut self, asker: Asker, from: Option<usize>, to: To, request: Request, within: i64) {
        self.tokens += 1;
        let token = self.tokens;
        self.pending.insert(token, Pending { asker, request: request.clone() });
        let connected = from.map_or(self.broker.is_up, |slot| self.is_connected(slot));
        if !connected {
            return self.refuse(token, RequestError::Broker("it".into(), "away".into()));
        }
        self.after(within, Event::Late(token));
        let (lose, duplicate) = (self.plan.rates.lose, self.plan.rates.duplicate);
        if self.unlucky(lose) {
            return self.say("bus", format_args!("loses {}", told(&request)));
        }
        if self.old.len() < 200 {
            self.old.push((to, request.clone()));
        } else {
            let place = usize::try_from(self.rng.below(200)).unwrap_or(0);
            self.old[place] = (to, request.clone());
        }
        if self.unlucky(duplicate) {
            let delay = self.delay() + self.rng.between(0, 3_000);
            self.after(delay, Event::Arrive(0, to, request.clone()));
        }
        let delay = self.delay();
        self.after(delay, Event::Arrive(token, to, request));
    }

    fn refuse(&mut self, token: u64, error: RequestError) {
        match self.pending.remove(&token).map(|pending| pending.asker) {
            Some(Asker::Process(who, Some(reply))) => {
                self.after(1, Event::Wake(who, Box::new(move || drop(reply.send(Err(error))))));
            }
            Some(Asker::Client(wish)) => self.unheard(wish),
            Some(Asker::Broker(_) | Asker::Process(_, None)) | None => {}
        }
    }

    pub(super) fn late(&mut self, token: u64) {
        self.refuse(token, RequestError::TimedOut("it".into()));
    }

    pub(super) fn arrive(&mut self, token: u64, to: To, request: Request) {
        if !self.broker.is_up {
            return;
        }
        let serves = |kind: &Kind| match (to, kind) {
            (To::Dispatcher, Kind::Dispatcher) | (To::Pool, Kind::Pool(_)) => true,
            (To::Runner(wanted), Kind::Runner { id, .. }) => wanted == *id,
            _ => false,
        };
        let there: Vec<usize> = (0..self.slots.len())
            .filter(|slot| {
                let slot = &self.slots[*slot];
                serves(&slot.kind) && !slot.goes && slot.process.as_ref().is_some_and(super::Process::is_ready)
            })
            .collect();
        // The broker does not know yet who is cut off: what goes there is lost.
        let Some(slot) = self.rng.pick(&there).copied() else {
            return self.refuse(token, RequestError::NobodyServes("it".into()));
        };
        if !self.is_connected(slot) {
            return;
        }
        let who = (slot, self.slots[slot].incarnation);
        let stalled = self.slots[slot].process.as_ref().map_or(0, |process| process.stalled_until);
        if stalled > self.now {
            return self.at(stalled, Event::Arrive(token, to, request));
        }
        self.checks.arrived(&request);
        self.say_of(slot, format_args!("<- {}", told(&request)));
        self.reach(who, |process| process.take(token, request));
    }

    /// A process answers: what it says must be committed by now.
    fn answer(&mut self, who: Who, token: u64, answer: Result<Reply, Error>) {
        let Some(pending) = self.pending.get(&token) else { return };
        let request = pending.request.clone();
        let held = match (&request, &answer) {
            (Request::Submit(run), Ok(_)) => self.checks.accepted(run.id),
            (Request::FromStream(run), Ok(verdict)) => match verdict.downcast_ref::<Verdict>() {
                Some(Verdict::Ack) => self.checks.accepted(run.id),
                _ => Ok(()),
            },
            (Request::Report(request), Ok(reply)) => match reply.downcast_ref() {
                Some(reply) => self.checks.reported(request, reply),
                None => Ok(()),
            },
            (Request::Grant(request), Ok(reply)) => match reply.downcast_ref() {
                Some(reply) => self.checks.grants_taken(request, reply),
                None => Ok(()),
            },
            // One that was deposed and does not know it yet says yes, too; the comparison of leases finds what it missed.
            (Request::Release(request), Ok(_)) if self.pools() == 1 => self.checks.released(request),
            _ => Ok(()),
        };
        self.must(held);
        if !self.is_connected(who.0) {
            return;
        }
        let lose = self.plan.rates.lose;
        if self.unlucky(lose) {
            return self.say("bus", format_args!("loses the answer to {}", told(&request)));
        }
        let delay = self.delay();
        self.after(delay, Event::Answered(token, answer));
    }

    fn pools(&self) -> usize {
        self.slots.iter().filter(|slot| matches!(slot.kind, Kind::Pool(_)) && slot.process.is_some()).count()
    }

    pub(super) fn answered(&mut self, token: u64, answer: Result<Reply, Error>) {
        let Some(pending) = self.pending.remove(&token) else { return };
        match pending.asker {
            Asker::Process(who, Some(reply)) => {
                if !self.is_connected(who.0) {
                    self.pending.insert(token, Pending { asker: Asker::Process(who, Some(reply)), ..pending });
                    return;
                }
                let answer = answer.map_err(RequestError::Service);
                self.at(self.now, Event::Wake(who, Box::new(move || drop(reply.send(answer)))));
            }
            Asker::Process(_, None) => {}
            Asker::Client(wish) => self.heard(wish, answer),
            Asker::Broker(submission) => self.verdict(submission, answer),
        }
    }

    fn verdict(&mut self, submission: u64, answer: Result<Reply, Error>) {
        let verdict = answer.ok().and_then(|answer| answer.downcast::<Verdict>().ok());
        match verdict.as_deref() {
            Some(Verdict::Ack) => {
                self.broker.submissions.remove(&submission);
            }
            Some(Verdict::RetryAfter(_)) => self.after(1_000, Event::Deliver(submission)),
            Some(Verdict::DeadLetter(why)) => {
                self.broken.get_or_insert(format!("a good submission is a dead letter: {why}"));
            }
            None => {}
        }
    }

    /// A submission goes to a dispatcher, and again until it is acked.
    pub(super) fn deliver(&mut self, submission: u64) {
        let Some(waiting) = self.broker.submissions.get_mut(&submission) else { return };
        if !self.broker.is_up {
            return self.after(1_000, Event::Deliver(submission));
        }
        if waiting.due > self.now {
            return;
        }
        waiting.due = self.now + ACK_WAIT;
        let request = Request::FromStream(Box::new(waiting.run.clone()));
        self.after(ACK_WAIT, Event::Deliver(submission));
        self.ask(Asker::Broker(submission), None, To::Dispatcher, request, ACK_WAIT);
    }

    pub(super) fn published(
        &mut self,
        who: Who,
        link: u64,
        event: &Stored,
        ack: oneshot::Sender<Result<u64, BusError>>,
    ) {
        let unacked = self.plan.rates.unacked;
        let connected = self.is_connected(who.0) && link == self.broker.number;
        if !connected || self.unlucky(unacked / 2) {
            return self.after(2, Event::Wake(who, Box::new(move || drop(ack.send(Err(lost("not taken")))))));
        }
        let checked = self.checks.published(event);
        self.must(checked);
        let (sequence, new) = self.broker.append(event, self.now);
        self.say_of(
            who.0,
            format_args!("publishes {} ({}) as {sequence}{}", event.id, event.seq, if new { "" } else { " again" }),
        );
        if new {
            self.tell_watchers(event);
        }
        let answer = if self.unlucky(unacked / 2) { Err(lost("the ack is lost")) } else { Ok(sequence) };
        let delay = self.rng.between(0, 4);
        self.after(delay, Event::Wake(who, Box::new(move || drop(ack.send(answer)))));
    }

    fn tell_watchers(&mut self, event: &Stored) {
        for slot in 0..self.slots.len() {
            let is_watcher = matches!(self.slots[slot].kind, Kind::Watcher) && self.slots[slot].process.is_some();
            if !is_watcher {
                continue;
            }
            let who = (slot, self.slots[slot].incarnation);
            let delay = self.delay();
            // A consumer that was cut off goes on where it stopped.
            let at = self.in_order(who, false, delay).max(self.slots[slot].cut_until);
            self.at(at, Event::Follow(who, event.payload.to_vec()));
        }
    }

    pub(super) fn stream(&mut self, who: Who, link: u64, ask: StreamAsk) {
        let connected = self.is_connected(who.0);
        let same = connected && link == self.broker.number;
        let (number, extent) = (self.broker.number, self.broker.extent());
        let wake: crate::line::Wake = match ask {
            StreamAsk::Connect(sender) => {
                let answer = if connected { Ok(number) } else { Err(lost("nobody is there")) };
                Box::new(move || drop(sender.send(answer)))
            }
            StreamAsk::Extent(sender) => {
                let answer = if same { Ok(extent) } else { Err(lost("the connection has ended")) };
                Box::new(move || drop(sender.send(answer)))
            }
            StreamAsk::IdAt(sequence, sender) => {
                let found = self.broker.id_at(sequence);
                let answer = if same { Ok(found) } else { Err(lost("the connection has ended")) };
                Box::new(move || drop(sender.send(answer)))
            }
        };
        self.after(1, Event::Wake(who, wake));
    }

    fn note(&mut self, who: Who, note: &Note) {
        if !self.is_connected(who.0) {
            return;
        }
        for slot in 0..self.slots.len() {
            let hears = matches!(
                (&self.slots[slot].kind, note),
                (Kind::Dispatcher, _) | (Kind::Watcher, Note::Activity(_)) | (Kind::Runner { .. }, Note::Hello(_))
            );
            let lose = self.plan.rates.lose;
            if hears && self.is_connected(slot) && !self.unlucky(lose) {
                let (listener, delay) = ((slot, self.slots[slot].incarnation), self.delay());
                self.after(delay, Event::Hear(listener, note.clone()));
            }
        }
    }

    pub(super) fn ask_for_client(&mut self, wish: Wish, to: To, request: Request) {
        self.say("client", format_args!("-> {}", told(&request)));
        self.ask(Asker::Client(wish), None, to, request, 10_000);
    }
}
