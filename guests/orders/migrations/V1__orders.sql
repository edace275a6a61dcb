CREATE TABLE orders (
    id           TEXT   NOT NULL PRIMARY KEY,
    customer     TEXT   NOT NULL,
    amount_cents BIGINT NOT NULL,
    record_id    TEXT   NOT NULL
);

CREATE TABLE customer_totals (
    customer     TEXT   NOT NULL PRIMARY KEY,
    orders       BIGINT NOT NULL,
    amount_cents BIGINT NOT NULL
);
