//! `errand review`.

use errand_client::Client;
use errand_proto::json;

use crate::args::ReviewArgs;
use crate::output::{Output, cell};

pub(crate) async fn run(args: ReviewArgs, client: &Client, out: Output) -> anyhow::Result<()> {
    let run = client.review(args.run, args.decision.into(), &args.comment).await?;
    out.item(&json::run(&run), |run| format!("{} is {}", cell(run, "id"), cell(run, "status")))
}
