//! Executes a declarative program on a session's pages.

mod act;
mod failure;
mod file;
mod find;
mod read;

use std::borrow::Cow;
use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use errand_core::{Error, ErrorCode, limits};
use errand_runner::{Assigned, Control, Credential};
use futures::FutureExt;
use futures::future::BoxFuture;
use serde_json::{Map, Value, json};
use tokio::time::{Instant, timeout};
use zeroize::Zeroizing;

use crate::browser::Browser;
use crate::captures::Files;
use crate::cdp::CdpError;
use crate::program::{Action, Dynamic, Fill, Over, Root, Scope, Step, Steps};

use failure::Failure;

/// Steps that one run may do, those in loops each time.
const MAX_DONE: usize = 20_000;
/// What variables and output may hold together while a run is under way.
const MAX_KEPT_BYTES: usize = 4 * 1024 * 1024;
/// How long a page may leave a command unanswered beyond its step's own time.
const UNRESPONSIVE: Duration = Duration::from_secs(2);
/// How long the picture of a failure may take.
const LAST_PICTURE: Duration = Duration::from_secs(10);

/// Why a run does not go on.
#[derive(Debug)]
pub(crate) enum Broken {
    /// The browser has gone.
    Lost,
    /// The run is to stop.
    Stopped,
    Failed(Failure),
}

impl From<Failure> for Broken {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<CdpError> for Broken {
    fn from(error: CdpError) -> Self {
        match error {
            CdpError::Closed => Self::Lost,
            error => Self::Failed(Failure::new(ErrorCode::SOURCE_ERROR, error.to_string())),
        }
    }
}

/// What an author's template did wrong.
fn template(what: String) -> Broken {
    Broken::Failed(Failure::new(ErrorCode::AGENT_ERROR, what))
}

/// Why there are no secrets.
fn of_vault(error: Error) -> Broken {
    Broken::Failed(Failure::new(error.code, error.message))
}

/// How steps go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    On,
    /// Out of the innermost loop.
    Break,
}

/// What a run works with.
pub(crate) struct Machine<'a> {
    pub(crate) browser: &'a Browser,
    pub(crate) control: &'a Control,
    pub(crate) files: &'a Files,
    pub(crate) run: &'a Assigned,
    input: Value,
    answer: Option<Value>,
    credential: Option<Credential>,
    /// The one-time code for the step under way.
    code: Option<Zeroizing<String>>,
    vars: Value,
    output: Value,
    items: Vec<(String, Value)>,
    about: Value,
    done: usize,
    kept: usize,
    percent: Option<u8>,
    /// When the newest files were asked for through links.
    links_saved: VecDeque<Instant>,
    /// When the step under way has had its time.
    deadline: Instant,
    allowed: Duration,
}

impl Scope for Machine<'_> {
    fn root(&self, root: &Root) -> Option<Cow<'_, Value>> {
        match root {
            Root::Input => Some(Cow::Borrowed(&self.input)),
            Root::Answer => self.answer.as_ref().map(Cow::Borrowed),
            Root::Vars => Some(Cow::Borrowed(&self.vars)),
            Root::Output => Some(Cow::Borrowed(&self.output)),
            Root::Run => Some(Cow::Borrowed(&self.about)),
            Root::Credential => self.credential.as_ref().map(|known| Cow::Owned(self.secrets(known))),
            Root::Item(name) => {
                let found = self.items.iter().rev().find(|(own, _)| own == name);
                found.map(|(_, value)| Cow::Borrowed(value))
            }
        }
    }
}

impl<'a> Machine<'a> {
    pub(crate) fn new(
        browser: &'a Browser,
        control: &'a Control,
        files: &'a Files,
        run: &'a Assigned,
    ) -> Result<Self, Error> {
        let input = if run.input.is_empty() { Ok(Value::Null) } else { serde_json::from_slice(&run.input) };
        let input = input.map_err(|_| ErrorCode::AGENT_ERROR.with("the run's input is not JSON"))?;
        Ok(Self {
            browser,
            control,
            files,
            run,
            input,
            answer: None,
            credential: None,
            code: None,
            vars: Value::Object(Map::new()),
            output: Value::Null,
            items: Vec::new(),
            about: json!({"id": run.run_id.to_string(), "attempt": run.attempt,
                "has_credential": run.credential_id.is_some()}),
            done: 0,
            kept: 0,
            percent: None,
            links_saved: VecDeque::new(),
            deadline: Instant::now(),
            allowed: Duration::ZERO,
        })
    }

    /// What templates see of the credential.
    fn secrets(&self, known: &Credential) -> Value {
        let fields = [
            ("username", known.username()),
            ("password", known.password()),
            ("api_key", known.api_key()),
            ("totp", self.code.as_ref().map(|code| code.as_str())),
        ];
        fields.into_iter().filter_map(|(name, text)| Some((name.to_owned(), Value::from(text?)))).collect()
    }

    /// Executes a program to its end; its output as JSON.
    pub(crate) async fn execute(&mut self, program: &Steps) -> Result<Bytes, Broken> {
        for (at, step) in program.steps.iter().enumerate() {
            self.percent = u8::try_from(at * 100 / program.steps.len()).ok();
            self.step(step, format!("steps[{at}]")).await?;
        }
        let output = match &program.output {
            Some(output) => output.value(self).map_err(|what| {
                let failure = Failure::new(ErrorCode::AGENT_ERROR, format!("output: {what}"));
                Broken::Failed(failure.at("program.output"))
            })?,
            None => std::mem::take(&mut self.output),
        };
        let json = output.to_string();
        if json.len() > limits::MAX_VALUE_BYTES {
            let what = format!("the output is larger than {} bytes", limits::MAX_VALUE_BYTES);
            return Err(Failure::new(ErrorCode::AGENT_ERROR, what).at("program.output").into());
        }
        Ok(json.into())
    }

    fn steps<'s>(&'s mut self, steps: &'s [Step], path: String) -> BoxFuture<'s, Result<Flow, Broken>> {
        async move {
            for (at, step) in steps.iter().enumerate() {
                if self.step(step, format!("{path}[{at}]")).await? == Flow::Break {
                    return Ok(Flow::Break);
                }
            }
            Ok(Flow::On)
        }
        .boxed()
    }

    async fn step(&mut self, step: &Step, path: String) -> Result<Flow, Broken> {
        let word = step.action.word();
        let shown = step.name.clone().unwrap_or_else(|| word.to_owned());
        self.control.progress(describe(step), shown.clone(), self.percent);
        self.done += 1;
        self.allowed = Duration::from_millis(step.timeout_ms);
        self.deadline = Instant::now() + self.allowed;
        let done = if self.done > MAX_DONE {
            Err(Failure::new(ErrorCode::AGENT_ERROR, format!("a run may do {MAX_DONE} steps")).into())
        } else {
            self.action(&step.action, &path).await
        };
        match done {
            Err(Broken::Failed(failure)) if !failure.is_placed() => {
                if !failure.is_blind {
                    self.picture_of_failure().await;
                }
                let place = format!("{path}.{word}");
                let name = step.name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
                Err(failure.placed(&place, &name).into())
            }
            done => done,
        }
    }

    async fn action(&mut self, action: &Action, path: &str) -> Result<Flow, Broken> {
        match action {
            Action::When { condition, then, otherwise } => {
                let so = self.within_time(|this| this.is_so_now(condition).boxed()).await?;
                let (steps, word) = if so { (then, "then") } else { (otherwise, "else") };
                self.steps(steps, format!("{path}.{word}")).await
            }
            Action::ForEach { over, max, name, steps } => {
                self.for_each(over, *max, name, steps, format!("{path}.do")).await.map(|()| Flow::On)
            }
            Action::Break => Ok(Flow::Break),
            // Only the user's own deadline runs.
            Action::Ask(ask) => self.ask(ask).await.map(|()| Flow::On),
            // The vault's own deadline runs, not the page's.
            Action::UseCredential => {
                let credential = self.control.credential().await;
                self.credential = Some(credential.map_err(of_vault)?);
                Ok(Flow::On)
            }
            Action::Fill(fill) if fill.value.refs().any(|found| found.is(&Root::Credential, "totp")) => {
                self.fill_code(fill).await.map(|()| Flow::On)
            }
            action => self.within_time(|this| this.leaf(action).boxed()).await.map(|()| Flow::On),
        }
    }

    /// Bounds what may hang with its page. The parts keep to the deadline by themselves and say more.
    async fn within_time<'s, T>(
        &'s mut self,
        work: impl FnOnce(&'s mut Self) -> BoxFuture<'s, Result<T, Broken>>,
    ) -> Result<T, Broken> {
        let (allowed, browser) = (self.allowed + UNRESPONSIVE, self.browser);
        let failed = |what: &str| {
            let mut failure = Failure::new(ErrorCode::SOURCE_ERROR, what);
            failure.is_blind = true;
            Err(failure.into())
        };
        tokio::select! {
            biased;
            done = timeout(allowed, work(self)) => done.unwrap_or_else(|_| failed("the page does not respond")),
            crashed = browser.until(|known| known.has_crashed().then_some(())) => match crashed {
                // The next run begins on another one.
                Ok(()) => failed("the page has crashed"),
                Err(_) => Err(Broken::Lost),
            },
        }
    }

    async fn leaf(&mut self, action: &Action) -> Result<(), Broken> {
        match action {
            Action::Goto(goto) => self.goto(goto).await,
            Action::Fill(fill) => self.fill(fill).await,
            Action::Click(target) => self.click(target).await,
            Action::Select(select) => self.select(select).await,
            Action::Press(key) => self.press(*key).await,
            Action::Wait(condition) => self.becomes_so(condition, None).await,
            Action::Assert(assert) => self.becomes_so(&assert.that, Some(assert.message.as_deref())).await,
            Action::Extract(fields) => self.extract(fields).await,
            Action::Download(download) => self.download(download).await,
            Action::Screenshot(screenshot) => self.screenshot(screenshot).await,
            Action::AuthOk => {
                self.control.auth_ok();
                Ok(())
            }
            Action::Set(values) => self.set(values),
            Action::Fail(fail) => {
                let message = fail.message.text(self).map_err(template)?;
                Err(Failure::new(fail.code, message).into())
            }
            // They have been seen to above.
            Action::When { .. } | Action::ForEach { .. } | Action::Break | Action::Ask(_) | Action::UseCredential => {
                Ok(())
            }
        }
    }

    /// The next one-time code is waited for, half a minute at most, before the step's time begins.
    async fn fill_code(&mut self, fill: &Fill) -> Result<(), Broken> {
        if self.credential.is_none() {
            return Err(template("there is no credential.totp: use_credential comes first".to_owned()));
        }
        self.code = Some(self.control.totp().await.map_err(of_vault)?);
        self.deadline = Instant::now() + self.allowed;
        let filled = self.within_time(|this| this.fill(fill).boxed()).await;
        self.code = None;
        filled
    }

    fn set(&mut self, values: &std::collections::BTreeMap<String, Dynamic>) -> Result<(), Broken> {
        for (name, value) in values {
            let value = value.value(self).map_err(template)?;
            self.keep(&value)?;
            self.vars[name.as_str()] = value;
        }
        Ok(())
    }

    /// Counts what is kept.
    fn keep(&mut self, value: &Value) -> Result<(), Broken> {
        self.kept += value.to_string().len();
        if self.kept > MAX_KEPT_BYTES {
            return Err(template(format!("a run may keep {MAX_KEPT_BYTES} bytes of values")));
        }
        Ok(())
    }

    async fn for_each(
        &mut self,
        over: &Over,
        max: usize,
        name: &str,
        steps: &[Step],
        path: String,
    ) -> Result<(), Broken> {
        match over {
            Over::List(list) => {
                let Value::Array(items) = list.value(self).map_err(template)? else {
                    return Err(template("what it goes over is no list".to_owned()));
                };
                if items.len() > max {
                    return Err(template(format!("its list has {} items, and max is {max}", items.len())));
                }
                for item in items {
                    if self.round(name, item, steps, &path).await? == Flow::Break {
                        break;
                    }
                }
            }
            Over::Pages(next) => {
                let allowed = self.allowed;
                for number in 1..=max {
                    let round = self.round(name, Value::from(number), steps, &path).await?;
                    if round == Flow::Break || number == max {
                        break;
                    }
                    (self.allowed, self.deadline) = (allowed, Instant::now() + allowed);
                    if !self.within_time(|this| this.click_if_there(next).boxed()).await? {
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    async fn round(&mut self, name: &str, item: Value, steps: &[Step], path: &str) -> Result<Flow, Broken> {
        self.items.push((name.to_owned(), item));
        let flow = self.steps(steps, path.to_owned()).await;
        self.items.pop();
        flow
    }

    /// What the page looked like when the run failed.
    async fn picture_of_failure(&mut self) {
        let picture = async {
            let data = self.picture(false).await?;
            self.keep_picture(data, "failure.png".to_owned()).await
        };
        if !matches!(timeout(LAST_PICTURE, picture).await, Ok(Ok(_))) {
            tracing::debug!(run = %self.run.run_id, "no picture of the failure");
        }
    }
}

/// What a step does, for people. It holds what the author wrote, and no values.
fn describe(step: &Step) -> String {
    let text = match &step.action {
        Action::Goto(goto) => format!("open {}", goto.url.source()),
        Action::Fill(fill) => format!("fill {}", fill.target.by.shown()),
        Action::Click(target) => format!("click {}", target.by.shown()),
        Action::Select(select) => format!("select in {}", select.target.by.shown()),
        Action::Extract(fields) => format!("extract {}", fields.keys().cloned().collect::<Vec<_>>().join(", ")),
        action => action.word().to_owned(),
    };
    match &step.name {
        Some(name) => format!("{name}: {text}"),
        None => text,
    }
}
