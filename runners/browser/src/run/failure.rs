//! What is wrong, in the words of the error catalogue.

use errand_core::{Error, ErrorCode};

use crate::browser::PageState;
use crate::egress::{Egress, Refusal};

/// Why a step has failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    code: ErrorCode,
    message: String,
    field: Option<String>,
    /// The page can show itself no more.
    pub(super) is_blind: bool,
}

impl Failure {
    pub(crate) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), field: None, is_blind: false }
    }

    pub(crate) fn at(mut self, field: &str) -> Self {
        self.field = Some(field.to_owned());
        self
    }

    /// Whether it says already which step it is of.
    pub(super) fn is_placed(&self) -> bool {
        self.field.is_some()
    }

    /// The same failure, of this step.
    pub(super) fn placed(mut self, path: &str, name: &str) -> Self {
        self.message = format!("{path}{name}: {}", self.message);
        self.at(&format!("program.{path}"))
    }

    pub(crate) fn error(self) -> Error {
        let error = self.code.with(self.message);
        match self.field {
            Some(field) => error.at(field),
            None => error,
        }
    }
}

/// What an HTTP status says of a source.
pub(super) fn of_status(status: u16) -> Option<Failure> {
    let code = match status {
        500.. => ErrorCode::SOURCE_NOT_AVAILABLE,
        401 | 403 | 407 | 429 | 451 => ErrorCode::SOURCE_BLOCKED,
        400.. => ErrorCode::SOURCE_ERROR,
        _ => return None,
    };
    Some(Failure::new(code, format!("the page answers {status}")))
}

/// Why a page is not what was expected: its own trouble, where it has any.
pub(super) fn of_page(page: &PageState, egress: &Egress) -> Option<Failure> {
    match page.failure() {
        Some(words) => Some(of_network(words, &page.url, egress)),
        None => page.status().and_then(of_status),
    }
}

/// Whether it is of no use to wait for anything on this page.
pub(super) fn is_hopeless(page: &PageState) -> bool {
    let bad = page.failure().is_some() || page.status().is_some_and(|status| status >= 500 || status == 429);
    bad && page.is_loaded && !page.navigating
}

/// What Chromium's name of a network error means. The message has the host, never the whole URL.
pub(super) fn of_network(words: &str, url: &str, egress: &Egress) -> Failure {
    let host = url::Url::parse(url).ok().and_then(|url| url.host_str().map(str::to_owned)).unwrap_or_default();
    let (code, message) = match egress.refusal(&host) {
        Some(Refusal::Private) if words.contains("SOCKS") => (
            ErrorCode::SOURCE_INVALID,
            format!("{host} is in a private network, which this runner does not allow (--allow-network)"),
        ),
        Some(Refusal::Unknown) if words.contains("SOCKS") => {
            (ErrorCode::SOURCE_NOT_AVAILABLE, format!("the name {host} is not known"))
        }
        Some(Refusal::Silent) if words.contains("SOCKS") => {
            (ErrorCode::SOURCE_NOT_AVAILABLE, format!("{host} does not answer"))
        }
        _ => (of_words(words), format!("{host} cannot be reached: {words}")),
    };
    Failure::new(code, message)
}

fn of_words(words: &str) -> ErrorCode {
    let has = |parts: &[&str]| parts.iter().any(|part| words.contains(part));
    if has(&["BLOCKED_BY", "UNSAFE_PORT", "INVALID_URL", "UNKNOWN_URL_SCHEME", "ACCESS_DENIED", "DISALLOWED"]) {
        ErrorCode::SOURCE_INVALID
    } else if has(&["CERT", "SSL", "REDIRECTS", "ABORTED", "INVALID_RESPONSE", "DECODING", "HTTP2", "INVALID_HTTP"]) {
        ErrorCode::SOURCE_ERROR
    } else {
        ErrorCode::SOURCE_NOT_AVAILABLE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_and_network_errors_have_their_codes() {
        for (status, code) in [
            (500, ErrorCode::SOURCE_NOT_AVAILABLE),
            (503, ErrorCode::SOURCE_NOT_AVAILABLE),
            (403, ErrorCode::SOURCE_BLOCKED),
            (429, ErrorCode::SOURCE_BLOCKED),
            (404, ErrorCode::SOURCE_ERROR),
        ] {
            assert_eq!(of_status(status).unwrap().code, code, "{status}");
        }
        assert_eq!(of_status(200), None);
        for (words, code) in [
            ("net::ERR_CONNECTION_RESET", ErrorCode::SOURCE_NOT_AVAILABLE),
            ("net::ERR_CERT_AUTHORITY_INVALID", ErrorCode::SOURCE_ERROR),
            ("net::ERR_UNSAFE_PORT", ErrorCode::SOURCE_INVALID),
        ] {
            assert_eq!(of_words(words), code, "{words}");
        }
    }

    #[test]
    fn the_first_place_stays() {
        let failure = Failure::new(ErrorCode::SOURCE_ERROR, "no").placed("steps[3].then[1].fill", " (sign in)");
        let error = failure.error();
        assert_eq!(error.message, "steps[3].then[1].fill (sign in): no");
        assert_eq!(error.field.as_deref(), Some("program.steps[3].then[1].fill"));
    }
}
