use errand_store::Migration;

pub(super) const ALL: &[Migration] = &[SESSIONS, EVENTS];

/// Nobody asks for the events of one session. A session that many runs take in turn has them all over this index, and
/// each commit would write a page of it for each session.
const EVENTS: Migration = Migration {
    version: 101,
    name: "events",
    sqlite: "DROP INDEX event_object_seq;",
    postgres: "DROP INDEX event_object_seq;",
};

const SESSIONS: Migration = Migration {
    version: 100,
    name: "sessions",
    sqlite: "
        CREATE TABLE session (
            id BLOB PRIMARY KEY,
            tenant TEXT NOT NULL,
            agent TEXT NOT NULL,
            status TEXT NOT NULL,
            updated_at INTEGER NOT NULL,
            attempt INTEGER,
            keep INTEGER,
            document TEXT NOT NULL
        );
        CREATE INDEX session_open ON session (id) WHERE status IN ('queued', 'running', 'idle', 'completing');
        CREATE INDEX session_tenant ON session (tenant, id);
        CREATE TABLE loss (token INTEGER PRIMARY KEY, document TEXT NOT NULL);
        CREATE TABLE drain (runner BLOB PRIMARY KEY) WITHOUT ROWID;
        CREATE TABLE owner (
            one INTEGER PRIMARY KEY CHECK (one = 1),
            epoch BLOB NOT NULL,
            batch INTEGER NOT NULL,
            token INTEGER NOT NULL
        );
        INSERT INTO owner VALUES (1, x'', 0, 0);
    ",
    postgres: "
        CREATE TABLE session (
            id BYTEA PRIMARY KEY,
            tenant TEXT NOT NULL,
            agent TEXT NOT NULL,
            status TEXT NOT NULL,
            updated_at BIGINT NOT NULL,
            attempt BIGINT,
            keep BIGINT,
            document TEXT NOT NULL
        );
        CREATE INDEX session_open ON session (id) WHERE status IN ('queued', 'running', 'idle', 'completing');
        CREATE INDEX session_tenant ON session (tenant, id);
        CREATE TABLE loss (token BIGINT PRIMARY KEY, document TEXT NOT NULL);
        CREATE TABLE drain (runner BYTEA PRIMARY KEY);
        CREATE TABLE owner (
            one BIGINT PRIMARY KEY CHECK (one = 1),
            epoch BYTEA NOT NULL,
            batch BIGINT NOT NULL,
            token BIGINT NOT NULL
        );
        INSERT INTO owner VALUES (1, '', 0, 0);
    ",
};
