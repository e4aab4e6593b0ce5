//! Credentials: create, change, delete, and what agents report of them. Each change that is told commits with its
//! event.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use errand_core::credential::{AuthMethod, AuthReport, Credential, CredentialStatus, Reported};
use errand_core::{CredentialId, Error, ErrorCode, EventId, SourceId, Tenant, Timestamp};
use errand_proto::event::of_credential;
use errand_seal::{Keyring, SealError};
use errand_secret::handover::{KeyPair, Purpose};
use errand_secret::{OpenedCredential, Secrets};
use errand_store::{Outbox, Staged, StoreError};
use tokio::sync::Mutex;
use uuid::Uuid;

use crate::envelope::Sealed;
use crate::sources;
use crate::store::{Changed, Created, Store};

/// How often a change is tried again after another one came first.
const TRIES: usize = 8;

/// Now, by this machine's clock.
#[must_use]
pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// What a user is told when the store fails: its words stay in the log.
pub fn unavailable(error: StoreError) -> Error {
    tracing::error!(%error, "the store failed");
    ErrorCode::API_UNAVAILABLE.with("the store does not answer; try again")
}

/// What a user is told when others are always quicker.
#[must_use]
pub fn busy() -> Error {
    ErrorCode::API_UNAVAILABLE.with("it is changed by others all the time; try again")
}

/// What a user is told of a credential that is not theirs.
#[must_use]
pub fn not_found(id: CredentialId) -> Error {
    ErrorCode::CREDENTIAL_NOT_FOUND.with(format!("there is no credential {id}")).at("credential_id")
}

/// Changes credentials.
#[derive(Debug)]
pub struct Credentials {
    store: Store,
    /// Its commits must come one after another.
    outbox: Mutex<Outbox>,
    master: Arc<Keyring>,
    /// What secrets come in under.
    keys: Arc<KeyPair>,
}

/// A credential to be made.
#[derive(Debug, Clone)]
pub struct NewCredential {
    /// Chosen by the client: what is sealed is bound to it.
    pub id: CredentialId,
    /// For people.
    pub name: String,
    /// How it signs in.
    pub auth_method: AuthMethod,
    /// What it is for.
    pub source_id: Option<SourceId>,
    /// Its secrets, sealed for this vault; empty: none.
    pub sealed: Vec<u8>,
}

/// What its owner wants to be otherwise.
#[derive(Debug, Clone, Default)]
pub struct CredentialChange {
    /// Another name.
    pub name: Option<String>,
    /// Another source, or none.
    pub source_id: Option<Option<SourceId>>,
    /// Other secrets, sealed for this vault; empty: as they are.
    pub sealed: Vec<u8>,
}

impl Credentials {
    /// Over this store. The outbox must be nobody else's.
    #[must_use]
    pub fn new(store: Store, outbox: Outbox, master: Arc<Keyring>, keys: Arc<KeyPair>) -> Self {
        Self { store, outbox: Mutex::new(outbox), master, keys }
    }

    /// The key that secrets come in under.
    #[must_use]
    pub fn sealing_key(&self) -> Vec<u8> {
        self.keys.public().as_bytes().to_vec()
    }

    /// A new credential; the one that has its id, where that is the same tenant's.
    ///
    /// # Errors
    /// What the user is told.
    pub async fn create(&self, tenant: &Tenant, new: NewCredential) -> Result<Credential, Error> {
        let NewCredential { id, name, auth_method, source_id, sealed } = new;
        let secrets = self.received(tenant, id, &sealed)?;
        secrets.check(auth_method)?;
        let at = now();
        let credential = Credential {
            id,
            tenant: tenant.clone(),
            name,
            auth_method,
            has_totp: secrets.totp_secret.is_some(),
            source_id,
            status: CredentialStatus::Unverified,
            failure: None,
            generation: 1,
            last_report: None,
            checked_at: None,
            seq: 1,
            version: 1,
            created_at: at,
            updated_at: at,
        };
        credential.check()?;
        let sealed = Sealed::seal(&self.master, id, &secrets).map_err(broken)?;
        let event = event(&credential, "created");
        let created =
            self.commit(event, async |staged| self.store.create_credential(&credential, &sealed, staged).await).await?;
        match (created, source_id) {
            (Created::Done, _) => Ok(credential),
            (Created::NoSource, Some(source_id)) => Err(sources::not_found(source_id)),
            (Created::Full, _) => {
                Err(ErrorCode::INPUT_INVALID.with("the tenant has as many credentials as it may have"))
            }
            (Created::Taken | Created::NoSource, _) => {
                let found = self.store.credential(tenant, id).await.map_err(unavailable)?;
                let taken = || ErrorCode::INPUT_INVALID.with("this id is, or was, another's").at("credential_id");
                found.map(|(credential, _)| credential).ok_or_else(taken)
            }
        }
    }

    /// One.
    ///
    /// # Errors
    /// `request`/`credential_not_found`.
    pub async fn get(&self, tenant: &Tenant, id: CredentialId) -> Result<Credential, Error> {
        self.read(tenant, id).await.map(|(credential, _)| credential)
    }

    /// Changes one.
    ///
    /// # Errors
    /// What the user is told.
    pub async fn update(
        &self,
        tenant: &Tenant,
        id: CredentialId,
        change: CredentialChange,
    ) -> Result<Credential, Error> {
        let secrets = match change.sealed.as_slice() {
            [] => None,
            sealed => Some(self.received(tenant, id, sealed)?),
        };
        for _ in 0..TRIES {
            let (before, kept) = self.read(tenant, id).await?;
            let (after, sealed) = self.changed(&before, &kept, &change, secrets.as_ref())?;
            // A new name changes nothing that anybody listens for.
            let event = (after.seq > before.seq).then(|| event(&after, CredentialStatus::Unverified.as_str()));
            let changed = self
                .commit(event, async |staged| self.store.change_credential(&after, sealed.as_ref(), staged).await)
                .await?;
            match (changed, after.source_id) {
                (Changed::Done, _) => return Ok(after),
                (Changed::NoSource, Some(source_id)) => return Err(sources::not_found(source_id)),
                (Changed::Conflict | Changed::NoSource | Changed::InUse, _) => {}
            }
        }
        Err(busy())
    }

    /// It as its owner wants it, with other secrets where there are some.
    fn changed(
        &self,
        before: &Credential,
        kept: &Sealed,
        change: &CredentialChange,
        secrets: Option<&Secrets>,
    ) -> Result<(Credential, Option<Sealed>), Error> {
        let source_id = change.source_id.unwrap_or(before.source_id);
        let mut after = if secrets.is_some() || source_id != before.source_id {
            before.renewed(now())
        } else {
            Credential { version: before.version + 1, updated_at: now().max(before.updated_at), ..before.clone() }
        };
        after.source_id = source_id;
        after.name = change.name.clone().unwrap_or(after.name);
        after.check()?;
        let Some(secrets) = secrets else { return Ok((after, None)) };
        let secrets = kept.open(&self.master, before.id).map_err(broken)?.changed(secrets.clone());
        secrets.check(before.auth_method)?;
        after.has_totp = secrets.totp_secret.is_some();
        Ok((after, Some(Sealed::seal(&self.master, before.id, &secrets).map_err(broken)?)))
    }

    /// Deletes one with its secrets.
    ///
    /// # Errors
    /// `request`/`credential_not_found`.
    pub async fn delete(&self, tenant: &Tenant, id: CredentialId) -> Result<Credential, Error> {
        for _ in 0..TRIES {
            let (before, _) = self.read(tenant, id).await?;
            let updated_at = now().max(before.updated_at);
            let after = Credential { seq: before.seq + 1, version: before.version + 1, updated_at, ..before.clone() };
            let event = event(&after, "deleted");
            let deleted = self.commit(event, async |staged| self.store.delete_credential(&after, staged).await).await?;
            if deleted == Changed::Done {
                return Ok(after);
            }
        }
        Err(busy())
    }

    /// Takes what an agent reports. False: a repetition, or older than what is known.
    ///
    /// # Errors
    /// `request`/`credential_not_found`.
    pub async fn report(&self, tenant: &Tenant, id: CredentialId, report: &AuthReport) -> Result<bool, Error> {
        for _ in 0..TRIES {
            let (before, _) = self.read(tenant, id).await?;
            let (after, event) = match before.report(report, now()) {
                Reported::Ignored => return Ok(false),
                Reported::Noted(after) => (after, None),
                Reported::Changed(after) => {
                    let event = event(&after, after.status.as_str());
                    (after, Some(event))
                }
            };
            let changed =
                self.commit(event, async |staged| self.store.change_credential(&after, None, staged).await).await?;
            if changed == Changed::Done {
                tracing::info!(credential = %id, status = after.status.as_str(), "an agent has tried the credential");
                return Ok(true);
            }
        }
        Err(busy())
    }

    /// Opens one, for the holder of a lease.
    ///
    /// # Errors
    /// `request`/`credential_not_found`.
    pub async fn open(&self, tenant: &Tenant, id: CredentialId) -> Result<OpenedCredential, Error> {
        let (credential, sealed) = self.read(tenant, id).await?;
        let secrets = sealed.open(&self.master, id).map_err(broken)?;
        Ok(OpenedCredential { auth_method: credential.auth_method, generation: credential.generation, secrets })
    }

    async fn read(&self, tenant: &Tenant, id: CredentialId) -> Result<(Credential, Sealed), Error> {
        self.store.credential(tenant, id).await.map_err(unavailable)?.ok_or_else(|| not_found(id))
    }

    /// Secrets that a client has sealed.
    fn received(&self, tenant: &Tenant, id: CredentialId, sealed: &[u8]) -> Result<Secrets, Error> {
        if sealed.is_empty() {
            return Ok(Secrets::default());
        }
        let wrong = |what: &str| ErrorCode::INPUT_INVALID.with(what).at("sealed");
        let plain = self
            .keys
            .open(&Purpose::into_vault(tenant, id), sealed)
            .map_err(|_| wrong("sealed was not sealed with this vault's key for this tenant and credential"))?;
        Secrets::decode(&plain).map_err(|error| wrong(&error.to_string()))
    }

    /// Commits a change with its event, if it has one, and tells it.
    async fn commit<T: Copy + Outcome>(
        &self,
        event: impl Into<Option<errand_proto::v1::Event>>,
        change: impl AsyncFnOnce(&Staged) -> Result<T, StoreError>,
    ) -> Result<T, Error> {
        let outbox = self.outbox.lock().await;
        let staged = outbox.stage(event.into()).map_err(unavailable)?;
        match change(&staged).await {
            Ok(outcome) if outcome.is_done() => {
                outbox.publish(staged);
                Ok(outcome)
            }
            Ok(outcome) => Ok(outcome),
            Err(error) => {
                outbox.uncertain(staged);
                Err(unavailable(error))
            }
        }
    }
}

/// Whether something was committed.
trait Outcome {
    fn is_done(&self) -> bool;
}

impl Outcome for Created {
    fn is_done(&self) -> bool {
        *self == Self::Done
    }
}

impl Outcome for Changed {
    fn is_done(&self) -> bool {
        *self == Self::Done
    }
}

fn event(credential: &Credential, action: &str) -> errand_proto::v1::Event {
    of_credential(EventId::from_uuid(Uuid::now_v7()), credential, action)
}

/// What is sealed does not open: the master key is another, or the store was tampered with. The user can do nothing.
fn broken(error: SealError) -> Error {
    tracing::error!(%error, "a credential cannot be sealed or opened");
    ErrorCode::API_ERROR.with("the credential cannot be opened; the vault's log says why")
}
