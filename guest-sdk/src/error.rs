//! How a record ends when it does not simply end well.

use std::any::Any;
use std::fmt::Display;
use std::time::Duration;

use crate::{Guarantee, Outcome, Reason, RetryRequest, Setup, config, kv, producer, sql};

/// What a handler returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// How a record ends, other than handled. Outputs emitted before are dropped.
///
/// `?` makes one of any [`std::error::Error`]: a capability that is away becomes `Retry` (and nobody's fault), everything else `DeadLetter`.
#[derive(Debug, Clone, PartialEq)]
pub enum Error {
    /// Not for this handler: settled, and counted apart.
    Skip,
    /// Later. The operator's retry policy says how often.
    Retry(RetryRequest),
    /// Never going to work: dead letter at once.
    DeadLetter(Reason),
}

/// Ends the record as not for this handler: `return skip();`
pub fn skip<T>() -> Result<T> {
    Err(Error::Skip)
}

/// Ends the attempt; the record comes again later: `return retry("no-stock-yet", "warehouse answers tomorrow");`
pub fn retry<T>(code: &str, detail: impl Display) -> Result<T> {
    Err(Error::retry(code, detail))
}

/// Ends the record as a dead letter: `return dead_letter("negative-amount", amount);`
pub fn dead_letter<T>(code: &str, detail: impl Display) -> Result<T> {
    Err(Error::dead_letter(code, detail))
}

impl Error {
    /// Later, by the operator's back-off.
    pub fn retry(code: &str, detail: impl Display) -> Self {
        Self::Retry(RetryRequest { after_ms: None, reason: reason(code, detail), unavailable: false })
    }

    /// Never: a dead letter.
    pub fn dead_letter(code: &str, detail: impl Display) -> Self {
        Self::DeadLetter(reason(code, detail))
    }

    /// Later, because a dependency is away. The host believes it only if a capability call of this attempt failed so.
    pub fn unavailable(code: &str, detail: impl Display) -> Self {
        Self::Retry(RetryRequest { after_ms: None, reason: reason(code, detail), unavailable: true })
    }

    /// Asks for a certain delay instead of the operator's back-off. Changes nothing unless this is a retry.
    pub fn after(mut self, delay: Duration) -> Self {
        if let Self::Retry(request) = &mut self {
            request.after_ms = Some(u32::try_from(delay.as_millis()).unwrap_or(u32::MAX));
        }
        self
    }
}

impl From<Error> for Outcome {
    fn from(error: Error) -> Self {
        match error {
            Error::Skip => Outcome::Skip,
            Error::Retry(request) => Outcome::Retry(request),
            Error::DeadLetter(reason) => Outcome::DeadLetter(reason),
        }
    }
}

impl<E: std::error::Error + 'static> From<E> for Error {
    fn from(error: E) -> Self {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
        while let Some(link) = cause {
            if let Some(known) = of_capability(link) {
                return known;
            }
            cause = link.source();
        }
        Self::dead_letter("handler-error", with_causes(&error))
    }
}

/// What a capability's own error means for the record, also when an author's error type wraps it.
fn of_capability(error: &(dyn std::error::Error + 'static)) -> Option<Error> {
    if let Some(error) = error.downcast_ref::<sql::Error>() {
        return Some(sql::ending(error));
    }
    if let Some(error) = error.downcast_ref::<kv::Error>() {
        return Some(kv::ending(error));
    }
    if let Some(error) = error.downcast_ref::<config::Error>() {
        return Some(config::ending(error));
    }
    error.downcast_ref::<producer::Error>().map(producer::ending)
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(link) = cause {
        text.push_str(": ");
        text.push_str(&link.to_string());
        cause = link.source();
    }
    text
}

fn reason(code: &str, detail: impl Display) -> Reason {
    Reason { code: code.to_owned(), detail: detail.to_string() }
}

/// Why a guest does not go live: what an `init` function returns as its error.
///
/// `?` makes one of any [`std::error::Error`].
#[derive(Debug, Clone, PartialEq)]
pub struct Refusal(
    /// The code and the text that the operator reads.
    pub Reason,
);

impl Refusal {
    /// Refuses with a text for the operator, who reads it in the log: say what is missing and how to give it.
    pub fn new(code: &str, detail: impl Display) -> Self {
        Self(reason(code, detail))
    }
}

impl<E: std::error::Error + 'static> From<E> for Refusal {
    fn from(error: E) -> Self {
        let any: &dyn Any = &error;
        match any.downcast_ref::<config::Error>() {
            Some(error) => Self::new("config", error),
            None => Self::new("init", with_causes(&error)),
        }
    }
}

impl Setup {
    /// Refuses to run unless the host promises this around each call: what a handler's `init` begins with that would be wrong otherwise.
    pub fn require(&self, guarantee: Guarantee) -> Result<(), Refusal> {
        if self.guarantee == guarantee {
            return Ok(());
        }
        let wanted = match guarantee {
            Guarantee::AtMostOnce => "delivery = \"at-most-once\"",
            Guarantee::AtLeastOnce => "delivery = \"at-least-once\"",
            Guarantee::KafkaTransaction => "delivery = \"exactly-once\" with exactly_once.transaction = \"kafka\"",
            Guarantee::SqlTransaction => "delivery = \"exactly-once\" with exactly_once.transaction = \"sql.NAME\"",
        };
        Err(Refusal::new("guarantee", format_args!("this handler is right only with {wanted}; set it in handler.toml")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::DbError;

    #[test]
    fn a_dependency_that_is_away_means_later_and_blames_nobody() {
        check(kv::Error::Unavailable("refused".to_owned()), "later, nobody's fault: kv-unavailable");
        check(sql::Error::Unavailable("refused".to_owned()), "later, nobody's fault: sql-unavailable");
        check(sql::Error::Transient(db(Some("40001"), None)), "later, nobody's fault: sql-transient");
        check(sql::Error::OutcomeUnknown(db(None, None)), "later, nobody's fault: sql-outcome-unknown");
        check(producer::Error::OutcomeUnknown("time".to_owned()), "later, nobody's fault: producer-outcome-unknown");
    }

    #[test]
    fn bad_data_is_a_dead_letter() {
        check(sql::Error::Rejected(db(Some("23505"), None)), "never: sql-rejected");
        check(sql::Error::Rejected(db(None, Some("orders.id"))), "never: sql-rejected");
        check(sql::Error::BadParameter("$3".to_owned()), "never: sql-bad-parameter");
        check("x".parse::<u8>().expect_err("no number"), "never: handler-error");
    }

    #[test]
    fn what_the_operator_can_mend_is_tried_again() {
        check(sql::Error::Rejected(db(Some("42P01"), None)), "later: sql-rejected");
        check(sql::Error::AccessDenied("main".to_owned()), "later: sql-access-denied");
        check(kv::Error::NoSuchStore("seen".to_owned()), "later: kv-no-such-store");
        check(config::Error::Missing { key: "to".to_owned() }, "later: config");
    }

    #[test]
    fn an_error_of_a_capability_keeps_its_meaning_when_wrapped() {
        #[derive(Debug)]
        struct Mine(kv::Error);
        impl Display for Mine {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("mine")
            }
        }
        impl std::error::Error for Mine {
            fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
                Some(&self.0)
            }
        }
        check(Mine(kv::Error::Unavailable("refused".to_owned())), "later, nobody's fault: kv-unavailable");
    }

    #[test]
    fn a_delay_is_for_retries_only() {
        let Error::Retry(request) = Error::retry("later", "").after(Duration::from_secs(2)) else {
            panic!("is a retry")
        };
        assert_eq!(request.after_ms, Some(2000));
        assert_eq!(Error::Skip.after(Duration::from_secs(2)), Error::Skip);
    }

    fn db(sqlstate: Option<&str>, constraint: Option<&str>) -> DbError {
        DbError {
            sqlstate: sqlstate.map(str::to_owned),
            message: "no".to_owned(),
            constraint: constraint.map(str::to_owned),
        }
    }

    #[track_caller]
    fn check(error: impl Into<Error>, expected: &str) {
        let told = match error.into() {
            Error::Skip => "skip".to_owned(),
            Error::DeadLetter(reason) => format!("never: {}", reason.code),
            Error::Retry(request) if request.unavailable => format!("later, nobody's fault: {}", request.reason.code),
            Error::Retry(request) => format!("later: {}", request.reason.code),
        };
        assert_eq!(told, expected);
    }
}
