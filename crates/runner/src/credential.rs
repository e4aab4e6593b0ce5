//! A run's credential: asked of the vault once, opened here, wiped with the execution. Nothing of it, and no one-time
//! code, leaves this process except to the agent (ADR 0012).

use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use errand_core::credential::{AuthFailure, AuthMethod};
use errand_core::run::{LeaseToken, Question};
use errand_core::{CredentialId, Error, ErrorCode, RunId};
use errand_secret::handover::{KeyPair, PublicKey, Purpose};
use errand_secret::scrub::{Scrubber, Stream};
use errand_secret::totp::Totp;
use errand_secret::{OpenedCredential, SecretText};
use futures::future::BoxFuture;
use tokio::sync::OnceCell;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use zeroize::Zeroizing;

use crate::backoff::Backoff;

/// How long a vault that is away is waited for.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a report of the sign-in is tried; the run's end waits for it, since nobody else may report then.
const REPORT_PATIENCE: Duration = Duration::from_secs(5);
/// Questions for a code that one run's credential answers by itself. Beyond, its codes are refused, and a person is
/// asked.
const LOCAL_ANSWERS: u32 = 3;
/// A code that is valid for less is not given: it would come too late.
const LEAST_VALIDITY: u64 = 2;
/// A secret that is shorter may stand in an output by chance.
const LEAST_IN_OUTPUT: usize = 8;

/// For which run a credential is asked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ask {
    pub(crate) run_id: RunId,
    pub(crate) token: LeaseToken,
    pub(crate) credential_id: CredentialId,
}

/// Why the vault did not do it.
#[derive(Debug)]
pub(crate) enum Refused {
    /// It may, later.
    NotNow(String),
    /// It never will.
    Never(Error),
}

/// A report of a sign-in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tried {
    pub(crate) generation: u64,
    pub(crate) number: u32,
    pub(crate) failure: Option<AuthFailure>,
}

/// Who keeps credentials.
pub(crate) trait Vault: Send + Sync + 'static {
    /// The credential, sealed for the key.
    fn open(&self, ask: Ask, key: PublicKey) -> BoxFuture<'static, Result<Vec<u8>, Refused>>;

    /// Tells whether the source has taken it.
    fn report(&self, ask: Ask, tried: Tried) -> BoxFuture<'static, Result<(), Refused>>;
}

/// A credential that was opened for this run. Cheap to clone, wiped when the last clone goes, never shown.
#[derive(Clone)]
pub struct Credential(Arc<Opened>);

struct Opened {
    id: CredentialId,
    credential: OpenedCredential,
    totp: Option<Totp>,
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Credential").field(&self.0.id).field(&self.0.credential.auth_method).finish()
    }
}

impl Credential {
    /// Its id.
    #[must_use]
    pub fn id(&self) -> CredentialId {
        self.0.id
    }

    /// How it signs in.
    #[must_use]
    pub fn auth_method(&self) -> AuthMethod {
        self.0.credential.auth_method
    }

    /// Who signs in.
    #[must_use]
    pub fn username(&self) -> Option<&str> {
        self.0.credential.secrets.username.as_ref().map(SecretText::expose)
    }

    /// With which password.
    #[must_use]
    pub fn password(&self) -> Option<&str> {
        self.0.credential.secrets.password.as_ref().map(SecretText::expose)
    }

    /// The key of an API.
    #[must_use]
    pub fn api_key(&self) -> Option<&str> {
        self.0.credential.secrets.api_key.as_ref().map(SecretText::expose)
    }

    /// Whether one-time codes can be made: [`crate::Control::totp`]. Their secret stays here.
    #[must_use]
    pub fn has_totp(&self) -> bool {
        self.0.totp.is_some()
    }
}

/// Takes a run's secrets out of what a program says. Cheap to clone; knows the codes that were given meanwhile, too.
#[derive(Clone, Default)]
pub struct SecretFilter(Arc<Mutex<Scrubber>>);

impl fmt::Debug for SecretFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.lock(), f)
    }
}

impl SecretFilter {
    fn lock(&self) -> MutexGuard<'_, Scrubber> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A text without the secrets.
    #[must_use]
    pub fn clean(&self, text: &str) -> String {
        self.lock().clean(text)
    }

    /// Takes the next piece of a text; what can be told of it.
    #[must_use]
    pub fn feed(&self, stream: &mut SecretStream, piece: &[u8]) -> Vec<u8> {
        stream.0.feed(&self.lock(), piece)
    }

    /// The rest of a text.
    #[must_use]
    pub fn finish(&self, stream: &mut SecretStream) -> Vec<u8> {
        stream.0.finish(&self.lock())
    }
}

/// A text that comes in pieces through a [`SecretFilter`].
#[derive(Debug, Default)]
pub struct SecretStream(Stream);

/// What one execution has of secrets.
pub(crate) struct Safe {
    credential_id: Option<CredentialId>,
    vault: Option<Arc<dyn Vault>>,
    /// Seconds since 1970.
    clock: fn() -> u64,
    keys: OnceLock<KeyPair>,
    opened: OnceCell<Credential>,
    filter: SecretFilter,
    /// The last period whose code was given.
    last_step: Mutex<Option<u64>>,
    local_answers: AtomicU32,
    reports: AtomicU32,
    under_way: Mutex<Vec<JoinHandle<()>>>,
}

impl Safe {
    pub(crate) fn new(credential_id: Option<CredentialId>, vault: Option<Arc<dyn Vault>>) -> Self {
        Self {
            credential_id,
            vault,
            clock: seconds,
            keys: OnceLock::new(),
            opened: OnceCell::new(),
            filter: SecretFilter(Arc::new(Mutex::new(Scrubber::new()))),
            last_step: Mutex::default(),
            local_answers: AtomicU32::new(0),
            reports: AtomicU32::new(0),
            under_way: Mutex::default(),
        }
    }

    pub(crate) const fn filter(&self) -> &SecretFilter {
        &self.filter
    }

    /// Whether this key was made here.
    pub(crate) fn made(&self, key: &PublicKey) -> bool {
        self.keys.get().is_some_and(|keys| keys.public() == key)
    }

    /// The credential; asked for once.
    pub(crate) async fn credential(&self, run_id: RunId, token: LeaseToken) -> Result<Credential, Error> {
        let unsupported = |what: &str| ErrorCode::AUTH_UNSUPPORTED.with(what);
        let id = self.credential_id.ok_or_else(|| unsupported("the run names no credential"))?;
        let vault = self.vault.as_ref().ok_or_else(|| unsupported("this runner has no vault"))?;
        let ask = Ask { run_id, token, credential_id: id };
        let opened = self.opened.get_or_try_init(|| self.open(vault.as_ref(), ask)).await?;
        Ok(opened.clone())
    }

    async fn open(&self, vault: &dyn Vault, ask: Ask) -> Result<Credential, Error> {
        let keys = self.keys.get_or_init(KeyPair::generate);
        let asking = repeat(ask.run_id, PATIENCE, || vault.open(ask, *keys.public()));
        let sealed = match asking.await {
            Ok(sealed) => sealed,
            Err(Refused::Never(error)) => return Err(error),
            Err(Refused::NotNow(why)) => {
                tracing::warn!(run = %ask.run_id, why, "the vault does not hand the credential over");
                return Err(ErrorCode::API_UNAVAILABLE.with("the vault does not answer"));
            }
        };
        let wrong = || ErrorCode::API_ERROR.with("what the vault has handed over cannot be opened");
        let purpose = Purpose::to_holder(ask.run_id, ask.token, ask.credential_id);
        let plain = keys.open(&purpose, &sealed).map_err(|_| wrong())?;
        let credential = OpenedCredential::decode(&plain).map_err(|_| wrong())?;
        let totp = credential.secrets.totp_secret.as_ref().map(|text| Totp::parse(text.expose()));
        let totp = totp.transpose().map_err(|_| wrong())?;
        credential.secrets.guarded().for_each(|secret| self.filter.lock().add(secret.expose()));
        Ok(Credential(Arc::new(Opened { id: ask.credential_id, credential, totp })))
    }

    /// A code that was not given before in this run: where the present one was, or is about to end, the next one is
    /// waited for.
    pub(crate) async fn code(&self, credential: &Credential) -> Result<Zeroizing<String>, Error> {
        let totp = credential.0.totp.as_ref();
        let totp = totp.ok_or_else(|| ErrorCode::AUTH_UNSUPPORTED.with("the credential makes no one-time codes"))?;
        loop {
            let seconds = (self.clock)();
            let step = totp.step(seconds);
            let left = totp.begin(step + 1).saturating_sub(seconds);
            {
                let mut last = self.last_step.lock().unwrap_or_else(PoisonError::into_inner);
                if last.is_none_or(|last| last < step) && left >= LEAST_VALIDITY {
                    *last = Some(step);
                    let code = totp.code(step);
                    self.filter.lock().add(&code);
                    return Ok(code);
                }
            }
            sleep(Duration::from_secs(left.max(1))).await;
        }
    }

    /// Whether the credential may answer this question by itself: one for a code and nothing else.
    pub(crate) fn may_answer(&self, question: &Question) -> bool {
        let [field] = question.fields.as_slice() else { return false };
        self.credential_id.is_some()
            && question.r#type == "mfa"
            && field.r#type == "code"
            && self.local_answers.fetch_add(1, Ordering::Relaxed) < LOCAL_ANSWERS
    }

    /// Reports the sign-in in the background. Without effect where the credential was not opened.
    pub(crate) fn report(&self, run_id: RunId, token: LeaseToken, failure: Option<AuthFailure>) {
        let (Some(opened), Some(vault)) = (self.opened.get(), self.vault.clone()) else { return };
        let number = self.reports.fetch_add(1, Ordering::Relaxed) + 1;
        let ask = Ask { run_id, token, credential_id: opened.id() };
        let tried = Tried { generation: opened.0.credential.generation, number, failure };
        let reporting = tokio::spawn(async move {
            if let Err(refused) = repeat(run_id, REPORT_PATIENCE, || vault.report(ask, tried)).await {
                tracing::warn!(run = %run_id, credential = %ask.credential_id, ?refused, "a sign-in was not reported");
            }
        });
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner).push(reporting);
    }

    /// Waits, not for long, until the vault has heard all reports.
    pub(crate) async fn reported(&self) {
        let under_way = std::mem::take(&mut *self.under_way.lock().unwrap_or_else(PoisonError::into_inner));
        let all = futures::future::join_all(under_way);
        if timeout(REPORT_PATIENCE, all).await.is_err() {
            tracing::warn!("the vault has not heard how the sign-in went");
        }
    }

    /// Whether a secret stands in an output, which is kept in plain.
    pub(crate) fn stands_in(&self, output: &[u8]) -> bool {
        let Some(opened) = self.opened.get() else { return false };
        let mut scrubber = Scrubber::new();
        let guarded = opened.0.credential.secrets.guarded();
        guarded.filter(|secret| secret.expose().len() >= LEAST_IN_OUTPUT).for_each(|text| scrubber.add(text.expose()));
        scrubber.finds(output)
    }
}

fn seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Tries until it is done, refused for good, or too late.
async fn repeat<T>(
    run_id: RunId,
    patience: Duration,
    ask: impl Fn() -> BoxFuture<'static, Result<T, Refused>>,
) -> Result<T, Refused> {
    let until = Instant::now() + patience;
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2), run_id.uuid().as_u128());
    loop {
        match ask().await {
            Err(Refused::NotNow(_)) if Instant::now() < until => backoff.pause().await,
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests;
