//! `tidemill check`: everything that `run` would refuse, without starting anything.

use std::path::Path;

use super::Failure;
use crate::app;
use crate::config::{Config, Problem};

/// Checks the configuration, every manifest and every guest.
pub fn check(path: &Path) -> Result<(), Failure> {
    let config = configuration(path)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let names = runtime.block_on(app::check(config))?;
    let handlers = if names.is_empty() { "no handlers".to_owned() } else { names.join(", ") };
    super::say(&format!("{}: fine ({handlers})", path.display()))?;
    Ok(())
}

/// Reads the configuration, or says everything that is wrong with it.
pub fn configuration(path: &Path) -> Result<Config, Failure> {
    Config::read(path).map_err(|problems| Failure::Refused(problems.iter().map(Problem::to_string).collect()))
}
