//! Names that hold placeholders: `events.{tenant}.{object}.{action}`.

use errand_core::Error;
use serde::{Serialize, Serializer};

use super::Message;
use super::fields::invalid;

/// What may stand in braces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Placeholder {
    Tenant,
    Object,
    Action,
    ObjectId,
    EventId,
    Date,
}

const PLACEHOLDERS: &[(&str, Placeholder)] = &[
    ("tenant", Placeholder::Tenant),
    ("object", Placeholder::Object),
    ("action", Placeholder::Action),
    ("object_id", Placeholder::ObjectId),
    ("event_id", Placeholder::EventId),
    ("date", Placeholder::Date),
];

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Placeholder(Placeholder),
}

/// A checked template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Template {
    text: String,
    parts: Vec<Part>,
}

impl Template {
    /// Reads one; `field` is where it stands.
    pub(super) fn parse(text: &str, field: &str) -> Result<Self, Error> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            let (before, from) = rest.split_at(at);
            let name = from.strip_prefix('{').and_then(|inner| inner.split_once('}'));
            let Some((name, after)) = name else { return Err(invalid(field, "has a brace without its other half")) };
            let Some((_, placeholder)) = PLACEHOLDERS.iter().find(|(known, _)| *known == name) else {
                let known: Vec<_> = PLACEHOLDERS.iter().map(|(known, _)| format!("{{{known}}}")).collect();
                return Err(invalid(field, format!("may hold {}, and no other braces", known.join(" "))));
            };
            if !before.is_empty() {
                parts.push(Part::Text(before.to_owned()));
            }
            parts.push(Part::Placeholder(*placeholder));
            rest = after;
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        Ok(Self { text: text.to_owned(), parts })
    }

    /// Whether an event's id is part of it, so that no two events have one name.
    #[cfg(feature = "aws")]
    pub(super) fn is_per_event(&self) -> bool {
        self.parts.contains(&Part::Placeholder(Placeholder::EventId))
    }

    /// For this message.
    pub(super) fn render(&self, message: &Message) -> String {
        self.fill(|placeholder| match placeholder {
            Placeholder::Tenant => message.tenant.clone(),
            Placeholder::Object => message.kind().0.to_owned(),
            Placeholder::Action => message.kind().1.to_owned(),
            Placeholder::ObjectId => message.object_id.clone(),
            Placeholder::EventId => message.event_id.to_string(),
            Placeholder::Date => message.date(),
        })
    }

    /// With a letter for each placeholder: what its fixed parts look like.
    pub(super) fn sample(&self) -> String {
        self.fill(|_| "x".to_owned())
    }

    fn fill(&self, value: impl Fn(Placeholder) -> String) -> String {
        let mut filled = String::with_capacity(self.text.len() + 64);
        for part in &self.parts {
            match part {
                Part::Text(text) => filled.push_str(text),
                Part::Placeholder(placeholder) => filled.push_str(&value(*placeholder)),
            }
        }
        filled
    }
}

impl Serialize for Template {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_template_is_refused() {
        for text in ["a.{", "a.}", "{nope}", "{}", "{tenant", "tenant}", "{{tenant}}", "{ tenant }"] {
            let error = Template::parse(text, "nats.subject").unwrap_err();
            assert_eq!(error.field.as_deref(), Some("nats.subject"), "{text}");
        }
        assert_eq!(Template::parse("a.{tenant}-{event_id}", "x").unwrap().sample(), "a.x-x");
    }
}
