//! Sessions as private folders, runs as programs.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use errand_core::{Error, ErrorCode, SessionId};
use errand_runner::{Assigned, Control, Credential, Ending, Host, SessionStart};
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

use crate::conversation::Conversation;
use crate::process::{self, Process};
use crate::protocol::{self, Program};
use crate::supervisor::Ended;
use crate::work::{RunFolders, Work};

/// Where programs come from, and how they are started.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Programs' working directory.
    pub(crate) directory: PathBuf,
    /// The binary that answers to [`crate::SUPERVISE`].
    pub(crate) supervisor: PathBuf,
}

/// The exec runner's own part.
pub(crate) struct Exec {
    settings: Settings,
    work: Arc<Work>,
    sessions: Mutex<HashMap<SessionId, Session>>,
}

#[derive(Clone, Default)]
struct Session {
    /// Programs that have ended or are being killed.
    dying: TaskTracker,
    /// Something may have escaped its supervisor.
    suspicious: Arc<AtomicBool>,
}

/// What is left of a run when its talk is over: everything that it has started is killed, its folders tidied up.
struct Remains {
    process: Process,
    session: Session,
    work: Arc<Work>,
    folders: RunFolders,
}

impl Remains {
    /// Kills what lives, or waits for the end of what has ended; how it ended, if it did by itself.
    async fn clear(self, kill: bool) -> Ended {
        let Self { process, session, work, folders } = self;
        let ended = if kill {
            let in_time = process.kill().await;
            // Taken for suspicious only where the supervisor did not do its work.
            if in_time { Ended::Code(0) } else { Ended::Killed }
        } else {
            process.ended().await
        };
        if ended == Ended::Killed {
            session.suspicious.store(true, Ordering::Relaxed);
        }
        let tidied = tokio::task::spawn_blocking(move || work.end_run(&folders)).await;
        if let Ok(Err(error)) = tidied {
            tracing::warn!(%error, "a run's folder could not be tidied up");
        }
        ended
    }
}

/// Sees to the remains, also where the execution is dropped.
struct Kept(Option<Remains>);

impl Kept {
    /// As a task of its own, which nobody can drop.
    fn clear(&mut self, kill: bool) -> Option<JoinHandle<Ended>> {
        let remains = self.0.take()?;
        // Without a runtime the pipes are closed here, and the supervisor kills.
        let runtime = tokio::runtime::Handle::try_current().ok()?;
        let dying = remains.session.dying.clone();
        Some(dying.spawn_on(remains.clear(kill), &runtime))
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.clear(true);
    }
}

impl Exec {
    pub(crate) fn new(settings: Settings, work: Work) -> Self {
        Self { settings, work: Arc::new(work), sessions: Mutex::default() }
    }

    fn session(&self, id: SessionId) -> Option<Session> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Work) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let folders = Arc::clone(&self.work);
        tokio::task::spawn_blocking(move || work(&folders)).await.unwrap_or_else(|error| Err(io::Error::other(error)))
    }

    async fn execute_run(&self, session: Session, run: Assigned, control: Control) -> Result<Ending, Stillborn> {
        // One run at a time, also where the one before was let go of.
        session.dying.wait().await;
        let program = Program::parse(&run.program)?;
        let directory = program
            .directory
            .as_ref()
            .map(Path::new)
            .map_or_else(|| self.settings.directory.clone(), |below| self.settings.directory.join(below));
        if !tokio::fs::metadata(&directory).await.is_ok_and(|found| found.is_dir()) {
            let message = "the program's directory is not there".to_owned();
            return Err(ErrorCode::AGENT_ERROR.with(message).into());
        }
        let credential = match credential(&run, &control).await {
            Some(credential) => credential?,
            None => return Ok(Ending::Stopped),
        };
        let run = Arc::new(run);
        let shared = Arc::clone(&run);
        let folders = self.blocking(move |work| work.make_run(&shared)).await?;
        let first = protocol::start(&run, credential.as_ref(), &folders.session, &folders.files)?;
        let place = process::Place { supervisor: &self.settings.supervisor, directory: &directory, folders: &folders };
        let process = process::start(&place, &program, &run.run_id.to_string(), control.secret_filter())?;
        process.send(first);
        process.send(protocol::input(&run));
        let mut conversation = Conversation::new(control, &folders.files);
        let mut kept = Kept(Some(Remains { process, session, work: Arc::clone(&self.work), folders }));
        let said = match &mut kept.0 {
            Some(remains) => conversation.hold(&mut remains.process).await,
            None => None,
        };
        let ended = match kept.clear(said.is_some()) {
            Some(clearing) => clearing.await.unwrap_or(Ended::Killed),
            None => Ended::Killed,
        };
        Ok(conversation.end(said, ended).await)
    }
}

/// The credential that the run names, if it does, before anything is started; none where the run is to stop first.
async fn credential(run: &Assigned, control: &Control) -> Option<Result<Option<Credential>, Error>> {
    if run.credential_id.is_none() {
        return Some(Ok(None));
    }
    tokio::select! {
        credential = control.credential() => Some(credential.map(Some)),
        _ = control.stop() => None,
    }
}

/// Why a run did not begin.
enum Stillborn {
    /// Its task's fault.
    Failed(Error),
    /// The machine's.
    Lost(io::Error),
}

impl From<Error> for Stillborn {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl From<io::Error> for Stillborn {
    fn from(error: io::Error) -> Self {
        Self::Lost(error)
    }
}

impl Host for Exec {
    async fn start_session(&self, session: SessionStart) -> Result<(), Error> {
        let id = session.id;
        self.blocking(move |work| work.make_session(id)).await.map_err(|error| {
            ErrorCode::PROVISION_FAILED.with(format!("the session's folder cannot be made: {}", error.kind()))
        })?;
        let session = Session::default();
        // So that waiting ends when nothing is left.
        session.dying.close();
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).insert(id, session);
        Ok(())
    }

    async fn end_session(&self, id: SessionId) {
        let session = self.sessions.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        let mut suspicious = false;
        if let Some(session) = session {
            session.dying.wait().await;
            suspicious = session.suspicious.load(Ordering::Relaxed);
        }
        if let Err(error) = self.blocking(move |work| work.end_session(id, suspicious)).await {
            tracing::warn!(session = %id, %error, "a session's folder could not be removed");
        }
    }

    async fn execute(&self, run: Assigned, control: Control) -> Ending {
        let Some(session) = self.session(run.lease.session_id) else {
            return Ending::SessionLost("the session is not here".to_owned());
        };
        let run_id = run.run_id;
        match self.execute_run(session, run, control).await {
            Ok(ending) => ending,
            Err(Stillborn::Failed(error)) => Ending::Failed(vec![error]),
            Err(Stillborn::Lost(error)) => {
                tracing::error!(run = %run_id, %error, "the program could not be prepared");
                Ending::SessionLost(format!("the runner could not prepare the program: {}", error.kind()))
            }
        }
    }
}
