//! One page of a list, newest first. Pure: the store's rows come in, in chunks, and what is still to be read goes out.
//!
//! A filter may fit few of many rows. A request reads at most [`MAX_SCANNED`] of them; then its page ends where it
//! stands, `has_more` is true, and the cursor goes on from there.

use errand_core::ErrorCode;
use errand_proto::{optional_id, v1};
use prost::Message;
use uuid::Uuid;

/// Rows that are read at once.
pub const CHUNK: u32 = 500;
/// Rows that one request reads at most.
const MAX_SCANNED: usize = 10_000;
/// What the items of one page hold together, in bytes, unless the first alone is larger: below the broker's
/// `max_payload`.
const MAX_PAGE_BYTES: usize = 512 * 1024;

/// Where reading goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Downwards from the newest.
    Newest,
    /// Downwards, older than this.
    Before(Uuid),
    /// Upwards, newer than this.
    After(Uuid),
}

/// A page in the making.
#[derive(Debug)]
pub struct Paging<T> {
    place: Place,
    limit: usize,
    scanned: usize,
    items: Vec<(Uuid, T)>,
    /// There are rows that were not read.
    unread: bool,
}

/// A page.
#[derive(Debug, PartialEq, Eq)]
pub struct Page<T> {
    /// Newest first.
    pub items: Vec<T>,
    /// What stands beside them; the cursor is an id that the caller has still to write in its own form.
    pub has_more: bool,
    /// Where the next page begins.
    pub next: Option<Uuid>,
}

impl<T> Paging<T> {
    /// A page as the request asks for it. `I` is the id of what is listed.
    ///
    /// # Errors
    /// `request`/`input_invalid` at `limit`, `cursor`, `starting_after` or `ending_before`; `request`/`cursor_invalid`.
    pub fn new<I>(page: Option<&v1::Page>, uuid: impl Fn(I) -> Uuid) -> Result<Self, errand_core::Error>
    where
        I: std::str::FromStr,
        I::Err: std::fmt::Display,
    {
        let page = errand_proto::page(page)?;
        let cursor: Option<I> = optional_id("cursor", &page.cursor)
            .map_err(|error| ErrorCode::CURSOR_INVALID.with(error.message).at("cursor"))?;
        let older: Option<I> = optional_id("starting_after", &page.starting_after)?;
        let newer: Option<I> = optional_id("ending_before", &page.ending_before)?;
        let place = match (cursor.or(older), newer) {
            (Some(id), _) => Place::Before(uuid(id)),
            (None, Some(id)) => Place::After(uuid(id)),
            (None, None) => Place::Newest,
        };
        Ok(Self { place, limit: page.limit as usize, scanned: 0, items: Vec::new(), unread: true })
    }

    /// Where to read on; none: the page is complete.
    #[must_use]
    pub fn next_place(&self) -> Option<Place> {
        // One more than the page holds shows whether there is a further page.
        (self.unread && self.items.len() <= self.limit && self.scanned < MAX_SCANNED).then_some(self.place)
    }

    /// Takes the rows of one chunk in the order in which they were read, each with what of it fits the filter.
    pub fn take(&mut self, rows: Vec<(Uuid, Option<T>)>) {
        self.unread = rows.len() >= CHUNK as usize;
        self.scanned += rows.len();
        if let Some((id, _)) = rows.last() {
            self.place = match self.place {
                Place::After(_) => Place::After(*id),
                Place::Newest | Place::Before(_) => Place::Before(*id),
            };
        }
        self.items.extend(rows.into_iter().filter_map(|(id, item)| item.map(|item| (id, item))));
    }

    /// The page.
    #[must_use]
    pub fn finish(self) -> Page<T> {
        let Self { place, limit, mut items, unread, .. } = self;
        let cut = items.len() > limit;
        items.truncate(limit);
        let upwards = matches!(place, Place::After(_));
        if upwards {
            items.reverse();
        }
        let has_more = cut || unread;
        let last_read = match place {
            Place::Before(id) if !cut => Some(id),
            _ => items.last().map(|(id, _)| *id),
        };
        Page {
            has_more,
            next: last_read.filter(|_| has_more),
            items: items.into_iter().map(|(_, item)| item).collect(),
        }
    }
}

/// As many of these as one message may hold, and whether that is all.
#[must_use]
pub fn within_a_message<M: Message>(items: Vec<M>) -> (Vec<M>, bool) {
    let count = items.len();
    let mut bytes = 0;
    let fitting = items.into_iter().enumerate().take_while(|(at, item)| {
        bytes += item.encoded_len();
        *at == 0 || bytes <= MAX_PAGE_BYTES
    });
    let fitting: Vec<M> = fitting.map(|(_, item)| item).collect();
    let all = fitting.len() == count;
    (fitting, all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use errand_core::RunId;

    fn paging(page: v1::Page) -> Paging<u32> {
        Paging::new(Some(&page), |id: RunId| id.uuid()).unwrap()
    }

    /// Reads a table of ids 1..=rows in which every `every`-th fits.
    fn read(mut paging: Paging<u32>, rows: u32, every: u32) -> Page<u32> {
        while let Some(place) = paging.next_place() {
            let number = |id: Uuid| u32::try_from(id.as_u128()).unwrap();
            let ids: Vec<u32> = match place {
                Place::Newest => (1..=rows).rev().take(CHUNK as usize).collect(),
                Place::Before(id) => (1..number(id)).rev().take(CHUNK as usize).collect(),
                Place::After(id) => (number(id) + 1..=rows).take(CHUNK as usize).collect(),
            };
            let row = |id: u32| (Uuid::from_u128(id.into()), id.is_multiple_of(every).then_some(id));
            paging.take(ids.into_iter().map(row).collect());
        }
        paging.finish()
    }

    fn id(number: u32) -> String {
        RunId::from_uuid(Uuid::from_u128(number.into())).to_string()
    }

    fn cursor(page: &Page<u32>) -> v1::Page {
        let cursor = page.next.map(|id| RunId::from_uuid(id).to_string()).unwrap_or_default();
        v1::Page { limit: 100, cursor, ..v1::Page::default() }
    }

    #[test]
    fn pages_follow_one_another_without_a_gap_or_a_repetition() {
        for (rows, every) in [(0, 1), (1, 1), (100, 1), (101, 1), (1_000, 7), (35_000, 9_000), (20_000, 1_000_000)] {
            let mut seen = Vec::new();
            let mut page = read(paging(v1::Page { limit: 100, ..v1::Page::default() }), rows, every);
            loop {
                assert!(page.items.len() <= 100);
                seen.extend_from_slice(&page.items);
                if !page.has_more {
                    break;
                }
                page = read(paging(cursor(&page)), rows, every);
            }
            assert_eq!(seen, (1..=rows).rev().filter(|id| id.is_multiple_of(every)).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_page_may_begin_behind_or_end_before_an_item() {
        let behind = read(paging(v1::Page { limit: 2, starting_after: id(5), ..v1::Page::default() }), 9, 1);
        assert_eq!((behind.items, behind.has_more), (vec![4, 3], true));
        let before = read(paging(v1::Page { limit: 2, ending_before: id(5), ..v1::Page::default() }), 9, 1);
        assert_eq!((before.items, before.has_more), (vec![7, 6], true));
        let newest = read(paging(v1::Page { limit: 4, ending_before: id(5), ..v1::Page::default() }), 9, 1);
        assert_eq!((newest.items, newest.has_more, newest.next), (vec![9, 8, 7, 6], false, None));
    }

    #[test]
    fn a_request_reads_so_much_and_no_more() {
        let mut paging = paging(v1::Page::default());
        let mut rows = 0;
        while paging.next_place().is_some() {
            paging.take(vec![(Uuid::nil(), None); CHUNK as usize]);
            rows += CHUNK as usize;
        }
        assert_eq!(rows, MAX_SCANNED);
        assert!(paging.finish().has_more);
    }

    #[test]
    fn a_cursor_that_is_none_is_named() {
        let page = v1::Page { cursor: "nonsense".into(), ..v1::Page::default() };
        let error = Paging::<u32>::new(Some(&page), |id: RunId| id.uuid()).unwrap_err();
        assert_eq!((error.code, error.field.as_deref()), (ErrorCode::CURSOR_INVALID, Some("cursor")));
    }

    #[test]
    fn what_does_not_fit_in_a_message_is_left_for_the_next() {
        let run = |bytes: usize| v1::Run { output: Some(vec![0; bytes].into()), ..v1::Run::default() };
        for (sizes, fitting) in [(vec![], 0), (vec![1, 1], 2), (vec![400_000, 400_000], 1), (vec![600_000, 1], 1)] {
            let all = sizes.len() == fitting;
            let (kept, complete) = within_a_message(sizes.into_iter().map(run).collect());
            assert_eq!((kept.len(), complete), (fitting, all));
        }
    }
}
