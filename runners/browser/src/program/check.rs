//! Limits of a program, and what may stand where.

use errand_core::limits;

use super::template::{Ref, Root, Template};
use super::{Action, Ask, By, Condition, DownloadFrom, Field, Kind, Over, Pattern, Step, Steps, Target};

/// Steps in one program, those inside others too.
const MAX_STEPS: usize = 500;
/// Nesting of `when`, `for_each`, conditions, targets and fields.
const MAX_DEPTH: usize = 8;
/// Fields of one `extract`, `object`, `list` or `table`.
const MAX_FIELDS: usize = 100;
/// Variables of one `set`.
const MAX_VARS: usize = 100;
/// A locale, a time zone, a user agent.
const MAX_SETTING: usize = 512;

/// Where something is wrong, and what.
type Wrong = (String, String);

/// Where a check has come to.
struct Checker {
    path: Vec<String>,
    steps: usize,
    /// What `for_each` calls its items here.
    items: Vec<String>,
}

/// Checks what the types alone do not.
pub(super) fn check(program: &Steps) -> Result<(), Wrong> {
    let mut checker = Checker { path: Vec::new(), steps: 0, items: Vec::new() };
    checker.settings(program)?;
    if program.steps.is_empty() {
        return Err(("steps".to_owned(), "there must be one at least".to_owned()));
    }
    checker.steps(&program.steps, "steps", 0)?;
    if let Some(output) = &program.output {
        checker.path = vec!["output".to_owned()];
        checker.refs(output.refs())?;
    }
    Ok(())
}

impl Checker {
    fn wrong<T>(&self, what: impl Into<String>) -> Result<T, Wrong> {
        Err((self.path.join("."), what.into()))
    }

    /// Checks what is inside, with its name in the path.
    fn at(&mut self, name: &str, check: impl FnOnce(&mut Self) -> Result<(), Wrong>) -> Result<(), Wrong> {
        self.path.push(name.to_owned());
        check(self)?;
        self.path.pop();
        Ok(())
    }

    fn depth(&self, depth: usize) -> Result<(), Wrong> {
        if depth > MAX_DEPTH { self.wrong(format!("it is nested deeper than {MAX_DEPTH}")) } else { Ok(()) }
    }

    fn settings(&self, program: &Steps) -> Result<(), Wrong> {
        let settings = &program.settings;
        let wrong = |what: &str| Err(("settings".to_owned(), what.to_owned()));
        if settings.viewport.is_some_and(|size| ![size.width, size.height].iter().all(|px| (200..=4096).contains(px))) {
            return wrong("viewport must be 200..4096 both ways");
        }
        let texts = [&settings.locale, &settings.time_zone, &settings.user_agent];
        let good = |text: &String| (1..=MAX_SETTING).contains(&text.len()) && !text.chars().any(char::is_control);
        if !texts.into_iter().flatten().all(good) {
            return wrong("locale, time_zone and user_agent must be texts of 1..512 bytes");
        }
        Ok(())
    }

    fn steps(&mut self, steps: &[Step], name: &str, depth: usize) -> Result<(), Wrong> {
        self.depth(depth)?;
        for (at, step) in steps.iter().enumerate() {
            self.steps += 1;
            self.at(&format!("{name}[{at}]"), |this| {
                if this.steps > MAX_STEPS {
                    return this.wrong(format!("a program may have {MAX_STEPS} steps"));
                }
                this.step(step, depth)
            })?;
        }
        Ok(())
    }

    fn step(&mut self, step: &Step, depth: usize) -> Result<(), Wrong> {
        match &step.action {
            Action::When { condition, then, otherwise } => {
                self.at("when", |this| this.condition(condition, 0))?;
                self.steps(then, "then", depth + 1)?;
                self.steps(otherwise, "else", depth + 1)
            }
            Action::ForEach { over, name, steps, .. } => {
                self.at("for_each", |this| match over {
                    Over::List(list) => this.refs(list.refs()),
                    Over::Pages(next) => this.target(next, 0),
                })?;
                self.items.push(name.clone());
                self.steps(steps, "do", depth + 1)?;
                self.items.pop();
                Ok(())
            }
            Action::Break if self.items.is_empty() => self.wrong("break belongs into a for_each"),
            action => self.at(action.word(), |this| this.action(action)),
        }
    }

    fn action(&mut self, action: &Action) -> Result<(), Wrong> {
        match action {
            Action::Goto(goto) => self.template(&goto.url),
            Action::Fill(fill) => {
                self.target(&fill.target, 0)?;
                // The one place for secrets.
                let names = fill.value.refs().filter(|found| found.root != Root::Credential);
                self.refs(names.collect())
            }
            Action::Click(target) => self.target(target, 0),
            Action::Select(select) => {
                self.target(&select.target, 0)?;
                self.template(&select.option)
            }
            Action::Wait(condition) => self.condition(condition, 0),
            Action::Assert(assert) => self.at("that", |this| this.condition(&assert.that, 0)),
            Action::Extract(fields) => self.fields(fields.iter(), 0),
            Action::Download(download) => {
                match &download.from {
                    DownloadFrom::Click(target) => self.target(target, 0)?,
                    DownloadFrom::Url(url) => self.template(url)?,
                }
                download.name.iter().try_for_each(|name| self.template(name))?;
                download.data.iter().try_for_each(|data| self.refs(data.refs()))
            }
            Action::Screenshot(screenshot) => screenshot.name.iter().try_for_each(|name| self.template(name)),
            Action::Ask(ask) => self.ask(ask),
            Action::Set(vars) if vars.len() > MAX_VARS => self.wrong(format!("it may have {MAX_VARS} variables")),
            Action::Set(vars) => vars.values().try_for_each(|value| self.refs(value.refs())),
            Action::Fail(fail) => {
                if fail.message.refs().any(|found| found.root == Root::Answer) {
                    return self.wrong("an answer is a secret, and an error's message is not");
                }
                self.template(&fail.message)
            }
            Action::Press(_) | Action::Break | Action::UseCredential | Action::AuthOk => Ok(()),
            Action::When { .. } | Action::ForEach { .. } => Ok(()),
        }
    }

    fn ask(&self, ask: &Ask) -> Result<(), Wrong> {
        if !(1..=limits::MAX_INTERACTION_FIELDS).contains(&ask.fields.len()) {
            return self.wrong(format!("there must be 1..{} fields", limits::MAX_INTERACTION_FIELDS));
        }
        self.template(&ask.message)?;
        for field in &ask.fields {
            self.template(&field.label)?;
            field.options.iter().try_for_each(|options| self.refs(options.refs()))?;
        }
        Ok(())
    }

    fn condition(&mut self, condition: &Condition, depth: usize) -> Result<(), Wrong> {
        self.depth(depth)?;
        match condition {
            Condition::Exists(target) => self.at("exists", |this| this.target(target, 0)),
            Condition::Missing(target) => self.at("missing", |this| this.target(target, 0)),
            Condition::Text(pattern) | Condition::Url(pattern) => self.pattern(pattern),
            Condition::Equals(left, right) | Condition::AtLeast(left, right) => {
                self.refs(left.refs())?;
                self.refs(right.refs())
            }
            Condition::NetworkIdle => Ok(()),
            Condition::Not(inner) => self.at("not", |this| this.condition(inner, depth + 1)),
            Condition::All(inner) | Condition::Any(inner) if inner.len() > MAX_FIELDS => {
                self.wrong(format!("it may have {MAX_FIELDS} conditions"))
            }
            Condition::All(inner) | Condition::Any(inner) => {
                inner.iter().try_for_each(|inner| self.condition(inner, depth + 1))
            }
        }
    }

    fn target(&self, target: &Target, depth: usize) -> Result<(), Wrong> {
        self.depth(depth)?;
        match &target.by {
            By::Css(text) | By::Xpath(text) => self.template(text)?,
            By::Role { role, name } => {
                if role.is_empty() || role.len() > 64 || !role.chars().all(|c| c.is_ascii_alphanumeric()) {
                    return self.wrong("role must be a word");
                }
                name.iter().try_for_each(|name| self.pattern(name))?;
            }
            By::Label(pattern) | By::Text(pattern) => self.pattern(pattern)?,
        }
        target.within.iter().try_for_each(|within| self.target(within, depth + 1))
    }

    fn pattern(&self, pattern: &Pattern) -> Result<(), Wrong> {
        match pattern {
            Pattern::Is(texts) => texts.iter().try_for_each(|text| self.template(text)),
            Pattern::Contains(text) => self.template(text),
            Pattern::Matches(_) => Ok(()),
        }
    }

    fn fields<'a>(
        &mut self,
        fields: impl ExactSizeIterator<Item = (&'a String, &'a Field)>,
        depth: usize,
    ) -> Result<(), Wrong> {
        if !(1..=MAX_FIELDS).contains(&fields.len()) {
            return self.wrong(format!("there must be 1..{MAX_FIELDS} fields"));
        }
        for (name, field) in fields {
            self.at(name, |this| this.field(field, depth))?;
        }
        Ok(())
    }

    fn field(&mut self, field: &Field, depth: usize) -> Result<(), Wrong> {
        self.depth(depth)?;
        let kind = field.r#as;
        let is = |kinds: &[Kind]| kinds.contains(&kind);
        let texts = [Kind::Text, Kind::Number, Kind::Date, Kind::Attribute];
        for (name, given, allowed) in [
            ("attribute", field.attribute.is_some(), is(&[Kind::Attribute])),
            ("pattern", field.pattern.is_some(), is(&texts)),
            ("map", field.map.is_some(), is(&[Kind::Text, Kind::Attribute])),
            ("format", field.format.is_some(), is(&[Kind::Date])),
            ("decimal", field.decimal.is_some(), is(&[Kind::Number])),
            ("items", field.items.is_some(), is(&[Kind::List])),
            ("fields", field.fields.is_some(), is(&[Kind::List, Kind::Object])),
            ("columns", field.columns.is_some(), is(&[Kind::Table])),
            ("limit", field.limit.is_some(), is(&[Kind::List, Kind::Table])),
        ] {
            if given && !allowed {
                return self.wrong(format!("{name} does not belong to this kind of field"));
            }
        }
        let missing = match kind {
            Kind::Attribute if field.attribute.is_none() => "attribute is missing",
            Kind::Object if field.fields.is_none() => "fields are missing",
            Kind::Table if field.columns.is_none() => "columns are missing",
            Kind::List if field.from.is_none() => "from is missing",
            Kind::List if field.items.is_some() && field.fields.is_some() => "it has items or fields, not both",
            Kind::Exists if field.from.is_none() => "from is missing",
            _ => "",
        };
        if !missing.is_empty() {
            return self.wrong(missing);
        }
        self.inside(field, depth)
    }

    fn inside(&mut self, field: &Field, depth: usize) -> Result<(), Wrong> {
        if let Some(from) = &field.from {
            self.at("from", |this| this.target(from, 0))?;
        }
        if let Some(limit) = &field.limit {
            self.refs(limit.refs())?;
        }
        if let Some(items) = &field.items {
            self.at("items", |this| this.field(items, depth + 1))?;
        }
        if let Some(fields) = &field.fields {
            self.at("fields", |this| this.fields(fields.iter(), depth + 1))?;
        }
        for (name, column) in field.columns.iter().flatten() {
            self.at(name, |this| {
                this.pattern(&column.heading)?;
                this.field(&column.cell, depth + 1)
            })?;
        }
        Ok(())
    }

    fn template(&self, template: &Template) -> Result<(), Wrong> {
        self.refs(template.refs().collect())
    }

    fn refs(&self, refs: Vec<&Ref>) -> Result<(), Wrong> {
        for found in refs {
            match &found.root {
                Root::Credential => return self.wrong("a credential may only stand in the value of a fill"),
                Root::Item(name) if !self.items.contains(name) => {
                    return self.wrong(format!(
                        "{{{{{name}...}}}} is none of input, answer, vars, output, run, credential, \
                                               and no for_each calls its item so"
                    ));
                }
                _ => {}
            }
        }
        Ok(())
    }
}
