//! What threads share in this room, in the orders that they may come in.

#[path = "../pool.rs"]
#[allow(clippy::duplicate_mod, dead_code, reason = "compiled once more, for what is tested of it")]
mod pool;

use std::sync::Arc;

use shuttle::thread;

use self::pool::Pool;
use crate::sync::tests as sync;

/// REV-2: an instance that comes back while its revision is retired is not kept, whoever is first.
#[test]
fn a_retired_revision_keeps_no_instance() {
    sync::in_any_order(|| {
        let pool = Arc::new(Pool::new());
        pool.keep(0);
        let calls = [1, 2].map(|instance| {
            let pool = Arc::clone(&pool);
            thread::spawn(move || {
                let used = pool.take().unwrap_or(instance);
                pool.keep(used);
            })
        });
        pool.close();
        calls.into_iter().for_each(|call| call.join().expect("it ends"));
        assert_eq!(pool.len(), 0, "REV-2: nobody uses them, and they hold their room");
    });
}

/// One instance is in one call.
#[test]
fn an_idle_instance_goes_to_one_call() {
    sync::in_any_order(|| {
        let pool = Arc::new(Pool::new());
        pool.keep(7);
        let takes = [(); 2].map(|()| {
            let pool = Arc::clone(&pool);
            thread::spawn(move || pool.take())
        });
        pool.drop_if(|_| false);
        let taken = takes.into_iter().filter_map(|take| take.join().expect("it ends")).count();
        assert_eq!(taken, 1);
    });
}
