//! `errand destinations`.

use errand_client::{Client, DestinationFilter, NewDestination, v1};
use errand_core::{DestinationId, Timestamp};
use errand_proto::json;
use futures::{StreamExt, TryStreamExt};
use serde_json::Value;

use crate::args::destinations::{ChosenArgs, CreateArgs, DestinationsArgs, DestinationsCommand, UpdateArgs};
use crate::commands::deliveries;
use crate::failure::Said;
use crate::output::{Output, cell, pretty};

const COLUMNS: &[(&str, &str)] = &[
    ("DESTINATION", "id"),
    ("NAME", "name"),
    ("TYPE", "type"),
    ("STATUS", "status"),
    ("EVENTS", "events"),
    ("FAILING SINCE", "failing_since"),
    ("REASON", "inactive_reason"),
];

pub(crate) async fn run(args: DestinationsArgs, client: &Client, out: Output) -> anyhow::Result<()> {
    use DestinationsCommand as C;
    match args.command {
        C::Create(args) => create(args, client, out).await,
        C::List { types, status, limit } => {
            let most = if limit == 0 { usize::MAX } else { limit };
            let found = client.destinations(DestinationFilter { types, status }).take(most);
            let found: Vec<Value> = found.map_ok(|destination| json::destination(&destination)).try_collect().await?;
            out.list(&found, COLUMNS)
        }
        C::Get { destination } => out.item(&json::destination(&client.get_destination(destination).await?), pretty),
        C::Update(args) => update(args, client, out).await,
        C::Delete { destination } => {
            let deleted = client.delete_destination(destination).await?;
            out.item(&json::destination(&deleted), |destination| format!("{} is deleted", cell(destination, "id")))
        }
        C::Test { destination } => test(destination, client, out).await,
        C::RotateSecret { destination } => {
            let rotated = json::destination(&client.rotate_secret(destination).await?);
            out.item(&rotated, |destination| {
                let until = cell(destination, "old_secret_expires_at");
                format!("{}\nThe secret before is valid until {until}.", secret(destination))
            })
        }
        C::Activate { destination } => status(client.activate_destination(destination).await?, out),
        C::Deactivate { destination } => status(client.deactivate_destination(destination).await?, out),
        C::Figures => figures(client, out).await,
        C::Replay { destination, since } => {
            let until = client.replay(destination, Timestamp(since)).await?;
            let value = serde_json::json!({"destination_id": destination.to_string(), "until": json::time(until.0)});
            out.item(&value, |value| format!("what was published until {} is sent again", cell(value, "until")))
        }
    }
}

const FIGURES: &[(&str, &str)] = &[
    ("DESTINATION", "destination_id"),
    ("PENDING", "pending"),
    ("OLDEST MS", "oldest_pending_ms"),
    ("ATTEMPTS", "attempts"),
    ("DELIVERED", "delivered"),
    ("FAILED ATTEMPTS", "failed_attempts"),
    ("GIVEN UP", "failed"),
    ("LAG MS", "lag_ms"),
];

/// What waits is of the store; the counts are of the notifier that answers, since its start.
async fn figures(client: &Client, out: Output) -> anyhow::Result<()> {
    let status = client.notifier_status().await?;
    let own = status.destinations.iter().filter(|figures| figures.tenant == client.tenant().as_str());
    let rows = own.map(|figures| {
        serde_json::json!({
            "object": "event_destination_figures",
            "destination_id": figures.destination_id,
            "pending": figures.pending,
            "oldest_pending_ms": figures.oldest_pending_ms,
            "attempts": figures.attempts,
            "delivered": figures.delivered,
            "failed_attempts": figures.failed_attempts,
            "failed": figures.failed,
            "lag_ms": figures.lag_ms,
        })
    });
    out.list(&rows.collect::<Vec<Value>>(), FIGURES)
}

fn status(destination: v1::Destination, out: Output) -> anyhow::Result<()> {
    out.item(&json::destination(&destination), |destination| {
        format!("{} is {}", cell(destination, "id"), cell(destination, "status"))
    })
}

fn secret(destination: &Value) -> String {
    format!("secret: {}   (shown this once: keep it)", cell(destination, "secret"))
}

async fn create(args: CreateArgs, client: &Client, out: Output) -> anyhow::Result<()> {
    let config = super::json_argument("--config", &args.config)?;
    let all = ["*".to_owned()];
    let events = if args.chosen.events.is_empty() { &all[..] } else { &args.chosen.events };
    let events: Vec<&str> = events.iter().map(String::as_str).collect();
    let mut new = NewDestination::new(&args.name, &args.kind, &config, &events);
    if let Some(filter) = filter(&args.chosen) {
        new = new.filter(filter);
    }
    if args.unordered {
        new = new.unordered();
    }
    let created = json::destination(&client.create_destination(new).await?);
    out.item(&created, |destination| {
        let made = format!("{} is {}", cell(destination, "id"), cell(destination, "status"));
        if destination.get("secret").is_some() { format!("{made}\n{}", secret(destination)) } else { made }
    })
}

async fn update(args: UpdateArgs, client: &Client, out: Output) -> anyhow::Result<()> {
    let config = args.config.map(|config| super::json_argument("--config", &config)).transpose()?;
    let change = v1::UpdateDestinationRequest {
        name: args.name,
        config: config.map(|config| config.to_string().into()).unwrap_or_default(),
        filter: filter(&args.chosen),
        events: args.chosen.events,
        ordered: args.ordered,
        ..v1::UpdateDestinationRequest::default()
    };
    out.item(&json::destination(&client.update_destination(args.destination, change).await?), pretty)
}

fn filter(chosen: &ChosenArgs) -> Option<v1::DestinationFilter> {
    let filter = v1::DestinationFilter {
        task_id: chosen.tasks.clone(),
        agent_id: chosen.agents.clone(),
        metadata: chosen.metadata.iter().cloned().collect(),
    };
    (filter != v1::DestinationFilter::default()).then_some(filter)
}

/// A test that fails is the answer, and an exit code.
async fn test(destination: DestinationId, client: &Client, out: Output) -> anyhow::Result<()> {
    let delivery = client.test_destination(destination).await?;
    out.item(&json::delivery(&delivery), deliveries::text)?;
    match delivery.status() {
        v1::DeliveryStatus::Delivered => Ok(()),
        _ => Err(Said.into()),
    }
}
