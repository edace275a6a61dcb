//! Bounds that every key-value store has in common, and the checks against them.

use super::KeyValueError;

/// The longest key, in bytes.
pub(super) const KEY_BYTES_MAX: usize = 1024;
/// The longest list of keys or pairs in one call.
pub(super) const BATCH_KEYS_MAX: usize = 1000;
/// The most bytes of values in one call with many keys, sent or received.
pub(super) const BATCH_BYTES_MAX: usize = 16 << 20;
/// How many keys a page of a listing has.
pub(super) const PAGE_KEYS_MAX: usize = 1000;
/// How many expired keys a write clears away.
pub(super) const EXPIRED_CLEARED_MAX: usize = 64;

/// Milliseconds since the epoch; tests have a clock of their own.
pub(super) type Now = std::sync::Arc<dyn Fn() -> i64 + Send + Sync>;

/// The system's clock.
pub(super) fn system_clock() -> Now {
    std::sync::Arc::new(|| jiff::Timestamp::now().as_millisecond())
}

/// When a key that lives for `ttl` is gone.
pub(super) fn expiry(now_ms: i64, ttl: std::time::Duration) -> i64 {
    now_ms.saturating_add(i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX))
}

pub(super) fn check_key(key: &str) -> Result<(), KeyValueError> {
    within("the key", key.len(), KEY_BYTES_MAX, "1024 bytes")
}

pub(super) fn check_value(value: &[u8], max: usize) -> Result<(), KeyValueError> {
    within("the value", value.len(), max, "value_bytes_max")
}

/// The bounds of a call with many keys.
pub(super) fn check_batch(keys: usize) -> Result<(), KeyValueError> {
    within("the list", keys, BATCH_KEYS_MAX, "1000 keys in one call")
}

/// Adds up the values of a call with many keys.
pub(super) fn check_batch_bytes(bytes: usize) -> Result<(), KeyValueError> {
    within("the list's values", bytes, BATCH_BYTES_MAX, "16 MiB in one call")
}

fn within(what: &'static str, given: usize, max: usize, limit: &'static str) -> Result<(), KeyValueError> {
    if given <= max {
        return Ok(());
    }
    Err(KeyValueError::TooLarge { what, given: given as u64, max: max as u64, limit })
}

/// What a counter is after `delta` was added: decimal text, as Redis and others keep it.
pub(super) fn added(key: &str, value: Option<&[u8]>, delta: u64) -> Result<u64, KeyValueError> {
    let current = match value {
        None => 0,
        Some(bytes) => std::str::from_utf8(bytes)
            .ok()
            .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))
            .and_then(|text| text.parse::<u64>().ok())
            .ok_or_else(|| KeyValueError::NotANumber { key: key.to_owned() })?,
    };
    current.checked_add(delta).ok_or_else(|| KeyValueError::Overflow { key: key.to_owned() })
}
