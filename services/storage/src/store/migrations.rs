use errand_store::Migration;

pub(super) const ALL: &[Migration] = &[Migration {
    version: 100,
    name: "artifacts",
    sqlite: "
        CREATE TABLE artifact (
            id BLOB PRIMARY KEY,
            tenant TEXT NOT NULL,
            run_id BLOB NOT NULL,
            name_key TEXT NOT NULL,
            blob_id BLOB NOT NULL,
            size INTEGER NOT NULL,
            expires_at INTEGER,
            document TEXT NOT NULL,
            data BLOB
        );
        CREATE UNIQUE INDEX artifact_name ON artifact (run_id, name_key);
        CREATE INDEX artifact_run ON artifact (run_id, id);
        CREATE INDEX artifact_expires ON artifact (expires_at) WHERE expires_at IS NOT NULL;
        CREATE TABLE stored (
            id BLOB PRIMARY KEY,
            tenant TEXT NOT NULL,
            task_id BLOB NOT NULL,
            sha256 BLOB NOT NULL,
            size INTEGER NOT NULL,
            shared INTEGER NOT NULL,
            refs INTEGER NOT NULL,
            state TEXT NOT NULL,
            changed_at INTEGER NOT NULL
        );
        CREATE UNIQUE INDEX stored_shared ON stored (tenant, task_id, sha256) WHERE shared = 1 AND state = 'kept';
        CREATE INDEX stored_state ON stored (state, changed_at) WHERE state <> 'kept';
        CREATE TABLE run_files (run_id BLOB PRIMARY KEY, files INTEGER NOT NULL, bytes INTEGER NOT NULL);
    ",
    postgres: "
        CREATE TABLE artifact (
            id BYTEA PRIMARY KEY,
            tenant TEXT NOT NULL,
            run_id BYTEA NOT NULL,
            name_key TEXT NOT NULL,
            blob_id BYTEA NOT NULL,
            size BIGINT NOT NULL,
            expires_at BIGINT,
            document TEXT NOT NULL,
            data BYTEA
        );
        CREATE UNIQUE INDEX artifact_name ON artifact (run_id, name_key);
        CREATE INDEX artifact_run ON artifact (run_id, id);
        CREATE INDEX artifact_expires ON artifact (expires_at) WHERE expires_at IS NOT NULL;
        CREATE TABLE stored (
            id BYTEA PRIMARY KEY,
            tenant TEXT NOT NULL,
            task_id BYTEA NOT NULL,
            sha256 BYTEA NOT NULL,
            size BIGINT NOT NULL,
            shared BIGINT NOT NULL,
            refs BIGINT NOT NULL,
            state TEXT NOT NULL,
            changed_at BIGINT NOT NULL
        );
        CREATE UNIQUE INDEX stored_shared ON stored (tenant, task_id, sha256) WHERE shared = 1 AND state = 'kept';
        CREATE INDEX stored_state ON stored (state, changed_at) WHERE state <> 'kept';
        CREATE TABLE run_files (run_id BYTEA PRIMARY KEY, files BIGINT NOT NULL, bytes BIGINT NOT NULL);
    ",
}];
