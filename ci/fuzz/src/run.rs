//! Attackers and neighbours, one of each at every listener.

use crate::attack::{ATTACKS, Attack, Dice, Duty, When};
use crate::link::{Link, PATIENCE};
use corefs_net::Address;
use corefs_wire::control::{Call, Message, process};
use corefs_wire::frame::Kind;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Messages on one connection, unless it is closed earlier.
const PER_CONNECTION: u64 = 48;
/// Whether the peer closes is waited for after one of so many messages that demand it: waiting costs a turn of both.
const LOOK_EVERY: usize = 16;
/// Pause of a neighbour between its calls.
const CALM: Duration = Duration::from_millis(1);

/// What happened.
#[derive(Default, Debug)]
pub struct Report {
    pub frames: BTreeMap<&'static str, u64>,
    pub connections: u64,
    pub seen_closing: u64,
    /// Writes that the peer didn't take in time: it holds an attacker back.
    pub held_back: u64,
    pub neighbour_calls: u64,
    pub slowest_call: Duration,
    pub listeners: usize,
}

impl Report {
    pub fn total(&self) -> u64 {
        self.frames.values().sum()
    }

    fn join(&mut self, other: Self) {
        for (name, count) in other.frames {
            *self.frames.entry(name).or_default() += count;
        }
        self.connections += other.connections;
        self.seen_closing += other.seen_closing;
        self.held_back += other.held_back;
        self.neighbour_calls += other.neighbour_calls;
        self.slowest_call = self.slowest_call.max(other.slowest_call);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, count) in &self.frames {
            writeln!(f, "{count:>10}  {name}")?;
        }
        write!(
            f,
            "{} hostile frames at {} listeners over {} connections, {} of them seen closed as they must be, {} held back; \
             neighbours were answered {} times, at the slowest in {} ms",
            self.total(),
            self.listeners,
            self.connections,
            self.seen_closing,
            self.held_back,
            self.neighbour_calls,
            self.slowest_call.as_millis(),
        )
    }
}

/// Throws `frames` messages at the listeners, evenly.
pub fn all(listeners: &[Address], frames: u64, seed: u64) -> Result<Report, String> {
    let over = AtomicBool::new(false);
    let each = frames.div_ceil(listeners.len() as u64);
    std::thread::scope(|scope| {
        let neighbours: Vec<_> =
            listeners.iter().map(|address| scope.spawn(|| neighbour(address, &over))).collect();
        let attackers: Vec<_> = listeners
            .iter()
            .zip(seed..)
            .map(|(address, seed)| scope.spawn(move || attack(address, each, seed)))
            .collect();
        let mut report = Report { listeners: listeners.len(), ..Report::default() };
        let mut troubles = Vec::new();
        let mut take = |outcome: std::thread::Result<Result<Report, String>>| match outcome {
            Ok(Ok(part)) => report.join(part),
            Ok(Err(trouble)) => troubles.push(trouble),
            Err(_) => troubles.push("a thread of the fuzzer panicked".into()),
        };
        attackers.into_iter().for_each(|attacker| take(attacker.join()));
        over.store(true, Ordering::Relaxed);
        neighbours.into_iter().for_each(|neighbour| take(neighbour.join()));
        if troubles.is_empty() { Ok(report) } else { Err(troubles.join("\n")) }
    })
}

/// Calls over and over on one connection, which must never notice anything.
fn neighbour(address: &Address, over: &AtomicBool) -> Result<Report, String> {
    let trouble = |what: &str, error: std::io::Error| format!("{address}: the neighbour {what}: {error}");
    let mut link = Link::greet(address).map_err(|error| trouble("can't connect", error))?;
    let body = process::GetProcessT::default().encode();
    let mut report = Report::default();
    // Once more after the last attack.
    let mut last = false;
    while !last {
        last = over.load(Ordering::Relaxed);
        report.neighbour_calls += 1;
        let (number, asked) = (report.neighbour_calls, Instant::now());
        let answer =
            link.send(Kind::Request, process::GetProcessT::OP, number, &body).and_then(|()| link.receive());
        let answer = answer.map_err(|error| trouble("is not answered", error))?;
        if answer.header.request() != number || answer.header.kind() != Kind::Reply {
            return Err(format!("{address}: the neighbour got an answer to something else"));
        }
        report.slowest_call = report.slowest_call.max(asked.elapsed());
        std::thread::sleep(CALM);
    }
    Ok(report)
}

fn attack(address: &Address, frames: u64, seed: u64) -> Result<Report, String> {
    let mut dice = Dice(seed);
    let mut report = Report::default();
    let mut thrown = 0;
    while thrown < frames {
        let when = if dice.below(4) == 0 { When::BeforeHandshake } else { When::Connected };
        let mut link = connect(address, when)?;
        report.connections += 1;
        let kinds: Vec<&Attack> = ATTACKS.iter().filter(|attack| attack.when == when).collect();
        for _ in 0..PER_CONNECTION.min(frames - thrown) {
            let kind = dice.pick(&kinds);
            // Messages that end the connection are rarer, so that the others get their turn.
            if when == When::Connected && kind.duty == Duty::Close && dice.below(8) != 0 {
                continue;
            }
            let bytes = kind.bytes(&mut dice);
            thrown += 1;
            *report.frames.entry(kind.name).or_default() += 1;
            let written = link.write(&bytes);
            if let Err(error) = &written {
                report.held_back += u64::from(error.kind() == std::io::ErrorKind::WouldBlock);
                break;
            }
            if kind.duty == Duty::Close {
                if dice.below(LOOK_EVERY) == 0 {
                    let what = |error| format!("{address}: after `{}` {error} for {PATIENCE:?}", kind.name);
                    link.closed(PATIENCE).map_err(what)?;
                    report.seen_closing += 1;
                }
                break;
            }
            // What was cut off can't be followed by anything.
            if kind.name.contains("cut off") || when == When::BeforeHandshake || !link.drain() {
                break;
            }
        }
    }
    Ok(report)
}

fn connect(address: &Address, when: When) -> Result<Link, String> {
    let outcome = match when {
        When::BeforeHandshake => Link::open(address),
        When::Connected => Link::greet(address),
    };
    outcome.map_err(|error| format!("{address}: no new connection: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use corefs_net::{Identity, Node, NodeConfig, Request, Responder, Role, Service, executor};
    use corefs_wire::Uuid;
    use std::rc::Rc;
    use std::sync::mpsc;

    /// Answers everything with what came.
    struct Echo;

    impl Service for Echo {
        fn request(&self, request: Request, responder: Responder) {
            responder.ok(&request.body, None);
        }
    }

    #[test]
    fn a_sound_listener_survives() {
        let (tell, told) = mpsc::channel();
        let (end, ended) = mpsc::channel::<()>();
        let served = executor::builder(glommio::Placement::Unbound).spawn(move || async move {
            let identity =
                Identity { role: Role::Meta, id: 1, incarnation: 1, cluster: Uuid([1; 16]), secret: None };
            let node = Node::start(NodeConfig::new(identity)).unwrap();
            node.serve(Rc::new(Echo));
            tell.send(node.listen(&"127.0.0.1:0".parse().unwrap()).unwrap()).unwrap();
            while ended.try_recv() == Err(mpsc::TryRecvError::Empty) {
                node.sleep(Duration::from_millis(20)).await;
            }
            node.shutdown().await;
        });
        let address = told.recv().unwrap();
        let report = all(&[address.clone(), address], 3000, 7).unwrap();
        assert_eq!((report.total(), report.frames.len()), (3000, ATTACKS.len()));
        assert!(report.seen_closing > 0 && report.neighbour_calls > 2);
        drop(end);
        served.unwrap().join().unwrap();
    }

    #[test]
    fn a_listener_that_is_not_there_is_told() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert!(all(&[free.into()], 10, 1).unwrap_err().contains("connect"));
    }
}
