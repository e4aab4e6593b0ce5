//! Every statement over what grows without end, runs, inputs, events and sessions, goes by an index and sorts nothing:
//! what takes a millisecond at a thousand rows takes it at ten million. The statements are those that the stores really
//! make: they are heard where sqlx logs them.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use errand_core::run::Run;
use errand_core::session::SessionStatus;
use errand_core::{EventId, RunId, SessionId, TaskId, Tenant, Timestamp};
use errand_dispatcher::run_filter::RunFilter;
use errand_dispatcher::store::{Batch, Store};
use errand_proto::event::{TaskRef, of_run};
use errand_proto::v1;
use errand_session_pool::store::{Query, Store as SessionStore};
use errand_store::paging::Place;
use errand_store::{Db, Ledger, Left, Outbox};
use errand_tests::runs::queued;
use errand_tests::{Stack, StoreKind};
use sqlx::{AssertSqlSafe, Row};
use tracing::field::{Field, Visit};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use uuid::Uuid;

/// Tables of which there may be ten million rows.
const LARGE: [&str; 4] = ["run", "run_input", "event", "session"];
/// These are few: what is not over.
const OF_THE_OPEN: [&str; 2] = ["run_open", "session_open"];

#[derive(Clone, Default)]
struct Heard(Arc<Mutex<BTreeSet<String>>>);

impl Heard {
    fn take(&self) -> BTreeSet<String> {
        std::mem::take(&mut self.0.lock().expect("nobody panics"))
    }
}

impl<S: tracing::Subscriber> Layer<S> for Heard {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        if event.metadata().target() == "sqlx::query" {
            let mut statement = Statement::default();
            event.record(&mut statement);
            let text = if statement.whole.trim().is_empty() { statement.summary } else { statement.whole };
            self.0.lock().expect("nobody panics").insert(text.trim().to_owned());
        }
    }
}

#[derive(Default)]
struct Statement {
    summary: String,
    whole: String,
}

impl Visit for Statement {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "summary" => value.clone_into(&mut self.summary),
            "db.statement" => value.clone_into(&mut self.whole),
            _ => {}
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn std::fmt::Debug) {}
}

#[tokio::test(flavor = "multi_thread")]
async fn every_statement_goes_by_an_index() -> anyhow::Result<()> {
    let heard = Heard::default();
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(heard.clone()))?;
    let mut bad = Vec::new();
    for kind in [StoreKind::Sqlite, StoreKind::Postgres] {
        let stack = Stack::new(kind);
        let (runs, sessions) = (Store::open(stack.store()).await?, SessionStore::open(stack.store()).await?);
        let (outbox, _) = Outbox::open(runs.db().clone(), stack.bus().await).await?;
        heard.take();
        of_runs(&runs, &outbox).await?;
        let of_runs = about_large_tables(heard.take());
        of_sessions(&sessions).await?;
        let of_sessions = about_large_tables(heard.take());
        assert!(of_runs.len() >= 15 && of_sessions.len() >= 4, "{kind:?}: {of_runs:#?} {of_sessions:#?}");
        pretend_to_be_small(runs.db()).await?;
        // Statistics are read when a connection is opened.
        let runs = Store::open(stack.store()).await?;
        for (db, statements) in [(runs.db(), of_runs), (sessions.db(), of_sessions)] {
            for statement in statements {
                let plan = plan(db, &statement).await?;
                if let Some(what) = fault(&plan) {
                    bad.push(format!("{kind:?}: {what}\n{statement}\n{}\n", plan.join("\n")));
                }
            }
        }
    }
    assert!(bad.is_empty(), "{}", bad.join("\n"));
    Ok(())
}

/// Leaves statistics behind as a store has them that was young when somebody analysed it.
async fn pretend_to_be_small(db: &Db) -> anyhow::Result<()> {
    let Db::Sqlite(sqlite) = db else { return Ok(()) };
    let statistics = "ANALYZE; DELETE FROM sqlite_stat4; DELETE FROM sqlite_stat1;
        INSERT INTO sqlite_stat1 VALUES ('run', 'run_open', '56 1 1 1 1'), ('run', 'run_tenant', '12571 401 1'),
            ('run', 'sqlite_autoindex_run_1', '12571 1'), ('run_input', 'run_input', '12571 1'),
            ('event', 'event_created_at', '38261 2'), ('event', 'event_object_seq', '38261 3 1');";
    sqlx::raw_sql(statistics).execute(&sqlite.write).await?;
    Ok(())
}

fn about_large_tables(statements: BTreeSet<String>) -> Vec<String> {
    let words = |statement: &str| {
        let mut words = statement.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        words.any(|word| LARGE.contains(&word))
    };
    // A whole transaction may go in one.
    let statements: BTreeSet<&str> = statements.iter().flat_map(|text| text.split(';')).map(str::trim).collect();
    statements.into_iter().filter(|text| words(text)).map(str::to_owned).collect()
}

/// Everything that the dispatcher and its outbox ask.
async fn of_runs(store: &Store, outbox: &Outbox) -> anyhow::Result<()> {
    let tenant: Tenant = "acme".parse()?;
    let id = RunId::from_uuid(Uuid::now_v7());
    store.runs(&[id]).await?;
    store.open_runs(Some(id), 10).await?;
    store.open_keys(Some(id), 10).await?;
    store.touch(&[(id, Timestamp(1))]).await?;
    store.current_task(&tenant, &TaskRef::Name("bills".into())).await?;
    store.task_version(TaskId::from_uuid(Uuid::now_v7()), 1).await?;
    let request = v1::ListRunsRequest { tenant: tenant.to_string(), ..Default::default() };
    let open = v1::ListRunsRequest { status: vec![v1::RunStatus::Queued.into()], ..request.clone() };
    for filter in [RunFilter::try_from(request)?, RunFilter::try_from(open)?] {
        for place in [Place::Newest, Place::Before(Uuid::now_v7()), Place::After(Uuid::now_v7())] {
            store.scan_runs(&filter, place).await?;
            store.scan_tasks(&tenant, |_| true, place).await?;
        }
    }
    let mut runs = vec![queued("1"), queued("2"), queued("3")];
    store.add_outputs(&mut runs).await?;
    // As many as go in one statement at most, and one by itself.
    runs.extend((0..254).map(|_| queued("1")));
    let staged = |runs: &[Run]| outbox.stage(runs.iter().map(|run| of_run(EventId::from_uuid(Uuid::now_v7()), run)));
    let (new, events) = (runs.clone(), staged(&runs)?);
    store.commit(&mut Batch { new, events, ..Batch::default() }).await?;
    runs.iter_mut().for_each(|run| run.seq += 1);
    let events = staged(&runs)?;
    let changed = runs.into_iter().map(|run| (run, 1)).collect();
    store.commit(&mut Batch { changed, events, ..Batch::default() }).await?;
    store.delete_runs_before(1).await?;
    outbox.events_of(*id.uuid().as_bytes(), 0, 10).await?;
    outbox.unpublished_of_others(&[*id.uuid().as_bytes()]).await?;
    let db = store.db();
    db.delete_events_before(1).await?;
    db.read(0, 1, 10).await?;
    db.oldest(0, 1).await?;
    db.read_in_order((0, 0, 0), 10).await?;
    db.left(1, 0, 1).await?;
    db.advance(Left { writer: 1, newest: 1, since: 0 }, 0, 2).await?;
    Ok(())
}

async fn of_sessions(store: &SessionStore) -> anyhow::Result<()> {
    let id = SessionId::from_uuid(Uuid::now_v7());
    store.session(id).await?;
    store.load().await?;
    for (statuses, before, after) in
        [(vec![], None, None), (vec![SessionStatus::Idle], Some(id), None), (vec![], None, Some(id))]
    {
        let query = Query { tenant: "acme".parse()?, statuses, agents: vec![], before, after, limit: 10 };
        store.sessions(&query).await?;
    }
    store.db().delete_ended("session", "'completed', 'failed'", 1).await?;
    Ok(())
}

/// The steps of the plan that the database makes where it does not know the values.
async fn plan(db: &Db, statement: &str) -> anyhow::Result<Vec<String>> {
    match db {
        Db::Sqlite(sqlite) => {
            let rows = sqlx::query(AssertSqlSafe(format!("EXPLAIN QUERY PLAN {statement}"))).fetch_all(&sqlite.write);
            rows.await?.iter().map(|row| Ok(row.try_get::<String, _>("detail")?)).collect()
        }
        Db::Postgres(pool) => {
            let parameters = (1..=26).rev().find(|n| statement.contains(&format!("${n}"))).unwrap_or(0);
            let values = vec!["NULL"; parameters].join(", ");
            let values = if parameters == 0 { values } else { format!("({values})") };
            let mut tx = pool.begin().await?;
            // The tables are empty: what is asked is whether there is another way than reading them whole.
            for step in [
                "SET LOCAL plan_cache_mode = force_generic_plan",
                "SET LOCAL enable_seqscan = off",
                "SET LOCAL enable_bitmapscan = off",
                "SET LOCAL enable_sort = off",
            ] {
                sqlx::raw_sql(step).execute(&mut *tx).await?;
            }
            sqlx::raw_sql(AssertSqlSafe(format!("PREPARE asked AS {statement}"))).execute(&mut *tx).await?;
            let rows = sqlx::raw_sql(AssertSqlSafe(format!("EXPLAIN EXECUTE asked{values}"))).fetch_all(&mut *tx);
            let steps: anyhow::Result<Vec<String>> =
                rows.await?.iter().map(|row| Ok(row.try_get::<String, _>(0)?)).collect();
            sqlx::raw_sql("DEALLOCATE asked").execute(&mut *tx).await?;
            steps
        }
    }
}

/// What is wrong with a plan.
fn fault(plan: &[String]) -> Option<String> {
    let large = |text: &str| text.split_whitespace().next().is_some_and(|table| LARGE.contains(&table));
    plan.iter().find_map(|step| {
        let step = step.trim_start_matches(['-', '>', ' ']);
        let of_the_open = OF_THE_OPEN.iter().any(|index| step.contains(index));
        let whole = step.strip_prefix("SCAN ").or_else(|| step.split_once("Seq Scan on ").map(|(_, of)| of));
        let sorts = step.starts_with("USE TEMP B-TREE FOR ORDER BY") || step.starts_with("Sort  (");
        (whole.is_some_and(large) && !of_the_open || sorts).then(|| step.to_owned())
    })
}
