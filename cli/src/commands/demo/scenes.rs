//! The scenes: one run each, and how it must end.

use std::pin::pin;

use anyhow::Context;
use errand_client::{
    Client, ClientError, NewCredential, NewRun, NewSource, RunId, SecretText, Secrets, run_status, v1,
};
use errand_core::credential::AuthMethod;
use errand_core::run::{Decision, RunStatus};
use errand_core::source::SourceType;
use errand_core::{CredentialId, SourceId};
use errand_proto::json;
use futures::{Stream, StreamExt};
use serde_json::{Value, json as object};

use super::Teller;
use super::files;
use super::listener::Listener;
use super::portal::Portal;
use crate::commands::dev::Http;
use crate::output::cell;

const EMAIL: &str = "ada@example.com";
/// Who signs in with a password and the codes of an authenticator app.
const CUSTOMER: &str = "barbara@example.com";
const PASSWORD: &str = "open sesame";
const TOTP_SECRET: &str = "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP";

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
            Self::Browser => "signs in with a sealed credential in a real browser, and completes",
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

    /// How many bills it must bring home.
    const fn bills(self) -> Option<usize> {
        match self {
            Self::Interaction => Some(3),
            Self::Review => Some(2),
            // Of two pages.
            Self::Browser => Some(9),
            Self::Cancel | Self::Timeout | Self::Misfit => None,
        }
    }

    /// The statuses that a subscriber must hear of.
    pub(super) const fn events(self) -> &'static [&'static str] {
        match self {
            Self::Interaction => &["queued", "running", "interaction_required", "running", "completed"],
            Self::Review => &["queued", "running", "interaction_required", "running", "review_required", "completed"],
            Self::Cancel => &["queued", "running", "canceling", "canceled"],
            Self::Timeout => &["queued", "running", "failed"],
            Self::Misfit => &["failed"],
            // Its credential answers for the code: nobody is asked.
            Self::Browser => &["queued", "running", "completed"],
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
    pub(super) http: &'a Http,
    pub(super) portal: &'a Portal,
    pub(super) listener: &'a Listener,
    pub(super) teller: Teller,
}

impl Stage<'_> {
    pub(super) async fn play(&self, scene: Scene) -> anyhow::Result<Outcome> {
        let mut new = self.request(scene)?;
        let sealed = if matches!(scene, Scene::Browser) { Some(self.seal().await?) } else { None };
        if let Some((source, credential)) = sealed {
            new = new.on_source(source).with_credential(credential);
        }
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
            Scene::Interaction => self.answer(run, &mut events).await?,
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
            Scene::Browser => self.say("the credential answers for the one-time code: nobody is asked")?,
            Scene::Misfit => {}
        }
        while let Some(event) = events.next().await {
            event?;
        }
        let mut outcome = self.outcome(scene, run).await?;
        if let (Some((_, credential)), Ok(())) = (sealed, &outcome.check) {
            outcome.check = self.check_credential(credential).await?;
        }
        Ok(outcome)
    }

    /// A customer with a password and an authenticator app, whose secrets the vault keeps.
    async fn seal(&self) -> anyhow::Result<(SourceId, CredentialId)> {
        self.portal.open_account(CUSTOMER, PASSWORD, TOTP_SECRET).await?;
        let url = self.portal.url.clone();
        let source = NewSource { r#type: SourceType::Website, name: "Brightwater".to_owned(), url };
        let source: SourceId = self.client.create_source(source).await?.id.parse()?;
        let text = |text: &str| Some(SecretText::new(text.to_owned()));
        let secrets = Secrets {
            username: text(CUSTOMER),
            password: text(PASSWORD),
            totp_secret: text(TOTP_SECRET),
            ..Secrets::default()
        };
        let auth_method = AuthMethod::UsernamePassword;
        let new = NewCredential { name: CUSTOMER.to_owned(), auth_method, source_id: Some(source), secrets };
        let credential: CredentialId = self.client.create_credential(new).await?.id.parse()?;
        self.say(format!("{credential} seals the password and the authenticator's secret of {CUSTOMER}"))?;
        Ok((source, credential))
    }

    async fn check_credential(&self, id: CredentialId) -> anyhow::Result<Result<(), String>> {
        let status = self.client.get_credential(id).await?.status();
        if status == v1::CredentialStatus::Verified {
            self.say(format!("{id} is verified"))?;
            return Ok(Ok(()));
        }
        Ok(Err(format!("its credential is {}", status.as_str_name())))
    }

    fn request(&self, scene: Scene) -> anyhow::Result<NewRun> {
        let (task, input) = match scene {
            Scene::Interaction => ("portal-bills", object!({"email": EMAIL, "limit": 3})),
            Scene::Review => ("portal-bills-review", object!({"email": "grace@example.com", "limit": 2})),
            Scene::Cancel => ("portal-bills", object!({"email": "alan@example.com", "pause_seconds": 60})),
            Scene::Timeout => ("portal-bills-impatient", object!({"email": "edsger@example.com", "hang": true})),
            Scene::Misfit => ("portal-bills", object!({})),
            Scene::Browser => ("portal-bills-browser", object!({"limit": 9})),
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
        let check = match check {
            Ok(()) => self.tell_files(scene, run).await?,
            wrong => wrong,
        };
        Ok(Outcome { run, ended, events, check })
    }

    /// Shows what the run has captured and what was read out of it, and whether the links open it.
    async fn tell_files(&self, scene: Scene, run: RunId) -> anyhow::Result<Result<(), String>> {
        let (mut kept, mut pictures) = (0, 0);
        for file in files::list(self.http, run).await? {
            let name = file["name"].as_str().unwrap_or_default().to_owned();
            let of_a_picture = file["kind"] == "screenshot";
            *(if of_a_picture { &mut pictures } else { &mut kept }) += 1;
            let what = if of_a_picture { "screenshot" } else { "file" };
            let (kind, bytes) = (file["mime_type"].as_str().unwrap_or_default(), &file["size_bytes"]);
            let data =
                if file["data"].is_null() { String::new() } else { format!(", data: {}", shortened(&file["data"])) };
            self.say(format!("{what}: {name} ({kind}, {bytes} bytes{data})"))?;
            if let Err(wrong) = files::opens(&file).await? {
                return Ok(Err(format!("{name}: {wrong}")));
            }
            self.say(format!("      opens at {}", file["url"].as_str().unwrap_or_default()))?;
        }
        // The bills as PDF, and the list of them.
        let wanted = (scene.bills().map_or(0, |bills| bills + 1), usize::from(scene.needs_browser()));
        let found = (kept, pictures);
        Ok(if found == wanted {
            Ok(())
        } else {
            Err(format!("with {kept} files and {pictures} screenshots, not {} and {}", wanted.0, wanted.1))
        })
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
    let Some(wanted) = scene.bills() else { return Ok(()) };
    match output["bills"].as_array().map(Vec::len) {
        Some(found) if found == wanted => Ok(()),
        Some(found) => Err(format!("with {found} bills, not {wanted}")),
        None => Err("without bills".to_owned()),
    }
}

/// The beginning of some JSON.
fn shortened(json: &Value) -> String {
    let text = json.to_string();
    let shown: String = text.chars().take(60).collect();
    if shown.len() < text.len() { format!("{shown}…") } else { shown }
}

fn glance(output: &Value) -> String {
    let bills = output["bills"].as_array().map(Vec::as_slice).unwrap_or_default();
    let shown: Vec<String> = bills
        .iter()
        .map(|bill| format!("{} {} {}", cell(bill, "period"), cell(bill, "amount"), cell(bill, "currency")))
        .collect();
    format!("{}, {}: {}", cell(output, "account.number"), cell(output, "account.name"), shown.join(", "))
}
