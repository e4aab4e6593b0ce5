//! The process that reads a file: stdin in, JSON or the reason why not out.

use std::io::{Read, Write};
use std::process::ExitCode;

use errand_core::limits::{MAX_JSON_DEPTH, MAX_VALUE_BYTES};
use errand_core::task::depth_exceeds;
use nix::sys::resource::{Resource, setrlimit};
use serde_json::Value;

use super::{Format, MAX_BYTES, pdf, tables, too_large};

/// What the process may take: memory in bytes, processor time in seconds.
const MEMORY: u64 = 768 * 1024 * 1024;
const SECONDS: u64 = 10;

/// The main function of a process that was started with [`super::EXTRACT`] and a format.
#[must_use]
pub fn extract_main(format: Option<String>) -> ExitCode {
    // Before the first byte is read. It opens no file, and leaves none when it dies.
    let limits = [
        (Resource::RLIMIT_AS, MEMORY),
        (Resource::RLIMIT_CPU, SECONDS),
        (Resource::RLIMIT_CORE, 0),
        (Resource::RLIMIT_FSIZE, 0),
        (Resource::RLIMIT_NPROC, 0),
    ];
    for (resource, limit) in limits {
        // A system without one of them has the others; the parent's patience ends in any case.
        let _ = setrlimit(resource, limit, limit);
    }
    let Some(format) = format.as_deref().and_then(Format::parse) else { return ExitCode::FAILURE };
    let mut file = Vec::new();
    if std::io::stdin().lock().take(MAX_BYTES + 1).read_to_end(&mut file).is_err() {
        return ExitCode::FAILURE;
    }
    let answer = match extract(format, &file) {
        Ok(json) => [b"+", json.as_slice()].concat(),
        Err(words) => [b"-", words.as_bytes()].concat(),
    };
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(&answer).and_then(|()| stdout.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// A file's data as JSON, or why there is none: words that quote nothing of the file.
pub(super) fn extract(format: Format, file: &[u8]) -> Result<Vec<u8>, String> {
    let value = match format {
        Format::Csv => tables::csv(file)?,
        Format::Json => json(file)?,
        Format::Xlsx => tables::xlsx(file)?,
        Format::Pdf => pdf::read(file)?,
    };
    if depth_exceeds(&value, MAX_JSON_DEPTH) {
        return Err(format!("it is nested deeper than {MAX_JSON_DEPTH}"));
    }
    let json = serde_json::to_vec(&value).map_err(|_| "it makes no JSON".to_owned())?;
    if json.len() > MAX_VALUE_BYTES { Err(too_large()) } else { Ok(json) }
}

/// serde_json refuses what is nested deeper than 128 by itself.
fn json(file: &[u8]) -> Result<Value, String> {
    let file = file.strip_prefix(b"\xef\xbb\xbf").unwrap_or(file);
    serde_json::from_slice(file)
        .map_err(|error| format!("it is not JSON (line {}, column {})", error.line(), error.column()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn value(format: Format, file: &[u8]) -> Value {
        serde_json::from_slice(&extract(format, file).unwrap()).unwrap()
    }

    #[test]
    fn json_is_what_it_is() {
        assert_eq!(value(Format::Json, b"\xef\xbb\xbf{\"a\": [1, 2.50]}"), json!({"a": [1, 2.5]}));
        assert_eq!(extract(Format::Json, b"{\"secret\"").unwrap_err(), "it is not JSON (line 1, column 9)");
        for depth in [100, 100_000] {
            let deep = "[".repeat(depth) + &"]".repeat(depth);
            assert!(extract(Format::Json, deep.as_bytes()).is_err(), "{depth}");
        }
        let large = format!("[\"{}\"]", "x".repeat(MAX_VALUE_BYTES));
        assert!(extract(Format::Json, large.as_bytes()).unwrap_err().contains("more than"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        /// Whatever comes in, an answer comes out; what panics here would only cost the process, but let us know.
        #[test]
        fn no_noise_breaks_the_text_formats(file in prop::collection::vec(any::<u8>(), 0..2000)) {
            for format in [Format::Csv, Format::Json] {
                let _ = extract(format, &file);
            }
        }

        #[test]
        fn csv_of_any_shape_is_bounded(rows in prop::collection::vec("[a-c,;\"\n ]{0,30}", 0..50)) {
            let _ = extract(Format::Csv, rows.join("\n").as_bytes());
        }
    }
}
