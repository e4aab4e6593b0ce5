//! The arguments of `errand destinations` and `errand deliveries`.

use clap::builder::TypedValueParser;
use clap::{Args, Subcommand};
use errand_client::v1;
use errand_core::{DeliveryId, DestinationId};

use super::{key_value, named, time_ms};

#[derive(Debug, Args)]
pub(crate) struct DestinationsArgs {
    #[command(subcommand)]
    pub(crate) command: DestinationsCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DestinationsCommand {
    /// Makes a destination; prints its signing secret, this once
    Create(CreateArgs),
    /// Lists destinations, newest first
    List {
        /// Only of this type; may be repeated
        #[arg(long = "type", short = 't', value_name = "TYPE")]
        types: Vec<String>,
        /// Only with this status; may be repeated
        #[arg(long, short, value_parser = destination_statuses())]
        status: Vec<v1::DestinationStatus>,
        /// At most so many; 0: all
        #[arg(long, short = 'n', value_name = "N", default_value_t = 20)]
        limit: usize,
    },
    /// Shows a destination, its secrets masked
    Get { destination: DestinationId },
    /// Changes a destination; what is not given stays
    Update(UpdateArgs),
    /// Deletes a destination; what waits for it is given up
    Delete { destination: DestinationId },
    /// Sends a test event to it now, and shows what became of it
    Test { destination: DestinationId },
    /// Makes a new signing secret and prints it; the one before stays valid for 24 h
    RotateSecret { destination: DestinationId },
    /// Sends to it again, what it missed first
    Activate { destination: DestinationId },
    /// Sends no more to it; what it is to get is kept
    Deactivate { destination: DestinationId },
    /// How each destination fares: what waits and since when, attempts, outcomes, delay
    Figures,
    /// Sends once more what was published since a time
    Replay {
        destination: DestinationId,
        /// Since when, RFC 3339
        #[arg(long, value_name = "TIME", value_parser = time_ms)]
        since: i64,
    },
}

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// What it is called
    pub(crate) name: String,
    /// webhook, nats, rabbitmq, aws_sqs, aws_kinesis, aws_s3, gcp_pubsub, azure_servicebus
    #[arg(long = "type", short = 't', value_name = "TYPE", default_value = "webhook")]
    pub(crate) kind: String,
    /// What the type needs, as JSON: {"url": "https://..."}; @FILE or @- (stdin) keeps its secrets out of the shell's
    /// history
    #[arg(long, short, value_name = "JSON")]
    pub(crate) config: String,
    #[command(flatten)]
    pub(crate) chosen: ChosenArgs,
    /// Events of one object need not wait for each other
    #[arg(long)]
    pub(crate) unordered: bool,
}

#[derive(Debug, Args)]
pub(crate) struct UpdateArgs {
    pub(crate) destination: DestinationId,
    /// What it is called
    #[arg(long, default_value = "", hide_default_value = true)]
    pub(crate) name: String,
    /// What the type needs, as a whole; a secret that is given as "***" stays
    #[arg(long, short, value_name = "JSON")]
    pub(crate) config: Option<String>,
    #[command(flatten)]
    pub(crate) chosen: ChosenArgs,
    /// Whether events of one object wait for each other
    #[arg(long, value_name = "BOOL")]
    pub(crate) ordered: Option<bool>,
}

/// Which events.
#[derive(Debug, Args)]
pub(crate) struct ChosenArgs {
    /// task_run.completed, task_run.*, * [default for a new one: *]; may be repeated
    #[arg(long = "event", short, value_name = "TYPE")]
    pub(crate) events: Vec<String>,
    /// Only of runs of this task; may be repeated
    #[arg(long = "task", value_name = "ID")]
    pub(crate) tasks: Vec<String>,
    /// Only of this agent; may be repeated
    #[arg(long = "agent", value_name = "AGENT")]
    pub(crate) agents: Vec<String>,
    /// Only of runs with this note; may be repeated, and all must be there
    #[arg(long, short, value_name = "KEY=VALUE", value_parser = key_value)]
    pub(crate) metadata: Vec<(String, String)>,
}

#[derive(Debug, Args)]
pub(crate) struct DeliveriesArgs {
    #[command(subcommand)]
    pub(crate) command: DeliveriesCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DeliveriesCommand {
    /// Lists the deliveries of a destination, newest first
    List {
        destination: DestinationId,
        /// Only with this status; may be repeated
        #[arg(long, short, value_parser = delivery_statuses())]
        status: Vec<v1::DeliveryStatus>,
        /// Only of events of this type; may be repeated
        #[arg(long = "event", short, value_name = "TYPE")]
        events: Vec<String>,
        /// At most so many; 0: all
        #[arg(long, short = 'n', value_name = "N", default_value_t = 20)]
        limit: usize,
    },
    /// Shows a delivery with its attempts
    Get { delivery: DeliveryId },
    /// Makes a delivery due now, with its whole schedule before it
    Retry { delivery: DeliveryId },
}

fn destination_statuses() -> impl TypedValueParser<Value = v1::DestinationStatus> {
    use v1::DestinationStatus::{Active, Inactive};
    named([("active", Active), ("inactive", Inactive)])
}

fn delivery_statuses() -> impl TypedValueParser<Value = v1::DeliveryStatus> {
    use v1::DeliveryStatus::{Delivered, Failed, Pending};
    named([("pending", Pending), ("delivered", Delivered), ("failed", Failed)])
}
