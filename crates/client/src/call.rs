//! One request and its answer; what is sent again, and what an error says.

use std::time::Duration;

use errand_bus::{BusError, RequestError};
use errand_core::{Error, ErrorCode};
use prost::Message;
use tokio::time::Instant;

use crate::Client;

/// Pause before a request is sent again; doubles up to a second.
const FIRST_PAUSE: Duration = Duration::from_millis(25);

/// Why a call came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Errand says no, or the request cannot be made.
    #[error(transparent)]
    Refused(#[from] Error),
    /// There was no good answer.
    #[error(transparent)]
    NoAnswer(RequestError),
    /// The broker is not there or did not take it.
    #[error(transparent)]
    Bus(#[from] BusError),
}

impl From<RequestError> for ClientError {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::Service(error) => Self::Refused(error),
            other => Self::NoAnswer(other),
        }
    }
}

impl ClientError {
    /// Its place in the catalogue, with what to do about it.
    #[must_use]
    pub fn to_error(&self) -> Error {
        match self {
            Self::Refused(error) => error.clone(),
            Self::NoAnswer(error) => match error {
                RequestError::Service(error) => error.clone(),
                RequestError::NobodyServes(subject) => {
                    let message = format!("{error}. Is the {} running? `errand doctor` tells", service_of(subject));
                    ErrorCode::API_UNAVAILABLE.with(message)
                }
                RequestError::Broker(..) => ErrorCode::API_UNAVAILABLE.with(error.to_string()),
                RequestError::TimedOut(_) => ErrorCode::API_TIMEOUT.with(error.to_string()),
                RequestError::Undecodable(..) => ErrorCode::API_ERROR.with(error.to_string()),
            },
            Self::Bus(error) => ErrorCode::API_UNAVAILABLE.with(error.to_string()),
        }
    }

    /// Whether the same may succeed later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Refused(error) => matches!(error.code, ErrorCode::API_UNAVAILABLE | ErrorCode::API_TIMEOUT),
            Self::NoAnswer(error) => error.is_transient(),
            Self::Bus(error) => matches!(error, BusError::Publish { .. } | BusError::Unreachable { .. }),
        }
    }

    pub(crate) fn is(&self, code: ErrorCode) -> bool {
        matches!(self, Self::Refused(error) if error.code == code)
    }
}

/// `errand.v1.api.dispatcher.get_run` -> `dispatcher`.
fn service_of(subject: &str) -> &str {
    subject.rsplit('.').nth(1).unwrap_or("service")
}

/// Whether a request may be sent again when it is not known what became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// Done twice, it is done once: ids and reads.
    Safe,
    /// Only where nobody can have received it.
    Unreceived,
}

impl Repeat {
    fn allows(self, error: &ClientError) -> bool {
        match self {
            Self::Safe => error.is_transient(),
            Self::Unreceived => matches!(error, ClientError::NoAnswer(RequestError::NobodyServes(_))),
        }
    }
}

impl Client {
    /// Sends a request, again while the patience lasts.
    pub(crate) async fn call<Q: Message, A: Message + Default>(
        &self,
        service: &str,
        method: &str,
        request: &Q,
        repeat: Repeat,
    ) -> Result<A, ClientError> {
        let started = Instant::now();
        let mut pause = FIRST_PAUSE;
        loop {
            let answer = self.bus.request(self.bus.subjects().api(service, method), request).await;
            let error = match answer {
                Ok(answer) => return Ok(answer),
                Err(error) => ClientError::from(error),
            };
            if !repeat.allows(&error) || started.elapsed() + pause > self.patience {
                return Err(error);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(1));
        }
    }

    pub(crate) async fn dispatcher<Q: Message, A: Message + Default>(
        &self,
        method: &str,
        request: &Q,
        repeat: Repeat,
    ) -> Result<A, ClientError> {
        self.call("dispatcher", method, request, repeat).await
    }

    pub(crate) async fn vault<Q: Message, A: Message + Default>(
        &self,
        method: &str,
        request: &Q,
        repeat: Repeat,
    ) -> Result<A, ClientError> {
        self.call("vault", method, request, repeat).await
    }

    pub(crate) async fn pool<Q: Message, A: Message + Default>(
        &self,
        method: &str,
        request: &Q,
        repeat: Repeat,
    ) -> Result<A, ClientError> {
        self.call("session-pool", method, request, repeat).await
    }
}

/// What an answer must hold.
pub(crate) fn present<T>(value: Option<T>, what: &str) -> Result<T, ClientError> {
    value.ok_or_else(|| ErrorCode::API_ERROR.with(format!("the answer holds no {what}")).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_who_is_missing() {
        let error = ClientError::from(RequestError::NobodyServes("errand.v1.api.session-pool.list_runners".into()));
        assert_eq!(error.to_error().code, ErrorCode::API_UNAVAILABLE);
        assert!(error.to_error().message.contains("Is the session-pool running?"), "{error:?}");
    }

    #[test]
    fn what_may_have_been_done_is_repeated_only_where_that_is_safe() {
        let timed_out = ClientError::from(RequestError::TimedOut("x".into()));
        let unserved = ClientError::from(RequestError::NobodyServes("x".into()));
        let refused = ClientError::from(ErrorCode::INPUT_INVALID.with("no"));
        assert!(Repeat::Safe.allows(&timed_out) && !Repeat::Unreceived.allows(&timed_out));
        assert!(Repeat::Safe.allows(&unserved) && Repeat::Unreceived.allows(&unserved));
        assert!(!Repeat::Safe.allows(&refused) && !Repeat::Unreceived.allows(&refused));
    }
}
