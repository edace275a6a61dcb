use tidemill_guest::testing::{Host, record, tombstone};
use tidemill_guest::{Result, params, sql};

use super::handle;

#[test]
fn each_record_is_noted_once_good_or_bad() -> Result<()> {
    let host = Host::new().sql("main", &[include_str!("../migrations/V1__audit.sql")]);
    for _redelivery in 0..2 {
        host.call(handle, [record("no order at all"), record(""), tombstone()]);
    }
    let rows = sql::open("main")?.query("SELECT value_bytes FROM audit ORDER BY record_id", params![])?;
    let sizes: Vec<Option<i64>> = rows.iter().map(|row| row.get(0)).collect::<Result<_, _>>()?;
    assert_eq!(sizes, [Some(15), Some(0), None]);
    Ok(())
}
