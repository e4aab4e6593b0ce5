//! Following one run to its end, as people and programs want to see it.

use std::io::IsTerminal;
use std::time::Duration;

use errand_client::{Client, ClientError, RunId, run_status, v1};
use errand_core::run::RunStatus;
use errand_proto::json;
use futures::{Stream, StreamExt};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json as object};
use tokio::task::JoinHandle;

use crate::commands::{interact, show};
use crate::failure::{self, Said};
use crate::output::{Output, cell, pretty, time_of_day};

/// Prints a run's events and progress until its final one, then its output or errors; asks what it asks where there is
/// a terminal to ask on.
///
/// # Errors
/// [`Said`] where it did not complete.
pub(crate) async fn to_the_end(
    client: &Client,
    run: RunId,
    events: impl Stream<Item = Result<v1::Event, ClientError>> + Send,
    out: Output,
) -> anyhow::Result<()> {
    let mut events = std::pin::pin!(events);
    let mut activity = client.follow_activity(run).await?;
    let mut follower = Follower { client, run, out, view: View::new(out), prompt: None };
    loop {
        enum Next {
            Event(Option<Box<Result<v1::Event, ClientError>>>),
            Activity(v1::Activity),
            Answer(anyhow::Result<Value>),
        }
        let next = tokio::select! {
            event = events.next() => Next::Event(event.map(Box::new)),
            Some(activity) = activity.next() => Next::Activity(activity),
            answer = answered(&mut follower.prompt) => Next::Answer(answer),
        };
        match next {
            Next::Event(Some(event)) => follower.on_event(&(*event)?).await?,
            Next::Event(None) => break,
            Next::Activity(activity) => follower.on_activity(&activity)?,
            Next::Answer(answer) => follower.on_answer(answer).await?,
        }
    }
    follower.view.pause();
    finish(&client.get_run(run).await?, out)
}

/// The answer that a person is typing; never, where none is asked.
async fn answered(prompt: &mut Option<JoinHandle<anyhow::Result<Value>>>) -> anyhow::Result<Value> {
    let Some(handle) = prompt else { return std::future::pending().await };
    let answer = handle.await;
    *prompt = None;
    answer?
}

fn finish(run: &v1::Run, out: Output) -> anyhow::Result<()> {
    let value = json::run(run);
    if out.json {
        out.line(value.to_string())?;
    } else if !value["output"].is_null() {
        out.line(pretty(&value["output"]))?;
    }
    if run_status(run)? == RunStatus::Completed {
        return Ok(());
    }
    if !out.json {
        let errors = show::errors(&value);
        errors.iter().for_each(|error| eprintln!("{error}"));
        if errors.is_empty() {
            eprintln!("error: the run is {}", cell(&value, "status"));
        }
    }
    Err(Said.into())
}

struct Follower<'a> {
    client: &'a Client,
    run: RunId,
    out: Output,
    view: View,
    /// Reads a person's answer. A read of the terminal cannot be called off, so one that was overtaken stays.
    prompt: Option<JoinHandle<anyhow::Result<Value>>>,
}

impl Follower<'_> {
    async fn on_event(&mut self, event: &v1::Event) -> anyhow::Result<()> {
        let value = json::event(event);
        let (out, status) = (self.out, cell(&value["data"], "status"));
        self.view.line(out, || {
            if out.json {
                return value.to_string();
            }
            let detail = show::detail(&value["data"]);
            let text = format!("{}  {status:<20}  {detail}", time_of_day(&value["created_at"]));
            text.trim_end().to_owned()
        })?;
        self.view.state(&status);
        match &event.data {
            Some(v1::event::Data::Run(summary)) if summary.interaction.is_some() => self.on_question(summary).await,
            Some(v1::event::Data::Run(summary)) if summary.status() == v1::RunStatus::ReviewRequired => {
                self.hint(&format!("look at it with `errand runs get {0}`, then: errand review {0} approve", self.run))
            }
            _ => Ok(()),
        }
    }

    async fn on_question(&mut self, summary: &v1::RunSummary) -> anyhow::Result<()> {
        // The events of a run that is followed from its beginning tell of questions that were answered long ago.
        let open = self.client.get_run(self.run).await?.interaction;
        let asked = summary.interaction.as_ref().map(|interaction| &interaction.id);
        let Some(interaction) = open.filter(|open| Some(&open.id) == asked) else { return Ok(()) };
        if self.out.json || !interact::can_ask() || self.prompt.is_some() {
            let how = show::how_to_answer(&self.run.to_string(), &json::interaction(Some(&interaction)));
            return self.hint(&format!("answer with: {how}"));
        }
        self.view.pause();
        self.prompt = Some(tokio::task::spawn_blocking(move || interact::ask(&interaction)));
        Ok(())
    }

    async fn on_answer(&mut self, answer: anyhow::Result<Value>) -> anyhow::Result<()> {
        let answered = match answer {
            Ok(answer) => self.client.interact(self.run, &answer).await.map_err(anyhow::Error::from),
            Err(error) => Err(error),
        };
        let Err(error) = answered else { return Ok(()) };
        if let (Some(text), _) = failure::report(&error, false) {
            eprintln!("{text}");
        }
        // Where the question is still open, it is asked again.
        let run = self.client.get_run(self.run).await?;
        let Some(interaction) = run.interaction else { return Ok(()) };
        self.prompt = Some(tokio::task::spawn_blocking(move || interact::ask(&interaction)));
        Ok(())
    }

    fn on_activity(&mut self, activity: &v1::Activity) -> anyhow::Result<()> {
        if activity.message.is_empty() && activity.step.is_empty() {
            return Ok(());
        }
        let out = self.out;
        match &self.view {
            View::Bar(Some(bar)) => bar.set_message(progress_text(activity)),
            // Somebody is typing.
            View::Bar(None) => {}
            View::Lines => self.view.line(out, || progress_line(activity, out.json))?,
        }
        Ok(())
    }

    /// For people and for those who read a pipe; a program that reads JSON knows.
    fn hint(&mut self, text: &str) -> anyhow::Result<()> {
        if self.out.json { Ok(()) } else { self.view.line(self.out, || format!("{:14}{text}", "")) }
    }
}

fn progress_line(activity: &v1::Activity, as_json: bool) -> String {
    if as_json {
        let value = object!({
            "object": "progress",
            "task_run_id": activity.run_id,
            "message": activity.message,
            "step": activity.step,
            "percent": activity.percent,
            "at": json::time(activity.at_ms),
        });
        return value.to_string();
    }
    format!("{}  {:<20}  {}", time_of_day(&json::time(activity.at_ms)), "", progress_text(activity))
}

fn progress_text(activity: &v1::Activity) -> String {
    let text = if activity.message.is_empty() { &activity.step } else { &activity.message };
    let text = text.replace(char::is_control, " ");
    activity.percent.map_or(text.clone(), |percent| format!("{text} ({percent}%)"))
}

/// How progress is shown.
enum View {
    /// A line that moves, below the lines that stay; none while somebody else has the terminal.
    Bar(Option<ProgressBar>),
    /// A line each.
    Lines,
}

impl View {
    fn new(out: Output) -> Self {
        if out.json || !out.terminal || !std::io::stderr().is_terminal() {
            return Self::Lines;
        }
        Self::Bar(Some(spinner()))
    }

    fn line(&self, out: Output, text: impl FnOnce() -> String) -> anyhow::Result<()> {
        match self {
            Self::Bar(Some(bar)) => bar.suspend(|| out.line(text())),
            Self::Bar(None) | Self::Lines => out.line(text()),
        }
    }

    fn state(&mut self, status: &str) {
        if let Self::Bar(bar) = self {
            let bar = bar.get_or_insert_with(spinner);
            bar.set_prefix(status.to_owned());
            bar.set_message(String::new());
        }
    }

    /// Leaves the terminal to somebody else, until the next state.
    fn pause(&mut self) {
        if let Self::Bar(bar) = self
            && let Some(bar) = bar.take()
        {
            bar.finish_and_clear();
        }
    }
}

fn spinner() -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix} {elapsed} {wide_msg}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}
