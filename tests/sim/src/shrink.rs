//! A smaller simulation that fails as well: fewer runs, fewer faults, no bad luck.

use std::fmt;

use crate::{Options, Outcome, simulate};

/// A simulation in which something does not hold.
#[derive(Debug)]
pub struct Failure {
    /// The smallest that was found.
    pub options: Options,
    /// What came of it.
    pub outcome: Outcome,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Options { seed, runs, faults, lucky, .. } = self.options;
        for line in &self.outcome.trace {
            writeln!(f, "{line}")?;
        }
        writeln!(f, "{}", self.outcome.broken.as_deref().unwrap_or("nothing"))?;
        write!(f, "seed {seed}; replay with `make sim SEED={seed}`")?;
        let mut more = Vec::new();
        more.extend(runs.map(|runs| format!("--runs {runs}")));
        more.extend(faults.map(|faults| format!("--faults {faults}")));
        more.extend(lucky.then(|| "--lucky".to_owned()));
        if more.is_empty() { Ok(()) } else { write!(f, " ARGS=\"{}\"", more.join(" ")) }
    }
}

/// Makes a failing simulation smaller while it fails.
///
/// # Errors
/// Where SQLite cannot be opened.
pub fn shrink(options: Options, outcome: Outcome) -> anyhow::Result<Failure> {
    let mut best = Failure { options, outcome };
    let lucky = Options { lucky: true, ..best.options };
    try_smaller(&mut best, lucky)?;
    for field in
        [|options: &mut Options, n| options.faults = Some(n), |options: &mut Options, n| options.runs = Some(n)]
    {
        for count in [0usize, 1, 2, 3, 4, 6, 8, 12, 16, 24] {
            let mut smaller = best.options;
            field(&mut smaller, count);
            if try_smaller(&mut best, smaller)? {
                break;
            }
        }
    }
    Ok(best)
}

fn try_smaller(best: &mut Failure, options: Options) -> anyhow::Result<bool> {
    let outcome = simulate(options)?;
    let fails = outcome.broken.is_some();
    if fails {
        *best = Failure { options, outcome };
    }
    Ok(fails)
}
