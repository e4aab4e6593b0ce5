//! A plain subscriber of the JSON events, as any NATS client can be.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use errand_client::{Client, RunId};
use futures::StreamExt;
use serde_json::Value;
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

use super::Teller;
use crate::commands::show;
use crate::output::{cell, time_of_day};

/// Prints what it hears, and remembers it.
pub(super) struct Listener {
    pub(super) subject: String,
    heard: Arc<Heard>,
    _listening: AbortOnDropHandle<()>,
}

#[derive(Default)]
struct Heard {
    runs: Mutex<HashMap<String, Timeline>>,
    more: Notify,
}

/// Statuses by `seq`, and the ids by which repetitions are dropped.
#[derive(Default)]
struct Timeline {
    ids: HashSet<String>,
    statuses: BTreeMap<u64, String>,
}

impl Heard {
    fn runs(&self) -> MutexGuard<'_, HashMap<String, Timeline>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Listener {
    pub(super) async fn start(client: &Client, teller: Teller) -> anyhow::Result<Self> {
        let subjects = client.bus().subjects();
        let subject = subjects.notify(client.tenant().as_str(), "task_run", ">");
        let mut incoming = client.bus().subscribe(subject.clone()).await?;
        let heard = Arc::new(Heard::default());
        let shared = Arc::clone(&heard);
        let listening = AbortOnDropHandle::new(tokio::spawn(async move {
            while let Some(incoming) = incoming.next().await {
                match serde_json::from_slice(&incoming.payload) {
                    Ok(event) => hear(&shared, &event, teller),
                    Err(error) => eprintln!("{} is not JSON: {error}", incoming.subject),
                }
            }
        }));
        Ok(Self { subject, heard, _listening: listening })
    }

    /// The statuses of a run, in order, once the last of them was heard.
    pub(super) async fn all_of(&self, run: RunId, last: &str) -> Vec<String> {
        let run = run.to_string();
        loop {
            // Made before the look, so that no event between the two is missed.
            let more = self.heard.more.notified();
            {
                let runs = self.heard.runs();
                if let Some(timeline) = runs.get(&run)
                    && timeline.statuses.values().next_back().is_some_and(|status| status == last)
                {
                    return timeline.statuses.values().cloned().collect();
                }
            }
            more.await;
        }
    }
}

fn hear(heard: &Heard, event: &Value, teller: Teller) {
    let (run, status) = (cell(event, "data.id"), cell(event, "data.status"));
    {
        let mut runs = heard.runs();
        let timeline = runs.entry(run.clone()).or_default();
        if !timeline.ids.insert(cell(event, "id")) {
            return;
        }
        timeline.statuses.insert(event["seq"].as_u64().unwrap_or(0), status);
    }
    let detail = show::detail(&event["data"]);
    let text = format!("     {}  {:<30}  {run}  {detail}", time_of_day(&event["created_at"]), cell(event, "type"));
    let told = if teller.out.json { teller.out.line(event.to_string()) } else { teller.say(text.trim_end()) };
    // Where nobody reads, the scenes still play.
    drop(told);
    heard.more.notify_waiters();
}
