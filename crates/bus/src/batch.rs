//! Natural batching: while batches are under way what arrives waits, and the next takes all of it. No timer, so that
//! an idle system adds no delay and a loaded one sends hundreds at once.

use std::collections::VecDeque;
use std::future::Future;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Waits for one item, then takes what else is there, up to `max`. Returns how many; 0 where no more will come.
pub async fn recv_batch<T>(items: &mut mpsc::Receiver<T>, batch: &mut Vec<T>, max: usize) -> usize {
    items.recv_many(batch, max).await
}

/// Batches that wait in a courier's queue at most; then its senders wait.
const QUEUED_BATCHES: usize = 8;
/// Batches with something to send again that a courier holds at most.
const HELD_BATCHES: usize = 64;
/// Batches under way at once: while one waits for its answer, what has arrived since needs not. More would make them
/// smaller, and no quicker.
const AT_ONCE: usize = 2;
/// When what failed is sent again. After the last it is left to the sweep.
const AGAIN: [Duration; 4] =
    [Duration::from_millis(50), Duration::from_millis(250), Duration::from_secs(1), Duration::from_secs(3)];

/// Carries items to where they go, in batches and in no set order, from a task of its own: for effects that are sent
/// at once for speed, and by a sweep over the store for safety. So it never waits for long, and never for ever.
#[derive(Debug)]
pub struct Courier<T> {
    name: &'static str,
    queue: mpsc::Sender<T>,
}

impl<T> Clone for Courier<T> {
    fn clone(&self) -> Self {
        Self { name: self.name, queue: self.queue.clone() }
    }
}

impl<T: Send + 'static> Courier<T> {
    /// Starts a courier. `send` gets up to `max_batch` items and gives back those that must be sent again; that is
    /// done a few times, each time later, and then the sweep has to. The task ends with the last clone, after
    /// everything queued was sent once.
    pub fn spawn<F, Fut>(name: &'static str, max_batch: usize, send: F) -> Self
    where
        F: Fn(Vec<T>) -> Fut + Send + 'static,
        Fut: Future<Output = Vec<T>> + Send + 'static,
    {
        let max_batch = max_batch.max(1);
        let (queue, items) = mpsc::channel(max_batch * QUEUED_BATCHES);
        tokio::spawn(carry(name, max_batch, items, send));
        Self { name, queue }
    }

    /// Queues an item; waits where the queue is full.
    pub async fn send(&self, item: T) {
        if self.queue.send(item).await.is_err() {
            tracing::error!(courier = self.name, "the courier has died; the sweep sends what it held");
        }
    }

    /// Queues an item if there is room, else leaves it to the sweep: for callers that must not wait.
    pub fn offer(&self, item: T) -> bool {
        let queued = self.queue.try_send(item).is_ok();
        if !queued {
            tracing::debug!(courier = self.name, "the queue is full; the sweep sends this one");
        }
        queued
    }
}

/// What is to be sent again.
struct Held<T> {
    items: Vec<T>,
    failures: usize,
    due: Instant,
}

async fn carry<T, F, Fut>(name: &'static str, max_batch: usize, mut items: mpsc::Receiver<T>, send: F)
where
    F: Fn(Vec<T>) -> Fut,
    Fut: Future<Output = Vec<T>>,
{
    let mut held: VecDeque<Held<T>> = VecDeque::new();
    let mut under_way = FuturesUnordered::new();
    let go = move |items, failures| {
        let sending = send(items);
        async move { (sending.await, failures) }
    };
    let mut open = true;
    while open || !under_way.is_empty() {
        let mut batch = Vec::new();
        let next_due = held.iter().map(|held| held.due).min();
        let due = async {
            match next_due {
                Some(due) => tokio::time::sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        let room = open && under_way.len() < AT_ONCE;
        tokio::select! {
            biased;
            Some((failed, failures)) = under_way.next() => {
                hold(name, &mut held, failed, failures);
                continue;
            }
            count = recv_batch(&mut items, &mut batch, max_batch), if room => open = count > 0,
            () = due, if room => {}
        }
        if !batch.is_empty() {
            under_way.push(go(batch, 0));
        }
        // One of those that are due a turn, so that what fails for good does not hold up what does not.
        let now = Instant::now();
        let due = held.iter().position(|held| held.due <= now);
        if let Some(again) = due.and_then(|at| held.remove(at)) {
            under_way.push(go(again.items, again.failures + 1));
        }
    }
    let left: usize = held.iter().map(|held| held.items.len()).sum();
    if left > 0 {
        tracing::warn!(courier = name, left, "stopped with items that were to be sent again; the sweep sends them");
    }
}

fn hold<T>(name: &'static str, held: &mut VecDeque<Held<T>>, items: Vec<T>, failures: usize) {
    if items.is_empty() {
        return;
    }
    match AGAIN.get(failures) {
        Some(delay) if held.len() < HELD_BATCHES => {
            held.push_back(Held { items, failures, due: Instant::now() + *delay });
        }
        _ => tracing::warn!(courier = name, items = items.len(), "could not be sent; left to the sweep"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_arrives_during_a_send_goes_together() {
        let sizes = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&sizes);
        let courier = Courier::spawn("test", 100, move |items: Vec<usize>| {
            seen.lock().unwrap().push(items.len());
            async {
                tokio::time::sleep(Duration::from_millis(10)).await;
                Vec::new()
            }
        });
        for item in 0..AT_ONCE {
            courier.send(item).await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        for item in 1..=30 {
            courier.send(item).await;
        }
        tokio::time::sleep(Duration::from_millis(30)).await;
        assert_eq!(*sizes.lock().unwrap(), [1, 1, 30]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_fails_is_sent_again_and_then_left_to_the_sweep() {
        let sent = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&sent);
        let courier = Courier::spawn("test", 10, move |items: Vec<u32>| {
            seen.lock().unwrap().extend(items.clone());
            async move { items.into_iter().filter(|item| *item == 7).collect() }
        });
        courier.send(7).await;
        courier.send(8).await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        let sevens = sent.lock().unwrap().iter().filter(|item| **item == 7).count();
        assert_eq!(sevens, 1 + AGAIN.len());
        assert_eq!(sent.lock().unwrap().iter().filter(|item| **item == 8).count(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failing_item_does_not_hold_up_the_others() {
        let sent = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&sent);
        let courier = Courier::spawn("test", 1, move |items: Vec<u32>| {
            seen.lock().unwrap().extend(items.clone());
            async move { items.into_iter().filter(|item| *item == 7).collect() }
        });
        for item in [7, 1, 2, 3] {
            courier.send(item).await;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert_eq!(*sent.lock().unwrap(), [7, 1, 2, 3]);
    }
}
