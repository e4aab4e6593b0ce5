//! Reading values off the page.

use std::collections::BTreeMap;

use futures::FutureExt;
use futures::future::BoxFuture;
use serde_json::{Map, Value};

use super::find::Matcher;
use super::{Broken, Machine, template};
use crate::cdp::CdpError;
use crate::page::{Element, Page};
use crate::program::{Column, Dynamic, Field, Kind, date, number, place};

/// Items of one list, rows of one table.
const MAX_ITEMS: usize = 5000;
/// One text.
const MAX_TEXT_BYTES: usize = 64 * 1024;

/// Why something was not read.
enum Trouble {
    Cdp(CdpError),
    /// It is not as it must be; it may become so.
    Unlike {
        path: String,
        what: String,
    },
    /// It will never be.
    Broken(Broken),
}

impl From<CdpError> for Trouble {
    fn from(error: CdpError) -> Self {
        Self::Cdp(error)
    }
}

impl From<Broken> for Trouble {
    fn from(broken: Broken) -> Self {
        Self::Broken(broken)
    }
}

fn unlike<T>(path: &str, what: impl Into<String>) -> Result<T, Trouble> {
    Err(Trouble::Unlike { path: path.to_owned(), what: what.into() })
}

/// What becomes of a text.
fn typed(field: &Field, path: &str, text: Option<String>) -> Result<Value, Trouble> {
    let text = text.filter(|text| !text.is_empty() || matches!(field.r#as, Kind::Text | Kind::Attribute));
    let text = match (&field.pattern, text) {
        (Some(pattern), Some(text)) => pattern.0.captures(&text).map(|found| {
            let part = found.get(1).or_else(|| found.get(0));
            part.map(|part| part.as_str().trim().to_owned()).unwrap_or_default()
        }),
        (_, text) => text,
    };
    let Some(text) = text else {
        let what = if field.pattern.is_some() { "its text is not like the pattern" } else { "it is not there" };
        return if field.optional { Ok(Value::Null) } else { unlike(path, what) };
    };
    if text.len() > MAX_TEXT_BYTES {
        return Err(template(format!("{path}: a text is larger than {MAX_TEXT_BYTES} bytes")).into());
    }
    let value = match field.r#as {
        Kind::Number => number(&text, field.decimal.unwrap_or_default()).map(Value::Number),
        Kind::Date => date(&text, field.format.as_deref()).map(Value::String),
        _ => match &field.map {
            Some(map) => map.get(&text).cloned(),
            None => Some(Value::String(text)),
        },
    };
    match value {
        Some(value) => Ok(value),
        None if field.optional => Ok(Value::Null),
        None => unlike(
            path,
            match field.r#as {
                Kind::Number => "there is no number in its text",
                Kind::Date => "there is no such date in its text",
                _ => "its text is none of the map's",
            },
        ),
    }
}

impl Machine<'_> {
    pub(super) async fn extract(&mut self, fields: &BTreeMap<String, Field>) -> Result<(), Broken> {
        for (into, field) in fields {
            let place = place(into).map_err(template)?;
            let already =
                if place.appends { place.length(if place.is_var { &self.vars } else { &self.output }) } else { 0 };
            let value = self.read_until_there(field, into, already).await?;
            self.keep(&value)?;
            self.control.alive();
            let root = if place.is_var { &mut self.vars } else { &mut self.output };
            place.put(root, value).map_err(|what| template(format!("{into}: {what}")))?;
        }
        Ok(())
    }

    async fn read_until_there(&self, field: &Field, into: &str, already: usize) -> Result<Value, Broken> {
        loop {
            let read = async {
                let page = Page::current(self.browser).await?;
                let value = self.read(&page, None, field, into.to_owned(), already).await;
                page.forget().await;
                value
            };
            let why = match read.await {
                Ok(value) => return Ok(value),
                Err(Trouble::Cdp(CdpError::Closed)) => return Err(Broken::Lost),
                Err(Trouble::Broken(broken)) => return Err(broken),
                Err(Trouble::Cdp(error)) => error.to_string(),
                Err(Trouble::Unlike { path, what }) => format!("{path}: {what}"),
            };
            self.hopeless()?;
            if !self.a_moment().await {
                return Err(self.missing(&why));
            }
        }
    }

    fn read<'s>(
        &'s self,
        page: &'s Page<'_>,
        scope: Option<&'s Element>,
        field: &'s Field,
        path: String,
        already: usize,
    ) -> BoxFuture<'s, Result<Value, Trouble>> {
        async move {
            let query = field.from.as_ref().map(|from| self.query(from)).transpose()?;
            let found = match &query {
                Some(query) => query.all(page, scope, false).await?,
                None => scope.cloned().into_iter().collect(),
            };
            match field.r#as {
                Kind::Exists => return Ok(Value::Bool(!found.is_empty())),
                Kind::List => return self.list(page, &found, field, &path, already).await,
                _ => {}
            }
            let element = found.first();
            if element.is_none() && query.is_some() {
                let shown = query.map(|query| query.shown).unwrap_or_default();
                return if field.optional { Ok(Value::Null) } else { unlike(&path, format!("there is no {shown}")) };
            }
            match (field.r#as, element) {
                (Kind::Object, _) => {
                    let fields = field.fields.as_ref();
                    self.object(page, element, fields.into_iter().flatten(), &path).await
                }
                (Kind::Table, element) => self.table(page, element, field, &path, already).await,
                (_, None) => typed(field, &path, Some(page.text().await?)),
                (Kind::Attribute, Some(element)) => {
                    typed(field, &path, page.read(element, field.attribute.as_deref()).await?)
                }
                (_, Some(element)) => typed(field, &path, page.read(element, None).await?),
            }
        }
        .boxed()
    }

    /// How many more items a list may get.
    fn room(&self, limit: Option<&Dynamic>, already: usize) -> Result<usize, Broken> {
        let Some(limit) = limit else { return Ok(MAX_ITEMS.saturating_sub(already)) };
        let value = limit.value(self).map_err(template)?;
        let number = value.as_u64().and_then(|number| usize::try_from(number).ok());
        let number = number.ok_or_else(|| template("limit is no whole number".to_owned()))?;
        Ok(number.min(MAX_ITEMS).saturating_sub(already))
    }

    async fn list(
        &self,
        page: &Page<'_>,
        found: &[Element],
        field: &Field,
        path: &str,
        already: usize,
    ) -> Result<Value, Trouble> {
        let room = self.room(field.limit.as_ref(), already)?;
        let mut items = Vec::new();
        for (at, element) in found.iter().take(room).enumerate() {
            let path = format!("{path}[{at}]");
            items.push(match (&field.items, &field.fields) {
                (Some(item), _) => self.read(page, Some(element), item, path, 0).await?,
                (None, Some(fields)) => self.object(page, Some(element), fields.iter(), &path).await?,
                (None, None) => Value::String(page.read(element, None).await?.unwrap_or_default()),
            });
        }
        Ok(Value::Array(items))
    }

    async fn object<'f>(
        &self,
        page: &Page<'_>,
        scope: Option<&Element>,
        fields: impl Iterator<Item = (&'f String, &'f Field)> + Send,
        path: &str,
    ) -> Result<Value, Trouble> {
        let mut object = Map::new();
        for (name, field) in fields {
            let value = self.read(page, scope, field, format!("{path}.{name}"), 0).await?;
            object.insert(name.clone(), value);
        }
        Ok(Value::Object(object))
    }

    async fn table(
        &self,
        page: &Page<'_>,
        element: Option<&Element>,
        field: &Field,
        path: &str,
        already: usize,
    ) -> Result<Value, Trouble> {
        let own;
        let element = match element {
            Some(element) => element,
            None => {
                let found = page.by_css(None, "table").await?;
                if found.facts.is_empty() {
                    return unlike(path, "there is no table");
                }
                own = page.nth(&found, 0).await?;
                &own
            }
        };
        let Some(table) = page.table(element).await? else { return unlike(path, "it is no table") };
        let mut columns: Vec<(&String, &Column, usize)> = Vec::new();
        for (name, column) in field.columns.iter().flatten() {
            let heading = Matcher::new(&column.heading, self).map_err(template)?;
            match table.heads.iter().position(|head| heading.is_match(head)) {
                Some(at) => columns.push((name, column, at)),
                None => return unlike(path, format!("there is no column {name} ({})", column.heading.shown())),
            }
        }
        let room = self.room(field.limit.as_ref(), already)?;
        let mut rows = Vec::new();
        for row in 0..table.rows.min(room) {
            let mut object = Map::new();
            for (name, column, at) in &columns {
                let cell = page.nth(&table.cells, row * table.heads.len() + at).await?;
                let path = format!("{path}[{row}].{name}");
                object.insert((*name).clone(), self.read(page, Some(&cell), &column.cell, path, 0).await?);
            }
            rows.push(Value::Object(object));
        }
        Ok(Value::Array(rows))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(field: Value, text: Option<&str>) -> Result<Value, String> {
        let field: Field = serde_json::from_value(field).unwrap();
        typed(&field, "x", text.map(str::to_owned)).map_err(|trouble| match trouble {
            Trouble::Unlike { path, what } => format!("{path}: {what}"),
            _ => "broken".to_owned(),
        })
    }

    #[test]
    fn texts_become_what_the_field_says() {
        for (field, text, expected) in [
            (json!({}), Some("Hi"), json!("Hi")),
            (json!({}), Some(""), json!("")),
            (json!({"as": "number"}), Some("71.22 EUR"), json!(71.22)),
            (json!({"as": "number", "optional": true}), Some("none"), json!(null)),
            (json!({"as": "date", "format": "MMMM YYYY"}), Some("Bill for June 2026"), json!("2026-06")),
            (json!({"pattern": "([A-Z]{3})$"}), Some("71.22 EUR"), json!("EUR")),
            (json!({"pattern": "[0-9]+"}), Some("no 12."), json!("12")),
            (json!({"map": {"Paid": "paid", "Open": 1}}), Some("Open"), json!(1)),
            (json!({"optional": true}), None, json!(null)),
        ] {
            assert_eq!(read(field.clone(), text), Ok(expected), "{field}");
        }
        for (field, expected) in [
            (json!({"as": "number"}), "x: there is no number in its text"),
            (json!({"as": "date"}), "x: there is no such date in its text"),
            (json!({"pattern": "^[0-9]+$"}), "x: its text is not like the pattern"),
            (json!({"map": {"a": "b"}}), "x: its text is none of the map's"),
        ] {
            assert_eq!(read(field.clone(), Some("hunterII!")), Err(expected.to_owned()), "{field}");
        }
    }
}
