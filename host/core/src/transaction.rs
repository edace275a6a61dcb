//! What enters a Kafka transaction, and when one closes.
//!
//! TX-1: of each partition a transaction holds what lies between what is committed and an offset that the frontier has
//! passed, in order and without gaps: whatever becomes of it, what is committed stays a prefix of the partition.
//! TX-2: what was in a transaction that was not committed enters the next one again, before all that lies behind it.
//! TX-3: a transaction keeps its bounds; what one record leaves behind still goes alone when it is larger.

use std::time::Duration;

use crate::record::Offset;

/// The bounds of one transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// It closes so long after its first entry.
    pub interval: Duration,
    /// Records to be produced.
    pub records_max: usize,
    /// Their bytes.
    pub bytes_max: usize,
}

/// What something takes of the bounds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Weight {
    /// Records to be produced.
    pub records: usize,
    /// Their bytes.
    pub bytes: usize,
}

/// How full the open transaction is.
#[derive(Debug)]
pub struct Filling {
    limits: Limits,
    /// When its first part entered; `None` while it is empty.
    since: Option<Duration>,
    weight: Weight,
    /// Something had no room.
    full: bool,
}

impl Filling {
    /// An empty transaction.
    pub fn new(limits: Limits) -> Self {
        Self { limits, since: None, weight: Weight::default(), full: false }
    }

    /// What is in it.
    pub fn weight(&self) -> Weight {
        self.weight
    }

    /// When it closes; `None` while it is empty.
    pub fn closes_at(&self) -> Option<Duration> {
        let full = self.full || self.weight.records >= self.limits.records_max;
        self.since.map(|since| if full { since } else { since + self.limits.interval })
    }

    /// Begins anew.
    pub fn clear(&mut self) {
        *self = Self::new(self.limits.clone());
    }

    /// Takes something in if there is room for it.
    fn admit(&mut self, more: Weight) -> bool {
        let Weight { records, bytes } = self.weight;
        let fits = records + more.records <= self.limits.records_max && bytes + more.bytes <= self.limits.bytes_max;
        let admitted = fits || self.weight == Weight::default();
        if admitted {
            self.weight = Weight { records: records + more.records, bytes: bytes + more.bytes };
        } else {
            self.full = true;
        }
        admitted
    }
}

/// What one assignment of a partition leaves to be committed in transactions, at most one at a time.
#[derive(Debug)]
pub struct Outbox<T> {
    /// What settled records leave behind, as it came. Invariant: none of it is below `entered`.
    waiting: Vec<Item<T>>,
    /// `None` until the first delivery tells where reading began.
    marks: Option<Marks>,
    /// Nothing from this offset on enters before this time.
    barrier: Option<(Offset, Duration)>,
    /// Of what waits, and of what has entered and is not committed.
    bytes: usize,
}

/// Invariant: they rise.
#[derive(Debug, Clone, Copy)]
struct Marks {
    /// All below is committed.
    committed: Offset,
    /// All below is committed or in the open transaction.
    entered: Offset,
    /// All below is settled.
    frontier: Offset,
}

/// What entered a transaction of one partition.
#[derive(Debug)]
pub struct Entry<T> {
    /// What its settled records leave behind, in offset order.
    pub items: Vec<Item<T>>,
    /// All below enters: what is to be committed.
    pub upto: Offset,
}

/// What one settled record leaves behind.
#[derive(Debug)]
pub struct Item<T> {
    /// The record.
    pub offset: Offset,
    /// What it takes of the bounds.
    pub weight: Weight,
    /// What is to be produced.
    pub what: T,
}

/// How much is not committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Of what is to be produced.
    pub bytes: usize,
    /// From what is committed to the frontier.
    pub span: usize,
}

impl<T> Default for Outbox<T> {
    fn default() -> Self {
        Self { waiting: Vec::new(), marks: None, barrier: None, bytes: 0 }
    }
}

impl<T> Outbox<T> {
    /// Notes where reading began; later ones are passed over.
    pub fn begin(&mut self, at: Offset) {
        self.marks.get_or_insert(Marks { committed: at, entered: at, frontier: at });
    }

    /// Keeps what a settled record leaves behind, until the frontier passes it.
    pub fn keep(&mut self, item: Item<T>) {
        self.bytes += item.weight.bytes;
        self.waiting.push(item);
    }

    /// Notes that all below is settled.
    pub fn advance(&mut self, frontier: Offset) {
        if let Some(marks) = &mut self.marks {
            marks.frontier = marks.frontier.max(frontier);
        }
    }

    /// Moves into the transaction what the frontier has passed, as far as there is room. `None`: there is nothing new.
    pub fn enter(&mut self, now: Duration, filling: &mut Filling) -> Option<Entry<T>> {
        let mut marks = self.marks?;
        let held = self.barrier.filter(|(_, until)| now < *until).map(|(from, _)| from);
        let end = held.map_or(marks.frontier, |from| from.min(marks.frontier));
        if end <= marks.entered {
            return None;
        }
        // Each call's records came in order, which this sort makes use of.
        self.waiting.sort_by_key(|item| item.offset);
        let passed = self.waiting.partition_point(|item| item.offset < end);
        let admitted = self.waiting[..passed].iter().take_while(|item| filling.admit(item.weight)).count();
        let upto = self.waiting[..passed].get(admitted).map_or(end, |first| first.offset);
        if upto <= marks.entered {
            return None;
        }
        let items = self.waiting.drain(..admitted).collect();
        marks.entered = upto;
        self.marks = Some(marks);
        filling.since.get_or_insert(now);
        Some(Entry { items, upto })
    }

    /// Notes that what has entered is committed.
    pub fn confirmed(&mut self, bytes: usize) {
        self.bytes -= bytes;
        if let Some(marks) = &mut self.marks {
            marks.committed = marks.entered;
        }
        self.barrier = self.barrier.filter(|(from, _)| Some(*from) >= self.committed());
    }

    /// Takes back what has entered: the transaction was not committed.
    pub fn put_back(&mut self, items: impl IntoIterator<Item = Item<T>>) {
        self.waiting.extend(items);
        if let Some(marks) = &mut self.marks {
            marks.entered = marks.committed;
        }
    }

    /// Something else is to be produced than what was kept before, by so many bytes.
    pub fn replaced(&mut self, before: Weight, after: Weight) {
        self.bytes = self.bytes - before.bytes + after.bytes;
    }

    /// Lets nothing enter from this offset on before this time.
    pub fn hold(&mut self, from: Offset, until: Duration) {
        self.barrier = Some((from, until));
    }

    /// When more may enter without anything else happening.
    pub fn next_try(&self, now: Duration) -> Option<Duration> {
        let marks = self.marks?;
        let (from, until) = self.barrier?;
        (now < until && from < marks.frontier).then_some(until)
    }

    /// All below is committed; `None` before the first delivery.
    pub fn committed(&self) -> Option<Offset> {
        self.marks.map(|marks| marks.committed)
    }

    /// Whether something is in a transaction that has not ended.
    pub fn has_entered(&self) -> bool {
        self.marks.is_some_and(|marks| marks.entered > marks.committed)
    }

    /// Whether all that the frontier has passed is committed.
    pub fn is_done(&self) -> bool {
        self.marks.is_none_or(|marks| marks.committed == marks.frontier)
    }

    /// How much is not committed.
    pub fn load(&self) -> Load {
        let span = self.marks.map_or(0, |marks| marks.frontier - marks.committed);
        Load { bytes: self.bytes, span: usize::try_from(span).unwrap_or(0) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits { interval: Duration::from_millis(100), records_max: 10, bytes_max: 100 };

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn item(offset: Offset, records: usize, bytes: usize) -> Item<Offset> {
        Item { offset, weight: Weight { records, bytes }, what: offset }
    }

    fn offsets(entry: &Entry<Offset>) -> Vec<Offset> {
        entry.items.iter().map(|item| item.offset).collect()
    }

    #[test]
    fn only_what_the_frontier_has_passed_enters() {
        let mut outbox = Outbox::default();
        outbox.begin(5);
        outbox.keep(item(7, 1, 1));
        outbox.keep(item(5, 1, 1));
        let mut filling = Filling::new(LIMITS);
        assert!(outbox.enter(millis(0), &mut filling).is_none(), "nothing is passed yet");
        outbox.advance(6);
        let entry = outbox.enter(millis(3), &mut filling).expect("the first is passed");
        assert_eq!((offsets(&entry), entry.upto), (vec![5], 6));
        assert_eq!(filling.closes_at(), Some(millis(103)));
        assert!(outbox.enter(millis(4), &mut filling).is_none());
        outbox.confirmed(1);
        assert_eq!((outbox.committed(), outbox.is_done()), (Some(6), true));
    }

    #[test]
    fn a_full_transaction_closes_at_once_and_one_large_item_goes_alone() {
        let mut outbox = Outbox::default();
        outbox.begin(0);
        outbox.keep(item(0, 1, 1000));
        outbox.keep(item(1, 1, 1));
        outbox.advance(2);
        let mut filling = Filling::new(LIMITS);
        let entry = outbox.enter(millis(7), &mut filling).expect("it goes alone");
        assert_eq!((offsets(&entry), entry.upto), (vec![0], 1));
        assert_eq!(filling.closes_at(), Some(millis(7)), "something had no room");
        outbox.confirmed(1000);
        filling.clear();
        let entry = outbox.enter(millis(9), &mut filling).expect("the rest");
        assert_eq!((offsets(&entry), entry.upto), (vec![1], 2));
    }

    #[test]
    fn what_lies_before_a_barrier_flows() {
        let mut outbox = Outbox::default();
        outbox.begin(0);
        (0..3).for_each(|offset| outbox.keep(item(offset, 1, 1)));
        outbox.advance(3);
        outbox.hold(1, millis(50));
        let mut filling = Filling::new(LIMITS);
        let entry = outbox.enter(millis(0), &mut filling).expect("what lies before it");
        assert_eq!((offsets(&entry), entry.upto), (vec![0], 1));
        assert_eq!(outbox.next_try(millis(0)), Some(millis(50)));
        outbox.confirmed(1);
        assert!(outbox.enter(millis(49), &mut filling).is_none());
        let entry = outbox.enter(millis(50), &mut filling).expect("the time is over");
        assert_eq!((offsets(&entry), entry.upto), (vec![1, 2], 3));
    }

    proptest! {
        /// TX-1 to TX-3, over random stories of settling, entering, commits and aborts.
        #[test]
        fn what_is_committed_is_a_prefix_with_each_item_once(
            steps in prop::collection::vec((0..5_u8, any::<prop::sample::Index>(), 0..4_usize, 0..60_usize), 1..300)
        ) {
            let mut outbox = Outbox::default();
            outbox.begin(0);
            let mut filling = Filling::new(LIMITS);
            let (mut unsettled, mut received) = (Vec::new(), 0);
            let (mut kept, mut committed, mut open): (Vec<Offset>, Vec<Offset>, Vec<Item<Offset>>) = Default::default();
            for (step, pick, records, bytes) in steps {
                match step {
                    0 => {
                        unsettled.push(received);
                        received += 1;
                    }
                    1 if !unsettled.is_empty() => {
                        let offset = unsettled.remove(pick.index(unsettled.len()));
                        if records > 0 {
                            outbox.keep(item(offset, records, bytes));
                            kept.push(offset);
                        }
                        outbox.advance(unsettled.first().copied().unwrap_or(received));
                    }
                    2 => {
                        if let Some(entry) = outbox.enter(millis(0), &mut filling) {
                            prop_assert!(unsettled.first().is_none_or(|first| entry.upto <= *first), "TX-1");
                            open.extend(entry.items);
                        }
                        let Weight { records, bytes } = filling.weight();
                        prop_assert!(open.len() <= 1 || (records <= LIMITS.records_max && bytes <= LIMITS.bytes_max), "TX-3");
                    }
                    3 => {
                        committed.extend(open.iter().map(|item| item.offset));
                        outbox.confirmed(open.drain(..).map(|item| item.weight.bytes).sum());
                        filling.clear();
                    }
                    _ => {
                        outbox.put_back(open.drain(..));
                        filling.clear();
                    }
                }
                let mut expected: Vec<Offset> = kept.iter().copied().filter(|offset| Some(*offset) < outbox.committed()).collect();
                expected.sort_unstable();
                prop_assert_eq!(&committed, &expected, "TX-1, TX-2");
            }
            outbox.put_back(open.drain(..));
            while let Some(entry) = outbox.enter(millis(0), &mut Filling::new(LIMITS)) {
                committed.extend(entry.items.iter().map(|item| item.offset));
                outbox.confirmed(entry.items.iter().map(|item| item.weight.bytes).sum());
            }
            let mut passed = kept;
            passed.retain(|offset| unsettled.first().is_none_or(|first| offset < first));
            passed.sort_unstable();
            prop_assert_eq!(committed, passed, "all that is passed is committed in the end, in order and once");
            prop_assert!(outbox.is_done());
        }
    }
}
