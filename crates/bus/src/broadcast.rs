//! Core NATS is heard by whoever listens at that moment. Where nobody does, the broker tells a publisher that wants an
//! answer ("no responders"): so it can be known what need not be published at all.

use std::collections::HashSet;

use async_nats::header::HeaderMap;
use async_nats::{StatusCode, Subscriber};
use bytes::Bytes;
use futures::StreamExt;

use crate::connection::{Bus, BusError};

/// Messages that are published one behind the other, and what the broker says of them.
pub struct Broadcast {
    bus: Bus,
    inbox: String,
    answers: Subscriber,
}

impl Bus {
    /// Begins to publish what may be heard by nobody. Costs more than [`Self::round_trip`]: for a subscription with a
    /// wildcard nats-server goes through all that it remembers of subjects.
    ///
    /// # Errors
    /// [`BusError::Listen`].
    pub async fn broadcast(&self) -> Result<Broadcast, BusError> {
        let inbox = self.client().new_inbox();
        let subject = format!("{inbox}.*");
        let answers = self.client().subscribe(subject.clone()).await;
        let answers = answers.map_err(|error| BusError::Listen { subject, what: error.to_string() })?;
        Ok(Broadcast { bus: self.clone(), inbox, answers })
    }
}

impl Broadcast {
    /// Publishes; [`Self::unheard`] says whether anybody listened. Who did sees a subject for answers, and may ignore it.
    ///
    /// # Errors
    /// [`BusError::Publish`].
    pub async fn ask(
        &self,
        number: usize,
        subject: String,
        headers: HeaderMap,
        payload: Bytes,
    ) -> Result<(), BusError> {
        let reply = format!("{}.{number}", self.inbox);
        let published = self.bus.client().publish_with_reply_and_headers(subject.clone(), reply, headers, payload);
        published.await.map_err(|error| BusError::Publish { subject, what: error.to_string() })
    }

    /// Waits until the broker has all that was published on this connection. Gives the numbers of what was asked and
    /// nobody listened to: what the broker does not say so of was heard, or may have been.
    ///
    /// # Errors
    /// [`BusError::Publish`], and [`BusError::Unreachable`] where no answer comes.
    pub async fn unheard(mut self) -> Result<HashSet<usize>, BusError> {
        let echo = format!("{}.echo", self.inbox);
        self.bus.publish_bytes(echo.clone(), Bytes::new()).await?;
        let hearing = async {
            let mut unheard = HashSet::new();
            while let Some(answer) = self.answers.next().await {
                let number = answer.subject.strip_prefix(&self.inbox).and_then(|rest| rest.strip_prefix('.'));
                if answer.subject.as_str() == echo {
                    return Some(unheard);
                }
                if answer.status == Some(StatusCode::NO_RESPONDERS)
                    && let Some(number) = number.and_then(|number| number.parse().ok())
                {
                    unheard.insert(number);
                }
            }
            None
        };
        let unheard = tokio::time::timeout(self.bus.request_timeout(), hearing).await;
        unheard.ok().flatten().ok_or_else(|| self.bus.unreachable())
    }
}
