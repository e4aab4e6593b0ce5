//! Steps that change something: open, fill, click, choose, press, ask.

use std::time::Duration;

use errand_core::ErrorCode;
use errand_core::run::{InteractionField, Question};
use errand_runner::Unanswered;
use serde_json::json;
use tokio::time::{Instant, timeout, timeout_at};
use uuid::Uuid;

use super::failure::{self, Failure};
use super::find::Query;
use super::{Broken, Machine, template};
use crate::cdp::CdpError;
use crate::page::{Page, Ready};
use crate::program::{Ask, Condition, Fill, Goto, Key, Select, Target, Template, Until};

/// How long a page's scripts may take to react to a click before it counts as done.
const REACTION: Duration = Duration::from_secs(1);
/// How long a navigation that the page has asked for may take to begin, on a busy machine. Some never do: links to mail.
const BEGINNING: Duration = Duration::from_secs(5);

impl Machine<'_> {
    /// A URL that a program may open: of the web, and whole.
    pub(super) fn url(&self, text: &Template) -> Result<url::Url, Broken> {
        let invalid = |what: &str| Broken::Failed(Failure::new(ErrorCode::SOURCE_INVALID, what));
        let text = text.text(self).map_err(template)?;
        let here = self.browser.known().current().map(|page| page.url.clone()).unwrap_or_default();
        let base = url::Url::parse(&here).ok();
        let url = url::Url::options().base_url(base.as_ref()).parse(text.trim());
        let url = url.map_err(|_| invalid("the URL is none, or is relative and no page is open"))?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) {
            return Err(invalid("the URL is neither http nor https"));
        }
        Ok(url)
    }

    pub(super) async fn goto(&mut self, goto: &Goto) -> Result<(), Broken> {
        let url = self.url(&goto.url)?;
        let page = Page::current(self.browser).await?;
        let navigate = page.call("Page.navigate", json!({"url": url.as_str()}));
        let late = |_| Broken::Failed(Failure::new(ErrorCode::SOURCE_NOT_AVAILABLE, self.late()));
        let answer = timeout_at(self.deadline, navigate).await.map_err(late)??;
        if answer["isDownload"] == true {
            let what = "the URL is a file's: use download";
            return Err(Failure::new(ErrorCode::SOURCE_ERROR, what).into());
        }
        if let Some(words) = answer["errorText"].as_str().filter(|words| !words.is_empty()) {
            // The page that says so has the URL where the last redirect led to.
            self.settle().await?;
            return Err(failure::of_network(words, url.as_str(), &self.browser.egress).into());
        }
        self.settle().await?;
        let state = self.browser.page().await?;
        if !goto.any_status
            && let Some(failure) = failure::of_page(&state, &self.browser.egress)
        {
            return Err(failure.into());
        }
        match goto.until {
            Until::Document => Ok(()),
            Until::Load => {
                let loaded = self.browser.until(|known| known.current().filter(|page| page.is_loaded).map(|_| ()));
                timeout_at(self.deadline, loaded).await.map_err(late)??;
                Ok(())
            }
            Until::NetworkIdle => self.becomes_so(&Condition::NetworkIdle, None).await,
        }
    }

    fn late(&self) -> String {
        format!("the page has not come within {} ms", self.allowed.as_millis())
    }

    /// Waits for what a click or a key has set going: a navigation is followed to its document.
    pub(super) async fn settle(&self) -> Result<(), Broken> {
        let breathe = async { Page::current(self.browser).await?.breathe().await };
        // A page that is being left does not answer.
        if let Ok(answer) = timeout(REACTION, breathe).await {
            Self::passing(answer)?;
        }
        let requested = Instant::now();
        loop {
            let busy = self.browser.known().current().is_none_or(|page| {
                page.navigating || !page.has_document || (page.requested && requested.elapsed() < BEGINNING)
            });
            if !busy {
                break;
            }
            if self.browser.cdp.closed().is_cancelled() {
                return Err(Broken::Lost);
            }
            if !self.a_moment().await {
                return Err(Failure::new(ErrorCode::SOURCE_NOT_AVAILABLE, self.late()).into());
            }
        }
        let page = self.browser.known().current().cloned();
        match page.filter(|page| page.failure().is_some()) {
            Some(page) => Err(failure::of_page(&page, &self.browser.egress).map_or(Broken::Lost, Broken::Failed)),
            None => Ok(()),
        }
    }

    pub(super) async fn click(&mut self, target: &Target) -> Result<(), Broken> {
        let query = self.query(target)?;
        self.click_on(&query).await?;
        self.settle().await
    }

    /// Clicks as soon as that can be done, and does not wait for what comes of it.
    pub(super) async fn click_on(&self, query: &Query) -> Result<(), Broken> {
        let mut why = "is not there for long enough";
        loop {
            let (page, element) = self.find(query).await?;
            let clicked = async {
                let first = page.ready(&element).await?;
                let Ready::At(x, y) = first else { return Ok(first) };
                // What moves is not clicked on yet.
                if page.ready(&element).await? != first {
                    return Ok(Ready::Covered);
                }
                match page.click_at(x, y).await {
                    // The click has closed the page.
                    Ok(()) | Err(CdpError::Gone) => Ok(first),
                    Err(error) => Err(error),
                }
            };
            let clicked = Self::passing(clicked.await)?;
            page.forget().await;
            match clicked {
                Some(Ready::At(..)) => return Ok(()),
                Some(Ready::Disabled) => why = "is disabled",
                Some(Ready::Covered) => why = "is covered by something else, or moves",
                Some(Ready::Hidden) => why = "cannot be seen",
                None => {}
            }
            if !self.a_moment().await {
                return Err(self.missing(&format!("{} {why}", query.shown)));
            }
        }
    }

    /// Clicks on something if it is there at this moment; whether it was.
    pub(super) async fn click_if_there(&mut self, target: &Target) -> Result<bool, Broken> {
        let there = self.is_so_now(&Condition::Exists(target.clone())).await?;
        if there {
            self.click(target).await?;
        }
        Ok(there)
    }

    pub(super) async fn fill(&mut self, fill: &Fill) -> Result<(), Broken> {
        let query = self.query(&fill.target)?;
        let value = fill.value.text(self).map_err(template)?;
        let mut why = "is not there for long enough".to_owned();
        loop {
            let (page, element) = self.find(&query).await?;
            let filled = async {
                let answer = page.begin_fill(&element, &value).await?;
                if answer == "type" {
                    page.insert(&value).await?;
                }
                Ok(answer)
            };
            match Self::passing(filled.await)?.as_deref() {
                Some("type" | "done") => break,
                Some(word @ ("not a field" | "not taken")) => {
                    let what = match word {
                        "not taken" => "does not take this value",
                        _ => "is nothing that a text is entered into",
                    };
                    return Err(self.missing(&format!("{} {what}", query.shown)));
                }
                Some(word) => why = format!("is {word}"),
                None => {}
            }
            if !self.a_moment().await {
                return Err(self.missing(&format!("{} {why}", query.shown)));
            }
        }
        let page = Page::current(self.browser).await?;
        page.forget().await;
        if fill.submit {
            page.press(Key::Enter).await?;
            self.settle().await?;
        }
        Ok(())
    }

    pub(super) async fn select(&mut self, select: &Select) -> Result<(), Broken> {
        let query = self.query(&select.target)?;
        let option = crate::page::normal(&select.option.text(self).map_err(template)?);
        loop {
            let (page, element) = self.find(&query).await?;
            let chosen = Self::passing(page.choose(&element, &option).await)?;
            page.forget().await;
            let why = match chosen.as_deref() {
                Some("done") => return self.settle().await,
                Some("not a select") => return Err(self.missing(&format!("{} is no select", query.shown))),
                Some("no such option") => "has no such option",
                Some("disabled") => "is disabled",
                _ => "is not there for long enough",
            };
            if !self.a_moment().await {
                return Err(self.missing(&format!("{} {why}", query.shown)));
            }
        }
    }

    pub(super) async fn press(&mut self, key: Key) -> Result<(), Broken> {
        match Page::current(self.browser).await?.press(key).await {
            Ok(()) | Err(CdpError::Gone) => self.settle().await,
            Err(error) => Err(error.into()),
        }
    }

    pub(super) async fn ask(&mut self, ask: &Ask) -> Result<(), Broken> {
        let mut fields = Vec::with_capacity(ask.fields.len());
        for field in &ask.fields {
            let options = field.options.as_ref().map(|options| options.value(self).map_err(template)).transpose()?;
            let options = serde_json::from_value(options.unwrap_or_else(|| json!([])));
            let options = options.map_err(|_| template("an ask's options are no list of texts".to_owned()))?;
            let label = field.label.text(self).map_err(template)?;
            fields.push(InteractionField {
                name: field.name.clone(),
                r#type: field.r#type.word().to_owned(),
                label,
                options,
            });
        }
        let message = ask.message.text(self).map_err(template)?;
        let question = Question { id: Uuid::now_v7().to_string(), r#type: ask.r#type.clone(), message, fields };
        match self.control.ask(question).await {
            Ok(answer) => {
                self.answer = Some(answer);
                Ok(())
            }
            Err(Unanswered::Stopped(_)) => Err(Broken::Stopped),
            Err(Unanswered::Invalid(error)) => Err(template(format!("this is no interaction: {}", error.message))),
            Err(Unanswered::Superseded) => Err(template("another question was asked meanwhile".to_owned())),
        }
    }
}
