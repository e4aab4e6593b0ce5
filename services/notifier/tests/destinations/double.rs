//! Destinations that do what the test says, and remember what they were sent.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use errand_core::{Error, ErrorCode};
use errand_notifier::channel::{Channel, Failure, Message, Receipt};
use errand_notifier::channels::{Channels, Checked};
use futures::FutureExt;
use futures::future::BoxFuture;
use serde_json::Value;
use tokio::sync::watch;

/// What a destination does with a message.
#[derive(Debug, Clone)]
pub(crate) enum Reaction {
    Take,
    Fail(Failure),
    Hang,
    Panic,
}

/// What a destination was sent.
#[derive(Debug, Clone)]
pub(crate) struct Sent {
    pub(crate) place: String,
    pub(crate) event: String,
    pub(crate) object: String,
    pub(crate) seq: u64,
    pub(crate) json: Value,
    pub(crate) secrets: Vec<String>,
    pub(crate) at: std::time::Instant,
    /// It was taken.
    pub(crate) taken: bool,
}

type Script = Arc<dyn Fn(&Sent) -> Reaction + Send + Sync>;

/// The outside world. A destination's configuration says its place: `{"place": "a"}`.
#[derive(Clone)]
pub(crate) struct Outside {
    /// Only counted, for measurements.
    counted: Option<Arc<AtomicU64>>,
    sent: watch::Sender<Vec<Sent>>,
    scripts: Arc<Mutex<HashMap<String, Script>>>,
}

impl std::fmt::Debug for Outside {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Outside")
    }
}

impl Outside {
    pub(crate) fn new() -> Self {
        Self { counted: None, sent: watch::Sender::new(Vec::new()), scripts: Arc::default() }
    }

    /// Takes everything, and only counts it.
    pub(crate) fn counting() -> (Self, Arc<AtomicU64>) {
        let counted = Arc::new(AtomicU64::new(0));
        (Self { counted: Some(Arc::clone(&counted)), ..Self::new() }, counted)
    }

    /// From now on this place does so. Without a script it takes everything.
    pub(crate) fn script(&self, place: &str, script: impl Fn(&Sent) -> Reaction + Send + Sync + 'static) {
        self.scripts.lock().unwrap().insert(place.to_owned(), Arc::new(script));
    }

    /// Waits until what was sent to a place is as the test wants it, and gives it.
    pub(crate) async fn until(&self, place: &str, what: &str, done: impl Fn(&[Sent]) -> bool) -> Vec<Sent> {
        let of_place =
            |all: &Vec<Sent>| -> Vec<Sent> { all.iter().filter(|one| one.place == place).cloned().collect() };
        let mut sent = self.sent.subscribe();
        let waiting = sent.wait_for(|all| done(&of_place(all)));
        let seen = tokio::time::timeout(Duration::from_secs(40), waiting).await.map(|seen| of_place(&seen.unwrap()));
        seen.unwrap_or_else(|_| panic!("{place}: {what}; it was sent {:?}", summary(&of_place(&self.sent.borrow()))))
    }

    /// Waits until a place has taken so many different events.
    pub(crate) async fn taken(&self, place: &str, count: usize) -> Vec<Sent> {
        distinct(&self.sent_until(place, count).await)
    }

    /// As [`Self::taken`], with what was repeated.
    pub(crate) async fn sent_until(&self, place: &str, count: usize) -> Vec<Sent> {
        self.until(place, &format!("takes {count}"), |sent| distinct(sent).len() >= count).await
    }

    pub(crate) fn count(&self, place: &str) -> usize {
        self.sent.borrow().iter().filter(|one| one.place == place).count()
    }
}

fn summary(sent: &[Sent]) -> Vec<(&str, u64, bool)> {
    sent.iter().map(|one| (one.object.as_str(), one.seq, one.taken)).collect()
}

/// What was taken, each event once.
pub(crate) fn distinct(sent: &[Sent]) -> Vec<Sent> {
    let mut seen = std::collections::HashSet::new();
    sent.iter().filter(|one| one.taken && seen.insert(one.event.clone())).cloned().collect()
}

/// What was taken, each event once, where it came last: of two rows in order, one of them whole, this is in order, too.
pub(crate) fn last_of_each(sent: &[Sent]) -> Vec<Sent> {
    let mut seen = std::collections::HashSet::new();
    let mut last: Vec<Sent> =
        sent.iter().rev().filter(|one| one.taken && seen.insert(one.event.clone())).cloned().collect();
    last.reverse();
    last
}

/// Every object's events are there in their order, without a gap.
pub(crate) fn assert_in_order(taken: &[Sent]) {
    let mut last: HashMap<&str, u64> = HashMap::new();
    for one in taken {
        let before = last.insert(&one.object, one.seq).unwrap_or(0);
        assert_eq!(one.seq, before + 1, "{} of {}", one.seq, one.object);
    }
}

struct Place {
    name: String,
    secrets: Vec<String>,
    outside: Outside,
}

impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)
    }
}

impl Channel for Place {
    fn send<'a>(&'a self, message: &'a Message) -> BoxFuture<'a, Result<Receipt, Failure>> {
        async move {
            if let Some(counted) = &self.outside.counted {
                counted.fetch_add(1, Ordering::Relaxed);
                return Ok(Receipt { status_code: Some(200), response: "thanks".into() });
            }
            let mut sent = Sent {
                place: self.name.clone(),
                event: message.event_id.to_string(),
                object: message.object_id.clone(),
                seq: message.seq,
                json: serde_json::from_slice(&message.json).unwrap(),
                secrets: self.secrets.clone(),
                at: std::time::Instant::now(),
                taken: false,
            };
            let script = self.outside.scripts.lock().unwrap().get(&self.name).cloned();
            let reaction = script.map_or(Reaction::Take, |script| script(&sent));
            sent.taken = matches!(reaction, Reaction::Take);
            self.outside.sent.send_modify(|all| all.push(sent));
            match reaction {
                Reaction::Take => Ok(Receipt { status_code: Some(200), response: "thanks".into() }),
                Reaction::Fail(failure) => Err(failure),
                Reaction::Hang => std::future::pending().await,
                Reaction::Panic => panic!("the test says so"),
            }
        }
        .boxed()
    }
}

impl Channels for Outside {
    fn parse(&self, kind: &str, json: &[u8]) -> Result<Checked, Error> {
        if kind != "place" && kind != "quiet" {
            return Err(ErrorCode::INPUT_INVALID.with(format!("{kind:?} is no type of destination")).at("type"));
        }
        let value: Value = serde_json::from_slice(json)
            .map_err(|_| ErrorCode::INPUT_INVALID.with("config is not JSON").at("config"))?;
        let field = || ErrorCode::INPUT_MISSING.with("place.place is missing").at("place.place");
        value["place"].as_str().ok_or_else(field)?;
        let mut masked = value.clone();
        if masked.get("password").is_some() {
            masked["password"] = "***".into();
        }
        Ok(Checked { json: value.to_string().into_bytes(), masked, signs: kind == "place" })
    }

    fn parse_change(&self, kind: &str, before: &[u8], json: &[u8]) -> Result<Checked, Error> {
        let before: Value = serde_json::from_slice(before).unwrap();
        let mut value: Value = serde_json::from_slice(json)
            .map_err(|_| ErrorCode::INPUT_INVALID.with("config is not JSON").at("config"))?;
        if value["password"] == "***" {
            value["password"] = before["password"].clone();
        }
        self.parse(kind, value.to_string().as_bytes())
    }

    fn open(&self, _kind: &str, json: &[u8], secrets: &[String]) -> Result<Arc<dyn Channel>, Error> {
        let value: Value = serde_json::from_slice(json).unwrap();
        let name = value["place"].as_str().unwrap().to_owned();
        Ok(Arc::new(Place { name, secrets: secrets.to_vec(), outside: self.clone() }))
    }
}
