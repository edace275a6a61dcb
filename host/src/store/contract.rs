//! What every store promises, checked on each of them: the promises are the tests' names.
//!
//! A new implementation calls the macro with a function that opens an empty store. The databases that need a server do
//! so in the package `tests`.

#[cfg(test)]
pub(crate) mod key_value;
pub mod offsets;
pub mod sql;

/// Makes a test of each promise of the named contract, on what `$open` gives.
#[doc(hidden)]
#[macro_export]
macro_rules! store_contract {
    (sql, $open:path) => {
        $crate::store_contract!(@each $open, $crate::store::contract::sql,
            parameters_go_by_number, values_read_back_exactly, rows_beyond_a_bound_are_cut_off_and_said_to_be,
            execute_counts_what_it_changed, execute_many_is_all_or_none, a_parameter_that_is_missing_is_the_guests_move,
            a_transaction_shows_itself_only_when_it_is_committed, a_dropped_transaction_is_rolled_back,
            a_failed_statement_ends_its_transaction, a_broken_constraint_is_named, a_guest_stays_within_its_database,
            a_guest_cannot_end_a_transaction_by_statement, waiting_for_a_connection_is_bounded,
            a_slow_statement_is_stopped, an_abandoned_call_gives_its_connection_back,
            an_abandoned_call_in_a_transaction_keeps_nothing, redelivered_records_count_once,
            migrations_are_applied_once_and_in_order, hosts_that_start_together_apply_migrations_once,
            a_failed_migration_leaves_nothing_and_is_named, an_applied_migration_must_stay
        );
        $crate::store_contract!(@each $open, $crate::store::contract::offsets,
            a_delivery_and_its_offset_last_together, a_new_owner_shuts_the_old_one_out,
            an_offset_is_stored_on_top_of_the_last_alone, a_failed_statement_ends_its_delivery,
            owners_that_come_together_come_one_after_another, a_new_owner_reads_all_that_the_old_one_ever_stores,
            each_group_and_partition_has_a_row_of_its_own, a_guest_cannot_write_the_offsets
        );
    };
    (key_value, $open:path) => {
        $crate::store_contract!(@each $open, $crate::store::contract::key_value,
            what_is_set_is_there, what_is_deleted_is_gone, expired_keys_are_gone, a_plain_set_drops_the_expiry,
            counters_add_up_from_many_at_once, what_is_no_counter_stays_as_it_is,
            a_claim_is_one_records, an_expired_claim_is_anybodys, many_claimants_have_one_winner,
            many_keys_at_once, a_listing_has_each_key_once, what_is_too_large_is_refused, a_full_store_says_so
        );
    };
    (@each $open:path, $contract:path, $($promise:ident),+) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $promise() {
                use $contract as contract;
                contract::$promise($open().await).await;
            }
        )+
    };
}
