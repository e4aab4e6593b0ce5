//! `errand vault`.

use errand_client::Client;
use serde_json::json;

use crate::args::{VaultArgs, VaultCommand};
use crate::output::Output;

pub(crate) async fn run(args: VaultArgs, client: &Client, out: Output) -> anyhow::Result<()> {
    match args.command {
        VaultCommand::RotateKey => {
            let told = |so_far: errand_client::Rotated| {
                tracing::info!(so_far.looked_at, so_far.sealed_again, "sealing again");
            };
            let rotated = client.rotate_key(told).await?;
            let (looked_at, sealed_again) = (rotated.looked_at, rotated.sealed_again);
            let value = json!({"object": "rotation", "looked_at": looked_at, "sealed_again": sealed_again});
            out.item(&value, |_| {
                format!(
                    "{looked_at} credentials are sealed with the newest master key, {sealed_again} secrets of them \
                     (and of the vault itself) anew; the older keys may be taken away"
                )
            })
        }
    }
}
