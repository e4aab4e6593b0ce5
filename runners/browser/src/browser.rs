//! One session's browser: its process under a supervisor, the connection, and what is known of its pages and downloads.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use errand_process::{SESSION_VARIABLE, Supervised};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};

use crate::cdp::{Cdp, CdpError, Event};
use crate::chromium::{Launch, PREFERENCES};
use crate::egress::Egress;
use crate::program::PageSettings;

/// How long a browser may take to start.
const START: Duration = Duration::from_secs(60);
/// How long a page may take to come up.
const PAGE: Duration = Duration::from_secs(30);
/// How long the end of a page's process may take.
const CRASH: Duration = Duration::from_secs(2);
/// Downloads that are remembered.
const MAX_DOWNLOADS: usize = 1000;
/// The end of what a browser said before it died, for the log.
const LAST_WORDS: usize = 2048;
/// Pictures of the live view that wait: Chromium has fewer under way.
const MAX_PICTURES: usize = 8;
/// How long nothing must be asked for a page's network to be idle.
pub(crate) const IDLE: Duration = Duration::from_millis(500);

/// One page of the browser, as its events tell.
#[derive(Debug, Clone)]
pub(crate) struct PageState {
    pub(crate) target: String,
    pub(crate) session: String,
    /// It is attached and set up.
    ready: bool,
    pub(crate) url: String,
    /// Grows with every document.
    pub(crate) documents: u64,
    loader: String,
    /// A navigation has begun and has not come to anything yet.
    pub(crate) navigating: bool,
    /// The page wants one, which may yet be called off.
    pub(crate) requested: bool,
    pub(crate) has_document: bool,
    pub(crate) is_loaded: bool,
    /// Of the newest answers for a document: by loader.
    answers: Vec<Answer>,
    asked: HashSet<String>,
    quiet_since: Instant,
    pub(crate) crashed: bool,
}

#[derive(Debug, Clone)]
struct Answer {
    loader: String,
    status: Option<u16>,
    failure: Option<String>,
}

impl PageState {
    fn new(target: String, session: String, url: String) -> Self {
        Self {
            target,
            session,
            ready: false,
            url,
            documents: 0,
            loader: String::new(),
            navigating: false,
            requested: false,
            has_document: true,
            is_loaded: true,
            answers: Vec::new(),
            asked: HashSet::new(),
            quiet_since: Instant::now(),
            crashed: false,
        }
    }

    /// The HTTP status of its document, where there is one.
    pub(crate) fn status(&self) -> Option<u16> {
        self.answers.iter().rev().find(|answer| answer.loader == self.loader).and_then(|answer| answer.status)
    }

    /// Why its document could not be had, in Chromium's words, where it is an error page.
    pub(crate) fn failure(&self) -> Option<&str> {
        let answer = self.answers.iter().rev().find(|answer| answer.loader == self.loader);
        answer.and_then(|answer| answer.failure.as_deref())
    }

    /// Since when nothing has been asked for; none while something is.
    pub(crate) fn quiet_since(&self) -> Option<Instant> {
        self.asked.is_empty().then_some(self.quiet_since)
    }

    fn answer(&mut self, loader: &str) -> Option<&mut Answer> {
        if let Some(at) = self.answers.iter().position(|answer| answer.loader == loader) {
            return self.answers.get_mut(at);
        }
        if self.answers.len() == 8 {
            self.answers.remove(0);
        }
        self.answers.push(Answer { loader: loader.to_owned(), status: None, failure: None });
        self.answers.last_mut()
    }
}

/// A download, as its events tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DownloadState {
    pub(crate) name: String,
    pub(crate) url: String,
    pub(crate) received: u64,
    pub(crate) ended: Option<bool>,
}

/// A picture of a page, for the live view.
#[derive(Debug)]
pub(crate) struct Picture {
    /// The page's session.
    pub(crate) page: String,
    /// What Chromium calls it.
    pub(crate) number: i64,
    /// In base64.
    pub(crate) jpeg: String,
}

/// What is known of the browser.
#[derive(Debug, Default)]
pub(crate) struct Known {
    pages: Vec<PageState>,
    pub(crate) downloads: BTreeMap<String, DownloadState>,
    /// In the order of their beginning.
    pub(crate) download_order: Vec<String>,
    /// Pages whose process has died: they are not worked on again.
    dead: HashSet<String>,
    /// A program from outside drives the browser: dialogs are its own.
    pub(crate) driven_outside: bool,
}

impl Known {
    /// The page that a program works on: the newest one.
    pub(crate) fn current(&self) -> Option<&PageState> {
        self.pages.iter().rev().find(|page| page.ready && !page.crashed)
    }

    /// Whether a page's process has died.
    pub(crate) fn has_crashed(&self) -> bool {
        self.pages.iter().any(|page| page.crashed)
    }

    fn by_session(&mut self, session: &str) -> Option<&mut PageState> {
        self.pages.iter_mut().find(|page| page.session == session)
    }
}

#[derive(Debug)]
struct Shared {
    known: Mutex<Known>,
    /// Counts changes, so that waiting misses none.
    changes: watch::Sender<u64>,
    settings: Mutex<PageSettings>,
    pictures: mpsc::Sender<Picture>,
}

impl Shared {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A browser that runs. Dropped, it is killed by its supervisor.
#[derive(Debug)]
pub(crate) struct Browser {
    pub(crate) cdp: Cdp,
    shared: Arc<Shared>,
    process: tokio::sync::Mutex<Option<Supervised>>,
    pub(crate) egress: Egress,
    pub(crate) downloads: PathBuf,
    profile: PathBuf,
    pictures: Mutex<Option<mpsc::Receiver<Picture>>>,
}

impl Drop for Browser {
    fn drop(&mut self) {
        self.cdp.close();
    }
}

impl Browser {
    /// Starts one with a new profile in a session's folder, and waits for its first page.
    pub(crate) async fn start(
        launch: &Launch,
        supervisor: &Path,
        folder: &Path,
        egress: Egress,
        settings: PageSettings,
    ) -> Result<Self, String> {
        let (profile, downloads) = (folder.join("profile"), folder.join("downloads"));
        prepare(&profile, &downloads).map_err(|error| format!("its folders cannot be made: {}", error.kind()))?;
        let command = launch.command(&profile, egress.port());
        let mut process = Supervised::start(supervisor, &folder.join(".ended"), command, |command| {
            command.current_dir(folder).env_clear().envs(launch.environment(folder)).env(SESSION_VARIABLE, folder);
        })
        .map_err(|error| format!("it cannot be started: {}", error.kind()))?;
        let (input, output) = (process.child.stdin.take(), process.child.stdout.take());
        let (Some(input), Some(output)) = (input, output) else { return Err("it has no pipes".to_owned()) };
        let words = Arc::new(Mutex::new(Vec::new()));
        if let Some(stderr) = process.child.stderr.take() {
            tokio::spawn(keep_words(stderr, Arc::clone(&words)));
        }
        let (sender, pictures) = mpsc::channel(MAX_PICTURES);
        let shared = Arc::new(Shared {
            known: Mutex::default(),
            changes: watch::channel(0).0,
            settings: Mutex::new(settings),
            pictures: sender,
        });
        let (events, hears) = mpsc::unbounded_channel();
        let cdp = Cdp::connect(input, output, {
            let shared = Arc::clone(&shared);
            move |event| note(&shared, event, &events)
        });
        tokio::spawn(act(cdp.clone(), Arc::clone(&shared), hears));
        let process = tokio::sync::Mutex::new(Some(process));
        let pictures = Mutex::new(Some(pictures));
        let browser = Self { cdp, shared, process, egress, downloads, profile, pictures };
        match timeout(START, browser.set_up()).await {
            Ok(Ok(())) => Ok(browser),
            failed => {
                browser.end().await;
                let words = words.lock().unwrap_or_else(PoisonError::into_inner);
                let words = String::from_utf8_lossy(&words);
                tracing::warn!(%words, "a browser did not start");
                Err(match failed {
                    _ if words.contains("No usable sandbox") => {
                        "this machine does not allow Chromium's sandbox; --no-sandbox does without".to_owned()
                    }
                    Ok(Err(error)) => error.to_string(),
                    _ => format!("it was not ready within {} s", START.as_secs()),
                })
            }
        }
    }

    async fn set_up(&self) -> Result<(), CdpError> {
        self.own_downloads().await?;
        let attach = json!({"autoAttach": true, "waitForDebuggerOnStart": true, "flatten": true,
            "filter": [{"type": "page"}]});
        self.cdp.call("", "Target.setAutoAttach", attach).await?;
        self.page().await.map(|_| ())
    }

    /// Has files saved where a program looks for them: something from outside may have turned that off.
    pub(crate) async fn own_downloads(&self) -> Result<(), CdpError> {
        let behavior = json!({"behavior": "allowAndName", "downloadPath": self.downloads, "eventsEnabled": true});
        self.cdp.call("", "Browser.setDownloadBehavior", behavior).await.map(|_| ())
    }

    /// The pictures that its pages send while they are told to; there is one who gets them.
    pub(crate) fn pictures(&self) -> Option<mpsc::Receiver<Picture>> {
        self.pictures.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The state as it is.
    pub(crate) fn known(&self) -> MutexGuard<'_, Known> {
        self.shared.known()
    }

    /// Waits until `look` finds what it looks for. It ends with the connection, too.
    pub(crate) async fn until<T>(&self, mut look: impl FnMut(&Known) -> Option<T>) -> Result<T, CdpError> {
        let mut changes = self.shared.changes.subscribe();
        loop {
            changes.borrow_and_update();
            if let Some(found) = look(&self.known()) {
                return Ok(found);
            }
            tokio::select! {
                changed = changes.changed() => changed.map_err(|_| CdpError::Closed)?,
                () = self.cdp.closed().cancelled() => return Err(CdpError::Closed),
            }
        }
    }

    /// The page to work on; a new one where all are gone.
    pub(crate) async fn page(&self) -> Result<PageState, CdpError> {
        if let Some(page) = self.known().current().cloned() {
            return Ok(page);
        }
        let any = self.known().pages.iter().any(|page| !page.crashed);
        if !any {
            let targets = self.cdp.call("", "Target.getTargets", json!({"filter": [{"type": "page"}]})).await?;
            let known: HashSet<String> = {
                let known = self.known();
                known.pages.iter().map(|page| page.target.clone()).chain(known.dead.iter().cloned()).collect()
            };
            let infos = targets["targetInfos"].as_array().cloned().unwrap_or_default();
            // One that is there is attached to by itself.
            if infos.iter().all(|info| known.contains(info["targetId"].as_str().unwrap_or_default())) {
                self.cdp.call("", "Target.createTarget", json!({"url": "about:blank"})).await?;
            }
        }
        let ready = self.until(|known| known.current().cloned());
        timeout(PAGE, ready).await.unwrap_or(Err(CdpError::Strange("no page comes up")))
    }

    /// Takes pages away whose process has died; there is one to work on then.
    pub(crate) async fn tidy(&self) -> Result<(), CdpError> {
        let dead: Vec<String> = {
            let mut known = self.known();
            let dead: Vec<String> =
                known.pages.iter().filter(|page| page.crashed).map(|page| page.target.clone()).collect();
            known.pages.retain(|page| !page.crashed);
            known.dead.extend(dead.iter().cloned());
            dead
        };
        // First: a browser without any page ends.
        self.page().await?;
        for target in dead {
            let _ = self.cdp.call("", "Target.closeTarget", json!({"targetId": target})).await;
            self.known().dead.remove(&target);
        }
        Ok(())
    }

    /// Kills the process of the page that is worked on, whatever it is busy with.
    pub(crate) async fn crash(&self) {
        let page = self.known().current().cloned();
        let Some(page) = page else { return };
        // It is answered by nobody.
        let _ = timeout(CRASH, self.cdp.call(&page.session, "Page.crash", json!({}))).await;
    }

    /// How pages look at the world from now on; those that are there, too.
    pub(crate) async fn set_settings(&self, settings: PageSettings) -> Result<(), CdpError> {
        let changed = {
            let mut own = self.shared.settings.lock().unwrap_or_else(PoisonError::into_inner);
            let changed = *own != settings;
            *own = settings.clone();
            changed
        };
        if changed {
            self.check(&settings).await?;
            let sessions: Vec<String> = self.known().pages.iter().map(|page| page.session.clone()).collect();
            for session in sessions {
                emulate(&self.cdp, &session, &settings).await?;
            }
        }
        Ok(())
    }

    /// Refuses a locale or a time zone that nobody knows: Chromium would keep the one before.
    async fn check(&self, settings: &PageSettings) -> Result<(), CdpError> {
        let page = self.page().await?;
        for (name, value, look) in [
            ("locale", &settings.locale, "Intl.getCanonicalLocales(VALUE)"),
            ("time_zone", &settings.time_zone, "new Intl.DateTimeFormat([], {timeZone: VALUE})"),
        ] {
            let Some(value) = value else { continue };
            let look = look.replace("VALUE", &Value::from(value.as_str()).to_string());
            let answer = self.cdp.call(&page.session, "Runtime.evaluate", json!({"expression": look})).await?;
            if answer.get("exceptionDetails").is_some() {
                return Err(CdpError::Refused(format!("{name} is none that it knows")));
            }
        }
        Ok(())
    }

    /// Where programs from outside attach, if this browser lets them.
    pub(crate) fn url(&self) -> io::Result<String> {
        let text = fs::read_to_string(self.profile.join("DevToolsActivePort"))?;
        let mut lines = text.lines();
        match (lines.next().and_then(|port| port.parse::<u16>().ok()), lines.next()) {
            (Some(port), Some(path)) if path.starts_with('/') => Ok(format!("ws://127.0.0.1:{port}{path}")),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Kills it with all its processes, and waits. True where all of them are surely gone.
    pub(crate) async fn end(&self) -> bool {
        self.cdp.close();
        match self.process.lock().await.take() {
            Some(mut process) => process.wait().await,
            None => true,
        }
    }
}

fn prepare(profile: &Path, downloads: &Path) -> io::Result<()> {
    let defaults = profile.join("Default");
    fs::create_dir_all(&defaults)?;
    fs::write(defaults.join("Preferences"), PREFERENCES)?;
    fs::create_dir_all(downloads)
}

/// Keeps the end of what a browser says, so that one that does not start can be understood.
async fn keep_words(mut stderr: tokio::process::ChildStderr, words: Arc<Mutex<Vec<u8>>>) {
    let mut buffer = vec![0; 4096];
    while let Ok(read @ 1..) = stderr.read(&mut buffer).await {
        let mut words = words.lock().unwrap_or_else(PoisonError::into_inner);
        words.extend_from_slice(&buffer[..read]);
        let excess = words.len().saturating_sub(LAST_WORDS);
        words.drain(..excess);
    }
}

/// What an event asks for.
enum Todo {
    SetUp { session: String },
    Dialog { session: String, accept: bool },
}

/// Notes what an event tells. What is to be done about it is sent on, since this must not wait.
fn note(shared: &Shared, event: Event, todo: &mpsc::UnboundedSender<Todo>) {
    if event.method == "Page.screencastFrame" {
        return note_picture(shared, event);
    }
    let mut known = shared.known();
    let wanted = match event.method.as_str() {
        "Target.attachedToTarget" => attached(&mut known, &event.params),
        "Target.detachedFromTarget" => {
            let session = text(&event.params, "sessionId");
            known.pages.retain(|page| page.session != session);
            None
        }
        "Page.javascriptDialogOpening" if !known.driven_outside => {
            let accept = matches!(event.params["type"].as_str(), Some("alert" | "beforeunload"));
            Some(Todo::Dialog { session: event.session, accept })
        }
        "Browser.downloadWillBegin" => {
            download_begins(&mut known, &event.params);
            None
        }
        "Browser.downloadProgress" => {
            download_goes_on(&mut known, &event.params);
            None
        }
        method => {
            if let Some(page) = known.by_session(&event.session) {
                note_page(page, method, &event.params);
            }
            None
        }
    };
    drop(known);
    if let Some(wanted) = wanted {
        let _ = todo.send(wanted);
    }
    shared.changes.send_modify(|count| *count += 1);
}

fn note_picture(shared: &Shared, mut event: Event) {
    let number = event.params["sessionId"].as_i64();
    if let (Some(number), Value::String(jpeg)) = (number, event.params["data"].take()) {
        // Of those that nobody takes, none is missed.
        let _ = shared.pictures.try_send(Picture { page: event.session, number, jpeg });
    }
}

fn text<'a>(params: &'a Value, name: &str) -> &'a str {
    params[name].as_str().unwrap_or_default()
}

fn attached(known: &mut Known, params: &Value) -> Option<Todo> {
    let info = &params["targetInfo"];
    let session = text(params, "sessionId").to_owned();
    let page = PageState::new(text(info, "targetId").to_owned(), session.clone(), text(info, "url").to_owned());
    known.pages.push(page);
    Some(Todo::SetUp { session })
}

fn download_begins(known: &mut Known, params: &Value) {
    let id = text(params, "guid").to_owned();
    if known.download_order.len() == MAX_DOWNLOADS {
        let oldest = known.download_order.remove(0);
        known.downloads.remove(&oldest);
    }
    let (name, url) = (text(params, "suggestedFilename").to_owned(), text(params, "url").to_owned());
    known.downloads.insert(id.clone(), DownloadState { name, url, received: 0, ended: None });
    known.download_order.push(id);
}

fn download_goes_on(known: &mut Known, params: &Value) {
    if let Some(download) = known.downloads.get_mut(text(params, "guid")) {
        download.received = params["receivedBytes"].as_f64().unwrap_or_default() as u64;
        download.ended = match text(params, "state") {
            "completed" => Some(true),
            "canceled" => Some(false),
            _ => None,
        };
    }
}

/// What a page's own events tell. The main frame has the target's id.
fn note_page(page: &mut PageState, method: &str, params: &Value) {
    let is_main = text(params, "frameId") == page.target;
    match method {
        "Page.frameRequestedNavigation" if is_main && text(params, "disposition") == "currentTab" => {
            page.requested = true;
        }
        "Page.frameStartedNavigating" if is_main && text(params, "navigationType") != "sameDocument" => {
            (page.navigating, page.requested) = (true, false);
        }
        "Page.navigatedWithinDocument" if is_main => {
            page.url = text(params, "url").to_owned();
            (page.navigating, page.requested) = (false, false);
        }
        // Also where it came to nothing: a download, an answer without content, a stop.
        "Page.frameStoppedLoading" | "Page.frameClearedScheduledNavigation" if is_main => {
            (page.navigating, page.requested) = (false, false);
        }
        "Page.frameNavigated" if text(&params["frame"], "id") == page.target => {
            let frame = &params["frame"];
            let failed = frame["unreachableUrl"].as_str();
            page.url = failed.unwrap_or_else(|| text(frame, "url")).to_owned() + text(frame, "urlFragment");
            page.loader = text(frame, "loaderId").to_owned();
            page.documents += 1;
            (page.navigating, page.requested) = (false, false);
            page.has_document = false;
            page.is_loaded = false;
            page.asked.clear();
            page.quiet_since = Instant::now();
        }
        "Page.lifecycleEvent" if is_main && text(params, "loaderId") == page.loader => match text(params, "name") {
            "DOMContentLoaded" => page.has_document = true,
            "load" => {
                page.has_document = true;
                page.is_loaded = true;
            }
            _ => {}
        },
        "Inspector.targetCrashed" => page.crashed = true,
        _ => note_network(page, method, params),
    }
}

fn note_network(page: &mut PageState, method: &str, params: &Value) {
    let id = text(params, "requestId");
    match method {
        "Network.requestWillBeSent" if !text(&params["request"], "url").starts_with("data:") => {
            page.asked.insert(id.to_owned());
        }
        "Network.responseReceived" if text(params, "type") == "Document" && text(params, "frameId") == page.target => {
            let status = params["response"]["status"].as_u64().and_then(|status| u16::try_from(status).ok());
            if let Some(answer) = page.answer(id) {
                answer.status = status;
            }
        }
        "Network.loadingFinished" | "Network.loadingFailed" => {
            if method == "Network.loadingFailed" && text(params, "type") == "Document" {
                let failure = text(params, "errorText").to_owned();
                if let Some(answer) = page.answer(id) {
                    answer.failure = Some(failure);
                }
            }
            if page.asked.remove(id) && page.asked.is_empty() {
                page.quiet_since = Instant::now();
            }
        }
        _ => {}
    }
}

/// Does what events ask for.
async fn act(cdp: Cdp, shared: Arc<Shared>, mut todo: mpsc::UnboundedReceiver<Todo>) {
    while let Some(next) = todo.recv().await {
        let (cdp, shared) = (cdp.clone(), Arc::clone(&shared));
        // Beside each other: a page that hangs does not hold up another one's beginning.
        tokio::spawn(async move {
            let done = match next {
                Todo::SetUp { session } => {
                    let settings = shared.settings.lock().unwrap_or_else(PoisonError::into_inner).clone();
                    let done = set_up_page(&cdp, &session, &settings).await;
                    if done.is_ok() {
                        if let Some(page) = shared.known().by_session(&session) {
                            page.ready = true;
                        }
                        shared.changes.send_modify(|count| *count += 1);
                    }
                    done
                }
                Todo::Dialog { session, accept } => {
                    cdp.call(&session, "Page.handleJavaScriptDialog", json!({"accept": accept})).await.map(|_| ())
                }
            };
            if let Err(error) = done {
                // Pages come and go.
                tracing::debug!(%error, "a page has gone before it was seen to");
            }
        });
    }
}

async fn set_up_page(cdp: &Cdp, session: &str, settings: &PageSettings) -> Result<(), CdpError> {
    for (method, params) in [
        ("Page.enable", json!({})),
        ("Page.setLifecycleEventsEnabled", json!({"enabled": true})),
        ("Network.enable", json!({"maxTotalBufferSize": 0, "maxResourceBufferSize": 0})),
        ("Inspector.enable", json!({})),
    ] {
        cdp.call(session, method, params).await?;
    }
    emulate(cdp, session, settings).await?;
    cdp.call(session, "Runtime.runIfWaitingForDebugger", json!({})).await.map(|_| ())
}

/// Has a page look at the world as the settings say.
async fn emulate(cdp: &Cdp, session: &str, settings: &PageSettings) -> Result<(), CdpError> {
    if let Some(size) = settings.viewport {
        let metrics = json!({"width": size.width, "height": size.height, "deviceScaleFactor": 0, "mobile": false});
        cdp.call(session, "Emulation.setDeviceMetricsOverride", metrics).await?;
    }
    let locale = settings.locale.clone().unwrap_or_default();
    ignore_set(cdp.call(session, "Emulation.setLocaleOverride", json!({"locale": locale})).await)?;
    let zone = settings.time_zone.clone().unwrap_or_default();
    ignore_set(cdp.call(session, "Emulation.setTimezoneOverride", json!({"timezoneId": zone})).await)?;
    if settings.user_agent.is_some() || settings.locale.is_some() {
        let agent = match &settings.user_agent {
            Some(agent) => agent.clone(),
            None => text(&cdp.call("", "Browser.getVersion", json!({})).await?, "userAgent").to_owned(),
        };
        let mut agent = json!({"userAgent": agent});
        if let Some(locale) = &settings.locale {
            agent["acceptLanguage"] = locale.clone().into();
        }
        cdp.call(session, "Emulation.setUserAgentOverride", agent).await?;
    }
    Ok(())
}

/// Both overrides hold for a whole renderer, and Chromium refuses to set them twice there.
fn ignore_set(result: Result<Value, CdpError>) -> Result<(), CdpError> {
    match result {
        Err(CdpError::Refused(words)) if words.contains("already in effect") => Ok(()),
        other => other.map(|_| ()),
    }
}
