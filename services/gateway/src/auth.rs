//! Who asks. Keys are looked up by the hash of their secret and remembered for less than half a second, so that a key
//! that was revoked is refused within a second by every gateway, also where the hint to forget it was lost.

use std::collections::HashMap;
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use errand_client::ApiSecret;
use errand_core::{ApiKeyId, Error, ErrorCode, Tenant};
use errand_store::StoreError;
use governor::{DefaultDirectRateLimiter, Quota};
use lru::LruCache;
use subtle::ConstantTimeEq;

use crate::scope::{Scope, Scopes};
use crate::store::{Store, StoredKey};

const REMEMBERED: NonZeroUsize = NonZeroUsize::new(20_000).expect("not zero");
/// How long what the store said of a key is taken for what it would say now.
const FRESH: Duration = Duration::from_millis(400);
/// Keys that are not remembered, a second.
const STRANGERS: NonZeroU32 = NonZeroU32::new(500).expect("not zero");
/// `last_used_at` is told to the minute.
const USED_STEP_MS: i64 = 60_000;

/// Milliseconds since the Unix epoch.
#[must_use]
pub fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// Who asks, and what for.
#[derive(Debug, Clone)]
pub struct Access {
    /// By which key.
    pub key_id: ApiKeyId,
    /// For whom.
    pub tenant: Tenant,
    /// What the key may do.
    pub scopes: Scopes,
    /// The hash of the key's secret.
    pub hash: [u8; 32],
    /// For ids of what the request makes: the same at each repetition under one idempotency key.
    pub seed: Option<uuid::Uuid>,
}

impl Access {
    /// Refuses what the key may not do.
    ///
    /// # Errors
    /// `request`/`forbidden`.
    pub fn need(&self, scope: Scope) -> Result<(), Error> {
        if self.scopes.has(scope) {
            return Ok(());
        }
        Err(ErrorCode::FORBIDDEN.with(format!("this key lacks the scope {}", scope.as_str())))
    }
}

#[derive(Debug)]
struct Known {
    /// When the store was asked.
    at: Instant,
    /// When somebody began to ask it again.
    asked_again: Option<Instant>,
    key: Option<Arc<KnownKey>>,
}

#[derive(Debug)]
struct KnownKey {
    id: ApiKeyId,
    tenant: Tenant,
    scopes: Scopes,
    expires_at: Option<i64>,
    last_used_at: i64,
}

/// Knows keys.
#[derive(Debug)]
pub struct Keys {
    store: Store,
    known: Mutex<LruCache<[u8; 32], Known>>,
    used: Mutex<HashMap<ApiKeyId, i64>>,
    /// Looks at the store for keys that are not remembered: those who guess must not keep it from the others.
    strangers: DefaultDirectRateLimiter,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The secret in a request's `Authorization: Bearer ...`.
///
/// # Errors
/// `request`/`api_key_missing`, `request`/`api_key_invalid`.
pub fn secret_of(headers: &HeaderMap) -> Result<ApiSecret, Error> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = values.next() else {
        return Err(ErrorCode::API_KEY_MISSING.with("an API key is missing: Authorization: Bearer sk_..."));
    };
    let invalid = || ErrorCode::API_KEY_INVALID.with("this API key is not valid");
    if values.next().is_some() {
        return Err(invalid());
    }
    let (scheme, secret) = value.to_str().ok().and_then(|text| text.split_once(' ')).ok_or_else(invalid)?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(invalid());
    }
    ApiSecret::parse(secret.trim()).map_err(|_| invalid())
}

impl Keys {
    /// Over this store.
    #[must_use]
    pub fn new(store: Store) -> Self {
        let strangers = DefaultDirectRateLimiter::direct(Quota::per_second(STRANGERS));
        let (known, used) = (Mutex::new(LruCache::new(REMEMBERED)), Mutex::new(HashMap::new()));
        Self { store, known, used, strangers }
    }

    /// Who has this secret.
    ///
    /// # Errors
    /// `request`/`api_key_invalid` for nobody; `api`/`unavailable` where the store does not answer.
    pub async fn access(&self, secret: &ApiSecret) -> Result<Access, Error> {
        self.access_by_hash(secret.hash()).await
    }

    /// Who has the secret with this hash.
    ///
    /// # Errors
    /// As [`Self::access`].
    pub async fn access_by_hash(&self, hash: [u8; 32]) -> Result<Access, Error> {
        let invalid = || ErrorCode::API_KEY_INVALID.with("this API key is not valid");
        let known = match self.remembered(&hash) {
            Some(known) => known,
            None if !lock(&self.known).contains(&hash) && self.strangers.check().is_err() => {
                return Err(ErrorCode::RATE_LIMIT_EXCEEDED.with("too many unknown API keys are being tried"));
            }
            None => self.look_up(hash).await?,
        };
        let key = known.ok_or_else(invalid)?;
        let now = now_ms();
        if key.expires_at.is_some_and(|at| at <= now) {
            return Err(ErrorCode::API_KEY_INVALID.with("this API key has expired"));
        }
        if now - key.last_used_at >= USED_STEP_MS {
            lock(&self.used).insert(key.id, now);
        }
        Ok(Access { key_id: key.id, tenant: key.tenant.clone(), scopes: key.scopes, hash, seed: None })
    }

    /// What is remembered and fresh. Of those who find it stale one asks the store again, and the others take it as it
    /// is for as long once more.
    fn remembered(&self, hash: &[u8; 32]) -> Option<Option<Arc<KnownKey>>> {
        let mut known = lock(&self.known);
        let entry = known.get_mut(hash)?;
        let age = entry.at.elapsed();
        let being_asked = entry.asked_again.is_some_and(|at| at.elapsed() < FRESH);
        if age < FRESH || (age < FRESH * 2 && being_asked) {
            return Some(entry.key.clone());
        }
        entry.asked_again = Some(Instant::now());
        None
    }

    async fn look_up(&self, hash: [u8; 32]) -> Result<Option<Arc<KnownKey>>, Error> {
        let asked = Instant::now();
        let found = self.store.key_by_hash(&hash).await.map_err(unavailable)?;
        let key = found
            // The index has compared the hashes, in a time that tells nothing of the secret; this is for the same at all times.
            .filter(|key| bool::from(key.hash.as_slice().ct_eq(hash.as_slice())))
            .filter(|key| key.revoked_at.is_none())
            .and_then(|key| known_key(&key))
            .map(Arc::new);
        lock(&self.known).put(hash, Known { at: asked, asked_again: None, key: key.clone() });
        Ok(key)
    }

    /// Forgets a key, so that the next request looks it up.
    pub fn forget(&self, hash: &[u8]) {
        if let Ok(hash) = <[u8; 32]>::try_from(hash) {
            lock(&self.known).pop(&hash);
        }
    }

    /// Writes down which keys were used since the last time.
    ///
    /// # Errors
    /// [`StoreError`]; what was not written is lost, and noted again when the key is used again.
    pub async fn note_used(&self) -> Result<(), StoreError> {
        let used = std::mem::take(&mut *lock(&self.used));
        for (id, at) in used {
            self.store.key_used(id, at).await?;
        }
        Ok(())
    }
}

fn known_key(key: &StoredKey) -> Option<KnownKey> {
    let scopes = Scopes::parse(key.scopes.split(' ')).ok()?;
    Some(KnownKey {
        id: key.id,
        tenant: key.tenant.clone(),
        scopes,
        expires_at: key.expires_at,
        last_used_at: key.last_used_at.unwrap_or(0),
    })
}

/// What a user is told when the store fails: its words stay in the log.
#[must_use]
pub fn unavailable(error: StoreError) -> Error {
    tracing::error!(%error, "the store failed");
    ErrorCode::API_UNAVAILABLE.with("the store does not answer; try again")
}
