//! Which part of a file a request wants (RFC 9110, sections 13 and 14): one range of bytes, or all. Pure.

use std::ops::Range;

/// What to answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// All of it (200).
    Whole,
    /// These bytes (206).
    Bytes(Range<u64>),
    /// There are none such (416).
    Unsatisfiable,
    /// The client has it already (304).
    NotModified,
}

/// Decides by the headers `Range`, `If-Range` and `If-None-Match`. Several ranges, and what is no range of bytes, count as
/// none: a server may pass them over.
#[must_use]
pub fn part(size: u64, etag: &str, range: Option<&str>, if_range: Option<&str>, if_none_match: Option<&str>) -> Part {
    if if_none_match.is_some_and(|tags| tags.split(',').any(|tag| matches(tag.trim(), etag))) {
        return Part::NotModified;
    }
    // A date cannot be compared: it does not fit, and the whole is sent.
    if if_range.is_some_and(|tag| tag.trim() != etag) {
        return Part::Whole;
    }
    let Some(range) = range.and_then(|range| range.trim().strip_prefix("bytes=")) else { return Part::Whole };
    let Some((first, last)) = range.split_once('-').filter(|_| !range.contains(',')) else { return Part::Whole };
    let (first, last) = (first.trim(), last.trim());
    let number =
        |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<u64>().unwrap_or(u64::MAX));
    match (first.is_empty(), last.is_empty(), number(first), number(last)) {
        (true, true, ..) | (_, _, None, _) | (_, _, _, None) => Part::Whole,
        // The last so many.
        (true, false, _, Some(count)) => satisfiable(size.saturating_sub(count)..size),
        (false, true, Some(first), _) => satisfiable(first..size),
        (false, false, Some(first), Some(last)) if first <= last => {
            satisfiable(first..size.min(last.saturating_add(1)))
        }
        (false, false, ..) => Part::Whole,
    }
}

fn satisfiable(range: Range<u64>) -> Part {
    if range.is_empty() { Part::Unsatisfiable } else { Part::Bytes(range) }
}

fn matches(tag: &str, etag: &str) -> bool {
    tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_those_of_the_rfc() {
        let tag = "\"abc\"";
        for (range, expected) in [
            ("bytes=0-0", Part::Bytes(0..1)),
            ("bytes=0-99", Part::Bytes(0..100)),
            ("bytes=10-1000", Part::Bytes(10..100)),
            ("bytes=99-", Part::Bytes(99..100)),
            ("bytes=-1", Part::Bytes(99..100)),
            ("bytes=-1000", Part::Bytes(0..100)),
            ("bytes=0-99999999999999999999999", Part::Bytes(0..100)),
            ("bytes=100-", Part::Unsatisfiable),
            ("bytes=-0", Part::Unsatisfiable),
            ("bytes=5-4", Part::Whole),
            ("bytes=-", Part::Whole),
            ("bytes=0-1,5-6", Part::Whole),
            ("bytes=a-b", Part::Whole),
            ("bytes=+1-2", Part::Whole),
            ("lines=0-1", Part::Whole),
            ("", Part::Whole),
        ] {
            assert_eq!(part(100, tag, Some(range), None, None), expected, "{range}");
        }
        assert_eq!(part(0, tag, Some("bytes=0-"), None, None), Part::Unsatisfiable);
        assert_eq!(part(100, tag, Some("bytes=0-0"), Some(tag), None), Part::Bytes(0..1));
        assert_eq!(part(100, tag, Some("bytes=0-0"), Some("\"old\""), None), Part::Whole);
        for (tags, same) in
            [("\"abc\"", true), ("W/\"abc\"", true), ("\"x\", \"abc\"", true), ("*", true), ("\"x\"", false)]
        {
            let expected = if same { Part::NotModified } else { Part::Whole };
            assert_eq!(part(100, tag, None, None, Some(tags)), expected, "{tags}");
        }
    }
}
