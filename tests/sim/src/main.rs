//! Runs simulations: one seed again, or random ones for as long as is wanted.

#![expect(clippy::print_stdout, reason = "a command")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::Parser;
use errand_sim::{Options, options_of, shrink, simulate};

/// Simulates an installation in which everything fails.
#[derive(Debug, Parser)]
struct Args {
    /// Replays this seed, step by step.
    #[arg(long)]
    seed: Option<u64>,
    /// Goes on for so many minutes, with random seeds.
    #[arg(long)]
    minutes: Option<u64>,
    /// Goes through so many seeds.
    #[arg(long, default_value_t = 2_000)]
    seeds: u64,
    /// Where to begin.
    #[arg(long)]
    from: Option<u64>,
    /// How many at once.
    #[arg(long, default_value_t = 1)]
    threads: u64,
    /// Only the first so many runs.
    #[arg(long)]
    runs: Option<usize>,
    /// Only the first so many faults at set times.
    #[arg(long)]
    faults: Option<usize>,
    /// Over the real stores on SQLite.
    #[arg(long)]
    sqlite: bool,
    /// Nothing fails by chance.
    #[arg(long)]
    lucky: bool,
    /// Tries deliberate faults, and writes the table of what finds them into this file.
    #[cfg(feature = "mutations")]
    #[arg(long)]
    mutations: Option<std::path::PathBuf>,
    /// Of these, only this one.
    #[cfg(feature = "mutations")]
    #[arg(long)]
    only: Option<String>,
    /// Goes on behind a failure, and tells of each.
    #[arg(long)]
    keep_going: bool,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    #[cfg(feature = "mutations")]
    if let Some(file) = &args.mutations {
        return errand_sim::mutations::table(file, args.only.as_deref(), args.threads);
    }
    if let Some(seed) = args.seed {
        let chosen = options_of(seed);
        let sqlite = args.sqlite || chosen.sqlite;
        let options = Options { runs: args.runs, faults: args.faults, lucky: args.lucky, sqlite, ..chosen };
        let outcome = simulate(Options { aloud: true, ..options })?;
        println!("seed {seed}: {} steps, {} runs, hash {:016x}", outcome.steps, outcome.runs, outcome.hash);
        if let Some(broken) = outcome.broken {
            anyhow::bail!("{broken}");
        }
        return Ok(());
    }
    run_many(&args)
}

fn run_many(args: &Args) -> anyhow::Result<()> {
    let started = Instant::now();
    let until = args.minutes.map(|minutes| started + Duration::from_secs(minutes * 60));
    let random =
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() % 1_000_000 * 1_000_000);
    let first = args.from.unwrap_or(if until.is_some() { random } else { 0 });
    let (next, steps, failed) = (AtomicU64::new(first), AtomicU64::new(0), AtomicU64::new(0));
    let work = || -> anyhow::Result<()> {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            let over = until.map_or(seed - first >= args.seeds, |until| Instant::now() >= until);
            if over || (failed.load(Ordering::Relaxed) > 0 && !args.keep_going) {
                return Ok(());
            }
            let options = options_of(seed);
            let outcome = simulate(options)?;
            steps.fetch_add(outcome.steps, Ordering::Relaxed);
            if outcome.broken.is_some() {
                failed.fetch_add(1, Ordering::Relaxed);
                println!("{}\n", shrink(options, outcome)?);
            }
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..args.threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().unwrap_or_else(|_| anyhow::bail!("a seed panicked")))
    })?;
    let (count, steps, seconds) =
        (next.into_inner() - first - args.threads, steps.into_inner(), started.elapsed().as_secs_f64());
    let failed = failed.into_inner();
    println!("{count} seeds from {first}, {steps} steps, {:.1} seeds/s, {failed} failed", count as f64 / seconds);
    std::process::exit(i32::from(failed > 0));
}
