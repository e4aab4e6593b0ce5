//! Tasks.

use errand_core::task::Definition;
use errand_proto::v1;
use futures::Stream;

use crate::call::{Repeat, present};
use crate::runs::task_ref;
use crate::{Client, ClientError, pages};

impl Client {
    /// Makes the task of this name be as it is written: a new one, a new version, or no change where nothing differs.
    ///
    /// # Errors
    /// [`ClientError`]; `request`/`schema_invalid`, `request`/`input_invalid` at the field.
    pub async fn apply_task(&self, definition: &Definition) -> Result<v1::Task, ClientError> {
        let (tenant, task) = (self.tenant.to_string(), Some(v1::Task::from(definition)));
        let request = v1::CreateTaskRequest { tenant, task, upsert: true };
        let answer: v1::TaskResponse = self.dispatcher("create_task", &request, Repeat::Safe).await?;
        present(answer.task, "task")
    }

    /// A task by id or name; its newest version unless another is asked for.
    ///
    /// # Errors
    /// [`ClientError`]; `request`/`task_not_found`.
    pub async fn get_task(&self, task: &str, version: Option<u32>) -> Result<v1::Task, ClientError> {
        let (tenant, task_id) = (self.tenant.to_string(), task_ref(task)?);
        let request = v1::GetTaskRequest { tenant, task_id, version: version.unwrap_or(0) };
        let answer: v1::TaskResponse = self.dispatcher("get_task", &request, Repeat::Safe).await?;
        present(answer.task, "task")
    }

    /// All tasks, or those of these agents, newest first.
    pub fn tasks(
        &self,
        agents: Vec<String>,
    ) -> impl Stream<Item = Result<v1::Task, ClientError>> + Send + Unpin + use<> {
        let client = self.clone();
        let pages = pages::stream(move |cursor| {
            let (client, agent_id) = (client.clone(), agents.clone());
            async move {
                let (tenant, page) = (client.tenant.to_string(), pages::page(cursor));
                let request = v1::ListTasksRequest { tenant, page, agent_id };
                let page: v1::ListTasksResponse = client.dispatcher("list_tasks", &request, Repeat::Safe).await?;
                Ok((page.tasks, pages::following(page.page)))
            }
        });
        Box::pin(pages)
    }

    /// Deletes a task by id or name. Its runs stay, and those under way go on.
    ///
    /// # Errors
    /// [`ClientError`]; `request`/`task_not_found`.
    pub async fn delete_task(&self, task: &str) -> Result<v1::Task, ClientError> {
        let request = v1::DeleteTaskRequest { tenant: self.tenant.to_string(), task_id: task_ref(task)? };
        let answer: v1::TaskResponse = self.dispatcher("delete_task", &request, Repeat::Unreceived).await?;
        present(answer.task, "task")
    }
}
