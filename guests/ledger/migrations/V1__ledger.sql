-- On purpose without a key: nothing here would stop a record that is booked twice.
CREATE TABLE entries (
    record_id TEXT NOT NULL,
    account   TEXT NOT NULL
);

CREATE TABLE accounts (
    account TEXT NOT NULL PRIMARY KEY,
    entries BIGINT NOT NULL
);
