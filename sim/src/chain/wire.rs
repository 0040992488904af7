//! Calls between processes that are tasks: late, or never. They come twice only if they are sent twice: connections don't repeat anything.

use crate::prng::Prng;
use crate::tasks::{MILLI, Owner, Slot, Spawner, Timers};
use corefs_engine::event::Nanos;
use futures_lite::future;
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::rc::Rc;

/// Who carries messages: nobody kills it.
const CARRIER: Owner = Owner::MAX;

/// The processes of one kind that are up, by number.
pub type Registry<T> = Rc<RefCell<Vec<Option<Rc<T>>>>>;

/// How messages fare, of a thousand.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    pub loss: u64,
    pub slow: u64,
}

/// The network. Clones are the same.
#[derive(Clone)]
pub struct Wire {
    timers: Timers,
    spawner: Spawner,
    prng: Rc<RefCell<Prng>>,
    weather: Rc<Cell<Weather>>,
    /// From whom to whom nothing passes, until when.
    cuts: Rc<RefCell<Vec<(Owner, Owner, Nanos)>>>,
}

impl Wire {
    pub fn new(timers: Timers, spawner: Spawner, prng: Prng, weather: Weather) -> Self {
        let (prng, weather) = (Rc::new(RefCell::new(prng)), Rc::new(Cell::new(weather)));
        Self { timers, spawner, prng, weather, cuts: Rc::default() }
    }

    pub fn timers(&self) -> &Timers {
        &self.timers
    }

    pub fn below(&self, bound: u64) -> u64 {
        self.prng.borrow_mut().below(bound)
    }

    /// Nothing passes from one to the other until then.
    pub fn cut(&self, from: Owner, to: Owner, until: Nanos) {
        self.cuts.borrow_mut().push((from, to, until));
    }

    /// From now on everything arrives.
    pub fn calm(&self) {
        self.cuts.borrow_mut().clear();
        self.weather.set(Weather { loss: 0, slow: 0 });
    }

    /// How long a message takes. `None`: it is lost.
    fn fate(&self, from: Owner, to: Owner) -> Option<Nanos> {
        let (now, Weather { loss, slow, .. }) = (self.timers.now(), self.weather.get());
        let cut = |(a, b, until): &(Owner, Owner, Nanos)| (*a, *b) == (from, to) && now < *until;
        if self.cuts.borrow().iter().any(cut) || self.below(1000) < loss {
            return None;
        }
        let most = if self.below(1000) < slow { 8000 } else { 2 };
        Some(self.below(most * MILLI))
    }

    /// Asks a process, and waits so long for what it says. `None`: nothing was heard. When the question arrives, `ask` finds the process as
    /// it is then, if it is up; the answer is worked out by a task of that process, and dies with it.
    pub async fn call<T: 'static, F: Future<Output = T> + 'static>(
        &self,
        (from, to): (Owner, Owner),
        patience: Nanos,
        ask: impl FnOnce() -> Option<F> + 'static,
    ) -> Option<T> {
        let slot = Slot::default();
        let answered = slot.take();
        if let Some(delay) = self.fate(from, to) {
            let wire = self.clone();
            self.spawner.spawn(CARRIER, async move {
                wire.timers.sleep(delay).await;
                let here = wire.clone();
                wire.spawner.spawn(to, async move {
                    let Some(answer) = ask() else { return };
                    let answer = answer.await;
                    let Some(delay) = here.fate(to, from) else { return };
                    let carrier = here.clone();
                    here.spawner.spawn(CARRIER, async move {
                        carrier.timers.sleep(delay).await;
                        slot.put(answer);
                    });
                });
            });
        }
        let waits = async {
            self.timers.sleep(patience).await;
            None
        };
        future::or(async { Some(answered.await) }, waits).await
    }
}
