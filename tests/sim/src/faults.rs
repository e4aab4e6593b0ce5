//! What goes wrong in a simulation: how often messages, stores and processes fail by chance, and what happens at set
//! times. All of it follows from the seed.

use crate::rng::Rng;

/// How often something fails; of ten thousand.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rates {
    /// A request, an answer or a note is lost.
    pub(crate) lose: u64,
    /// A request arrives twice.
    pub(crate) duplicate: u64,
    /// A message takes up to seconds.
    pub(crate) slow: u64,
    /// The store does not do it, and says so.
    pub(crate) refused: u64,
    /// The store does it, and nobody learns.
    pub(crate) unknown: u64,
    /// An event is not taken, or its ack is lost.
    pub(crate) unacked: u64,
    /// A process dies at one of its calls: before or behind a commit, a publication, an answer, an ack.
    pub(crate) crash: u64,
}

/// Something that happens at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Crash,
    Stop,
    /// Nobody hears a process for so many milliseconds, nor it anybody.
    Partition(i64),
    /// A process does not execute for so long.
    Stall(i64),
    /// Its clock is set by so much.
    ClockJump(i64),
    BrokerAway(i64),
    BrokerLosesTheEnd(u64),
    BrokerLosesAll,
    /// Another pool takes over while the first one lives.
    SecondPool,
    DrainRunner,
    EndSession,
    /// A late repetition of an old message.
    Repeat,
}

/// A simulation's plan.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) rates: Rates,
    /// When, what, and a number that says to whom.
    pub(crate) faults: Vec<(i64, Fault, u64)>,
    pub(crate) horizon: i64,
    pub(crate) runs: usize,
    pub(crate) dispatchers: usize,
    pub(crate) watchers: usize,
    pub(crate) runners: usize,
    pub(crate) tenant_limit: u32,
    pub(crate) max_waiting: usize,
}

fn rates(rng: &mut Rng) -> Rates {
    // Many seeds have only a few kinds of trouble: what one hides, another shows.
    let mut some = |of_10000: u64, highest: u64| if rng.chance(of_10000) { rng.below(highest) } else { 0 };
    Rates {
        lose: some(5_000, 800),
        duplicate: some(5_000, 600),
        slow: some(5_000, 500),
        refused: some(3_000, 300),
        unknown: some(4_000, 300),
        unacked: some(4_000, 500),
        crash: some(4_000, 25),
    }
}

fn fault(rng: &mut Rng) -> Fault {
    match rng.below(26) {
        0..6 => Fault::Crash,
        6..8 => Fault::Stop,
        8..11 => Fault::Partition(rng.between(300, 15_000)),
        11..13 => Fault::Stall(rng.between(300, 20_000)),
        13..15 => Fault::ClockJump(rng.between(-20_000, 20_000)),
        15..17 => Fault::BrokerAway(rng.between(100, 8_000)),
        17 => Fault::BrokerLosesTheEnd(rng.between(1, 30).unsigned_abs()),
        18 => Fault::BrokerLosesAll,
        19 => Fault::SecondPool,
        20..22 => Fault::DrainRunner,
        22..24 => Fault::EndSession,
        _ => Fault::Repeat,
    }
}

impl Plan {
    pub(crate) fn of(rng: &mut Rng) -> Self {
        let horizon = rng.between(10_000, 45_000);
        let count = if rng.chance(1_500) { 0 } else { rng.below(14) };
        let mut times = rng.fork();
        let mut faults: Vec<_> =
            (0..count).map(|_| (times.between(500, horizon), fault(&mut times), times.next())).collect();
        faults.sort_unstable_by_key(|(at, ..)| *at);
        Self {
            rates: rates(&mut rng.fork()),
            faults,
            horizon,
            runs: usize::try_from(rng.between(4, 32)).unwrap_or(4),
            dispatchers: if rng.chance(4_500) { 2 } else { 1 },
            watchers: if rng.chance(3_000) { 2 } else { 1 },
            runners: usize::try_from(rng.between(1, 4)).unwrap_or(1),
            tenant_limit: if rng.chance(2_500) { 2 } else { 0 },
            max_waiting: if rng.chance(1_500) { 5 } else { 1_000 },
        }
    }
}
