//! `errand doctor`: what is wrong, and how to mend it.

mod broker;
mod services;

use std::time::Duration;

use errand_bus::{Bus, BusConfig};
use errand_client::Client;
use serde_json::{Value, json};

use crate::args::{DoctorArgs, Global};
use crate::failure::Said;
use crate::output::{Output, table};

/// How long to wait for the broker.
const PATIENCE: Duration = Duration::from_secs(2);

/// How well a thing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Health {
    Well,
    /// It works, but an operator should know.
    Notable,
    Wrong,
}

impl Health {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Well => "ok",
            Self::Notable => "note",
            Self::Wrong => "wrong",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Finding {
    what: String,
    health: Health,
    /// What was seen.
    seen: String,
    /// What to do about it; empty where there is nothing to do.
    mend: String,
}

impl Finding {
    fn well(what: impl Into<String>, seen: impl Into<String>) -> Self {
        Self { what: what.into(), health: Health::Well, seen: seen.into(), mend: String::new() }
    }

    fn notable(what: impl Into<String>, seen: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { what: what.into(), health: Health::Notable, seen: seen.into(), mend: mend.into() }
    }

    fn wrong(what: impl Into<String>, seen: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { what: what.into(), health: Health::Wrong, seen: seen.into(), mend: mend.into() }
    }

    fn as_json(&self) -> Value {
        json!({
            "object": "finding",
            "what": self.what,
            "health": self.health.as_str(),
            "seen": self.seen,
            "mend": if self.mend.is_empty() { Value::Null } else { self.mend.clone().into() },
        })
    }
}

pub(crate) async fn run(args: &DoctorArgs, global: &Global, out: Output) -> anyhow::Result<()> {
    let findings = look(global, Duration::from_millis(args.wait)).await;
    if out.json {
        findings.iter().try_for_each(|finding| out.line(finding.as_json().to_string()))?;
    } else {
        out.line(as_text(&findings))?;
    }
    if findings.iter().any(|finding| finding.health == Health::Wrong) { Err(Said.into()) } else { Ok(()) }
}

async fn look(global: &Global, wait: Duration) -> Vec<Finding> {
    let config = BusConfig {
        url: global.nats_url.clone(),
        prefix: global.prefix.clone(),
        name: "errand-doctor".into(),
        credentials: global.nats_credentials.clone(),
        ca: global.nats_ca.clone(),
        request_timeout: Duration::from_secs(3),
        ..BusConfig::default()
    };
    let bus = match Bus::connect(config.clone(), PATIENCE).await {
        Ok(bus) => bus,
        Err(error) => return vec![broker::unreachable(&error)],
    };
    let mut findings = Vec::new();
    match broker::Broker::connect(&config).await {
        Ok(broker) => {
            findings.extend(broker.look(&bus).await);
            findings.extend(services::look(&broker.client, &global.prefix, wait).await);
        }
        Err(error) => findings.push(Finding::wrong("broker", format!("{error:#}"), "look at the NATS server's log")),
    }
    let client = Client::new(bus, global.tenant.clone());
    findings.push(services::store(&client).await);
    findings.push(services::runners(&client).await);
    findings
}

fn as_text(findings: &[Finding]) -> String {
    let mut rows = table(["", "WHAT", "SEEN"]);
    for finding in findings {
        rows.add_row([finding.health.as_str(), &finding.what, &finding.seen]);
    }
    let mut text = rows.trim_fmt();
    for finding in findings.iter().filter(|finding| !finding.mend.is_empty()) {
        text.push_str(&format!("\n\n{}: {}\n  {}", finding.health.as_str(), finding.what, finding.mend));
    }
    let wrong = findings.iter().filter(|finding| finding.health == Health::Wrong).count();
    let verdict = if wrong == 0 { "all is well".to_owned() } else { format!("{wrong} of {} wrong", findings.len()) };
    format!("{text}\n\n{verdict}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_say_what_to_do() {
        let findings = [
            Finding::well("broker", "nats-server 2.15.1"),
            Finding::notable("dead letters", "3 kept", "read them: nats stream view ERRAND_V1_DLQ"),
            Finding::wrong("dispatcher", "nobody answers", "start one: errand-dispatcher"),
        ];
        insta::assert_snapshot!("doctor", as_text(&findings));
    }
}
