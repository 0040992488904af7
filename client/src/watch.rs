//! Hears of what others change, from all metadata servers, so that what was heard before may be believed until then.
//!
//! Each server is asked all the time for what changed by way of it, and answers when something has. While all that the routing names have answered
//! lately, and this client's lease runs (so that it would hear of new ones), nothing has changed that wasn't told, but for the moment that
//! the word takes. When that can't be said any more, [`News::Everything`] is told.

use crate::client::{Client, Inner};
use crate::ground::Ground;
use corefs_net::Address;
use corefs_net::executor::{sleep, spawn};
use corefs_wire::control::meta::WatchT;
use corefs_wire::{ClientId, ErrorCode, InodeId, Result};
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::{Rc, Weak};
use std::time::Duration;

/// How long a server may hold our question.
const WAIT: Duration = Duration::from_secs(1);
/// How much later the answer may come before the server isn't heard any more.
const LATE: Duration = Duration::from_secs(1);
/// After a question that failed.
const PAUSE: Duration = Duration::from_millis(250);
/// After one that the server doesn't understand, and between looks for servers that are new and for the lease.
const LONG_PAUSE: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(250);
/// Changes remembered for answers that were under way.
const LATELY: usize = 4096;

/// What has changed.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum News {
    /// Attributes of an inode, and maybe its bytes.
    Inode(InodeId),
    /// What a name leads to, if to anything.
    Name(InodeId, Vec<u8>),
    /// Anything may have.
    Everything,
}

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
    count: Cell<u64>,
    /// The last of the news, oldest first; `count` is the number after the last.
    lately: RefCell<VecDeque<News>>,
}

impl Client {
    /// Has `told` hear of what others change, on this client's executor; it must not wait.
    pub fn watch(&self, told: impl Fn(&News) + 'static) -> Watch {
        let state = Rc::new(State {
            client: Rc::downgrade(&self.0),
            told: Box::new(told),
            ears: RefCell::default(),
            silent: Cell::new(true),
            count: Cell::new(0),
            lately: RefCell::default(),
        });
        spawn(keep(Rc::downgrade(&state))).detach();
        Watch(state)
    }
}

impl Watch {
    /// News so far: to be taken before something is asked that [`stands`](Self::stands) is then asked about.
    pub fn count(&self) -> u64 {
        self.0.count.get()
    }

    /// Whether what was asked when there were `count` news may be believed until there is news of it. `of`: whether some news are.
    pub fn stands(&self, count: u64, of: impl Fn(&News) -> bool) -> bool {
        let state = &*self.0;
        let new = (state.count.get() - count) as usize;
        let lately = state.lately.borrow();
        state.hears()
            && new <= lately.len()
            && !lately.iter().rev().take(new).any(|news| *news == News::Everything || of(news))
    }
}

impl State {
    /// Whether every server is heard.
    fn hears(&self) -> bool {
        let Some(client) = self.client.upgrade() else { return false };
        let (metas, ears) = (client.ground.metas(), self.ears.borrow());
        let heard = |server: &Address| ears.get(server).is_some_and(|ear| ear.place.get().is_some());
        client.has_lease() && !metas.is_empty() && metas.iter().all(heard)
    }

    fn tell(&self, news: News) {
        if let Some(client) = self.client.upgrade() {
            match &news {
                News::Inode(inode) => client.live(*inode).into_iter().for_each(|live| live.heard.set(None)),
                News::Everything => client.all_live().iter().for_each(|live| live.heard.set(None)),
                News::Name(..) => {}
            }
        }
        {
            let mut lately = self.lately.borrow_mut();
            if lately.len() == LATELY {
                lately.pop_front();
            }
            lately.push_back(news.clone());
        }
        self.count.set(self.count.get() + 1);
        (self.told)(&news);
    }

    fn alive(&self) -> Option<Rc<Inner>> {
        self.client.upgrade().filter(|client| !client.ground.closed.get())
    }
}

/// Listens to each server that there is, and sees to it that nothing is believed while one isn't heard.
async fn keep(weak: Weak<State>) {
    while let Some(state) = weak.upgrade() {
        let Some(client) = state.alive() else { return };
        let metas = client.ground.metas();
        state.ears.borrow_mut().retain(|server, _| metas.contains(server));
        for server in metas.iter() {
            let mut ears = state.ears.borrow_mut();
            if !ears.contains_key(server) {
                let ear = Rc::new(Ear::default());
                ears.insert(server.clone(), Rc::clone(&ear));
                spawn(listen(Rc::downgrade(&state), Rc::downgrade(&ear), server.clone())).detach();
            }
        }
        match state.hears() {
            true => state.silent.set(false),
            false if !state.silent.replace(true) => state.tell(News::Everything),
            false => {}
        }
        drop((state, client));
        sleep(LOOK).await;
    }
}

/// Asks one server for as long as it is one.
async fn listen(weak: Weak<State>, ear: Weak<Ear>, server: Address) {
    loop {
        let (Some(state), Some(ear)) = (weak.upgrade(), ear.upgrade()) else { return };
        let Some(client) = state.alive() else { return };
        let (ground, id) = (Rc::clone(&client.ground), client.client());
        // Nobody's client is kept alive by a question.
        drop(client);
        let pause = match hear(&state, (&ground, id), &ear, &server).await {
            Ok(()) => continue,
            Err(error) => {
                if ear.place.take().is_some() {
                    tracing::debug!(%error, %server, "changes are not heard of");
                    state.tell(News::Everything);
                }
                if error.code == ErrorCode::UnknownOperation { LONG_PAUSE } else { PAUSE }
            }
        };
        drop((state, ear, ground));
        sleep(pause).await;
    }
}

/// One question and its answer.
async fn hear(
    state: &State,
    (ground, client): (&Ground, ClientId),
    ear: &Ear,
    server: &Address,
) -> Result<()> {
    let (life, since) = ear.place.get().unwrap_or_default();
    let mut request = WatchT::default();
    (request.client, request.life, request.since) = (client.0, life, since);
    request.wait_ms = WAIT.as_millis() as u32;
    let reply = ground.node.ask_patiently(server, &request, LATE, WAIT + LATE).await?;
    if reply.lost || (since != 0 && reply.life != life) {
        ear.place.set(None);
        state.tell(News::Everything);
    }
    for inode in reply.inodes {
        state.tell(News::Inode(InodeId(inode)));
    }
    for name in reply.names {
        state.tell(News::Name(InodeId(name.parent), name.name));
    }
    ear.place.set((reply.next != 0).then_some((reply.life, reply.next)));
    Ok(())
}
