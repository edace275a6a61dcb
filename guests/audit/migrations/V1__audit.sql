CREATE TABLE audit (
    record_id   TEXT NOT NULL PRIMARY KEY,
    value_bytes BIGINT
);
