//! `errand storage`.

use std::path::Path;

use anyhow::Context;
use errand_client::Client;
use errand_core::StorageId;
use errand_proto::{json, v1};
use futures::{StreamExt, TryStreamExt};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use crate::args::{StorageArgs, StorageCommand};
use crate::output::{Output, cell, pretty};

const COLUMNS: &[(&str, &str)] = &[
    ("ID", "id"),
    ("KIND", "kind"),
    ("NAME", "name"),
    ("TYPE", "mime_type"),
    ("BYTES", "size_bytes"),
    ("CREATED", "created_at"),
];

pub(crate) async fn run(args: StorageArgs, client: &Client, out: Output) -> anyhow::Result<()> {
    match args.command {
        StorageCommand::List { run, limit } => {
            let most = if limit == 0 { usize::MAX } else { limit };
            let found = client.artifacts(run, Vec::new()).take(most).map_ok(|artifact| json::artifact(&artifact));
            let found: Vec<Value> = found.try_collect().await?;
            out.list(&found, COLUMNS)
        }
        StorageCommand::Get { artifact, output: None } => {
            let (artifact, token) = client.get_artifact(artifact).await?;
            let mut shown = json::artifact(&artifact);
            // For a gateway's address before it.
            shown["path"] = content_path(&artifact, &token).into();
            out.item(&shown, pretty)
        }
        StorageCommand::Get { artifact, output: Some(file) } if file.as_os_str() == "-" => {
            let mut content = client.content(artifact, 0);
            let mut stdout = tokio::io::stdout();
            while let Some(bytes) = content.try_next().await? {
                stdout.write_all(&bytes).await?;
            }
            Ok(stdout.flush().await?)
        }
        StorageCommand::Get { artifact, output: Some(file) } => {
            let bytes = save(client, artifact, &file).await?;
            let saved = json!({"object": "file", "id": artifact.to_string(), "path": file, "size_bytes": bytes});
            out.item(&saved, |saved| format!("{} bytes in {}", cell(saved, "size_bytes"), cell(saved, "path")))
        }
        StorageCommand::Delete { artifact } => {
            let deleted = client.delete_artifact(artifact).await?;
            out.item(&json::artifact(&deleted), |artifact| format!("{} is deleted", cell(artifact, "id")))
        }
    }
}

fn content_path(artifact: &v1::Artifact, token: &v1::ContentToken) -> String {
    format!("/v2/storage/{}/content?expires={}&signature={}", artifact.id, token.expires, token.signature)
}

/// Under its name only when it is whole.
async fn save(client: &Client, id: StorageId, path: &Path) -> anyhow::Result<u64> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let draft =
        tempfile::NamedTempFile::new_in(folder).with_context(|| format!("cannot write in {}", folder.display()))?;
    let mut file = tokio::fs::File::from_std(draft.reopen()?);
    let (mut content, mut bytes) = (client.content(id, 0), 0);
    while let Some(chunk) = content.try_next().await? {
        file.write_all(&chunk).await?;
        bytes += chunk.len() as u64;
    }
    file.sync_all().await?;
    draft.persist(path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(bytes)
}
