//! The world: time, the queue of what is to happen, and everything between the processes.

mod calls;
mod client;
mod trouble;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use errand_bus::{BusError, RequestError};
use errand_core::Error;
use errand_store::Stored;
use tokio::sync::oneshot;

use crate::broker::Broker;
use crate::checks::Checks;
use crate::faults::{Fault, Plan};
use crate::line::{Call, Line, Note, Reply, Request, StoreWork, StreamAsk, To, Wake};
use crate::process::{Kind, Limits, Process};
use crate::rng::Rng;
use crate::stores::{Base, Memory, Sqlite, Stores};
use crate::trace::Trace;
use client::Wish;

/// How often a process is looked at whom nothing reaches: its own timers may have passed.
const TICK: i64 = 200;
/// How long the world may take to become quiet when nothing goes wrong any more.
const PATIENCE: i64 = 280_000;

/// How a simulation is to be run.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// What everything follows from.
    pub seed: u64,
    /// Over the real stores on SQLite.
    pub sqlite: bool,
    /// Only the first so many runs.
    pub runs: Option<usize>,
    /// Only the first so many faults at set times.
    pub faults: Option<usize>,
    /// Nothing fails by chance.
    pub lucky: bool,
    /// Every step is printed.
    pub aloud: bool,
}

/// What came of a simulation.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// What did not hold.
    pub broken: Option<String>,
    /// The last steps.
    pub trace: Vec<String>,
    /// Of every step.
    pub hash: u64,
    /// How many there were.
    pub steps: u64,
    /// How long it was in the simulated world, in milliseconds.
    pub millis: i64,
    /// How many runs were accepted.
    pub runs: usize,
    /// How many faults happened at set times.
    pub faults: usize,
}

/// A process's place; another incarnation each time that it is started.
type Who = (usize, u64);

struct Slot {
    kind: Kind,
    process: Option<Process>,
    incarnation: u64,
    /// Until when nobody hears it, nor it anybody.
    cut_until: i64,
    /// It takes no further work and will be gone soon.
    goes: bool,
    /// It stands by: another pool has taken over.
    retired: bool,
}

/// Who is to hear the answer.
enum Asker {
    Process(Who, Option<oneshot::Sender<Result<Reply, RequestError>>>),
    Client(Wish),
    /// The broker, of a submission.
    Broker(u64),
}

struct Pending {
    asker: Asker,
    request: Request,
}

enum Event {
    Tick(Who),
    Wake(Who, Wake),
    Store(Who, String, StoreWork),
    Arrive(u64, To, Request),
    Answered(u64, Result<Reply, Error>),
    Late(u64),
    Published(Who, u64, Box<Stored>, oneshot::Sender<Result<u64, BusError>>),
    Stream(Who, u64, StreamAsk),
    Hear(Who, Note),
    Follow(Who, Vec<u8>),
    Deliver(u64),
    Fault(Fault, u64),
    Kill(Who),
    Start(usize),
    BrokerUp,
    Heal,
    Client(Wish),
    Calm,
    Quiet,
}

struct Scheduled {
    at: i64,
    order: u64,
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

pub(crate) struct World {
    now: i64,
    order: u64,
    queue: BinaryHeap<Reverse<Scheduled>>,
    rng: Rng,
    plan: Plan,
    slots: Vec<Slot>,
    stores: Stores,
    broker: Broker,
    checks: Checks,
    trace: Trace,
    pending: BTreeMap<u64, Pending>,
    tokens: u64,
    turns: BTreeMap<Base, Who>,
    /// When the last message of a process reaches the broker, or an event a watcher: these keep their order.
    fifo: BTreeMap<(Who, bool), i64>,
    client: client::Client,
    /// Messages of before, to be repeated.
    old: Vec<(To, Request)>,
    calm: bool,
    calm_since: i64,
    broken: Option<String>,
    done: bool,
    happened: usize,
}

impl World {
    pub(crate) fn new(options: Options) -> anyhow::Result<Self> {
        let mut rng = Rng::new(options.seed);
        let mut plan = Plan::of(&mut rng.fork());
        plan.runs = options.runs.map_or(plan.runs, |runs| runs.min(plan.runs));
        plan.faults.truncate(options.faults.unwrap_or(usize::MAX));
        if options.lucky {
            plan.rates = crate::faults::Rates::default();
        }
        let stores = if options.sqlite {
            Stores::new(Box::new(Sqlite::open()?))
        } else {
            Stores::new(Box::new(Memory::default()))
        };
        let mut world = Self {
            now: 0,
            order: 0,
            queue: BinaryHeap::new(),
            client: client::Client::new(rng.fork()),
            rng,
            plan,
            slots: Vec::new(),
            stores,
            broker: Broker::new(),
            checks: Checks::default(),
            trace: Trace::new(options.aloud),
            pending: BTreeMap::new(),
            tokens: 0,
            turns: BTreeMap::new(),
            fifo: BTreeMap::new(),
            old: Vec::new(),
            calm: false,
            calm_since: 0,
            broken: None,
            done: false,
            happened: 0,
        };
        world.populate();
        Ok(world)
    }

    fn populate(&mut self) {
        let limits = Limits { tenant_limit: self.plan.tenant_limit, max_waiting: self.plan.max_waiting };
        let mut kinds = vec![Kind::Pool(limits)];
        kinds.extend((0..self.plan.dispatchers).map(|_| Kind::Dispatcher));
        kinds.extend((0..self.plan.watchers).map(|_| Kind::Watcher));
        for _ in 0..self.plan.runners {
            kinds.push(self.new_runner());
        }
        for kind in kinds {
            self.slots.push(Slot { kind, process: None, incarnation: 0, cut_until: 0, goes: false, retired: false });
            let at = self.rng.between(0, 300);
            self.at(at, Event::Start(self.slots.len() - 1));
        }
        for (at, fault, whom) in self.plan.faults.clone() {
            self.at(at, Event::Fault(fault, whom));
        }
        self.plan_client();
        self.at(self.plan.horizon, Event::Calm);
    }

    fn at(&mut self, at: i64, event: Event) {
        self.order += 1;
        self.queue.push(Reverse(Scheduled { at: at.max(self.now), order: self.order, event }));
    }

    fn after(&mut self, delay: i64, event: Event) {
        self.at(self.now + delay, event);
    }

    fn say(&mut self, actor: &str, what: impl std::fmt::Display) {
        self.trace.say(self.now, &actor, &what);
    }

    fn say_of(&mut self, slot: usize, what: impl std::fmt::Display) {
        let name = self.slots[slot].process.as_ref().map_or("nobody", |process| process.name.as_str());
        self.trace.say(self.now, &name, &what);
    }

    fn must<T>(&mut self, held: Result<T, errand_core::run::Broken>) -> Option<T> {
        held.map_err(|broken| self.broken.get_or_insert(broken.to_string()).clone()).ok()
    }

    fn is_alive(&self, who: Who) -> bool {
        self.slots[who.0].incarnation == who.1 && self.slots[who.0].process.is_some()
    }

    fn is_connected(&self, slot: usize) -> bool {
        self.broker.is_up && self.slots[slot].cut_until <= self.now
    }

    fn unlucky(&mut self, of_10000: u64) -> bool {
        !self.calm && self.rng.chance(of_10000)
    }

    /// How long a message takes.
    fn delay(&mut self) -> i64 {
        let slow = self.plan.rates.slow;
        if self.unlucky(slow) { self.rng.between(50, 6_000) } else { self.rng.between(0, 4) }
    }

    /// Until nothing is left to do, or something does not hold.
    pub(crate) fn run(mut self) -> Outcome {
        while self.broken.is_none() && !self.done {
            let Some(Reverse(Scheduled { at, event, .. })) = self.queue.pop() else { break };
            self.now = self.now.max(at);
            self.checks.now = self.now;
            self.step(event);
        }
        if self.broken.is_none() && self.done {
            let read = self.checks.stream(self.broker.events());
            self.must(read);
        }
        Outcome {
            broken: self.broken,
            trace: self.trace.last(),
            hash: self.trace.hash(),
            steps: self.trace.steps(),
            millis: self.now,
            runs: self.checks.accepted.len(),
            faults: self.happened,
        }
    }

    /// Whether something that is to reach a process must wait: it does not execute now.
    fn is_stalled(&mut self, event: Event) -> Option<Event> {
        let who = match &event {
            Event::Tick(who) | Event::Wake(who, _) | Event::Hear(who, _) | Event::Follow(who, _) => *who,
            _ => return Some(event),
        };
        let until = self.slots[who.0].process.as_ref().map_or(0, |process| process.stalled_until);
        if !self.is_alive(who) || until <= self.now {
            return Some(event);
        }
        self.at(until, event);
        None
    }

    fn step(&mut self, event: Event) {
        let Some(event) = self.is_stalled(event) else { return };
        match event {
            Event::Tick(who) => {
                if self.is_alive(who) {
                    self.after(TICK, Event::Tick(who));
                    self.go_on(who);
                    if self.slots[who.0].process.as_ref().is_some_and(Process::has_drained) {
                        self.kill(who.0, "has drained");
                    }
                }
            }
            Event::Wake(who, wake) => {
                if self.is_alive(who) {
                    wake();
                    self.go_on(who);
                }
            }
            Event::Store(who, what, work) => self.store(who, &what, work),
            Event::Arrive(token, to, request) => self.arrive(token, to, request),
            Event::Answered(token, answer) => self.answered(token, answer),
            Event::Late(token) => self.late(token),
            Event::Published(who, link, event, ack) => self.published(who, link, &event, ack),
            Event::Stream(who, link, ask) => self.stream(who, link, ask),
            Event::Hear(who, note) => self.reach(who, |process| process.hear(note)),
            Event::Follow(who, payload) => self.reach(who, |process| process.follow(&payload)),
            Event::Deliver(submission) => self.deliver(submission),
            Event::Fault(fault, whom) => self.fault(fault, whom),
            Event::Kill(who) => {
                if self.is_alive(who) {
                    self.kill(who.0, "goes");
                }
            }
            Event::Start(slot) => self.start(slot),
            Event::BrokerUp => self.broker_up(),
            Event::Heal => self.reconnect(),
            Event::Client(wish) => self.wish(wish),
            Event::Calm => self.calm_down(),
            Event::Quiet => self.look_for_quiet(),
        }
    }

    fn reach(&mut self, who: Who, reach: impl FnOnce(&Process)) {
        if self.is_alive(who)
            && let Some(process) = &self.slots[who.0].process
        {
            reach(process);
            self.go_on(who);
        }
    }

    /// Lets a process go on, and takes what it wants.
    fn go_on(&mut self, who: Who) {
        for _ in 0..4 {
            let Some(process) = self.slots[who.0].process.as_ref().filter(|_| self.is_alive(who)) else { return };
            process.go_on(self.now);
            let mut calls = process.line.take_calls();
            in_order(&mut calls);
            if calls.is_empty() {
                return;
            }
            for call in calls {
                if !self.is_alive(who) {
                    return;
                }
                self.call(who, call);
            }
        }
    }

    fn start(&mut self, slot: usize) {
        if self.slots[slot].process.is_some() {
            return;
        }
        self.slots[slot].incarnation += 1;
        self.slots[slot].goes = false;
        let who = (slot, self.slots[slot].incarnation);
        let line = Line::new(self.rng.fork());
        if self.calm {
            line.calm_down();
        }
        line.connect(self.is_connected(slot).then_some(self.broker.number));
        let kind = self.slots[slot].kind.clone();
        if matches!(kind, Kind::Pool(_)) {
            self.checks.pool_begins();
        }
        let what = match &kind {
            Kind::Dispatcher => "dispatcher",
            Kind::Pool(_) => "pool",
            Kind::Watcher => "watcher",
            Kind::Runner { .. } => "runner",
        };
        let name = format!("{what}{slot}.{}", who.1);
        match Process::start(kind, name, line, self.now) {
            Ok(process) => self.slots[slot].process = Some(process),
            Err(error) => self.broken = Some(format!("a runtime cannot be made: {error}")),
        }
        self.say_of(slot, "starts");
        self.at(self.now, Event::Tick(who));
    }

    fn kill(&mut self, slot: usize, why: &str) {
        self.say_of(slot, format_args!("is gone: {why}"));
        let who = (slot, self.slots[slot].incarnation);
        self.slots[slot].process = None;
        self.turns.retain(|_, holder| *holder != who);
        if matches!(self.slots[slot].kind, Kind::Runner { .. }) {
            self.slots[slot].kind = self.new_runner();
        }
        let other = |other: &Slot| matches!(other.kind, Kind::Pool(_)) && other.process.is_some();
        if matches!(self.slots[slot].kind, Kind::Pool(_)) && self.slots.iter().any(other) {
            self.slots[slot].retired = true;
            return;
        }
        let back = if self.calm { self.rng.between(1, 200) } else { self.rng.between(1, 9_000) };
        self.after(back, Event::Start(slot));
    }

    fn new_runner(&mut self) -> Kind {
        let id = errand_core::RunnerId::from_uuid(self.rng.uuid(crate::process::EPOCH + self.now));
        let capacity = u32::try_from(self.rng.between(1, 4)).unwrap_or(1);
        let warm = u32::try_from(self.rng.between(-2, 1)).unwrap_or(0);
        Kind::Runner { id, capacity, warm: warm.min(capacity) }
    }

    fn calm_down(&mut self) {
        self.say("world", "nothing goes wrong from now on");
        // Who is stalled stays so until its time is over: what was to reach it waits till then.
        let stalled = self.slots.iter().filter_map(|slot| slot.process.as_ref()).map(|process| process.stalled_until);
        (self.calm, self.calm_since) = (true, stalled.max().unwrap_or(0).max(self.now));
        self.checks.calm_since = Some(self.calm_since);
        if !self.broker.is_up {
            self.broker.is_up = true;
        }
        for slot in 0..self.slots.len() {
            self.slots[slot].cut_until = 0;
            if let Some(process) = &mut self.slots[slot].process {
                process.line.calm_down();
                process.skew = 0;
            }
        }
        self.reconnect();
        self.after(1_000, Event::Quiet);
    }

    fn look_for_quiet(&mut self) {
        self.wish_in_calm();
        if self.now - self.calm_since > 30_000 {
            let forgotten = self.checks.forgotten_loss(crate::process::EPOCH + self.now, 25_000);
            self.broken = self.broken.take().or(forgotten);
        }
        let unrest = self.unrest();
        match unrest {
            None if self.now - self.calm_since > 3_000 => self.done = true,
            Some(unrest) if self.now - self.calm_since > PATIENCE => {
                self.broken = Some(format!("the world does not become quiet: {unrest}"));
            }
            _ => self.after(1_000, Event::Quiet),
        }
    }

    fn unrest(&self) -> Option<String> {
        if self.slots.iter().any(|slot| slot.process.is_none() && !slot.retired) {
            return Some("a process is down".into());
        }
        if !self.broker.submissions.is_empty() {
            return Some("submissions wait".into());
        }
        if let Some(unrest) = self.checks.unrest() {
            return Some(unrest);
        }
        for process in self.slots.iter().filter_map(|slot| slot.process.as_ref()) {
            if let Some(armed) = process.armed().filter(|armed| *armed > 0) {
                return Some(format!("{} has {armed} runs armed although all are final", process.name));
            }
            let known = |id: &errand_core::SessionId| {
                self.checks.sessions.get(id).is_some_and(|session| !session.status().is_final())
            };
            if let Some(leaked) = process.hosted().into_iter().find(|id| !known(id)) {
                return Some(format!("{} has {leaked}, which is leaked", process.name));
            }
        }
        None
    }
}

/// Of several that wait for one `watch`, tokio wakes any first: answers that are given at once are taken in the order of
/// the requests.
fn in_order(calls: &mut [Call]) {
    let token = |call: &Call| match call {
        Call::Answer { token, .. } => Some(*token),
        _ => None,
    };
    for answers in calls.chunk_by_mut(|one, next| token(one).is_some() && token(next).is_some()) {
        answers.sort_by_key(token);
    }
}
