//! Logs: lines for people on a terminal, JSON otherwise, on standard error.
//!
//! What a level means, so that an operator knows when to look:
//!
//! - ERROR: look now. Something does not go on by itself: a handler is refused or has stopped.
//! - WARN: look tomorrow. It goes on, but worse: a broker is away, a dead letter was written.
//! - INFO: what an operator would tell a colleague: started, a revision went live, partitions came and went, drained.
//! - DEBUG: a turn off the normal way: a retry, a request that was refused.
//! - TRACE: each record. The only level at which keys and values may appear.
//!
//! A log line has fields (`handler`, `revision`, `topic`, `partition`, `offset`), and its text is the same each time.

use std::io::IsTerminal;

use tracing::Subscriber;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::util::SubscriberInitExt;

/// How a log line is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// A line for people.
    Human,
    /// One JSON object a line, for machines.
    Json,
}

/// Logging that could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum InvalidLog {
    /// Not a level and no directives.
    #[error(
        "`{directives}` does not say what to log ({cause}); write a level such as `info`, or `info,tidemill::consumer=debug`"
    )]
    Directives {
        /// What was written.
        directives: String,
        /// What is wrong with it.
        cause: String,
    },
    /// Somebody set up logging before.
    #[error("logging is set up twice in one process")]
    Twice,
}

/// Sets up logging for the whole process: what is logged, and how (`None`: by where standard error goes).
pub fn install(directives: &str, format: Option<Format>) -> Result<(), InvalidLog> {
    let terminal = std::io::stderr().is_terminal();
    let format = format.unwrap_or(if terminal { Format::Human } else { Format::Json });
    let subscriber = subscriber(directives, format, terminal, std::io::stderr)?;
    subscriber.try_init().map_err(|_| InvalidLog::Twice)
}

fn subscriber<W>(
    directives: &str,
    format: Format,
    colours: bool,
    writer: W,
) -> Result<Box<dyn Subscriber + Send + Sync>, InvalidLog>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let filter = EnvFilter::builder()
        .parse(directives)
        .map_err(|cause| InvalidLog::Directives { directives: directives.to_owned(), cause: cause.to_string() })?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    Ok(match format {
        Format::Human => Box::new(lines.with_ansi(colours).with_target(false).finish()),
        Format::Json => Box::new(lines.json().flatten_event(true).with_span_list(false).finish()),
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(directives: &str, format: Format) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = subscriber(directives, format, false, move || writer.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(handler = "orders", offset = 7, "the handler runs");
            tracing::debug!("a turn off the normal way");
        });
        let bytes = lines.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn fields_are_members_of_the_json_object() {
        let text = logged("info", Format::Json);
        let line: serde_json::Value = serde_json::from_str(&text).expect("one line is one object");
        assert_eq!(line["handler"], "orders");
        assert_eq!(line["offset"], 7);
        assert_eq!(line["level"], "INFO");
        assert_eq!(line["message"], "the handler runs");
    }

    #[test]
    fn people_read_level_text_and_fields_on_one_line() {
        let text = logged("info", Format::Human);
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.contains("INFO the handler runs handler=\"orders\" offset=7"), "{text}");
    }

    #[test]
    fn directives_choose_what_is_logged() {
        assert_eq!(logged("debug", Format::Human).lines().count(), 2);
        assert_eq!(logged("error", Format::Human), "");
        let wrong =
            subscriber("tidemill=loud", Format::Json, false, std::io::sink).err().map(|error| error.to_string());
        assert!(wrong.is_some_and(|text| text.contains("`tidemill=loud`") && text.contains("write a level")));
    }
}
