//! A topic of Google Cloud Pub/Sub, over REST. The access token comes for a grant that the service account's key signs
//! (RFC 7523).

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use errand_core::{Error, Timestamp};
use futures::future::BoxFuture;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use reqwest::{Method, Request};
use ring::rand::SystemRandom;
use ring::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::Mutex;
use url::Url;

use super::config::Settings;
use super::fields::{Fields, Secret, invalid};
use super::{Channel, Failure, Message, Outside, Receipt, http};

const ENDPOINT: &str = "https://pubsub.googleapis.com/";
const TOKEN_URI: &str = "https://oauth2.googleapis.com/token";
const SCOPE: &str = "https://www.googleapis.com/auth/pubsub";
const GRANT: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";
/// What a grant asks for, in seconds; Google gives no longer one.
const LIFETIME: i64 = 3_600;
/// A token is replaced so long before it expires: clocks differ, and calls take time.
const MARGIN_MS: i64 = 60_000;
/// Names and addresses.
const MAX_NAME: usize = 255;
/// An RSA key of 4096 bits has 3.3 KB.
const MAX_KEY: usize = 8 * 1024;

/// What a topic needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Config {
    project_id: String,
    topic: String,
    service_account: ServiceAccount,
    /// Whether messages carry their object as the ordering key.
    ordered: bool,
    /// In place of Google's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<String>,
}

/// What is used of the key file that Google gives out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct ServiceAccount {
    client_email: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    private_key_id: Option<String>,
    private_key: Secret,
    token_uri: String,
}

impl Settings for Config {
    const KIND: &'static str = "gcp_pubsub";
    const SECRETS: &'static [&'static str] = &["service_account.private_key"];

    fn read(fields: &mut Fields) -> Result<Self, Error> {
        let account = fields.object("service_account")?.ok_or_else(|| fields.missing("service_account"))?;
        let (service_account, its_project) = read_account(account)?;
        let project_id = match fields.optional("project_id", 1..=MAX_NAME)?.or(its_project) {
            Some(project) => word(&fields.at("project_id"), project)?,
            None => return Err(fields.missing("project_id")),
        };
        let topic = fields.text("topic", 3..=MAX_NAME)?;
        let endpoint = fields.http_url("endpoint")?;
        if endpoint.as_ref().is_some_and(|url| url.query().is_some() || url.path() != "/") {
            return Err(invalid(&fields.at("endpoint"), "is a scheme, a host and a port"));
        }
        Ok(Self {
            project_id,
            topic: word(&fields.at("topic"), topic)?,
            service_account,
            ordered: fields.flag("ordered", false)?,
            endpoint: endpoint.map(Into::into),
        })
    }

    fn open(&self, _: &[String], outside: &Outside) -> Result<Arc<dyn Channel>, Error> {
        let field = "gcp_pubsub.service_account.private_key";
        let signer = key_pair(&self.service_account.private_key).ok_or_else(|| invalid(field, KEY))?;
        let endpoint = self.endpoint.as_deref().unwrap_or(ENDPOINT);
        let path = format!("/v1/projects/{}/topics/{}:publish", self.project_id, self.topic);
        let url = Url::parse(endpoint).and_then(|url| url.join(&path));
        let url = url.map_err(|error| invalid("gcp_pubsub.endpoint", format_args!("is no URL: {error}")))?;
        let token_uri = Url::parse(&self.service_account.token_uri);
        Ok(Arc::new(Topic {
            url,
            token_uri: token_uri.map_err(|_| invalid("gcp_pubsub.service_account.token_uri", "is no URL"))?,
            config: self.clone(),
            signer,
            token: Mutex::new(None),
            outside: outside.clone(),
        }))
    }
}

/// What a key has to be.
const KEY: &str = "is an RSA key of 2048 to 4096 bits as PKCS #8 PEM, as it stands in the key file";

/// The account, and the project that its key file names. The fields of that file which nothing here needs are let pass.
fn read_account(mut fields: Fields) -> Result<(ServiceAccount, Option<String>), Error> {
    let private_key = fields.secret("private_key", MAX_KEY)?;
    if key_pair(&private_key).is_none() {
        return Err(invalid(&fields.at("private_key"), KEY));
    }
    let account = ServiceAccount {
        client_email: fields.text("client_email", 1..=MAX_NAME)?,
        private_key_id: fields.optional("private_key_id", 1..=MAX_NAME)?,
        private_key,
        token_uri: fields.http_url("token_uri")?.map_or_else(|| TOKEN_URI.to_owned(), Into::into),
    };
    let project = fields.optional("project_id", 1..=MAX_NAME)?;
    for unused in
        ["type", "client_id", "auth_uri", "auth_provider_x509_cert_url", "client_x509_cert_url", "universe_domain"]
    {
        fields.optional(unused, 0..=2_048)?;
    }
    fields.finish()?;
    Ok((account, project))
}

/// A part of a path.
fn word(field: &str, text: String) -> Result<String, Error> {
    let fits =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~' | b'+' | b'%' | b':');
    if text.bytes().all(fits) && !text.starts_with('.') {
        Ok(text)
    } else {
        Err(invalid(field, "is letters, digits and - _ . ~ + % :, and begins with no dot"))
    }
}

fn key_pair(pem: &Secret) -> Option<RsaKeyPair> {
    let der = PrivatePkcs8KeyDer::from_pem_slice(pem.expose().as_bytes()).ok()?;
    RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()).ok()
}

struct Topic {
    config: Config,
    url: Url,
    token_uri: Url,
    signer: RsaKeyPair,
    token: Mutex<Option<Token>>,
    outside: Outside,
}

impl std::fmt::Debug for Topic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Topic").field("config", &self.config).finish_non_exhaustive()
    }
}

struct Token {
    header: HeaderValue,
    expires: Timestamp,
}

/// What the token's address answers.
#[derive(Deserialize)]
struct Granted {
    access_token: String,
    expires_in: i64,
}

impl Topic {
    /// The token that there is, or a new one. Who comes meanwhile waits for it rather than ask as well.
    async fn token(&self, now: Timestamp) -> Result<HeaderValue, Failure> {
        let mut token = self.token.lock().await;
        if let Some(token) = token.as_ref().filter(|token| now.plus_millis(MARGIN_MS) < token.expires) {
            return Ok(token.header.clone());
        }
        let new = self.ask_for_token(now).await?;
        Ok(token.insert(new).header.clone())
    }

    async fn ask_for_token(&self, now: Timestamp) -> Result<Token, Failure> {
        let assertion = self.assertion(now).ok_or_else(|| Failure::new("the service account's key does not sign"))?;
        let mut request = Request::new(Method::POST, self.token_uri.clone());
        let form = url::form_urlencoded::Serializer::new(String::new())
            .append_pair("grant_type", GRANT)
            .append_pair("assertion", &assertion)
            .finish();
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        *request.body_mut() = Some(form.into());
        let answer = http::call(&self.outside, request, now).await;
        let answer =
            answer.map_err(|failure| Failure { message: format!("no token: {}", failure.message), ..failure })?;
        if !answer.is_success() {
            let failure = answer.outcome().err().unwrap_or_else(|| Failure::new("no answer"));
            // That the token's address is gone says nothing of the topic.
            return Err(Failure { message: format!("no token: {}", failure.message), gone: false, ..failure });
        }
        let granted: Granted =
            serde_json::from_slice(&answer.body).map_err(|_| Failure::new("no token: the answer holds none"))?;
        let header = HeaderValue::from_str(&format!("Bearer {}", granted.access_token));
        let mut header = header.map_err(|_| Failure::new("no token: the answer holds none"))?;
        header.set_sensitive(true);
        let lifetime = granted.expires_in.clamp(0, LIFETIME);
        Ok(Token { header, expires: now.plus_millis(lifetime * 1_000) })
    }

    /// The signed claim that we are this service account.
    fn assertion(&self, now: Timestamp) -> Option<String> {
        let account = &self.config.service_account;
        let mut header = json!({"alg": "RS256", "typ": "JWT"});
        if let Some(id) = &account.private_key_id {
            header["kid"] = id.as_str().into();
        }
        let seconds = now.0.div_euclid(1_000);
        let claims = json!({
            "iss": account.client_email,
            "scope": SCOPE,
            "aud": account.token_uri,
            "iat": seconds,
            "exp": seconds + LIFETIME,
        });
        let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let text = format!("{}.{}", part(header), part(claims));
        let mut signature = vec![0; self.signer.public().modulus_len()];
        self.signer.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), text.as_bytes(), &mut signature).ok()?;
        Some(format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    fn body(&self, message: &Message) -> Value {
        let mut attributes = json!({
            "event_id": message.event_id.to_string(),
            "event_type": message.event_type,
            "tenant": message.tenant,
        });
        if let Some(traceparent) = message.traceparent() {
            // As Google's own clients call it.
            attributes["googclient_traceparent"] = traceparent.into();
        }
        let mut sent = json!({"data": STANDARD.encode(&message.json), "attributes": attributes});
        if self.config.ordered {
            sent["orderingKey"] = message.object_id.as_str().into();
        }
        json!({"messages": [sent]})
    }
}

impl Channel for Topic {
    fn send<'a>(&'a self, message: &'a Message) -> BoxFuture<'a, Result<Receipt, Failure>> {
        Box::pin(async move {
            let mut request = Request::new(Method::POST, self.url.clone());
            request.headers_mut().insert(AUTHORIZATION, self.token(message.now).await?);
            request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            *request.body_mut() = Some(self.body(message).to_string().into());
            let answer = http::call(&self.outside, request, message.now).await?;
            if answer.status == 401 {
                // Revoked before its time: the next attempt asks for another.
                *self.token.lock().await = None;
            }
            answer.outcome()
        })
    }
}
