//! What a host says of itself at `/metrics`, in the Prometheus text format.

use std::collections::BTreeMap;

/// One reading of all samples.
#[derive(Debug, Default)]
pub struct Metrics {
    samples: Vec<Sample>,
}

#[derive(Debug)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

impl Metrics {
    /// Reads the text; lines that are not samples are left out.
    pub fn parse(text: &str) -> Metrics {
        Metrics { samples: text.lines().filter(|line| !line.starts_with('#')).filter_map(sample).collect() }
    }

    /// Records that are in calls of guests.
    pub fn in_flight(&self) -> f64 {
        self.sum("tidemill_invoke_in_flight_records", &[])
    }

    /// The sum of the samples with this name and at least these labels; 0 when there is none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let matching = |sample: &&Sample| {
            sample.name == name
                && labels.iter().all(|(label, value)| sample.labels.get(*label).is_some_and(|own| own == value))
        };
        self.samples.iter().filter(matching).map(|sample| sample.value).sum()
    }

    /// The different values of one label over all samples with this name.
    pub fn values_of(&self, name: &str, label: &str) -> Vec<String> {
        let named = self.samples.iter().filter(|sample| sample.name == name);
        let mut values: Vec<String> = named.filter_map(|sample| sample.labels.get(label).cloned()).collect();
        values.sort();
        values.dedup();
        values
    }
}

/// From `name{label="value",…} 1.5`. Label values of the host have no escapes but `\"`, `\\` and `\n`.
fn sample(line: &str) -> Option<Sample> {
    let (series, value) = line.rsplit_once(' ')?;
    let (name, rest) = series.split_once('{').unwrap_or((series, "}"));
    let mut labels = BTreeMap::new();
    let mut rest = rest.strip_suffix('}')?;
    while let Some((label, after)) = rest.split_once("=\"") {
        let end = closing_quote(after)?;
        labels.insert(label.trim_start_matches(',').to_owned(), unescaped(&after[..end]));
        rest = &after[end + 1..];
    }
    Some(Sample { name: name.to_owned(), labels, value: value.parse().ok()? })
}

fn closing_quote(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.bytes().position(|byte| {
        let closes = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        closes
    })
}

fn unescaped(text: &str) -> String {
    text.replace("\\\"", "\"").replace("\\n", "\n").replace("\\\\", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_add_up_by_name_and_labels() {
        let metrics = Metrics::parse(
            "# HELP x_total text\n\
             x_total{handler=\"a\",outcome=\"ack\"} 3\n\
             x_total{handler=\"a\",outcome=\"skip\"} 2\n\
             x_total{handler=\"b, \\\"c\\\"\",outcome=\"ack\"} 1.5\n\
             up 1\n\
             # EOF\n",
        );
        assert_eq!(metrics.sum("x_total", &[]), 6.5);
        assert_eq!(metrics.sum("x_total", &[("handler", "a")]), 5.0);
        assert_eq!(metrics.sum("x_total", &[("handler", "b, \"c\""), ("outcome", "ack")]), 1.5);
        assert_eq!(metrics.sum("up", &[]), 1.0);
        assert_eq!(metrics.sum("down", &[]), 0.0);
        assert_eq!(metrics.values_of("x_total", "outcome"), ["ack", "skip"]);
    }
}
