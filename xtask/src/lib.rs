//! The chores' library: what tests and benchmarks need from outside the project.

pub mod lab;
pub mod tree;
