use errand_store::Migration;

/// A credential that is deleted keeps its row, without secrets: its id, and the numbers of its events, are taken for
/// good. The foreign key holds tenants apart, and keeps a source while credentials belong to it.
pub(super) const ALL: &[Migration] = &[Migration {
    version: 100,
    name: "sources and credentials",
    sqlite: "
        CREATE TABLE source (
            id BLOB PRIMARY KEY,
            tenant TEXT NOT NULL,
            document TEXT NOT NULL,
            UNIQUE (tenant, id)
        );
        CREATE TABLE credential (
            id BLOB PRIMARY KEY,
            tenant TEXT NOT NULL,
            source_id BLOB,
            version INTEGER NOT NULL,
            deleted INTEGER NOT NULL,
            document TEXT NOT NULL,
            data_key BLOB NOT NULL,
            secrets BLOB NOT NULL,
            FOREIGN KEY (tenant, source_id) REFERENCES source (tenant, id)
        );
        CREATE INDEX credential_tenant ON credential (tenant, id) WHERE deleted = 0;
        CREATE INDEX credential_source ON credential (tenant, source_id) WHERE source_id IS NOT NULL;
        CREATE TABLE sealing_key (one INTEGER PRIMARY KEY, private_key BLOB NOT NULL);
    ",
    postgres: "
        CREATE TABLE source (
            id BYTEA PRIMARY KEY,
            tenant TEXT NOT NULL,
            document TEXT NOT NULL,
            UNIQUE (tenant, id)
        );
        CREATE TABLE credential (
            id BYTEA PRIMARY KEY,
            tenant TEXT NOT NULL,
            source_id BYTEA,
            version BIGINT NOT NULL,
            deleted BIGINT NOT NULL,
            document TEXT NOT NULL,
            data_key BYTEA NOT NULL,
            secrets BYTEA NOT NULL,
            FOREIGN KEY (tenant, source_id) REFERENCES source (tenant, id)
        );
        CREATE INDEX credential_tenant ON credential (tenant, id) WHERE deleted = 0;
        CREATE INDEX credential_source ON credential (tenant, source_id) WHERE source_id IS NOT NULL;
        CREATE TABLE sealing_key (one INTEGER PRIMARY KEY, private_key BYTEA NOT NULL);
    ",
}];
