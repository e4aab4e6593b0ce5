//! Standard Webhooks (<https://www.standardwebhooks.com>).

use std::sync::Arc;

use errand_core::{Error, ErrorCode};
use futures::future::BoxFuture;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, Request};
use serde::{Serialize, Serializer};
use serde_json::Value;
use standardwebhooks::{HEADER_WEBHOOK_ID, HEADER_WEBHOOK_SIGNATURE, HEADER_WEBHOOK_TIMESTAMP, Webhook};
use url::Url;

use super::config::Settings;
use super::fields::{Fields, MASK, Secret, invalid};
use super::{Channel, Failure, Message, Outside, Receipt, http};

/// Headers of the owner's.
const MAX_HEADERS: usize = 20;
/// A header's name.
const MAX_HEADER_NAME: usize = 64;
/// A header's value.
const MAX_HEADER_VALUE: usize = 1_024;

/// Headers that are ours, that belong to the connection rather than the request, or that say how to read the body: one
/// set by the owner could forge a signature's parts or smuggle a second request in.
const RESERVED: &[&str] = &[
    "accept-encoding",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "date",
    "expect",
    "host",
    "http2-settings",
    "keep-alive",
    "te",
    "traceparent",
    "tracestate",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "via",
];
const RESERVED_BEGINNINGS: &[&str] = &["webhook-", "proxy-", "sec-"];

/// What a webhook needs.
#[derive(Clone, PartialEq, Eq, Serialize)]
pub struct Config {
    /// Where it is posted.
    pub url: String,
    /// Sent with each delivery. Their values may be secret.
    headers: Headers,
}

impl std::fmt::Debug for Config {
    /// Without the URL's path and query: they are secret at many receivers.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let url = Url::parse(&self.url).ok();
        let host = url.as_ref().and_then(Url::host_str);
        f.debug_struct("Config").field("host", &host).field("headers", &self.headers).finish()
    }
}

/// In the order of their names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Headers(Vec<(HeaderName, Secret)>);

impl Serialize for Headers {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name.as_str(), value)))
    }
}

impl Settings for Config {
    const KIND: &'static str = "webhook";
    const SIGNS: bool = true;
    const SECRETS: &'static [&'static str] = &["headers.*"];

    fn read(fields: &mut Fields) -> Result<Self, Error> {
        let url = fields.http_url("url")?.ok_or_else(|| fields.missing("url"))?;
        let headers = fields.object("headers")?.map(read_headers).transpose()?.unwrap_or_default();
        Ok(Self { url: url.into(), headers })
    }

    fn open(&self, secrets: &[String], outside: &Outside) -> Result<Arc<dyn Channel>, Error> {
        let unusable = |what| ErrorCode::API_ERROR.with(format!("the destination's {what} cannot be used"));
        if secrets.is_empty() {
            return Err(ErrorCode::API_ERROR.with("the destination has no signing secret"));
        }
        let signers = secrets.iter().map(|secret| Webhook::new(secret)).collect::<Result<_, _>>();
        let mut headers = HeaderMap::new();
        for (name, value) in &self.headers.0 {
            headers.insert(name, header_value(value).ok_or_else(|| unusable("headers"))?);
        }
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Ok(Arc::new(Post {
            url: Url::parse(&self.url).map_err(|_| unusable("URL"))?,
            headers,
            signers: signers.map_err(|_| unusable("signing secret"))?,
            outside: outside.clone(),
        }))
    }
}

fn read_headers(fields: Fields) -> Result<Headers, Error> {
    let path = fields.path().to_owned();
    let map = fields.rest();
    if map.len() > MAX_HEADERS {
        return Err(invalid(&path, format_args!("holds at most {MAX_HEADERS} headers")));
    }
    let mut headers: Vec<(HeaderName, Secret)> = Vec::new();
    for (text, value) in map {
        let shown: String = text.chars().take(MAX_HEADER_NAME).collect();
        let field = format!("{path}.{}", shown.escape_default());
        let name = HeaderName::try_from(text.as_str()).ok().filter(|_| text.len() <= MAX_HEADER_NAME);
        let name = name.ok_or_else(|| {
            invalid(&field, format_args!("has a name of letters, digits and -, at most {MAX_HEADER_NAME}"))
        })?;
        let lower = name.as_str();
        if RESERVED.contains(&lower) || RESERVED_BEGINNINGS.iter().any(|beginning| lower.starts_with(beginning)) {
            return Err(invalid(&field, "is set by Errand, or belongs to the connection"));
        }
        if headers.iter().any(|(known, _)| *known == name) {
            return Err(invalid(&field, "stands there twice"));
        }
        headers.push((name, read_value(&field, value)?));
    }
    headers.sort_by(|(left, _), (right, _)| left.as_str().cmp(right.as_str()));
    Ok(Headers(headers))
}

fn read_value(field: &str, value: Value) -> Result<Secret, Error> {
    let limit = || {
        invalid(field, format_args!("has a value of 1 to {MAX_HEADER_VALUE} printable ASCII characters, on one line"))
    };
    let Value::String(text) = value else { return Err(limit()) };
    if text == MASK {
        return Err(invalid(field, "is masked: give the value itself"));
    }
    if !(1..=MAX_HEADER_VALUE).contains(&text.len()) || !text.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        return Err(limit());
    }
    Ok(Secret::new(text))
}

fn header_value(secret: &Secret) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(secret.expose()).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// The opened way out.
struct Post {
    url: Url,
    /// Those that are the same each time.
    headers: HeaderMap,
    /// The newest first.
    signers: Vec<Webhook>,
    outside: Outside,
}

impl std::fmt::Debug for Post {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Post").field("host", &self.url.host_str()).finish_non_exhaustive()
    }
}

impl Post {
    fn request(&self, message: &Message) -> Result<Request, Failure> {
        let id = message.event_id.to_string();
        let seconds = message.now.0.div_euclid(1_000);
        let mut signatures = String::with_capacity(48 * self.signers.len());
        for signer in &self.signers {
            let signature = signer.sign(&id, seconds, &message.json);
            // A receiver tries each: with the secret before the rotation, or with the new one.
            if !signatures.is_empty() {
                signatures.push(' ');
            }
            signatures.push_str(&signature.map_err(|_| Failure::new("the event is no UTF-8, it cannot be signed"))?);
        }
        let mut request = Request::new(Method::POST, self.url.clone());
        let headers = request.headers_mut();
        headers.clone_from(&self.headers);
        let mut set = |name: &'static str, value: &str| {
            let value = HeaderValue::from_str(value).map_err(|_| Failure::new(format!("{name} cannot be sent")))?;
            headers.insert(name, value);
            Ok::<(), Failure>(())
        };
        set(HEADER_WEBHOOK_ID, &id)?;
        set(HEADER_WEBHOOK_TIMESTAMP, &seconds.to_string())?;
        set(HEADER_WEBHOOK_SIGNATURE, &signatures)?;
        if let Some(traceparent) = message.traceparent() {
            set(errand_bus::trace::TRACEPARENT, traceparent)?;
        }
        *request.body_mut() = Some(message.json.clone().into());
        Ok(request)
    }
}

impl Channel for Post {
    fn send<'a>(&'a self, message: &'a Message) -> BoxFuture<'a, Result<Receipt, Failure>> {
        Box::pin(async move { http::call(&self.outside, self.request(message)?, message.now).await?.outcome() })
    }
}
