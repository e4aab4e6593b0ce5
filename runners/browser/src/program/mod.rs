//! The language of declarative programs: docs/browser-programs.md is its reference, docs/browser-program.schema.json
//! its JSON Schema. Reading one is pure and checks every limit, so that a program which is wrong fails before it begins.

mod check;
mod raw;
mod template;
mod values;

use std::collections::BTreeMap;

use errand_core::{Error, ErrorCode};
use regex::Regex;
use schemars::JsonSchema;
use serde::Deserialize;

pub(crate) use raw::schema;
pub(crate) use template::{Dynamic, Root, Scope, Template};
pub(crate) use values::{date, number, place};

/// What a task's `program` holds.
#[derive(Debug)]
pub(crate) enum Program {
    /// A program written outside that attaches to the session's browser.
    Agent(errand_process::Program),
    Steps(Steps),
}

/// A declarative program.
#[derive(Debug, Clone)]
pub(crate) struct Steps {
    pub(crate) settings: PageSettings,
    pub(crate) steps: Vec<Step>,
    /// What the run gives back; all that was extracted where there is none.
    pub(crate) output: Option<Dynamic>,
}

/// How pages look at the world. What is not given is the runner's.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PageSettings {
    /// The size of the page's window, in CSS pixels.
    #[serde(default)]
    pub(crate) viewport: Option<Viewport>,
    /// The locale, such as `de-DE`.
    #[serde(default)]
    pub(crate) locale: Option<String>,
    /// The time zone, such as `Europe/Berlin`.
    #[serde(default)]
    pub(crate) time_zone: Option<String>,
    /// What the browser says that it is.
    #[serde(default)]
    pub(crate) user_agent: Option<String>,
}

/// A size in CSS pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Viewport {
    /// 200..4096.
    #[schemars(range(min = 200, max = 4096))]
    pub(crate) width: u32,
    /// 200..4096.
    #[schemars(range(min = 200, max = 4096))]
    pub(crate) height: u32,
}

/// One step.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "raw::Step")]
pub(crate) struct Step {
    pub(crate) name: Option<String>,
    pub(crate) timeout_ms: u64,
    pub(crate) action: Action,
}

/// What a step does.
#[derive(Debug, Clone)]
pub(crate) enum Action {
    Goto(Goto),
    Fill(Fill),
    Click(Target),
    Select(Select),
    Press(Key),
    Wait(Condition),
    Assert(Assert),
    When { condition: Condition, then: Vec<Step>, otherwise: Vec<Step> },
    ForEach { over: Over, max: usize, name: String, steps: Vec<Step> },
    Break,
    Extract(BTreeMap<String, Field>),
    Download(Download),
    Screenshot(Screenshot),
    Ask(Ask),
    UseCredential,
    AuthOk,
    Set(BTreeMap<String, Dynamic>),
    Fail(Fail),
}

impl Action {
    /// The word in the program.
    pub(crate) const fn word(&self) -> &'static str {
        match self {
            Self::Goto(_) => "goto",
            Self::Fill(_) => "fill",
            Self::Click(_) => "click",
            Self::Select(_) => "select",
            Self::Press(_) => "press",
            Self::Wait(_) => "wait",
            Self::Assert(_) => "assert",
            Self::When { .. } => "when",
            Self::ForEach { .. } => "for_each",
            Self::Break => "break",
            Self::Extract(_) => "extract",
            Self::Download(_) => "download",
            Self::Screenshot(_) => "screenshot",
            Self::Ask(_) => "ask",
            Self::UseCredential => "use_credential",
            Self::AuthOk => "auth_ok",
            Self::Set(_) => "set",
            Self::Fail(_) => "fail",
        }
    }
}

/// Opens a page.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Goto {
    /// `http` or `https`; relative to the page that is open.
    pub(crate) url: Template,
    /// When the page counts as there.
    #[serde(default)]
    pub(crate) until: Until,
    /// Goes on where the page answers with an HTTP error.
    #[serde(default)]
    pub(crate) any_status: bool,
}

/// How far a page is to have come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Until {
    /// Its document is there.
    #[default]
    Document,
    /// And all that belongs to it.
    Load,
    /// And nothing has been asked for half a second.
    NetworkIdle,
}

/// Enters a text.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Fill {
    /// The form's field.
    pub(crate) target: Target,
    /// What it is to hold; what it held before goes.
    pub(crate) value: Template,
    /// Presses Enter behind it.
    #[serde(default)]
    pub(crate) submit: bool,
}

/// Chooses an option of a `select`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Select {
    /// The `select`.
    pub(crate) target: Target,
    /// The option's text or value.
    pub(crate) option: Template,
}

/// A key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub(crate) enum Key {
    Enter,
    Tab,
    Escape,
    Space,
    Backspace,
    Delete,
    ArrowUp,
    ArrowDown,
    ArrowLeft,
    ArrowRight,
    PageUp,
    PageDown,
    Home,
    End,
}

/// Fails the run where a condition does not come true.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Assert {
    /// What must come true within the step's time.
    pub(crate) that: Condition,
    /// What the run's error says; no templates.
    #[serde(default)]
    pub(crate) message: Option<String>,
}

/// What a `for_each` goes over.
#[derive(Debug, Clone)]
pub(crate) enum Over {
    /// The items of a list.
    List(Dynamic),
    /// This page, then those that clicks on a link lead to, until it is no longer there.
    Pages(Target),
}

/// Something on the page.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "raw::Target")]
pub(crate) struct Target {
    pub(crate) by: By,
    /// 0 is the first one.
    pub(crate) nth: Option<usize>,
    /// Only what is inside this.
    pub(crate) within: Option<Box<Target>>,
}

/// How something is found.
#[derive(Debug, Clone)]
pub(crate) enum By {
    Css(Template),
    Xpath(Template),
    Role { role: String, name: Option<Pattern> },
    Label(Pattern),
    Text(Pattern),
}

impl By {
    /// For people, without any value.
    pub(crate) fn shown(&self) -> String {
        match self {
            Self::Css(selector) => format!("css {}", selector.source()),
            Self::Xpath(path) => format!("xpath {}", path.source()),
            Self::Role { role, name: None } => format!("role {role}"),
            Self::Role { role, name: Some(name) } => format!("role {role}, name {}", name.shown()),
            Self::Label(label) => format!("label {}", label.shown()),
            Self::Text(text) => format!("text {}", text.shown()),
        }
    }
}

/// What a text is compared with. White space counts as one blank.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "raw::Pattern")]
pub(crate) enum Pattern {
    /// It is one of these.
    Is(Vec<Template>),
    Contains(Template),
    Matches(Regex),
}

impl Pattern {
    pub(crate) fn shown(&self) -> String {
        match self {
            Self::Is(texts) => {
                texts.iter().map(|text| format!("\"{}\"", text.source())).collect::<Vec<_>>().join(" or ")
            }
            Self::Contains(text) => format!("with \"{}\" in it", text.source()),
            Self::Matches(regex) => format!("like /{}/", regex.as_str()),
        }
    }
}

/// What may be so or not.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "raw::Condition")]
pub(crate) enum Condition {
    Exists(Target),
    Missing(Target),
    Text(Pattern),
    Url(Pattern),
    Equals(Dynamic, Dynamic),
    AtLeast(Dynamic, Dynamic),
    NetworkIdle,
    Not(Box<Condition>),
    All(Vec<Condition>),
    Any(Vec<Condition>),
}

/// What is read of the page.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Field {
    /// Where it is; in a list's items: inside the item. The item or the page itself where it is not given.
    pub(crate) from: Option<Target>,
    /// What it is.
    pub(crate) r#as: Kind,
    /// For `attribute`: which. `href`, `src` and `action` become whole URLs.
    pub(crate) attribute: Option<String>,
    /// A regular expression on the text: its first group, or all that it matches.
    pub(crate) pattern: Option<raw::Expression>,
    /// What becomes of texts: the value stands for its key, and nothing else is allowed.
    pub(crate) map: Option<BTreeMap<String, serde_json::Value>>,
    /// For `date`: how it is written, such as `D.M.YYYY` or `MMMM D, YYYY`; ISO 8601 where it is not given.
    pub(crate) format: Option<String>,
    /// For `number`: what separates the fraction; a point where it is not given.
    pub(crate) decimal: Option<Separator>,
    /// `null` where there is none, instead of a failure.
    pub(crate) optional: bool,
    /// For `list`: each item, itself or by its fields.
    pub(crate) items: Option<Box<Field>>,
    /// For `object` and, without `items`, `list`: the fields by their names.
    pub(crate) fields: Option<BTreeMap<String, Field>>,
    /// For `table`: which columns, by name: what the heading says, and how a cell is read.
    pub(crate) columns: Option<BTreeMap<String, Column>>,
    /// For `list` and `table`: at most so many; of a list that is added to, in all.
    pub(crate) limit: Option<Dynamic>,
}

/// What a field is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// Its text; of a form's field, what it holds.
    #[default]
    Text,
    /// A number in its text.
    Number,
    /// A date in its text, as `YYYY-MM-DD` or, without a day, `YYYY-MM`.
    Date,
    /// An attribute's text.
    Attribute,
    /// Whether it is there.
    Exists,
    /// A list of all that is found.
    List,
    /// The rows of a table, by the headings of its columns.
    Table,
    /// Several fields.
    Object,
}

/// A separator of fractions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
pub(crate) enum Separator {
    #[default]
    #[serde(rename = ".")]
    Point,
    #[serde(rename = ",")]
    Comma,
}

/// A column of a table.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Column {
    /// What its heading says.
    pub(crate) heading: Pattern,
    /// How a cell is read; as text where it is not given.
    #[serde(default)]
    pub(crate) cell: Box<Field>,
}

/// Captures a file.
#[derive(Debug, Clone)]
pub(crate) struct Download {
    pub(crate) from: DownloadFrom,
    pub(crate) name: Option<Template>,
    /// Facts about it.
    pub(crate) data: Option<Dynamic>,
    /// Where its name is put.
    pub(crate) into: Option<String>,
}

/// What brings a file.
#[derive(Debug, Clone)]
pub(crate) enum DownloadFrom {
    Click(Target),
    Url(Template),
}

/// Captures a picture.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Screenshot {
    /// The file's name.
    pub(crate) name: Option<Template>,
    /// All of the page, not only what its window shows.
    pub(crate) full_page: bool,
}

/// Asks the user; the answer's fields are `{{answer.name}}`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Ask {
    /// `mfa`, `security_question`, `account_selection` or a word of your own.
    pub(crate) r#type: String,
    /// For the user.
    pub(crate) message: Template,
    /// What to fill in: 1..20.
    #[schemars(length(min = 1, max = 20))]
    pub(crate) fields: Vec<AskField>,
}

/// One thing to fill in.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct AskField {
    /// Its key in the answer.
    pub(crate) name: String,
    /// `text`, `password`, `code` or `select`.
    pub(crate) r#type: FieldType,
    /// For the user.
    pub(crate) label: Template,
    /// For `select`: a list of texts.
    #[serde(default)]
    pub(crate) options: Option<Dynamic>,
}

/// How a thing is filled in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum FieldType {
    Text,
    Password,
    Code,
    Select,
}

impl FieldType {
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Password => "password",
            Self::Code => "code",
            Self::Select => "select",
        }
    }
}

/// Fails the run.
#[derive(Debug, Clone)]
pub(crate) struct Fail {
    pub(crate) code: ErrorCode,
    pub(crate) message: Template,
}

impl Program {
    /// Reads a task's `program`. The errors name the place and hold none of the program's values: they may be secrets.
    pub(crate) fn parse(json: &[u8]) -> Result<Self, Error> {
        if json.is_empty() {
            return Err(unusable("there is none; it needs {\"steps\": [...]} or {\"agent\": {\"command\": [...]}}"));
        }
        let mut reader = serde_json::Deserializer::from_slice(json);
        let document: raw::Document = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
            let path = error.path().to_string();
            let what = raw::without_values(&error.into_inner());
            if path == "." {
                unusable(&what)
            } else {
                unusable(&format!("{path}: {what}")).at(format!("program.{path}"))
            }
        })?;
        match (document.agent, document.steps) {
            (Some(_), None) => agent(json).map(Self::Agent),
            (None, Some(steps)) => {
                let program = Steps { settings: document.settings, steps, output: document.output };
                check::check(&program)
                    .map_err(|(path, what)| unusable(&format!("{path}: {what}")).at(format!("program.{path}")))?;
                Ok(Self::Steps(program))
            }
            _ => Err(unusable("it must have steps or agent, and not both")),
        }
    }
}

fn agent(json: &[u8]) -> Result<errand_process::Program, Error> {
    #[derive(Deserialize)]
    struct Outer<'a> {
        #[serde(borrow)]
        agent: &'a serde_json::value::RawValue,
    }
    let outer: Outer<'_> = serde_json::from_slice(json).map_err(|_| unusable("agent is not what it must be"))?;
    errand_process::Program::parse(outer.agent.get().as_bytes())
}

fn unusable(what: &str) -> Error {
    ErrorCode::AGENT_ERROR.with(format!("the task's program is unusable: {what}"))
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
