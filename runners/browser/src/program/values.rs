//! What becomes of texts: numbers, dates, and the places where values are put. Pure.

use serde_json::{Map, Number, Value};

use super::Separator;

/// Names in one place.
const MAX_KEYS: usize = 8;

/// Where a value is put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// A variable, not a part of the output.
    pub(crate) is_var: bool,
    keys: Vec<String>,
    /// It is a list, which is added to.
    pub(crate) appends: bool,
}

/// Reads `a.b`, `vars.a`, `list[]`.
pub(crate) fn place(text: &str) -> Result<Place, String> {
    let (path, appends) = text.strip_suffix("[]").map_or((text, false), |path| (path, true));
    let (path, is_var) = path.strip_prefix("vars.").map_or((path, false), |path| (path, true));
    let path = path.strip_prefix("output.").unwrap_or(path);
    let keys: Vec<String> = path.split('.').map(str::to_owned).collect();
    let good = |key: &String| {
        (1..=64).contains(&key.len()) && key.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'))
    };
    if keys.len() > MAX_KEYS || !keys.iter().all(good) {
        return Err(format!("a place must be 1..{MAX_KEYS} names joined by dots"));
    }
    Ok(Place { is_var, keys, appends })
}

impl Place {
    /// Puts a value there; what is in the way and no object, or no list, is an error.
    pub(crate) fn put(&self, root: &mut Value, value: Value) -> Result<(), String> {
        let mut at = root;
        for key in &self.keys {
            if at.is_null() {
                *at = Value::Object(Map::new());
            }
            let fields = at.as_object_mut().ok_or_else(|| format!("what {key} would be in is no object"))?;
            at = fields.entry(key.clone()).or_insert(Value::Null);
        }
        if !self.appends {
            *at = value;
            return Ok(());
        }
        if at.is_null() {
            *at = Value::Array(Vec::new());
        }
        let list = at.as_array_mut().ok_or("what would be added to is no list")?;
        match value {
            Value::Array(items) => list.extend(items),
            item => list.push(item),
        }
        Ok(())
    }

    /// How many items the list has that is added to.
    pub(crate) fn length(&self, root: &Value) -> usize {
        let found = self.keys.iter().try_fold(root, |at, key| at.get(key));
        found.and_then(Value::as_array).map_or(0, Vec::len)
    }
}

/// The number in a text, `1,234.50 EUR` say: whole where it is written so.
pub(crate) fn number(text: &str, decimal: Separator) -> Option<Number> {
    let point = match decimal {
        Separator::Point => '.',
        Separator::Comma => ',',
    };
    let start = text.find(|c: char| c.is_ascii_digit())?;
    let before = text[..start].trim_end().chars().next_back();
    let negative = matches!(before, Some('-' | '\u{2212}'));
    let mut digits = String::new();
    let mut fraction = false;
    let mut rest = text[start..].chars().peekable();
    while let Some(c) = rest.next() {
        let digit_follows = rest.peek().is_some_and(char::is_ascii_digit);
        match c {
            '0'..='9' => digits.push(c),
            _ if c == point && digit_follows && !fraction => {
                fraction = true;
                digits.push('.');
            }
            // What separates thousands.
            '.' | ',' | '\'' | '\u{2019}' | ' ' | '\u{a0}' | '\u{202f}' if digit_follows && !fraction => {}
            _ => break,
        }
    }
    if negative {
        digits.insert(0, '-');
    }
    match digits.parse::<i64>() {
        Ok(whole) if !fraction => Some(whole.into()),
        _ => digits.parse::<f64>().ok().and_then(Number::from_f64),
    }
}

const MONTHS: [&str; 12] = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
];

/// The date in a text, which may hold more; `None` where there is none.
pub(crate) fn date(text: &str, format: Option<&str>) -> Option<String> {
    let format = format.unwrap_or("YYYY-MM-DD");
    text.char_indices().find_map(|(at, _)| {
        // In the middle of a word or a number begins none.
        let before = text[..at].chars().next_back();
        if before.is_some_and(char::is_alphanumeric) {
            return None;
        }
        date_here(&text[at..], format)
    })
}

fn date_here(mut text: &str, mut format: &str) -> Option<String> {
    let (mut year, mut month, mut day) = (None, None, None);
    while let Some(first) = format.chars().next() {
        let token = TOKENS.iter().find(|token| format.starts_with(**token)).copied();
        let Some(token) = token else {
            text = text.strip_prefix(first)?;
            format = &format[first.len_utf8()..];
            continue;
        };
        format = &format[token.len()..];
        match token {
            "YYYY" => year = Some(digits(&mut text, 4, 4)?),
            "MM" => month = Some(digits(&mut text, 2, 2)?),
            "M" => month = Some(digits(&mut text, 1, 2)?),
            "DD" => day = Some(digits(&mut text, 2, 2)?),
            "D" => day = Some(digits(&mut text, 1, 2)?),
            _ => month = Some(month_name(&mut text, token == "MMM")?),
        }
    }
    if text.chars().next().is_some_and(|c| c.is_ascii_digit()) {
        return None;
    }
    let (year, month) = (year?, month?);
    if !(1..=12).contains(&month) {
        return None;
    }
    match day {
        None => Some(format!("{year:04}-{month:02}")),
        Some(day) if (1..=days(year, month)).contains(&day) => Some(format!("{year:04}-{month:02}-{day:02}")),
        Some(_) => None,
    }
}

/// Longer ones first.
const TOKENS: [&str; 7] = ["YYYY", "MMMM", "MMM", "MM", "M", "DD", "D"];

fn digits(text: &mut &str, least: usize, most: usize) -> Option<u32> {
    let count = text.chars().take(most).take_while(char::is_ascii_digit).count();
    if count < least {
        return None;
    }
    let (found, rest) = text.split_at(count);
    *text = rest;
    found.parse().ok()
}

/// An English month, in any case.
fn month_name(text: &mut &str, short: bool) -> Option<u32> {
    (1..).zip(MONTHS).find_map(|(number, name)| {
        let name = if short { &name[..3] } else { name };
        let found = text.get(..name.len()).filter(|found| found.eq_ignore_ascii_case(name))?;
        *text = &text[found.len()..];
        Some(number)
    })
}

const fn days(year: u32, month: u32) -> u32 {
    match month {
        2 if year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400)) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn numbers_are_found_in_texts() {
        let point = |text| number(text, Separator::Point).map(Value::from);
        let comma = |text| number(text, Separator::Comma).map(Value::from);
        for (found, expected) in [
            (point("71.22 EUR"), json!(71.22)),
            (point("€\u{a0}1,234.50 due"), json!(1234.5)),
            (point("14 bills"), json!(14)),
            (point("-3"), json!(-3)),
            (point("− 3.0"), json!(-3.0)),
            (comma("1.234,50 €"), json!(1234.5)),
            (comma("12"), json!(12)),
            (point("7. June"), json!(7)),
            (point("9".repeat(30).as_str()), json!(1e30)),
        ] {
            assert_eq!(found, Some(expected));
        }
        assert_eq!(number("none", Separator::Point), None);
    }

    #[test]
    fn dates_are_found_in_texts() {
        for (text, format, expected) in [
            ("Sent 2026-07-03, pay by 2026-07-24", None, Some("2026-07-03")),
            ("Statement for June 2026", Some("MMMM YYYY"), Some("2026-06")),
            ("am 3.7.2026", Some("D.M.YYYY"), Some("2026-07-03")),
            ("Jul 3, 2026", Some("MMM D, YYYY"), Some("2026-07-03")),
            ("03/07/2026", Some("DD/MM/YYYY"), Some("2026-07-03")),
            ("2026-02-29", None, None),
            ("2024-02-29", None, Some("2024-02-29")),
            ("2026-13-01", None, None),
            ("BW-2026-07-031", None, None),
            ("é", None, None),
        ] {
            assert_eq!(date(text, format).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn values_go_to_their_places() {
        let mut root = Value::Null;
        for (text, value) in
            [("a.b", json!(1)), ("a.c[]", json!([1, 2])), ("output.a.c[]", json!(3)), ("d", json!("x"))]
        {
            place(text).unwrap().put(&mut root, value).unwrap();
        }
        assert_eq!(root, json!({"a": {"b": 1, "c": [1, 2, 3]}, "d": "x"}));
        assert_eq!(place("a.c[]").unwrap().length(&root), 3);
        assert!(place("d.e").unwrap().put(&mut root, json!(1)).unwrap_err().contains("no object"));
        assert!(place("d[]").unwrap().put(&mut root, json!(1)).unwrap_err().contains("no list"));
        assert!(place("vars.x").unwrap().is_var);
        for wrong in ["", "a..b", "a b", "[]", "a.", "a[].b", "é"] {
            assert!(place(wrong).is_err(), "{wrong}");
        }
    }
}
