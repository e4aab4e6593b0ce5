//! The scenes: one run each, and how it must end.

use std::pin::pin;

use anyhow::Context;
use errand_client::{Client, ClientError, NewRun, RunId, run_status, v1};
use errand_core::run::{Decision, RunStatus};
use errand_proto::json;
use futures::{Stream, StreamExt};
use serde_json::{Value, json as object};

use super::Teller;
use super::listener::Listener;
use super::portal::Portal;
use crate::output::cell;

const EMAIL: &str = "ada@example.com";

/// One run, from its request to its end.
#[derive(Debug, Clone, Copy)]
pub(super) enum Scene {
    Interaction,
    Review,
    Cancel,
    Timeout,
    Misfit,
    Browser,
}

pub(super) const SCENES: [Scene; 6] =
    [Scene::Interaction, Scene::Review, Scene::Cancel, Scene::Timeout, Scene::Misfit, Scene::Browser];

impl Scene {
    pub(super) const fn title(self) -> &'static str {
        match self {
            Self::Interaction => "asks its user for a code, and completes",
            Self::Review => "waits for a review, is approved, and completes",
            Self::Cancel => "is canceled while it executes",
            Self::Timeout => "shows no activity, and times out",
            Self::Misfit => "has input that does not fit",
            Self::Browser => "works in a real browser, asks for a code there, and completes",
        }
    }

    /// Whether it is played only where there is a Chromium.
    pub(super) const fn needs_browser(self) -> bool {
        matches!(self, Self::Browser)
    }

    pub(super) const fn expected(self) -> &'static str {
        match self {
            Self::Interaction | Self::Review | Self::Browser => "completed",
            Self::Cancel => "canceled",
            Self::Timeout => "failed task/timeout",
            Self::Misfit => "failed request/input_invalid",
        }
    }

    /// The statuses that a subscriber must hear of.
    pub(super) const fn events(self) -> &'static [&'static str] {
        match self {
            Self::Interaction | Self::Browser => &["queued", "running", "interaction_required", "running", "completed"],
            Self::Review => &["queued", "running", "interaction_required", "running", "review_required", "completed"],
            Self::Cancel => &["queued", "running", "canceling", "canceled"],
            Self::Timeout => &["queued", "running", "failed"],
            Self::Misfit => &["failed"],
        }
    }
}

/// What became of a scene's run.
pub(super) struct Outcome {
    pub(super) run: RunId,
    /// `completed`, `failed task/timeout`, ...
    pub(super) ended: String,
    pub(super) events: Vec<String>,
    /// What else must hold.
    pub(super) check: Result<(), String>,
}

/// What the scenes are played on.
pub(super) struct Stage<'a> {
    pub(super) client: &'a Client,
    pub(super) portal: &'a Portal,
    pub(super) listener: &'a Listener,
    pub(super) teller: Teller,
}

impl Stage<'_> {
    pub(super) async fn play(&self, scene: Scene) -> anyhow::Result<Outcome> {
        let new = self.request(scene)?;
        let run = new.id();
        let mut events = pin!(self.client.watch(run).await?);
        if matches!(scene, Scene::Misfit) {
            // Over the stream, as a publisher that waits for nobody: the run is made, and says what is wrong with it.
            self.client.publish_run(new).await?;
            self.say(format!("published {run} on the submit stream, without an e-mail address"))?;
        } else {
            self.client.submit(new).await?;
            self.say(format!("submitted {run}"))?;
        }
        match scene {
            Scene::Interaction | Scene::Browser => self.answer(run, &mut events).await?,
            Scene::Review => {
                self.answer(run, &mut events).await?;
                until(&mut events, RunStatus::ReviewRequired).await?;
                self.client.review(run, Decision::Approve, "the bills are ours").await?;
                self.say("a person has looked at the output, and approves")?;
            }
            Scene::Cancel => {
                until(&mut events, RunStatus::Running).await?;
                let mut activity = self.client.follow_activity(run).await?;
                let sign = activity.next().await.context("the agent's activity")?;
                self.say(format!("the agent says: {}; now it is canceled", sign.message))?;
                self.client.cancel(run).await?;
            }
            Scene::Timeout => {
                self.say("its task gives up after 2 s without a sign of life, and the agent gives none")?
            }
            Scene::Misfit => {}
        }
        while let Some(event) = events.next().await {
            event?;
        }
        self.outcome(scene, run).await
    }

    fn request(&self, scene: Scene) -> anyhow::Result<NewRun> {
        let (task, input) = match scene {
            Scene::Interaction => ("portal-bills", object!({"email": EMAIL, "limit": 3})),
            Scene::Review => ("portal-bills-review", object!({"email": "grace@example.com", "limit": 2})),
            Scene::Cancel => ("portal-bills", object!({"email": "alan@example.com", "pause_seconds": 60})),
            Scene::Timeout => ("portal-bills-impatient", object!({"email": "edsger@example.com", "hang": true})),
            Scene::Misfit => ("portal-bills", object!({})),
            Scene::Browser => ("portal-bills-browser", object!({"email": "barbara@example.com", "limit": 9})),
        };
        let mut input = input;
        input["portal_url"] = self.portal.url.clone().into();
        Ok(NewRun::of_task(task)?.input(&input).metadata("scene", format!("{scene:?}").to_lowercase()))
    }

    /// Waits for the question, reads the code in the inbox, and answers.
    async fn answer(
        &self,
        run: RunId,
        events: &mut (impl Stream<Item = Result<v1::Event, ClientError>> + Unpin),
    ) -> anyhow::Result<()> {
        let summary = until(events, RunStatus::InteractionRequired).await?;
        let interaction = summary.interaction.context("the question")?;
        let (input, _) = self.client.get_run_with(run, false).await?;
        let email = cell(&json::run(&input), "input.email");
        let code = self.portal.code_for(&email).await?;
        self.say(format!("the agent asks: {}", interaction.message))?;
        self.say(format!("the inbox of {email} has the code {code}: answered"))?;
        self.client.interact(run, &object!({"code": code})).await?;
        Ok(())
    }

    async fn outcome(&self, scene: Scene, run: RunId) -> anyhow::Result<Outcome> {
        let ended = self.client.get_run(run).await?;
        let status = run_status(&ended)?;
        let value = json::run(&ended);
        let ended = match value["errors"].get(0) {
            Some(error) => format!("{} {}/{}", status.as_str(), cell(error, "type"), cell(error, "code")),
            None => status.as_str().to_owned(),
        };
        let events = self.listener.all_of(run, status.as_str()).await;
        let check = check_output(scene, &value["output"]);
        if check.is_ok() && !value["output"].is_null() {
            self.say(format!("output: {}", glance(&value["output"])))?;
        }
        Ok(Outcome { run, ended, events, check })
    }

    fn say(&self, text: impl AsRef<str>) -> anyhow::Result<()> {
        self.teller.say(format!("   {}", text.as_ref()))
    }
}

/// Waits for an event of this status, and gives its summary.
async fn until(
    events: &mut (impl Stream<Item = Result<v1::Event, ClientError>> + Unpin),
    wanted: RunStatus,
) -> anyhow::Result<v1::RunSummary> {
    let mut last = "nothing".to_owned();
    while let Some(event) = events.next().await {
        let event = event?;
        last.clone_from(&event.r#type);
        if let Some(v1::event::Data::Run(summary)) = event.data
            && RunStatus::try_from(summary.status()) == Ok(wanted)
        {
            return Ok(summary);
        }
    }
    anyhow::bail!("the run was to be {}, and ended with {last}", wanted.as_str())
}

/// What a run that completed must have brought home.
fn check_output(scene: Scene, output: &Value) -> Result<(), String> {
    let wanted = match scene {
        Scene::Interaction => 3,
        Scene::Review => 2,
        // Of two pages.
        Scene::Browser => 9,
        Scene::Cancel | Scene::Timeout | Scene::Misfit => return Ok(()),
    };
    match output["bills"].as_array().map(Vec::len) {
        Some(found) if found == wanted => Ok(()),
        Some(found) => Err(format!("with {found} bills, not {wanted}")),
        None => Err("without bills".to_owned()),
    }
}

fn glance(output: &Value) -> String {
    let bills = output["bills"].as_array().map(Vec::as_slice).unwrap_or_default();
    let shown: Vec<String> = bills
        .iter()
        .map(|bill| format!("{} {} {}", cell(bill, "period"), cell(bill, "amount"), cell(bill, "currency")))
        .collect();
    format!("{}, {}: {}", cell(output, "account.number"), cell(output, "account.name"), shown.join(", "))
}
