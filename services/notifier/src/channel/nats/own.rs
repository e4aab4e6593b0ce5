//! The installation's own server.

use std::sync::Arc;

use errand_bus::{Bus, BusError};
use errand_core::{Error, ErrorCode};
use futures::future::BoxFuture;

use super::super::{Channel, Failure, Message, Outside, Receipt};
use super::Sender;

/// Whether a tenant may have its events there: not where Errand itself listens, not where the server does (`$JS`), and
/// not where somebody waits for an answer (`_INBOX`).
pub(super) fn check(subject: &str, prefix: Option<&str>) -> Result<(), &'static str> {
    if subject.starts_with(['$', '_']) {
        return Err("does not begin with $ or _ on the own server");
    }
    let inside = |prefix| subject.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    if prefix.is_some_and(inside) {
        return Err("is not one of Errand's own");
    }
    Ok(())
}

pub(super) fn open(sender: Sender, outside: &Outside) -> Result<Arc<dyn Channel>, Error> {
    let Some(broker) = &outside.broker else {
        return Err(ErrorCode::API_UNAVAILABLE.with("this installation lets no destination use its own server"));
    };
    let bus = broker.clone();
    let refused = |what: &str| ErrorCode::INPUT_INVALID.with(format!("nats.subject {what}")).at("nats.subject");
    check(&sender.subject.sample(), Some(bus.subjects().prefix())).map_err(refused)?;
    Ok(Arc::new(Own { sender, bus }))
}

#[derive(Clone)]
struct Own {
    sender: Sender,
    bus: Bus,
}

impl std::fmt::Debug for Own {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Own").field("sender", &self.sender).finish_non_exhaustive()
    }
}

impl Own {
    async fn publish(&self, subject: String, message: &Message) -> Result<String, BusError> {
        let payload = self.sender.format.payload(message);
        if self.sender.jetstream {
            let id = message.event_id.to_string();
            let ack = self.bus.publish_stream(subject, &id, message.traceparent(), payload).await?.await?;
            return Ok(format!("stored at {}", ack.sequence));
        }
        self.bus.publish_raw(subject, Some(self.sender.headers(message)), payload).await?;
        // What comes back has passed the server behind it.
        self.bus.round_trip().await?;
        Ok(String::new())
    }
}

/// What a tenant is told: not where the server is, nor how to start one.
fn told(error: &BusError) -> String {
    match error {
        BusError::Publish { what, .. } => format!("the server did not take it: {what}"),
        _ => "the server did not answer in time".to_owned(),
    }
}

impl Channel for Own {
    fn send<'a>(&'a self, message: &'a Message) -> BoxFuture<'a, Result<Receipt, Failure>> {
        Box::pin(async move {
            let subject = self.sender.subject(message)?;
            // A placeholder in front may have become our prefix.
            let allowed = check(&subject, Some(self.bus.subjects().prefix()));
            allowed.map_err(|what| Failure::new(format!("the subject {what}")))?;
            let sent = self.publish(subject, message).await;
            let response = sent.map_err(|error| Failure::new(told(&error)))?;
            Ok(Receipt { status_code: None, response })
        })
    }
}
