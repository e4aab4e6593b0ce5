//! One file a command.

pub(crate) mod agents;
pub(crate) mod bench;
pub(crate) mod completions;
pub(crate) mod credentials;
pub(crate) mod deliveries;
pub(crate) mod demo;
pub(crate) mod destinations;
pub(crate) mod dev;
pub(crate) mod dev_key;
pub(crate) mod doctor;
pub(crate) mod events;
pub(crate) mod follow;
pub(crate) mod health;
pub(crate) mod interact;
pub(crate) mod keys;
pub(crate) mod nats_config;
pub(crate) mod review;
pub(crate) mod run;
pub(crate) mod runners;
pub(crate) mod runs;
pub(crate) mod sessions;
pub(crate) mod show;
pub(crate) mod sources;
pub(crate) mod storage;
pub(crate) mod task;
pub(crate) mod vault;

use std::io::Read;

use serde_json::Value;

use crate::failure::Usage;

/// The JSON of an argument: as it stands, or out of a file (`@FILE`, `@-` for stdin).
fn json_argument(name: &str, text: &str) -> anyhow::Result<Value> {
    let cannot_read = |error| Usage(format!("{name} {text}: {error}"));
    let json = match text.strip_prefix('@') {
        Some("-") => {
            let mut json = String::new();
            std::io::stdin().read_to_string(&mut json).map_err(cannot_read)?;
            json
        }
        Some(file) => std::fs::read_to_string(file).map_err(cannot_read)?,
        None => text.to_owned(),
    };
    Ok(serde_json::from_str(&json).map_err(|error| Usage(format!("{name} is not JSON: {error}")))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_stands_there_or_in_a_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "{\"a\": 1}\n").unwrap();
        let from_file = json_argument("--input", &format!("@{}", file.path().display())).unwrap();
        assert_eq!(from_file, json_argument("--input", "{\"a\":1}").unwrap());
        for wrong in ["{a:1}", "@/does/not/exist"] {
            assert!(json_argument("--input", wrong).unwrap_err().is::<Usage>(), "{wrong}");
        }
    }
}
