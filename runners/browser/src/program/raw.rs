//! The program as it is written: one struct per place with every field that may stand there, and what makes sense of it.

use std::collections::BTreeMap;

use errand_core::ErrorCode;
use schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::template::{Dynamic, Template};
use super::{
    Action, Ask, Assert, By, DownloadFrom, Fail, Field, Fill, Goto, Key, Over, PageSettings, Screenshot, Select, place,
};

/// How long a step may take where it does not say.
const DEFAULT_TIMEOUT_MS: u64 = 10_000;
/// The longest that a step may take.
pub(super) const MAX_TIMEOUT_MS: u64 = 300_000;
/// Rounds of a `for_each` where it does not say.
const DEFAULT_ROUNDS: usize = 100;
/// Rounds that a `for_each` may have.
const MAX_ROUNDS: usize = 1000;
/// A regular expression, compiled.
const MAX_REGEX_BYTES: usize = 256 * 1024;
/// A step's name.
const MAX_NAME: usize = 128;

/// A program for Errand's browser runner: a task's `program`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "A program for Errand's browser runner")]
#[schemars(extend("oneOf" = [{"required": ["steps"]}, {"required": ["agent"]}]))]
pub(super) struct Document {
    /// A program written outside that attaches to the session's browser: docs/browser-agents.md.
    #[serde(default, deserialize_with = "some")]
    pub(super) agent: Option<Agent>,
    /// How pages look at the world.
    #[serde(default)]
    pub(super) settings: PageSettings,
    /// What to do, one after the other.
    #[serde(default, deserialize_with = "some")]
    #[schemars(with = "Vec<Step>", length(min = 1, max = 500))]
    pub(super) steps: Option<Vec<super::Step>>,
    /// What the run gives back; all that was extracted where it is not given.
    #[serde(default)]
    #[schemars(with = "Option<Value>")]
    pub(super) output: Option<Dynamic>,
}

/// A program to start; read again by the part that starts it.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "it is there for its form, and for the schema")]
pub(super) struct Agent {
    /// The program and its arguments; no shell is involved.
    #[schemars(length(min = 1))]
    command: Vec<String>,
    /// Further environment variables.
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// The working directory, relative to the runner's `--directory`.
    #[serde(default)]
    directory: Option<String>,
}

/// One step: exactly one of the words that do something.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("oneOf" = words(&ACTIONS)))]
#[schemars(extend("dependentRequired" = {"then": ["when"], "else": ["when"], "do": ["for_each"], "for_each": ["do"]}))]
pub(super) struct Step {
    /// For people: progress and errors show it.
    #[schemars(length(max = 128))]
    #[serde(default, deserialize_with = "some")]
    name: Option<String>,
    /// How long it may take, 1..300000; 10000 where it is not given. Of `when` and `for_each`: the looking alone.
    #[schemars(range(min = 1, max = 300_000))]
    #[serde(default, deserialize_with = "some")]
    timeout_ms: Option<u64>,
    /// Opens a page.
    #[serde(default, deserialize_with = "some")]
    goto: Option<Goto>,
    /// Enters a text.
    #[serde(default, deserialize_with = "some")]
    fill: Option<Fill>,
    /// Clicks on something.
    #[serde(default, deserialize_with = "some")]
    click: Option<super::Target>,
    /// Chooses an option of a `select`.
    #[serde(default, deserialize_with = "some")]
    select: Option<Select>,
    /// Presses a key.
    #[serde(default, deserialize_with = "some")]
    press: Option<Key>,
    /// Waits until something is so.
    #[serde(default, deserialize_with = "some")]
    wait: Option<super::Condition>,
    /// Fails the run where something does not become so.
    #[serde(default, deserialize_with = "some")]
    assert: Option<Assert>,
    /// Looks whether something is so, once.
    #[serde(default, deserialize_with = "some")]
    when: Option<super::Condition>,
    /// What is done where it is so.
    #[serde(default, deserialize_with = "some")]
    then: Option<Vec<super::Step>>,
    /// What is done where it is not.
    #[serde(default, deserialize_with = "some")]
    r#else: Option<Vec<super::Step>>,
    /// Does its steps again and again.
    #[serde(default, deserialize_with = "some")]
    for_each: Option<ForEach>,
    /// What is done each time.
    #[serde(default, deserialize_with = "some")]
    r#do: Option<Vec<super::Step>>,
    /// Leaves the innermost `for_each`; always `true`.
    #[serde(default, deserialize_with = "some")]
    r#break: Option<bool>,
    /// Reads things of the page. The keys say where they go: `a.b` is a field of the output, `vars.x` a variable, and
    /// with `[]` at its end a list that is added to.
    #[serde(default, deserialize_with = "some")]
    extract: Option<BTreeMap<String, Field>>,
    /// Captures a file.
    #[serde(default, deserialize_with = "some")]
    download: Option<Download>,
    /// Captures a picture.
    #[serde(default, deserialize_with = "some")]
    screenshot: Option<Screenshot>,
    /// Asks the user.
    #[serde(default, deserialize_with = "some")]
    ask: Option<Ask>,
    /// Makes the run's credential known as `{{credential.username}}`, `.password`, `.api_key` and `.totp` (the next
    /// one-time code) to `fill`, and only there; always `true`.
    #[serde(default, deserialize_with = "some")]
    use_credential: Option<bool>,
    /// Says that the source has taken the credential: it is `verified` then; always `true`.
    #[serde(default, deserialize_with = "some")]
    auth_ok: Option<bool>,
    /// Sets variables: `{{vars.name}}`.
    #[serde(default, deserialize_with = "some")]
    set: Option<BTreeMap<String, Dynamic>>,
    /// Fails the run.
    #[serde(default, deserialize_with = "some")]
    fail: Option<FailForm>,
}

const ACTIONS: [&str; 18] = [
    "goto",
    "fill",
    "click",
    "select",
    "press",
    "wait",
    "assert",
    "when",
    "for_each",
    "break",
    "extract",
    "download",
    "screenshot",
    "ask",
    "use_credential",
    "auth_ok",
    "set",
    "fail",
];

fn words(words: &[&str]) -> Value {
    words.iter().map(|word| serde_json::json!({"required": [word]})).collect()
}

/// A field that may be missing, and that is no `null` where it is there: what has exactly one of many words counts them.
fn some<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Option<T>, D::Error> {
    T::deserialize(from).map(Some)
}

/// The one that is there of many that may be.
fn only<T>(found: Vec<Option<T>>, words: &[&str]) -> Result<T, String> {
    let mut found = found.into_iter().flatten();
    match (found.next(), found.next()) {
        (Some(one), None) => Ok(one),
        (None, _) => Err(format!("it must have one of {}", words.join(", "))),
        (Some(_), Some(_)) => Err(format!("it must have only one of {}", words.join(", "))),
    }
}

impl TryFrom<Step> for super::Step {
    type Error = String;

    fn try_from(mut step: Step) -> Result<Self, String> {
        if step.name.as_ref().is_some_and(|name| name.len() > MAX_NAME) {
            return Err(format!("name is longer than {MAX_NAME} bytes"));
        }
        let (name, timeout_ms) = (step.name.take(), step.timeout_ms.unwrap_or(DEFAULT_TIMEOUT_MS));
        if !(1..=MAX_TIMEOUT_MS).contains(&timeout_ms) {
            return Err(format!("timeout_ms must be 1..{MAX_TIMEOUT_MS}"));
        }
        if (step.then.is_some() || step.r#else.is_some()) && step.when.is_none() {
            return Err("then and else belong to when".to_owned());
        }
        if step.r#do.is_some() != step.for_each.is_some() {
            return Err("for_each and do belong together".to_owned());
        }
        let always = [("break", step.r#break), ("use_credential", step.use_credential), ("auth_ok", step.auth_ok)];
        for (word, value) in always {
            if value == Some(false) {
                return Err(format!("{word} is always true"));
            }
        }
        Ok(Self { name, timeout_ms, action: action(step)? })
    }
}

fn action(step: Step) -> Result<Action, String> {
    let (then, otherwise) = (step.then.unwrap_or_default(), step.r#else.unwrap_or_default());
    let steps = step.r#do.unwrap_or_default();
    let for_each = step.for_each.map(|each| each.action(steps)).transpose()?;
    let download = step.download.map(Download::action).transpose()?;
    let fail = step.fail.map(FailForm::action).transpose()?;
    for into in step.extract.iter().flat_map(BTreeMap::keys) {
        place(into)?;
    }
    let found = vec![
        step.goto.map(Action::Goto),
        step.fill.map(Action::Fill),
        step.click.map(Action::Click),
        step.select.map(Action::Select),
        step.press.map(Action::Press),
        step.wait.map(Action::Wait),
        step.assert.map(Action::Assert),
        step.when.map(|condition| Action::When { condition, then, otherwise }),
        for_each,
        step.r#break.map(|_| Action::Break),
        step.extract.map(Action::Extract),
        download,
        step.screenshot.map(Action::Screenshot),
        step.ask.map(Action::Ask),
        step.use_credential.map(|_| Action::UseCredential),
        step.auth_ok.map(|_| Action::AuthOk),
        step.set.map(Action::Set),
        fail,
    ];
    only(found, &ACTIONS)
}

/// Does the steps of `do` for each item of a list, or on each of a row of pages.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("oneOf" = words(&["in", "pages"])))]
struct ForEach {
    /// A list.
    #[schemars(with = "Option<Value>")]
    #[serde(default, deserialize_with = "some")]
    r#in: Option<Dynamic>,
    /// The link to the next page: the steps are done here, then where it leads to, until there is none.
    #[serde(default, deserialize_with = "some")]
    pages: Option<super::Target>,
    /// What the item, or the number of the page from 1, is called in templates; `item` where it is not given.
    #[serde(default, deserialize_with = "some")]
    r#as: Option<String>,
    /// The most rounds, 1..1000; 100 where it is not given. A list that is longer fails, further pages are left out.
    #[schemars(range(min = 1, max = 1000))]
    #[serde(default, deserialize_with = "some")]
    max: Option<usize>,
}

impl ForEach {
    fn action(self, steps: Vec<super::Step>) -> Result<Action, String> {
        const TAKEN: [&str; 6] = ["input", "answer", "vars", "output", "run", "credential"];
        let max = self.max.unwrap_or(DEFAULT_ROUNDS);
        if !(1..=MAX_ROUNDS).contains(&max) {
            return Err(format!("max must be 1..{MAX_ROUNDS}"));
        }
        let over = only(vec![self.r#in.map(Over::List), self.pages.map(Over::Pages)], &["in", "pages"])?;
        let name = self.r#as.unwrap_or_else(|| "item".to_owned());
        let good = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') && !name.is_empty() && name.len() <= 64;
        if !good || TAKEN.contains(&&*name) {
            return Err("as must be a name of letters, digits and _ that is not taken".to_owned());
        }
        Ok(Action::ForEach { over, max, name, steps })
    }
}

/// Captures a file: what a click brings, or what is at a URL, asked for as the page would.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("oneOf" = words(&["click", "url"])))]
struct Download {
    /// What to click on.
    #[serde(default, deserialize_with = "some")]
    click: Option<super::Target>,
    /// `http` or `https`; relative to the page that is open.
    #[serde(default, deserialize_with = "some")]
    url: Option<Template>,
    /// The file's name; the source's where it is not given.
    #[serde(default, deserialize_with = "some")]
    name: Option<Template>,
    /// Facts about it, kept beside it.
    #[schemars(with = "Option<Value>")]
    #[serde(default, deserialize_with = "some")]
    data: Option<Dynamic>,
    /// Where the file's name is put, as in `extract`.
    #[serde(default, deserialize_with = "some")]
    into: Option<String>,
}

impl Download {
    fn action(self) -> Result<Action, String> {
        let from = vec![self.click.map(DownloadFrom::Click), self.url.map(DownloadFrom::Url)];
        let from = only(from, &["click", "url"])?;
        if let Some(into) = &self.into {
            place(into)?;
        }
        Ok(Action::Download(super::Download { from, name: self.name, data: self.data, into: self.into }))
    }
}

/// Fails the run with an error of an agent's: docs/exec-agents.md has their list.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct FailForm {
    /// `source`, `auth`, `storage` or `task`.
    r#type: String,
    /// `source_error`, `auth_locked`, `agent_error` ...
    code: String,
    /// For the user.
    message: Template,
}

impl FailForm {
    fn action(self) -> Result<Action, String> {
        let code = ErrorCode::find(&self.r#type, &self.code).filter(|code| code.is_agents());
        let code = code.ok_or("type and code are no error that an agent may report")?;
        Ok(Action::Fail(Fail { code, message: self.message }))
    }
}

/// Something on the page: exactly one of `css`, `xpath`, `role`, `label`, `text`. Of several, the first.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("oneOf" = words(&BY)), extend("dependentRequired" = {"name": ["role"]}))]
pub(super) struct Target {
    /// A CSS selector.
    #[serde(default, deserialize_with = "some")]
    css: Option<Template>,
    /// An XPath.
    #[serde(default, deserialize_with = "some")]
    xpath: Option<Template>,
    /// An ARIA role, as the browser computes it: `button`, `link`, `row`, `textbox` ...
    #[serde(default, deserialize_with = "some")]
    role: Option<String>,
    /// With `role`: the accessible name.
    #[serde(default, deserialize_with = "some")]
    name: Option<super::Pattern>,
    /// The label of a form's field, or what else names it.
    #[serde(default, deserialize_with = "some")]
    label: Option<super::Pattern>,
    /// The text of the innermost element that has it.
    #[serde(default, deserialize_with = "some")]
    text: Option<super::Pattern>,
    /// Which of several; 0 is the first.
    #[serde(default, deserialize_with = "some")]
    nth: Option<usize>,
    /// Only what is inside this.
    #[serde(default, deserialize_with = "some")]
    within: Option<Box<super::Target>>,
}

const BY: [&str; 5] = ["css", "xpath", "role", "label", "text"];

impl TryFrom<Target> for super::Target {
    type Error = String;

    fn try_from(target: Target) -> Result<Self, String> {
        let Target { css, xpath, role, name, label, text, nth, within } = target;
        if name.is_some() && role.is_none() {
            return Err("name belongs to role".to_owned());
        }
        let found = vec![
            css.map(By::Css),
            xpath.map(By::Xpath),
            role.map(|role| By::Role { role, name }),
            label.map(By::Label),
            text.map(By::Text),
        ];
        Ok(Self { by: only(found, &BY)?, nth, within })
    }
}

/// What a text is compared with: itself, one of a list, `contains`, or `matches` with a regular expression. Runs of
/// white space count as one blank.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "it must be a text, a list of texts, {\"contains\": text} or {\"matches\": expression}")]
pub(super) enum Pattern {
    Is(Template),
    AnyOf(Vec<Template>),
    Contains(Contains),
    Matches(Matches),
}

/// Some of the text.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Contains {
    contains: Template,
}

/// A regular expression (of Rust's `regex`: no look-around, linear time).
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Matches {
    matches: String,
}

impl TryFrom<Pattern> for super::Pattern {
    type Error = String;

    fn try_from(pattern: Pattern) -> Result<Self, String> {
        Ok(match pattern {
            Pattern::Is(text) => Self::Is(vec![text]),
            Pattern::AnyOf(texts) if (1..=20).contains(&texts.len()) => Self::Is(texts),
            Pattern::AnyOf(_) => return Err("a list of texts must have 1..20 of them".to_owned()),
            Pattern::Contains(Contains { contains }) => Self::Contains(contains),
            Pattern::Matches(Matches { matches }) => Self::Matches(Expression::try_from(matches)?.0),
        })
    }
}

/// A regular expression in a field.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Expression(pub(crate) regex::Regex);

impl TryFrom<String> for Expression {
    type Error = String;

    fn try_from(source: String) -> Result<Self, String> {
        let built = regex::RegexBuilder::new(&source).size_limit(MAX_REGEX_BYTES).build();
        built.map(Self).map_err(|error| match error {
            regex::Error::CompiledTooBig(_) => "the regular expression is too large".to_owned(),
            _ => "this is no regular expression".to_owned(),
        })
    }
}

/// What may be so or not: exactly one of its words.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("oneOf" = words(&CONDITIONS)))]
pub(super) struct Condition {
    /// It is on the page, and visible.
    #[serde(default, deserialize_with = "some")]
    exists: Option<super::Target>,
    /// It is not.
    #[serde(default, deserialize_with = "some")]
    missing: Option<super::Target>,
    /// The page's text; to be all of it, so `contains` and `matches` are of more use.
    #[serde(default, deserialize_with = "some")]
    text: Option<super::Pattern>,
    /// The page's URL.
    #[serde(default, deserialize_with = "some")]
    url: Option<super::Pattern>,
    /// Two values are the same.
    #[schemars(with = "Option<[Value; 2]>")]
    #[serde(default, deserialize_with = "some")]
    equals: Option<(Dynamic, Dynamic)>,
    /// The first number is not less than the second.
    #[schemars(with = "Option<[Value; 2]>")]
    #[serde(default, deserialize_with = "some")]
    at_least: Option<(Dynamic, Dynamic)>,
    /// Nothing has been asked for half a second; always `true`.
    #[serde(default, deserialize_with = "some")]
    network_idle: Option<bool>,
    /// It is not so.
    #[serde(default, deserialize_with = "some")]
    not: Option<Box<super::Condition>>,
    /// All of them are so.
    #[serde(default, deserialize_with = "some")]
    all: Option<Vec<super::Condition>>,
    /// One of them is so.
    #[serde(default, deserialize_with = "some")]
    any: Option<Vec<super::Condition>>,
}

const CONDITIONS: [&str; 10] =
    ["exists", "missing", "text", "url", "equals", "at_least", "network_idle", "not", "all", "any"];

impl TryFrom<Condition> for super::Condition {
    type Error = String;

    fn try_from(condition: Condition) -> Result<Self, String> {
        if condition.network_idle == Some(false) {
            return Err("network_idle is always true".to_owned());
        }
        let found = vec![
            condition.exists.map(Self::Exists),
            condition.missing.map(Self::Missing),
            condition.text.map(Self::Text),
            condition.url.map(Self::Url),
            condition.equals.map(|(left, right)| Self::Equals(left, right)),
            condition.at_least.map(|(left, right)| Self::AtLeast(left, right)),
            condition.network_idle.map(|_| Self::NetworkIdle),
            condition.not.map(Self::Not),
            condition.all.map(Self::All),
            condition.any.map(Self::Any),
        ];
        only(found, &CONDITIONS)
    }
}

/// Says that the schema of what is read is the schema of what is written.
macro_rules! written_as {
    ($($read:ty => $written:ty),* $(,)?) => {$(
        impl JsonSchema for $read {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                <$written>::schema_name()
            }

            fn schema_id() -> std::borrow::Cow<'static, str> {
                <$written>::schema_id()
            }

            fn json_schema(generator: &mut SchemaGenerator) -> schemars::Schema {
                <$written>::json_schema(generator)
            }

            fn inline_schema() -> bool {
                <$written>::inline_schema()
            }
        }
    )*};
}

written_as! {
    super::Step => Step,
    super::Target => Target,
    super::Pattern => Pattern,
    super::Condition => Condition,
    Expression => String,
}

/// The language's JSON Schema.
pub(crate) fn schema() -> Value {
    SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<Document>().to_value()
}

/// serde's words without the values that they quote.
pub(super) fn without_values(error: &serde_json::Error) -> String {
    if !error.is_data() {
        return format!("it is not JSON (line {}, column {})", error.line(), error.column());
    }
    let text = error.to_string();
    let text = text.rsplit_once(" at line ").map_or(&*text, |(text, _)| text);
    // `invalid type: string "secret", expected ...`: the type is told, the value is not.
    for kind in ["invalid type: ", "invalid value: "] {
        if let Some((found, expected)) = text.strip_prefix(kind).and_then(|rest| rest.rsplit_once(", expected ")) {
            let kind_of = found.split([' ', '`', '"']).next().unwrap_or_default();
            return format!("expected {expected}, not {kind_of}");
        }
    }
    if let Some((_, expected)) = text.strip_prefix("unknown variant ").and_then(|rest| rest.split_once(", expected ")) {
        return format!("expected {expected}");
    }
    text.to_owned()
}
