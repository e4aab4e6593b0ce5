//! A subject of a NATS server: the installation's own, or another one.

mod foreign;
mod format;
mod own;

use std::sync::Arc;

use async_nats::HeaderMap;
use errand_bus::trace;
use errand_core::{Error, ErrorCode};
use serde::Serialize;
use url::{Host, Url};

use super::config::Settings;
use super::fields::{Fields, Secret, invalid};
use super::template::Template;
use super::{Channel, Failure, Message, Outside};

use format::Format;

/// A subject, before its placeholders are filled.
const MAX_SUBJECT: usize = 200;
/// A name or a token.
const MAX_NAME: usize = 256;
/// A credentials file holds a JWT and a seed.
const MAX_CREDENTIALS: usize = 16 * 1024;
/// Where a subscriber finds by what to drop duplicates.
const EVENT_ID: &str = "Errand-Event-Id";

/// What a NATS destination needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Config {
    /// The other server; the installation's own unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<String>,
    subject: Template,
    format: Format,
    /// Whether the subject is a stream's, so that its server acknowledges what it has stored.
    jetstream: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    credentials: Option<Credentials>,
}

/// How to log in at the other server. No `Debug` that could show them: [`Secret`] has its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
enum Credentials {
    Password { user: String, password: Secret },
    Token { token: Secret },
    File { creds: Secret },
}

impl Settings for Config {
    const KIND: &'static str = "nats";
    const SECRETS: &'static [&'static str] = &["credentials.password", "credentials.token", "credentials.creds"];

    fn read(fields: &mut Fields) -> Result<Self, Error> {
        let url = fields.url("url", &["nats", "tls"])?;
        if url.as_ref().is_some_and(|url| url.query().is_some() || !matches!(url.path(), "" | "/")) {
            return Err(invalid(&fields.at("url"), "is a scheme, a host and a port"));
        }
        let credentials = fields.object("credentials")?.map(read_credentials).transpose()?;
        if credentials.is_some() && url.is_none() {
            return Err(invalid(&fields.at("credentials"), "goes with a url: the own server knows us"));
        }
        let at = fields.at("subject");
        let subject = Template::parse(&fields.text("subject", 1..=MAX_SUBJECT)?, &at)?;
        check_subject(&subject.sample()).map_err(|what| invalid(&at, what))?;
        if url.is_none() {
            own::check(&subject.sample(), None).map_err(|what| invalid(&at, what))?;
        }
        Ok(Self {
            url: url.map(Into::into),
            subject,
            format: fields.choice("format", Format::ALL)?.unwrap_or_default(),
            jetstream: fields.flag("jetstream", false)?,
            credentials,
        })
    }

    fn open(&self, _: &[String], outside: &Outside) -> Result<Arc<dyn Channel>, Error> {
        let sender = Sender { subject: self.subject.clone(), format: self.format, jetstream: self.jetstream };
        let Some(url) = &self.url else { return own::open(sender, outside) };
        let unusable = || ErrorCode::API_ERROR.with("the destination's URL cannot be used");
        let url = Url::parse(url).map_err(|_| unusable())?;
        // `nats` is no scheme that the URL standard knows, so its hosts are read here as those of http are.
        let host = Host::parse(url.host_str().unwrap_or_default()).map_err(|_| unusable())?;
        Ok(Arc::new(foreign::Foreign::new(sender, &url, host, self.credentials.clone(), outside.clone())))
    }
}

fn read_credentials(mut fields: Fields) -> Result<Credentials, Error> {
    let user = fields.optional("user", 1..=MAX_NAME)?;
    let password = fields.optional_secret("password", MAX_NAME)?;
    let token = fields.optional_secret("token", MAX_NAME)?;
    let creds = fields.optional_secret("creds", MAX_CREDENTIALS)?;
    let path = fields.path().to_owned();
    fields.finish()?;
    match (user, password, token, creds) {
        (Some(user), Some(password), None, None) => Ok(Credentials::Password { user, password }),
        (None, None, Some(token), None) => Ok(Credentials::Token { token }),
        (None, None, None, Some(creds)) => Ok(Credentials::File { creds }),
        _ => Err(invalid(&path, "holds either user and password, or token, or creds (a credentials file's text)")),
    }
}

/// What can be published on: no wildcards, no empty tokens, nothing that ends the line it stands in.
fn check_subject(subject: &str) -> Result<(), &'static str> {
    let printable = subject.bytes().all(|byte| byte.is_ascii_graphic());
    if !printable || subject.contains(['*', '>']) || subject.split('.').any(str::is_empty) {
        return Err("is words of printable ASCII joined by single dots, without spaces and wildcards");
    }
    Ok(())
}

/// What becomes of a message, wherever it goes.
#[derive(Debug, Clone)]
struct Sender {
    subject: Template,
    format: Format,
    jetstream: bool,
}

impl Sender {
    fn subject(&self, message: &Message) -> Result<String, Failure> {
        let subject = self.subject.render(message);
        // Ids are such words; this holds should one ever not be.
        check_subject(&subject).map_err(|what| Failure::new(format!("the subject {what}")))?;
        Ok(subject)
    }

    fn headers(&self, message: &Message) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(EVENT_ID, message.event_id.to_string());
        headers.insert("Content-Type", self.format.content_type());
        if let Some(traceparent) = message.traceparent() {
            trace::set(&mut headers, traceparent);
        }
        headers
    }
}
