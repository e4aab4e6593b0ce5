//! File names that are safe to show, to send in a header, and to save under on any system. Pure.

use errand_core::limits::MAX_FILE_NAME_BYTES;

/// An extension that is worth keeping when a name is cut.
const MAX_EXTENSION_BYTES: usize = 20;
/// What Windows takes for devices, whatever the extension.
const RESERVED: [&str; 4] = ["con", "prn", "aux", "nul"];

/// Makes a name safe: its last path part, without control and direction characters, nothing that a file system forbids
/// or reserves, no leading dot, at most [`MAX_FILE_NAME_BYTES`].
#[must_use]
pub fn safe(raw: &str) -> String {
    let last = raw.rsplit(['/', '\\']).find(|part| !part.trim_matches(is_edge).is_empty()).unwrap_or_default();
    let cleaned: String =
        last.chars().filter(|c| !is_invisible(*c)).map(|c| if is_forbidden(c) { '_' } else { c }).collect();
    let mut name = cut(cleaned.trim_matches(is_edge), MAX_FILE_NAME_BYTES);
    if name.is_empty() {
        name.push_str("file");
    }
    if is_reserved(&name) {
        name.insert(0, '_');
    }
    name
}

/// The name, or where it is taken the first of `name (2).ext`, `name (3).ext` ... that is not.
#[must_use]
pub fn free(name: &str, is_taken: impl Fn(&str) -> bool) -> String {
    if !is_taken(name) {
        return name.to_owned();
    }
    let (stem, extension) = split(name);
    let numbered = |number: u64| {
        let tail = format!(" ({number}){extension}");
        let stem = &stem[..stem.floor_char_boundary(MAX_FILE_NAME_BYTES.saturating_sub(tail.len()))];
        format!("{stem}{tail}")
    };
    (2..).map(numbered).find(|candidate| !is_taken(candidate)).unwrap_or_default()
}

/// What two names are compared by: many file systems do not tell upper from lower case.
#[must_use]
pub fn key(name: &str) -> String {
    name.to_lowercase()
}

/// Stem, and the extension with its dot.
fn split(name: &str) -> (&str, &str) {
    match name.rfind('.') {
        Some(at) if at > 0 && name.len() - at <= MAX_EXTENSION_BYTES => name.split_at(at),
        _ => (name, ""),
    }
}

fn cut(name: &str, limit: usize) -> String {
    if name.len() <= limit {
        return name.to_owned();
    }
    let (stem, extension) = split(name);
    let stem = &stem[..stem.floor_char_boundary(limit - extension.len())];
    format!("{}{extension}", stem.trim_end_matches(is_edge))
}

/// Dots and white space, which vanish or hide at a name's ends.
fn is_edge(c: char) -> bool {
    c == '.' || c.is_whitespace() || is_invisible(c)
}

/// Control characters, and those that turn the text around them or have no width.
fn is_invisible(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

fn is_forbidden(c: char) -> bool {
    matches!(c, '<' | '>' | ':' | '"' | '|' | '?' | '*')
}

fn is_reserved(name: &str) -> bool {
    let stem = name.split('.').next().unwrap_or_default().trim_end().to_lowercase();
    let numbered = |prefix: &str| {
        let rest = stem.strip_prefix(prefix).map(|rest| rest.chars().collect::<Vec<_>>());
        rest.is_some_and(|rest| matches!(rest[..], ['1'..='9' | '¹' | '²' | '³']))
    };
    RESERVED.contains(&stem.as_str()) || numbered("com") || numbered("lpt")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_made_safe() {
        for (raw, expected) in [
            ("june.pdf", "june.pdf"),
            ("Bill for June.pdf", "Bill for June.pdf"),
            ("../../etc/passwd", "passwd"),
            (r"C:\Users\ada\june.pdf", "june.pdf"),
            ("/", "file"),
            ("..", "file"),
            ("", "file"),
            ("bills/", "bills"),
            (".bashrc", "bashrc"),
            ("a\r\nSet-Cookie: x.pdf", "aSet-Cookie_ x.pdf"),
            ("gnp.\u{202e}fdp", "gnp.fdp"),
            ("con", "_con"),
            ("NUL.txt", "_NUL.txt"),
            ("com1.pdf", "_com1.pdf"),
            ("com10.pdf", "com10.pdf"),
            ("what?.csv", "what_.csv"),
            ("trailing. . ", "trailing"),
            ("Übersicht März.xlsx", "Übersicht März.xlsx"),
        ] {
            assert_eq!(safe(raw), expected, "{raw:?}");
        }
    }

    #[test]
    fn a_name_that_is_taken_gets_a_number() {
        let taken = ["a.pdf", "a (2).pdf", "b"];
        let free = |name: &str| free(name, |name| taken.contains(&name));
        assert_eq!((free("a.pdf"), free("b"), free("c")), ("a (3).pdf".into(), "b (2)".into(), "c".into()));
        let long = format!("{}.pdf", "x".repeat(196));
        let numbered = super::free(&long, |name| name == long);
        assert!(numbered.len() == MAX_FILE_NAME_BYTES && numbered.ends_with("x (2).pdf"), "{numbered}");
    }

    #[test]
    fn a_long_name_keeps_its_extension() {
        let name = safe(&format!("{}.pdf", "é".repeat(300)));
        assert!(name.len() <= MAX_FILE_NAME_BYTES && name.ends_with("é.pdf"), "{name}");
    }

    proptest! {
        #[test]
        fn whatever_comes_in_what_comes_out_is_safe(raw in any::<String>()) {
            let name = safe(&raw);
            prop_assert!(!name.is_empty() && name.len() <= MAX_FILE_NAME_BYTES + 1);
            prop_assert!(!name.chars().any(|c| is_invisible(c) || is_forbidden(c) || c == '/' || c == '\\'));
            prop_assert!(!name.starts_with('.') && !name.ends_with(['.', ' ']));
            prop_assert!(!is_reserved(&name));
            prop_assert_eq!(safe(&name).len(), name.len().min(MAX_FILE_NAME_BYTES), "safe names stay: {}", name);
        }
    }
}
