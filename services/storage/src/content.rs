//! What a file is: by its content, and where that says nothing by its extension.

/// How much of a file's beginning is looked at: the Office formats tell themselves some entries into their archive.
pub const HEAD_BYTES: usize = 64 * 1024;

/// Types that are told by the extension, since their content is any text.
const TEXTS: [(&str, &str); 11] = [
    ("csv", "text/csv"),
    ("tsv", "text/tab-separated-values"),
    ("json", "application/json"),
    ("txt", "text/plain"),
    ("log", "text/plain"),
    ("md", "text/markdown"),
    ("html", "text/html"),
    ("htm", "text/html"),
    ("xml", "application/xml"),
    ("svg", "image/svg+xml"),
    ("ics", "text/calendar"),
];

/// What every package of the Office formats has, and no other archive.
const PACKAGE: [&[u8]; 3] = [b"[Content_Types].xml", b"_rels/.rels", b"docProps/"];
const OFFICE: [(&[u8], &str); 3] = [
    (b"xl/", "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"),
    (b"word/", "application/vnd.openxmlformats-officedocument.wordprocessingml.document"),
    (b"ppt/", "application/vnd.openxmlformats-officedocument.presentationml.presentation"),
];

/// The MIME type of a file that begins so and has this name. What the content says counts more than the name.
#[must_use]
pub fn mime_type(head: &[u8], is_whole: bool, name: &str) -> &'static str {
    let by_content = office(head).or_else(|| infer::get(head).map(|found| found.mime_type()));
    if let Some(mime) = by_content.filter(|mime| !matches!(*mime, "text/html" | "text/xml" | "application/xml")) {
        return mime;
    }
    if !is_text(head, is_whole) {
        return "application/octet-stream";
    }
    let extension = name.rsplit_once('.').map(|(_, extension)| extension.to_ascii_lowercase()).unwrap_or_default();
    let by_name = TEXTS.iter().find(|(known, _)| *known == extension).map(|(_, mime)| *mime);
    by_name.or(by_content).unwrap_or("text/plain")
}

/// The Office formats by the entries of their archive. Programs write these in orders that `infer` does not know.
fn office(head: &[u8]) -> Option<&'static str> {
    let mut is_package = false;
    let mut found = None;
    for at in head.windows(4).enumerate().filter(|(_, four)| *four == b"PK\x03\x04").map(|(at, _)| at) {
        let Some(name) = head.get(at + 30..) else { break };
        is_package |= PACKAGE.iter().any(|part| name.starts_with(part));
        found = found.or_else(|| OFFICE.iter().find(|(folder, _)| name.starts_with(folder)).map(|(_, mime)| *mime));
    }
    found.filter(|_| is_package && head.starts_with(b"PK\x03\x04"))
}

/// UTF-8 without the control characters that no text has.
fn is_text(head: &[u8], is_whole: bool) -> bool {
    let text = match std::str::from_utf8(head) {
        Ok(text) => text,
        // The end of the head may have cut a character.
        Err(error) if !is_whole && error.error_len().is_none() => {
            std::str::from_utf8(&head[..error.valid_up_to()]).unwrap_or_default()
        }
        Err(_) => return false,
    };
    !text.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t' | '\u{c}'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_says_more_than_the_name() {
        for (head, name, expected) in [
            (&b"%PDF-1.7\n"[..], "bill.txt", "application/pdf"),
            (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "a", "image/png"),
            (b"PK\x03\x04\x14\0\0\0\x08\0", "a.zip", "application/zip"),
            (b"number,amount\n", "bills.csv", "text/csv"),
            (b"number,amount\n", "bills.CSV", "text/csv"),
            (b"{\"a\":1}", "a.json", "application/json"),
            (b"hello", "a", "text/plain"),
            (b"hello", "a.exe", "text/plain"),
            (b"", "empty", "text/plain"),
            (b"\0\x01\x02", "a.csv", "application/octet-stream"),
            (b"\xff\xfe", "a.json", "application/octet-stream"),
            (b"<html><body>", "page", "text/html"),
            (b"<!DOCTYPE html>", "page.html", "text/html"),
        ] {
            assert_eq!(mime_type(head, true, name), expected, "{name}");
        }
    }

    #[test]
    fn office_files_are_told_whatever_the_order_of_their_parts() {
        let part = |name: &str| [&b"PK\x03\x04"[..], &[0; 26], name.as_bytes(), &[7; 9000]].concat();
        for (parts, expected) in [
            (&["docProps/app.xml", "docProps/core.xml", "_rels/.rels", "xl/workbook.xml"][..], OFFICE[0].1),
            (&["xl/workbook.xml", "[Content_Types].xml"], OFFICE[0].1),
            (&["[Content_Types].xml", "word/document.xml"], OFFICE[1].1),
        ] {
            let head: Vec<u8> = parts.iter().flat_map(|name| part(name)).collect();
            assert_eq!(mime_type(&head, true, "a"), expected, "{parts:?}");
        }
        for archive in [&["xl/mine.txt", "other.txt"][..], &["[Content_Types].xml"]] {
            assert_eq!(office(&archive.iter().flat_map(|name| part(name)).collect::<Vec<u8>>()), None, "{archive:?}");
        }
        assert_eq!(mime_type(include_bytes!("../tests/files/bills.xlsx"), true, "a"), OFFICE[0].1);
    }

    #[test]
    fn a_character_cut_by_the_head_is_no_binary() {
        let cut = &"märz".as_bytes()[..2];
        assert_eq!(mime_type(cut, false, "a.csv"), "text/csv");
        assert_eq!(mime_type(cut, true, "a.csv"), "application/octet-stream");
    }
}
