//! A queue or topic of Azure Service Bus: one REST call with a shared access signature.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use errand_core::{Error, Timestamp};
use futures::future::BoxFuture;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use reqwest::{Method, Request};
use ring::hmac;
use serde::Serialize;
use serde_json::json;
use url::Url;
use url::form_urlencoded::byte_serialize;

use super::config::Settings;
use super::fields::{Fields, Secret, invalid};
use super::{Channel, Failure, Message, Outside, Receipt, http};

/// How long a signature is good: one call, with clocks that differ.
const LIFETIME_SECONDS: i64 = 600;
/// A queue's or topic's path.
const MAX_ENTITY: usize = 260;
/// A key and its name.
const MAX_KEY: usize = 256;

/// What a queue or topic needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Config {
    /// `NAME` of `NAME.servicebus.windows.net`.
    namespace: String,
    /// The queue or topic.
    entity: String,
    /// The policy's name.
    key_name: String,
    key: Secret,
    /// Whether messages carry their object as the session.
    sessions: bool,
    /// In place of Azure's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<String>,
}

impl Settings for Config {
    const KIND: &'static str = "azure_servicebus";
    const SECRETS: &'static [&'static str] = &["key"];

    fn read(fields: &mut Fields) -> Result<Self, Error> {
        let namespace = fields.text("namespace", 1..=50)?;
        // It becomes a part of a host's name.
        if !namespace.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
            return Err(invalid(
                &fields.at("namespace"),
                "is letters, digits and -: NAME of NAME.servicebus.windows.net",
            ));
        }
        let entity = fields.text("entity", 1..=MAX_ENTITY)?;
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b'/');
        if !entity.bytes().all(fits) || entity.split('/').any(|segment| matches!(segment, "" | "." | "..")) {
            return Err(invalid(&fields.at("entity"), "is a queue's or topic's name: letters, digits, . - _ and /"));
        }
        let endpoint = fields.http_url("endpoint")?;
        if endpoint.as_ref().is_some_and(|url| url.query().is_some() || url.path() != "/") {
            return Err(invalid(&fields.at("endpoint"), "is a scheme, a host and a port"));
        }
        Ok(Self {
            namespace,
            entity,
            key_name: fields.text("key_name", 1..=MAX_KEY)?,
            key: fields.secret("key", MAX_KEY)?,
            sessions: fields.flag("sessions", false)?,
            endpoint: endpoint.map(Into::into),
        })
    }

    fn open(&self, _: &[String], outside: &Outside) -> Result<Arc<dyn Channel>, Error> {
        let own = || format!("https://{}.servicebus.windows.net/", self.namespace);
        let endpoint = self.endpoint.clone().unwrap_or_else(own);
        let resource = Url::parse(&endpoint).and_then(|url| url.join(&self.entity));
        let resource =
            resource.map_err(|error| invalid("azure_servicebus.endpoint", format_args!("is no URL: {error}")))?;
        let mut url = resource.clone();
        url.set_path(&format!("/{}/messages", self.entity));
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.key.expose().as_bytes());
        Ok(Arc::new(Entity { config: self.clone(), resource, url, key, outside: outside.clone() }))
    }
}

struct Entity {
    config: Config,
    /// What the signature is good for.
    resource: Url,
    url: Url,
    key: hmac::Key,
    outside: Outside,
}

impl std::fmt::Debug for Entity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entity").field("config", &self.config).finish_non_exhaustive()
    }
}

fn encode(text: &str) -> String {
    byte_serialize(text.as_bytes()).collect()
}

impl Entity {
    fn token(&self, now: Timestamp) -> String {
        let resource = encode(self.resource.as_str());
        let expires = now.0.div_euclid(1_000) + LIFETIME_SECONDS;
        let signature = STANDARD.encode(hmac::sign(&self.key, format!("{resource}\n{expires}").as_bytes()));
        let (signature, name) = (encode(&signature), encode(&self.config.key_name));
        format!("SharedAccessSignature sr={resource}&sig={signature}&se={expires}&skn={name}")
    }

    fn request(&self, message: &Message) -> Result<Request, Failure> {
        let mut properties = json!({"MessageId": message.event_id.to_string(), "Label": message.event_type});
        if self.config.sessions {
            properties["SessionId"] = message.object_id.as_str().into();
        }
        let mut request = Request::new(Method::POST, self.url.clone());
        let headers = request.headers_mut();
        let value = |text: &str| HeaderValue::from_str(text).map_err(|_| Failure::new("a header cannot be sent"));
        let mut token = value(&self.token(message.now))?;
        token.set_sensitive(true);
        headers.insert(AUTHORIZATION, token);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert("brokerproperties", value(&properties.to_string())?);
        if let Some(traceparent) = message.traceparent() {
            // A property of the message; texts stand in quotes.
            headers.insert("traceparent", value(&format!("\"{traceparent}\""))?);
        }
        *request.body_mut() = Some(message.json.clone().into());
        Ok(request)
    }
}

impl Channel for Entity {
    fn send<'a>(&'a self, message: &'a Message) -> BoxFuture<'a, Result<Receipt, Failure>> {
        Box::pin(async move { http::call(&self.outside, self.request(message)?, message.now).await?.outcome() })
    }
}
