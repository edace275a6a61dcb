//! `cargo xtask lab`: the tests' servers, for trying things by hand.

use std::thread;

use anyhow::Result;
use xtask::lab::kafka::Kafka;
use xtask::lab::postgres::Postgres;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Kafka nodes to start: 0, 1 or 3
    #[arg(long, default_value_t = 1)]
    nodes: u16,
    /// Start PostgreSQL as well
    #[arg(long)]
    postgres: bool,
}

/// Serves until Ctrl-C, which the servers do not survive.
pub(crate) fn run(args: &Args) -> Result<()> {
    let kafka = (args.nodes > 0).then(|| Kafka::start_nodes(args.nodes)).transpose()?;
    if let Some(kafka) = &kafka {
        eprintln!("kafka     {}", kafka.bootstrap());
    }
    let postgres = args.postgres.then(Postgres::start_new).transpose()?;
    if let Some(postgres) = &postgres {
        eprintln!("postgres  {}", postgres.url("postgres"));
    }
    eprintln!("Ctrl-C stops them and removes their data.");
    loop {
        thread::park();
    }
}
