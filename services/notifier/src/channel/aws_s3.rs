//! A bucket of Amazon S3, or of what speaks like it: one `PutObject` for each event.

use std::sync::Arc;

use errand_core::Error;
use futures::future::BoxFuture;
use reqwest::Method;
use serde::Serialize;
use url::Url;

use super::aws::{self, Access, Call};
use super::config::Settings;
use super::fields::{Fields, invalid};
use super::template::Template;
use super::{Channel, Failure, Message, Outside, Receipt};

/// A key before its placeholders are filled; S3 takes 1024 bytes.
const MAX_KEY: usize = 512;
const DEFAULT_KEY: &str = "{tenant}/{date}/{object}.{action}/{event_id}.json";

/// What a bucket needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Config {
    #[serde(flatten)]
    access: Access,
    bucket: String,
    /// What an event's object is called.
    key: Template,
}

impl Settings for Config {
    const KIND: &'static str = "aws_s3";
    const SECRETS: &'static [&'static str] = aws::SECRETS;

    fn read(fields: &mut Fields) -> Result<Self, Error> {
        let access = Access::read(fields)?;
        let bucket = fields.text("bucket", 3..=63)?;
        // It becomes a part of a host's name.
        let word = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-');
        if !bucket.bytes().all(word) || bucket.starts_with(['.', '-']) || bucket.ends_with(['.', '-']) {
            return Err(invalid(&fields.at("bucket"), "is small letters, digits, . and -"));
        }
        let at = fields.at("key");
        let text = fields.optional("key", 1..=MAX_KEY)?.unwrap_or_else(|| DEFAULT_KEY.to_owned());
        let key = Template::parse(&text, &at)?;
        if !key.is_per_event() {
            return Err(invalid(&at, "holds {event_id}: each event would overwrite the one before"));
        }
        // Whoever handles URLs on the way would take such segments for steps.
        if text.starts_with('/') || key.sample().split('/').any(|segment| matches!(segment, "" | "." | "..")) {
            return Err(invalid(&at, "is segments joined by single slashes, none of them . or .."));
        }
        Ok(Self { access, bucket, key })
    }

    fn open(&self, _: &[String], outside: &Outside) -> Result<Arc<dyn Channel>, Error> {
        Ok(Arc::new(Bucket { config: self.clone(), outside: outside.clone() }))
    }
}

#[derive(Debug)]
struct Bucket {
    config: Config,
    outside: Outside,
}

impl Bucket {
    /// The bucket stands in the host's name at Amazon, and in the path elsewhere - and where its dots would not fit
    /// Amazon's certificate.
    fn url(&self, message: &Message) -> Result<Url, Failure> {
        let Config { access, bucket, key } = &self.config;
        let key = aws::encode_path(&key.render(message));
        let in_path = access.has_own_endpoint() || bucket.contains('.');
        let host = if in_path { "s3".to_owned() } else { format!("{bucket}.s3") };
        let path = if in_path { format!("/{bucket}/{key}") } else { format!("/{key}") };
        access.endpoint(&host).and_then(|url| url.join(&path)).map_err(aws::no_url)
    }
}

impl Channel for Bucket {
    fn send<'a>(&'a self, message: &'a Message) -> BoxFuture<'a, Result<Receipt, Failure>> {
        Box::pin(async move {
            let call = Call {
                service: "s3",
                method: Method::PUT,
                url: self.url(message)?,
                headers: vec![(aws::CONTENT_TYPE_NAME, "application/json")],
                body: message.json.clone(),
            };
            call.send(&self.config.access, &self.outside, message.now).await?.outcome()
        })
    }
}
