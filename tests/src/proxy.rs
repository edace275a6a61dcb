//! A TCP proxy on loopback that can be told to be slow, to say nothing, to cut what goes through it, or to lie in wait for the
//! end of a transaction.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// How long a thread waits for bytes or connections before it looks whether something has changed.
const TURN: Duration = Duration::from_millis(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// More connections at a time are closed at once.
const CONNECTIONS_MAX: usize = 512;
const CHUNK_BYTES: usize = 64 << 10;

/// What becomes of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// They go through.
    Open,
    /// They go through after so long; what comes during such a wait waits once more.
    Slow(Duration),
    /// Connections stay open, take everything and carry nothing, as behind a router that was switched off. Those that
    /// have lost bytes so are reset when the link is back.
    Silent,
    /// Connections are reset, and new ones as soon as they are made.
    Cut,
}

/// What befalls requests that end a transaction, until the link is set again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trap {
    /// They go through, and nothing that the broker says on their connections from then on does; these are reset when the
    /// link is set.
    LosesAnswers,
    /// The first one waits.
    Holds,
}

/// Kafka's number of the request that ends a transaction.
const END_TRANSACTION: u16 = 26;

/// A proxy. Dropping it cuts what goes through it.
pub struct Proxy {
    port: u16,
    state: Arc<Mutex<State>>,
}

struct State {
    link: Link,
    /// Counts changes of the link: a connection that was made, or has lost bytes, before one is told by it.
    changes: u64,
    trap: Option<Trap>,
    caught: u64,
    connections: usize,
    carried: u64,
    ended: bool,
}

impl Proxy {
    /// Listens on a port and passes on to another; both on loopback.
    pub fn start(port: u16, to: u16) -> Result<Proxy> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).with_context(|| format!("listen on {port}"))?;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        let state =
            State { link: Link::Open, changes: 0, trap: None, caught: 0, connections: 0, carried: 0, ended: false };
        let state = Arc::new(Mutex::new(state));
        let shared = Arc::clone(&state);
        thread::spawn(move || accept(&listener, to, &shared));
        Ok(Proxy { port, state })
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Changes the link from now on, for old connections and new ones.
    pub fn set(&self, link: Link) {
        let mut state = locked(&self.state);
        state.link = link;
        state.changes += 1;
        state.trap = None;
    }

    /// Sets a trap, whatever the link is.
    pub fn set_trap(&self, trap: Trap) {
        locked(&self.state).trap = Some(trap);
    }

    /// How many requests traps have caught.
    pub fn caught(&self) -> u64 {
        locked(&self.state).caught
    }

    /// How many connections go through it now.
    pub fn connections(&self) -> usize {
        locked(&self.state).connections
    }

    /// How many bytes went through it, both ways.
    pub fn carried(&self) -> u64 {
        locked(&self.state).carried
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        locked(&self.state).ended = true;
    }
}

fn locked(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn accept(listener: &TcpListener, to: u16, state: &Arc<Mutex<State>>) {
    loop {
        let (link, connections, ended) = {
            let state = locked(state);
            (state.link, state.connections, state.ended)
        };
        if ended {
            return;
        }
        match listener.accept() {
            // Dropped at once, which the peer sees as a reset or an end.
            Ok(_) if link == Link::Cut || connections >= CONNECTIONS_MAX => {}
            Ok((front, _)) => {
                let state = Arc::clone(state);
                thread::spawn(move || carry(front, to, &state));
            }
            Err(_) => thread::sleep(TURN),
        }
    }
}

/// One connection, both ways, until an end or the link closes it.
fn carry(front: TcpStream, to: u16, state: &Arc<Mutex<State>>) {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, to));
    let Ok(back) = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) else { return };
    let (Ok(front_too), Ok(back_too)) = (front.try_clone(), back.try_clone()) else { return };
    locked(state).connections += 1;
    let deaf = OnceLock::new();
    thread::scope(|scope| {
        scope.spawn(|| one_way(Way::In, front, back, state, &deaf));
        one_way(Way::Out, back_too, front_too, state, &deaf);
    });
    locked(state).connections -= 1;
}

/// Since which change of the link nothing of what the server says goes through.
type Deaf = OnceLock<u64>;

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// To the server.
    In,
    /// From it.
    Out,
}

/// Carries bytes one way. Whatever ends it ends the other way too.
fn one_way(way: Way, mut from: TcpStream, mut to: TcpStream, state: &Mutex<State>, deaf: &Deaf) {
    // A way that can't be set up, read or written is at its end; the connection's peers learn it by the shutdown.
    let ready = from.set_nodelay(true).and_then(|()| to.set_nodelay(true)).and(from.set_read_timeout(Some(TURN)));
    if ready.is_ok() {
        carry_bytes(way, &mut from, &mut to, state, deaf);
    }
    for socket in [&from, &to] {
        if socket.shutdown(Shutdown::Both).is_err() {
            // It was closed by its peer or by the other way.
        }
    }
}

fn carry_bytes(way: Way, from: &mut TcpStream, to: &mut TcpStream, state: &Mutex<State>, deaf: &Deaf) {
    let mut chunk = vec![0; CHUNK_BYTES];
    // Since which change bytes were lost.
    let mut lost: Option<u64> = None;
    loop {
        let (link, changes, ended) = {
            let state = locked(state);
            (state.link, state.changes, state.ended)
        };
        let lossy = lost.or_else(|| deaf.get().copied());
        if ended || link == Link::Cut || lossy.is_some_and(|since| since != changes) {
            return;
        }
        let count = match from.read(&mut chunk) {
            Ok(0) => return,
            Ok(count) => count,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => continue,
            Err(_) => return,
        };
        match way {
            Way::In if ends_transaction(&chunk[..count]) => befall(state, deaf),
            Way::Out if deaf.get().is_some() => continue,
            Way::In | Way::Out => {}
        }
        // It may have changed while nothing came.
        let (link, changes) = {
            let state = locked(state);
            (state.link, state.changes)
        };
        match link {
            Link::Silent => {
                lost = Some(changes);
                continue;
            }
            Link::Slow(delay) => wait(delay, state),
            Link::Open => {}
            Link::Cut => return,
        }
        if to.write_all(&chunk[..count]).is_err() {
            return;
        }
        locked(state).carried += count as u64;
    }
}

/// Such a request comes alone: the coordinator of transactions has a connection of its own, and is asked one thing at a time.
fn ends_transaction(bytes: &[u8]) -> bool {
    bytes.get(4..6).is_some_and(|number| number == END_TRANSACTION.to_be_bytes())
        && bytes.get(..4).is_some_and(|length| length == u32::try_from(bytes.len() - 4).unwrap_or(0).to_be_bytes())
}

/// What the trap does, if one is set, to a request that is about to go through.
fn befall(state: &Mutex<State>, deaf: &Deaf) {
    let (trap, changes) = {
        let mut state = locked(state);
        let trap = state.trap.take_if(|trap| *trap == Trap::Holds).or(state.trap);
        state.caught += u64::from(trap.is_some());
        (trap, state.changes)
    };
    match trap {
        Some(Trap::LosesAnswers) => {
            deaf.get_or_init(|| changes);
        }
        Some(Trap::Holds) => {
            let is_held = || {
                let state = locked(state);
                state.changes == changes && !state.ended
            };
            while is_held() {
                thread::sleep(TURN);
            }
        }
        None => {}
    }
}

/// Waits, but no longer than the link stays slow.
fn wait(delay: Duration, state: &Mutex<State>) {
    let due = Instant::now() + delay;
    while Instant::now() < due && matches!(locked(state).link, Link::Slow(_)) {
        thread::sleep(TURN.min(due.saturating_duration_since(Instant::now())));
    }
}

#[cfg(test)]
mod tests {
    use xtask::lab::wait;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    /// A server that sends back what it is sent, a proxy before it, and a client behind that.
    struct Line {
        proxy: Proxy,
        client: TcpStream,
    }

    impl Line {
        fn new() -> Line {
            let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
            let port = server.local_addr().expect("an address").port();
            thread::spawn(move || {
                for stream in server.incoming() {
                    let Ok(mut stream) = stream else { return };
                    thread::spawn(move || {
                        let mut echo = stream.try_clone().expect("a socket has clones");
                        std::io::copy(&mut stream, &mut echo)
                    });
                }
            });
            let proxy = Proxy::start(0, port).expect("a proxy");
            let client = connected(&proxy);
            Line { proxy, client }
        }

        fn echoes(&mut self) -> bool {
            self.answers(b"ping")
        }

        fn answers(&mut self, question: &[u8]) -> bool {
            let mut answer = vec![0; question.len()];
            let asked = self.client.write_all(question).and_then(|()| self.client.read_exact(&mut answer));
            asked.is_ok() && answer == question
        }
    }

    fn connected(proxy: &Proxy) -> TcpStream {
        let client = TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port())).expect("the proxy takes connections");
        client.set_read_timeout(Some(Duration::from_millis(300))).expect("a timeout");
        client
    }

    #[test]
    fn an_open_link_carries_both_ways_and_counts() {
        let mut line = Line::new();
        assert!(line.echoes());
        wait::until("the count", PATIENCE, || Ok((line.proxy.carried() == 8).then_some(()))).expect("8 bytes");
    }

    #[test]
    fn a_slow_link_takes_its_time_both_ways() {
        let mut line = Line::new();
        assert!(line.echoes());
        line.proxy.set(Link::Slow(Duration::from_millis(60)));
        let started = Instant::now();
        assert!(line.echoes());
        assert!(started.elapsed() >= Duration::from_millis(120));
    }

    #[test]
    fn a_silent_link_takes_everything_and_is_reset_afterwards() {
        let mut line = Line::new();
        assert!(line.echoes());
        line.proxy.set(Link::Silent);
        assert!(!line.echoes(), "nobody answers, and the connection is open");
        assert_eq!(line.proxy.connections(), 1);
        line.proxy.set(Link::Open);
        wait::until("the reset", PATIENCE, || Ok((line.proxy.connections() == 0).then_some(()))).expect("it is reset");
        line.client = connected(&line.proxy);
        assert!(line.echoes());
    }

    #[test]
    fn a_cut_link_ends_old_connections_and_takes_no_new_ones() {
        let mut line = Line::new();
        assert!(line.echoes());
        line.proxy.set(Link::Cut);
        wait::until("the cut", PATIENCE, || Ok((line.proxy.connections() == 0).then_some(()))).expect("it is cut");
        assert!(!line.echoes());
        line.client = connected(&line.proxy);
        assert!(!line.echoes());
        line.proxy.set(Link::Open);
        line.client = connected(&line.proxy);
        assert!(line.echoes());
    }

    /// A request of four bytes, its length before it, that ends a transaction.
    const END: &[u8] = &[0, 0, 0, 4, 0, 26, 0, 3];

    #[test]
    fn a_trap_loses_the_answers_to_ends_of_transactions_and_to_nothing_else() {
        let mut line = Line::new();
        line.proxy.set_trap(Trap::LosesAnswers);
        assert!(line.echoes(), "this is no end");
        assert!(!line.answers(END));
        assert_eq!(line.proxy.caught(), 1);
        assert!(!line.echoes(), "the connection stays deaf");
        line.client = connected(&line.proxy);
        assert!(line.echoes(), "and no other connection is");
        assert!(!line.answers(END), "until it ends a transaction as well");
        line.proxy.set(Link::Open);
        wait::until("the reset", PATIENCE, || Ok((line.proxy.connections() == 0).then_some(()))).expect("it is reset");
        line.client = connected(&line.proxy);
        assert!(line.answers(END));
    }

    #[test]
    fn a_trap_holds_the_end_of_a_transaction_until_the_link_is_set() {
        let mut line = Line::new();
        line.proxy.set_trap(Trap::Holds);
        assert!(!line.answers(END), "it is held");
        line.proxy.set(Link::Open);
        let mut answer = [0; 8];
        line.client.read_exact(&mut answer).expect("it comes late");
        assert_eq!(answer, END);
        assert!(line.answers(END));
    }
}
