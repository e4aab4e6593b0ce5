//! Task definitions: create, version, delete. Each change commits with its event.

use errand_core::task::{Definition, Task};
use errand_core::{Error, ErrorCode, EventId, TaskId, Tenant};
use errand_proto::event::{TaskRef, of_task};
use errand_store::{Outbox, StoreError};
use tokio::sync::Mutex;
use uuid::Uuid;

use crate::catalog::{Catalog, Compiled, unavailable};
use crate::store::{Current, Store};
use crate::world::now;

/// How often a change is tried again after another one came first.
const TRIES: usize = 5;

/// Changes tasks.
#[derive(Debug)]
pub struct Tasks {
    store: Store,
    /// Its commits must come one after another.
    outbox: Mutex<Outbox>,
    catalog: std::sync::Arc<Catalog>,
}

impl Tasks {
    /// Over this store. The outbox must be nobody else's.
    #[must_use]
    pub fn new(store: Store, outbox: Outbox, catalog: std::sync::Arc<Catalog>) -> Self {
        Self { store, outbox: Mutex::new(outbox), catalog }
    }

    /// A new task; with `upsert`, a new version of the one that has its name, or that one as it is where nothing
    /// differs.
    ///
    /// # Errors
    /// `request`/`input_invalid` where the name is taken; `request`/`schema_invalid`.
    pub async fn create(&self, tenant: &Tenant, definition: Definition, upsert: bool) -> Result<Task, Error> {
        for _ in 0..TRIES {
            let by_name = TaskRef::Name(definition.name.clone());
            let current = self.store.current_task(tenant, &by_name).await.map_err(unavailable)?;
            let created = match current {
                Some(_) if !upsert => return Err(name_taken(&definition.name)),
                Some(current) if current.task.definition == definition => return Ok(current.task),
                Some(current) => self.next_version(current, definition.clone()).await?,
                None => self.first_version(tenant, definition.clone()).await?,
            };
            if let Some(task) = created {
                return Ok(task);
            }
        }
        Err(busy())
    }

    /// A new version of a task, made from this one (0: from any).
    ///
    /// # Errors
    /// `request`/`task_not_found`, `request`/`schema_invalid`, `request`/`input_invalid` where the new name is taken;
    /// `api`/`unavailable` where it has another version since.
    pub async fn update(
        &self,
        tenant: &Tenant,
        id: TaskId,
        definition: Definition,
        if_version: u32,
    ) -> Result<Task, Error> {
        for _ in 0..TRIES {
            let current = self.current(tenant, &TaskRef::Id(id)).await?;
            if if_version != 0 && current.task.version != if_version {
                return Err(busy());
            }
            if let Some(task) = self.next_version(current, definition.clone()).await? {
                return Ok(task);
            }
        }
        Err(busy())
    }

    /// Deletes a task: no further runs; those that began keep their version.
    ///
    /// # Errors
    /// `request`/`task_not_found`.
    pub async fn delete(&self, tenant: &Tenant, task: &TaskRef) -> Result<Task, Error> {
        for _ in 0..TRIES {
            let Current { task, seq } = self.current(tenant, task).await?;
            if self.change(&task, "deleted", seq + 1).await? {
                return Ok(task);
            }
        }
        Err(busy())
    }

    /// One version of a task; 0 means the newest.
    ///
    /// # Errors
    /// `request`/`task_not_found`.
    pub async fn get(&self, tenant: &Tenant, task: &TaskRef, version: u32) -> Result<Task, Error> {
        let current = self.current(tenant, task).await?.task;
        if version == 0 || version == current.version {
            return Ok(current);
        }
        let found = self.store.task_version(current.id, version).await.map_err(unavailable)?;
        found.ok_or_else(|| {
            ErrorCode::TASK_NOT_FOUND.with(format!("{} has no version {version}", current.id)).at("version")
        })
    }

    async fn current(&self, tenant: &Tenant, task: &TaskRef) -> Result<Current, Error> {
        let found = self.store.current_task(tenant, task).await.map_err(unavailable)?;
        found.ok_or_else(|| ErrorCode::TASK_NOT_FOUND.with("there is no such task").at("task_id"))
    }

    async fn first_version(&self, tenant: &Tenant, definition: Definition) -> Result<Option<Task>, Error> {
        let id = TaskId::from_uuid(Uuid::now_v7());
        let (created_at, updated_at) = (now(), now());
        let task = compiled(Task { id, tenant: tenant.clone(), version: 1, definition, created_at, updated_at })?;
        let event = of_task(EventId::from_uuid(Uuid::now_v7()), &task, "created", 1, created_at);
        let outbox = self.outbox.lock().await;
        let staged = outbox.stage([event]).map_err(unavailable)?;
        match self.store.create_task(&task, &staged).await {
            Ok(true) => {
                outbox.publish(staged);
                self.catalog.changed();
                Ok(Some(task))
            }
            Ok(false) => Ok(None),
            Err(error) => {
                outbox.uncertain(staged);
                Err(unavailable(error))
            }
        }
    }

    async fn next_version(&self, current: Current, definition: Definition) -> Result<Option<Task>, Error> {
        let Current { task, seq } = current;
        let task = compiled(Task { version: task.version + 1, definition, updated_at: now(), ..task })?;
        Ok(self.change(&task, "updated", seq + 1).await?.then_some(task))
    }

    async fn change(&self, task: &Task, action: &str, seq: u64) -> Result<bool, Error> {
        let event = of_task(EventId::from_uuid(Uuid::now_v7()), task, action, seq, now());
        let outbox = self.outbox.lock().await;
        let staged = outbox.stage([event]).map_err(unavailable)?;
        match self.store.change_task(task, action == "deleted", seq, &staged).await {
            Ok(true) => {
                outbox.publish(staged);
                self.catalog.changed();
                Ok(true)
            }
            Ok(false) => Ok(false),
            Err(StoreError::Database(error))
                if error.as_database_error().is_some_and(|error| error.is_unique_violation()) =>
            {
                Err(name_taken(&task.definition.name))
            }
            Err(error) => {
                outbox.uncertain(staged);
                Err(unavailable(error))
            }
        }
    }
}

fn compiled(task: Task) -> Result<Task, Error> {
    Compiled::new(task).map(|compiled| compiled.task)
}

fn name_taken(name: &str) -> Error {
    ErrorCode::INPUT_INVALID.with(format!("there is a task named {name} already")).at("name")
}

fn busy() -> Error {
    ErrorCode::API_UNAVAILABLE.with("the task is changed by others all the time; try again")
}
