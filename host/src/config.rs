//! tidemill.toml and the environment → [`Config`], checked; binds nothing.

pub mod units;
