//! Lists as streams: the next page is asked for when the one before is used up.

use std::collections::VecDeque;
use std::future::Future;

use errand_core::limits;
use errand_proto::v1;
use futures::Stream;

use crate::ClientError;

/// One page: its items, and where the next one begins.
pub(crate) type Fetched<T, C> = Result<(Vec<T>, Option<C>), ClientError>;

enum Next<C> {
    First,
    At(C),
    End,
}

/// A stream over pages. `fetch` gets the position that the page before named, and none at first.
pub(crate) fn stream<T, C, F, Fut>(fetch: F) -> impl Stream<Item = Result<T, ClientError>> + Send
where
    T: Send,
    C: Send,
    F: Fn(Option<C>) -> Fut + Send,
    Fut: Future<Output = Fetched<T, C>> + Send,
{
    let start = (VecDeque::new(), Next::First, fetch);
    futures::stream::try_unfold(start, |(mut items, mut next, fetch)| async move {
        loop {
            if let Some(item) = items.pop_front() {
                return Ok(Some((item, (items, next, fetch))));
            }
            let position = match next {
                Next::First => None,
                Next::At(position) => Some(position),
                Next::End => return Ok(None),
            };
            let (page, following) = fetch(position).await?;
            items = page.into();
            next = following.map_or(Next::End, Next::At);
        }
    })
}

/// The page behind a cursor, as large as it may be.
pub(crate) fn page(cursor: Option<String>) -> Option<v1::Page> {
    Some(v1::Page { limit: limits::MAX_PAGE, cursor: cursor.unwrap_or_default(), ..v1::Page::default() })
}

/// Where the next page begins, if there is one.
pub(crate) fn following(info: Option<v1::PageInfo>) -> Option<String> {
    info.filter(|info| info.has_more && !info.next_cursor.is_empty()).map(|info| info.next_cursor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::{StreamExt, TryStreamExt};

    #[tokio::test]
    async fn every_page_is_read_once_and_only_when_needed() {
        let asked = std::sync::Mutex::new(Vec::new());
        let pages = stream(|at: Option<usize>| {
            asked.lock().unwrap().push(at);
            let at = at.unwrap_or(0);
            async move { Ok((vec![at * 2, at * 2 + 1], (at < 2).then_some(at + 1))) }
        });
        let first: Vec<usize> = pages.take(2).try_collect().await.unwrap();
        assert_eq!((first, asked.lock().unwrap().clone()), (vec![0, 1], vec![None]));

        let all = stream(|at: Option<usize>| async move {
            let at = at.unwrap_or(0);
            Ok((if at == 1 { vec![] } else { vec![at] }, (at < 2).then_some(at + 1)))
        });
        assert_eq!(all.try_collect::<Vec<usize>>().await.unwrap(), [0, 2]);
    }
}
