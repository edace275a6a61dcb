//! `tidemill offsets`: where a handler's group stands, and its way to another place.
//!
//! A host that runs the handler moves it without stopping; where no host does, the places are written for the group itself.

use serde_json::json;
use tidemill_core::record::{Offset, TopicPartition};

use super::client::{Client, ClientError, HostArgs, all_answered};
use super::{ConfigPath, Failure};
use crate::admin::{Elsewhere, MoveBody, MoveView, MovedView};
use crate::app;
use crate::broker::{Point, Selection};
use crate::config::Config;
use crate::fleet::Reset;

/// Flags of `tidemill offsets`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigPath,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Shows for each partition what is kept, what the group has committed and how far that is behind.
    Show {
        /// The handler.
        handler: String,
        /// Prints one line of JSON for each partition.
        #[arg(long)]
        json: bool,
    },
    /// Lets a handler begin elsewhere, also after a restart: by the host that runs it, or, where none does, by itself.
    Reset(ResetArgs),
}

#[derive(Debug, clap::Args)]
struct ResetArgs {
    /// The handler.
    handler: String,
    /// Where to begin in each partition: `earliest`, `latest`, an offset, or a time such as `2026-11-21T09:00:00Z`.
    #[arg(long, value_name = "WHERE")]
    to: Point,
    /// Only this one of the handler's topics.
    #[arg(long, short)]
    topic: Option<String>,
    /// Only this partition.
    #[arg(long, short)]
    partition: Option<i32>,
    /// Says what would be done, and does nothing.
    #[arg(long)]
    dry_run: bool,
    /// Prints what was done as JSON.
    #[arg(long)]
    json: bool,
    /// The admin addresses of the hosts that run the handler, `URL,URL`; by default the one in the configuration, with its
    /// token.
    #[arg(long, env = "TIDEMILL_ADMIN", value_name = "URL", value_delimiter = ',')]
    admin: Vec<String>,
    /// The environment variable that holds the hosts' admin token.
    #[arg(long, value_name = "NAME")]
    token_env: Option<String>,
}

/// Where a group stands in one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stands {
    pub(crate) of: TopicPartition,
    /// The oldest kept offset.
    pub(crate) start: Offset,
    /// The next to be written.
    pub(crate) end: Offset,
    /// What the group has committed.
    pub(crate) committed: Option<Offset>,
    /// Where the handler keeps its offsets in a database: what its row says.
    pub(crate) row: Option<Offset>,
    /// Who holds it, as far as that is known.
    pub(crate) owner: Option<String>,
}

impl Stands {
    /// Where the handler goes on: the database counts more than the group.
    pub(crate) fn next(&self) -> Option<Offset> {
        self.row.or(self.committed)
    }

    fn lag(&self) -> Option<Offset> {
        self.next().map(|next| (self.end - next).max(0))
    }
}

/// Does what the command says and prints the answer.
pub fn run(args: Args) -> Result<(), Failure> {
    let config = super::check::configuration(&args.config.config)?;
    match args.command {
        Command::Show { handler, json } => {
            let stands = super::block_on(app::offsets::stands(&config, &handler))?;
            let lines = if json { stands.iter().map(json_line).collect() } else { table(&stands) };
            lines.iter().try_for_each(|line| super::say(line))?;
            Ok(())
        }
        Command::Reset(reset) => {
            let (view, failed) = reset.carry_out(&config)?;
            let text = if reset.json { as_json(&view)? } else { text(&view) };
            super::say(&text)?;
            all_answered(&failed)?;
            match view.elsewhere.len() {
                0 => Ok(()),
                left => Err(Failure::Failed(anyhow::anyhow!(
                    "{left} partitions are held elsewhere and are where they were; ask the hosts that hold them, with --admin URL,URL"
                ))),
            }
        }
    }
}

impl ResetArgs {
    /// Asks the hosts; where nobody answers that was not named, the group is moved without one. Answers why some did not.
    fn carry_out(&self, config: &Config) -> Result<(MoveView, Vec<ClientError>), Failure> {
        if !self.admin.is_empty() {
            let hosts = HostArgs::new(self.admin.clone(), self.token_env.clone());
            return Ok(hosts.ask(|client| client.move_offsets(&self.handler, &self.wish()), MoveView::and)?);
        }
        if let Some(client) = self.configured(config)? {
            match client.move_offsets(&self.handler, &self.wish()) {
                Err(ClientError::NoHost { url, .. }) => {
                    tracing::info!(url, "no host answers there; the group is moved without one");
                }
                answer => return Ok((answer?, Vec::new())),
            }
        }
        Ok((super::block_on(app::offsets::move_group(config, &self.handler, &self.reset()))?, Vec::new()))
    }

    /// The host of the configuration, with its token.
    fn configured(&self, config: &Config) -> Result<Option<Client>, Failure> {
        let Some((admin, url)) = config.admin.as_ref().and_then(|admin| Some((admin, admin.url()?))) else {
            return Ok(None);
        };
        Ok(Some(match admin.token.as_ref().filter(|_| self.token_env.is_none()) {
            Some(token) => Client::new(&url, Some(token.read(&config.folder)?.expose().to_owned())),
            None => HostArgs::new(vec![url], self.token_env.clone()).client()?,
        }))
    }

    fn wish(&self) -> MoveBody {
        let (topic, partition) = (self.topic.clone(), self.partition);
        MoveBody { to: self.to.to_string(), topic, partition, dry_run: self.dry_run }
    }

    fn reset(&self) -> Reset {
        let which = Selection { topic: self.topic.clone(), partition: self.partition };
        Reset { to: self.to, which, dry_run: self.dry_run }
    }
}

fn json_line(stands: &Stands) -> String {
    json!({
        "topic": &*stands.of.topic,
        "partition": stands.of.partition,
        "earliest": stands.start,
        "end": stands.end,
        "committed": stands.committed,
        "in_database": stands.row,
        "lag": stands.lag(),
        "held_by": stands.owner,
    })
    .to_string()
}

/// Aligned columns; that of the database only where there is one.
fn table(all: &[Stands]) -> Vec<String> {
    let with_rows = all.iter().any(|stands| stands.row.is_some());
    let mut rows =
        vec![["PARTITION", "EARLIEST", "COMMITTED", "IN DATABASE", "END", "LAG", "HELD BY"].map(str::to_owned)];
    rows.extend(all.iter().map(|stands| {
        let known = |offset: Option<Offset>| offset.map_or_else(|| "-".to_owned(), |offset| offset.to_string());
        [
            stands.of.to_string(),
            stands.start.to_string(),
            known(stands.committed),
            known(stands.row),
            stands.end.to_string(),
            known(stands.lag()),
            stands.owner.clone().unwrap_or_else(|| "-".to_owned()),
        ]
    }));
    let widths: [usize; 7] =
        std::array::from_fn(|at| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0));
    let line = |row: &[String; 7]| {
        let cells = row.iter().zip(widths).enumerate().filter(|(at, _)| *at != 3 || with_rows);
        let cells: Vec<String> = cells.map(|(_, (cell, width))| format!("{cell:width$}")).collect();
        cells.join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

fn text(view: &MoveView) -> String {
    let verb = if view.dry_run { "would begin" } else { "begin" };
    let mut lines = vec![format!("{}: {} partitions {verb} elsewhere", view.handler, view.moved.len())];
    lines.extend(view.moved.iter().map(|MovedView { topic, partition, from, to }| {
        let from = from.map_or_else(|| "-".to_owned(), |from| from.to_string());
        format!("  {topic}/{partition}  {from} -> {to}")
    }));
    lines.extend(view.elsewhere.iter().map(|Elsewhere { topic, partition, owner }| {
        let owner = owner.as_deref().unwrap_or("another host");
        format!("  {topic}/{partition}  is held by {owner}: ask that host too, with --admin URL,URL")
    }));
    lines.join("\n")
}

fn as_json(view: &MoveView) -> Result<String, Failure> {
    Ok(serde_json::to_string(view)?)
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    fn stands(partition: i32, committed: Option<Offset>, row: Option<Offset>) -> Stands {
        let owner = (partition == 0).then(|| "10.0.0.1 (tidemill)".to_owned());
        Stands { of: TopicPartition::new("orders", partition), start: 5, end: 120, committed, row, owner }
    }

    #[test]
    fn the_database_counts_more_than_the_group() {
        expect![[r#"
            PARTITION  EARLIEST  COMMITTED  IN DATABASE  END  LAG  HELD BY
            orders/0   5         100        110          120  10   10.0.0.1 (tidemill)
            orders/1   5         -          -            120  -    -"#]]
        .assert_eq(&table(&[stands(0, Some(100), Some(110)), stands(1, None, None)]).join("\n"));
        expect![[r#"
            PARTITION  EARLIEST  COMMITTED  END  LAG  HELD BY
            orders/0   5         100        120  20   10.0.0.1 (tidemill)"#]]
        .assert_eq(&table(&[stands(0, Some(100), None)]).join("\n"));
    }

    #[test]
    fn a_reset_says_what_moved_and_whom_to_ask_for_the_rest() {
        let moved = MovedView { topic: "orders".to_owned(), partition: 0, from: Some(100), to: 5 };
        let elsewhere = Elsewhere { topic: "orders".to_owned(), partition: 1, owner: Some("10.0.0.2 (b)".to_owned()) };
        let view =
            MoveView { handler: "orders".to_owned(), dry_run: false, moved: vec![moved], elsewhere: vec![elsewhere] };
        expect![[r#"
            orders: 1 partitions begin elsewhere
              orders/0  100 -> 5
              orders/1  is held by 10.0.0.2 (b): ask that host too, with --admin URL,URL"#]]
        .assert_eq(&text(&view));
    }
}
