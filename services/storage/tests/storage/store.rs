//! One suite for both stores.

use bytes::Bytes;
use errand_core::artifact::ArtifactKind;
use errand_core::{EventId, RunId, StorageId, TaskId, Timestamp};
use errand_proto::event::of_artifact;
use errand_proto::v1;
use errand_storage::artifact::Artifact;
use errand_storage::store::{Keep, Kept, RunLimits, Store};
use errand_store::Outbox;
use errand_tests::Stack;
use uuid::Uuid;

use crate::on_both;
use crate::theatre::Place;

on_both! {
    an_artifact_is_kept_once_with_its_event
    a_blob_goes_with_its_last_artifact
    what_broke_off_can_be_swept_and_not_taken
    time_deletes_what_has_expired
}

const LIMITS: RunLimits = RunLimits { files: 5, bytes: 1000 };

struct Books {
    store: Store,
    outbox: Outbox,
    run: RunId,
    task: TaskId,
    // Dropped last: the store does not see its database go.
    _stack: Stack,
}

impl Books {
    async fn open(place: Place) -> anyhow::Result<Self> {
        let stack = Stack::new(place.store());
        let bus = stack.bus().await;
        bus.ensure_streams().await?;
        let store = Store::open(stack.store()).await?;
        // Nobody publishes: what the outbox holds is read from the store.
        let (outbox, _) = Outbox::open(store.db().clone(), bus).await?;
        let (run, task) = (RunId::from_uuid(Uuid::now_v7()), TaskId::from_uuid(Uuid::now_v7()));
        Ok(Self { store, outbox, run, task, _stack: stack })
    }

    fn artifact(&self, name: &str, size: u64) -> Artifact {
        Artifact {
            id: StorageId::from_uuid(Uuid::now_v7()),
            tenant: "acme".parse().unwrap(),
            run_id: self.run,
            task_id: self.task,
            attempt: 1,
            kind: ArtifactKind::File,
            name: name.into(),
            mime_type: "text/plain".into(),
            size,
            sha256: [7; 32],
            errors: Vec::new(),
            created_at: Timestamp(1000),
            expires_at: Some(Timestamp(5000)),
            data: Some(Bytes::from_static(b"{}")),
        }
    }

    async fn keep(&self, artifact: &Artifact, shared: bool, blob: Option<Uuid>) -> anyhow::Result<Kept> {
        let keep = Keep { artifact, shared, blob, limits: LIMITS };
        let event = |artifact: &Artifact| {
            of_artifact(EventId::from_uuid(Uuid::now_v7()), &v1::Artifact::from(artifact), String::new())
        };
        Ok(self.store.keep(&keep, &self.outbox, event).await?)
    }

    async fn pending(&self, artifact: &Artifact) -> anyhow::Result<Uuid> {
        let blob = Uuid::now_v7();
        self.store.pending(blob, artifact).await?;
        Ok(blob)
    }

    async fn keep_new(&self, artifact: &Artifact, shared: bool) -> anyhow::Result<Artifact> {
        let blob = self.pending(artifact).await?;
        match self.keep(artifact, shared, Some(blob)).await? {
            Kept::New(artifact) => Ok(artifact),
            other => anyhow::bail!("{other:?}"),
        }
    }

    async fn sweepable(&self, pending_before: i64) -> anyhow::Result<Vec<Uuid>> {
        Ok(self.store.sweepable(Timestamp(pending_before), Timestamp(9000), 100).await?)
    }
}

async fn an_artifact_is_kept_once_with_its_event(place: Place) -> anyhow::Result<()> {
    let books = Books::open(place).await?;
    let artifact = books.artifact("June.pdf", 10);
    let kept = books.keep_new(&artifact, false).await?;
    assert_eq!(kept, artifact);
    assert_eq!(books.store.artifact(artifact.id).await?, Some(artifact.clone()));
    let events = books.outbox.events_of(*artifact.id.uuid().as_bytes(), 0, 10).await?;
    assert_eq!((events.len(), events[0].r#type.as_str()), (1, "storage.created"));
    let again = books.pending(&artifact).await?;
    assert_eq!(books.keep(&artifact, false, Some(again)).await?, Kept::Already(artifact.clone()));
    assert_eq!(books.outbox.events_of(*artifact.id.uuid().as_bytes(), 0, 10).await?.len(), 1);
    assert_eq!(books.keep_new(&books.artifact("june.PDF", 10), false).await?.name, "june (2).PDF");
    assert_eq!(books.keep(&books.artifact("a", 10), false, None).await?, Kept::NoBytes);
    let large = books.artifact("a", 981);
    let blob = books.pending(&large).await?;
    assert_eq!(books.keep(&large, false, Some(blob)).await?, Kept::NoRoom, "1000 bytes");
    let (blue, id) = ("blue".parse()?, artifact.id);
    assert!(
        books.store.blob_of(&blue, id).await?.is_none() && books.store.blob_of(&artifact.tenant, id).await?.is_some()
    );
    Ok(())
}

async fn a_blob_goes_with_its_last_artifact(place: Place) -> anyhow::Result<()> {
    let books = Books::open(place).await?;
    let first = books.keep_new(&books.artifact("a", 10), true).await?;
    assert!(books.store.has_equal(&first.tenant, first.task_id, &first.sha256).await?);
    let Kept::New(second) = books.keep(&books.artifact("a", 10), true, None).await? else { panic!("not shared") };
    // One that has put its own bytes meanwhile gives them up.
    let third = books.artifact("a", 10);
    let own = books.pending(&third).await?;
    assert!(matches!(books.keep(&third, true, Some(own)).await?, Kept::New(_)));
    assert_eq!(books.sweepable(0).await?, [own]);
    books.store.forget(&[own]).await?;
    let blob = books.store.blob_of(&first.tenant, first.id).await?.unwrap().0;
    assert_eq!(books.store.blob_of(&first.tenant, second.id).await?.unwrap().0, blob);
    assert!(books.store.delete(&[first.id, third.id], Timestamp(2000)).await?.is_empty());
    assert_eq!(books.store.delete(&[second.id, first.id], Timestamp(2000)).await?, [blob]);
    assert!(!books.store.has_equal(&first.tenant, first.task_id, &first.sha256).await?, "garbage is not shared");
    assert_eq!(books.sweepable(0).await?, [blob]);
    books.store.forget(&[blob]).await?;
    assert!(books.sweepable(0).await?.is_empty());
    // The run has its room back.
    for _ in 0..5 {
        books.keep_new(&books.artifact("a", 10), false).await?;
    }
    let sixth = books.artifact("a", 10);
    let blob = books.pending(&sixth).await?;
    assert_eq!(books.keep(&sixth, false, Some(blob)).await?, Kept::NoRoom, "5 files");
    Ok(())
}

async fn what_broke_off_can_be_swept_and_not_taken(place: Place) -> anyhow::Result<()> {
    let books = Books::open(place).await?;
    let artifact = books.artifact("a", 10);
    let blob = books.pending(&artifact).await?;
    assert!(books.sweepable(1000).await?.is_empty(), "it may be on its way");
    assert_eq!(books.sweepable(1001).await?, [blob]);
    assert_eq!(books.keep(&artifact, false, Some(blob)).await?, Kept::NoBytes, "its bytes may be gone");
    assert_eq!(books.store.artifact(artifact.id).await?, None);
    Ok(())
}

async fn time_deletes_what_has_expired(place: Place) -> anyhow::Result<()> {
    let books = Books::open(place).await?;
    let early = books.keep_new(&books.artifact("a", 10), false).await?;
    let late = Artifact { expires_at: Some(Timestamp(6000)), ..books.artifact("b", 10) };
    let late = books.keep_new(&late, false).await?;
    let never = Artifact { expires_at: None, ..books.artifact("c", 10) };
    books.keep_new(&never, false).await?;
    assert!(books.store.expired(Timestamp(4999), 100).await?.is_empty());
    assert_eq!(books.store.expired(Timestamp(5000), 100).await?, [early.id]);
    assert_eq!(books.store.expired(Timestamp(i64::MAX), 100).await?, [early.id, late.id]);
    assert_eq!(books.store.expired(Timestamp(i64::MAX), 1).await?, [early.id]);
    Ok(())
}
