//! Task versions with their schemas compiled, kept in memory.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use errand_core::task::Task;
use errand_core::{Error, ErrorCode, TaskId, Tenant};
use errand_proto::event::TaskRef;
use errand_schema as schema;
use errand_schema::Validator;
use lru::LruCache;

use crate::store::Store;

const VERSIONS: NonZeroUsize = NonZeroUsize::new(10_000).expect("not zero");
/// How long the newest version is taken from memory. A change by this dispatcher is seen at once; by another, after
/// so long at the latest.
const FRESH: Duration = Duration::from_millis(500);

/// A task version that is ready to check values.
#[derive(Debug)]
pub struct Compiled {
    /// The version.
    pub task: Task,
    /// Its program as JSON; empty where there is none.
    pub program: Bytes,
    input: Option<Validator>,
    output: Option<Validator>,
}

impl Compiled {
    /// Compiles a task's schemas.
    ///
    /// # Errors
    /// `request`/`schema_invalid` at the field.
    pub fn new(task: Task) -> Result<Self, Error> {
        let definition = &task.definition;
        let compile =
            |field, schema: &Option<_>| schema.as_ref().map(|schema| schema::compile(field, schema)).transpose();
        let input = compile("input_schema", &definition.input_schema)?;
        let output = compile("output_schema", &definition.output_schema)?;
        // Checked here, where all schemas are; applied by the storage.
        compile("storage.extraction_schema", &definition.storage.extraction_schema)?;
        let program = definition.program.as_ref().map(|program| program.to_string().into()).unwrap_or_default();
        Ok(Self { program, input, output, task })
    }

    /// Checks a run's input.
    ///
    /// # Errors
    /// `request`/`input_invalid`.
    pub fn check_input(&self, input: &[u8]) -> Result<(), Error> {
        schema::check(input, self.input.as_ref())
            .map_err(|misfit| ErrorCode::INPUT_INVALID.with(format!("input does not fit: {misfit}")).at("input"))
    }

    /// Why an output does not fit; none where it does.
    #[must_use]
    pub fn misfit_of_output(&self, output: &[u8]) -> Option<String> {
        schema::check(output, self.output.as_ref()).err().map(|misfit| format!("output does not fit: {misfit}"))
    }
}

type Newest = LruCache<(Tenant, TaskRef), (Instant, Arc<Compiled>)>;

/// Looks tasks up.
#[derive(Debug)]
pub struct Catalog {
    store: Store,
    versions: Mutex<LruCache<(TaskId, u32), Arc<Compiled>>>,
    newest: Mutex<Newest>,
}

impl Catalog {
    /// Over this store.
    #[must_use]
    pub fn new(store: Store) -> Self {
        Self { store, versions: Mutex::new(LruCache::new(VERSIONS)), newest: Mutex::new(LruCache::new(VERSIONS)) }
    }

    /// The newest version of a tenant's task; none where there is no such task.
    ///
    /// # Errors
    /// `api`/`unavailable` where the store fails.
    pub async fn newest(&self, tenant: &Tenant, task: &TaskRef) -> Result<Option<Arc<Compiled>>, Error> {
        let key = (tenant.clone(), task.clone());
        if let Some((at, compiled)) = lock(&self.newest).get(&key)
            && at.elapsed() < FRESH
        {
            return Ok(Some(Arc::clone(compiled)));
        }
        let Some(current) = self.store.current_task(tenant, task).await.map_err(unavailable)? else { return Ok(None) };
        let compiled = self.compiled(current.task)?;
        lock(&self.newest).put(key, (Instant::now(), Arc::clone(&compiled)));
        Ok(Some(compiled))
    }

    /// One version, whatever became of the task since.
    ///
    /// # Errors
    /// `api`/`unavailable` where the store fails.
    pub async fn version(&self, id: TaskId, version: u32) -> Result<Option<Arc<Compiled>>, Error> {
        if let Some(compiled) = lock(&self.versions).get(&(id, version)) {
            return Ok(Some(Arc::clone(compiled)));
        }
        let task = self.store.task_version(id, version).await.map_err(unavailable)?;
        task.map(|task| self.compiled(task)).transpose()
    }

    /// Forgets which version is the newest.
    pub fn changed(&self) {
        lock(&self.newest).clear();
    }

    fn compiled(&self, task: Task) -> Result<Arc<Compiled>, Error> {
        let key = (task.id, task.version);
        if let Some(compiled) = lock(&self.versions).get(&key) {
            return Ok(Arc::clone(compiled));
        }
        let compiled = Arc::new(Compiled::new(task)?);
        lock(&self.versions).put(key, Arc::clone(&compiled));
        Ok(compiled)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a user is told when the store fails: its words stay in the log.
pub fn unavailable(error: errand_store::StoreError) -> Error {
    tracing::error!(%error, "the store failed");
    ErrorCode::API_UNAVAILABLE.with("the store does not answer; try again")
}
