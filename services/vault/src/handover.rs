//! To whom a credential is handed: the runner that holds the newest lease of a run that names it (ADR 0012). Every
//! request is told to the log, whatever comes of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use errand_core::credential::AuthReport;
use errand_core::run::LeaseToken;
use errand_core::{CredentialId, Error, ErrorCode, RunId, RunnerId, SourceId, Tenant};
use errand_secret::handover::{PublicKey, Purpose, seal};

use crate::credentials::Credentials;
use crate::limiter::Limiter;

/// Requests of one run's lease in a minute: a runner asks once, and again where the answer was lost.
const MOST_OF_ONE_LEASE: u32 = 30;
/// Requests of one tenant's runs in ten seconds.
const MOST_OF_ONE_TENANT: u32 = 5_000;

/// Who asks for which credential.
#[derive(Debug, Clone, Copy)]
pub struct Asker {
    /// For this run.
    pub run_id: RunId,
    /// Under this lease.
    pub token: LeaseToken,
    /// It says that it is this one.
    pub runner_id: RunnerId,
    /// Which it wants, or speaks of.
    pub credential_id: CredentialId,
}

/// Who executes a run, as the dispatcher knows it.
#[derive(Debug, Clone)]
pub struct Holder {
    /// The run's owner.
    pub tenant: Tenant,
    /// Where it executes.
    pub runner_id: RunnerId,
    /// Under which lease.
    pub token: LeaseToken,
    /// What it works on.
    pub source_id: Option<SourceId>,
    /// Which credential it names.
    pub credential_id: Option<CredentialId>,
}

/// Whom the vault asks before it hands anything over.
pub trait Witnesses: Send + Sync {
    /// The dispatcher: who executes this run under this lease; none where nobody does (any more).
    fn holder(&self, run_id: RunId, token: LeaseToken) -> impl Future<Output = Result<Option<Holder>, Error>> + Send;

    /// That runner itself: whether it made this key for this lease.
    fn confirms(&self, asker: &Asker, key: &PublicKey) -> impl Future<Output = Result<bool, Error>> + Send;
}

/// Hands credentials over.
#[derive(Debug)]
pub struct Handover<W> {
    credentials: Arc<Credentials>,
    witnesses: W,
    leases: Limiter<(RunId, LeaseToken)>,
    tenants: Limiter<Tenant>,
}

impl<W: Witnesses> Handover<W> {
    /// Over these credentials.
    #[must_use]
    pub fn new(credentials: Arc<Credentials>, witnesses: W) -> Self {
        Self {
            credentials,
            witnesses,
            leases: Limiter::new(MOST_OF_ONE_LEASE, Duration::from_secs(60)),
            tenants: Limiter::new(MOST_OF_ONE_TENANT, Duration::from_secs(10)),
        }
    }

    /// The credential, sealed for the key.
    ///
    /// # Errors
    /// `request`/`forbidden` where the asker is not who holds the run; `request`/`credential_not_found`;
    /// `rate_limit`/`rate_limit_exceeded`.
    pub async fn open(&self, asker: Asker, key: &PublicKey) -> Result<Vec<u8>, Error> {
        let opened = self.try_open(asker, key).await;
        audit("open", &asker, opened.as_ref().err());
        opened
    }

    async fn try_open(&self, asker: Asker, key: &PublicKey) -> Result<Vec<u8>, Error> {
        let holder = self.holder(&asker).await?;
        if !self.witnesses.confirms(&asker, key).await? {
            return Err(forbidden("its runner has not made this key for this lease"));
        }
        let opened = self.credentials.open(&holder.tenant, asker.credential_id).await?;
        let purpose = Purpose::to_holder(asker.run_id, asker.token, asker.credential_id);
        seal(key, &purpose, &opened.encode())
            .map_err(|error| ErrorCode::INPUT_INVALID.with(error.to_string()).at("public_key"))
    }

    /// Takes what the holder's agent says of its sign-in. False: a repetition, or older than what is known.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub async fn report(&self, asker: Asker, report: &AuthReport) -> Result<bool, Error> {
        let reported = async {
            let holder = self.holder(&asker).await?;
            self.credentials.report(&holder.tenant, asker.credential_id, report).await
        };
        let reported = reported.await;
        audit("report", &asker, reported.as_ref().err());
        reported
    }

    /// Who holds the run, if it is the asker and the run names the credential.
    async fn holder(&self, asker: &Asker) -> Result<Holder, Error> {
        self.leases.admit((asker.run_id, asker.token), Instant::now())?;
        let holder = self.witnesses.holder(asker.run_id, asker.token).await?;
        let holder = holder.ok_or_else(|| forbidden("the run is not executed under this lease (any more)"))?;
        if holder.token != asker.token || holder.runner_id != asker.runner_id {
            return Err(forbidden("the lease is another runner's"));
        }
        if holder.credential_id != Some(asker.credential_id) {
            return Err(forbidden("the run does not name this credential"));
        }
        self.tenants.admit(holder.tenant.clone(), Instant::now())?;
        Ok(holder)
    }
}

fn forbidden(why: &str) -> Error {
    ErrorCode::FORBIDDEN.with(format!("the credential is not handed over: {why}"))
}

fn audit(what: &str, asker: &Asker, refused: Option<&Error>) {
    let Asker { run_id, token, runner_id, credential_id } = asker;
    match refused {
        None => tracing::info!(
            target: "errand_vault::audit", what, run = %run_id, token, runner = %runner_id, credential = %credential_id,
            "granted"
        ),
        Some(error) => tracing::warn!(
            target: "errand_vault::audit", what, run = %run_id, token, runner = %runner_id, credential = %credential_id,
            %error, "refused"
        ),
    }
}
