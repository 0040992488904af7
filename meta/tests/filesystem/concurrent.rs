//! Many clients at once, over a store in which everything goes wrong: what is left is sound, every effect happened
//! once, and short histories have an order in which a model gives the same replies.

use crate::support::client::{Client, ROOT, root};
use crate::support::model::Model;
use crate::support::{CHUNK, Fs, World, another, assert_clean, over, schedule};
use corefs_kv::mem::Faults;
use corefs_kv::prng::Prng;
use corefs_kv::{KvEngine, Mem};
use corefs_meta::Namespace;
use corefs_meta::gc::{GcCursor, GcLimits};
use corefs_wire::ErrorCode;
use corefs_wire::control::meta::Kind;
use futures_lite::future::{block_on, yield_now};
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

type Task = Pin<Box<dyn Future<Output = ()>>>;
type Outcome = Result<u64, ErrorCode>;

/// Interleaves without faults.
const CALM: Faults = Faults { yields: 500, ..NONE };
const NONE: Faults = Faults {
    conflict: 0,
    too_old: 0,
    unavailable: 0,
    unknown_done: 0,
    unknown_never: 0,
    unknown_late: 0,
    read: 0,
    yields: 0,
};

fn formatted(seed: u64) -> (Rc<Fs>, World) {
    block_on(over(Mem::with_faults(seed, NONE), seed))
}

/// Faults end, and what was late lands.
fn settle(fs: &Fs) {
    fs.kv().set_faults(NONE);
    fs.kv().settle();
}

/// What a client may do in these tests. Directories and files are given by their place in a list.
#[derive(Clone, Debug)]
enum Deed {
    Create(usize, Vec<u8>, Kind),
    Unlink(usize, Vec<u8>),
    RmDir(usize, Vec<u8>),
    Rename(usize, Vec<u8>, usize, Vec<u8>, u32),
    Link(usize, usize, Vec<u8>),
    Lookup(usize, Vec<u8>),
}

impl Deed {
    fn random(random: &mut Prng, directories: u64, files: u64, names: u64, flags: &[u32]) -> Self {
        let directory = |random: &mut Prng| random.below(directories) as usize;
        let name = |random: &mut Prng| vec![b'a' + random.below(names) as u8];
        let (at, named) = (directory(random), name(random));
        match random.below(12) {
            0..3 => Self::Create(at, named, Kind::File),
            3..5 => Self::Create(at, named, Kind::Directory),
            5 => Self::Unlink(at, named),
            6 => Self::RmDir(at, named),
            7..10 => {
                let flag = flags[random.below(flags.len() as u64) as usize];
                Self::Rename(at, named, directory(random), name(random), flag)
            }
            10 => Self::Link(random.below(files) as usize, at, named),
            _ => Self::Lookup(at, named),
        }
    }

    async fn run(&self, client: &Client, directories: &[u64], files: &[u64]) -> Outcome {
        let nothing = |outcome: corefs_wire::Result<()>| outcome.map(|()| 0);
        let outcome = match self {
            Self::Create(at, name, kind) => {
                let request = client.create_request(directories[*at], name, *kind, 0o755);
                client.send_create(request).await.map(|reply| reply.attr.inode)
            }
            Self::Unlink(at, name) => nothing(client.unlink(directories[*at], name).await),
            Self::RmDir(at, name) => nothing(client.rmdir(directories[*at], name).await),
            Self::Rename(from, name, to, new_name, flags) => {
                let (from, to) =
                    ((directories[*from], name.as_slice()), (directories[*to], new_name.as_slice()));
                nothing(client.rename(from, to, *flags).await)
            }
            Self::Link(file, at, name) => {
                client.link(files[*file], directories[*at], name).await.map(|attr| attr.inode)
            }
            Self::Lookup(at, name) => client.lookup(directories[*at], name).await.map(|attr| attr.inode),
        };
        outcome.map_err(|error| error.code)
    }

    /// The same deed in the model; nodes of `directories` and `files` are the model's.
    fn model(&self, model: &mut Model, directories: &[usize], files: &[usize]) -> Result<usize, ErrorCode> {
        match self {
            Self::Create(at, name, kind) => model.create(directories[*at], name, *kind, 0o755, b""),
            Self::Unlink(at, name) => model.unlink(directories[*at], name).map(|()| 0),
            Self::RmDir(at, name) => model.rmdir(directories[*at], name).map(|()| 0),
            Self::Rename(from, name, to, new_name, flags) => {
                let (from, to) =
                    ((directories[*from], name.as_slice()), (directories[*to], new_name.as_slice()));
                model.rename(from, to, *flags).map(|()| 0)
            }
            Self::Link(file, at, name) => {
                model.link(files[*file], directories[*at], name).map(|()| files[*file])
            }
            Self::Lookup(at, name) => model.lookup(directories[*at], name),
        }
    }
}

/// Directories a, b and b/c, and two files of root's.
fn ground(fs: &Rc<Fs>) -> (Vec<u64>, Vec<u64>) {
    block_on(async {
        let client = root(fs);
        let a = client.mkdir(ROOT, b"a", 0o755).await.unwrap().inode;
        let b = client.mkdir(ROOT, b"b", 0o755).await.unwrap().inode;
        let c = client.mkdir(b, b"c", 0o755).await.unwrap().inode;
        let files = [
            client.create(ROOT, b"x", 0o644).await.unwrap().inode,
            client.create(ROOT, b"y", 0o644).await.unwrap().inode,
        ];
        (vec![ROOT, a, b, c], files.to_vec())
    })
}

#[test]
fn names_are_conserved() {
    for seed in 0..60 {
        let (fs, _) = formatted(seed);
        let (directories, files) = ground(&fs);
        fs.kv().set_faults(Faults::STORM);
        // Renames that replace nothing, so that every name that comes or goes is somebody's success.
        let names = Rc::new(Cell::new(5i64));
        let tasks = (0..6u64).map(|number| {
            let server = if number % 2 == 0 { fs.clone() } else { another(&fs) };
            let client = Client::new(server, 200 + number);
            client.low_water.set(true);
            let (names, directories, files) = (names.clone(), directories.clone(), files.clone());
            let mut random = Prng::new(seed * 100 + number);
            Box::pin(async move {
                for _ in 0..25 {
                    let deed = Deed::random(&mut random, 4, 2, 4, &[1, 2]);
                    let outcome = deed.run(&client, &directories, &files).await;
                    let change = match (&deed, outcome) {
                        (_, Err(ErrorCode::KvUnknownCommit)) => panic!("seed {seed}: gave up"),
                        (_, Err(_)) => 0,
                        (Deed::Create(..) | Deed::Link(..), _) => 1,
                        (Deed::Unlink(..) | Deed::RmDir(..), _) => -1,
                        _ => 0,
                    };
                    names.set(names.get() + change);
                }
            }) as Task
        });
        schedule::run(seed, tasks.collect());
        settle(&fs);
        block_on(assert_clean(&fs));
        let checked = block_on(fs.check()).unwrap();
        assert_eq!(checked.entries as i64, names.get(), "seed {seed}");
    }
}

/// One request of a history: when it was sent and answered, and what the answer was.
#[derive(Clone, Debug)]
struct Event {
    sent: u32,
    answered: u32,
    deed: Deed,
    outcome: Outcome,
}

/// Whether the events can be put in an order that keeps what was answered before something else was sent, and in which
/// the model gives the same answers (Wing and Gong, 1993).
fn linearizable(events: &[Event], model: &Model, inodes: &[(usize, u64)], place: &Place) -> bool {
    let Some(first_answer) = events.iter().map(|event| event.answered).min() else { return true };
    (0..events.len()).filter(|at| events[*at].sent < first_answer).any(|at| {
        let event = &events[at];
        let (mut model, mut inodes) = (model.clone(), inodes.to_vec());
        let fits = match (event.deed.model(&mut model, &place.directories, &place.files), event.outcome) {
            (Ok(node), Ok(inode)) => match event.deed {
                Deed::Create(..) => {
                    inodes.push((node, inode));
                    true
                }
                Deed::Lookup(..) | Deed::Link(..) => inodes.contains(&(node, inode)),
                _ => true,
            },
            (Err(expected), Err(found)) => expected == found,
            _ => false,
        };
        let mut rest = events.to_vec();
        rest.swap_remove(at);
        fits && linearizable(&rest, &model, &inodes, place)
    })
}

/// Nodes of the model that deeds name by their place.
struct Place {
    directories: Vec<usize>,
    files: Vec<usize>,
}

fn model_ground() -> (Model, Place) {
    let mut model = Model::default();
    let mut make = |parent, name: &[u8], kind| model.create(parent, name, kind, 0o755, b"").unwrap();
    let a = make(0, b"a", Kind::Directory);
    let b = make(0, b"b", Kind::Directory);
    let c = make(b, b"c", Kind::Directory);
    let files = vec![make(0, b"x", Kind::File), make(0, b"y", Kind::File)];
    (model, Place { directories: vec![0, a, b, c], files })
}

/// Runs a short history and returns it.
fn history(seed: u64, faults: Faults) -> (Rc<Fs>, Vec<Event>, Vec<(usize, u64)>) {
    let (fs, _) = formatted(seed);
    let (directories, files) = ground(&fs);
    fs.kv().set_faults(faults);
    let (events, clock) = (Rc::new(RefCell::new(Vec::new())), Rc::new(Cell::new(0)));
    let tasks = (0..4u64).map(|number| {
        let client = Client::new(another(&fs), 200 + number);
        let (events, clock) = (events.clone(), clock.clone());
        let (directories, files) = (directories.clone(), files.clone());
        let mut random = Prng::new(seed * 100 + number);
        let tick = move || {
            clock.set(clock.get() + 1);
            clock.get()
        };
        Box::pin(async move {
            for _ in 0..4 {
                let deed = Deed::random(&mut random, 4, 2, 3, &[0, 0, 1, 2]);
                let sent = tick();
                let outcome = deed.run(&client, &directories, &files).await;
                let answered = tick();
                events.borrow_mut().push(Event { sent, answered, deed, outcome });
            }
        }) as Task
    });
    schedule::run(seed, tasks.collect());
    let (_, place) = model_ground();
    let inodes = place.directories.iter().chain(&place.files).copied();
    let inodes = inodes.zip(directories.iter().chain(&files).copied()).collect();
    let events = events.take();
    (fs, events, inodes)
}

#[test]
fn short_histories_have_an_order() {
    for seed in 0..300 {
        let faults = if seed % 3 == 0 { CALM } else { Faults::STORM };
        let (fs, events, inodes) = history(seed, faults);
        settle(&fs);
        block_on(assert_clean(&fs));
        let (model, place) = model_ground();
        assert!(linearizable(&events, &model, &inodes, &place), "seed {seed}: {events:#?}");
    }
}

#[test]
fn a_wrong_history_has_none() {
    // The search can fail: a success turned into a failure, or the other way round, is noticed mostly.
    let mut noticed = 0;
    for seed in 0..40 {
        let (_, mut events, inodes) = history(seed, CALM);
        let Some(event) = events.iter_mut().find(|event| matches!(event.deed, Deed::Create(..))) else {
            continue;
        };
        event.outcome = match event.outcome {
            Ok(_) => Err(ErrorCode::Exists),
            Err(_) => Ok(77),
        };
        let (model, place) = model_ground();
        noticed += u32::from(!linearizable(&events, &model, &inodes, &place));
    }
    assert!(noticed > 30, "{noticed}");
}

#[test]
fn two_renames_never_close_a_loop() {
    let mut lost = [0; 2];
    for seed in 0..300u64 {
        let (fs, _) = formatted(seed);
        let client = root(&fs);
        let (a, b, deep_a, deep_b) = block_on(async {
            let a = client.mkdir(ROOT, b"a", 0o755).await.unwrap().inode;
            let b = client.mkdir(ROOT, b"b", 0o755).await.unwrap().inode;
            let deep_a = client.mkdir(a, b"deep", 0o755).await.unwrap().inode;
            let deep_b = client.mkdir(b, b"deep", 0o755).await.unwrap().inode;
            (a, b, deep_a, deep_b)
        });
        fs.kv().set_faults(if seed % 2 == 0 { CALM } else { Faults::STORM });
        let (to_a, to_b) = if seed % 4 < 2 { (a, b) } else { (deep_a, deep_b) };
        let outcomes = Rc::new(RefCell::new([None, None]));
        let moves = [(b"a", to_b), (b"b", to_a)];
        let tasks = moves.into_iter().enumerate().map(|(number, (name, to))| {
            let client = Client::new(another(&fs), 200 + number as u64);
            let outcomes = outcomes.clone();
            Box::pin(async move {
                let outcome = client.rename((ROOT, name), (to, b"moved"), 0).await;
                outcomes.borrow_mut()[number] = Some(outcome.map_err(|error| error.code));
            }) as Task
        });
        schedule::run(seed, tasks.collect());
        settle(&fs);
        let outcomes = outcomes.take();
        match outcomes {
            [Some(Ok(())), Some(Err(ErrorCode::WouldLoop))] => lost[1] += 1,
            [Some(Err(ErrorCode::WouldLoop)), Some(Ok(()))] => lost[0] += 1,
            _ => panic!("seed {seed}: {outcomes:?}"),
        }
        block_on(assert_clean(&fs));
    }
    assert!(lost.iter().all(|count| *count > 30), "the race isn't one: {lost:?}");
}

/// A store that counts how often a transaction had to be tried again.
#[derive(Clone)]
struct Counting {
    store: Mem,
    retries: Rc<Cell<u32>>,
}

impl KvEngine for Counting {
    type Txn = <Mem as KvEngine>::Txn;

    fn begin(&self) -> Self::Txn {
        self.store.begin()
    }

    fn now(&self) -> Duration {
        KvEngine::now(&self.store)
    }

    async fn backoff(&self, attempt: u32) {
        self.retries.set(self.retries.get() + 1);
        self.store.backoff(attempt).await;
    }
}

#[test]
fn creates_in_one_directory_do_not_conflict() {
    let store = Counting { store: Mem::with_faults(1, CALM), retries: Rc::default() };
    let fs = Rc::new(Namespace::new(store.clone(), 1, World::new(1)));
    block_on(fs.format()).unwrap();
    let make = |number: u64, last: bool| {
        let client = Client::new(fs.clone(), 200 + number);
        Box::pin(async move {
            for at in 0..20 {
                let name = format!("{number} {at}");
                client.create(ROOT, name.as_bytes(), 0o644).await.unwrap();
                if last && at % 2 == 0 {
                    client.unlink(ROOT, name.as_bytes()).await.unwrap();
                }
            }
        }) as Task
    };
    block_on(make(0, false));
    store.retries.set(0);
    schedule::run(7, (1..20).map(|number| make(number, true)).collect());
    assert_eq!(store.retries.get(), 0);
    block_on(assert_clean(&fs));
    let checked = block_on(fs.check()).unwrap();
    assert_eq!(checked.entries, 20 + 19 * 10);
}

/// Writes under the epoch it knows, as a client does, and reports what it wrote.
async fn write_and_sync(client: &Client, world: &World, file: u64, session: u64, random: &mut Prng) -> u64 {
    let offset = random.below(3 * u64::from(CHUNK));
    loop {
        let epoch = client.stat(file).await.unwrap().epoch;
        yield_now().await;
        match world.write(file, epoch, offset, &[9; 500]) {
            Ok(()) => {
                // Sometimes it forgets under which epoch that was.
                let said = if random.below(4) == 0 { 0 } else { epoch };
                client.sync(file, session, offset + 500, said).await.unwrap();
                return offset + 500;
            }
            Err(_) => yield_now().await,
        }
    }
}

#[test]
fn old_bytes_never_come_back() {
    for seed in 0..100u64 {
        let (fs, world) = formatted(seed);
        let client = root(&fs);
        let file = block_on(client.create(ROOT, b"f", 0o644)).unwrap().inode;
        fs.kv().set_faults(Faults::STORM);
        world.interleave();
        let tasks = (0..5u64).map(|number| {
            let client = Client::new(another(&fs), 200 + number);
            let world = world.clone();
            let mut random = Prng::new(seed * 100 + number);
            Box::pin(async move {
                let session = client.open(file, true, false).await.unwrap().session;
                for _ in 0..6 {
                    match number {
                        0..3 => drop(write_and_sync(&client, &world, file, session, &mut random).await),
                        3 => drop(client.truncate(file, random.below(4 * u64::from(CHUNK))).await.unwrap()),
                        _ => drop(client.fs.finish_trims().await),
                    }
                }
                client.close(file, session, 0).await.unwrap();
            }) as Task
        });
        schedule::run(seed, tasks.collect());
        settle(&fs);
        block_on(async {
            assert_clean(&fs).await;
            // No byte beyond the length, and none comes to light when the file grows again.
            let size = client.stat(file).await.unwrap().size;
            let length = 5 * u64::from(CHUNK);
            assert!(
                world.read(file, size, (length - size) as usize).iter().all(|byte| *byte == 0),
                "seed {seed}"
            );
            // The last writer's bytes count.
            let session = client.open(file, true, false).await.unwrap().session;
            let end = write_and_sync(&client, &world, file, session, &mut Prng::new(seed)).await;
            assert_eq!(client.stat(file).await.unwrap().size, size.max(end), "seed {seed}");
            client.truncate(file, 100).await.unwrap();
            client.truncate(file, length).await.unwrap();
            assert!(
                world.read(file, 100, length as usize - 100).iter().all(|byte| *byte == 0),
                "seed {seed}"
            );
        });
    }
}

#[test]
fn opening_and_removing_race_soundly() {
    for seed in 0..100u64 {
        let (fs, world) = formatted(seed);
        let client = root(&fs);
        let file = block_on(client.create(ROOT, b"f", 0o644)).unwrap().inode;
        world.write(file, 1, 0, &[7; 100]).unwrap();
        block_on(client.unlink(ROOT, b"f")).unwrap();
        fs.kv().set_faults(Faults::STORM);
        let opened = Rc::new(Cell::new(None));
        let opener = {
            let (client, opened) = (Client::new(another(&fs), 200), opened.clone());
            Box::pin(async move {
                let outcome = client.send_open(file, false, false, true).await;
                opened.set(Some(outcome.map(|reply| reply.session).map_err(|error| error.code)));
            }) as Task
        };
        let collector = {
            let fs = another(&fs);
            Box::pin(async move {
                let collected = fs.collect_garbage(&mut GcCursor::default(), GcLimits::default()).await;
                assert_eq!(collected.unwrap().seen, 1);
            }) as Task
        };
        schedule::run(seed, vec![opener, collector]);
        settle(&fs);
        block_on(assert_clean(&fs));
        let there = world.inodes_with_chunks().contains(&file);
        match opened.take() {
            Some(Ok(_)) => assert!(there, "seed {seed}: opened and removed"),
            Some(Err(ErrorCode::NoSuchInode)) => {}
            other => panic!("seed {seed}: {other:?}"),
        }
    }
}

#[test]
fn a_late_cut_spares_what_was_written_since() {
    for seed in 0..300u64 {
        let (fs, world) = formatted(seed);
        let first = root(&fs);
        let file = block_on(first.create(ROOT, b"f", 0o644)).unwrap().inode;
        world.write(file, 1, 0, &[7; 4 * CHUNK as usize]).unwrap();
        block_on(first.truncate(file, 4 * u64::from(CHUNK))).unwrap();
        fs.kv().set_faults(CALM);
        world.interleave();
        let cutter = Box::pin(async move {
            assert_eq!(first.truncate(file, 10).await.unwrap().epoch, 3);
        }) as Task;
        // Another server helps, and may be done long before the first one's last cut arrives.
        let writer = {
            let (client, world) = (Client::new(another(&fs), 200), world.clone());
            Box::pin(async move {
                let session = client.open(file, true, false).await.unwrap().session;
                while client.stat(file).await.unwrap().epoch == 1 {
                    client.fs.finish_trims().await.1.unwrap();
                    yield_now().await;
                }
                for chunk in 0..4 {
                    world.write(file, 3, chunk * u64::from(CHUNK) + 10, &[9; 100]).unwrap();
                    yield_now().await;
                }
                client.close(file, session, 0).await.unwrap();
            }) as Task
        };
        schedule::run(seed, vec![cutter, writer]);
        settle(&fs);
        block_on(assert_clean(&fs));
        for chunk in 0..4 {
            let bytes = world.read(file, chunk * u64::from(CHUNK) + 10, 101);
            assert_eq!((&bytes[..100], bytes[100]), (&[9; 100][..], 0), "seed {seed}, chunk {chunk}");
        }
    }
}

#[test]
fn settling_a_dead_client_never_undoes_a_truncation() {
    for seed in 0..300u64 {
        let (fs, world) = formatted(seed);
        let (dead, living) = (Client::new(fs.clone(), 200), Client::new(another(&fs), 300));
        let file = block_on(dead.create(ROOT, b"f", 0o644)).unwrap().inode;
        block_on(dead.open(file, true, false)).unwrap();
        world.write(file, 1, 0, &[7; 1000]).unwrap();
        world.kill(dead.id);
        fs.kv().set_faults(CALM);
        world.interleave();
        let settler = {
            let fs = another(&fs);
            Box::pin(async move {
                let swept = fs.settle_dead_clients().await.unwrap();
                assert_eq!((swept.sessions_settled, swept.failed), (1, 0));
            }) as Task
        };
        let truncater = Box::pin(async move {
            assert_eq!(living.truncate(file, 10).await.unwrap().size, 10);
        }) as Task;
        schedule::run(seed, vec![settler, truncater]);
        settle(&fs);
        block_on(assert_clean(&fs));
        assert_eq!(block_on(dead.stat(file)).unwrap().size, 10, "seed {seed}");
    }
}

#[test]
fn places_of_appends_never_meet() {
    for seed in 0..60 {
        let (fs, world) = formatted(seed);
        let file = block_on(root(&fs).create(ROOT, b"log", 0o644)).unwrap().inode;
        fs.kv().set_faults(Faults::STORM);
        let filled: Rc<RefCell<Vec<(u64, u64)>>> = Rc::default();
        let tasks = (0..5u64).map(|number| {
            let server = if number % 2 == 0 { fs.clone() } else { another(&fs) };
            let client = Client::new(server, 200 + number);
            client.low_water.set(true);
            let (filled, world) = (filled.clone(), world.clone());
            let mut random = Prng::new(seed * 100 + number);
            Box::pin(async move {
                let mut end = 0;
                let mut session = client.open(file, true, false).await.unwrap().session;
                for _ in 0..15 {
                    let count = 1 + random.below(50);
                    let start = client.append(file, session, (count, end), 1).await.unwrap();
                    if number == 4 && random.below(8) == 0 {
                        // It dies, others settle what it left, and then its bytes arrive.
                        world.kill(client.id);
                        while client.fs.settle_dead_clients().await.is_err() {}
                        for _ in 0..random.below(200) {
                            yield_now().await;
                        }
                        filled.borrow_mut().push((start, start + count));
                        return;
                    }
                    yield_now().await;
                    if random.below(4) == 0 {
                        // Storage was full: this place is given up.
                        continue;
                    }
                    end = start + count;
                    filled.borrow_mut().push((start, end));
                    world.write(file, 1, start, &vec![number as u8; count as usize]).unwrap();
                    match random.below(3) {
                        0 => {
                            client.close(file, session, end).await.unwrap();
                            session = client.open(file, true, false).await.unwrap().session;
                        }
                        1 => _ = client.sync(file, session, end, 1).await.unwrap(),
                        // Reported later.
                        _ => {}
                    }
                }
                client.close(file, session, end).await.unwrap();
            }) as Task
        });
        schedule::run(seed, tasks.collect());
        settle(&fs);
        block_on(assert_clean(&fs));
        let mut filled = filled.take();
        filled.sort_unstable();
        for pair in filled.windows(2) {
            assert!(pair[0].1 <= pair[1].0, "seed {seed}: {pair:?} meet");
        }
        let size = block_on(root(&fs).stat(file)).unwrap().size;
        assert!(filled.last().is_some_and(|last| last.1 <= size), "seed {seed}: {size} bytes");
    }
}
