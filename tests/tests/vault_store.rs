//! What the vault's store promises, the same on SQLite and Postgres.

use errand_core::credential::{AuthMethod, Credential, CredentialStatus};
use errand_core::source::{Source, SourceType};
use errand_core::{CredentialId, EventId, SourceId, Tenant, Timestamp};
use errand_proto::event::of_credential;
use errand_secret::{SecretText, Secrets};
use errand_store::paging::Place;
use errand_store::{Outbox, Staged};
use errand_tests::{Stack, StoreKind};
use errand_vault::envelope::Sealed;
use errand_vault::rotation::Rotation;
use errand_vault::store::{Changed, Created, Store};
use uuid::Uuid;

macro_rules! on_both_stores {
    ($($name:ident)*) => {$(
        mod $name {
            #[tokio::test(flavor = "multi_thread")]
            async fn on_sqlite() -> anyhow::Result<()> {
                super::$name(&super::World::start(errand_tests::StoreKind::Sqlite).await?).await
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn on_postgres() -> anyhow::Result<()> {
                super::$name(&super::World::start(errand_tests::StoreKind::Postgres).await?).await
            }
        }
    )*};
}

on_both_stores! {
    sources_are_a_tenants_own
    a_source_stays_while_credentials_belong_to_it
    credentials_change_by_version_with_their_events
    a_deleted_credential_leaves_no_secrets_and_its_id_is_taken
    all_vaults_have_one_key
    a_new_master_key_seals_all_again_wherever_it_was_broken_off
}

struct World {
    _stack: Stack,
    store: Store,
    outbox: Outbox,
    old: String,
}

impl World {
    async fn start(kind: StoreKind) -> anyhow::Result<Self> {
        let stack = Stack::new(kind);
        let store = Store::open(stack.store()).await?;
        let (outbox, _publisher) = Outbox::open(store.db().clone(), stack.bus().await).await?;
        Ok(Self { _stack: stack, store, outbox, old: errand_seal::new_key().to_string() })
    }

    fn ring(&self) -> anyhow::Result<errand_seal::Keyring> {
        Ok(errand_seal::Keyring::parse(&self.old)?)
    }

    fn event(&self, credential: &Credential, action: &str) -> anyhow::Result<Staged> {
        Ok(self.outbox.stage([of_credential(EventId::from_uuid(Uuid::now_v7()), credential, action)])?)
    }

    async fn create(&self, credential: &Credential) -> anyhow::Result<Created> {
        let sealed = Sealed::seal(&self.ring()?, credential.id, &secrets())?;
        Ok(self.store.create_credential(credential, &sealed, &self.event(credential, "created")?).await?)
    }

    async fn seqs(&self, id: CredentialId) -> anyhow::Result<Vec<u64>> {
        let events = self.outbox.events_of(*id.uuid().as_bytes(), 0, 100).await?;
        Ok(events.iter().map(|event| event.seq).collect())
    }
}

fn tenant(name: &str) -> Tenant {
    name.parse().expect("a tenant")
}

fn secrets() -> Secrets {
    Secrets { api_key: Some(SecretText::new("sk-7".into())), ..Secrets::default() }
}

fn source(owner: &str) -> Source {
    Source {
        id: SourceId::from_uuid(Uuid::now_v7()),
        tenant: tenant(owner),
        r#type: SourceType::Website,
        name: "portal".into(),
        url: "https://portal.example.com".into(),
        created_at: Timestamp(1),
        updated_at: Timestamp(1),
    }
}

fn credential(owner: &str, source_id: Option<SourceId>) -> Credential {
    Credential {
        id: CredentialId::from_uuid(Uuid::now_v7()),
        tenant: tenant(owner),
        name: "key".into(),
        auth_method: AuthMethod::ApiKey,
        has_totp: false,
        source_id,
        status: CredentialStatus::Unverified,
        failure: None,
        generation: 1,
        last_report: None,
        checked_at: None,
        seq: 1,
        version: 1,
        created_at: Timestamp(1),
        updated_at: Timestamp(1),
    }
}

async fn sources_are_a_tenants_own(world: &World) -> anyhow::Result<()> {
    let (store, one) = (&world.store, source("acme"));
    assert_eq!(store.create_source(&one).await?, Created::Done);
    assert_eq!(store.create_source(&one).await?, Created::Taken);
    assert_eq!(store.create_source(&Source { tenant: tenant("other"), ..one.clone() }).await?, Created::Taken);
    assert_eq!(store.source(&tenant("acme"), one.id).await?, Some(one.clone()));
    assert_eq!(store.source(&tenant("other"), one.id).await?, None);
    let after = Source { name: "renamed".into(), updated_at: Timestamp(2), ..one.clone() };
    assert_eq!(store.change_source(&one, &after).await?, Changed::Done);
    assert_eq!(store.change_source(&one, &after).await?, Changed::Conflict, "it is no longer what was read");
    assert_eq!(store.delete_source(&tenant("other"), one.id).await?, Changed::Conflict);
    let mut ids = vec![one.id.uuid()];
    for _ in 0..3 {
        let more = source("acme");
        store.create_source(&more).await?;
        ids.insert(0, more.id.uuid());
    }
    let listed = store.scan_sources(&tenant("acme"), |source| source.name == "portal", Place::Newest).await?;
    assert_eq!(listed.iter().map(|(id, _)| *id).collect::<Vec<_>>(), ids, "newest first");
    assert_eq!(listed.iter().filter(|(_, fits)| fits.is_some()).count(), 3);
    let older = store.scan_sources(&tenant("acme"), |_| true, Place::Before(ids[1])).await?;
    assert_eq!(older.iter().map(|(id, _)| *id).collect::<Vec<_>>(), ids[2..]);
    assert!(store.scan_sources(&tenant("other"), |_| true, Place::Newest).await?.is_empty());
    assert_eq!(store.delete_source(&tenant("acme"), one.id).await?, Changed::Done);
    Ok(())
}

async fn a_source_stays_while_credentials_belong_to_it(world: &World) -> anyhow::Result<()> {
    let (store, one) = (&world.store, source("acme"));
    let absent = credential("acme", Some(one.id));
    assert_eq!(world.create(&absent).await?, Created::NoSource);
    store.create_source(&one).await?;
    assert_eq!(world.create(&credential("other", Some(one.id))).await?, Created::NoSource, "another tenant's");
    assert_eq!(world.create(&absent).await?, Created::Done);
    assert_eq!(store.delete_source(&tenant("acme"), one.id).await?, Changed::InUse);
    let gone = Credential { seq: 2, version: 2, ..absent.clone() };
    assert_eq!(store.delete_credential(&gone, &world.event(&gone, "deleted")?).await?, Changed::Done);
    assert_eq!(store.delete_source(&tenant("acme"), one.id).await?, Changed::Done);
    Ok(())
}

async fn credentials_change_by_version_with_their_events(world: &World) -> anyhow::Result<()> {
    let (store, one) = (&world.store, credential("acme", None));
    assert_eq!(world.create(&one).await?, Created::Done);
    assert_eq!(world.create(&one).await?, Created::Taken);
    let (read, sealed) = store.credential(&tenant("acme"), one.id).await?.expect("it is there");
    assert_eq!((&read, sealed.open(&world.ring()?, one.id)?), (&one, secrets()));
    assert!(store.credential(&tenant("other"), one.id).await?.is_none());

    let next = one.renewed(Timestamp(5));
    let other = Sealed::seal(&world.ring()?, one.id, &Secrets::default())?;
    let event = world.event(&next, "unverified")?;
    assert_eq!(store.change_credential(&next, Some(&other), &event).await?, Changed::Done);
    let again = world.event(&next, "unverified")?;
    assert_eq!(store.change_credential(&next, Some(&other), &again).await?, Changed::Conflict);
    let renamed = Credential { name: "renamed".into(), version: 3, ..next.clone() };
    assert_eq!(store.change_credential(&renamed, None, &Staged::default()).await?, Changed::Done);
    let (read, sealed) = store.credential(&tenant("acme"), one.id).await?.expect("it is there");
    assert_eq!((read, sealed), (renamed.clone(), other), "secrets stay where none are given");
    assert_eq!(world.seqs(one.id).await?, [1, 2], "a conflict tells nothing");
    let elsewhere = Credential { source_id: Some(source("acme").id), version: 4, ..renamed };
    assert_eq!(store.change_credential(&elsewhere, None, &Staged::default()).await?, Changed::NoSource);
    let listed = store.scan_credentials(&tenant("acme"), |_| true, Place::Newest).await?;
    assert_eq!(listed.len(), 1);
    Ok(())
}

async fn a_deleted_credential_leaves_no_secrets_and_its_id_is_taken(world: &World) -> anyhow::Result<()> {
    let (store, one) = (&world.store, credential("acme", None));
    world.create(&one).await?;
    let gone = Credential { seq: 2, version: 2, ..one.clone() };
    assert_eq!(store.delete_credential(&gone, &world.event(&gone, "deleted")?).await?, Changed::Done);
    assert_eq!(store.delete_credential(&gone, &world.event(&gone, "deleted")?).await?, Changed::Conflict);
    assert!(store.credential(&tenant("acme"), one.id).await?.is_none());
    assert!(store.scan_credentials(&tenant("acme"), |_| true, Place::Newest).await?.is_empty());
    assert!(store.data_keys(None, 100).await?.is_empty());
    assert_eq!(world.create(&one).await?, Created::Taken, "its events have their numbers");
    assert_eq!(world.seqs(one.id).await?, [1, 2]);
    Ok(())
}

async fn all_vaults_have_one_key(world: &World) -> anyhow::Result<()> {
    let one = Rotation::new(world.store.clone(), world.ring()?.into()).keys().await?;
    let other = Rotation::new(world.store.clone(), world.ring()?.into()).keys().await?;
    assert_eq!(one.public(), other.public());
    let stranger = errand_seal::Keyring::parse(&errand_seal::new_key())?;
    let refused = Rotation::new(world.store.clone(), stranger.into()).keys().await.expect_err("another master key");
    assert!(refused.to_string().contains("is not the one"), "{refused}");
    Ok(())
}

async fn a_new_master_key_seals_all_again_wherever_it_was_broken_off(world: &World) -> anyhow::Result<()> {
    let count = 1_203u32;
    let mut ids = Vec::new();
    for number in 0..count {
        let one = credential(["acme", "other"][number as usize % 2], None);
        world.create(&one).await?;
        ids.push((one.tenant, one.id));
    }
    let keys = Rotation::new(world.store.clone(), world.ring()?.into()).keys().await?;
    let new = errand_seal::new_key();
    let both = || errand_seal::Keyring::parse(&format!("{}\n{}", *new, world.old));
    let rotation = Rotation::new(world.store.clone(), both()?.into());
    let first = rotation.piece(None).await?;
    assert_eq!((first.looked_at, first.sealed_again), (500, 501), "with the vault's own key");
    // Broken off; begun anew by another process, which knows nothing of the first.
    let again = Rotation::new(world.store.clone(), both()?.into());
    let (mut after, mut looked_at, mut sealed_again) = (None, 0, 0);
    loop {
        let piece = again.piece(after).await?;
        (looked_at, sealed_again) = (looked_at + piece.looked_at, sealed_again + piece.sealed_again);
        after = piece.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!((looked_at, sealed_again), (count, count - 500));
    let only_new = errand_seal::Keyring::parse(&new)?;
    for (owner, id) in ids {
        let (_, sealed) = world.store.credential(&owner, id).await?.expect("it is there");
        assert_eq!(sealed.open(&only_new, id)?, secrets());
    }
    let kept = Rotation::new(world.store.clone(), only_new.into()).keys().await?;
    assert_eq!(kept.public(), keys.public(), "what clients have sealed meanwhile still opens");
    Ok(())
}
