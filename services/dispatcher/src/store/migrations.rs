use errand_store::Migration;

pub(super) const ALL: &[Migration] = &[RUNS_AND_TASKS, OPEN_KEYS];

const RUNS_AND_TASKS: Migration = Migration {
    version: 100,
    name: "runs and tasks",
    sqlite: "
        CREATE TABLE run (
            id BLOB PRIMARY KEY,
            tenant TEXT NOT NULL,
            version INTEGER NOT NULL,
            status TEXT NOT NULL,
            task_id BLOB NOT NULL,
            updated_at INTEGER NOT NULL,
            last_activity INTEGER NOT NULL,
            document TEXT NOT NULL,
            output BLOB
        );
        CREATE INDEX run_open ON run (id)
            WHERE status IN ('queued', 'running', 'interaction_required', 'review_required', 'canceling');
        CREATE INDEX run_tenant ON run (tenant, id);
        CREATE TABLE run_input (run_id BLOB PRIMARY KEY, input BLOB NOT NULL) WITHOUT ROWID;
        CREATE TABLE task (
            id BLOB PRIMARY KEY,
            tenant TEXT NOT NULL,
            name TEXT NOT NULL,
            version INTEGER NOT NULL,
            seq INTEGER NOT NULL,
            deleted INTEGER NOT NULL
        );
        CREATE UNIQUE INDEX task_name ON task (tenant, name) WHERE deleted = 0;
        CREATE INDEX task_tenant ON task (tenant, id) WHERE deleted = 0;
        CREATE TABLE task_version (
            id BLOB NOT NULL,
            version INTEGER NOT NULL,
            document TEXT NOT NULL,
            PRIMARY KEY (id, version)
        );
    ",
    postgres: "
        CREATE TABLE run (
            id BYTEA PRIMARY KEY,
            tenant TEXT NOT NULL,
            version BIGINT NOT NULL,
            status TEXT NOT NULL,
            task_id BYTEA NOT NULL,
            updated_at BIGINT NOT NULL,
            last_activity BIGINT NOT NULL,
            document TEXT NOT NULL,
            output BYTEA
        );
        CREATE INDEX run_open ON run (id)
            WHERE status IN ('queued', 'running', 'interaction_required', 'review_required', 'canceling');
        CREATE INDEX run_tenant ON run (tenant, id);
        CREATE TABLE run_input (run_id BYTEA PRIMARY KEY, input BYTEA NOT NULL);
        CREATE TABLE task (
            id BYTEA PRIMARY KEY,
            tenant TEXT NOT NULL,
            name TEXT NOT NULL,
            version BIGINT NOT NULL,
            seq BIGINT NOT NULL,
            deleted BIGINT NOT NULL
        );
        CREATE UNIQUE INDEX task_name ON task (tenant, name) WHERE deleted = 0;
        CREATE INDEX task_tenant ON task (tenant, id) WHERE deleted = 0;
        CREATE TABLE task_version (
            id BYTEA NOT NULL,
            version BIGINT NOT NULL,
            document TEXT NOT NULL,
            PRIMARY KEY (id, version)
        );
    ",
};

/// The sweep asks for these of every open run, every few seconds.
const OPEN_KEYS: Migration = Migration {
    version: 101,
    name: "keys of open runs",
    sqlite: "
        DROP INDEX run_open;
        CREATE INDEX run_open ON run (id, version, status, updated_at)
            WHERE status IN ('queued', 'running', 'interaction_required', 'review_required', 'canceling');
    ",
    postgres: "
        DROP INDEX run_open;
        CREATE INDEX run_open ON run (id) INCLUDE (version, status, updated_at)
            WHERE status IN ('queued', 'running', 'interaction_required', 'review_required', 'canceling');
    ",
};
