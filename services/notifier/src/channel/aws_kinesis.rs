//! A stream of Amazon Kinesis: one `PutRecord`.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use errand_core::Error;
use futures::future::BoxFuture;
use reqwest::Method;
use serde::Serialize;
use serde_json::json;

use super::aws::{self, Access, Call};
use super::config::Settings;
use super::fields::{Fields, invalid};
use super::{Channel, Failure, Message, Outside, Receipt};

/// A stream's name.
const MAX_STREAM: usize = 128;

/// What a stream needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Config {
    #[serde(flatten)]
    access: Access,
    stream: String,
}

impl Settings for Config {
    const KIND: &'static str = "aws_kinesis";
    const SECRETS: &'static [&'static str] = aws::SECRETS;

    fn read(fields: &mut Fields) -> Result<Self, Error> {
        let access = Access::read(fields)?;
        let stream = fields.text("stream", 1..=MAX_STREAM)?;
        if !stream.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-')) {
            return Err(invalid(&fields.at("stream"), "is a stream's name: letters, digits, _ . and -"));
        }
        Ok(Self { access, stream })
    }

    fn open(&self, _: &[String], outside: &Outside) -> Result<Arc<dyn Channel>, Error> {
        Ok(Arc::new(Stream { config: self.clone(), outside: outside.clone() }))
    }
}

#[derive(Debug)]
struct Stream {
    config: Config,
    outside: Outside,
}

impl Channel for Stream {
    fn send<'a>(&'a self, message: &'a Message) -> BoxFuture<'a, Result<Receipt, Failure>> {
        Box::pin(async move {
            // One object's events go to one shard, in their order.
            let record = json!({
                "StreamName": self.config.stream,
                "Data": STANDARD.encode(&message.json),
                "PartitionKey": message.object_id,
            });
            let call = Call {
                service: "kinesis",
                method: Method::POST,
                url: self.config.access.endpoint("kinesis").map_err(aws::no_url)?,
                headers: aws::json_headers("application/x-amz-json-1.1", "Kinesis_20131202.PutRecord"),
                body: record.to_string().into(),
            };
            call.send(&self.config.access, &self.outside, message.now).await?.outcome()
        })
    }
}
