//! Means that tests of other rooms share.

pub(crate) mod watched;
