//! How results are shown: tables and lines for people, one JSON object a line for programs.

use std::io::{IsTerminal, Write};

use comfy_table::{Attribute, Cell, ContentArrangement, Table, presets};
use serde_json::Value;

use crate::failure::OutputClosed;

/// Where results go. Stdout holds results only; what is said beside them goes to stderr.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    pub(crate) json: bool,
    /// Whether people look at stdout.
    pub(crate) terminal: bool,
}

impl Output {
    pub(crate) fn new(json: bool) -> Self {
        Self { json, terminal: std::io::stdout().is_terminal() }
    }

    /// A line, or several.
    pub(crate) fn line(self, text: impl AsRef<str>) -> anyhow::Result<()> {
        let mut stdout = std::io::stdout().lock();
        let written = writeln!(stdout, "{}", text.as_ref()).and_then(|()| stdout.flush());
        match written {
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Err(OutputClosed.into()),
            other => Ok(other?),
        }
    }

    /// One object: a line of JSON, or what `human` makes of it.
    pub(crate) fn item(self, value: &Value, human: impl FnOnce(&Value) -> String) -> anyhow::Result<()> {
        self.line(if self.json { value.to_string() } else { human(value) })
    }

    /// Many objects: a line of JSON each, or a table of these columns, `(header, path)`.
    pub(crate) fn list(self, values: &[Value], columns: &[(&str, &str)]) -> anyhow::Result<()> {
        if self.json {
            return values.iter().try_for_each(|value| self.line(value.to_string()));
        }
        if values.is_empty() {
            return self.line("none");
        }
        let mut rows = table(columns.iter().map(|(header, _)| *header));
        for value in values {
            rows.add_row(columns.iter().map(|(_, path)| cell(value, path)));
        }
        self.line(rows.trim_fmt())
    }
}

/// An empty table in the one style that we have.
pub(crate) fn table<'a>(headers: impl IntoIterator<Item = &'a str>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(headers.into_iter().map(|header| Cell::new(header).add_attribute(Attribute::Bold)));
    table.column_iter_mut().for_each(|column| {
        column.set_padding((0, 2));
    });
    table
}

/// What stands at a dotted path, in one line; `-` where nothing does.
pub(crate) fn cell(value: &Value, path: &str) -> String {
    let found = path.split('.').try_fold(value, |value, key| match value {
        Value::Array(items) => key.parse::<usize>().ok().and_then(|at| items.get(at)),
        other => other.get(key),
    });
    found.map_or_else(|| "-".into(), one_line)
}

fn one_line(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) if text.is_empty() => "-".into(),
        Value::String(text) => text.replace(char::is_control, " "),
        Value::Object(map) if map.is_empty() => "-".into(),
        Value::Object(map) => {
            map.iter().map(|(key, value)| format!("{key}={}", one_line(value))).collect::<Vec<_>>().join(" ")
        }
        other => other.to_string(),
    }
}

/// The time of day of an RFC 3339 time, for lines that follow each other.
pub(crate) fn time_of_day(value: &Value) -> &str {
    value.as_str().and_then(|text| text.get(11..23)).unwrap_or("-")
}

/// `{"a": ...}` with its keys below each other, for reading one object.
pub(crate) fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_else(|_| value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_cell_is_one_line_or_a_dash() {
        let value = json!({"a": {"b": [{"c": "x\ny"}]}, "n": null, "e": "", "i": 3, "m": {"k": "v", "l": "w"}});
        for (path, expected) in [("a.b.0.c", "x y"), ("n", "-"), ("e", "-"), ("i", "3"), ("a.x", "-"), ("m", "k=v l=w")]
        {
            assert_eq!(cell(&value, path), expected, "{path}");
        }
    }

    #[test]
    fn times_of_day() {
        assert_eq!(time_of_day(&json!("2026-05-01T12:13:14.567Z")), "12:13:14.567");
        assert_eq!(time_of_day(&json!(null)), "-");
    }
}
