//! What was measured before, to compare with.

use std::path::Path;

use anyhow::Context;
use serde_json::{Value, json};

/// What two measurements must have in common to be compared.
const LOAD: [&str; 7] =
    ["/durability/store", "/concurrency", "/batch", "/tenants", "/sessions", "/stored", "/dispatchers"];
/// What they had better have in common.
const MACHINE: [&str; 2] = ["/build", "/cores"];
/// The parts of a measurement, and of each the figures that are compared.
pub(super) const PARTS: [&str; 3] = ["unloaded", "loaded", "half_rate"];
const FIGURES: [&str; 3] = ["runs_per_second", "p50_ms", "p99_ms"];

/// Kept measurements: what `errand bench --json` has printed, a line for each load.
#[derive(Debug)]
pub(super) struct Baseline(Vec<Value>);

impl Baseline {
    /// Reads a file of them.
    pub(super) fn read(file: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(file).with_context(|| format!("--baseline {}", file.display()))?;
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let kept = lines.map(|(number, line)| {
            serde_json::from_str(line).with_context(|| format!("--baseline {}, line {}", file.display(), number + 1))
        });
        Ok(Self(kept.collect::<anyhow::Result<_>>()?))
    }

    /// How a measurement compares: of each part's figures the ratio to the kept one, `null` where none of that load was
    /// kept; and what of the machine was another.
    pub(super) fn compare(&self, report: &Value) -> Value {
        let alike = |kept: &&Value| LOAD.iter().all(|what| kept.pointer(what) == report.pointer(what));
        let Some(kept) = self.0.iter().rfind(alike) else { return Value::Null };
        let mut ratios = json!({});
        for (part, figure) in PARTS.iter().flat_map(|part| FIGURES.map(|figure| (*part, figure))) {
            let of = |report: &Value| report[part][figure].as_f64().filter(|figure| *figure > 0.0);
            if let (Some(now), Some(then)) = (of(report), of(kept)) {
                ratios[part][figure] = json!((now / then * 1000.0).round() / 1000.0);
            }
        }
        let others = MACHINE.iter().filter(|what| kept.pointer(what) != report.pointer(what));
        ratios["other"] = others.map(|what| &what[1..]).collect();
        ratios
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(store: &str, cores: u32, rate: f64) -> Value {
        json!({
            "durability": {"store": store}, "concurrency": 256, "batch": 1, "tenants": 1, "sessions": 256,
            "build": "release", "cores": cores, "half_rate": null,
            "loaded": {"runs_per_second": rate, "p50_ms": 20.0, "p99_ms": 0.0},
        })
    }

    #[test]
    fn only_the_same_load_is_compared_and_the_last_kept_counts() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("baseline");
        let kept = [report("sqlite", 2, 1.0), report("postgres", 2, 500.0), report("sqlite", 2, 1000.0)];
        std::fs::write(&file, kept.map(|report| format!("{report}\n")).concat()).unwrap();
        let baseline = Baseline::read(&file).unwrap();
        let alike = json!({"loaded": {"runs_per_second": 1.25, "p50_ms": 1.0}, "other": []});
        assert_eq!(baseline.compare(&report("sqlite", 2, 1250.0)), alike);
        assert_eq!(baseline.compare(&report("postgres", 8, 1000.0))["other"], json!(["cores"]));
        assert_eq!(baseline.compare(&report("mysql", 2, 1000.0)), Value::Null);
        std::fs::write(&file, "{}\nfast\n").unwrap();
        assert!(format!("{:#}", Baseline::read(&file).unwrap_err()).contains("line 2"));
    }
}
