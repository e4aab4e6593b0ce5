//! `errand run`.

use errand_client::{Client, NewRun};
use errand_proto::json;

use crate::args::RunArgs;
use crate::commands::follow;
use crate::output::{Output, cell};

pub(crate) async fn run(args: RunArgs, client: &Client, out: Output) -> anyhow::Result<()> {
    let watch = args.watch;
    let new = request(args)?;
    if watch {
        let id = new.id();
        // Before it is submitted, so that its first event is heard.
        let events = client.watch(id).await?;
        client.submit(new).await?;
        if !out.json {
            out.line(id.to_string())?;
        }
        return follow::to_the_end(client, id, events, out).await;
    }
    let run = json::run(&client.submit(new).await?);
    out.item(&run, |run| format!("{} is {}", cell(run, "id"), cell(run, "status")))
}

fn request(args: RunArgs) -> anyhow::Result<NewRun> {
    let mut new = NewRun::of_task(&args.task)?;
    if let Some(input) = &args.input {
        new = new.input(&super::json_argument("--input", input)?);
    }
    for (key, value) in args.metadata {
        new = new.metadata(key, value);
    }
    if let Some(priority) = args.priority {
        new = new.priority(priority);
    }
    if let Some(seconds) = args.timeout {
        new = new.timeout_seconds(seconds);
    }
    if args.review {
        new = new.review(true);
    }
    if let Some(session) = args.session {
        new = new.in_session(session);
    }
    if let Some(source) = args.source {
        new = new.on_source(source);
    }
    if let Some(credential) = args.credential {
        new = new.with_credential(credential);
    }
    Ok(match args.id {
        Some(id) => new.with_id(id),
        None => new,
    })
}
