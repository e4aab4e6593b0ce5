//! What goes wrong, and when: all of it follows from the seed.

use std::time::Duration;

use errand_tests::Toxic;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// What a storm may reach.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ground {
    pub(crate) services: usize,
    pub(crate) brokers: usize,
    pub(crate) postgres: bool,
    /// There are disks that can be full.
    pub(crate) disks: bool,
    /// Clocks can be set.
    pub(crate) clocks: bool,
}

/// Something that goes wrong. A service is named by its place in the order of their start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Harm {
    /// SIGKILL, and a start so much later.
    Kill(usize, Duration),
    /// SIGTERM, and a start so much later, whether it has ended by itself or not.
    Stop(usize, Duration),
    /// SIGSTOP, and SIGCONT so much later.
    Freeze(usize, Duration),
    /// Something happens to its connections to the broker.
    LinkToBroker(usize, Toxic, Duration),
    /// Something happens to its connections to Postgres.
    LinkToStore(usize, Toxic, Duration),
    /// It reaches nobody.
    Partition(usize, Duration),
    /// SIGKILL to a broker, and a start so much later.
    KillBroker(usize, Duration),
    RestartBroker(usize),
    FreezeBroker(usize, Duration),
    /// A broker is killed and comes back with nothing.
    EmptyBroker(usize),
    KillPostgres,
    RestartPostgres,
    ReadOnlyPostgres(Duration),
    /// The disk of SQLite's files.
    FullStore(Duration),
    FullBroker(Duration),
    /// Its clock is so many seconds ahead, or behind, for so long.
    Clock(usize, i64, Duration),
}

/// Nobody loses a second broker's data before the first one has been given it back.
const BETWEEN_LOSSES: Duration = Duration::from_secs(40);

/// A storm: what happens how long after its beginning.
pub(crate) fn plan(seed: u64, ground: Ground, length: Duration, calm: Duration) -> Vec<(Duration, Harm)> {
    let mut rng = StdRng::seed_from_u64(seed);
    let (mut at, mut lost) = (Duration::from_secs(1), None::<Duration>);
    let mut plan = Vec::new();
    while at < length {
        let harm = harm(&mut rng, ground);
        let loses = matches!(harm, Harm::EmptyBroker(_));
        if !loses || lost.is_none_or(|lost| at > lost + BETWEEN_LOSSES) {
            lost = if loses { Some(at) } else { lost };
            plan.push((at, harm));
        }
        at += calm.mul_f64(rng.random_range(0.2..1.8));
    }
    if ground.clocks {
        plan.extend(clocks(seed, ground, length, calm));
        plan.sort_by_key(|(at, _)| *at);
    }
    plan
}

/// With chances of their own: where no clock can be set, everything else of a seed's storm is the same.
fn clocks(seed: u64, ground: Ground, length: Duration, calm: Duration) -> Vec<(Duration, Harm)> {
    let mut rng = StdRng::seed_from_u64(!seed);
    let (mut at, mut plan) = (Duration::ZERO, Vec::new());
    loop {
        at += calm.mul_f64(rng.random_range(1.0..7.0));
        if at >= length {
            return plan;
        }
        let whom = rng.random_range(0..ground.services);
        let seconds = rng.random_range(1..120) * if rng.random() { 1 } else { -1 };
        plan.push((at, Harm::Clock(whom, seconds, Duration::from_millis(rng.random_range(1_500..10_000)))));
    }
}

fn toxic(rng: &mut StdRng) -> Toxic {
    match rng.random_range(0..7) {
        0 => Toxic::Cut,
        1 => Toxic::Delay(Duration::from_millis(rng.random_range(5..300))),
        2 => Toxic::Stall,
        3 => Toxic::Drop,
        4 => Toxic::ServerGone,
        5 => Toxic::ClientGone,
        _ => Toxic::SlowClose(Duration::from_millis(rng.random_range(500..5_000))),
    }
}

fn harm(rng: &mut StdRng, ground: Ground) -> Harm {
    let whom = rng.random_range(0..ground.services);
    let broker = rng.random_range(0..ground.brokers);
    let short = Duration::from_millis(rng.random_range(0..2_500));
    let long = Duration::from_millis(rng.random_range(200..12_000));
    loop {
        return match rng.random_range(0..32) {
            0..6 => Harm::Kill(whom, short),
            6..8 => Harm::Stop(whom, short + Duration::from_secs(1)),
            8..11 => Harm::Freeze(whom, long),
            11..16 => Harm::LinkToBroker(whom, toxic(rng), long),
            16..20 if ground.postgres => Harm::LinkToStore(whom, toxic(rng), long),
            20 => Harm::Partition(whom, long),
            21 => Harm::KillBroker(broker, short),
            22 => Harm::RestartBroker(broker),
            23 => Harm::FreezeBroker(broker, long / 2),
            24..26 => Harm::EmptyBroker(broker),
            26 if ground.postgres => Harm::KillPostgres,
            27 if ground.postgres => Harm::RestartPostgres,
            28..30 if ground.postgres => Harm::ReadOnlyPostgres(long / 2),
            30 if ground.disks && !ground.postgres => Harm::FullStore(long / 2),
            31 if ground.disks => Harm::FullBroker(long / 2),
            _ => continue,
        };
    }
}
