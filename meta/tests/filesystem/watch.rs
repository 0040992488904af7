//! What a client believes until it is told otherwise is so, whoever changed what by way of which server.

use crate::support::client::{Client, ROOT};
use crate::support::{World, schedule};
use corefs_kv::mem::Faults;
use corefs_kv::prng::Prng;
use corefs_kv::{KvEngine, Mem};
use corefs_meta::Namespace;
use corefs_meta::key::Keys;
use corefs_meta::watch::{Changes, Noting, What};
use corefs_wire::control::meta::{AttrT, Kind};
use corefs_wire::{ClientId, ErrorCode, InodeId};
use futures_lite::future::block_on;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

type Task = Pin<Box<dyn Future<Output = ()>>>;
type Server = Rc<Namespace<Noting<Mem>, World>>;
type Someone = Client<Noting<Mem>>;

const WATCHER: u64 = 900;
const SERVERS: usize = 2;

const NONE: Faults = Faults { yields: 0, conflict: 0, too_old: 0, unavailable: 0, ..CALM };

/// Interleaves, and lets transactions fail in ways that leave no doubt.
const CALM: Faults =
    Faults { unknown_done: 0, unknown_never: 0, unknown_late: 0, read: 0, yields: 500, ..Faults::STORM };

fn servers(seed: u64) -> Vec<Server> {
    let (store, world) = (Mem::with_faults(seed, NONE), World::new(seed));
    let servers = (0..SERVERS).map(|_| {
        let engine = Noting::new(store.clone(), Keys::new(1), Changes::default());
        Rc::new(Namespace::new(engine, 1, world.clone()))
    });
    let servers: Vec<Server> = servers.collect();
    block_on(servers[0].format()).unwrap();
    servers
}

/// What names in directories lead to, if to anything.
type Names = HashMap<(u64, Vec<u8>), Option<u64>>;

/// What somebody who watches believes.
struct Believer {
    servers: Vec<Server>,
    client: Someone,
    /// Where it is with each server; 0: it hears nothing of that one.
    places: RefCell<Vec<u64>>,
    names: RefCell<Names>,
    inodes: RefCell<HashMap<u64, AttrT>>,
    /// News so far.
    heard: Cell<u64>,
    missed: Cell<u64>,
}

impl Believer {
    fn new(servers: &[Server]) -> Self {
        Self {
            servers: servers.to_vec(),
            client: Client::new(servers[0].clone(), WATCHER),
            places: RefCell::new(vec![0; servers.len()]),
            names: RefCell::default(),
            inodes: RefCell::default(),
            heard: Cell::new(0),
            missed: Cell::new(0),
        }
    }

    /// Hears all that there is to be heard.
    fn listen(&self) {
        for (number, server) in self.servers.iter().enumerate() {
            loop {
                let (changes, now) = (server.kv().changes(), server.kv().now());
                let place = self.places.borrow()[number];
                let told = match changes.ask(ClientId(WATCHER), place, now) {
                    Ok(told) => told,
                    Err(next) => {
                        self.places.borrow_mut()[number] = next;
                        break;
                    }
                };
                self.heard.set(self.heard.get() + 1);
                if told.lost {
                    self.missed.set(self.missed.get() + 1);
                    self.names.borrow_mut().clear();
                    self.inodes.borrow_mut().clear();
                }
                for what in told.what {
                    match what {
                        What::Inode(inode) => drop(self.inodes.borrow_mut().remove(&inode.0)),
                        What::Name(parent, name) => drop(self.names.borrow_mut().remove(&(parent.0, name))),
                    }
                }
                self.places.borrow_mut()[number] = told.next;
                if told.next == 0 {
                    break;
                }
            }
        }
    }

    /// Looks for a name and believes the answer, if nothing was heard meanwhile.
    async fn look(&self, parent: u64, name: &[u8]) {
        let before = self.heard.get();
        let found = match self.client.lookup(parent, name).await {
            Ok(attr) => Some(attr),
            Err(error) if error.code == ErrorCode::NotFound => None,
            Err(_) => return,
        };
        if self.heard.get() != before || self.places.borrow().contains(&0) {
            return;
        }
        self.names.borrow_mut().insert((parent, name.to_vec()), found.as_ref().map(|attr| attr.inode));
        if let Some(attr) = found {
            self.inodes.borrow_mut().insert(attr.inode, attr);
        }
    }

    /// How much of what is believed after having listened was looked at. All of it must be so.
    fn verify(&self, seed: u64) -> usize {
        self.listen();
        let (names, inodes) = (self.names.borrow(), self.inodes.borrow());
        for ((parent, name), believed) in &*names {
            let found = block_on(self.client.lookup(*parent, name)).ok().map(|attr| attr.inode);
            assert_eq!(found, *believed, "seed {seed}: {name:?} in {parent}");
        }
        for (inode, believed) in &*inodes {
            let found =
                block_on(self.client.stat(*inode)).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            assert_eq!(found, *believed, "seed {seed}");
        }
        names.len() + inodes.len()
    }
}

/// Anything that changes names or attributes.
async fn deed(client: &Someone, random: &mut Prng, directories: &[u64]) {
    let pick = |random: &mut Prng| directories[random.below(directories.len() as u64) as usize];
    let name = |random: &mut Prng| vec![b'a' + random.below(5) as u8];
    let (parent, named) = (pick(random), name(random));
    match random.below(10) {
        0 => drop(client.mkdir(parent, &named, 0o755).await),
        1..3 => drop(client.create(parent, &named, 0o644).await),
        3 => drop(client.unlink(parent, &named).await),
        4 => drop(client.rmdir(parent, &named).await),
        5 => {
            let flags = random.below(3) as u32;
            drop(client.rename((parent, &named), (pick(random), &name(random)), flags).await);
        }
        kind => {
            let Ok(found) = client.lookup(parent, &named).await else { return };
            let (to, new) = (pick(random), name(random));
            change(client, random, &found, kind, (to, &new)).await;
        }
    }
}

async fn change(client: &Someone, random: &mut Prng, found: &AttrT, kind: u64, place: (u64, &[u8])) {
    match kind {
        6 => drop(client.link(found.inode, place.0, place.1).await),
        7 => drop(client.chmod(found.inode, 0o600 + random.below(64) as u32).await),
        8 => drop(client.truncate(found.inode, random.below(1 << 20)).await),
        _ if found.kind == Kind::File => {
            let Ok(opened) = client.open(found.inode, true, false).await else { return };
            drop(client.close(found.inode, opened.session, random.below(1 << 20)).await);
        }
        _ => {}
    }
}

/// Some directories, changed by four clients by way of two servers, and looked at by one. Returns how much was verified, and how often
/// something was missed.
fn life(seed: u64, faults: Faults) -> (usize, u64) {
    let servers = servers(seed);
    let believer = Rc::new(Believer::new(&servers));
    let directories: Vec<u64> = block_on(async {
        let client = Client::new(servers[0].clone(), 100);
        let a = client.mkdir(ROOT, b"z", 0o755).await.unwrap().inode;
        vec![ROOT, a, client.mkdir(a, b"z", 0o755).await.unwrap().inode]
    });
    // Or while transactions are under way.
    if seed.is_multiple_of(2) {
        believer.listen();
    }
    let clients: Vec<_> = (0..4)
        .map(|number| Rc::new(Client::new(servers[number as usize % SERVERS].clone(), 200 + number)))
        .collect();
    let mut verified = 0;
    for round in 0..6u64 {
        servers[0].kv().engine().set_faults(faults);
        let mut tasks: Vec<Task> = Vec::new();
        for (number, client) in clients.iter().enumerate() {
            let (client, directories) = (client.clone(), directories.clone());
            let mut random = Prng::new(seed * 1000 + round * 10 + number as u64);
            tasks.push(Box::pin(async move {
                for _ in 0..4 {
                    deed(&client, &mut random, &directories).await;
                }
            }));
        }
        let (looker, places, mut random) =
            (believer.clone(), directories.clone(), Prng::new(seed * 7 + round));
        tasks.push(Box::pin(async move {
            for _ in 0..30 {
                let parent = places[random.below(places.len() as u64) as usize];
                looker.look(parent, &[b'a' + random.below(5) as u8]).await;
                if random.below(3) == 0 {
                    looker.listen();
                }
            }
        }));
        schedule::run(seed + round, tasks);
        servers[0].kv().engine().set_faults(NONE);
        servers[0].kv().engine().settle();
        verified += believer.verify(seed);
        if faults == Faults::STORM {
            // What was doubtful is settled by then.
            servers[0].kv().engine().advance(Duration::from_secs(11));
            believer.listen();
        }
    }
    (verified, believer.missed.get())
}

#[test]
fn what_is_believed_is_so() {
    let (mut verified, mut missed) = (0, 0);
    for seed in 0..150 {
        let (more, lost) = life(seed, CALM);
        (verified, missed) = (verified + more, missed + lost);
    }
    assert!(verified > 10_000, "{verified}");
    assert_eq!(missed, 150 * SERVERS as u64, "nothing is missed but what was before");
}

#[test]
fn what_may_still_happen_is_not_believed() {
    let mut missed = 0;
    for seed in 0..100 {
        missed += life(seed, Faults::STORM).1;
    }
    assert!(missed > 200 + 50, "{missed}");
}

#[test]
fn who_changed_something_is_not_told_of_it() {
    let servers = servers(1);
    let believer = Believer::new(&servers);
    believer.listen();
    let before = believer.heard.get();
    block_on(believer.client.create(ROOT, b"mine", 0o644)).unwrap();
    believer.listen();
    assert_eq!(believer.heard.get(), before);
    block_on(Client::new(servers[1].clone(), 5).create(ROOT, b"other", 0o644)).unwrap();
    let told =
        servers[1].kv().changes().ask(ClientId(WATCHER), believer.places.borrow()[1], servers[1].kv().now());
    let what = told.unwrap().what;
    assert!(
        what.contains(&What::Name(InodeId(ROOT), b"other".to_vec()))
            && what.contains(&What::Inode(InodeId(ROOT)))
    );
}
