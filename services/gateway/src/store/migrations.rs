use errand_store::Migration;

pub(super) const ALL: &[Migration] = &[Migration {
    version: 100,
    name: "keys and idempotency",
    sqlite: "
        CREATE TABLE api_key (
            id BLOB PRIMARY KEY,
            tenant TEXT NOT NULL,
            name TEXT NOT NULL,
            scopes TEXT NOT NULL,
            hint TEXT NOT NULL,
            hash BLOB NOT NULL UNIQUE,
            created_at INTEGER NOT NULL,
            expires_at INTEGER,
            revoked_at INTEGER,
            last_used_at INTEGER
        ) WITHOUT ROWID;
        CREATE INDEX api_key_tenant ON api_key (tenant, id);
        CREATE TABLE idempotency (
            tenant TEXT NOT NULL,
            key_hash BLOB NOT NULL,
            request_hash BLOB NOT NULL,
            seed BLOB NOT NULL,
            holder BLOB NOT NULL,
            claimed_until INTEGER NOT NULL,
            created_at INTEGER NOT NULL,
            status INTEGER,
            sealed INTEGER NOT NULL DEFAULT 0,
            body BLOB,
            PRIMARY KEY (tenant, key_hash)
        ) WITHOUT ROWID;
        CREATE INDEX idempotency_created_at ON idempotency (created_at);
    ",
    postgres: "
        CREATE TABLE api_key (
            id BYTEA PRIMARY KEY,
            tenant TEXT NOT NULL,
            name TEXT NOT NULL,
            scopes TEXT NOT NULL,
            hint TEXT NOT NULL,
            hash BYTEA NOT NULL UNIQUE,
            created_at BIGINT NOT NULL,
            expires_at BIGINT,
            revoked_at BIGINT,
            last_used_at BIGINT
        );
        CREATE INDEX api_key_tenant ON api_key (tenant, id);
        CREATE TABLE idempotency (
            tenant TEXT NOT NULL,
            key_hash BYTEA NOT NULL,
            request_hash BYTEA NOT NULL,
            seed BYTEA NOT NULL,
            holder BYTEA NOT NULL,
            claimed_until BIGINT NOT NULL,
            created_at BIGINT NOT NULL,
            status BIGINT,
            sealed BIGINT NOT NULL DEFAULT 0,
            body BYTEA,
            PRIMARY KEY (tenant, key_hash)
        );
        CREATE INDEX idempotency_created_at ON idempotency (created_at);
    ",
}];
