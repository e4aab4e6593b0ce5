//! Pages of lists that are short enough to be read whole.

use errand_core::{Error, ErrorCode};
use errand_proto::v1;
use serde_json::Value;

use crate::answer::Answer;

/// The page of a list that is in its order; `cursor` and its like are the `id`s of items.
pub(super) fn of(items: Vec<Value>, page: &v1::Page) -> Result<Answer, Error> {
    let at = |id: &str, field: &str, code: ErrorCode| {
        let found = items.iter().position(|item| item["id"] == id);
        found.ok_or_else(|| code.with(format!("{field} names nothing in this list")).at(field))
    };
    let limit = page.limit as usize;
    let (from, until) = if !page.cursor.is_empty() {
        (at(&page.cursor, "cursor", ErrorCode::CURSOR_INVALID)? + 1, items.len())
    } else if !page.starting_after.is_empty() {
        (at(&page.starting_after, "starting_after", ErrorCode::INPUT_INVALID)? + 1, items.len())
    } else if !page.ending_before.is_empty() {
        let until = at(&page.ending_before, "ending_before", ErrorCode::INPUT_INVALID)?;
        (until.saturating_sub(limit), until)
    } else {
        (0, items.len())
    };
    let backwards = !page.ending_before.is_empty();
    let has_more = if backwards { from > 0 } else { until - from > limit };
    let data: Vec<Value> = items[from..until].iter().take(limit).cloned().collect();
    let last = data.last().and_then(|item| item["id"].as_str()).unwrap_or_default().to_owned();
    let next_cursor = if has_more { last } else { String::new() };
    Ok(Answer::list(data, Some(v1::PageInfo { has_more, next_cursor })))
}
