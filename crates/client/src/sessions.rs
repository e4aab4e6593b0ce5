//! Sessions, runners, agents.

use errand_core::session::SessionStatus;
use errand_core::{RunnerId, SessionId};
use errand_proto::v1;
use futures::Stream;

use crate::call::{Repeat, present};
use crate::{Client, ClientError, pages};

impl Client {
    /// The tenant's sessions, newest first.
    pub fn sessions(
        &self,
        status: Vec<SessionStatus>,
        agents: Vec<String>,
    ) -> impl Stream<Item = Result<v1::Session, ClientError>> + Send + Unpin + use<> {
        let client = self.clone();
        let status: Vec<i32> = status.into_iter().map(|status| v1::SessionStatus::from(status).into()).collect();
        let pages = pages::stream(move |cursor| {
            let (client, status, agent_id) = (client.clone(), status.clone(), agents.clone());
            async move {
                let (tenant, page) = (client.tenant.to_string(), pages::page(cursor));
                let request = v1::ListSessionsRequest { tenant, page, status, agent_id };
                let page: v1::ListSessionsResponse = client.pool("list_sessions", &request, Repeat::Safe).await?;
                Ok((page.sessions, pages::following(page.page)))
            }
        });
        Box::pin(pages)
    }

    /// One session.
    ///
    /// # Errors
    /// [`ClientError`]; `request`/`session_not_found`.
    pub async fn get_session(&self, session: SessionId) -> Result<v1::Session, ClientError> {
        let request = v1::GetSessionRequest { tenant: self.tenant.to_string(), session_id: session.to_string() };
        let answer: v1::SessionResponse = self.pool("get_session", &request, Repeat::Safe).await?;
        present(answer.session, "session")
    }

    /// Ends a session; the run in it is canceled.
    ///
    /// # Errors
    /// [`ClientError`]; `request`/`session_not_found`.
    pub async fn end_session(&self, session: SessionId) -> Result<v1::Session, ClientError> {
        let request = v1::EndSessionRequest { tenant: self.tenant.to_string(), session_id: session.to_string() };
        let answer: v1::SessionResponse = self.pool("end_session", &request, Repeat::Safe).await?;
        present(answer.session, "session")
    }

    /// The runners that are connected.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn runners(&self, agents: Vec<String>) -> Result<Vec<v1::Runner>, ClientError> {
        let request = v1::ListRunnersRequest { agent_id: agents };
        let answer: v1::ListRunnersResponse = self.pool("list_runners", &request, Repeat::Safe).await?;
        Ok(answer.runners)
    }

    /// Lets a runner finish what it has, and gives it nothing new.
    ///
    /// # Errors
    /// [`ClientError`]; `request`/`runner_not_found`.
    pub async fn drain_runner(&self, runner: RunnerId) -> Result<v1::Runner, ClientError> {
        let request = v1::DrainRunnerRequest { runner_id: runner.to_string() };
        let answer: v1::DrainRunnerResponse = self.pool("drain_runner", &request, Repeat::Safe).await?;
        present(answer.runner, "runner")
    }

    /// The agents that the connected runners serve, or runs wait for.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn agents(&self) -> Result<Vec<v1::Agent>, ClientError> {
        let answer: v1::ListAgentsResponse = self.pool("list_agents", &v1::ListAgentsRequest {}, Repeat::Safe).await?;
        Ok(answer.agents)
    }
}
