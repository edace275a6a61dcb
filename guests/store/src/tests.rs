use tidemill_guest::testing::{Host, record, tombstone};
use tidemill_guest::{Outcome, Result, params, sql};

use super::handle;

#[test]
fn bytes_are_stored_as_they_are_and_once() -> Result<()> {
    let host = Host::new().sql("main", &[include_str!("../migrations/V1__seen.sql")]);
    for _redelivery in 0..2 {
        let outcomes = host.call(handle, [record([0xff, 0]).with_key("k"), tombstone(), record("")]);
        assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Ack(vec![])));
    }
    let rows = sql::open("main")?.query("SELECT key, value FROM seen ORDER BY record_id", params![])?;
    let rows: Vec<[Option<Vec<u8>>; 2]> =
        rows.iter().map(|row| Ok([row.get("key")?, row.get("value")?])).collect::<Result<_>>()?;
    assert_eq!(rows, [[Some(b"k".to_vec()), Some(vec![0xff, 0])], [None, None], [None, Some(vec![])]]);
    Ok(())
}
