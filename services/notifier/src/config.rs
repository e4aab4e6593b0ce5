//! What can be set.

use std::str::FromStr;
use std::time::Duration;

use crate::channel::OutsideArgs;
use crate::delivery::{Probing, Schedule};
use crate::worker::Settings;

/// Tells every event on: as JSON to plain subscribers, and to the destinations that want it.
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "errand-notifier", version)]
pub struct Config {
    /// What all services take.
    #[command(flatten)]
    pub kit: errand_kit::Args,
    /// Where destinations and deliveries are kept: sqlite://FOLDER or postgres://USER@HOST/DATABASE.
    #[arg(long, env = "ERRAND_STORE", default_value = "sqlite://data")]
    pub store: String,
    /// What seals the destinations' secrets.
    #[command(flatten)]
    pub master_key: errand_kit::master_key::MasterKeyArgs,
    /// Events that are told on together, before they are acknowledged.
    #[arg(long, env = "ERRAND_NOTIFIER_BATCH", default_value_t = 500, value_parser = clap::value_parser!(u16).range(1..=5_000))]
    pub batch: u16,
    /// The delays between the attempts of a delivery, each give or take a half: 30s, 5m, 2h.
    #[arg(long, env = "ERRAND_DELIVERY_DELAYS", value_delimiter = ',', default_value = "5s,5m,30m,2h,5h,10h,10h")]
    pub delivery_delays: Vec<Span>,
    /// How long an attempt may take.
    #[arg(long, env = "ERRAND_DELIVERY_TIMEOUT", default_value = "5s")]
    pub delivery_timeout: Span,
    /// Attempts of one destination that may be under way at once.
    #[arg(long, env = "ERRAND_DELIVERY_CONCURRENCY", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    pub delivery_concurrency: u16,
    /// After so many failures in a row a destination gets one attempt at a time, with growing pauses.
    #[arg(long, env = "ERRAND_PROBE_AFTER", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    pub probe_after: u32,
    /// How long a notifier that has died keeps its destinations from the others.
    #[arg(long, env = "ERRAND_DELIVERY_CLAIM", default_value = "6s")]
    pub delivery_claim: Span,
    /// Where deliveries may go.
    #[command(flatten)]
    pub outside: OutsideArgs,
    /// How long deliveries are kept.
    #[arg(long, env = "ERRAND_DELIVERY_RETENTION_DAYS", default_value_t = 30, value_parser = clap::value_parser!(u16).range(1..))]
    pub delivery_retention_days: u16,
}

/// A length of time: `250ms`, `5s`, `5m`, `2h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no length of time: say 250ms, 5s, 5m or 2h");
        let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let (number, unit) = text.split_at(digits);
        let number: u32 = number.parse().map_err(|_| wrong())?;
        let unit = match unit {
            "ms" => Duration::from_millis(1),
            "s" => Duration::from_secs(1),
            "m" => Duration::from_secs(60),
            "h" => Duration::from_secs(3600),
            _ => return Err(wrong()),
        };
        let span = unit.saturating_mul(number);
        let fits = !span.is_zero() && span <= Duration::from_secs(30 * 24 * 3600);
        fits.then_some(Self(span)).ok_or_else(|| format!("{text} must be more than nothing, and 30 days at most"))
    }
}

/// Attempts of one delivery.
const MAX_DELAYS: usize = 30;
/// Shorter, and a claim would end while it is renewed.
const SHORTEST_CLAIM: Duration = Duration::from_secs(1);

impl Config {
    /// How destinations are served.
    ///
    /// # Errors
    /// Where there are too many delays, or the claim is too short.
    pub fn settings(&self) -> anyhow::Result<Settings> {
        anyhow::ensure!(self.delivery_delays.len() <= MAX_DELAYS, "--delivery-delays may have {MAX_DELAYS} entries");
        anyhow::ensure!(self.delivery_claim.0 >= SHORTEST_CLAIM, "--delivery-claim must be a second or more");
        Ok(Settings {
            schedule: Schedule { delays: self.delivery_delays.iter().map(|span| span.0).collect() },
            probing: Probing { after: self.probe_after, ..Probing::default() },
            attempt_timeout: self.delivery_timeout.0,
            concurrency: usize::from(self.delivery_concurrency),
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;

    #[test]
    fn lengths_of_time_are_read() {
        for (text, millis) in [("250ms", 250), ("5s", 5_000), ("30m", 1_800_000), ("10h", 36_000_000)] {
            assert_eq!(text.parse(), Ok(Span(Duration::from_millis(millis))));
        }
        for text in ["", "5", "s", "-1s", "1.5s", "5 s", "0s", "9999h", "99999999999s"] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_schedule_is_the_contracts() {
        let settings = Config::try_parse_from(["notifier"]).unwrap().settings().unwrap();
        let delays: Vec<u64> = settings.schedule.delays.iter().map(Duration::as_secs).collect();
        assert_eq!(delays, [5, 300, 1_800, 7_200, 18_000, 36_000, 36_000]);
        assert!(Config::try_parse_from(["notifier", "--delivery-claim", "10ms"]).unwrap().settings().is_err());
    }

    #[test]
    fn a_master_key_is_shown_nowhere() {
        let config = Config::try_parse_from(["notifier", "--master-key", "c2VjcmV0"]).unwrap();
        assert!(!format!("{config:?}").contains("c2VjcmV0"));
        let command = Config::command();
        let key = command.get_arguments().find(|argument| argument.get_id() == "master_key").unwrap();
        assert!(key.is_hide_env_values_set());
    }
}
