//! Calls to one of several equal servers: managers, metadata servers.

use crate::ground::Ground;
use crate::meta::Repeat;
use crate::route::{At, Next, Refresh, Tracker, Work};
use corefs_wire::control::Call;
use corefs_wire::control::mgmtd::GetRoutingT;
use corefs_wire::limits::MEMBERS_MAX;
use corefs_wire::routing::RoutingInfo;
use corefs_wire::{Error, ErrorCode, Result};
use std::time::Duration;

/// One attempt of a call that doesn't wait for anything on purpose.
const ATTEMPT: Duration = Duration::from_secs(5);
/// The same of a manager at first, if there are others: one that stands still costs no more before they are asked.
const FIRST_ATTEMPT: Duration = Duration::from_secs(1);
/// One manager's chance to give us routing when an operation waits for it.
const FETCH: Duration = Duration::from_secs(1);
/// Servers that one operation tries: the tracker remembers so many.
const TRIED_MAX: usize = MEMBERS_MAX;

impl Ground {
    /// A call to whichever manager leads, retried until the patience ends.
    pub async fn manager<C: Call>(&self, request: &C) -> Result<C::Reply> {
        let body = request.encode();
        let mut story = Story::new(self);
        loop {
            let first = self.leader.get();
            let (position, of) = story.position(self.managers.len());
            let at = (first + position) % self.managers.len().max(1);
            let Some(server) = self.managers.get(at) else {
                return Err(Error::new(ErrorCode::BadConfig, "no manager's address was given"));
            };
            match self.call_encoded::<C>(server, &body, story.attempt(self.managers.len())).await {
                Ok(reply) => {
                    self.leader.set(at);
                    return Ok(reply);
                }
                Err(error) => story.after(error, position, of).await?,
            };
        }
    }

    /// A call to a metadata server, the same one for the same `key` while it answers.
    pub async fn meta<C: Repeat>(&self, key: u64, request: &C) -> Result<C::Reply> {
        let mut body = request.encode();
        let mut story = Story::new(self);
        self.counters.borrow_mut().meta_calls += 1;
        loop {
            self.check_open()?;
            let servers = self.metas();
            let (position, of) = story.position(servers.len());
            let at = (spread(key) as usize).wrapping_add(position) % servers.len().max(1);
            let outcome = match servers.get(at) {
                Some(server) => self.call_encoded::<C>(server, &body, ATTEMPT).await,
                None => Err(Error::new(ErrorCode::NotReady, "no metadata server is known")),
            };
            match outcome {
                Ok(reply) => return Ok(reply),
                Err(error) => {
                    self.counters.borrow_mut().meta_retries += 1;
                    if story.tracker.is_none() {
                        body = request.repeated().encode();
                    }
                    story.after(error, position, of).await?;
                }
            }
        }
    }

    /// What a tracker said about routing and pauses, done. A pause ends early when there is newer routing.
    pub async fn pause(&self, after: Duration, refresh: Refresh) {
        let generation = self.generation();
        match refresh {
            Refresh::No => (),
            Refresh::Ask => self.wanted.ring(),
            Refresh::Wait => {
                self.wanted.ring();
                self.fetch().await;
            }
        }
        if after.is_zero() || (refresh != Refresh::No && self.generation() != generation) {
            return;
        }
        let news = async {
            match refresh {
                Refresh::No => std::future::pending().await,
                // An answer that brings nothing new doesn't end the pause: everybody who waits hears of each answer, and
                // they would ask again at once, and wake each other, for as long as the trouble lasts.
                _ => {
                    while self.generation() == generation {
                        self.news.next().await;
                    }
                }
            }
        };
        futures_lite::future::or(news, self.node.sleep(after)).await;
    }

    /// Asks the managers for newer routing, once; if that is being done already, waits for it.
    pub async fn fetch(&self) {
        if self.managers.is_empty() {
            return;
        }
        if self.fetching.replace(true) {
            return self.news.next().await;
        }
        let guard = Fetching(self);
        for _ in 0..self.managers.len() {
            match self.fetch_once(Duration::ZERO).await {
                Ok(()) => break,
                Err(error) => tracing::debug!(%error, "fetching routing"),
            }
        }
        drop(guard);
    }

    /// One question to the manager that leads as far as we know; when it fails the next is the leader.
    /// `wait`: how long it may wait for something newer before it answers.
    pub async fn fetch_once(&self, wait: Duration) -> Result<()> {
        self.counters.borrow_mut().routing_fetches += 1;
        let have = self.routes.borrow().info().version;
        let mut request = GetRoutingT::default();
        (request.have, request.wait_ms) = (have, wait.as_millis() as u32);
        let at = self.leader.get();
        let Some(server) = self.managers.get(at) else { return Ok(()) };
        let reply = self.node.ask_patiently(server, &request, ATTEMPT, wait + FETCH).await;
        let reply = reply.inspect_err(|_| self.leader.set((at + 1) % self.managers.len()))?;
        if let Some(routing) = reply.routing {
            self.install(RoutingInfo::from_message(&routing)?);
        }
        Ok(())
    }
}

/// Marks a fetch as under way, also when it is dropped in the middle.
struct Fetching<'a>(&'a Ground);

impl Drop for Fetching<'_> {
    fn drop(&mut self) {
        self.0.fetching.set(false);
        self.0.news.wake_all();
    }
}

/// The attempts of one call.
struct Story<'a> {
    ground: &'a Ground,
    tracker: Option<Tracker>,
    at: At,
}

impl<'a> Story<'a> {
    fn new(ground: &'a Ground) -> Self {
        Self { ground, tracker: None, at: At::Any }
    }

    /// Which of the `len` servers to ask, counted from the usual one, and how many come into question.
    fn position(&self, len: usize) -> (usize, usize) {
        let of = len.min(TRIED_MAX);
        let position = match (&self.tracker, self.at) {
            (Some(tracker), At::Other) => (0..of).find(|at| !tracker.failed().contains(*at)).unwrap_or(0),
            _ => 0,
        };
        (position, of)
    }

    /// How long a manager has for its answer: longer in each round, since all of them may be slow.
    fn attempt(&self, managers: usize) -> Duration {
        let attempts = self.tracker.as_ref().map_or(0, Tracker::attempts) as usize;
        match managers {
            0 | 1 => ATTEMPT,
            _ => FIRST_ATTEMPT.saturating_mul(1 << (attempts / managers).min(8)).min(ATTEMPT),
        }
    }

    async fn after(&mut self, error: Error, position: usize, of: usize) -> Result<()> {
        let ground = self.ground;
        let now = ground.now();
        let tracker = self.tracker.get_or_insert_with(|| Tracker::new(Work::Call, now + ground.patience));
        let next = tracker.after(now, error.code, position, of, &mut ground.rng.borrow_mut());
        match next {
            Next::GiveUp if tracker.attempts() > 1 => {
                Err(error.of(format_args!("after {} attempts", tracker.attempts())))
            }
            Next::GiveUp => Err(error),
            Next::Again { at, after, refresh } => {
                self.at = at;
                ground.pause(after, refresh).await;
                Ok(())
            }
        }
    }
}

/// Spreads inode numbers, which are neighbours, over servers.
fn spread(key: u64) -> u64 {
    key.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32
}
