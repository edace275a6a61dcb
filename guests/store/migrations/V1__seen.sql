-- `BYTEA` is PostgreSQL's word; SQLite takes any and stores bytes as they are.
CREATE TABLE seen (
    record_id TEXT NOT NULL PRIMARY KEY,
    key       BYTEA,
    value     BYTEA
);
