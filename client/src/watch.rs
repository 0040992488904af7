//! Hears of what others change, from all metadata servers, so that what was heard before may be believed until then.
//!
//! Each server is asked all the time for what changed by way of it, and answers when something has. While all that the routing names have answered
//! lately, and this client's lease runs (so that it would hear of new ones), nothing has changed that wasn't told, but for the moment that
//! the word takes. When that can't be said any more, [`News::Everything`] is told.
//!
//! A server that the routing names no longer is listened to for as long as it answers: somebody may still ask it.

mod lately;

use crate::client::{Client, Inner};
use crate::ground::Ground;
use corefs_net::Address;
use corefs_net::executor::{sleep, spawn};
use corefs_wire::control::meta::WatchT;
use corefs_wire::{ClientId, ErrorCode, InodeId, Result};
use lately::Lately;
pub use lately::News;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

/// How long a server may hold our question.
const WAIT: Duration = Duration::from_secs(1);
/// How much later the answer may come before the server isn't heard any more.
const LATE: Duration = Duration::from_secs(1);
/// After a question that failed, or whose answer was of no use.
const PAUSE: Duration = Duration::from_millis(250);
/// After one that the server doesn't understand.
const LONG_PAUSE: Duration = Duration::from_secs(10);
/// Between looks for servers that are new, and for the lease.
const LOOK: Duration = Duration::from_millis(250);

/// One metadata server, as far as it is heard.
#[derive(Default)]
struct Ear {
    /// The life of the server, and what to ask for next; none while nothing of it can be believed.
    place: Cell<Option<(u64, u64)>>,
}

type Told = dyn Fn(&News);

/// Hears of what others change. Ends with its client, or when the last handle is dropped.
#[derive(Clone)]
pub struct Watch(Rc<State>);

struct State {
    client: Weak<Inner>,
    told: Box<Told>,
    ears: RefCell<HashMap<Address, Rc<Ear>>>,
    /// Everything was told, and nothing has been believed since.
    silent: Cell<bool>,
    lately: RefCell<Lately>,
}

/// A moment, before something is asked.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Moment {
    /// News so far.
    news: u64,
    /// Changes of our own so far; none if any is under way.
    changes: Option<u64>,
}

impl Client {
    /// Has `told` hear of what others change, on this client's executor; it must not wait.
    pub fn watch(&self, told: impl Fn(&News) + 'static) -> Watch {
        let state = Rc::new(State {
            client: Rc::downgrade(&self.0),
            told: Box::new(told),
            ears: RefCell::default(),
            silent: Cell::new(true),
            lately: RefCell::default(),
        });
        spawn(keep(Rc::downgrade(&state))).detach();
        Watch(state)
    }
}

impl Watch {
    /// To be taken before something is asked that [`stands`](Self::stands) is then asked about.
    pub fn now(&self) -> Moment {
        let changes = self.0.client.upgrade().and_then(|client| client.meta.quiet());
        Moment { news: self.0.lately.borrow().count(), changes }
    }

    /// Whether what was asked at that moment may be believed until there is news `about` it: every server is heard, there were none since, and
    /// this client has changed nothing meanwhile that the answer may not have known, and knows nothing of an inode that servers don't.
    pub fn stands(&self, asked: Moment, about: &[News]) -> bool {
        let Some(client) = self.0.client.upgrade() else { return false };
        let unsent = |news: &News| match news {
            News::Inode(inode) => client.live(*inode).is_some_and(|live| live.has_news()),
            _ => false,
        };
        asked.changes.is_some()
            && asked.changes == client.meta.quiet()
            && self.0.hears(&client)
            && self.0.lately.borrow().none_since(asked.news, about)
            && !about.iter().any(unsent)
    }
}

impl State {
    /// Whether every server is heard.
    fn hears(&self, client: &Inner) -> bool {
        let (metas, ears) = (client.ground.metas(), self.ears.borrow());
        let heard = |server: &Address| ears.get(server).is_some_and(|ear| ear.place.get().is_some());
        client.has_lease() && !metas.is_empty() && metas.iter().all(heard)
    }

    fn tell(&self, news: &News) {
        if let Some(client) = self.client.upgrade() {
            match news {
                News::Inode(inode) => client.live(*inode).into_iter().for_each(|live| live.heard.set(None)),
                News::Everything => client.all_live().iter().for_each(|live| live.heard.set(None)),
                News::Name(..) => {}
            }
        }
        self.lately.borrow_mut().add(news);
        (self.told)(news);
    }

    fn alive(&self) -> Option<Rc<Inner>> {
        self.client.upgrade().filter(|client| !client.ground.closed.get())
    }
}

/// Listens to each server that there is, and sees to it that nothing is believed while one isn't heard.
async fn keep(weak: Weak<State>) {
    while let Some(state) = weak.upgrade() {
        let Some(client) = state.alive() else { return };
        for server in client.ground.metas().iter() {
            let mut ears = state.ears.borrow_mut();
            if !ears.contains_key(server) {
                let ear = Rc::new(Ear::default());
                ears.insert(server.clone(), Rc::clone(&ear));
                spawn(listen(Rc::downgrade(&state), ear, server.clone())).detach();
            }
        }
        match state.hears(&client) {
            true => state.silent.set(false),
            false if !state.silent.replace(true) => state.tell(&News::Everything),
            false => {}
        }
        drop((state, client));
        sleep(LOOK).await;
    }
}

/// Asks one server for as long as it is one, or answers.
async fn listen(weak: Weak<State>, ear: Rc<Ear>, server: Address) {
    loop {
        let Some(state) = weak.upgrade() else { return };
        let Some(client) = state.alive() else { return };
        let (ground, id) = (Rc::clone(&client.ground), client.client());
        // Nobody's client is kept alive by a question.
        drop(client);
        let pause = match hear(&state, (&ground, id), &ear, &server).await {
            Ok(true) => continue,
            Ok(false) => PAUSE,
            Err(error) => {
                if ear.place.take().is_some() {
                    tracing::debug!(%error, %server, "changes are not heard of");
                    state.tell(&News::Everything);
                }
                if !ground.metas().contains(&server) {
                    state.ears.borrow_mut().remove(&server);
                    return;
                }
                if error.code == ErrorCode::UnknownOperation { LONG_PAUSE } else { PAUSE }
            }
        };
        drop((state, ground));
        sleep(pause).await;
    }
}

/// One question and its answer. Whether to ask again at once: not a server that answers at once and has nothing to tell.
async fn hear(
    state: &State,
    (ground, client): (&Ground, ClientId),
    ear: &Ear,
    server: &Address,
) -> Result<bool> {
    let (life, since) = ear.place.get().unwrap_or_default();
    let mut request = WatchT::default();
    (request.client, request.life, request.since) = (client.0, life, since);
    request.wait_ms = WAIT.as_millis() as u32;
    let asked = Instant::now();
    let reply = ground.node.ask_patiently(server, &request, LATE, WAIT + LATE).await?;
    let lost = reply.lost || (since != 0 && reply.life != life);
    if lost {
        ear.place.set(None);
        state.tell(&News::Everything);
    }
    let told = !reply.inodes.is_empty() || !reply.names.is_empty();
    for inode in reply.inodes {
        state.tell(&News::Inode(InodeId(inode)));
    }
    for name in reply.names {
        state.tell(&News::Name(InodeId(name.parent), name.name));
    }
    let place = (reply.next != 0).then_some((reply.life, reply.next));
    ear.place.set(place);
    let began = since == 0 && place.is_some();
    Ok(told || began || (!lost && asked.elapsed() >= WAIT / 2))
}
