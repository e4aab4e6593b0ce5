//! `Idempotency-Key`: the first answer again to the same request, if it was a success.
//!
//! A key is claimed in the store before the request is done, together with a seed that the ids of what it makes come
//! from. So duplicates wait for each other over all gateways, and a request that was cut off (a gateway died, a service
//! did not answer) and comes again makes nothing twice.

use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use errand_client::ApiSecret;
use errand_core::{Error, ErrorCode, Tenant};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::answer::{Failure, Payload};
use crate::auth::{now_ms, unavailable};
use crate::seal;
use crate::store::{Claim, Remembered, Store};

/// How long an answer is remembered.
const REMEMBERED_MS: i64 = 24 * 3600 * 1000;
/// How long a request may be under way before another gateway takes it for cut off. Longer than any takes.
const CLAIM_MS: i64 = 30_000;
/// How long a duplicate waits for the first.
const PATIENCE: Duration = Duration::from_secs(12);
const LOOK: Duration = Duration::from_millis(20);
const MAX_KEY: usize = 256;
const HEADER: &str = "idempotency-key";
/// On an answer that was given before.
pub const REPLAYED: &str = "idempotent-replayed";

/// Remembers answers.
#[derive(Debug, Clone)]
pub struct Idempotency {
    store: Store,
}

/// One request under its key.
#[derive(Debug)]
pub struct Keyed {
    tenant: Tenant,
    key: String,
    key_hash: [u8; 32],
    secret: ApiSecret,
    holder: Uuid,
}

/// What is to be done with a request that has a key.
#[derive(Debug)]
pub enum Turn {
    /// Do it, with ids from this seed, and say what became of it.
    Do(Keyed, Uuid),
    /// It was done.
    Replay(Response),
}

/// The key of a request that may have one.
///
/// # Errors
/// `idempotency`/`idempotency_key_error`.
pub fn key_of(method: &Method, headers: &HeaderMap) -> Result<Option<String>, Error> {
    let mut values = headers.get_all(HEADER).iter();
    let Some(value) = values.next().filter(|_| !matches!(*method, Method::GET | Method::HEAD)) else { return Ok(None) };
    let invalid = || {
        ErrorCode::IDEMPOTENCY_KEY_ERROR
            .with(format!("Idempotency-Key must be given once and have 1..{MAX_KEY} characters of ASCII"))
            .at("Idempotency-Key")
    };
    let text = std::str::from_utf8(value.as_bytes()).map_err(|_| invalid())?;
    // What else a header may hold, clients and proxies spell in more ways than one.
    let spelled = text.bytes().all(|byte| byte == b'\t' || (b' '..=b'~').contains(&byte));
    let fits = (1..=MAX_KEY).contains(&text.len()) && spelled && !text.trim().is_empty();
    if !fits || values.next().is_some() {
        return Err(invalid());
    }
    Ok(Some(text.to_owned()))
}

/// What makes two requests the same: method, path, query and body. Of a body that holds secrets the hash is kept, too,
/// and passwords are guessed; `salt` is the API key's own secret there, so that only who has that can try. (Repeated with
/// another key it counts as another request.)
#[must_use]
pub fn request_hash(method: &Method, target: &str, body: &[u8], salt: &[u8]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in [method.as_str().as_bytes(), target.as_bytes(), body, salt] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

impl Idempotency {
    /// Over this store.
    #[must_use]
    pub const fn new(store: Store) -> Self {
        Self { store }
    }

    /// Waits for the request's turn.
    ///
    /// # Errors
    /// `idempotency`/`idempotency_error` for a key of another request, or one whose first request does not end.
    pub async fn turn(
        &self,
        tenant: &Tenant,
        key: String,
        secret: &ApiSecret,
        request: [u8; 32],
    ) -> Result<Turn, Failure> {
        let key_hash: [u8; 32] = Sha256::digest(key.as_bytes()).into();
        let until = tokio::time::Instant::now() + PATIENCE;
        loop {
            let now = now_ms();
            let times = (now, now + CLAIM_MS, now - REMEMBERED_MS);
            match self.store.claim(tenant, &key_hash, &request, times).await.map_err(unavailable)? {
                Claim::Mine { holder, seed } => {
                    let keyed = Keyed { tenant: tenant.clone(), key, key_hash, secret: secret.clone(), holder };
                    return Ok(Turn::Do(keyed, seed));
                }
                Claim::Done(answer) => return Ok(Turn::Replay(replay(&answer, secret, &key)?)),
                Claim::Other => {
                    let message = "this Idempotency-Key was used for another request";
                    return Err(ErrorCode::IDEMPOTENCY_ERROR.with(message).at("Idempotency-Key").into());
                }
                Claim::Busy if tokio::time::Instant::now() >= until => {
                    let message = "the first request with this Idempotency-Key is still under way";
                    return Err(ErrorCode::IDEMPOTENCY_ERROR.with(message).at("Idempotency-Key").into());
                }
                Claim::Busy => tokio::time::sleep(LOOK).await,
            }
        }
    }

    /// Remembers what became of a request, if it was a success.
    pub async fn settle(&self, keyed: Keyed, (status, body): (StatusCode, Option<Payload>), request_id: &str) {
        let Keyed { tenant, key, key_hash, secret, holder } = keyed;
        let settled = match body {
            Some(Payload(body)) if status.is_success() => match to_remember(status, body, request_id, &secret, &key) {
                Some(answer) => self.store.remember(&tenant, &key_hash, holder, answer).await,
                None => self.store.let_go(&tenant, &key_hash, holder).await,
            },
            // It may have been done: the next one takes the same ids.
            _ if status.is_server_error() => self.store.let_go(&tenant, &key_hash, holder).await,
            _ => self.store.abandon(&tenant, &key_hash, holder).await,
        };
        if let Err(error) = settled {
            // The claim runs out by itself.
            tracing::warn!(%error, "what became of a request with an idempotency key could not be kept");
        }
    }

    /// Forgets old answers, every few minutes.
    pub async fn forget(self: Arc<Self>) {
        loop {
            tokio::time::sleep(Duration::from_secs(300)).await;
            if let Err(error) = self.store.forget_answers(now_ms() - REMEMBERED_MS).await {
                tracing::warn!(%error, "old answers could not be forgotten");
            }
        }
    }
}

fn to_remember(
    status: StatusCode,
    mut body: Map<String, Value>,
    request_id: &str,
    secret: &ApiSecret,
    key: &str,
) -> Option<Remembered> {
    body.insert("request_id".to_owned(), request_id.into());
    let sealed = body.contains_key("secret");
    let text = serde_json::to_vec(&body).ok()?;
    let text = if sealed { seal::seal(secret, key, text)? } else { text };
    Some(Remembered { status: status.as_u16(), body: text, sealed })
}

fn replay(answer: &Remembered, secret: &ApiSecret, key: &str) -> Result<Response, Failure> {
    let opened = if answer.sealed { seal::open(secret, key, &answer.body) } else { Some(answer.body.clone()) };
    let Some(text) = opened else {
        let message = "the first answer holds a secret and is given again to the same API key only";
        return Err(ErrorCode::IDEMPOTENCY_ERROR.with(message).at("Idempotency-Key").into());
    };
    let body: Map<String, Value> = serde_json::from_slice(&text).map_err(|error| {
        tracing::error!(%error, "a remembered answer cannot be read");
        ErrorCode::API_ERROR.with("the first answer cannot be read")
    })?;
    let mut response = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::OK).into_response();
    response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
    response.extensions_mut().insert(Payload(body));
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_its_limits_and_get_has_none() {
        let headers = |value: &[u8]| {
            let mut headers = HeaderMap::new();
            headers.insert(HEADER, HeaderValue::from_bytes(value).unwrap());
            headers
        };
        assert_eq!(key_of(&Method::POST, &HeaderMap::new()), Ok(None));
        assert_eq!(key_of(&Method::GET, &headers(b"x")), Ok(None));
        assert_eq!(key_of(&Method::POST, &headers(b"order-1")), Ok(Some("order-1".into())));
        assert!(key_of(&Method::POST, &headers("k".repeat(256).as_bytes())).is_ok());
        for wrong in [b"".as_slice(), b" ", "k".repeat(257).as_bytes(), b"\xff", "é".as_bytes()] {
            assert_eq!(key_of(&Method::POST, &headers(wrong)).unwrap_err().code, ErrorCode::IDEMPOTENCY_KEY_ERROR);
        }
    }

    #[test]
    fn parts_of_a_request_do_not_run_into_each_other() {
        let hash = |target: &str, body: &[u8], salt: &[u8]| request_hash(&Method::POST, target, body, salt);
        assert_ne!(hash("/a", b"b", b""), hash("/ab", b"", b""));
        assert_ne!(hash("/a", b"b", b""), hash("/a", b"b", b"salt"));
        assert_eq!(hash("/a", b"b", b"salt"), hash("/a", b"b", b"salt"));
    }
}
