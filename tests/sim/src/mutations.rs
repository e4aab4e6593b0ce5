//! Which deliberate fault is found by what: the simulator with how many seeds, and the property tests of the core.

use std::fmt::Write;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use errand_core::mutation::{Mutation, activate};

use crate::{options_of, simulate};

/// Seeds that a fault may take to show.
const SEEDS: u64 = 2_000;

struct Found {
    seeds: u64,
    what: String,
}

/// Simulates seed after seed with a fault until it shows.
fn simulated(mutation: Mutation) -> anyhow::Result<Option<Found>> {
    activate(Some(mutation));
    for seed in 0..SEEDS {
        // The real SQLite has nothing to add here.
        let outcome = simulate(crate::Options { sqlite: false, ..options_of(seed) })?;
        if let Some(what) = outcome.broken {
            activate(None);
            return Ok(Some(Found { seeds: seed + 1, what }));
        }
    }
    activate(None);
    Ok(None)
}

/// The crates whose own tests, tables and random histories, need no server.
const TESTED: [&str; 4] = ["errand-core", "errand-runner", "errand-session-pool", "errand-timeout-watcher"];

/// Of these, the ones whose tests fail with a fault.
fn tested(name: &str) -> anyhow::Result<Vec<&'static str>> {
    let mut tests = Command::new("cargo");
    tests.args(["test", "--quiet", "--locked", "--lib", "--no-fail-fast", "--features", "errand-core/mutations"]);
    tests.args(TESTED.iter().flat_map(|package| ["-p", package]));
    let output = tests.env("ERRAND_MUTATION", name).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    let failed: Vec<_> = TESTED.into_iter().filter(|package| said.contains(&format!("-p {package} --lib"))).collect();
    anyhow::ensure!(output.status.success() || !failed.is_empty(), "the tests do not run: {said}");
    Ok(failed)
}

fn words(what: &str) -> String {
    // Ids differ from seed to seed, and nobody needs them here.
    let known = |word: &str| word.len() > 28 && word.contains('_');
    let short: Vec<String> =
        what.split(' ').map(|word| if known(word) { "…".into() } else { word.to_owned() }).collect();
    let text = short.join(" ").replace('|', "/");
    let end = text.floor_char_boundary(110);
    text[..end].to_owned()
}

/// Tries every fault, and writes the table into `file` between its two markers.
///
/// # Errors
/// Where a fault is found by nothing, or the file cannot be written.
pub fn table(file: &Path, only: Option<&str>, threads: u64) -> anyhow::Result<()> {
    // A debug assertion of the code that finds a fault first is as good, and need not be read.
    std::panic::set_hook(Box::new(|_| {}));
    let chosen: Vec<_> = Mutation::ALL.iter().filter(|(_, name, _)| only.is_none_or(|only| only == *name)).collect();
    let next = AtomicU64::new(0);
    let rows = std::sync::Mutex::new(std::collections::BTreeMap::new());
    let work = || -> anyhow::Result<()> {
        loop {
            let at = usize::try_from(next.fetch_add(1, Ordering::Relaxed))?;
            let Some((mutation, name, _)) = chosen.get(at) else { return Ok(()) };
            let found = simulated(*mutation)?;
            let told =
                found.as_ref().map_or("not found".into(), |found| format!("{} seeds: {}", found.seeds, found.what));
            eprintln!("{name}: {told}");
            rows.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(at, found);
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().unwrap_or_else(|_| anyhow::bail!("it panicked")))
    })?;
    let rows = rows.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut text = String::from(
        "| fault | what it does | seeds | what the simulator says | whose tests fail |\n| --- | --- | --- | --- | --- |\n",
    );
    let mut survivors = Vec::new();
    for (at, (_, name, does)) in chosen.iter().enumerate() {
        let tests = tested(name)?;
        let found = rows.get(&at).and_then(Option::as_ref);
        let (seeds, what) =
            found.map_or(("-".into(), "-".into()), |found| (found.seeds.to_string(), words(&found.what)));
        let whose = if tests.is_empty() { "-".to_owned() } else { tests.join(", ").replace("errand-", "") };
        writeln!(text, "| `{name}` | {} | {seeds} | {what} | {whose} |", does.trim())?;
        if found.is_none() && tests.is_empty() {
            survivors.push(*name);
        }
    }
    write_between(file, &text)?;
    anyhow::ensure!(survivors.is_empty(), "nothing finds {survivors:?}");
    Ok(())
}

const BEGIN: &str = "<!-- the table: made by `make mutations` -->\n";
const END: &str = "<!-- the end of the table -->\n";

fn write_between(file: &Path, table: &str) -> anyhow::Result<()> {
    let old = std::fs::read_to_string(file)?;
    let (before, rest) = old.split_once(BEGIN).ok_or_else(|| anyhow::anyhow!("the file has no place for the table"))?;
    let (_, after) = rest.split_once(END).ok_or_else(|| anyhow::anyhow!("the table has no end"))?;
    std::fs::write(file, format!("{before}{BEGIN}\n{table}\n{END}{after}"))?;
    Ok(())
}
