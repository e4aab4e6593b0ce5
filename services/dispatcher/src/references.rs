//! Whether a run's source and credential are there, are the tenant's, and belong together. The vault knows.
//!
//! A courtesy at submission, so that who waits is told at once: the vault decides again when it hands the credential
//! over. So a vault that is away costs no run, and no time either.

use std::num::NonZeroUsize;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use errand_bus::Bus;
use errand_core::{CredentialId, Error, SourceId, Tenant};
use errand_proto::v1;
use lru::LruCache;

const CACHE: NonZeroUsize = NonZeroUsize::new(10_000).expect("not zero");
/// How long an answer is believed.
const FRESH: Duration = Duration::from_secs(10);
/// How long the vault may take, and how long it is left alone when it took longer.
const ANSWER: Duration = Duration::from_secs(1);

type Key = (Tenant, Option<SourceId>, Option<CredentialId>);

/// Asks the vault.
#[derive(Debug)]
pub struct References {
    bus: Bus,
    known: Mutex<LruCache<Key, Instant>>,
    away_until: Mutex<Option<Instant>>,
}

impl References {
    /// Over this bus.
    #[must_use]
    pub fn new(bus: Bus) -> Self {
        Self { bus, known: Mutex::new(LruCache::new(CACHE)), away_until: Mutex::default() }
    }

    /// Checks what a run names. What cannot be checked now is taken for well.
    ///
    /// # Errors
    /// `request`/`source_not_found`, `request`/`credential_not_found`, or `request`/`input_invalid` where the credential
    /// is for another source.
    pub async fn check(
        &self,
        tenant: &Tenant,
        source_id: Option<SourceId>,
        credential_id: Option<CredentialId>,
    ) -> Result<(), Error> {
        if source_id.is_none() && credential_id.is_none() {
            return Ok(());
        }
        let key = (tenant.clone(), source_id, credential_id);
        if lock(&self.known).get(&key).is_some_and(|at| at.elapsed() < FRESH) || self.is_away() {
            return Ok(());
        }
        let request = v1::CheckReferencesRequest {
            tenant: tenant.to_string(),
            source_id: source_id.map(|id| id.to_string()).unwrap_or_default(),
            credential_id: credential_id.map(|id| id.to_string()).unwrap_or_default(),
        };
        let subject = self.bus.subjects().api("vault", "check_references");
        match self.bus.request_within::<_, v1::CheckReferencesResponse>(subject, &request, ANSWER).await {
            Ok(v1::CheckReferencesResponse { error: Some(error) }) => Err(error.into()),
            Ok(v1::CheckReferencesResponse { error: None }) => {
                lock(&self.known).put(key, Instant::now());
                Ok(())
            }
            Err(error) => {
                tracing::warn!(%error, "the vault was not heard; runs are taken without it");
                *lock(&self.away_until) = Some(Instant::now() + ANSWER);
                Ok(())
            }
        }
    }

    fn is_away(&self) -> bool {
        lock(&self.away_until).is_some_and(|until| Instant::now() < until)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
