//! PDFs that hold text: the text, and the lines of it that say `key: value`.

use lopdf::Document;
use serde_json::{Map, Value, json};

/// Pages that are read.
const MAX_PAGES: usize = 500;
/// Pairs that are kept.
const MAX_FIELDS: usize = 1_000;
/// The longest text before a colon that is taken for a key.
const MAX_KEY_CHARACTERS: usize = 80;

/// `{"text": "...", "fields": {"Amount": "71.22 EUR", ...}}`. A key that stands several times keeps its first value.
pub(super) fn read(file: &[u8]) -> Result<Value, String> {
    let document = Document::load_mem(file).map_err(|_| "it is not PDF, or is broken".to_owned())?;
    if document.is_encrypted() {
        return Err("it is encrypted".to_owned());
    }
    let pages: Vec<u32> = document.get_pages().into_keys().collect();
    if pages.len() > MAX_PAGES {
        return Err(format!("it has more than {MAX_PAGES} pages"));
    }
    let text = document.extract_text(&pages).map_err(|_| "its text cannot be read".to_owned())?;
    let text = text.trim();
    if text.is_empty() {
        return Err("it holds no text; pictures of text are not read".to_owned());
    }
    Ok(json!({"text": text, "fields": fields(text)}))
}

fn fields(text: &str) -> Map<String, Value> {
    let mut fields = Map::new();
    for line in text.lines() {
        let Some((key, value)) = line.split_once(':') else { continue };
        let (key, value) = (key.trim(), value.trim());
        // A colon within a word is a time, or an address.
        let is_pair = line.contains(": ") || line.trim_end().ends_with(':');
        let is_key = !key.is_empty() && key.chars().count() <= MAX_KEY_CHARACTERS;
        if is_pair && is_key && !value.is_empty() && fields.len() < MAX_FIELDS {
            fields.entry(key).or_insert_with(|| value.into());
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A page of text, as examples/portal writes its bills.
    fn pdf(lines: &[&str]) -> Vec<u8> {
        let text: String = lines.iter().map(|line| format!("({line}) Tj T*\n")).collect();
        let stream = format!("BT\n/F1 12 Tf\n18 TL\n72 770 Td\n{text}ET");
        let objects = [
            "<< /Type /Catalog /Pages 2 0 R >>".to_owned(),
            "<< /Type /Pages /Kids [3 0 R] /Count 1 >>".to_owned(),
            "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents 5 0 R /Resources << /Font << /F1 4 0 R >> >> >>".to_owned(),
            "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>".to_owned(),
            format!("<< /Length {} >>\nstream\n{stream}\nendstream", stream.len()),
        ];
        let (mut out, mut offsets) = ("%PDF-1.4\n".to_owned(), Vec::new());
        for (number, body) in objects.iter().enumerate() {
            offsets.push(out.len());
            out += &format!("{} 0 obj\n{body}\nendobj\n", number + 1);
        }
        let at = out.len();
        let table: String = offsets.iter().map(|offset| format!("{offset:010} 00000 n \n")).collect();
        out += &format!(
            "xref\n0 6\n0000000000 65535 f \n{table}trailer\n<< /Size 6 /Root 1 0 R >>\nstartxref\n{at}\n%%EOF\n"
        );
        out.into_bytes()
    }

    #[test]
    fn text_and_pairs_are_read() {
        let value =
            read(&pdf(&["Brightwater", "Amount: 71.22 EUR", "Due: 2026-06-30", "see https://x.example", "at 10:30"]))
                .unwrap();
        assert_eq!(value["fields"], json!({"Amount": "71.22 EUR", "Due": "2026-06-30"}));
        assert!(value["text"].as_str().unwrap().starts_with("Brightwater\n"), "{value}");
    }

    #[test]
    fn what_is_no_text_is_refused() {
        assert!(read(b"%PDF-1.4\nbroken").is_err());
        assert!(read(&pdf(&[])).unwrap_err().contains("no text"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_broken_one_is_an_error_or_less_text(at in 0usize..900, byte in any::<u8>(), cut in 0usize..1000) {
            let mut file = pdf(&["Amount: 71.22 EUR"]);
            if let Some(spoiled) = file.get_mut(at) {
                *spoiled = byte;
            }
            file.truncate(file.len().saturating_sub(cut));
            // A panic costs the process that reads it, no more: here it is only seen to end.
            let _ = std::panic::catch_unwind(|| read(&file));
        }
    }
}
