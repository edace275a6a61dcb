//! The hosts: each is a real [`Group`] with all of its rooms, on a broker, a guest and a database that are not.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::bank::Bank;
use super::broker::SimBroker;
use super::guest::Guest;
use super::parked::HANDLER;
use super::story::{Act, Mode};
use super::trace::What;
use super::world::{Life, Link, Revision, SESSION, World};
use crate::broker::{Broker, ConsumerEvent};
use crate::consumer::tests::GROUP;
use crate::consumer::{Budget, Choice, Group, Membership, OffsetStore, Parking};
use crate::guest::Handler;
use crate::guest::succession::{Runs, Succession};
use crate::metrics::{HandlerMetrics, Metrics};
use crate::settle::letter::HeaderStyle;
use crate::settle::parked::ParkedTopics;
use crate::settle::{DeadLetters, Settler};

/// How long a host may take to end.
const END: Duration = Duration::from_secs(60);

struct Host {
    life: Arc<Life>,
    broker: SimBroker,
    guest: Arc<Succession<Guest>>,
    metrics: Arc<HandlerMetrics>,
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
        let metrics = Metrics::new().handler(HANDLER);
        let letters =
            DeadLetters { handler: HANDLER.into(), group: GROUP.into(), topic: None, headers: HeaderStyle::Native };
        let producer = broker.producer(&Default::default()).expect("a producer");
        let topics = Arc::new(ParkedTopics::new(HANDLER.into(), Arc::clone(&producer)));
        let settler = Settler::new(producer, plan.policy(), letters, Arc::clone(&metrics));
        let revision = world.lock().revision;
        let guest = Arc::new(Succession::new(Guest::new(&broker, revision)));
        world.note(What::Swapped(number, revision.number));
        let handler: Arc<dyn Handler> = Arc::clone(&guest) as _;
        let membership = Arc::<Membership>::default();
        let budget = Budget::new(plan.held_bytes_max, Metrics::new().held_bytes());
        let place = Arc::clone(&membership);
        let group = Group::new(broker.clone(), plan.config(), handler, settler, Arc::clone(&metrics), place, budget);
        let group = match plan.mode {
            Mode::Database => group.keeping_offsets_in(OffsetStore::new("main", Arc::new(Bank(broker.clone())))),
            Mode::Parking => {
                let admin = broker.admin().expect("an admin");
                group.parking(Parking { topics, admin, records_max: plan.parked_max })
            }
            Mode::AtLeastOnce | Mode::AtMostOnce | Mode::Kafka => group,
        };
        let stop = CancellationToken::new();
        let task = tokio::spawn(group.run(stop.clone()));
        Self { life, broker, guest, metrics, membership, stop, task }
    }

    /// Loads a revision, which takes a while, and lets it take over.
    fn swap(&self, revision: Revision) {
        let (broker, guest) = (self.broker.clone(), Arc::clone(&self.guest));
        tokio::spawn(async move {
            let SimBroker { world, life } = &broker;
            let slow = if world.lock().well { 0 } else { 1000 };
            let next = Guest::new(&broker, revision);
            let load = async {
                world.latency(slow).await;
                life.alive().await;
                if world.mishap(|rates| rates.guest) { Err(()) } else { Ok(Arc::clone(&next)) }
            };
            let ready = async {
                world.latency(slow / 10).await;
                life.alive().await;
                if world.mishap(|rates| rates.bank) { Err(()) } else { Ok(()) }
            };
            if guest.swap_when(next.digest(), load, ready).await == Ok(Ok(true)) {
                world.note(What::Swapped(life.host, revision.number));
            }
        });
    }

    /// Says how much it has told of that was deleted unread.
    fn tell_of_skipped(&self) {
        self.broker.world.note(What::ToldOfSkipped(self.life.host, self.metrics.skipped_offsets.get()));
    }

    fn roll_back(&self) {
        let (broker, guest) = (self.broker.clone(), Arc::clone(&self.guest));
        tokio::spawn(async move {
            let SimBroker { world, life } = &broker;
            life.alive().await;
            if guest.roll_back(|_| ()).await.is_ok() {
                world.note(What::Swapped(life.host, guest.live().number()));
            }
        });
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
            Act::Cut(place, millis) => self.part(place, Link::Cut, Duration::from_millis(millis)),
            Act::Freeze(place, millis) => self.part(place, Link::Frozen, Duration::from_millis(millis)),
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
            Act::Swap(worse) => self.swap(worse),
            Act::RollBack(place) => self.places[place].iter().for_each(Host::roll_back),
            Act::Add(records, millis) => {
                world.add_partition();
                let partition = world.lock().partitions - 1;
                later(millis, move || world.write(partition, records));
            }
            Act::Trim(partition) => world.trim(partition),
            Act::Unpark(place) => {
                if let Some(host) = &self.places[place] {
                    let membership = Arc::clone(&host.membership);
                    tokio::spawn(async move { membership.unpark(|_| true, &Choice::default()).await });
                }
            }
            Act::MakeParked => world.make_parked(),
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
        let world = Arc::clone(&self.world);
        world.note(What::Stopping(host.life.host));
        host.life.stop();
        host.stop.cancel();
        self.ending.push(tokio::spawn(async move {
            let mut host = host;
            let ended = timeout(END, &mut host.task).await;
            host.tell_of_skipped();
            let life = host.life;
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
        host.tell_of_skipped();
        host.life.set(Link::Dead);
        host.task.abort();
        evict_later(&self.world, &host.life);
    }

    /// Cuts a host off, or freezes it, for a while.
    fn part(&mut self, place: usize, link: Link, time: Duration) {
        let Some(host) = self.places[place].as_ref().filter(|host| host.life.is_up()) else { return };
        let (world, life) = (Arc::clone(&self.world), Arc::clone(&host.life));
        world.note(if link == Link::Frozen { What::Frozen(life.host) } else { What::Cut(life.host) });
        life.set(link);
        evict_later(&world, &life);
        tokio::spawn(async move {
            tokio::time::sleep(time).await;
            heal(&world, &life);
        });
    }

    /// Another revision comes to all hosts.
    fn swap(&self, worse: bool) {
        let revision = {
            let mut state = self.world.lock();
            state.revision = Revision { number: state.revision.number + 1, worse };
            state.revision
        };
        self.places.iter().flatten().for_each(|host| host.swap(revision));
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
        self.world.make_parked();
        self.swap(false);
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

fn heal(world: &Arc<World>, life: &Arc<Life>) {
    match life.link() {
        Link::Cut => world.note(What::Healed(life.host)),
        Link::Frozen => world.note(What::Thawed(life.host)),
        Link::Up | Link::Dead => return,
    }
    life.set(Link::Up);
    world.lock().group.heard(life);
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
