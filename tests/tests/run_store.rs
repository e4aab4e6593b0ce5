//! What the dispatcher's store promises, the same on SQLite and Postgres.

use std::time::Duration;

use bytes::Bytes;
use errand_core::run::{Command, Lease, Outcome, Output, Run, RunStatus, apply};
use errand_core::task::{Definition, Task};
use errand_core::{EventId, RunId, RunnerId, SessionId, TaskId};
use errand_dispatcher::store::{Batch, Store};
use errand_proto::event::{TaskRef, of_run, of_task};
use errand_store::{Db, EventStream, Ledger, Outbox, Staged, StoreError};
use errand_tests::runs::{NOW, queued, tenant};
use errand_tests::{Postgres, Proxy, Stack, StoreKind, Toxic, eventually};
use futures::future::join_all;
use sqlx::{Connection, PgConnection};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(60);

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
    what_is_committed_is_read_again
    a_change_of_another_version_is_a_conflict_and_leaves_nothing
    a_batch_may_be_of_any_size_and_kind
    open_runs_come_by_pages_and_activity_only_grows
    tasks_have_versions_and_names
    what_is_over_for_long_is_deleted
}

struct World {
    stack: Stack,
    store: Store,
    outbox: Outbox,
}

impl World {
    async fn start(kind: StoreKind) -> anyhow::Result<Self> {
        let stack = Stack::new(kind);
        let store = Store::open(stack.store()).await?;
        let (outbox, _publisher) = Outbox::open(store.db().clone(), stack.bus().await).await?;
        Ok(Self { stack, store, outbox })
    }

    fn events(&self, runs: &[&Run]) -> anyhow::Result<Staged> {
        let events = runs.iter().map(|run| of_run(EventId::from_uuid(Uuid::now_v7()), run));
        Ok(self.outbox.stage(events)?)
    }

    /// Commits runs that are new; the ids of those that met a conflict.
    async fn commit_new(&self, runs: &[Run]) -> anyhow::Result<Vec<RunId>> {
        let events = self.events(&runs.iter().collect::<Vec<_>>())?;
        let mut batch = Batch { new: runs.to_vec(), events, ..Batch::default() };
        Ok(self.store.commit(&mut batch).await?.into_iter().collect())
    }

    /// Commits changes of runs, each with the version that it is based on and an event for each version since.
    async fn commit_changed(&self, changes: &[(Vec<Run>, u64)]) -> anyhow::Result<Vec<RunId>> {
        let events = self.events(&changes.iter().flat_map(|(steps, _)| steps).collect::<Vec<_>>())?;
        let changed = changes.iter().filter_map(|(steps, expected)| Some((steps.last()?.clone(), *expected)));
        let mut batch = Batch { changed: changed.collect(), events, ..Batch::default() };
        Ok(self.store.commit(&mut batch).await?.into_iter().collect())
    }

    async fn one(&self, id: RunId) -> anyhow::Result<Option<Run>> {
        Ok(self.store.runs(&[id]).await?.pop())
    }

    async fn seqs(&self, id: RunId) -> anyhow::Result<Vec<u64>> {
        let events = self.outbox.events_of(*id.uuid().as_bytes(), 0, 100).await?;
        Ok(events.iter().map(|event| event.seq).collect())
    }
}

fn moved(run: &Run, command: Command) -> Run {
    match apply(run, command, NOW) {
        Outcome::Changed(change) => change.next,
        other => panic!("{other:?}"),
    }
}

fn running(run: &Run) -> Run {
    let (session_id, runner_id) = (SessionId::from_uuid(Uuid::now_v7()), RunnerId::from_uuid(Uuid::now_v7()));
    moved(run, Command::Grant { lease: Lease { session_id, runner_id, token: 1 }, attempt: run.attempt })
}

fn completed(run: &Run) -> Run {
    let output = Output { json: Bytes::from_static(b"{\"n\": 1}"), misfit: None };
    moved(run, Command::Finish { token: 1, output })
}

async fn what_is_committed_is_read_again(world: &World) -> anyhow::Result<()> {
    let (with, without) = (queued("{\"a\": \"\\u0000\"}"), queued(""));
    for run in [&with, &without] {
        assert!(world.commit_new(std::slice::from_ref(run)).await?.is_empty());
        assert_eq!(world.one(run.id).await?.as_ref(), Some(run));
        let at_work = running(run);
        assert!(world.commit_changed(&[(vec![at_work.clone()], 1)]).await?.is_empty());
        let done = completed(&at_work);
        assert!(world.commit_changed(&[(vec![done.clone()], 2)]).await?.is_empty());
        assert_eq!(world.one(run.id).await?, Some(done));
        assert_eq!(world.seqs(run.id).await?, [1, 2, 3]);
    }
    assert_eq!(world.one(RunId::from_uuid(Uuid::now_v7())).await?, None);
    Ok(())
}

async fn a_change_of_another_version_is_a_conflict_and_leaves_nothing(world: &World) -> anyhow::Result<()> {
    // Where one of several met a conflict, SQLite finds it by halves.
    for companions in [0usize, 3, 20] {
        let others: Vec<Run> = (0..companions).map(|_| queued("1")).collect();
        let run = queued("1");
        let mut all = others.clone();
        all.push(run.clone());
        assert!(world.commit_new(&all).await?.is_empty());
        let mut again = run.clone();
        again.input = Bytes::from_static(b"2");
        let fresh = (companions > 0).then(|| queued("1"));
        let submitted: Vec<Run> = fresh.iter().cloned().chain([again]).collect();
        assert_eq!(world.commit_new(&submitted).await?, [run.id], "an id is taken once");
        assert_eq!(world.one(run.id).await?.as_ref(), Some(&run));
        if let Some(fresh) = fresh {
            assert_eq!(world.one(fresh.id).await?, Some(fresh), "the others of the batch are committed");
        }
        let (mine, theirs) = (running(&run), moved(&run, Command::Cancel));
        assert!(world.commit_changed(&[(vec![theirs.clone()], 1)]).await?.is_empty());
        let with_others = others.iter().map(|run| (vec![running(run)], 1)).chain([(vec![mine], 1)]);
        assert_eq!(world.commit_changed(&with_others.collect::<Vec<_>>()).await?, [run.id]);
        assert_eq!(world.one(run.id).await?, Some(theirs));
        assert_eq!(world.seqs(run.id).await?, [1, 2]);
        for other in others {
            assert_eq!(world.seqs(other.id).await?, [1, 2]);
        }
    }
    Ok(())
}

async fn a_batch_may_be_of_any_size_and_kind(world: &World) -> anyhow::Result<()> {
    for size in [1usize, 2, 5, 300] {
        let runs: Vec<Run> = (0..size).map(|_| queued("1")).collect();
        assert!(world.commit_new(&runs).await?.is_empty());
        // Two changes of one run go in one commit.
        let changes: Vec<(Vec<Run>, u64)> =
            runs.iter().map(|run| (vec![running(run), completed(&running(run))], 1)).collect();
        assert!(world.commit_changed(&changes).await?.is_empty());
        let ids: Vec<RunId> = runs.iter().map(|run| run.id).collect();
        let read = world.store.runs(&ids).await?;
        assert_eq!(read.len(), size);
        assert!(read.iter().all(|run| run.status() == RunStatus::Completed && run.seq == 3 && run.output.is_some()));
        assert_eq!(world.seqs(ids[size - 1]).await?, [1, 2, 3]);
    }
    assert!(world.store.commit(&mut Batch::default()).await?.is_empty());
    Ok(())
}

async fn open_runs_come_by_pages_and_activity_only_grows(world: &World) -> anyhow::Result<()> {
    let mut runs: Vec<Run> = (0..5).map(|_| queued("1")).collect();
    assert!(world.commit_new(&runs).await?.is_empty());
    let canceled = moved(&runs.remove(2), Command::Cancel);
    assert!(world.commit_changed(&[(vec![canceled], 1)]).await?.is_empty());
    let ids: Vec<RunId> = runs.iter().map(|run| run.id).collect();
    let page = |after, limit| async move {
        let runs = world.store.open_runs(after, limit).await?;
        anyhow::Ok(runs.iter().map(|run| run.id).collect::<Vec<_>>())
    };
    assert_eq!(page(None, 3).await?, ids[..3]);
    assert_eq!(page(Some(ids[2]), 3).await?, ids[3..]);
    for (at, expected) in [(5_000, 5_000), (3_000, 5_000), (6_000, 6_000)] {
        world.store.touch(&[(ids[0], NOW.plus_millis(at)), (ids[1], NOW)]).await?;
        let seen = world.one(ids[0]).await?.map(|run| run.last_activity);
        assert_eq!(seen, Some(NOW.plus_millis(expected)));
    }
    // What a dispatcher cached before does not take it back.
    let stale = running(&runs[0]);
    assert!(world.commit_changed(&[(vec![stale], 1)]).await?.is_empty());
    assert_eq!(world.one(ids[0]).await?.map(|run| run.last_activity), Some(NOW.plus_millis(6_000)));
    Ok(())
}

async fn tasks_have_versions_and_names(world: &World) -> anyhow::Result<()> {
    let definition: Definition = serde_json::from_str(r#"{"name": "bills", "agent_id": "agt_exec"}"#)?;
    let id = TaskId::from_uuid(Uuid::now_v7());
    let one = Task { id, tenant: tenant(), version: 1, definition, created_at: NOW, updated_at: NOW };
    let event = |task: &Task, action, seq| {
        world.outbox.stage([of_task(EventId::from_uuid(Uuid::now_v7()), task, action, seq, NOW)])
    };
    assert!(world.store.create_task(&one, &event(&one, "created", 1)?).await?);
    let namesake = Task { id: TaskId::from_uuid(Uuid::now_v7()), ..one.clone() };
    assert!(!world.store.create_task(&namesake, &event(&namesake, "created", 1)?).await?);
    let other = Task { id: TaskId::from_uuid(Uuid::now_v7()), tenant: "other".parse()?, ..namesake.clone() };
    assert!(world.store.create_task(&other, &event(&other, "created", 1)?).await?, "names are a tenant's own");

    let mut two = Task { version: 2, ..one.clone() };
    two.definition.prompt = "new".into();
    assert!(world.store.change_task(&two, false, 2, &event(&two, "updated", 2)?).await?);
    assert!(!world.store.change_task(&two, false, 2, &event(&two, "updated", 2)?).await?, "somebody was quicker");
    let by_name = TaskRef::Name("bills".into());
    let current = world.store.current_task(&tenant(), &by_name).await?;
    assert_eq!(current.map(|current| (current.task, current.seq)), Some((two.clone(), 2)));
    assert_eq!(world.store.task_version(id, 1).await?, Some(one.clone()));

    assert!(world.store.change_task(&two, true, 3, &event(&two, "deleted", 3)?).await?);
    assert!(world.store.current_task(&tenant(), &by_name).await?.is_none());
    assert_eq!(world.store.task_version(id, 2).await?, Some(two), "a run keeps the version that it began with");
    assert!(world.store.create_task(&namesake, &event(&namesake, "created", 1)?).await?, "its name is free again");
    Ok(())
}

/// A run whose id is of this time.
fn queued_at(ms: u64) -> Run {
    let at = uuid::Timestamp::from_unix(uuid::NoContext, ms / 1000, 0);
    Run { id: RunId::from_uuid(Uuid::new_v7(at)), ..queued("1") }
}

async fn what_is_over_for_long_is_deleted(world: &World) -> anyhow::Result<()> {
    let old = u64::try_from(NOW.0)?;
    let (over, open, later) = (queued_at(old), queued_at(old), queued_at(old + 60_000));
    assert!(world.commit_new(&[over.clone(), open.clone(), later.clone()]).await?.is_empty());
    for run in [&over, &later] {
        let (running, completed) = (running(run), completed(&running(run)));
        assert!(world.commit_changed(&[(vec![running, completed], 1)]).await?.is_empty());
    }
    assert_eq!(world.store.delete_runs_before(NOW.0).await?, 0, "it is to be over for longer");
    assert_eq!(world.store.delete_runs_before(NOW.0 + 1_000).await?, 1);
    assert_eq!(world.one(over.id).await?, None);
    let left: Vec<Option<Bytes>> =
        [world.one(open.id).await?.map(|run| run.input), world.one(later.id).await?.map(|run| run.input)].into();
    assert_eq!(left, [Some(Bytes::from_static(b"1")), Some(Bytes::from_static(b"1"))]);
    // A new run may take the id, and has its own input: the old one's is gone.
    let again = Run { input: Bytes::from_static(b"2"), ..over.clone() };
    let db = world.store.db();
    let events = db.delete_events_before(NOW.0 + 1_000).await?;
    assert_eq!(events, 0, "what is not published is kept");
    for (writer, _) in db.writers().await? {
        db.mark(writer, (writer << 40) + 1_000, NOW.0).await?;
    }
    assert_eq!(db.delete_events_before(NOW.0).await?, 0);
    assert_eq!(db.delete_events_before(NOW.0 + 1_000).await?, 7);
    assert!(world.commit_new(std::slice::from_ref(&again)).await?.is_empty());
    assert_eq!(world.one(again.id).await?, Some(again));
    Ok(())
}

/// How many sessions of a database match.
async fn sessions(connection: &mut PgConnection, of: &str) -> Option<i64> {
    let sql = format!("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND {of}");
    sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(connection).await.ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_died_without_a_word_are_given_up() -> anyhow::Result<()> {
    let stack = Stack::new(StoreKind::Postgres);
    let (port, proxy) = (Postgres::shared().port(), Proxy::to(Postgres::shared().port()));
    let store = Store::open(&stack.store().replace(&format!(":{port}/"), &format!(":{}/", proxy.port()))).await?;
    let ids = [RunId::from_uuid(Uuid::now_v7())];
    let all_at_once = || join_all((0..8).map(|_| store.runs(&ids)));
    assert!(all_at_once().await.iter().all(Result::is_ok));

    proxy.set(Toxic::ServerGone);
    let mut observer = PgConnection::connect(stack.store()).await?;
    eventually("the server has lost its clients", PATIENCE, async || {
        sessions(&mut observer, "application_name = 'errand-dispatcher'").await.filter(|count| *count == 0)
    })
    .await;
    proxy.set(Toxic::None);
    // The proxy forgets a connection after two minutes, and says so then by a reset.
    let failed: Vec<StoreError> = all_at_once().await.into_iter().filter_map(Result::err).collect();
    assert!(!failed.is_empty());
    for error in failed {
        let late = |error: &std::io::Error| error.kind() == std::io::ErrorKind::TimedOut;
        assert!(matches!(&error, StoreError::Database(sqlx::Error::Io(io)) if late(io)), "{error}");
        assert!(error.is_transient());
    }
    for found in all_at_once().await {
        assert!(found?.is_empty());
    }
    Ok(())
}

/// The answer to a commit is lost, and the commit comes later than the look at what became of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_comes_late_is_published() -> anyhow::Result<()> {
    let stack = Stack::new(StoreKind::Postgres);
    let (store, bus) = (Store::open(stack.store()).await?, stack.bus().await);
    bus.ensure_streams().await?;
    let (outbox, publisher) = Outbox::open(store.db().clone(), bus.clone()).await?;
    let shutdown = CancellationToken::new();
    let publishing = tokio::spawn(publisher.run(shutdown.clone()));
    let Db::Postgres(pool) = store.db() else { anyhow::bail!("it is Postgres") };
    let mut tx = pool.begin().await?;
    sqlx::query("SET LOCAL idle_in_transaction_session_timeout = 0").execute(&mut *tx).await?;
    let staged = outbox.stage([of_run(EventId::from_uuid(Uuid::now_v7()), &queued("1"))])?;
    let id = staged.events()[0].id.to_string();
    staged.insert_postgres(&mut tx).await?;
    outbox.uncertain(staged);

    let mut observer = PgConnection::connect(stack.store()).await?;
    eventually("the publisher waits for what is under way", PATIENCE, async || {
        sessions(&mut observer, "query LIKE '%pg_snapshot_xmin%' AND pid <> pg_backend_pid()").await.filter(|n| *n > 0)
    })
    .await;
    tx.commit().await?;
    eventually("the event is in the stream", PATIENCE, async || {
        let last = bus.extent().await.ok()?.last;
        bus.id_at(last).await.ok()?.filter(|found| *found == id)
    })
    .await;
    shutdown.cancel();
    Ok(publishing.await??)
}

/// A commit whose answer nobody waits for any more is over when it is looked for, or writes nothing when it comes.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_was_given_up_does_not_come_later() -> anyhow::Result<()> {
    let world = World::start(StoreKind::Postgres).await?;
    let db = world.store.db();
    let run = queued("1");
    let events = world.events(&[&run])?;
    let position = events.events()[0].position;
    db.settled(position).await?;
    let mut late = Batch { new: vec![run.clone()], events, ..Batch::default() };
    assert_eq!(world.store.commit(&mut late).await?.into_iter().collect::<Vec<_>>(), [run.id]);
    assert!(world.one(run.id).await?.is_none() && world.seqs(run.id).await?.is_empty());

    // What comes behind it is not held up.
    assert!(world.commit_new(std::slice::from_ref(&run)).await?.is_empty());
    let Db::Postgres(pool) = db else { anyhow::bail!("it is Postgres") };
    let mut other = pool.begin().await?;
    sqlx::query("SELECT FROM run FOR UPDATE").execute(&mut *other).await?;
    let next = running(&run);
    let events = world.events(&[&next])?;
    let position = events.events()[0].position;
    let mut under_way = Batch { changed: vec![(next, 1)], events, ..Batch::default() };
    let (conflicts, found, ()) = tokio::try_join!(
        async { Ok::<_, anyhow::Error>(world.store.commit(&mut under_way).await?) },
        async {
            let mut observer = PgConnection::connect(world.stack.store()).await?;
            eventually("the commit is held up", PATIENCE, async || {
                sessions(&mut observer, "wait_event_type = 'Lock' AND query LIKE 'WITH%'").await.filter(|n| *n > 0)
            })
            .await;
            db.settled(position).await?;
            Ok(db.read(position - 1, position, 10).await?.len())
        },
        async {
            let mut observer = PgConnection::connect(world.stack.store()).await?;
            eventually("it is looked for", PATIENCE, async || {
                let looking = "wait_event_type = 'Lock' AND query LIKE 'UPDATE outbox_writer SET fence%'";
                sessions(&mut observer, looking).await.filter(|n| *n > 0)
            })
            .await;
            Ok(other.commit().await?)
        },
    )?;
    assert!(conflicts.is_empty() && found == 1, "{conflicts:?} {found}");
    assert_eq!(world.seqs(run.id).await?, [1, 2]);
    Ok(())
}
