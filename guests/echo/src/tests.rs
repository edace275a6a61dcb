use serde_json::json;
use tidemill_guest::Result;
use tidemill_guest::testing::{Host, record, tombstone};

use super::handle;

#[test]
fn every_field_is_told_and_null_is_not_empty() -> Result<()> {
    let host = Host::new();
    let odd = record([0, 0xff]).with_key("").with_header("h", "1").with_header("h", [0xfe]).with_attempt(3);
    let outcomes = host.call(handle, [odd, tombstone()]);
    let told: Vec<serde_json::Value> = outcomes
        .iter()
        .flat_map(|outcome| outcome.outputs())
        .map(|output| serde_json::from_slice(output.value.as_deref().unwrap_or_default()))
        .collect::<Result<_, _>>()?;
    let expected = json!([
        {
            "id": "test/0/0/0", "topic": "test", "partition": 0, "offset": 0, "timestamp_type": "create-time", "timestamp_ms": 0,
            "key": "", "value": "00ff", "headers": [["h", "31"], ["h", "fe"]], "attempt": 3,
        },
        {
            "id": "test/0/1/0", "topic": "test", "partition": 0, "offset": 1, "timestamp_type": "create-time", "timestamp_ms": 0,
            "key": null, "value": null, "headers": [], "attempt": 1,
        },
    ]);
    assert_eq!(serde_json::Value::from(told), expected);
    Ok(())
}
