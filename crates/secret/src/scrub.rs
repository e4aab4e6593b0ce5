//! The last defence: a program that says a secret aloud is not repeated. Secrets are found as they are, in base64,
//! hex, URL encoding and JSON strings, also where line breaks stand in them.
//!
//! No defence against a program that wants to tell: it is handed the secret, and there are more ways to write it down
//! than anybody can look for.

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use zeroize::Zeroizing;

/// What stands where a secret stood.
pub const MARK: &str = "[secret]";
/// Shorter secrets are not looked for: they stand everywhere.
const LEAST: usize = 4;
/// What is held back at most while a secret may go on: more line breaks than that are not looked through.
const MOST_HELD: usize = 256 * 1024;

/// What is looked for.
#[derive(Clone, Default)]
pub struct Scrubber {
    forms: Vec<Zeroizing<Vec<u8>>>,
    longest: usize,
    /// Bytes that some form begins with.
    begins: Vec<bool>,
}

/// Shows how much is looked for.
impl std::fmt::Debug for Scrubber {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scrubber").field("forms", &self.forms.len()).finish_non_exhaustive()
    }
}

const fn is_break(byte: u8) -> bool {
    matches!(byte, b'\n' | b'\r')
}

impl Scrubber {
    /// Looks for nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self { begins: vec![false; 256], ..Self::default() }
    }

    /// Looks for this one as well. One of fewer than 4 bytes is passed over.
    pub fn add(&mut self, secret: &str) {
        if secret.len() < LEAST {
            return;
        }
        for form in forms(secret) {
            // As it is compared: without line breaks.
            let form = Zeroizing::new(form.bytes().filter(|byte| !is_break(*byte)).collect::<Vec<u8>>());
            if form.len() < LEAST || self.forms.contains(&form) {
                continue;
            }
            self.longest = self.longest.max(form.len());
            self.begins[usize::from(form[0])] = true;
            self.forms.push(form);
        }
        // The longest first: of two that begin alike all is taken.
        self.forms.sort_by_key(|form| std::cmp::Reverse(form.len()));
    }

    /// Whether nothing is looked for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.forms.is_empty()
    }

    /// A text without the secrets.
    #[must_use]
    pub fn clean(&self, text: &str) -> String {
        if self.is_empty() {
            return text.to_owned();
        }
        let mut stream = Stream::default();
        let mut cleaned = stream.feed(self, text.as_bytes());
        cleaned.extend(stream.finish(self));
        // Forms are whole texts and what stands between them is as it was.
        String::from_utf8_lossy(&cleaned).into_owned()
    }

    /// Whether a secret stands in these bytes.
    #[must_use]
    pub fn finds(&self, bytes: &[u8]) -> bool {
        (0..bytes.len()).any(|at| self.at(bytes, at).is_some())
    }

    /// Where the secret that begins here ends.
    fn at(&self, bytes: &[u8], begin: usize) -> Option<usize> {
        if !self.begins.get(usize::from(bytes[begin])).is_some_and(|begins| *begins) {
            return None;
        }
        self.forms.iter().find_map(|form| end_of(form, bytes, begin))
    }
}

/// Where a form that begins here ends, line breaks passed over.
fn end_of(form: &[u8], bytes: &[u8], begin: usize) -> Option<usize> {
    let mut wanted = form.iter().peekable();
    for (at, byte) in bytes.iter().enumerate().skip(begin) {
        if is_break(*byte) {
            continue;
        }
        if wanted.next()? != byte {
            return None;
        }
        if wanted.peek().is_none() {
            return Some(at + 1);
        }
    }
    None
}

/// The ways in which programs write a text down.
fn forms(secret: &str) -> Vec<Zeroizing<String>> {
    let mut forms: Vec<Zeroizing<String>> = vec![Zeroizing::new(secret.to_owned())];
    let bytes = secret.as_bytes();
    // In base64 a text looks in three ways, by what stands before it; its first and last characters mix with others.
    for skipped in 0..3usize {
        let padded = Zeroizing::new([&vec![0; skipped], bytes].concat());
        for engine in [&STANDARD_NO_PAD, &URL_SAFE_NO_PAD] {
            let encoded = Zeroizing::new(engine.encode(&*padded));
            let first = (skipped * 8).div_ceil(6);
            let last = padded.len() * 8 / 6;
            forms.push(Zeroizing::new(encoded.get(first..last).unwrap_or_default().to_owned()));
        }
    }
    let [mut lower, mut upper, mut url, mut url_lower, mut form] =
        std::array::from_fn(|_| Zeroizing::new(String::with_capacity(bytes.len() * 3)));
    for byte in bytes {
        let _ = write!(lower, "{byte:02x}");
        let _ = write!(upper, "{byte:02X}");
        if byte.is_ascii_alphanumeric() || b"-._~".contains(byte) {
            [&mut url, &mut url_lower, &mut form].into_iter().for_each(|text| text.push(char::from(*byte)));
            continue;
        }
        let _ = write!(url, "%{byte:02X}");
        let _ = write!(url_lower, "%{byte:02x}");
        let _ = if *byte == b' ' { form.write_char('+') } else { write!(form, "%{byte:02X}") };
    }
    forms.extend([lower, upper, url, url_lower, form]);
    let quoted = Zeroizing::new(serde_json::to_string(secret).unwrap_or_default());
    forms.push(Zeroizing::new(quoted.get(1..quoted.len().saturating_sub(1)).unwrap_or_default().to_owned()));
    forms.push(Zeroizing::new(ascii_json(secret)));
    forms
}

/// A JSON string as Python writes it: nothing but ASCII.
fn ascii_json(secret: &str) -> String {
    let mut text = String::new();
    for character in secret.chars() {
        if character.is_ascii() {
            let quoted = serde_json::to_string(&character).unwrap_or_default();
            text.push_str(quoted.get(1..quoted.len().saturating_sub(1)).unwrap_or_default());
        } else {
            for unit in character.encode_utf16(&mut [0; 2]) {
                let _ = write!(text, "\\u{unit:04x}");
            }
        }
    }
    text
}

/// A text that comes in pieces.
#[derive(Debug, Default)]
pub struct Stream {
    held: Zeroizing<Vec<u8>>,
}

impl Stream {
    /// Takes the next piece; what can be told of it and of what was held back.
    pub fn feed(&mut self, scrubber: &Scrubber, piece: &[u8]) -> Vec<u8> {
        self.held.extend_from_slice(piece);
        if scrubber.is_empty() {
            return std::mem::take(&mut *self.held);
        }
        // So many bytes at the end may be the beginning of a secret.
        let mut kept = 0;
        let behind = self.held.iter().rev().take_while(|byte| {
            kept += usize::from(!is_break(**byte));
            kept < scrubber.longest
        });
        let until = self.held.len() - behind.count().min(MOST_HELD);
        self.tell(scrubber, until)
    }

    /// The rest.
    pub fn finish(&mut self, scrubber: &Scrubber) -> Vec<u8> {
        self.tell(scrubber, self.held.len())
    }

    /// Tells what begins before `until`; a secret that begins there is taken whole.
    fn tell(&mut self, scrubber: &Scrubber, until: usize) -> Vec<u8> {
        let mut told = Vec::with_capacity(until);
        let mut at = 0;
        while at < until {
            match scrubber.at(&self.held, at) {
                Some(end) => {
                    told.extend_from_slice(MARK.as_bytes());
                    at = end;
                }
                None => {
                    told.push(self.held[at]);
                    at += 1;
                }
            }
        }
        let rest = Zeroizing::new(self.held[at..].to_vec());
        self.held = rest;
        told
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn scrubber(secrets: &[&str]) -> Scrubber {
        let mut scrubber = Scrubber::new();
        secrets.iter().for_each(|secret| scrubber.add(secret));
        scrubber
    }

    #[test]
    fn a_secret_is_found_however_it_is_written() {
        let secret = "pä ss\"wörd/1";
        let scrubber = scrubber(&[secret]);
        for written in [
            secret.to_owned(),
            "pä ss\\\"wörd/1".to_owned(),
            "p\\u00e4 ss\\\"w\\u00f6rd/1".to_owned(),
            "p%C3%A4%20ss%22w%C3%B6rd%2F1".to_owned(),
            "p%c3%a4%20ss%22w%c3%b6rd%2f1".to_owned(),
            "p%C3%A4+ss%22w%C3%B6rd%2F1".to_owned(),
            "70c3a42073732277c3b672642f31".to_owned(),
            "70C3A42073732277C3B672642F31".to_owned(),
            "pä ss\n\"wö\r\nrd/1".to_owned(),
        ] {
            assert_eq!(scrubber.clean(&format!("a {written} b")), "a [secret] b", "{written}");
        }
        for before in ["", "u", "us", "user:"] {
            let encoded = STANDARD_NO_PAD.encode(format!("{before}{secret}!"));
            let cleaned = scrubber.clean(&format!("Authorization: Basic {encoded}"));
            assert!(cleaned.contains(MARK) && !cleaned.contains(&encoded[8..encoded.len() - 4]), "{before}: {cleaned}");
        }
        assert!(scrubber.finds(format!("x{secret}").as_bytes()) && !scrubber.finds(b"nothing"));
    }

    #[test]
    fn what_is_too_short_to_look_for_is_left() {
        assert_eq!(scrubber(&["abc", ""]).clean("abc"), "abc");
        assert!(scrubber(&["abc"]).is_empty());
        assert_eq!(scrubber(&["hunter", "hunter22"]).clean("hunter22 hunter2"), "[secret] [secret]2");
        assert!(format!("{:?}", scrubber(&["hunter22"])).len() < 40);
    }

    proptest! {
        #[test]
        fn no_cut_lets_a_secret_through(
            before in "[a-z\n]{0,40}", after in "[a-z\n]{0,40}", breaks in proptest::collection::vec(0usize..12, 0..4),
            cuts in proptest::collection::vec(0usize..100, 0..10),
        ) {
            let secret = "S3CRET-VALUE";
            let mut written = secret.to_owned();
            for at in breaks {
                written.insert(at, '\n');
            }
            let text = format!("{before}{written}{after}{written}");
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut % (text.len() + 1)).collect();
            cuts.sort_unstable();
            cuts.push(text.len());
            let (scrubber, mut stream, mut told, mut from) = (scrubber(&[secret]), Stream::default(), Vec::new(), 0);
            for cut in cuts {
                told.extend(stream.feed(&scrubber, &text.as_bytes()[from..cut]));
                from = cut;
            }
            told.extend(stream.finish(&scrubber));
            let told = String::from_utf8(told).unwrap();
            let whole = |text: &str| text.replace('\n', "");
            prop_assert!(!whole(&told).contains(secret));
            prop_assert_eq!(whole(&told), format!("{}{MARK}{}{MARK}", whole(&before), whole(&after)));
        }

        #[test]
        fn what_holds_no_secret_stays_as_it_is(text in "[a-z\n ]{0,200}") {
            prop_assert_eq!(scrubber(&["S3CRET-VALUE"]).clean(&text), text);
        }
    }
}
