//! `errand events`.

use std::collections::VecDeque;

use errand_client::{Client, ClientError, EventFilter, v1};
use errand_proto::json;
use futures::TryStreamExt;
use futures::stream::BoxStream;

use crate::args::{EventsArgs, EventsCommand};
use crate::commands::show;
use crate::output::Output;

/// Events whose repetitions are dropped.
const RECENT: usize = 1024;

pub(crate) async fn run(args: EventsArgs, client: &Client, out: Output) -> anyhow::Result<()> {
    match args.command {
        EventsCommand::List { object } => {
            let mut events = client.events(Some(object));
            while let Some(event) = events.try_next().await? {
                print(&event, out)?;
            }
            Ok(())
        }
        EventsCommand::Tail { event_type, run, limit } => {
            let filter = EventFilter::of_type(&event_type)?;
            let mut events: BoxStream<'_, _> = match run {
                Some(run) => {
                    client.get_run(run).await?;
                    let matching = move |event: &v1::Event| futures::future::ready(filter.matches(event));
                    Box::pin(client.watch(run).await?.try_filter(matching))
                }
                None => client.follow_events(&filter).await?,
            };
            tail(&mut events, limit.unwrap_or(usize::MAX), out).await
        }
    }
}

async fn tail(
    events: &mut BoxStream<'_, Result<v1::Event, ClientError>>,
    limit: usize,
    out: Output,
) -> anyhow::Result<()> {
    // Repetitions come close to the first.
    let mut recent = VecDeque::with_capacity(RECENT);
    let mut left = limit;
    while left > 0
        && let Some(event) = events.try_next().await?
    {
        if recent.contains(&event.id) {
            continue;
        }
        print(&event, out)?;
        left -= 1;
        if recent.len() == RECENT {
            recent.pop_front();
        }
        recent.push_back(event.id);
    }
    Ok(())
}

fn print(event: &v1::Event, out: Output) -> anyhow::Result<()> {
    out.item(&json::event(event), |_| show::event(event))
}
