//! The orders that the demo posts: made from a seed, so that each run posts the same.

/// All orders of a run.
pub(super) struct Orders {
    count: u32,
}

/// Orders that go in one POST.
#[derive(Debug, Clone)]
pub(super) struct Post {
    pub(super) orders: Vec<Order>,
}

/// One order.
#[derive(Debug, Clone)]
pub(super) struct Order {
    pub(super) id: String,
    pub(super) customer: String,
    /// A bad order has none.
    pub(super) cents: Option<u64>,
}

const CUSTOMERS: u32 = 50;
/// One order in so many is bad: it has no amount.
const BAD_EVERY: u32 = 50;

impl Orders {
    pub(super) fn new(count: u32) -> Self {
        Self { count }
    }

    /// The orders in turn, so many in each POST.
    pub(super) fn posts(&self, records: usize) -> impl Iterator<Item = Post> {
        let all: Vec<Order> = (0..self.count).map(order).collect();
        all.chunks(records).map(|orders| Post { orders: orders.to_vec() }).collect::<Vec<_>>().into_iter()
    }
}

fn order(number: u32) -> Order {
    let mixed = number.wrapping_mul(2_654_435_761);
    Order {
        id: format!("o-{number:07}"),
        customer: format!("c-{:02}", (mixed >> 8) % CUSTOMERS),
        cents: (number % BAD_EVERY != BAD_EVERY - 1).then_some(u64::from(mixed % 100_000) + 1),
    }
}

impl Post {
    /// One JSON object on each line.
    pub(super) fn body(&self) -> String {
        self.orders.iter().map(|order| order.json() + "\n").collect()
    }
}

impl Order {
    fn json(&self) -> String {
        match self.cents {
            Some(cents) => format!(r#"{{"id":"{}","customer":"{}","amount_cents":{cents}}}"#, self.id, self.customer),
            None => format!(r#"{{"id":"{}","customer":"{}"}}"#, self.id, self.customer),
        }
    }
}
