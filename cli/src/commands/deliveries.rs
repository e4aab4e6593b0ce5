//! `errand deliveries`.

use errand_client::{Client, DeliveryFilter};
use errand_proto::json;
use futures::{StreamExt, TryStreamExt};
use serde_json::Value;

use crate::args::destinations::{DeliveriesArgs, DeliveriesCommand};
use crate::output::{Output, cell};

const COLUMNS: &[(&str, &str)] = &[
    ("DELIVERY", "id"),
    ("EVENT", "event_type"),
    ("OBJECT", "object_id"),
    ("STATUS", "status"),
    ("ATTEMPTS", "attempt_count"),
    ("CODE", "last_status_code"),
    ("NEXT ATTEMPT", "next_attempt_at"),
    ("ERROR", "last_error"),
];

pub(crate) async fn run(args: DeliveriesArgs, client: &Client, out: Output) -> anyhow::Result<()> {
    match args.command {
        DeliveriesCommand::List { destination, status, events, limit } => {
            let most = if limit == 0 { usize::MAX } else { limit };
            let filter = DeliveryFilter { status, event_types: events };
            let found = client.deliveries(destination, filter).take(most);
            let found: Vec<Value> = found.map_ok(|delivery| json::delivery(&delivery)).try_collect().await?;
            out.list(&found, COLUMNS)
        }
        DeliveriesCommand::Get { delivery } => out.item(&json::delivery(&client.get_delivery(delivery).await?), text),
        DeliveriesCommand::Retry { delivery } => {
            out.item(&json::delivery(&client.retry_delivery(delivery).await?), text)
        }
    }
}

/// A delivery and its attempts, for people.
pub(super) fn text(delivery: &Value) -> String {
    let mut text = format!(
        "{}  {} of {}: {}",
        cell(delivery, "id"),
        cell(delivery, "event_type"),
        cell(delivery, "object_id"),
        cell(delivery, "status")
    );
    for attempt in delivery["attempts"].as_array().into_iter().flatten() {
        let failed = attempt["error"].is_string();
        let outcome = if failed { cell(attempt, "error") } else { "taken".to_owned() };
        text.push_str(&format!(
            "\n  {}. {}  {} ms  {}  {outcome}",
            cell(attempt, "number"),
            cell(attempt, "at"),
            cell(attempt, "duration_ms"),
            cell(attempt, "status_code"),
        ));
        if attempt["response"].is_string() {
            text.push_str(&format!("\n     it answered: {}", cell(attempt, "response")));
        }
    }
    if delivery["next_attempt_at"].is_string() {
        text.push_str(&format!("\n  next attempt at {}", cell(delivery, "next_attempt_at")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_delivery_tells_its_attempts() {
        let delivery = json!({
            "id": "edlv_1", "event_type": "task_run.completed", "object_id": "trun_1", "status": "pending",
            "next_attempt_at": "2026-11-24T12:05:00.000Z",
            "attempts": [
                {"number": 1, "at": "2026-11-24T12:00:00.000Z", "duration_ms": 5000, "status_code": null,
                 "error": "no answer within 5 s", "response": null},
                {"number": 2, "at": "2026-11-24T12:00:06.000Z", "duration_ms": 12, "status_code": 500,
                 "error": "it answered 500", "response": "oops"},
            ],
        });
        insta::assert_snapshot!(text(&delivery));
    }
}
