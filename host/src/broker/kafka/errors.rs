//! librdkafka's errors in the seam's words.

use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

use super::ffi::{Persistence, Report};
use crate::broker::{BrokerError, Outgoing, Position, SendError};

/// Whether an error says that a broker is away or too slow, and nothing about the request.
pub(super) fn is_absence(code: Code) -> bool {
    matches!(
        code,
        Code::BrokerTransportFailure
            | Code::AllBrokersDown
            | Code::OperationTimedOut
            | Code::RequestTimedOut
            | Code::MessageTimedOut
            | Code::TimedOutQueue
            | Code::Resolve
            | Code::Authentication
            | Code::SSL
            | Code::SaslAuthenticationFailed
            | Code::WaitingForCoordinator
            | Code::CoordinatorNotAvailable
            | Code::CoordinatorLoadInProgress
            | Code::NotCoordinator
            | Code::LeaderNotAvailable
            | Code::NotLeaderForPartition
            | Code::ReplicaNotAvailable
            | Code::BrokerNotAvailable
            | Code::NetworkException
            | Code::NotEnoughReplicas
            | Code::PurgeQueue
            | Code::PurgeInflight
            | Code::BrokerDestroy
            | Code::Fatal
            | Code::State
            | Code::KafkaStorageError
            | Code::ThrottlingQuotaExceeded
            | Code::NotController
    )
}

/// An error of a request about a topic.
pub(super) fn of_topic(code: Code, topic: &str, text: &str) -> BrokerError {
    match code {
        Code::UnknownTopic | Code::UnknownPartition | Code::UnknownTopicOrPartition | Code::InvalidTopic => {
            BrokerError::NoSuchTopic(topic.to_owned())
        }
        Code::TopicAlreadyExists => BrokerError::TopicExists(topic.to_owned()),
        code if is_absence(code) => BrokerError::Unavailable(text.to_owned()),
        _ => BrokerError::Rejected(text.to_owned()),
    }
}

/// The code inside of rdkafka's error.
pub(super) fn code_of(error: &KafkaError) -> Code {
    error.rdkafka_error_code().unwrap_or(Code::Fail)
}

/// What a caller is told of a record.
pub(super) fn outcome(record: &Outgoing, report: Option<Report>) -> Result<Position, SendError> {
    let Some(Report { code, persistence, partition, offset }) = report else {
        return Err(SendError::Unknown("the producer has no report of it".into()));
    };
    match (code, persistence) {
        (Code::NoError, _) => Ok(Position { partition, offset: offset.max(Position::UNKNOWN) }),
        (_, Persistence::No) => Err(refused(record, code)),
        (_, Persistence::Possible | Persistence::Yes) => Err(SendError::Unknown(code.to_string())),
    }
}

/// Why a record, which is surely not stored, was refused.
fn refused(record: &Outgoing, code: Code) -> SendError {
    match code {
        Code::QueueFull => SendError::QueueFull,
        Code::UnknownTopic | Code::InvalidTopic => SendError::NoSuchTopic(record.topic.to_string()),
        Code::UnknownPartition => SendError::NoSuchTopic(partition_name(record)),
        Code::UnknownTopicOrPartition => match record.partition {
            Some(_) => SendError::NoSuchTopic(partition_name(record)),
            None => SendError::NoSuchTopic(record.topic.to_string()),
        },
        Code::MessageSizeTooLarge | Code::InvalidMessageSize | Code::MessageBatchTooLarge => {
            let size =
                record.key.as_ref().map_or(0, |key| key.len()) + record.value.as_ref().map_or(0, |value| value.len());
            SendError::TooLarge(format!("{size} bytes of key and value; see `message.max.bytes`"))
        }
        Code::TopicAuthorizationFailed | Code::ClusterAuthorizationFailed => {
            SendError::Denied(record.topic.to_string())
        }
        code if is_absence(code) => SendError::Unavailable(code.to_string()),
        // The producer's own session is broken, which no record is to blame for; the client is made anew.
        Code::OutOfOrderSequenceNumber | Code::UnknownProducerId | Code::InvalidProducerEpoch | Code::Fatal => {
            SendError::Unknown(code.to_string())
        }
        code => SendError::Rejected(code.to_string()),
    }
}

fn partition_name(record: &Outgoing) -> String {
    match record.partition {
        Some(partition) => format!("{}/{partition}", record.topic),
        None => record.topic.to_string(),
    }
}
