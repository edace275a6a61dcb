//! `cargo xtask demo`: the main job on one screen, with nothing installed beside the toolchain.
//!
//! It starts the host with the embedded log, posts orders over HTTP, drops in a second handler and swaps the first while
//! posting goes on, and counts from outside whether anything was lost or repeated.

mod checks;
mod orders;
mod place;

use std::collections::VecDeque;
use std::process::Command;
use std::sync::Mutex;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};

use self::checks::Ledger;
use self::orders::Orders;
use self::place::Place;

/// Flags of the demo.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Ends after the checks, with exit code 0 or 1
    #[arg(long)]
    once: bool,
    /// How many orders to post; one in fifty is a bad one
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u32).range(100..=1_000_000))]
    orders: u32,
}

/// Orders of one POST.
const POST_RECORDS: usize = 20;
/// Clients that post at once.
const CLIENTS: usize = 4;
/// How often to look whether the host still runs.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// How long the pipeline may take to finish after the last POST.
const SETTLE_DEADLINE: Duration = Duration::from_secs(60);

pub(crate) fn run(args: &Args) -> Result<()> {
    build()?;
    let place = Place::new()?;
    let mut host = place.start()?;
    let result = play(&place, args.orders);
    if let Err(error) = &result {
        eprintln!("\nThe host's last words:\n{}", host.log_tail());
        eprintln!("The demo failed: {error:#}");
    }
    if result.is_ok() && !args.once {
        println!("{}", place.invitation()?);
        // Ctrl-C ends this process, and with it the host.
        while host.exited()?.is_none() {
            thread::sleep(LOOK_INTERVAL);
        }
    }
    host.terminate(Duration::from_secs(30))?;
    result
}

fn build() -> Result<()> {
    println!(
        "Building the host. The first time this compiles wasmtime and librdkafka: about 8 minutes on two cores; afterwards seconds."
    );
    let started = Instant::now();
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(xtask::tree::root()).args(["build", "--quiet", "--package", "tidemill"]);
    if !has_openssl() {
        println!("OpenSSL's headers are not installed: it is compiled from source too.");
        cargo.args(["--features", "ssl-vendored"]);
    }
    ensure!(cargo.status().context("can't run cargo")?.success(), "the build failed; the compiler's message is above");
    println!("Built in {:.0?}.\n", started.elapsed());
    Ok(())
}

fn has_openssl() -> bool {
    Command::new("pkg-config").args(["--exists", "openssl"]).status().is_ok_and(|status| status.success())
}

/// The story: post, drop in, swap, settle, count.
fn play(place: &Place, count: u32) -> Result<()> {
    let orders = Orders::new(count);
    let bar = ProgressBar::new(u64::from(count)).with_style(
        ProgressStyle::with_template("{msg:<34} [{bar:40}] {pos}/{len} {elapsed}").context("a valid template")?,
    );
    bar.set_message("posting orders");
    let work: Mutex<VecDeque<_>> = Mutex::new(orders.posts(POST_RECORDS).collect());
    let (accepted, answers) = mpsc::channel();
    let ledger = thread::scope(|scope| -> Result<Ledger> {
        for _ in 0..CLIENTS {
            let accepted = accepted.clone();
            let work = &work;
            scope.spawn(move || post_all(place, work, &accepted));
        }
        drop(accepted);
        let mut ledger = Ledger::default();
        let (mut dropped_in, mut swapped) = (false, false);
        for answer in answers {
            let posted: orders::Post = answer?;
            bar.inc(posted.orders.len() as u64);
            ledger.accepted(posted);
            if !dropped_in && bar.position() > u64::from(count) / 3 {
                place.drop_in_audit()?;
                bar.println("dropped in handlers/audit: a second handler on the same topic, with a group of its own");
                dropped_in = true;
            }
            if !swapped && bar.position() > u64::from(count) / 2 {
                let digest = place.swap_orders()?;
                bar.println(format!(
                    "swapped handlers/orders/orders.wasm for another build ({digest}) while orders keep coming"
                ));
                swapped = true;
            }
        }
        Ok(ledger)
    })?;
    bar.finish_with_message("posted");
    let settled = place.wait_until_settled(SETTLE_DEADLINE)?;
    println!("all handlers are at the end of their topics after {settled:.1?}\n");
    checks::check(place, &ledger)
}

fn post_all(place: &Place, work: &Mutex<VecDeque<orders::Post>>, accepted: &mpsc::Sender<Result<orders::Post>>) {
    loop {
        let next = work.lock().ok().and_then(|mut work| work.pop_front());
        let Some(post) = next else { return };
        let answer = place.post(&post).map(|()| post);
        let failed = answer.is_err();
        if accepted.send(answer).is_err() || failed {
            return;
        }
    }
}
