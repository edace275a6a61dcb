-- The embedded log. Each partition's records are in a table of their own, `records_N` by the partition's id.
CREATE TABLE topic (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE
) STRICT;

CREATE TABLE partition (
    id INTEGER PRIMARY KEY,
    topic INTEGER NOT NULL REFERENCES topic,
    number INTEGER NOT NULL,
    start INTEGER NOT NULL DEFAULT 0, -- the oldest kept offset
    next INTEGER NOT NULL DEFAULT 0,  -- the next to be written
    UNIQUE (topic, number)
) STRICT;

-- A run of records that is deleted as one, and found by time as one.
CREATE TABLE segment (
    partition INTEGER NOT NULL REFERENCES partition,
    first INTEGER NOT NULL,
    next INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    appended_ms INTEGER NOT NULL, -- when its last record was written
    latest_ms INTEGER NOT NULL,   -- the greatest timestamp of the partition up to its end, so never falling
    PRIMARY KEY (partition, first)
) STRICT, WITHOUT ROWID;

CREATE TABLE committed (
    consumer_group TEXT NOT NULL,
    partition INTEGER NOT NULL REFERENCES partition,
    next INTEGER NOT NULL, -- the next to be read
    PRIMARY KEY (consumer_group, partition)
) STRICT, WITHOUT ROWID;
