//! Does what the plan says to processes, connections and disks, and undoes it in time.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use errand_tests::{Clock, Disk, Role, Signal, Stack, Toxic};

use crate::load::Load;
use crate::plan::Harm;

/// What is to be done later, whatever else has happened by then.
#[derive(Debug, Clone, Copy)]
enum Undo {
    Start(usize),
    Continue(usize),
    HealBroker(usize),
    HealStore(usize),
    StartBroker(usize),
    ContinueBroker(usize),
    Writable,
    EmptyTheStoresDisk,
    EmptyTheBrokersDisk,
    SetClock(usize),
}

/// A time during which a service's clock was wrong.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WrongTime {
    whom: usize,
    /// By how many milliseconds it was ahead.
    by_ms: i64,
    /// When it began and ended; milliseconds since 1970.
    from_ms: i64,
    until_ms: i64,
}

impl WrongTime {
    /// Whether a time may be one that this clock told.
    pub(crate) fn may_have_told(&self, time_ms: i64) -> bool {
        (self.from_ms..=self.until_ms).contains(&(time_ms - self.by_ms))
    }
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// What there is to suffer.
pub(crate) struct Scene {
    pub(crate) stack: Stack,
    pub(crate) store_disk: Option<Disk>,
    pub(crate) broker_disk: Option<Disk>,
    /// Of each service, where they can be set.
    pub(crate) clocks: Vec<Clock>,
}

/// The installation that suffers.
pub(crate) struct Sufferer {
    pub(crate) stack: Stack,
    pub(crate) store_disk: Option<Disk>,
    pub(crate) broker_disk: Option<Disk>,
    /// Of each service, where they can be set.
    clocks: Vec<Clock>,
    wrong_times: Vec<WrongTime>,
    /// When each service is to be started again that we have ended.
    undos: Vec<(Instant, Undo)>,
    /// Services that ended without being told to, with their last words.
    pub(crate) fallen: Vec<(Role, String)>,
    ended: Vec<bool>,
}

impl Sufferer {
    pub(crate) fn new(scene: Scene, services: usize) -> Self {
        let Scene { stack, store_disk, broker_disk, clocks } = scene;
        let (undos, fallen, wrong_times) = (Vec::new(), Vec::new(), Vec::new());
        let ended = vec![false; services];
        Self { stack, store_disk, broker_disk, clocks, wrong_times, undos, fallen, ended }
    }

    /// Goes through the plan, and undoes all of it.
    pub(crate) async fn suffer(&mut self, plan: &[(Duration, Harm)], load: &Load) -> anyhow::Result<()> {
        let started = Instant::now();
        for (at, harm) in plan {
            self.undo_until(started + *at).await;
            println!("{:7.2} s  {harm:?}", started.elapsed().as_secs_f64());
            tokio::task::block_in_place(|| self.strike(*harm));
            if matches!(harm, Harm::EmptyBroker(_)) {
                let load = load.clone();
                // Beside the storm: it may take until somebody answers.
                tokio::spawn(async move { load.submit_lost().await.expect("what the broker lost is submitted again") });
            }
        }
        let last = self.undos.iter().map(|(at, _)| *at).max().unwrap_or(started);
        self.undo_until(last).await;
        println!("{:7.2} s  the storm is over", started.elapsed().as_secs_f64());
        Ok(())
    }

    /// Undoes what is to be undone, until a time; and starts what has ended by itself, as any supervisor does.
    async fn undo_until(&mut self, end: Instant) {
        loop {
            self.undos.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
            let next = self.undos.last().map_or(end, |(at, _)| *at).min(end);
            tokio::time::sleep_until(next.into()).await;
            if self.undos.last().is_some_and(|(at, _)| *at <= next) {
                let (_, undo) = self.undos.pop().expect("seen just now");
                tokio::task::block_in_place(|| self.undo(undo));
            } else if next == end {
                return self.raise_the_fallen();
            }
            self.raise_the_fallen();
        }
    }

    /// Waits for something that happens behind the storm.
    pub(crate) async fn watch<T>(&mut self, something: impl Future<Output = T>) -> T {
        tokio::pin!(something);
        loop {
            tokio::select! {
                something = &mut something => return something,
                () = tokio::time::sleep(Duration::from_secs(1)) => tokio::task::block_in_place(|| self.raise_the_fallen()),
            }
        }
    }

    fn raise_the_fallen(&mut self) {
        for (at, (role, service)) in self.stack.all_services().enumerate() {
            if !self.ended[at] && service.process().ended().is_some() {
                let log = service.process().log();
                let words = log.lines().rev().take(4).collect::<Vec<_>>();
                self.fallen.push((role, words.into_iter().rev().collect::<Vec<_>>().join("\n")));
                service.restart();
            }
        }
    }

    fn later(&mut self, delay: Duration, undo: Undo) {
        self.undos.push((Instant::now() + delay, undo));
    }

    fn process(&mut self, whom: usize) -> &mut errand_tests::Child {
        self.stack.all_services().nth(whom).expect("the plan knows how many there are").1.process()
    }

    fn broker(&mut self, which: usize) -> &mut errand_tests::Broker {
        match which {
            0 => &mut self.stack.broker,
            other => &mut self.stack.peers[other - 1],
        }
    }

    fn strike(&mut self, harm: Harm) {
        match harm {
            Harm::Kill(whom, down) => {
                self.ended[whom] = true;
                self.process(whom).kill9();
                self.later(down, Undo::Start(whom));
            }
            Harm::Stop(whom, down) => {
                self.ended[whom] = true;
                self.process(whom).sigcont();
                self.process(whom).signal(Signal::SIGTERM);
                self.later(down, Undo::Start(whom));
            }
            Harm::Freeze(whom, long) => {
                self.process(whom).sigstop();
                self.later(long, Undo::Continue(whom));
            }
            Harm::LinkToBroker(whom, toxic, long) => {
                self.link_to_broker(whom, toxic);
                self.later(long, Undo::HealBroker(whom));
            }
            Harm::LinkToStore(whom, toxic, long) => {
                self.link_to_store(whom, toxic);
                self.later(long, Undo::HealStore(whom));
            }
            Harm::Partition(whom, long) => {
                self.link_to_broker(whom, Toxic::Stall);
                self.link_to_store(whom, Toxic::Stall);
                self.later(long, Undo::HealBroker(whom));
                self.later(long, Undo::HealStore(whom));
            }
            Harm::Clock(whom, seconds, long) => self.set_clock(whom, seconds, long),
            other => self.strike_servers(other),
        }
    }

    fn set_clock(&mut self, whom: usize, seconds: i64, long: Duration) {
        self.clocks[whom].set(seconds);
        self.later(long, Undo::SetClock(whom));
        // One that is wrong already is wrong in another way now; that it is right again is written down when it is.
        self.wrong_times.push(WrongTime { whom, by_ms: seconds * 1_000, from_ms: now_ms(), until_ms: i64::MAX / 2 });
    }

    /// The times during which a dispatcher's clock was wrong: by its own, events are made.
    pub(crate) fn wrong_times_of(&mut self, role: Role) -> Vec<WrongTime> {
        let roles: Vec<Role> = self.stack.all_services().map(|(role, _)| role).collect();
        self.wrong_times.iter().copied().filter(|wrong| roles[wrong.whom] == role).collect()
    }

    fn strike_servers(&mut self, harm: Harm) {
        match harm {
            Harm::KillBroker(which, down) => {
                self.broker(which).kill9();
                self.later(down, Undo::StartBroker(which));
            }
            Harm::RestartBroker(which) => {
                // Frozen, it would not hear that it is to end.
                self.broker(which).sigcont();
                self.broker(which).restart();
            }
            Harm::FreezeBroker(which, long) => {
                self.broker(which).sigstop();
                self.later(long, Undo::ContinueBroker(which));
            }
            Harm::EmptyBroker(which) => self.broker(which).restart_empty(),
            Harm::KillPostgres => self.postgres().kill9_and_restart(),
            Harm::RestartPostgres => self.postgres().restart(),
            Harm::ReadOnlyPostgres(long) => {
                self.postgres().read_only(true);
                self.later(long, Undo::Writable);
            }
            Harm::FullStore(long) => {
                self.store_disk.as_ref().expect("the plan knows").full(true);
                self.later(long, Undo::EmptyTheStoresDisk);
            }
            Harm::FullBroker(long) => {
                self.broker_disk.as_ref().expect("the plan knows").full(true);
                self.later(long, Undo::EmptyTheBrokersDisk);
            }
            _ => unreachable!("of services, which is above"),
        }
    }

    fn postgres(&mut self) -> &mut errand_tests::Postgres {
        self.stack.postgres.as_mut().expect("the plan knows")
    }

    fn link_to_broker(&self, whom: usize, toxic: Toxic) {
        self.stack.links(whom).broker.iter().for_each(|proxy| proxy.set(toxic));
    }

    fn link_to_store(&self, whom: usize, toxic: Toxic) {
        self.stack.links(whom).store.iter().for_each(|proxy| proxy.set(toxic));
    }

    fn undo(&mut self, undo: Undo) {
        match undo {
            Undo::Start(whom) => {
                self.ended[whom] = false;
                self.stack.all_services().nth(whom).expect("it was ended").1.restart();
            }
            Undo::Continue(whom) => self.process(whom).sigcont(),
            Undo::HealBroker(whom) => self.link_to_broker(whom, Toxic::None),
            Undo::HealStore(whom) => self.link_to_store(whom, Toxic::None),
            Undo::StartBroker(which) => {
                if self.broker(which).pid().is_none() {
                    self.broker(which).restart();
                }
            }
            Undo::ContinueBroker(which) => self.broker(which).sigcont(),
            Undo::Writable => self.postgres().read_only(false),
            Undo::EmptyTheStoresDisk => self.store_disk.as_ref().expect("it was full").full(false),
            Undo::EmptyTheBrokersDisk => {
                self.broker_disk.as_ref().expect("it was full").full(false);
                // A nats-server whose disk was full has switched JetStream off until it is started again.
                self.stack.broker.sigcont();
                self.stack.broker.restart();
            }
            Undo::SetClock(whom) => {
                self.clocks[whom].set(0);
                for wrong in self.wrong_times.iter_mut().filter(|wrong| wrong.whom == whom) {
                    wrong.until_ms = wrong.until_ms.min(now_ms());
                }
            }
        }
    }
}
