//! Runs as programs: one process per run, one run per session at a time.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use errand_core::{Error, ErrorCode};
use errand_runner::{Assigned, Control, Credential, Ending};
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

use crate::conversation::Conversation;
use crate::process::{self, Process};
use crate::protocol::{self, Program};
use crate::supervisor::Ended;
use crate::work::{RunFolders, Work};

/// Where programs come from, and how they are started.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Programs' working directory.
    pub directory: PathBuf,
    /// The binary that answers to [`crate::SUPERVISE`].
    pub supervisor: PathBuf,
}

/// What a runner tells its programs beyond what every runner does.
#[derive(Debug, Clone, Default)]
pub struct Extra {
    /// Further fields of the `start` message.
    pub fields: BTreeMap<&'static str, Value>,
    /// Further environment variables. A program's `env` does not change them.
    pub env: BTreeMap<&'static str, String>,
}

/// The programs of one session.
#[derive(Debug, Clone)]
pub struct Session {
    /// Programs that have ended or are being killed.
    dying: TaskTracker,
    /// Something may have escaped its supervisor.
    suspicious: Arc<AtomicBool>,
}

impl Default for Session {
    fn default() -> Self {
        let dying = TaskTracker::new();
        // So that waiting ends when nothing is left.
        dying.close();
        Self { dying, suspicious: Arc::default() }
    }
}

impl Session {
    /// Waits until nothing that was let go of lives any more; whether something may have escaped.
    pub async fn end(&self) -> bool {
        self.dying.wait().await;
        self.suspicious.load(Ordering::Relaxed)
    }
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

/// Executes runs as programs.
#[derive(Debug)]
pub struct Programs {
    settings: Settings,
    work: Arc<Work>,
}

impl Programs {
    /// With these settings, in these folders.
    #[must_use]
    pub fn new(settings: Settings, work: Arc<Work>) -> Self {
        Self { settings, work }
    }

    /// Executes a run as this program to its end. Where it is dropped, the program is killed with all that it has
    /// started; [`Session::end`] waits for that.
    pub async fn execute(
        &self,
        session: &Session,
        program: Program,
        run: Assigned,
        extra: Extra,
        control: Control,
    ) -> Ending {
        let run_id = run.run_id;
        match self.try_execute(session.clone(), program, run, extra, control).await {
            Ok(ending) => ending,
            Err(Stillborn::Failed(error)) => Ending::Failed(vec![error]),
            Err(Stillborn::Lost(error)) => {
                tracing::error!(run = %run_id, %error, "the program could not be prepared");
                Ending::SessionLost(format!("the runner could not prepare the program: {}", error.kind()))
            }
        }
    }

    async fn try_execute(
        &self,
        session: Session,
        program: Program,
        run: Assigned,
        extra: Extra,
        control: Control,
    ) -> Result<Ending, Stillborn> {
        // One run at a time, also where the one before was let go of.
        session.dying.wait().await;
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
        let (run, work) = (Arc::new(run), Arc::clone(&self.work));
        let shared = Arc::clone(&run);
        let made = tokio::task::spawn_blocking(move || work.make_run(&shared)).await;
        let folders = made.map_err(io::Error::other)??;
        let first = protocol::start(&run, &extra.fields, credential.as_ref(), &folders.session, &folders.files)?;
        let place = process::Place { supervisor: &self.settings.supervisor, directory: &directory, folders: &folders };
        let process = process::start(&place, &program, &extra, &run.run_id.to_string(), control.secret_filter())?;
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
