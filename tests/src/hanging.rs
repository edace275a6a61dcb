//! Transactions that have ended for their coordinator and are open in partitions, and what an operator does about them.
//!
//! Kafka 4.3 and 4.4 leave such ones behind where a partition has no leader at the moment in which its transaction ends
//! (KAFKA-20734); a lone broker that was killed has no leaders while it starts. Whoever reads what is committed sees nothing
//! behind them until they are aborted by hand, as `docs/operations.md` says.

use anyhow::{Context, Result};
use xtask::lab::kafka::Kafka;

/// Minutes without a record after which an open transaction is looked into. Those of the tests last less than a second.
const MINUTES: &str = "1";

/// A transaction that nobody ends, in one partition.
#[derive(Debug, PartialEq, Eq)]
pub struct Hanging {
    topic: String,
    partition: String,
    start: String,
}

/// Those that are in this node's partitions for a minute or more.
pub fn find(kafka: &Kafka, node: u16) -> Result<Vec<Hanging>> {
    let asked = ["find-hanging", "--broker-id", &node.to_string(), "--max-transaction-timeout", MINUTES];
    parse(&kafka.command("TransactionsCommand", &asked)?)
}

/// Aborts it.
pub fn abort(kafka: &Kafka, Hanging { topic, partition, start }: &Hanging) -> Result<()> {
    let asked = ["abort", "--topic", topic, "--partition", partition, "--start-offset", start];
    kafka.command("TransactionsCommand", &asked).map(drop)
}

/// Reads the command's table.
fn parse(table: &str) -> Result<Vec<Hanging>> {
    let mut lines = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let heads = lines.find(|words| words.first() == Some(&"Topic")).context("the table has heads")?;
    let column = |name: &str| heads.iter().position(|head| *head == name).with_context(|| format!("no `{name}`"));
    let (partition, start) = (column("Partition")?, column("StartOffset")?);
    let row = |words: Vec<&str>| {
        let word = |at: usize| words.get(at).map(|word| (*word).to_owned()).context("a row is as long as the heads");
        Ok(Hanging { topic: word(0)?, partition: word(partition)?, start: word(start)? })
    };
    lines.filter(|words| !words.is_empty()).map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_table_is_read() {
        let table = "Topic\tPartition\tProducerId\tProducerEpoch\tCoordinatorEpoch\tStartOffset\tLastTimestamp\tDuration(min)\t\n\
                     to-1\t2\t1\t0\t0\t47\t1795658977089\t3\t\n";
        let found = parse(table).expect("it is one");
        assert_eq!(found, [Hanging { topic: "to-1".into(), partition: "2".into(), start: "47".into() }]);
        let nothing = table.lines().next().expect("the heads");
        assert_eq!(parse(nothing).expect("it is one"), []);
    }
}
