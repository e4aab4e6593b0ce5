//! Sessions as private folders, runs as programs.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use errand_core::{Error, ErrorCode, SessionId};
use errand_process::{Extra, Program, Programs, Session, Settings, Work};
use errand_runner::{Assigned, Control, Ending, Host, SessionStart};

/// The exec runner's own part.
pub(crate) struct Exec {
    programs: Programs,
    work: Arc<Work>,
    sessions: Mutex<HashMap<SessionId, Session>>,
}

impl Exec {
    pub(crate) fn new(settings: Settings, work: Work) -> Self {
        let work = Arc::new(work);
        Self { programs: Programs::new(settings, Arc::clone(&work)), work, sessions: Mutex::default() }
    }

    fn session(&self, id: SessionId) -> Option<Session> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    async fn blocking(&self, work: impl FnOnce(&Work) -> io::Result<()> + Send + 'static) -> io::Result<()> {
        let folders = Arc::clone(&self.work);
        tokio::task::spawn_blocking(move || work(&folders)).await.unwrap_or_else(|error| Err(io::Error::other(error)))
    }
}

impl Host for Exec {
    async fn start_session(&self, session: SessionStart) -> Result<(), Error> {
        let id = session.id;
        self.blocking(move |work| work.make_session(id)).await.map_err(|error| {
            ErrorCode::PROVISION_FAILED.with(format!("the session's folder cannot be made: {}", error.kind()))
        })?;
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).insert(id, Session::default());
        Ok(())
    }

    async fn end_session(&self, id: SessionId) {
        let session = self.sessions.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        let suspicious = match session {
            Some(session) => session.end().await,
            None => false,
        };
        if let Err(error) = self.blocking(move |work| work.end_session(id, suspicious)).await {
            tracing::warn!(session = %id, %error, "a session's folder could not be removed");
        }
    }

    async fn execute(&self, run: Assigned, control: Control) -> Ending {
        let Some(session) = self.session(run.lease.session_id) else {
            return Ending::SessionLost("the session is not here".to_owned());
        };
        match Program::parse(&run.program) {
            Ok(program) => self.programs.execute(&session, program, run, Extra::default(), control).await,
            Err(error) => Ending::Failed(vec![error]),
        }
    }
}
