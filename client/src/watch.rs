//! Hears of what others change, from all metadata servers, so that names and attributes that were heard before count until then.
//!
//! Each server is asked all the time for what changed by way of it, and answers when something has. While all that the routing names have answered
//! lately, and this client's lease runs (so that it would hear of new ones), nothing has changed that wasn't told, but for the moment that
//! the word takes. When that can't be said any more, everything is forgotten.
//!
//! A server that the routing names no longer is listened to for as long as it answers: somebody may still ask it.

mod memory;

use crate::client::{Client, Inner};
use crate::ground::Ground;
use crate::lately::Lately;
use crate::{Attr, Credentials};
use corefs_net::Address;
use corefs_net::executor::{sleep, spawn};
use corefs_net::process::boot_ms;
use corefs_wire::control::meta::WatchT;
use corefs_wire::{ClientId, ErrorCode, InodeId, Result};
pub(crate) use memory::{Memory, Own};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

/// How long a server may hold our question.
const WAIT: Duration = Duration::from_secs(1);
/// How much later the answer may come before the server isn't heard any more.
const LATE: Duration = Duration::from_secs(1);
/// A server that has said nothing for so long isn't heard, whatever was the matter: this process may have stood still.
const SILENT: Duration = Duration::from_secs(3);
/// After a question that failed, or whose answer was of no use.
const PAUSE: Duration = Duration::from_millis(250);
/// After one that the server doesn't understand.
const LONG_PAUSE: Duration = Duration::from_secs(10);
/// Between looks for servers that are new, and for the lease.
const LOOK: Duration = Duration::from_millis(250);

/// What has changed.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) enum News {
    /// Attributes of an inode, and maybe its bytes.
    Inode(InodeId),
    /// What a name leads to, if to anything.
    Name(InodeId, Vec<u8>),
}

/// One metadata server, as far as it is heard.
#[derive(Default)]
struct Ear {
    /// The life of the server, and what to ask for next; none while nothing of it can be believed.
    place: Cell<Option<(u64, u64)>>,
    /// When it last answered: CLOCK_BOOTTIME (ms), which goes on while the machine sleeps.
    heard: Cell<u64>,
}

/// Hears of what others change, for as long as its client lives.
pub struct Watch {
    client: Weak<Inner>,
    ears: RefCell<HashMap<Address, Rc<Ear>>>,
    /// Everything was forgotten, and nothing has been remembered since.
    silent: Cell<bool>,
    lately: RefCell<Lately<News>>,
}

/// A moment, before something is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Moment {
    /// News so far.
    news: u64,
    /// Changes of our own so far.
    changes: u64,
}

impl Client {
    /// Remembers names and attributes from now on, and answers from memory whoever is privileged, until others change them.
    pub fn remember(&self) {
        if self.0.meta.memory().is_on() {
            return;
        }
        let watch = Rc::new(Watch {
            client: Rc::downgrade(&self.0),
            ears: RefCell::default(),
            silent: Cell::new(true),
            lately: RefCell::default(),
        });
        spawn(keep(Rc::downgrade(&watch))).detach();
        if self.0.watch.set(watch).is_ok() {
            self.0.meta.memory().switch_on();
        }
    }

    /// Whether the attributes of an inode are remembered, so that they count until there is news of it.
    pub fn remembers(&self, inode: InodeId) -> bool {
        self.0.live(inode).is_none() && self.0.meta.memory().attr(inode).is_some()
    }

    /// The same of a name that leads nowhere.
    pub fn remembers_nothing(&self, parent: InodeId, name: &[u8]) -> bool {
        self.0.meta.memory().name(parent, name) == Some(None)
    }
}

impl Inner {
    /// What is remembered of an inode. Not of one that is open here: more is known of it than servers know.
    pub(crate) fn remembered(&self, who: &Credentials, inode: InodeId) -> Option<Attr> {
        let attr = self.meta.memory().attr(inode).filter(|_| who.privileged)?;
        (self.live(inode).is_none() && self.hears()).then_some(attr)
    }

    /// The same of what a name leads to, if to anything.
    pub(crate) fn remembered_name(
        &self,
        who: &Credentials,
        parent: InodeId,
        name: &[u8],
    ) -> Option<Option<Attr>> {
        let led = self.meta.memory().name(parent, name).filter(|_| who.privileged)?;
        let is_open = led.is_some_and(|attr| self.live(attr.inode).is_some());
        (!is_open && self.hears()).then_some(led)
    }

    /// To be taken before something is asked that is to be remembered; none if nothing is.
    pub(crate) fn asking(&self) -> Option<Moment> {
        let watch = self.watch.get().filter(|_| self.meta.memory().is_ready())?;
        let news = watch.lately.borrow().count();
        Some(Moment { news, changes: self.meta.quiet()? })
    }

    /// Remembers attributes that a server said, if they still are so: every server is heard, there was no news of the inode since it was `asked`, and
    /// this client has changed nothing meanwhile.
    pub(crate) fn remember_attr(&self, asked: Option<Moment>, attr: &Attr) {
        match self.stands(asked, &[News::Inode(attr.inode)]) {
            true => self.meta.memory().put_attr(attr),
            false => self.meta.memory().compare_attr(attr),
        }
    }

    /// The same of what a name leads to; `None`: nothing.
    pub(crate) fn remember_name(
        &self,
        asked: Option<Moment>,
        parent: InodeId,
        name: &[u8],
        led: Option<&Attr>,
    ) {
        let memory = self.meta.memory();
        if !memory.is_on() {
            return;
        }
        let inode = led.map(|attr| attr.inode);
        match asked.is_some() && self.stands(asked, &[News::Name(parent, name.to_vec())]) {
            true => memory.put_name(parent, name, inode),
            false => memory.compare_name(parent, name, inode),
        }
        if let Some(attr) = led {
            self.remember_attr(asked, attr);
        }
    }

    /// Takes note of attributes that come with something else.
    pub(crate) fn compare_attr(&self, attr: &Attr) {
        self.meta.memory().compare_attr(attr);
    }

    fn hears(&self) -> bool {
        self.watch.get().is_some_and(|watch| watch.hears(self))
    }

    fn stands(&self, asked: Option<Moment>, about: &[News]) -> bool {
        let (Some(asked), Some(watch)) = (asked, self.watch.get()) else { return false };
        self.meta.quiet() == Some(asked.changes)
            && self.meta.memory().is_ready()
            && watch.hears(self)
            && !watch.lately.borrow().since(asked.news, about)
    }
}

impl Watch {
    /// Whether every server is heard.
    fn hears(&self, client: &Inner) -> bool {
        let (metas, ears, now) = (client.ground.metas(), self.ears.borrow(), boot_ms());
        let is_heard = |ear: &Rc<Ear>| {
            ear.place.get().is_some() && now.saturating_sub(ear.heard.get()) < SILENT.as_millis() as u64
        };
        let heard = |server: &Address| ears.get(server).is_some_and(is_heard);
        client.has_lease() && !metas.is_empty() && metas.iter().all(heard)
    }

    fn tell(&self, news: News) {
        if let Some(client) = self.client.upgrade() {
            client.meta.memory().hear(&news);
        }
        self.lately.borrow_mut().add(news);
    }

    /// Anything may have changed.
    fn forget(&self) {
        if let Some(client) = self.client.upgrade() {
            client.meta.memory().forget_all();
        }
        self.lately.borrow_mut().add_anything();
    }

    fn alive(&self) -> Option<Rc<Inner>> {
        self.client.upgrade().filter(|client| !client.ground.closed.get())
    }
}

/// Listens to each server that there is, and sees to it that nothing is believed while one isn't heard.
async fn keep(weak: Weak<Watch>) {
    while let Some(watch) = weak.upgrade() {
        let Some(client) = watch.alive() else { return };
        for server in client.ground.metas().iter() {
            let mut ears = watch.ears.borrow_mut();
            if !ears.contains_key(server) {
                let ear = Rc::new(Ear::default());
                ears.insert(server.clone(), Rc::clone(&ear));
                spawn(listen(Rc::downgrade(&watch), ear, server.clone())).detach();
            }
        }
        match watch.hears(&client) {
            true => watch.silent.set(false),
            false if !watch.silent.replace(true) => watch.forget(),
            false => {}
        }
        drop((watch, client));
        sleep(LOOK).await;
    }
}

/// Asks one server for as long as it is one, or answers.
async fn listen(weak: Weak<Watch>, ear: Rc<Ear>, server: Address) {
    loop {
        let Some(watch) = weak.upgrade() else { return };
        let Some(client) = watch.alive() else { return };
        let (ground, id) = (Rc::clone(&client.ground), client.client());
        // Nobody's client is kept alive by a question.
        drop(client);
        let pause = match hear(&watch, (&ground, id), &ear, &server).await {
            Ok(true) => continue,
            Ok(false) => PAUSE,
            Err(error) => {
                if ear.place.take().is_some() {
                    tracing::debug!(%error, %server, "changes are not heard of");
                    watch.forget();
                }
                if !ground.metas().contains(&server) {
                    watch.ears.borrow_mut().remove(&server);
                    return;
                }
                if error.code == ErrorCode::UnknownOperation { LONG_PAUSE } else { PAUSE }
            }
        };
        drop((watch, ground));
        sleep(pause).await;
    }
}

/// One question and its answer. Whether to ask again at once: not a server that answers at once and has nothing to tell.
async fn hear(
    watch: &Watch,
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
        watch.forget();
    }
    let told = !reply.inodes.is_empty() || !reply.names.is_empty();
    for inode in reply.inodes {
        watch.tell(News::Inode(InodeId(inode)));
    }
    for name in reply.names {
        watch.tell(News::Name(InodeId(name.parent), name.name));
    }
    let place = (reply.next != 0).then_some((reply.life, reply.next));
    ear.place.set(place);
    ear.heard.set(boot_ms());
    let began = since == 0 && place.is_some();
    Ok(told || began || (!lost && asked.elapsed() >= WAIT / 2))
}
