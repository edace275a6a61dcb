use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tidemill_core::retry::Class;

use super::*;

/// Metrics with at least one series in each family.
fn full() -> (Metrics, PartitionMetrics) {
    let metrics = Metrics::new();
    let orders = metrics.handler("orders");
    orders.host_call("sql", HostCallResult::Ok);
    orders.live("0123456789abcdef");
    let topic = "orders".into();
    metrics.ingest().answered(&topic, 200, Duration::from_millis(3));
    metrics.ingest().stored(&topic, 2, 100);
    let partition = orders.partition("orders", 3);
    (metrics, partition)
}

#[test]
fn the_text_parses_and_each_family_has_a_help_and_is_there_once() {
    let (metrics, _partition) = full();
    let text = metrics.render();
    let families = check_text(&text);
    for (family, help) in &families {
        assert!(family.starts_with("tidemill_"), "`{family}` has no prefix");
        assert!(help.len() > 10, "`{family}` has no help");
    }
    assert_eq!(families.len(), text.matches("# TYPE ").count(), "a family is there twice");
    assert!(
        text.contains(r#"tidemill_settle_outcomes_total{handler="orders",revision="0123456789ab",outcome="ack"} 0"#)
    );
    assert!(text.contains(r#"tidemill_receive_lag_seconds{handler="orders",topic="orders",partition="3"} 0.0"#));
    assert!(text.contains(r#"tidemill_ingest_stored_bytes_total{topic="orders"} 100"#));
}

#[test]
fn the_operators_guide_lists_each_metric_and_no_other() {
    let (metrics, _partition) = full();
    let guide = include_str!("../../../docs/metrics.md");
    let listed: BTreeSet<&str> = guide
        .lines()
        .filter_map(|line| line.strip_prefix("| `tidemill_"))
        .filter_map(|rest| rest.split('`').next())
        .collect();
    let rendered = metrics.render();
    let mut there = BTreeSet::new();
    for line in rendered.lines() {
        if let Some((name, kind)) = line.strip_prefix("# TYPE tidemill_").and_then(|rest| rest.split_once(' ')) {
            there.insert(match kind {
                "counter" => format!("{name}_total"),
                "info" => format!("{name}_info"),
                _ => name.to_owned(),
            });
        }
    }
    assert_eq!(there.iter().map(String::as_str).collect::<BTreeSet<_>>(), listed);
}

#[test]
fn a_class_is_counted_under_its_own_name() {
    let metrics = Metrics::new();
    let orders = metrics.handler("orders");
    for class in [Class::Retry, Class::Rejected, Class::Trap, Class::Deadline, Class::Memory, Class::Malformed] {
        orders.dead_letters(class).inc();
        let series = format!(r#"settle_dead_letters_total{{handler="orders",class="{}"}} 1"#, class.name());
        assert!(metrics.render().contains(&series), "no {series}");
    }
    for (kind, name) in [(Rebalance::Assigned, "assigned"), (Rebalance::Revoked, "revoked"), (Rebalance::Lost, "lost")]
    {
        orders.rebalances(kind).inc();
        assert!(metrics.render().contains(&format!(r#"rebalances_total{{handler="orders",kind="{name}"}} 1"#)));
    }
    let revision = orders.revision("r");
    for (kind, name) in
        [(OutcomeKind::Ack, "ack"), (OutcomeKind::DeadLetter, "dead-letter"), (OutcomeKind::Untouched, "untouched")]
    {
        revision.outcomes(kind).inc_by(7);
        assert!(metrics.render().contains(&format!(r#"revision="r",outcome="{name}"}} 7"#)));
    }
}

#[test]
fn a_fifth_revision_takes_the_place_of_the_one_used_longest_ago() {
    let metrics = Metrics::new();
    let orders = metrics.handler("orders");
    for digest in ["a", "b", "c", "d", "a", "e"] {
        orders.revision(digest).calls.inc();
    }
    let text = metrics.render();
    let calls =
        |digest| text.contains(&format!(r#"tidemill_invoke_calls_total{{handler="orders",revision="{digest}"}}"#));
    assert_eq!(["a", "b", "c", "d", "e"].map(calls), [true, false, true, true, true]);
    assert!(!text.contains(r#"revision="b""#), "a series of the removed revision is left");
}

#[test]
fn one_revision_is_live() {
    let metrics = Metrics::new();
    let orders = metrics.handler("orders");
    orders.live("a");
    orders.live("b");
    let text = metrics.render();
    assert!(text.contains(r#"tidemill_guest_live{handler="orders",revision="a"} 0"#));
    assert!(text.contains(r#"tidemill_guest_live{handler="orders",revision="b"} 1"#));
}

#[test]
fn a_released_partition_leaves_no_series_and_a_new_assignment_keeps_them() {
    let metrics = Metrics::new();
    let orders = metrics.handler("orders");
    let earlier = orders.partition("orders", 0);
    let later = orders.partition("orders", 0);
    drop(earlier);
    later.position.set(42);
    assert!(
        metrics
            .render()
            .contains(r#"tidemill_receive_position_offset{handler="orders",topic="orders",partition="0"} 42"#)
    );
    drop(later);
    assert!(!metrics.render().contains(r#"topic="orders""#));
}

#[test]
fn a_removed_handler_leaves_no_series() {
    let (metrics, partition) = full();
    metrics.remove_handler("orders");
    assert!(!metrics.render().contains(r#"handler="orders""#));
    drop(partition);
    metrics.handler("orders").attempts.inc();
    assert!(metrics.render().contains(r#"tidemill_invoke_attempts_total{handler="orders"} 1"#), "it may come back");
}

/// Reads the text format as strictly as Prometheus does, and returns each family with its help.
fn check_text(text: &str) -> BTreeMap<&str, &str> {
    let mut families = BTreeMap::new();
    let mut family = "";
    let mut seen = BTreeSet::new();
    let (body, end) = text.rsplit_once("# EOF\n").expect("the text ends with its mark");
    assert_eq!(end, "");
    for line in body.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').expect("a help has a text");
            assert!(families.insert(name, help).is_none(), "`{name}` is there twice");
            family = name;
        } else if let Some(rest) = line.strip_prefix("# TYPE ").or_else(|| line.strip_prefix("# UNIT ")) {
            assert_eq!(rest.split(' ').next(), Some(family), "`{line}` is not under its family");
        } else {
            let (series, value) = line.rsplit_once(' ').expect("a sample has a value");
            assert!(value.parse::<f64>().is_ok(), "`{value}` is no number");
            assert!(series.starts_with(family), "`{series}` is not under its family `{family}`");
            assert!(seen.insert(series), "`{series}` is there twice");
        }
    }
    families
}
