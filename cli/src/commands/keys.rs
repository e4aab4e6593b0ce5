//! `errand keys`.

use errand_client::{ApiSecret, Client, NewApiKey};
use errand_proto::json;
use futures::TryStreamExt;
use serde_json::Value;

use crate::args::{KeysArgs, KeysCommand};
use crate::output::{Output, cell};

const COLUMNS: &[(&str, &str)] = &[
    ("KEY", "id"),
    ("NAME", "name"),
    ("SECRET ENDS", "hint"),
    ("SCOPES", "scopes"),
    ("CREATED", "created_at"),
    ("EXPIRES", "expires_at"),
    ("LAST USED", "last_used_at"),
    ("REVOKED", "revoked_at"),
];
/// Everything that is a tenant's own.
const TENANTS_OWN: [&str; 7] =
    ["runs:*", "tasks:*", "sessions:*", "events:*", "destinations:*", "sources:*", "credentials:*"];

pub(crate) async fn run(args: KeysArgs, client: &Client, out: Output) -> anyhow::Result<()> {
    match args.command {
        KeysCommand::Create { name, scope, expires } => {
            let scopes = if scope.is_empty() { TENANTS_OWN.map(str::to_owned).to_vec() } else { scope };
            let secret = ApiSecret::generate();
            let key = NewApiKey { name, scopes, expires_at_ms: expires };
            let mut key = json::api_key(&client.create_api_key(key, &secret).await?);
            key["secret"] = secret.expose().into();
            out.item(&key, |key| {
                let (secret, id) = (cell(key, "secret"), cell(key, "id"));
                format!("{secret}\n{id} is made; its secret is shown here and never again")
            })
        }
        KeysCommand::List => {
            let keys = client.api_keys().map_ok(|key| listed(json::api_key(&key), out.json));
            let keys: Vec<Value> = keys.try_collect().await?;
            out.list(&keys, COLUMNS)
        }
        KeysCommand::Revoke { key } => out
            .item(&json::api_key(&client.revoke_api_key(key).await?), |key| format!("{} is revoked", cell(key, "id"))),
    }
}

/// For a table, the scopes in one cell.
fn listed(mut key: Value, as_json: bool) -> Value {
    if !as_json && let Some(scopes) = key["scopes"].as_array() {
        let scopes: Vec<&str> = scopes.iter().filter_map(Value::as_str).collect();
        key["scopes"] = scopes.join(" ").into();
    }
    key
}
