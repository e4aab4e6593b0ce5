//! One run's talk with its agent, from the first line to the end.

use std::path::{Component, Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use errand_core::run::Question;
use errand_core::{Error, ErrorCode};
use errand_runner::{ArtifactKind, Captures, Control, Ending, NewFile, Stop, Unanswered};
use serde_json::Value;
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

use crate::lines::Line;
use crate::process::Process;
use crate::protocol::{self, FileKind, FileSaid, Message};
use crate::supervisor::Ended;

/// How long an agent may take to exit when it has said how the run ends.
const EXIT_PATIENCE: Duration = Duration::from_secs(10);
/// How long stdout is still read when the supervisor is gone: something that outlived it may hold the other end.
const REST_PATIENCE: Duration = Duration::from_secs(1);
/// The longest that an agent may take to leave before its group gets SIGTERM.
const MAX_POLITE: Duration = Duration::from_secs(10);

type Asking = Pin<Box<dyn Future<Output = Result<Value, Unanswered>> + Send>>;

/// See the module.
pub(crate) struct Conversation {
    control: Control,
    files: std::path::PathBuf,
    captures: Captures,
    /// What the agent has said of the end.
    outcome: Option<Ending>,
    question: Option<Open>,
    stop: Option<Stopping>,
    /// When something is to be done if nothing happens.
    deadline: Option<Instant>,
    /// The supervisor has ended.
    unsupervised: bool,
}

struct Open {
    id: String,
    /// The line that asked.
    line: u64,
    answer: Asking,
}

struct Stopping {
    /// SIGTERM has been sent.
    terminated: bool,
    kill_at: Instant,
}

/// What comes next.
enum Next {
    Line(Option<Line>),
    Answer(Result<Value, Unanswered>),
    Stop(Stop),
    Deadline,
    Unsupervised,
}

/// How a conversation goes on.
enum Then {
    On,
    /// The agent has ended.
    Ended,
    /// Kill the agent: this is how the run ends.
    Kill(Ending),
}

fn broken(number: u64, what: &str) -> Then {
    Then::Kill(Ending::Failed(vec![protocol::broken(number, what)]))
}

impl Conversation {
    pub(crate) fn new(control: Control, files: &Path) -> Self {
        Self {
            captures: Captures::new(control.clone()),
            control,
            files: files.to_owned(),
            outcome: None,
            question: None,
            stop: None,
            deadline: None,
            unsupervised: false,
        }
    }

    /// Talks until the agent has ended or is to be killed. `process` stays where it is while this waits, so that
    /// whoever drops this kills it.
    pub(crate) async fn hold(&mut self, process: &mut Process) -> Option<Ending> {
        loop {
            let next = self.next(process).await;
            let then = match next {
                Next::Line(None) => return None,
                Next::Line(Some(line)) => self.hear(line, process.lines.number).await,
                Next::Answer(answer) => self.answered(answer, process),
                Next::Stop(stop) => self.begin_stop(stop, process),
                Next::Deadline => self.deadline_passed(process),
                Next::Unsupervised => {
                    self.unsupervised = true;
                    self.deadline = Some(Instant::now() + REST_PATIENCE);
                    Then::On
                }
            };
            match then {
                Then::On => {}
                Then::Ended => return None,
                Then::Kill(ending) => return Some(ending),
            }
        }
    }

    async fn next(&mut self, process: &mut Process) -> Next {
        let question = self.question.as_mut();
        let answer = async {
            match question {
                Some(open) => open.answer.as_mut().await,
                None => std::future::pending().await,
            }
        };
        let deadline = self.deadline;
        let passed = async {
            match deadline {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let lines = &mut process.lines;
        let line = async {
            // Who captures faster than files are kept waits.
            self.captures.room().await;
            lines.next().await
        };
        tokio::select! {
            line = line => Next::Line(line.unwrap_or(None)),
            answer = answer => Next::Answer(answer),
            stop = self.control.stop(), if self.stop.is_none() => Next::Stop(stop),
            () = passed => Next::Deadline,
            _ = process.supervised.child.wait(), if !self.unsupervised => Next::Unsupervised,
        }
    }

    async fn hear(&mut self, line: Line, number: u64) -> Then {
        if self.outcome.is_some() {
            // The first one counts, whatever follows is ignored.
            return match line {
                Line::Whole(_) => Then::On,
                Line::TooLong => self.let_go(),
            };
        }
        let Line::Whole(line) = line else {
            return broken(number, &format!("is longer than {} bytes", protocol::MAX_LINE_BYTES));
        };
        let message = match protocol::parse(&line) {
            Ok(message) => message,
            Err(what) => return broken(number, &what),
        };
        match message {
            Message::Progress { message, step, percent } => self.control.progress(message, step, percent),
            Message::Asks(question) => self.ask(question, number),
            Message::File(file) => {
                let path = match check_file(&self.files, &file).await {
                    Ok(path) => path,
                    Err(what) => return broken(number, what),
                };
                // Held open: what the agent does with its name from now on changes nothing.
                let Ok(source) = tokio::fs::File::open(&path).await else {
                    return broken(number, "is no file: it cannot be read");
                };
                self.captures.push(new_file(file), source);
                self.control.alive();
            }
            Message::Auth(Ok(())) => self.control.auth_ok(),
            Message::Auth(Err(failure)) => self.control.auth_failed(failure),
            Message::Output(output) => self.ends(Ending::Finished(output)),
            Message::Failed(error) => self.ends(Ending::Failed(vec![error])),
        }
        Then::On
    }

    fn ends(&mut self, outcome: Ending) {
        self.outcome = Some(outcome);
        self.question = None;
        let exit_at = Instant::now() + EXIT_PATIENCE;
        self.deadline = Some(self.deadline.map_or(exit_at, |deadline| deadline.min(exit_at)));
    }

    fn ask(&mut self, mut question: Question, line: u64) {
        if question.id.is_empty() {
            question.id = Uuid::now_v7().to_string();
        }
        let (id, control) = (question.id.clone(), self.control.clone());
        let answer: Asking = Box::pin(async move { control.ask(question).await });
        self.question = Some(Open { id, line, answer });
    }

    fn answered(&mut self, answer: Result<Value, Unanswered>, process: &Process) -> Then {
        let Some(open) = self.question.take() else { return Then::On };
        match answer {
            Ok(value) => process.send(protocol::answer(&open.id, &value)),
            Err(Unanswered::Invalid(error)) => {
                return broken(open.line, &format!("is no interaction: {}", error.message));
            }
            // The stop is told by itself.
            Err(Unanswered::Stopped(_) | Unanswered::Superseded) => {}
        }
        Then::On
    }

    /// The agent is told, and given some time; then its group gets SIGTERM, and SIGKILL shortly before Errand's
    /// patience with this runner ends, so that the session need not go with it.
    fn begin_stop(&mut self, stop: Stop, process: &Process) -> Then {
        let polite = (stop.grace / 2).min(MAX_POLITE);
        process.send(protocol::stop(stop.reason.as_str(), polite));
        let spare = (stop.grace / 10).min(Duration::from_secs(1));
        let kill_at = stop.deadline.checked_sub(spare).unwrap_or(stop.deadline);
        self.stop = Some(Stopping { terminated: false, kill_at });
        self.deadline = Some(Instant::now() + polite);
        Then::On
    }

    fn deadline_passed(&mut self, process: &Process) -> Then {
        if self.unsupervised {
            return Then::Ended;
        }
        match &mut self.stop {
            Some(stop) if !stop.terminated => {
                stop.terminated = true;
                self.deadline = Some(stop.kill_at);
                process.supervised.terminate();
                Then::On
            }
            Some(_) | None => self.let_go(),
        }
    }

    /// Has the agent killed; what it has said stands.
    fn let_go(&mut self) -> Then {
        Then::Kill(self.outcome.take().unwrap_or(Ending::Stopped))
    }

    /// How the run ends when the agent has ended, by itself or killed with `said`, and its files are kept.
    pub(crate) async fn end(self, said: Option<Ending>, ended: Ended) -> Ending {
        let Self { captures, outcome, stop, .. } = self;
        let ending = said.unwrap_or_else(|| Self::ending(outcome, stop.is_some(), ended));
        captures.end(ending).await
    }

    /// How the run ends when the agent has ended by itself.
    fn ending(outcome: Option<Ending>, stopped: bool, ended: Ended) -> Ending {
        if let Some(outcome) = outcome {
            return outcome;
        }
        if stopped {
            return Ending::Stopped;
        }
        let failed = |message: String| Ending::Failed(vec![agent_error(message)]);
        match ended {
            Ended::Code(0) => Ending::Finished(Bytes::new()),
            Ended::Code(code) => failed(format!("the agent exited with status {code}")),
            Ended::Signal(signal) => failed(format!("the agent was killed by {}", signal_name(signal))),
            Ended::Unstarted(why) => failed(format!("the program could not be started: {why}")),
            Ended::Killed => failed("the agent was killed with its whole process group".to_owned()),
        }
    }
}

fn agent_error(message: String) -> Error {
    ErrorCode::AGENT_ERROR.with(message)
}

fn signal_name(number: i32) -> String {
    match nix::sys::signal::Signal::try_from(number) {
        Ok(signal) => format!("signal {number} ({})", signal.as_str()),
        Err(_) => format!("signal {number}"),
    }
}

fn new_file(said: FileSaid) -> NewFile {
    let FileSaid { path, name, kind, data } = said;
    let kind = match kind {
        FileKind::File => ArtifactKind::File,
        FileKind::Screenshot => ArtifactKind::Screenshot,
    };
    NewFile { kind, name: name.unwrap_or(path), data }
}

/// Where a file is, if it is inside its run's folder, wherever symlinks lead. The error names neither.
async fn check_file(folder: &Path, said: &FileSaid) -> Result<PathBuf, &'static str> {
    let path = Path::new(&said.path);
    if !path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
        return Err("is no file: path must be relative to the files directory and stay inside");
    }
    let absent = |_| "is no file: there is none at its path";
    let found = tokio::fs::canonicalize(folder.join(path)).await.map_err(absent)?;
    let folder = tokio::fs::canonicalize(folder).await.map_err(absent)?;
    if !found.starts_with(&folder) {
        return Err("is no file: path leads out of the files directory");
    }
    let metadata = tokio::fs::metadata(&found).await.map_err(absent)?;
    if !metadata.is_file() {
        return Err("is no file: at its path is something else");
    }
    tracing::debug!(kind = ?said.kind, named = said.name.is_some(), extracted = said.data.is_some(),
        bytes = metadata.len(), "the agent has captured a file");
    Ok(found)
}
