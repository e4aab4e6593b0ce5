//! Templates: texts and JSON values with `{{path}}` in them. They look values up; they compute nothing.

use std::borrow::Cow;
use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use serde_json::Value;

/// Steps into a value that one reference may take.
const MAX_KEYS: usize = 16;
/// References in one text.
const MAX_REFS: usize = 64;
/// Nesting of a JSON value with templates in it.
const MAX_DEPTH: usize = 16;
/// What a text may come to.
const MAX_TEXT_BYTES: usize = 64 * 1024;

/// What a reference begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Root {
    /// The run's input.
    Input,
    /// The last answer of the user.
    Answer,
    /// What `set` and `extract` have put there.
    Vars,
    /// What the run will give back, as far as it is known.
    Output,
    /// The run itself: `id`, `attempt`.
    Run,
    /// Secrets; only a `fill` may have them.
    Credential,
    /// What a `for_each` calls its item.
    Item(String),
}

/// `root.key.key | default`
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Ref {
    pub(crate) root: Root,
    keys: Vec<String>,
    default: Option<Value>,
    source: String,
}

#[derive(Debug, Clone, PartialEq)]
enum Part {
    Text(String),
    Ref(Ref),
}

/// A text with references.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Template {
    parts: Vec<Part>,
    source: String,
}

/// A JSON value whose texts are templates. One that is nothing but a reference becomes what it refers to, of any type.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "Value")]
pub(crate) enum Dynamic {
    Plain(Value),
    Text(Template),
    List(Vec<Dynamic>),
    Object(BTreeMap<String, Dynamic>),
}

/// Where references are looked up.
pub(crate) trait Scope {
    /// The value of a root; none where there is none yet.
    fn root(&self, root: &Root) -> Option<Cow<'_, Value>>;
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.len() <= 64 && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'))
}

impl Ref {
    fn parse(source: &str) -> Result<Self, String> {
        let (path, default) = match source.split_once('|') {
            None => (source, None),
            Some((path, default)) => {
                let default = serde_json::from_str(default.trim());
                let default = default.map_err(|_| format!("the default in {{{{{source}}}}} is no JSON value"))?;
                (path, Some(default))
            }
        };
        let mut keys = path.trim().split('.').map(str::to_owned);
        let first = keys.next().unwrap_or_default();
        let keys: Vec<String> = keys.collect();
        if !is_name(&first) || !keys.iter().all(|key| is_name(key)) || keys.len() > MAX_KEYS {
            return Err(format!("{{{{{source}}}}} is no reference: it must be names joined by dots"));
        }
        let root = match &*first {
            "input" => Root::Input,
            "answer" => Root::Answer,
            "vars" => Root::Vars,
            "output" => Root::Output,
            "run" => Root::Run,
            "credential" => Root::Credential,
            _ => Root::Item(first),
        };
        Ok(Self { root, keys, default, source: source.trim().to_owned() })
    }

    /// Whether it is `root.key`.
    pub(crate) fn is(&self, root: &Root, key: &str) -> bool {
        self.root == *root && self.keys == [key]
    }

    fn value(&self, scope: &impl Scope) -> Result<Value, String> {
        let found = scope.root(&self.root).and_then(|root| {
            let mut value = &*root;
            for (at, key) in self.keys.iter().enumerate() {
                let last = at + 1 == self.keys.len();
                value = match value {
                    Value::Array(items) if last && key == "length" => return Some(Value::from(items.len())),
                    Value::Array(items) => items.get(key.parse::<usize>().ok()?)?,
                    Value::Object(fields) => fields.get(key)?,
                    _ => return None,
                };
            }
            Some(value.clone())
        });
        found.or_else(|| self.default.clone()).ok_or_else(|| format!("there is no {}", self.source))
    }
}

impl TryFrom<String> for Template {
    type Error = String;

    fn try_from(source: String) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = source.as_str();
        let mut refs = 0;
        while let Some(open) = rest.find("{{") {
            let inner = &rest[open + 2..];
            let close = inner.find("}}").ok_or("a {{ has no }}")?;
            if open > 0 {
                parts.push(Part::Text(rest[..open].to_owned()));
            }
            refs += 1;
            if refs > MAX_REFS {
                return Err(format!("a text may have {MAX_REFS} references"));
            }
            parts.push(Part::Ref(Ref::parse(&inner[..close])?));
            rest = &inner[close + 2..];
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        Ok(Self { parts, source })
    }
}

impl Template {
    /// As the task's author wrote it: safe to show, whatever it stands for.
    pub(crate) fn source(&self) -> &str {
        &self.source
    }

    pub(crate) fn refs(&self) -> impl Iterator<Item = &Ref> {
        self.parts.iter().filter_map(|part| match part {
            Part::Ref(found) => Some(found),
            Part::Text(_) => None,
        })
    }

    /// The text. The error names the reference, never a value.
    pub(crate) fn text(&self, scope: &impl Scope) -> Result<String, String> {
        let mut text = String::new();
        for part in &self.parts {
            match part {
                Part::Text(part) => text.push_str(part),
                Part::Ref(found) => match found.value(scope)? {
                    Value::String(value) => text.push_str(&value),
                    Value::Null => {}
                    value @ (Value::Bool(_) | Value::Number(_)) => text.push_str(&value.to_string()),
                    Value::Array(_) | Value::Object(_) => {
                        return Err(format!("{} is a list or an object, not a text", found.source));
                    }
                },
            }
            if text.len() > MAX_TEXT_BYTES {
                return Err(format!("a text became larger than {MAX_TEXT_BYTES} bytes"));
            }
        }
        Ok(text)
    }

    fn value(&self, scope: &impl Scope) -> Result<Value, String> {
        match &self.parts[..] {
            [Part::Ref(only)] => only.value(scope),
            _ => self.text(scope).map(Value::String),
        }
    }
}

impl TryFrom<Value> for Dynamic {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        fn convert(value: Value, depth: usize) -> Result<Dynamic, String> {
            if depth > MAX_DEPTH {
                return Err(format!("a value is nested deeper than {MAX_DEPTH}"));
            }
            Ok(match value {
                Value::String(text) => Dynamic::Text(text.try_into()?),
                Value::Array(items) => {
                    let items = items.into_iter().map(|item| convert(item, depth + 1));
                    Dynamic::List(items.collect::<Result<_, _>>()?)
                }
                Value::Object(fields) => {
                    let fields = fields.into_iter().map(|(name, field)| Ok((name, convert(field, depth + 1)?)));
                    Dynamic::Object(fields.collect::<Result<_, String>>()?)
                }
                plain => Dynamic::Plain(plain),
            })
        }
        convert(value, 0)
    }
}

impl Dynamic {
    /// The value with everything looked up.
    pub(crate) fn value(&self, scope: &impl Scope) -> Result<Value, String> {
        Ok(match self {
            Self::Plain(value) => value.clone(),
            Self::Text(template) => template.value(scope)?,
            Self::List(items) => Value::Array(items.iter().map(|item| item.value(scope)).collect::<Result<_, _>>()?),
            Self::Object(fields) => {
                let fields = fields.iter().map(|(name, field)| Ok((name.clone(), field.value(scope)?)));
                Value::Object(fields.collect::<Result<_, String>>()?)
            }
        })
    }

    pub(crate) fn refs(&self) -> Vec<&Ref> {
        match self {
            Self::Plain(_) => Vec::new(),
            Self::Text(template) => template.refs().collect(),
            Self::List(items) => items.iter().flat_map(Self::refs).collect(),
            Self::Object(fields) => fields.values().flat_map(Self::refs).collect(),
        }
    }
}

impl JsonSchema for Template {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Template".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string"})
    }
}

impl JsonSchema for Dynamic {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Dynamic".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!(true)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    struct World(Value);

    impl Scope for World {
        fn root(&self, root: &Root) -> Option<Cow<'_, Value>> {
            let name = match root {
                Root::Input => "input",
                Root::Item(name) => name,
                _ => return None,
            };
            self.0.get(name).map(Cow::Borrowed)
        }
    }

    fn world() -> World {
        World(json!({"input": {"email": "ada@example.com", "n": 3, "list": [{"a": 1}, 2], "none": null}, "bill": "B1"}))
    }

    fn render(value: Value) -> Result<Value, String> {
        Dynamic::try_from(value)?.value(&world())
    }

    #[test]
    fn references_are_looked_up() {
        for (template, expected) in [
            (json!("{{input.email}}"), json!("ada@example.com")),
            (json!("to {{ input.email }}, {{bill}}!"), json!("to ada@example.com, B1!")),
            (json!("{{input.n}}"), json!(3)),
            (json!("n={{input.n}}"), json!("n=3")),
            (json!("{{input.list.0.a}}"), json!(1)),
            (json!("{{input.list.length}}"), json!(2)),
            (json!("{{input.gone|12}}"), json!(12)),
            (json!("{{input.gone | \"x\"}}"), json!("x")),
            (json!("{{input.n|12}}"), json!(3)),
            (json!(["{{bill}}", {"k": "{{input.list}}"}, true]), json!(["B1", {"k": [{"a": 1}, 2]}, true])),
            (json!("no } braces { here"), json!("no } braces { here")),
            (json!("[{{input.none}}]"), json!("[]")),
        ] {
            assert_eq!(render(template.clone()), Ok(expected), "{template}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_without_values() {
        for (template, expected) in [
            ("{{input.gone}}", "there is no input.gone"),
            ("{{other}}", "there is no other"),
            ("x {{input.list}}", "input.list is a list or an object, not a text"),
            ("{{input.email.deeper}}", "there is no input.email.deeper"),
            ("{{open", "a {{ has no }}"),
            ("{{a b}}", "{{a b}} is no reference: it must be names joined by dots"),
            ("{{input.x|}}", "the default in {{input.x|}} is no JSON value"),
            ("{{}}", "{{}} is no reference: it must be names joined by dots"),
        ] {
            assert_eq!(render(json!(template)), Err(expected.to_owned()), "{template}");
        }
        let deep = (0..20).fold(json!("x"), |inner, _| json!([inner]));
        assert!(render(deep).unwrap_err().contains("nested deeper"));
    }
}
