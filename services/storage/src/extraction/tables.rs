//! CSV and XLSX: rows as objects, by the names in the header. A header that is empty or stands twice gets a number.

use std::collections::HashSet;
use std::io::Cursor;

use calamine::{Data, Reader, Xlsx};
use serde_json::{Map, Value, json};

/// Rows of a table, sheets of a book, columns of a row.
const MAX_ROWS: usize = 10_000;
const MAX_SHEETS: usize = 100;
const MAX_COLUMNS: usize = 1_000;

/// `{"rows": [{"Name": "text", ...}, ...]}`: all values are texts, as they stand.
pub(super) fn csv(file: &[u8]) -> Result<Value, String> {
    let file = file.strip_prefix(b"\xef\xbb\xbf").unwrap_or(file);
    let mut reader =
        csv::ReaderBuilder::new().has_headers(false).flexible(true).delimiter(delimiter(file)).from_reader(file);
    let mut table = Table::default();
    for record in reader.byte_records() {
        let record = record.map_err(|_| "it is not CSV".to_owned())?;
        let cells = record.iter().map(|cell| Value::String(String::from_utf8_lossy(cell).into_owned()));
        table.push(cells.collect())?;
    }
    Ok(json!({"rows": table.rows}))
}

/// The one that stands most often in the first line, outside quotes; `,` where none does.
fn delimiter(file: &[u8]) -> u8 {
    let mut quoted = false;
    let mut counts = [(b',', 0usize), (b';', 0), (b'\t', 0)];
    for byte in file.iter().take(64 * 1024) {
        match byte {
            b'"' => quoted = !quoted,
            b'\n' if !quoted => break,
            byte if !quoted => {
                if let Some((_, count)) = counts.iter_mut().find(|(delimiter, _)| delimiter == byte) {
                    *count += 1;
                }
            }
            _ => {}
        }
    }
    // The first of equals.
    counts.into_iter().rev().max_by_key(|(_, count)| *count).map_or(b',', |(delimiter, _)| delimiter)
}

/// `{"sheets": [{"name": "Sheet1", "rows": [{"Name": value, ...}, ...]}, ...]}`; numbers and truths stay such, dates are
/// RFC 3339 without a zone.
pub(super) fn xlsx(file: &[u8]) -> Result<Value, String> {
    let broken = |_| "it is not XLSX, or is broken".to_owned();
    let mut book: Xlsx<_> = calamine::open_workbook_from_rs(Cursor::new(file)).map_err(broken)?;
    let names = book.sheet_names();
    if names.len() > MAX_SHEETS {
        return Err(format!("it has more than {MAX_SHEETS} sheets"));
    }
    let mut sheets = Vec::new();
    for name in names {
        // The cells that are there, one after the other: a range would hold all that are between them, and a cell at
        // the far end is easily claimed.
        let mut reader = book.worksheet_cells_reader(&name).map_err(broken)?;
        let mut table = Table::default();
        let (mut row, mut at): (Vec<Value>, Option<u32>) = (Vec::new(), None);
        while let Some(cell) = reader.next_cell().map_err(broken)? {
            let (line, column) = cell.get_position();
            if at.is_some_and(|at| at != line) {
                table.push(std::mem::take(&mut row))?;
            }
            at = Some(line);
            let column = column as usize;
            if column >= MAX_COLUMNS {
                return Err(too_wide());
            }
            row.resize(column.max(row.len()), Value::Null);
            row.push(cell_value(&Data::from(cell.get_value().clone())));
        }
        table.push(row)?;
        sheets.push(json!({"name": name, "rows": table.rows}));
    }
    Ok(json!({"sheets": sheets}))
}

fn cell_value(cell: &Data) -> Value {
    match cell {
        Data::Empty => Value::Null,
        Data::String(text) | Data::DurationIso(text) | Data::DateTimeIso(text) => text.clone().into(),
        Data::Int(number) => (*number).into(),
        // Excel knows no other numbers: whole ones are shown as such.
        Data::Float(number) if number.fract() == 0.0 && number.abs() < 9e15 => (*number as i64).into(),
        Data::Float(number) => (*number).into(),
        Data::Bool(truth) => (*truth).into(),
        Data::DateTime(time) if time.is_duration() => time.as_f64().into(),
        Data::DateTime(time) => date(time.to_ymd_hms_milli()).into(),
        Data::Error(error) => error.to_string().into(),
    }
}

/// As RFC 3339 has it, without a zone: Excel knows none. What is a whole day is shown as one.
fn date((year, month, day, hour, minute, second, milli): (u16, u8, u8, u8, u8, u8, u16)) -> String {
    let day = format!("{year:04}-{month:02}-{day:02}");
    match (hour, minute, second, milli) {
        (0, 0, 0, 0) => day,
        (_, _, _, 0) => format!("{day}T{hour:02}:{minute:02}:{second:02}"),
        _ => format!("{day}T{hour:02}:{minute:02}:{second:02}.{milli:03}"),
    }
}

fn too_wide() -> String {
    format!("a row has more than {MAX_COLUMNS} columns")
}

/// A table in the making: its first row is the header.
#[derive(Default)]
struct Table {
    header: Option<Vec<String>>,
    rows: Vec<Value>,
}

impl Table {
    fn push(&mut self, row: Vec<Value>) -> Result<(), String> {
        if row.iter().all(is_blank) {
            return Ok(());
        }
        if row.len() > MAX_COLUMNS {
            return Err(too_wide());
        }
        let Some(header) = &self.header else {
            self.header = Some(named(&row));
            return Ok(());
        };
        if self.rows.len() == MAX_ROWS {
            return Err(format!("a table has more than {MAX_ROWS} rows"));
        }
        let mut cells = Map::new();
        for (at, value) in row.into_iter().enumerate() {
            let name = header.get(at).cloned().unwrap_or_else(|| format!("column_{}", at + 1));
            cells.insert(name, value);
        }
        self.rows.push(Value::Object(cells));
        Ok(())
    }
}

fn is_blank(value: &Value) -> bool {
    value.is_null() || value.as_str().is_some_and(|text| text.trim().is_empty())
}

fn named(row: &[Value]) -> Vec<String> {
    let mut taken = HashSet::new();
    let name = |(at, value): (usize, &Value)| {
        let text = value.as_str().map_or_else(|| value.to_string(), |text| text.trim().to_owned());
        let plain = if is_blank(value) { format!("column_{}", at + 1) } else { text };
        let numbered = std::iter::once(plain.clone()).chain((2..).map(|number| format!("{plain}_{number}")));
        let free = numbered.into_iter().find(|name| taken.insert(name.clone()));
        free.unwrap_or(plain)
    };
    row.iter().enumerate().map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_objects_by_their_header() {
        let rows = |text: &str| csv(text.as_bytes()).unwrap()["rows"].clone();
        assert_eq!(
            rows("\u{feff}number,amount\r\nBW-1,\"71,22\"\r\n\r\nBW-2,007\r\n"),
            json!([{"number": "BW-1", "amount": "71,22"}, {"number": "BW-2", "amount": "007"}])
        );
        assert_eq!(rows("a;b\n1;2,5\n"), json!([{"a": "1", "b": "2,5"}]));
        assert_eq!(rows("a\tb\n1\t2\n"), json!([{"a": "1", "b": "2"}]));
        assert_eq!(
            rows("a,a,\n1,2,3,4\n5\n"),
            json!([
                {"a": "1", "a_2": "2", "column_3": "3", "column_4": "4"}, {"a": "5"}
            ])
        );
        assert_eq!((rows(""), rows("only,a,header\n")), (json!([]), json!([])));
    }

    #[test]
    fn tables_are_bounded() {
        let long = "a\n".to_owned() + &"1\n".repeat(MAX_ROWS + 1);
        assert!(csv(long.as_bytes()).unwrap_err().contains("10000 rows"));
        let wide = "a,".repeat(MAX_COLUMNS + 1);
        assert!(csv(wide.as_bytes()).unwrap_err().contains("1000 columns"));
        assert!(xlsx(b"PK\x03\x04 nothing").is_err());
    }
}
