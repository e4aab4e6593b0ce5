//! Does what the plan says to processes, connections and disks, and undoes it in time.

use std::time::{Duration, Instant};

use errand_tests::{Disk, Role, Signal, Stack, Toxic};

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
}

/// The installation that suffers.
pub(crate) struct Sufferer {
    pub(crate) stack: Stack,
    pub(crate) store_disk: Option<Disk>,
    pub(crate) broker_disk: Option<Disk>,
    /// When each service is to be started again that we have ended.
    undos: Vec<(Instant, Undo)>,
    /// Services that ended without being told to, with their last words.
    pub(crate) fallen: Vec<(Role, String)>,
    ended: Vec<bool>,
}

impl Sufferer {
    pub(crate) fn new(stack: Stack, store_disk: Option<Disk>, broker_disk: Option<Disk>, services: usize) -> Self {
        let (undos, fallen) = (Vec::new(), Vec::new());
        Self { stack, store_disk, broker_disk, undos, fallen, ended: vec![false; services] }
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
            other => self.strike_servers(other),
        }
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
        }
    }
}
