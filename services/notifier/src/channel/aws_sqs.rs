//! A queue of Amazon SQS: one `SendMessage` of its JSON protocol.

use std::sync::Arc;

use errand_core::Error;
use futures::future::BoxFuture;
use reqwest::Method;
use serde::Serialize;
use serde_json::{Value, json};
use url::Url;

use super::aws::{self, Access, Call};
use super::config::Settings;
use super::fields::Fields;
use super::{Channel, Failure, Message, Outside, Receipt};

/// What a queue needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Config {
    #[serde(flatten)]
    access: Access,
    queue_url: String,
}

impl Settings for Config {
    const KIND: &'static str = "aws_sqs";
    const SECRETS: &'static [&'static str] = aws::SECRETS;

    fn read(fields: &mut Fields) -> Result<Self, Error> {
        let access = Access::read(fields)?;
        let queue_url = fields.http_url("queue_url")?.ok_or_else(|| fields.missing("queue_url"))?;
        Ok(Self { access, queue_url: queue_url.into() })
    }

    fn open(&self, _: &[String], outside: &Outside) -> Result<Arc<dyn Channel>, Error> {
        Ok(Arc::new(Queue { config: self.clone(), outside: outside.clone() }))
    }
}

#[derive(Debug)]
struct Queue {
    config: Config,
    outside: Outside,
}

impl Queue {
    fn body(&self, message: &Message) -> Result<Value, Failure> {
        let text = std::str::from_utf8(&message.json).map_err(|_| Failure::new("the event is no UTF-8"))?;
        let id = message.event_id.to_string();
        let attribute = |value: &str| json!({"DataType": "String", "StringValue": value});
        let mut attributes = json!({"event_id": attribute(&id), "event_type": attribute(&message.event_type)});
        if let Some(traceparent) = message.traceparent() {
            attributes["traceparent"] = attribute(traceparent);
        }
        let mut body = json!({"QueueUrl": self.config.queue_url, "MessageBody": text, "MessageAttributes": attributes});
        if self.config.queue_url.ends_with(".fifo") {
            // In order per object, and SQS itself drops what it gets twice within five minutes.
            body["MessageGroupId"] = message.object_id.as_str().into();
            body["MessageDeduplicationId"] = id.into();
        }
        Ok(body)
    }

    /// Amazon's own address follows from the queue's, where no endpoint is given: both are one host.
    fn url(&self) -> Result<Url, Failure> {
        if self.config.access.has_own_endpoint() {
            return self.config.access.endpoint("sqs").map_err(aws::no_url);
        }
        Url::parse(&self.config.queue_url).and_then(|url| url.join("/")).map_err(aws::no_url)
    }
}

impl Channel for Queue {
    fn send<'a>(&'a self, message: &'a Message) -> BoxFuture<'a, Result<Receipt, Failure>> {
        Box::pin(async move {
            let call = Call {
                service: "sqs",
                method: Method::POST,
                url: self.url()?,
                headers: aws::json_headers("application/x-amz-json-1.0", "AmazonSQS.SendMessage"),
                body: self.body(message)?.to_string().into(),
            };
            call.send(&self.config.access, &self.outside, message.now).await?.outcome()
        })
    }
}
