//! What a key may do.

use axum::http::Method;
use errand_core::{Error, ErrorCode};

/// A right. `admin` has all of them, and those over the installation's runners.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Read runs.
    RunsRead,
    /// Make, cancel, answer, review and retry runs.
    RunsWrite,
    /// Read tasks.
    TasksRead,
    /// Make, change and delete tasks.
    TasksWrite,
    /// Read sessions and agents.
    SessionsRead,
    /// End sessions.
    SessionsWrite,
    /// Read and follow events.
    EventsRead,
    /// Read destinations and deliveries.
    DestinationsRead,
    /// Make, change, test and delete destinations; retry and replay deliveries.
    DestinationsWrite,
    /// Read sources.
    SourcesRead,
    /// Make, change and delete sources.
    SourcesWrite,
    /// Read what is known of credentials, which is not their secrets.
    CredentialsRead,
    /// Make, change and delete credentials.
    CredentialsWrite,
    /// Everything.
    Admin,
}

impl Scope {
    /// Every scope.
    pub const ALL: [Self; 14] = [
        Self::RunsRead,
        Self::RunsWrite,
        Self::TasksRead,
        Self::TasksWrite,
        Self::SessionsRead,
        Self::SessionsWrite,
        Self::EventsRead,
        Self::DestinationsRead,
        Self::DestinationsWrite,
        Self::SourcesRead,
        Self::SourcesWrite,
        Self::CredentialsRead,
        Self::CredentialsWrite,
        Self::Admin,
    ];

    /// As it is written.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::RunsRead => "runs:read",
            Self::RunsWrite => "runs:write",
            Self::TasksRead => "tasks:read",
            Self::TasksWrite => "tasks:write",
            Self::SessionsRead => "sessions:read",
            Self::SessionsWrite => "sessions:write",
            Self::EventsRead => "events:read",
            Self::DestinationsRead => "destinations:read",
            Self::DestinationsWrite => "destinations:write",
            Self::SourcesRead => "sources:read",
            Self::SourcesWrite => "sources:write",
            Self::CredentialsRead => "credentials:read",
            Self::CredentialsWrite => "credentials:write",
            Self::Admin => "admin",
        }
    }

    const fn bit(self) -> u32 {
        1 << self as u32
    }

    /// The scope that a route needs, by its method and its path as it was declared.
    #[must_use]
    pub fn of_route(method: &Method, path: &str) -> Self {
        let reads = matches!(*method, Method::GET | Method::HEAD);
        let mut parts = path.trim_start_matches("/v2/").split('/');
        let (object, last) = (parts.next().unwrap_or_default(), parts.next_back().unwrap_or_default());
        match (object, reads) {
            // To run a task is to make a run; the task is not changed.
            ("tasks", false) if last == "run" => Self::RunsWrite,
            ("tasks", true) => Self::TasksRead,
            ("tasks", false) => Self::TasksWrite,
            ("task-runs" | "storage", true) => Self::RunsRead,
            ("task-runs", false) => Self::RunsWrite,
            ("sessions" | "agents", true) => Self::SessionsRead,
            ("sessions", false) => Self::SessionsWrite,
            ("events" | "event-types", true) => Self::EventsRead,
            ("event-destinations" | "event-deliveries", true) => Self::DestinationsRead,
            ("event-destinations" | "event-deliveries", false) => Self::DestinationsWrite,
            ("sources", true) => Self::SourcesRead,
            ("sources", false) => Self::SourcesWrite,
            ("credentials", true) => Self::CredentialsRead,
            ("credentials", false) => Self::CredentialsWrite,
            // Runners serve every tenant; and what is not known needs all rights rather than none.
            _ => Self::Admin,
        }
    }
}

/// Some scopes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scopes(u32);

impl Scopes {
    /// Reads scopes; `runs:*` means all of its kind.
    ///
    /// # Errors
    /// `request`/`input_invalid` at `scopes`, with what there is; `request`/`input_missing` for none.
    pub fn parse<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Self, Error> {
        let mut bits = 0;
        for text in texts {
            let kind = text.strip_suffix('*').filter(|kind| kind.ends_with(':'));
            let fits = |scope: &Scope| kind.map_or(scope.as_str() == text, |kind| scope.as_str().starts_with(kind));
            let found: Vec<Scope> = Scope::ALL.into_iter().filter(fits).collect();
            if found.is_empty() {
                let known: Vec<&str> = Scope::ALL.iter().map(|scope| scope.as_str()).collect();
                let message = format!("there is no scope {text:?}: {}, or sessions:* and the like", known.join(", "));
                return Err(ErrorCode::INPUT_INVALID.with(message).at("scopes"));
            }
            bits |= found.into_iter().map(Scope::bit).sum::<u32>();
        }
        if bits == 0 {
            return Err(ErrorCode::INPUT_MISSING.with("scopes are missing").at("scopes"));
        }
        Ok(Self(bits))
    }

    /// Whether this is among them.
    #[must_use]
    pub const fn has(self, scope: Scope) -> bool {
        self.0 & (scope.bit() | Scope::Admin.bit()) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_read_and_stars_mean_all_of_a_kind() {
        let scopes = Scopes::parse(["runs:read", "sessions:*"]).unwrap();
        assert!(scopes.has(Scope::RunsRead) && scopes.has(Scope::SessionsWrite) && scopes.has(Scope::SessionsRead));
        assert!(!scopes.has(Scope::RunsWrite) && !scopes.has(Scope::Admin));
        assert!(Scope::ALL.iter().all(|scope| Scopes::parse(["admin"]).unwrap().has(*scope)));
        for wrong in ["", "runs", "*", "runs:delete", ":*"] {
            assert!(Scopes::parse([wrong]).is_err(), "{wrong}");
        }
        assert!(Scopes::parse([]).is_err());
    }

    #[test]
    fn routes_need_the_scope_of_their_object() {
        for (method, path, scope) in [
            (Method::POST, "/v2/tasks/{task_id}/run", Scope::RunsWrite),
            (Method::POST, "/v2/tasks", Scope::TasksWrite),
            (Method::GET, "/v2/tasks/{task_id}", Scope::TasksRead),
            (Method::GET, "/v2/task-runs/{run_id}/events", Scope::RunsRead),
            (Method::POST, "/v2/task-runs/{run_id}/cancel", Scope::RunsWrite),
            (Method::GET, "/v2/storage/{storage_id}/content", Scope::RunsRead),
            (Method::DELETE, "/v2/storage/{storage_id}", Scope::Admin),
            (Method::GET, "/v2/sessions/{session_id}/live", Scope::SessionsRead),
            (Method::GET, "/v2/agents", Scope::SessionsRead),
            (Method::GET, "/v2/runners", Scope::Admin),
            (Method::POST, "/v2/runners/{runner_id}/drain", Scope::Admin),
            (Method::POST, "/v2/agents", Scope::Admin),
            (Method::PATCH, "/v2/event-destinations/{destination_id}", Scope::DestinationsWrite),
            (Method::GET, "/v2/event-types", Scope::EventsRead),
            (Method::DELETE, "/v2/sources/{source_id}", Scope::SourcesWrite),
            (Method::GET, "/v2/credentials", Scope::CredentialsRead),
            (Method::PATCH, "/v2/credentials/{credential_id}", Scope::CredentialsWrite),
        ] {
            assert_eq!(Scope::of_route(&method, path), scope, "{method} {path}");
        }
    }
}
