//! What each user of the broker may do: the least that its part needs. `errand nats-config` writes it into the users'
//! credentials; `tests/tests/broker_security.rs` shows that it suffices, and that more is refused.
//!
//! Everyone's answers come under an inbox of its own, `_INBOX.<name>.>`: the client library's common `_INBOX.>` would let
//! each read what is answered to others. A tenant's user publishes run requests and hears of its own runs. It gets no
//! request/reply: there the tenant stands in the request, which the broker cannot check. That is what the gateway is for.

use errand_core::{RunnerId, Tenant};

use crate::streams::StreamKind;
use crate::subjects::Subjects;

/// Who connects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Owns runs.
    Dispatcher,
    /// Owns sessions.
    SessionPool,
    /// Owns time.
    TimeoutWatcher,
    /// Owns deliveries.
    Notifier,
    /// Owns HTTP.
    Gateway,
    /// Owns sources and credentials.
    Vault,
    /// Owns files.
    Storage,
    /// One runner, by its id; or any, for runners that are scaled together and trust each other.
    Runner(Option<RunnerId>),
    /// A tenant's programs.
    Tenant(Tenant),
    /// An operator: the command line.
    Operator,
}

impl Part {
    /// The services, each with its name.
    pub const SERVICES: [(Self, &'static str); 7] = [
        (Self::Dispatcher, "dispatcher"),
        (Self::SessionPool, "session-pool"),
        (Self::TimeoutWatcher, "timeout-watcher"),
        (Self::Notifier, "notifier"),
        (Self::Gateway, "gateway"),
        (Self::Vault, "vault"),
        (Self::Storage, "storage"),
    ];
}

/// What the gateway asks the vault for.
const OF_THE_VAULT: [&str; 11] = [
    "create_source",
    "get_source",
    "list_sources",
    "update_source",
    "delete_source",
    "get_sealing_key",
    "create_credential",
    "get_credential",
    "list_credentials",
    "update_credential",
    "delete_credential",
];

/// Subjects, with wildcards.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Permissions {
    /// That may be published on.
    pub publish: Vec<String>,
    /// That may be listened to.
    pub subscribe: Vec<String>,
}

impl Permissions {
    /// Of a part, under the name of its user.
    #[must_use]
    pub fn of(part: &Part, name: &str, subjects: &Subjects) -> Self {
        let mut permissions = Self::default();
        permissions.add_inbox(name);
        match part {
            Part::Dispatcher => permissions.add_dispatcher(subjects),
            Part::SessionPool => permissions.add_session_pool(subjects),
            Part::TimeoutWatcher => {
                permissions.add_service("timeout-watcher", subjects);
                permissions.add_follower(subjects);
                permissions.publish([subjects.api("dispatcher", "list_deadlines"), subjects.run("expire")]);
                permissions.subscribe([subjects.activity_all()]);
            }
            Part::Notifier => permissions.add_notifier(subjects),
            Part::Gateway => permissions.add_gateway(subjects),
            Part::Vault => permissions.add_vault(subjects),
            Part::Storage => permissions.add_storage(subjects),
            Part::Runner(id) => permissions.add_runner(*id, subjects),
            Part::Tenant(tenant) => permissions.add_tenant(tenant, subjects),
            Part::Operator => permissions.add_operator(subjects),
        }
        permissions
    }

    /// Lets publish on further subjects.
    pub fn publish(&mut self, subjects: impl IntoIterator<Item = String>) {
        self.publish.extend(subjects);
    }

    fn subscribe(&mut self, subjects: impl IntoIterator<Item = String>) {
        self.subscribe.extend(subjects);
    }

    fn add_inbox(&mut self, name: &str) {
        // To itself, too: that is how a client measures the way to the broker and back.
        self.publish([format!("_INBOX.{name}.>")]);
        self.subscribe([format!("_INBOX.{name}.>")]);
    }

    /// What serves requests: its methods, discovery (NATS micro), answers to whoever asked, dead letters, the streams.
    fn add_service(&mut self, service: &str, subjects: &Subjects) {
        self.subscribe([subjects.api(service, ">"), "$SRV.*".into()]);
        self.subscribe([format!("$SRV.*.{service}"), format!("$SRV.*.{service}.*")]);
        self.publish(["_INBOX.>".to_owned(), subjects.dead_letter_all()]);
        for kind in StreamKind::ALL {
            let stream = kind.name(subjects.prefix());
            self.publish(["INFO", "CREATE", "UPDATE"].map(|verb| format!("$JS.API.STREAM.{verb}.{stream}")));
        }
    }

    fn add_consumer(&mut self, kind: StreamKind, name: &str, subjects: &Subjects) {
        let stream = kind.name(subjects.prefix());
        for verb in ["CREATE", "DURABLE.CREATE", "INFO", "MSG.NEXT", "UNPIN"] {
            self.publish([format!("$JS.API.CONSUMER.{verb}.{stream}.{name}")]);
        }
        self.publish([format!("$JS.API.CONSUMER.CREATE.{stream}.{name}.>"), format!("$JS.ACK.{stream}.{name}.>")]);
    }

    /// Reads the event stream, through consumers without a name. Which events stands in their configuration, which the
    /// broker does not check against permissions: whoever follows may follow everything.
    fn add_follower(&mut self, subjects: &Subjects) {
        let stream = StreamKind::Event.name(subjects.prefix());
        self.publish([format!("$JS.API.CONSUMER.CREATE.{stream}")]);
        for verb in ["INFO", "DELETE", "MSG.NEXT"] {
            self.publish([format!("$JS.API.CONSUMER.{verb}.{stream}.*")]);
        }
        self.publish([format!("$JS.API.STREAM.INFO.{stream}"), format!("$JS.API.STREAM.MSG.GET.{stream}")]);
    }

    fn add_publisher(&mut self, subjects: &Subjects) {
        let stream = StreamKind::Event.name(subjects.prefix());
        self.publish([subjects.events_of(None), format!("$JS.API.STREAM.MSG.GET.{stream}")]);
    }

    fn add_dispatcher(&mut self, subjects: &Subjects) {
        self.add_service("dispatcher", subjects);
        self.add_publisher(subjects);
        self.add_consumer(StreamKind::Submit, "dispatcher", subjects);
        self.publish([subjects.pool("acquire"), subjects.pool("release")]);
        self.publish([subjects.api("vault", "check_references")]);
        self.publish(["assign", "stop", "input"].map(|method| subjects.runner_any(method)));
        self.subscribe([subjects.run(">"), subjects.activity_all(), subjects.pool("hello")]);
    }

    fn add_session_pool(&mut self, subjects: &Subjects) {
        self.add_service("session-pool", subjects);
        self.add_publisher(subjects);
        self.publish(["grant", "lost", "leases"].map(|method| subjects.run(method)));
        self.publish(["start_session", "tear_down_session"].map(|method| subjects.runner_any(method)));
        self.publish([subjects.pool("hello")]);
        self.subscribe([subjects.pool(">")]);
    }

    fn add_notifier(&mut self, subjects: &Subjects) {
        self.add_service("notifier", subjects);
        self.add_publisher(subjects);
        self.add_consumer(StreamKind::Event, "notifier", subjects);
        // Among notifiers.
        self.publish([subjects.notifier("*")]);
        self.subscribe([subjects.notifier("*")]);
        self.add_follower(subjects);
        self.publish([subjects.notify("*", "*", "*")]);
    }

    fn add_vault(&mut self, subjects: &Subjects) {
        self.add_service("vault", subjects);
        self.add_publisher(subjects);
        // Its witnesses: who holds a lease, and whether a key is the runner's.
        self.publish([subjects.run("lease_holder"), subjects.runner_any("confirm_key")]);
    }

    fn add_storage(&mut self, subjects: &Subjects) {
        self.add_service("storage", subjects);
        self.add_publisher(subjects);
        self.subscribe([subjects.storage(">")]);
        // Whose a run is, and whether the lease that sends a file holds it.
        self.publish([subjects.run("holder")]);
    }

    /// Asks services for every tenant, but never for what is handed to runners.
    fn add_gateway(&mut self, subjects: &Subjects) {
        self.add_service("gateway", subjects);
        self.publish(["dispatcher", "session-pool", "notifier", "storage"].map(|service| subjects.api(service, "*")));
        self.publish(OF_THE_VAULT.map(|method| subjects.api("vault", method)));
        self.add_follower(subjects);
        // Among gateways.
        self.publish([subjects.gateway("*")]);
        self.subscribe([subjects.gateway("*")]);
        // Those who watch sessions.
        self.publish([subjects.live_of(None, "watch")]);
        self.subscribe([subjects.live_of(None, "frame")]);
    }

    /// Asks every service, for every tenant.
    fn add_client(&mut self, subjects: &Subjects) {
        self.publish([subjects.api("*", "*"), subjects.submit_all()]);
        self.subscribe([subjects.events_of(None), subjects.activity_all(), subjects.notify("*", "*", "*")]);
        self.add_follower(subjects);
    }

    fn add_runner(&mut self, id: Option<RunnerId>, subjects: &Subjects) {
        self.subscribe([match id {
            Some(id) => subjects.runner(id, "*"),
            None => subjects.runner_any("*"),
        }]);
        self.subscribe([subjects.pool("hello"), "$SRV.*".into()]);
        self.subscribe(["$SRV.*.errand-runner".into(), "$SRV.*.errand-runner.*".into()]);
        let methods = ["register", "heartbeat", "deregister", "session_lost"];
        self.publish(methods.map(|method| subjects.pool(method)));
        self.publish([subjects.run("report"), subjects.activity_all(), subjects.dead_letter("request")]);
        self.publish(["open_credential", "report_auth"].map(|method| subjects.api("vault", method)));
        self.publish([subjects.storage("begin")]);
        self.publish(["put", "finish"].map(|method| subjects.storage_instance("*", method)));
        self.subscribe([subjects.live_of(id, "watch")]);
        self.publish([subjects.live_of(id, "frame")]);
        // Whom it answers.
        self.publish(
            ["dispatcher", "session-pool", "vault", "gateway", "operator"].map(|name| format!("_INBOX.{name}.>")),
        );
    }

    fn add_tenant(&mut self, tenant: &Tenant, subjects: &Subjects) {
        self.publish([subjects.submit(tenant)]);
        self.subscribe([subjects.events_of(Some(tenant)), subjects.notify(tenant.as_str(), "*", "*")]);
    }

    fn add_operator(&mut self, subjects: &Subjects) {
        self.add_client(subjects);
        self.publish(["$JS.API.>".into(), "$SRV.>".into(), subjects.dead_letter_all()]);
        self.subscribe([subjects.dead_letter_all()]);
    }
}
