//! Looking for things on the page, and waiting for them.

use std::time::Duration;

use errand_core::ErrorCode;
use futures::FutureExt;
use futures::future::BoxFuture;
use regex::Regex;
use tokio::time::{Instant, timeout_at};

use super::failure::{self, Failure};
use super::{Broken, Machine, template};
use crate::browser::IDLE;
use crate::cdp::CdpError;
use crate::page::{Element, Page, normal};
use crate::program::{By, Condition, Pattern, Scope, Target};

/// How long until the next look where nothing has been heard of the page.
const LOOK: Duration = Duration::from_millis(100);
/// Matches among which the innermost is looked for.
const MAX_NESTED: usize = 500;

/// A target with everything looked up.
pub(super) struct Query {
    by: QueryBy,
    nth: Option<usize>,
    within: Option<Box<Query>>,
    /// For people, without any value.
    pub(super) shown: String,
}

enum QueryBy {
    Css(String),
    Xpath(String),
    Role(String, Option<Matcher>),
    Label(Matcher),
    Text(Matcher),
}

/// A pattern with everything looked up.
pub(super) enum Matcher {
    Is(Vec<String>),
    Contains(String),
    Matches(Regex),
}

impl Matcher {
    pub(super) fn new(pattern: &Pattern, scope: &impl Scope) -> Result<Self, String> {
        let text = |template: &crate::program::Template| template.text(scope).map(|text| normal(&text));
        Ok(match pattern {
            Pattern::Is(texts) => Self::Is(texts.iter().map(text).collect::<Result<_, _>>()?),
            Pattern::Contains(part) => Self::Contains(text(part)?),
            Pattern::Matches(regex) => Self::Matches(regex.clone()),
        })
    }

    pub(super) fn is_match(&self, text: &str) -> bool {
        let text = normal(text);
        match self {
            Self::Is(texts) => texts.contains(&text),
            Self::Contains(part) => text.contains(part),
            Self::Matches(regex) => regex.is_match(&text),
        }
    }
}

impl Query {
    pub(super) fn new(target: &Target, scope: &impl Scope) -> Result<Self, String> {
        let by = match &target.by {
            By::Css(selector) => QueryBy::Css(selector.text(scope)?),
            By::Xpath(path) => QueryBy::Xpath(path.text(scope)?),
            By::Role { role, name } => {
                let name = name.as_ref().map(|name| Matcher::new(name, scope)).transpose()?;
                QueryBy::Role(role.clone(), name)
            }
            By::Label(label) => QueryBy::Label(Matcher::new(label, scope)?),
            By::Text(text) => QueryBy::Text(Matcher::new(text, scope)?),
        };
        let within = target.within.as_ref().map(|within| Self::new(within, scope)).transpose()?.map(Box::new);
        Ok(Self { by, nth: target.nth, within, shown: target.by.shown() })
    }

    /// All that there is, in the page's order; only what can be seen where that is asked for.
    pub(super) fn all<'q>(
        &'q self,
        page: &'q Page<'_>,
        scope: Option<&'q Element>,
        only_visible: bool,
    ) -> BoxFuture<'q, Result<Vec<Element>, CdpError>> {
        async move {
            let outer;
            let scope = match &self.within {
                None => scope,
                Some(within) => match within.all(page, scope, false).await?.into_iter().next() {
                    None => return Ok(Vec::new()),
                    Some(found) => {
                        outer = found;
                        Some(&outer)
                    }
                },
            };
            let mut found = self.candidates(page, scope, only_visible).await?;
            if let Some(nth) = self.nth {
                found = if nth < found.len() { vec![found.swap_remove(nth)] } else { Vec::new() };
            }
            Ok(found)
        }
        .boxed()
    }

    async fn candidates(
        &self,
        page: &Page<'_>,
        scope: Option<&Element>,
        only_visible: bool,
    ) -> Result<Vec<Element>, CdpError> {
        let (found, matcher) = match &self.by {
            QueryBy::Role(role, name) => return by_role(page, scope, role, name.as_ref()).await,
            QueryBy::Css(selector) => (page.by_css(scope, selector).await?, None),
            QueryBy::Xpath(path) => (page.by_xpath(scope, path).await?, None),
            QueryBy::Label(label) => (page.labelled(scope).await?, Some(label)),
            QueryBy::Text(text) => (page.with_text(scope).await?, Some(text)),
        };
        let fits = |facts: &crate::page::Facts| {
            (facts.visible || !only_visible)
                && matcher.is_none_or(|matcher| facts.texts.iter().any(|text| matcher.is_match(text)))
        };
        let mut at: Vec<usize> =
            found.facts.iter().enumerate().filter(|(_, facts)| fits(facts)).map(|(at, _)| at).collect();
        if matches!(self.by, QueryBy::Text(_)) && at.len() > 1 {
            at.truncate(MAX_NESTED);
            at = page.innermost(&found, &at).await?;
        }
        let mut elements = Vec::with_capacity(at.len());
        for at in at {
            elements.push(page.nth(&found, at).await?);
        }
        Ok(elements)
    }
}

async fn by_role(
    page: &Page<'_>,
    scope: Option<&Element>,
    role: &str,
    name: Option<&Matcher>,
) -> Result<Vec<Element>, CdpError> {
    let mut elements = Vec::new();
    for (node, own) in page.by_role(scope, role).await? {
        if name.is_none_or(|name| name.is_match(&own)) {
            elements.push(page.by_node(node).await?);
        }
    }
    Ok(elements)
}

impl<'a> Machine<'a> {
    pub(super) fn query(&self, target: &Target) -> Result<Query, Broken> {
        Query::new(target, self).map_err(template)
    }

    /// Waits for the next thing that is heard of the browser, or a little while. False when the step's time is over.
    pub(super) async fn a_moment(&self) -> bool {
        let until = self.deadline.min(Instant::now() + LOOK);
        // Whatever changes may be what is waited for; each change is looked at once.
        let mut first = true;
        let change = self.browser.until(|_| if std::mem::take(&mut first) { None } else { Some(()) });
        let _ = timeout_at(until, change).await;
        Instant::now() < self.deadline
    }

    /// What a command did not find for the moment is looked for again; a browser that has gone is not.
    pub(super) fn passing<T>(result: Result<T, CdpError>) -> Result<Option<T>, Broken> {
        match result {
            Ok(found) => Ok(Some(found)),
            Err(CdpError::Closed) => Err(Broken::Lost),
            Err(error) => {
                tracing::trace!(%error, "looking again");
                Ok(None)
            }
        }
    }

    /// Something that can be seen, as soon as it is there.
    pub(super) async fn find(&self, query: &Query) -> Result<(Page<'a>, Element), Broken> {
        loop {
            let looked = async {
                let page = Page::current(self.browser).await?;
                let found = query.all(&page, None, true).await?.into_iter().next();
                Ok(found.map(|element| (page, element)))
            };
            if let Some(Some(found)) = Self::passing(looked.await)? {
                return Ok(found);
            }
            self.hopeless()?;
            if !self.a_moment().await {
                return Err(self.missing(&format!("there is no {}", query.shown)));
            }
        }
    }

    /// Fails at once where it is of no use to wait.
    pub(super) fn hopeless(&self) -> Result<(), Broken> {
        let page = self.browser.known().current().cloned();
        match page.filter(failure::is_hopeless).and_then(|page| failure::of_page(&page, &self.browser.egress)) {
            Some(failure) => Err(failure.into()),
            None => Ok(()),
        }
    }

    /// What was not there in time: by the page's own trouble, or because it is another page than was expected.
    pub(super) fn missing(&self, what: &str) -> Broken {
        let page = self.browser.known().current().cloned();
        let trouble = page.and_then(|page| failure::of_page(&page, &self.browser.egress));
        let what = format!("{what} (looked for {} ms)", self.allowed.as_millis());
        trouble.unwrap_or_else(|| Failure::new(ErrorCode::SOURCE_ERROR, what)).into()
    }

    /// Waits until a condition is so. With `assert`, it is the author's own message that fails the run.
    pub(super) async fn becomes_so(
        &mut self,
        condition: &Condition,
        assert: Option<Option<&str>>,
    ) -> Result<(), Broken> {
        loop {
            let looked = self.is_so(condition).await;
            if let Ok(Some(true)) = looked {
                return Ok(());
            }
            looked?;
            if assert.is_none() {
                self.hopeless()?;
            }
            if !self.a_moment().await {
                return Err(match assert {
                    Some(Some(message)) => Failure::new(ErrorCode::SOURCE_ERROR, message).into(),
                    Some(None) => self.missing("what must be so is not"),
                    None => self.missing("what was waited for has not come"),
                });
            }
        }
    }

    /// Whether a condition is so, as soon as that can be said.
    pub(super) async fn is_so_now(&mut self, condition: &Condition) -> Result<bool, Broken> {
        loop {
            if let Some(so) = self.is_so(condition).await? {
                return Ok(so);
            }
            if !self.a_moment().await {
                return Err(self.missing("the page cannot be looked at"));
            }
        }
    }

    /// None where the page cannot be looked at for the moment.
    fn is_so<'s>(&'s self, condition: &'s Condition) -> BoxFuture<'s, Result<Option<bool>, Broken>> {
        async move {
            Ok(match condition {
                Condition::Exists(target) => self.is_there(target).await?,
                Condition::Missing(target) => self.is_there(target).await?.map(|there| !there),
                Condition::Text(pattern) => {
                    let matcher = Matcher::new(pattern, self).map_err(template)?;
                    let text = async { Page::current(self.browser).await?.text().await };
                    Self::passing(text.await)?.map(|text| matcher.is_match(&text))
                }
                Condition::Url(pattern) => {
                    let matcher = Matcher::new(pattern, self).map_err(template)?;
                    let page = Self::passing(self.browser.page().await)?;
                    page.map(|page| matcher.is_match(&page.url))
                }
                Condition::Equals(left, right) => {
                    let value = |side: &crate::program::Dynamic| side.value(self).map_err(template);
                    Some(value(left)? == value(right)?)
                }
                Condition::AtLeast(left, right) => {
                    let number = |side: &crate::program::Dynamic| {
                        let value = side.value(self).map_err(template)?;
                        value.as_f64().ok_or_else(|| template("at_least compares numbers".to_owned()))
                    };
                    Some(number(left)? >= number(right)?)
                }
                Condition::NetworkIdle => {
                    let page = Self::passing(self.browser.page().await)?;
                    page.map(|page| page.is_loaded && page.quiet_since().is_some_and(|since| since.elapsed() >= IDLE))
                }
                Condition::Not(inner) => self.is_so(inner).await?.map(|so| !so),
                Condition::All(inner) => self.first_that_is(inner, false).await?.map(|found| !found),
                Condition::Any(inner) => self.first_that_is(inner, true).await?,
            })
        }
        .boxed()
    }

    /// Whether one of these is `wanted`.
    async fn first_that_is(&self, conditions: &[Condition], wanted: bool) -> Result<Option<bool>, Broken> {
        for condition in conditions {
            match self.is_so(condition).await? {
                None => return Ok(None),
                Some(so) if so == wanted => return Ok(Some(true)),
                Some(_) => {}
            }
        }
        Ok(Some(false))
    }

    async fn is_there(&self, target: &Target) -> Result<Option<bool>, Broken> {
        let query = self.query(target)?;
        let looked = async {
            let page = Page::current(self.browser).await?;
            query.all(&page, None, true).await
        };
        Ok(Self::passing(looked.await)?.map(|found| !found.is_empty()))
    }
}
