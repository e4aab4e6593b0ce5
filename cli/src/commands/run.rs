//! `errand run`.

use std::io::Read;

use errand_client::{Client, NewRun};
use errand_proto::json;
use serde_json::Value;

use crate::args::RunArgs;
use crate::commands::follow;
use crate::failure::Usage;
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
        new = new.input(&input_value(input)?);
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

/// JSON as it stands, or out of a file.
fn input_value(input: &str) -> anyhow::Result<Value> {
    let cannot_read = |error| Usage(format!("--input {input}: {error}"));
    let text = match input.strip_prefix('@') {
        Some("-") => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).map_err(cannot_read)?;
            text
        }
        Some(file) => std::fs::read_to_string(file).map_err(cannot_read)?,
        None => input.to_owned(),
    };
    Ok(serde_json::from_str(&text).map_err(|error| Usage(format!("--input is not JSON: {error}")))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn input_is_json_or_a_file_that_holds_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "{\"a\": 1}\n").unwrap();
        let from_file = input_value(&format!("@{}", file.path().display())).unwrap();
        assert_eq!(from_file, input_value("{\"a\":1}").unwrap());
        for wrong in ["{a:1}", "@/does/not/exist"] {
            assert!(input_value(wrong).unwrap_err().is::<Usage>(), "{wrong}");
        }
    }
}
