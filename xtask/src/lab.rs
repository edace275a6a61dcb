//! Real servers for tests and benchmarks: started in seconds on free ports, gone with the process that started them.

pub mod jars;
pub mod kafka;
pub mod port;
pub mod postgres;
pub mod process;
pub mod wait;
