//! The tasks whose runs are simulated: short times, so that every deadline can pass within a simulation.

use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};

use errand_core::task::{Definition, RetryOn, Settings, Storage, Task};
use errand_core::{TaskId, Tenant, Timestamp};
use errand_dispatcher::catalog::Compiled;
use uuid::Uuid;

fn settings() -> Settings {
    Settings {
        timeout_seconds: None,
        inactivity_seconds: 12,
        interaction_seconds: 15,
        queue_seconds: 60,
        max_attempts: 3,
        retry_on: BTreeSet::from([RetryOn::SessionLost]),
        review: false,
        review_seconds: Some(20),
        reuse_session: false,
        priority: 0,
    }
}

fn all_settings() -> Vec<Settings> {
    vec![
        settings(),
        Settings { reuse_session: true, ..settings() },
        Settings { review: true, ..settings() },
        Settings { review: true, review_seconds: None, reuse_session: true, ..settings() },
        Settings { timeout_seconds: Some(25), priority: 5, ..settings() },
        Settings { max_attempts: 1, queue_seconds: 20, ..settings() },
        Settings { retry_on: BTreeSet::new(), inactivity_seconds: 6, reuse_session: true, ..settings() },
    ]
}

fn id(number: usize) -> TaskId {
    TaskId::from_uuid(Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0000 + number as u128))
}

/// All of them; an output is a number.
pub(crate) fn all() -> &'static [Arc<Compiled>] {
    static ALL: OnceLock<Vec<Arc<Compiled>>> = OnceLock::new();
    ALL.get_or_init(|| {
        let compiled = |(number, settings)| {
            let definition = Definition {
                name: format!("task {number}"),
                agent_id: "agt_sim".parse().ok()?,
                prompt: String::new(),
                program: None,
                input_schema: None,
                output_schema: Some(serde_json::json!({"type": "integer"})),
                settings,
                storage: Storage::default(),
            };
            let at = Timestamp(0);
            let tenant: Tenant = "acme".parse().ok()?;
            let task = Task { id: id(number), tenant, version: 1, definition, created_at: at, updated_at: at };
            Compiled::new(task).ok().map(Arc::new)
        };
        all_settings().into_iter().enumerate().filter_map(compiled).collect()
    })
}

/// One by its id.
pub(crate) fn find(id: TaskId) -> Option<Arc<Compiled>> {
    all().iter().find(|task| task.task.id == id).cloned()
}
