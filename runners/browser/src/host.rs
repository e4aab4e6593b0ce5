//! Sessions as browsers, runs as programs on their pages.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use errand_bus::Bus;
use errand_core::{Error, ErrorCode, SessionId};
use errand_process::{Extra, Programs, Settings, Work};
use errand_runner::{Assigned, Control, Ending, Host, SessionHandle, SessionStart};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use crate::browser::Browser;
use crate::captures::Files;
use crate::chromium::Launch;
use crate::egress::{Egress, Upstream};
use crate::live::{self, Place};
use crate::net::Rules;
use crate::page::Page;
use crate::program::{PageSettings, Program, Steps};
use crate::run::{Broken, Machine};

/// Browsers that start at the same time: more of them are no sooner there.
const STARTING: usize = 4;
/// How long a page may take to answer after a run was stopped on it.
const RESPONSIVE: Duration = Duration::from_secs(3);
const DIED: &str = "the browser has died";

/// What all sessions have in common.
pub(crate) struct Common {
    pub(crate) launch: Launch,
    pub(crate) supervisor: PathBuf,
    pub(crate) directory: PathBuf,
    pub(crate) rules: Rules,
    pub(crate) proxy: Option<Upstream>,
    /// Over which it shows its sessions, if it does.
    pub(crate) shows: Option<Bus>,
}

impl Common {
    /// How pages look at the world where their program says nothing.
    fn settings(&self) -> PageSettings {
        PageSettings {
            viewport: Some(self.launch.viewport),
            locale: self.launch.locale.clone(),
            time_zone: self.launch.time_zone.clone(),
            user_agent: self.launch.user_agent.clone(),
        }
    }
}

/// The browser runner's own part.
pub(crate) struct Browsers {
    common: Common,
    programs: Programs,
    work: Arc<Work>,
    starting: Semaphore,
    sessions: Mutex<HashMap<SessionId, Arc<Live>>>,
}

/// A session that is here.
struct Live {
    browser: Arc<Browser>,
    /// Shows it to those who watch.
    _show: Option<AbortOnDropHandle<()>>,
    programs: errand_process::Session,
    /// A run executes, and tells by itself that the browser has died.
    busy: AtomicBool,
    /// It is being ended: that its browser dies is no news.
    ending: AtomicBool,
}

/// Marks a session as busy for as long as it is there.
struct Busy<'a>(&'a Live);

impl<'a> Busy<'a> {
    fn new(live: &'a Live) -> Self {
        live.busy.store(true, Ordering::SeqCst);
        Self(live)
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.busy.store(false, Ordering::SeqCst);
    }
}

/// For as long as it is there, a program from outside drives the browser.
struct Outside<'a>(&'a Browser);

impl<'a> Outside<'a> {
    fn new(browser: &'a Browser) -> Self {
        browser.known().driven_outside = true;
        Self(browser)
    }
}

impl Drop for Outside<'_> {
    fn drop(&mut self) {
        self.0.known().driven_outside = false;
    }
}

impl Browsers {
    pub(crate) fn new(common: Common, work: Work) -> Self {
        let work = Arc::new(work);
        let settings = Settings { directory: common.directory.clone(), supervisor: common.supervisor.clone() };
        let programs = Programs::new(settings, Arc::clone(&work));
        Self { common, programs, work, starting: Semaphore::new(STARTING), sessions: Mutex::default() }
    }

    fn session(&self, id: SessionId) -> Option<Arc<Live>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    async fn start(&self, place: Place) -> Result<Live, String> {
        let id = place.session;
        let work = Arc::clone(&self.work);
        let made = tokio::task::spawn_blocking(move || work.make_session(id).map(|()| work.session(id))).await;
        let folder = match made {
            Ok(Ok(folder)) => folder,
            Ok(Err(error)) => return Err(format!("its folder cannot be made: {}", error.kind())),
            Err(_) => return Err("its folder cannot be made".to_owned()),
        };
        let common = &self.common;
        let _turn = self.starting.acquire().await.map_err(|_| "the runner ends".to_owned())?;
        let egress = Egress::open(common.rules.clone(), common.proxy.clone()).await;
        let egress = egress.map_err(|error| format!("its way out cannot be opened: {}", error.kind()))?;
        let settings = common.settings();
        let browser = Browser::start(&common.launch, &common.supervisor, &folder, egress, settings).await?;
        let browser = Arc::new(browser);
        let _show = common.shows.clone().map(|bus| AbortOnDropHandle::new(tokio::spawn(show(bus, place, &browser))));
        let programs = errand_process::Session::default();
        Ok(Live { browser, _show, programs, busy: AtomicBool::new(false), ending: AtomicBool::new(false) })
    }

    /// Runs a declarative program.
    async fn steps(&self, live: &Live, steps: Steps, run: &Assigned, control: &Control) -> Ending {
        let run_ = Arc::new(run.clone());
        let work = Arc::clone(&self.work);
        let made = tokio::task::spawn_blocking(move || work.make_run(&run_)).await;
        let folders = match made {
            Ok(Ok(folders)) => folders,
            _ => return Ending::SessionLost("the run's folder cannot be made".to_owned()),
        };
        let files = Files::new(Arc::clone(&self.work), folders, control);
        let ending = self.steps_with(live, &steps, run, control, &files).await;
        files.end(ending).await
    }

    async fn steps_with(&self, live: &Live, steps: &Steps, run: &Assigned, control: &Control, files: &Files) -> Ending {
        let settings = merged(self.common.settings(), &steps.settings);
        let prepared = async {
            live.browser.tidy().await?;
            live.browser.own_downloads().await
        };
        if let Err(error) = prepared.await {
            return Ending::SessionLost(error.to_string());
        }
        if let Err(error) = live.browser.set_settings(settings).await {
            let error = ErrorCode::AGENT_ERROR.with(format!("settings: {error}")).at("program.settings");
            return Ending::Failed(vec![error]);
        }
        let mut machine = match Machine::new(&live.browser, control, files, run) {
            Ok(machine) => machine,
            Err(error) => return Ending::Failed(vec![error]),
        };
        let broken = tokio::select! {
            biased;
            () = live.browser.cdp.closed().cancelled() => Broken::Lost,
            _ = control.stop() => Broken::Stopped,
            done = machine.execute(steps) => match done {
                Ok(output) => return Ending::Finished(output),
                Err(broken) => broken,
            },
        };
        match broken {
            Broken::Lost => Ending::SessionLost(DIED.to_owned()),
            Broken::Stopped => stopped(live).await,
            Broken::Failed(failure) => {
                // The next run in this session is not to find a page that hangs.
                if !answers(live).await {
                    live.browser.crash().await;
                }
                Ending::Failed(vec![failure.error()])
            }
        }
    }

    /// Runs a program from outside that attaches to the browser.
    async fn agent(&self, live: &Live, program: errand_process::Program, run: Assigned, control: Control) -> Ending {
        if !self.common.launch.attachable {
            let what = "this runner starts no programs of tasks; it was started without --agents";
            return Ending::Failed(vec![ErrorCode::AGENT_ERROR.with(what).at("program.agent")]);
        }
        let url = match live.browser.url() {
            Ok(url) => url,
            Err(error) => return Ending::SessionLost(format!("the browser cannot be attached to: {}", error.kind())),
        };
        let extra =
            Extra { fields: [("cdp_url", Value::from(url.clone()))].into(), env: [("ERRAND_CDP_URL", url)].into() };
        let _outside = Outside::new(&live.browser);
        let ending = tokio::select! {
            biased;
            () = live.browser.cdp.closed().cancelled() => Ending::SessionLost(DIED.to_owned()),
            ending = self.programs.execute(&live.programs, program, run, extra, control) => ending,
        };
        match ending {
            Ending::Stopped => stopped(live).await,
            ending => ending,
        }
    }
}

/// The runner's settings, with what a program says in their place.
fn merged(own: PageSettings, program: &PageSettings) -> PageSettings {
    PageSettings {
        viewport: program.viewport.or(own.viewport),
        locale: program.locale.clone().or(own.locale),
        time_zone: program.time_zone.clone().or(own.time_zone),
        user_agent: program.user_agent.clone().or(own.user_agent),
    }
}

/// Whether the session's page does anything but what it is busy with.
async fn answers(live: &Live) -> bool {
    let answers = async {
        let page = Page::current(&live.browser).await?;
        page.call("Page.stopLoading", json!({})).await?;
        page.breathe().await
    };
    matches!(timeout(RESPONSIVE, answers).await, Ok(Ok(())))
}

/// After a stop: the session stays if its page answers.
async fn stopped(live: &Live) -> Ending {
    if answers(live).await {
        Ending::Stopped
    } else {
        Ending::SessionLost("the page did not answer after the run was stopped".to_owned())
    }
}

/// Shows a session for as long as its browser lives.
fn show(bus: Bus, place: Place, browser: &Arc<Browser>) -> impl Future<Output = ()> + Send + use<> {
    let browser = Arc::clone(browser);
    async move {
        tokio::select! {
            () = live::show(&bus, place, &browser) => {}
            () = browser.cdp.closed().cancelled() => {}
        }
    }
}

/// Tells that a browser has died while nothing executed.
fn watch(live: &Arc<Live>, handle: SessionHandle) {
    let closed = live.browser.cdp.closed().clone();
    let live = Arc::downgrade(live);
    tokio::spawn(async move {
        closed.cancelled().await;
        if let Some(live) = live.upgrade()
            && !live.ending.load(Ordering::SeqCst)
            && !live.busy.load(Ordering::SeqCst)
        {
            handle.lost(DIED);
        }
    });
}

impl Host for Browsers {
    async fn start_session(&self, session: SessionStart) -> Result<(), Error> {
        let live = self
            .start(Place { runner: session.runner_id, session: session.id })
            .await
            .map_err(|why| ErrorCode::PROVISION_FAILED.with(format!("the browser did not start: {why}")))?;
        let live = Arc::new(live);
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).insert(session.id, Arc::clone(&live));
        watch(&live, session.handle);
        Ok(())
    }

    async fn end_session(&self, id: SessionId) {
        let live = self.sessions.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        let mut suspicious = true;
        if let Some(live) = live {
            live.ending.store(true, Ordering::SeqCst);
            let gone = live.browser.end().await;
            suspicious = live.programs.end().await || !gone;
        }
        let work = Arc::clone(&self.work);
        let removed = tokio::task::spawn_blocking(move || work.end_session(id, suspicious)).await;
        if let Ok(Err(error)) = removed {
            tracing::warn!(session = %id, %error, "a session's folder could not be removed");
        }
    }

    async fn execute(&self, run: Assigned, control: Control) -> Ending {
        let Some(live) = self.session(run.lease.session_id) else {
            return Ending::SessionLost("the session is not here".to_owned());
        };
        let _busy = Busy::new(&live);
        if live.browser.cdp.closed().is_cancelled() {
            return Ending::SessionLost(DIED.to_owned());
        }
        match Program::parse(&run.program) {
            Ok(Program::Steps(steps)) => self.steps(&live, steps, &run, &control).await,
            Ok(Program::Agent(program)) => self.agent(&live, program, run, control).await,
            Err(error) => Ending::Failed(vec![error]),
        }
    }
}
