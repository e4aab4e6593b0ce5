//! 2,000 seeds, and that a seed means the same each time.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use errand_sim::{Options, options_of, shrink, simulate};

const SEEDS: u64 = 2_000;

#[test]
fn the_invariants_hold_over_two_thousand_seeds() {
    let next = AtomicU64::new(0);
    let failed = Mutex::new(None);
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= SEEDS || failed.lock().unwrap().is_some() {
                        return;
                    }
                    let options = options_of(seed);
                    let outcome = simulate(options).unwrap();
                    if outcome.broken.is_some() {
                        *failed.lock().unwrap() = Some(shrink(options, outcome).unwrap());
                    }
                }
            });
        }
    });
    if let Some(failure) = failed.into_inner().unwrap() {
        panic!("{failure}");
    }
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for options in [options_of(1), options_of(2), options_of(77), Options { sqlite: true, ..options_of(5) }] {
        let [first, second] = [simulate(options).unwrap(), simulate(options).unwrap()];
        assert!(first.steps > 500, "{}", first.steps);
        assert_eq!((first.hash, first.steps), (second.hash, second.steps), "{options:?}");
    }
}

#[test]
fn memory_and_sqlite_tell_the_same_story() {
    for seed in [3, 8, 17, 58, 99] {
        let [memory, sqlite] = [false, true].map(|sqlite| simulate(Options { sqlite, ..options_of(seed) }).unwrap());
        assert_eq!((memory.hash, memory.steps), (sqlite.hash, sqlite.steps), "seed {seed}");
    }
}
