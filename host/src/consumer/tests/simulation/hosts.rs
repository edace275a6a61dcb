//! The hosts: each is a real [`Group`] with all of its rooms, on a broker, a guest and a database that are not.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::bank::Bank;
use super::broker::SimBroker;
use super::guest::Guest;
use super::story::{Act, Mode};
use super::trace::What;
use super::world::{Life, Link, SESSION, World};
use crate::broker::{Broker, ConsumerEvent};
use crate::consumer::tests::GROUP;
use crate::consumer::{Budget, Group, Membership, OffsetStore};
use crate::guest::Handler;
use crate::metrics::Metrics;
use crate::settle::letter::HeaderStyle;
use crate::settle::{DeadLetters, Settler};

/// How long a host may take to end.
const END: Duration = Duration::from_secs(60);

struct Host {
    life: Arc<Life>,
    membership: Arc<Membership>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Host {
    fn start(world: &Arc<World>, number: u32) -> Self {
        let life = Life::new(number);
        world.note(What::Started(number));
        let broker = SimBroker { world: Arc::clone(world), life: Arc::clone(&life) };
        let plan = &world.plan;
        let metrics = Metrics::new().handler("h");
        let letters =
            DeadLetters { handler: "h".into(), group: GROUP.into(), topic: None, headers: HeaderStyle::Native };
        let producer = broker.producer(&Default::default()).expect("a producer");
        let settler = Settler::new(producer, plan.policy(), letters, Arc::clone(&metrics));
        let guest: Arc<dyn Handler> = Arc::new(Guest(broker.clone()));
        let membership = Arc::<Membership>::default();
        let budget = Budget::new(plan.held_bytes_max, Metrics::new().held_bytes());
        let place = Arc::clone(&membership);
        let group = Group::new(broker.clone(), plan.config(), guest, settler, metrics, place, budget);
        let group = match plan.mode {
            Mode::Database => group.keeping_offsets_in(OffsetStore::new("main", Arc::new(Bank(broker)))),
            Mode::AtLeastOnce | Mode::AtMostOnce | Mode::Kafka => group,
        };
        let stop = CancellationToken::new();
        let task = tokio::spawn(group.run(stop.clone()));
        Self { life, membership, stop, task }
    }
}

/// Who runs now, by place.
pub(super) struct Hosts {
    world: Arc<World>,
    places: Vec<Option<Host>>,
    /// Hosts that are on their way to their end.
    ending: Vec<JoinHandle<Result<(), String>>>,
    started: u32,
}

impl Hosts {
    pub(super) fn new(world: &Arc<World>) -> Self {
        let places = (0..world.plan.hosts).map(|_| None).collect();
        Self { world: Arc::clone(world), places, ending: Vec::new(), started: 0 }
    }

    pub(super) fn act(&mut self, act: Act) {
        let world = Arc::clone(&self.world);
        match act {
            Act::Write(partition, records) => world.write(partition, records),
            Act::Start(place) => self.start(place),
            Act::Stop(place) => self.stop(place),
            Act::Crash(place) => self.crash(place),
            Act::Cut(place, millis) => self.cut(place, Duration::from_millis(millis)),
            Act::Fail(place) => {
                if let Some(host) = &self.places[place] {
                    world.lock().group.tell(&host.life, || ConsumerEvent::Fatal("by chance".to_owned()));
                }
            }
            Act::Shuffle => {
                let mut state = world.lock();
                let mut dice = state.dice.fork();
                state.group.balance(Some(&mut dice));
            }
            Act::Swap(worse) => swap(&world, worse),
            Act::Pause(place, millis) => {
                if let Some(host) = &self.places[place] {
                    let (membership, number) = (Arc::clone(&host.membership), host.life.host);
                    world.note(What::Paused(number, true));
                    membership.pause(true);
                    later(millis, move || {
                        world.note(What::Paused(number, false));
                        membership.pause(false);
                    });
                }
            }
            Act::Away(thing, millis) => {
                world.note(What::Away(thing, true));
                world.lock().away.insert(thing);
                later(millis, move || {
                    world.note(What::Away(thing, false));
                    world.lock().away.remove(thing);
                });
            }
        }
    }

    fn start(&mut self, place: usize) {
        if self.places[place].is_none() {
            self.started += 1;
            self.places[place] = Some(Host::start(&self.world, self.started));
        }
    }

    fn stop(&mut self, place: usize) {
        let Some(host) = self.places[place].take() else { return };
        let Host { life, stop, task, .. } = host;
        let world = Arc::clone(&self.world);
        world.note(What::Stopping(life.host));
        life.stop();
        stop.cancel();
        self.ending.push(tokio::spawn(async move {
            let ended = timeout(END, task).await;
            world.note(What::Ended(life.host));
            // What it has left open is ended by time.
            life.set(Link::Dead);
            evict_later(&world, &life);
            match ended {
                Ok(Ok(())) => Ok(()),
                Ok(Err(error)) => Err(format!("host {} panicked: {error}", life.host)),
                Err(_) => Err(format!("host {} does not end", life.host)),
            }
        }));
    }

    fn crash(&mut self, place: usize) {
        let Some(host) = self.places[place].take() else { return };
        self.world.note(What::Crashed(host.life.host));
        host.life.set(Link::Dead);
        host.task.abort();
        evict_later(&self.world, &host.life);
    }

    fn cut(&mut self, place: usize, time: Duration) {
        let Some(host) = self.places[place].as_ref().filter(|host| host.life.is_up()) else { return };
        let (world, life) = (Arc::clone(&self.world), Arc::clone(&host.life));
        world.note(What::Cut(life.host));
        life.set(Link::Cut);
        evict_later(&world, &life);
        tokio::spawn(async move {
            tokio::time::sleep(time).await;
            heal(&world, &life);
        });
    }

    /// From now on all goes well, at least one host runs, and the guest is a good one.
    pub(super) fn heal(&mut self) {
        {
            let mut state = self.world.lock();
            state.rates = Default::default();
            state.away.clear();
            state.well = true;
            self.world.note_in(&mut state, What::AllIsWell);
        }
        swap(&self.world, false);
        self.start(0);
        for host in self.places.iter().flatten() {
            heal(&self.world, &host.life);
            host.membership.pause(false);
            self.world.note(What::Paused(host.life.host, false));
        }
    }

    /// Ends all hosts the good way.
    pub(super) async fn end(&mut self) -> Result<(), String> {
        (0..self.places.len()).for_each(|place| self.stop(place));
        for ending in self.ending.drain(..) {
            ending.await.map_err(|error| error.to_string())??;
        }
        Ok(())
    }
}

fn swap(world: &World, worse: bool) {
    let mut state = world.lock();
    state.revision += 1;
    state.worse = worse;
    let revision = state.revision;
    world.note_in(&mut state, What::Swapped(revision));
}

fn heal(world: &World, life: &Arc<Life>) {
    if life.link() == Link::Cut {
        world.note(What::Healed(life.host));
        life.set(Link::Up);
        world.lock().group.heard(life);
    }
}

/// The group goes on without a host that is silent for too long.
fn evict_later(world: &Arc<World>, life: &Arc<Life>) {
    let (world, life) = (Arc::clone(world), Arc::clone(life));
    let cuts = life.cuts();
    tokio::spawn(async move {
        tokio::time::sleep(SESSION).await;
        if !life.is_up() && life.cuts() == cuts && world.lock().group.evict(&life) {
            world.note(What::Evicted(life.host));
        }
    });
}

fn later(millis: u64, act: impl FnOnce() + Send + 'static) {
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(millis)).await;
        act();
    });
}
