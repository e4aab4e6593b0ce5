use errand_store::Migration;

/// `status` of a destination: 0 active, 1 inactive, 2 deleted; of a delivery: 0 pending, 1 delivered, 2 failed.
/// `object` is a number made of the object's id: what is the same keeps its order. A delivery's attempts are kept in
/// its row (`log`), so that an outcome is one write. `taken` says that the event has its deliveries: a replay may have
/// stored it before.
pub(super) const ALL: &[Migration] = &[Migration {
    version: 100,
    name: "destinations",
    sqlite: "
        CREATE TABLE destination (
            number INTEGER PRIMARY KEY,
            id BLOB NOT NULL UNIQUE,
            tenant TEXT NOT NULL,
            status INTEGER NOT NULL,
            version INTEGER NOT NULL,
            seq INTEGER NOT NULL,
            created_at INTEGER NOT NULL,
            updated_at INTEGER NOT NULL,
            old_secret_expires_at INTEGER,
            failing_since INTEGER,
            reason TEXT NOT NULL,
            document TEXT NOT NULL,
            sealed BLOB NOT NULL
        );
        CREATE INDEX destination_tenant ON destination (tenant, id);
        CREATE TABLE destination_change (one INTEGER PRIMARY KEY CHECK (one = 1), number INTEGER NOT NULL);
        INSERT INTO destination_change VALUES (1, 0);
        CREATE TABLE notifier (id BLOB PRIMARY KEY, seen_at INTEGER NOT NULL) WITHOUT ROWID;
        CREATE TABLE claim (destination INTEGER PRIMARY KEY, owner BLOB NOT NULL, until INTEGER NOT NULL);
        CREATE TABLE delivery_event (
            number INTEGER PRIMARY KEY,
            id BLOB NOT NULL UNIQUE,
            taken INTEGER NOT NULL,
            type TEXT NOT NULL,
            object_id TEXT NOT NULL,
            created_at INTEGER NOT NULL,
            payload BLOB NOT NULL
        );
        CREATE TABLE delivery (
            position INTEGER PRIMARY KEY,
            destination INTEGER NOT NULL,
            event INTEGER NOT NULL,
            object INTEGER NOT NULL,
            origin INTEGER NOT NULL,
            status INTEGER NOT NULL,
            attempts INTEGER NOT NULL,
            base INTEGER NOT NULL,
            due_at INTEGER NOT NULL,
            created_at INTEGER NOT NULL,
            finished_at INTEGER,
            log BLOB NOT NULL
        );
        CREATE INDEX delivery_list ON delivery (destination, position);
        CREATE INDEX delivery_due ON delivery (destination, due_at, position) WHERE status = 0;
        CREATE INDEX delivery_object ON delivery (destination, object, position) WHERE status = 0;
        CREATE INDEX delivery_failed ON delivery (destination, finished_at) WHERE status = 2;
        CREATE INDEX delivery_of_event ON delivery (event);
        CREATE TABLE replay (
            number INTEGER PRIMARY KEY,
            destination INTEGER NOT NULL,
            until INTEGER NOT NULL,
            stream INTEGER NOT NULL,
            sequence INTEGER NOT NULL,
            at INTEGER NOT NULL,
            owner BLOB,
            claimed_until INTEGER NOT NULL
        );
    ",
    postgres: "
        CREATE TABLE destination (
            number BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            id BYTEA NOT NULL UNIQUE,
            tenant TEXT NOT NULL,
            status BIGINT NOT NULL,
            version BIGINT NOT NULL,
            seq BIGINT NOT NULL,
            created_at BIGINT NOT NULL,
            updated_at BIGINT NOT NULL,
            old_secret_expires_at BIGINT,
            failing_since BIGINT,
            reason TEXT NOT NULL,
            document TEXT NOT NULL,
            sealed BYTEA NOT NULL
        );
        CREATE INDEX destination_tenant ON destination (tenant, id);
        CREATE TABLE destination_change (one BIGINT PRIMARY KEY CHECK (one = 1), number BIGINT NOT NULL);
        INSERT INTO destination_change VALUES (1, 0);
        CREATE TABLE notifier (id BYTEA PRIMARY KEY, seen_at BIGINT NOT NULL);
        CREATE TABLE claim (destination BIGINT PRIMARY KEY, owner BYTEA NOT NULL, until BIGINT NOT NULL);
        CREATE TABLE delivery_event (
            number BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            id BYTEA NOT NULL UNIQUE,
            taken BIGINT NOT NULL,
            type TEXT NOT NULL,
            object_id TEXT NOT NULL,
            created_at BIGINT NOT NULL,
            payload BYTEA NOT NULL
        );
        CREATE TABLE delivery (
            position BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            destination BIGINT NOT NULL,
            event BIGINT NOT NULL,
            object BIGINT NOT NULL,
            origin BIGINT NOT NULL,
            status BIGINT NOT NULL,
            attempts BIGINT NOT NULL,
            base BIGINT NOT NULL,
            due_at BIGINT NOT NULL,
            created_at BIGINT NOT NULL,
            finished_at BIGINT,
            log BYTEA NOT NULL
        );
        CREATE INDEX delivery_list ON delivery (destination, position);
        CREATE INDEX delivery_due ON delivery (destination, due_at, position) WHERE status = 0;
        CREATE INDEX delivery_object ON delivery (destination, object, position) WHERE status = 0;
        CREATE INDEX delivery_failed ON delivery (destination, finished_at) WHERE status = 2;
        CREATE INDEX delivery_of_event ON delivery (event);
        CREATE TABLE replay (
            number BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            destination BIGINT NOT NULL,
            until BIGINT NOT NULL,
            stream BIGINT NOT NULL,
            sequence BIGINT NOT NULL,
            at BIGINT NOT NULL,
            owner BYTEA,
            claimed_until BIGINT NOT NULL
        );
    ",
}];
