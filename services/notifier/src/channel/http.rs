//! One call over HTTP, and what its answer means.

use std::error::Error as _;
use std::time::{Duration, SystemTime};

use errand_core::Timestamp;
use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Request, Response};

use super::guard::GuardError;
use super::{EXCERPT_CHARS, Failure, Outside, RESPONSE_BYTES, Receipt};

/// How long an answer's body may take once its status is there: what counts is the status.
const BODY: Duration = Duration::from_secs(1);
/// The longest that a destination can ask to be left alone.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(24 * 3600);

/// What was answered.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    retry_after: Option<Duration>,
    /// Its beginning, [`RESPONSE_BYTES`] at most.
    pub(super) body: Vec<u8>,
}

/// Sends a request to where the guard lets it go. Redirects are not followed.
pub(super) async fn call(outside: &Outside, request: Request, now: Timestamp) -> Result<Answer, Failure> {
    // The client asks the guard for names only. It is this URL that the client connects to, as it is parsed here.
    outside.guard.check_url(request.url()).map_err(|error| Failure::new(error.to_string()))?;
    let mut response = outside.http.execute(request).await.map_err(|error| Failure::new(describe(&error)))?;
    let retry_after = retry_after(response.headers(), now);
    let body = body(&mut response).await;
    Ok(Answer { status: response.status().as_u16(), retry_after, body })
}

async fn body(response: &mut Response) -> Vec<u8> {
    let mut body = Vec::new();
    let reading = async {
        // What breaks off or trickles in is kept as far as it came.
        while body.len() < RESPONSE_BYTES
            && let Ok(Some(chunk)) = response.chunk().await
        {
            body.extend_from_slice(&chunk[..chunk.len().min(RESPONSE_BYTES - body.len())]);
        }
    };
    let _ = tokio::time::timeout(BODY, reading).await;
    body
}

/// Seconds, or a date (RFC 9110). A date that has passed is no time to wait.
fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = if let Ok(seconds) = text.parse() {
        Duration::from_secs(seconds)
    } else {
        let until = httpdate::parse_http_date(text).ok()?.duration_since(SystemTime::UNIX_EPOCH).ok()?;
        until.checked_sub(Duration::from_millis(u64::try_from(now.0).ok()?))?
    };
    Some(wait.min(MAX_RETRY_AFTER))
}

/// Without the URL: its path and query are secret at many receivers.
fn describe(error: &reqwest::Error) -> String {
    let mut root: &dyn std::error::Error = error;
    while let Some(source) = root.source() {
        if let Some(refused) = source.downcast_ref::<GuardError>() {
            return refused.to_string();
        }
        root = source;
    }
    let root = if error.source().is_some() { root.to_string() } else { "the request could not be made".to_owned() };
    match error {
        _ if error.is_timeout() && error.is_connect() => "could not connect in time".to_owned(),
        _ if error.is_timeout() => "did not answer in time".to_owned(),
        _ if error.is_connect() => format!("cannot connect: {root}"),
        _ => format!("broke off: {root}"),
    }
}

impl Answer {
    /// Whether it is a 2xx.
    pub(super) const fn is_success(&self) -> bool {
        matches!(self.status, 200..=299)
    }

    /// What it means to who delivers.
    pub(super) fn outcome(self) -> Result<Receipt, Failure> {
        let response = excerpt(&self.body);
        if self.is_success() {
            return Ok(Receipt { status_code: Some(self.status), response });
        }
        let status = self.status;
        let message = match status {
            300..=399 => format!("answered {status}: redirects are not followed"),
            410 => "answered 410: it is gone for good".to_owned(),
            _ => format!("answered {status}"),
        };
        Err(Failure {
            message,
            status_code: Some(status),
            response,
            retry_after: self.retry_after,
            gone: status == 410,
        })
    }
}

/// What is kept of a body: text for people, on their terminals too, so without control characters.
pub(super) fn excerpt(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let plain = text.chars().map(|character| if character.is_control() { ' ' } else { character });
    plain.take(EXCERPT_CHARS).collect::<String>().trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait(text: &str) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, text.parse().unwrap());
        // Sun, 06 Nov 1994 08:49:00 GMT
        retry_after(&headers, Timestamp(784_111_740_000))
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        assert_eq!(wait("120"), Some(Duration::from_secs(120)));
        assert_eq!(wait("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::from_secs(37)));
        assert_eq!(wait("Sunday, 06-Nov-94 08:49:37 GMT"), Some(Duration::from_secs(37)));
        assert_eq!(wait("Sun, 06 Nov 1994 08:48:00 GMT"), None);
        assert_eq!(wait("99999999999"), Some(MAX_RETRY_AFTER));
        for text in ["", "-1", "soon", "1.5", "99999999999999999999999999"] {
            assert_eq!(wait(text), None, "{text}");
        }
    }

    #[test]
    fn an_excerpt_is_short_and_plain() {
        assert_eq!(excerpt(b"\x1b[31mno\r\n\xff"), " [31mno  \u{fffd}");
        assert_eq!(excerpt("é".repeat(RESPONSE_BYTES).as_bytes()).chars().count(), EXCERPT_CHARS);
    }
}
