//! Asking the services. Each call is one request on the broker, with a deadline.

use std::time::Duration;

use errand_bus::{Bus, RequestError};
use errand_core::{Error, ErrorCode};
use prost::Message;

/// Pauses before a request that nobody has received is sent again: a service that restarts is back by then.
const PAUSES: [Duration; 4] =
    [Duration::from_millis(20), Duration::from_millis(60), Duration::from_millis(150), Duration::from_millis(300)];

/// The services, behind the broker.
#[derive(Debug, Clone)]
pub struct Backend {
    bus: Bus,
    deadline: Duration,
}

impl Backend {
    /// Over this connection; each answer must come within the deadline.
    #[must_use]
    pub const fn new(bus: Bus, deadline: Duration) -> Self {
        Self { bus, deadline }
    }

    /// The connection.
    #[must_use]
    pub const fn bus(&self) -> &Bus {
        &self.bus
    }

    /// Asks the dispatcher.
    ///
    /// # Errors
    /// What it says; `api`/`unavailable` and `api`/`timeout` where it says nothing.
    pub async fn dispatcher<Q: Message, A: Message + Default>(&self, method: &str, request: &Q) -> Result<A, Error> {
        self.call("dispatcher", method, request).await
    }

    /// Asks the session-pool.
    ///
    /// # Errors
    /// As [`Self::dispatcher`].
    pub async fn pool<Q: Message, A: Message + Default>(&self, method: &str, request: &Q) -> Result<A, Error> {
        self.call("session-pool", method, request).await
    }

    /// Asks the notifier.
    ///
    /// # Errors
    /// As [`Self::dispatcher`].
    pub async fn notifier<Q: Message, A: Message + Default>(&self, method: &str, request: &Q) -> Result<A, Error> {
        self.call("notifier", method, request).await
    }

    /// Asks the vault.
    ///
    /// # Errors
    /// As [`Self::dispatcher`].
    pub async fn vault<Q: Message, A: Message + Default>(&self, method: &str, request: &Q) -> Result<A, Error> {
        self.call("vault", method, request).await
    }

    /// Asks the storage.
    ///
    /// # Errors
    /// As [`Self::dispatcher`].
    pub async fn storage<Q: Message, A: Message + Default>(&self, method: &str, request: &Q) -> Result<A, Error> {
        self.call("storage", method, request).await
    }

    async fn call<Q: Message, A: Message + Default>(
        &self,
        service: &str,
        method: &str,
        request: &Q,
    ) -> Result<A, Error> {
        if !self.bus.is_connected() {
            return Err(ErrorCode::API_UNAVAILABLE.with("the broker is away; try again"));
        }
        let asked = tokio::time::timeout(self.deadline, self.ask(service, method, request)).await;
        match asked {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(told(service, error)),
            Err(_) => Err(late(service)),
        }
    }

    async fn ask<Q: Message, A: Message + Default>(
        &self,
        service: &str,
        method: &str,
        request: &Q,
    ) -> Result<A, RequestError> {
        for pause in PAUSES {
            match self.bus.request(self.bus.subjects().api(service, method), request).await {
                Err(RequestError::NobodyServes(_)) => tokio::time::sleep(pause).await,
                other => return other,
            }
        }
        self.bus.request(self.bus.subjects().api(service, method), request).await
    }
}

fn late(service: &str) -> Error {
    ErrorCode::API_TIMEOUT.with(format!("the {service} did not answer in time; what was asked may be done or not"))
}

fn told(service: &str, error: RequestError) -> Error {
    match error {
        RequestError::Service(error) => error,
        RequestError::NobodyServes(_) => {
            ErrorCode::API_UNAVAILABLE.with(format!("the {service} is not there; try again"))
        }
        RequestError::TimedOut(_) => late(service),
        RequestError::Broker(..) => ErrorCode::API_UNAVAILABLE.with("the broker is away; try again"),
        RequestError::Undecodable(..) => {
            tracing::error!(%error, service, "an answer cannot be read");
            ErrorCode::API_ERROR.with(format!("the {service} answered what cannot be read"))
        }
    }
}

/// What an answer must hold.
///
/// # Errors
/// `api`/`api_error` where it does not.
pub fn present<T>(value: Option<T>, what: &str) -> Result<T, Error> {
    value.ok_or_else(|| ErrorCode::API_ERROR.with(format!("the answer holds no {what}")))
}
