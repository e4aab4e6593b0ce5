//! `errand sources`.

use errand_client::{Client, NewSource, SourceChange};
use errand_proto::json;
use futures::{StreamExt, TryStreamExt};
use serde_json::Value;

use crate::args::{SourcesArgs, SourcesCommand};
use crate::output::{Output, cell, pretty};

const COLUMNS: &[(&str, &str)] =
    &[("SOURCE", "id"), ("NAME", "name"), ("TYPE", "type"), ("URL", "url"), ("UPDATED", "updated_at")];

pub(crate) async fn run(args: SourcesArgs, client: &Client, out: Output) -> anyhow::Result<()> {
    match args.command {
        SourcesCommand::Create { name, url, kind } => {
            let source = client.create_source(NewSource { r#type: kind, name, url }).await?;
            out.item(&json::source(&source), |source| format!("{} is {}", cell(source, "name"), cell(source, "id")))
        }
        SourcesCommand::List { kind, limit } => {
            let limit = if limit == 0 { usize::MAX } else { limit };
            let sources = client.sources(kind).take(limit).map_ok(|source| json::source(&source));
            out.list(&sources.try_collect::<Vec<Value>>().await?, COLUMNS)
        }
        SourcesCommand::Get { source } => out.item(&json::source(&client.get_source(source).await?), pretty),
        SourcesCommand::Update { source, name, url, kind } => {
            let change = SourceChange { r#type: kind, name, url };
            out.item(&json::source(&client.update_source(source, change).await?), pretty)
        }
        SourcesCommand::Delete { source } => {
            let source = client.delete_source(source).await?;
            out.item(&json::source(&source), |source| {
                format!("{} ({}) is deleted", cell(source, "name"), cell(source, "id"))
            })
        }
    }
}
