CREATE TABLE weather (
    origin     TEXT NOT NULL,
    time_hour  TEXT NOT NULL,
    year       BIGINT,
    month      BIGINT,
    day        BIGINT,
    hour       BIGINT,
    temp       DOUBLE PRECISION,
    dewp       DOUBLE PRECISION,
    humid      DOUBLE PRECISION,
    wind_dir   DOUBLE PRECISION,
    wind_speed DOUBLE PRECISION,
    wind_gust  DOUBLE PRECISION,
    precip     DOUBLE PRECISION,
    pressure   DOUBLE PRECISION,
    visib      DOUBLE PRECISION,
    PRIMARY KEY (origin, time_hour)
);
