//! Builds a replay: the handler as the host would run it, on ranges of the log, perhaps with other stores.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::{Signals, embedded_log, end_at_once, end_in_any_case, handlers_refused, parts, refused};
use crate::attempt::Guarantee;
use crate::broker::kafka::Kafka;
use crate::broker::{Broker, Discard, Producer, Ranged};
use crate::cli::Failure;
use crate::cli::replay::{Args, Outputs, Told};
use crate::config::manifest::{self, HandlerSpec};
use crate::config::{self, Config, Problem};
use crate::fleet::Fleet;
use crate::metrics::Metrics;
use crate::replay::{self, Part, Replay, Report};
use crate::store::Sql;

/// How often it is noted how far a partition is.
const COMMIT_INTERVAL_MAX: Duration = Duration::from_millis(100);

/// Reads a range of the log once more through a handler.
pub(crate) async fn replay(args: &Args) -> Result<Report, Failure> {
    let mut config = crate::cli::check::configuration(&args.config.config)?;
    let spec = handler(&config, &args.handler)?;
    args.check(&spec)?;
    for set in &args.sets {
        config.replace(set).map_err(|problem| Failure::Refused(vec![problem.to_string()]))?;
    }
    // What another handler uses is not opened, nor made.
    config.sql.retain(|name, _| spec.grants.sql.contains(name));
    config.kv.retain(|name, _| spec.grants.kv.contains(name));
    let broken = |error| refused(&config.path, "broker", error);
    match &config.broker {
        config::Broker::Embedded(embedded) => {
            let log = embedded_log(embedded, &config.folder, args.outputs() == Outputs::Discard).map_err(broken)?;
            through(log, &config, spec, args).await
        }
        config::Broker::Kafka(kafka) => through(Kafka::new(kafka.clone()).map_err(broken)?, &config, spec, args).await,
    }
}

/// A handler's manifest, or which handlers there are.
pub(super) fn handler(config: &Config, name: &str) -> Result<HandlerSpec, Failure> {
    let refused = |text: String| Failure::Refused(vec![text]);
    let Some(folder) = &config.handlers else {
        let text = "is not set; name the folder of handlers";
        return Err(refused(Problem::invalid(&config.path, "handlers.folder", text).to_string()));
    };
    let mut known = manifest::folders(folder);
    let Some(found) = known.remove(name) else {
        let (folder, known) = (folder.display(), known.into_keys().collect::<Vec<_>>().join("`, `"));
        return Err(refused(format!("there is no handler `{name}` in `{folder}`; there is `{known}`")));
    };
    let problems = |problems: Vec<Problem>| Failure::Refused(problems.iter().map(Problem::to_string).collect());
    HandlerSpec::read(&found).map_err(problems)
}

async fn through<B: Broker>(broker: B, config: &Config, mut spec: HandlerSpec, args: &Args) -> Result<Report, Failure> {
    let mut signals = Signals::install()?;
    // There is no group whose offsets could be in a transaction with the outputs.
    if spec.consumer.guarantee == Guarantee::KafkaTransaction {
        spec.consumer.guarantee = Guarantee::AtLeastOnce;
    }
    spec.consumer.commit_interval = spec.consumer.commit_interval.min(COMMIT_INTERVAL_MAX);
    let admin = broker.admin()?;
    let plan = replay::plan(&*admin, &spec.consumer.subscription.topics, &args.which(), args.from, args.to).await?;
    tell_of_plan(&spec, args, &plan);
    let producer: Arc<dyn Producer> = match args.outputs() {
        Outputs::Discard => Arc::new(Discard),
        Outputs::Send => broker.producer(&BTreeMap::new())?,
    };
    let ranges = plan.iter().map(|part| (part.of.clone(), part.range.clone())).collect();
    let ranged = Ranged::new(broker, ranges, args.rate.map(|rate| rate.rate()));
    let metrics = Metrics::new();
    let parts = parts(ranged.clone(), Arc::clone(&producer), config, &metrics).await?;
    if let Some(database) = &spec.database
        && let Some(sql) = parts.backends.sql.get(database)
    {
        is_empty(&**sql, database, &spec, &plan).await?;
    }
    let drain_deadline = spec.consumer.drain_deadline;
    let fleet = Fleet::new(config.handlers.clone().unwrap_or_default(), parts, Arc::default());
    let (running, group) = fleet.once(spec).await.map_err(|error| handlers_refused(vec![error]))?;
    let mut told = Told::new(replay::offsets(&plan));
    let replay = Replay {
        parts: plan,
        membership: Arc::clone(&running.membership),
        metrics: metrics.handler(&running.spec.name),
        revision: running.live.digest(),
        stop: running.stop.clone(),
        task: tokio::spawn(group.replaying().run(running.stop.clone())),
    };
    let interrupted = async {
        signals.first().await;
        tracing::info!("the replay drains and ends; a second signal ends it at once");
        end_in_any_case(drain_deadline + config.shutdown_deadline);
        tokio::spawn(end_at_once(signals));
    };
    let report = replay.run(&ranged, interrupted, |done| told.tell(done)).await;
    let unsent = producer.flush(config.shutdown_deadline).await;
    if unsent > 0 {
        tracing::warn!(unsent, "outputs were not acknowledged before the end");
    }
    Ok(report)
}

fn tell_of_plan(spec: &HandlerSpec, args: &Args, plan: &[Part]) {
    let stores: Vec<String> = [("sql", &spec.grants.sql), ("kv", &spec.grants.kv)]
        .into_iter()
        .flat_map(|(section, names)| names.iter().map(move |name| format!("{section}.{name}")))
        .map(|key| if args.sets.iter().any(|set| set.key() == key) { format!("{key} (set)") } else { key })
        .collect();
    tracing::info!(
        handler = spec.name, offsets = replay::offsets(plan), partitions = plan.len(), from = %args.from, to = %args.to,
        stores = stores.join(" "), outputs = ?args.outputs(), "the range is read once more"
    );
    for part in plan.iter().filter(|part| part.gone > 0) {
        tracing::warn!(
            partition = %part.of, offsets = part.gone, from = part.range.start,
            "offsets before the range are kept no longer: what was in them is not replayed"
        );
    }
}

/// Refuses a database in which the handler has counted records already.
async fn is_empty(sql: &dyn Sql, database: &str, spec: &HandlerSpec, plan: &[Part]) -> Result<(), Failure> {
    let group = &spec.consumer.subscription.group;
    for Part { of, .. } in plan {
        if let Some(next) = super::offsets::row(sql, group, of).await? {
            return Err(Failure::Refused(vec![format!(
                "the database for `sql.{database}` has counted {of} up to {next} for group `{group}`, and would count records \
                 twice; name an empty database with --set sql.{database}=URL"
            )]));
        }
    }
    Ok(())
}
