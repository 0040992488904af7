//! Every operation that changes something happens once: however its commit ends, however often it is asked for, and at
//! whichever server.

use crate::support::client::{Client, ROOT, root};
use crate::support::{World, another, assert_clean, code, fresh};
use corefs_kv::mem::{Fault, Faults};
use corefs_wire::control::meta::*;
use corefs_wire::{ErrorCode, Result};
use futures_lite::future::block_on;
use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

/// What was made before the operation under test.
struct Ground {
    a: u64,
    b: u64,
    file: u64,
    session: u64,
}

async fn ground(client: &Client, world: &World) -> Ground {
    let a = client.mkdir(ROOT, b"a", 0o755).await.unwrap().inode;
    let b = client.mkdir(ROOT, b"b", 0o755).await.unwrap().inode;
    let mut request = client.create_request(a, b"f", Kind::File, 0o644);
    request.open = true;
    let made = client.send_create(request).await.unwrap();
    let (file, session) = (made.attr.inode, made.session);
    world.write(file, 1, 0, &[7; 1000]).unwrap();
    client.sync(file, session, 1000, 1).await.unwrap();
    client.create(b, b"g", 0o644).await.unwrap();
    Ground { a, b, file, session }
}

const OPERATIONS: usize = 16;

/// Operation `number`, and what its caller is told.
async fn act(client: &Client, ground: &Ground, number: usize) -> Result<Vec<AttrT>> {
    let Ground { a, b, file, session } = *ground;
    let told = |attr: AttrT| Ok(vec![attr]);
    let nothing = |()| Ok(Vec::new());
    match number {
        0 => told(client.create(a, b"new", 0o644).await?),
        1 => told(client.mkdir(a, b"new", 0o755).await?),
        2 => told(client.symlink(a, b"new", b"target").await?),
        3 => {
            let mut request = client.create_request(a, b"new", Kind::File, 0o644);
            request.open = true;
            told(*client.send_create(request).await?.attr)
        }
        4 => {
            let mut request = client.create_request(a, b"f", Kind::File, 0o644);
            (request.open, request.exclusive) = (true, false);
            told(*client.send_create(request).await?.attr)
        }
        5 => told(*client.open(file, true, false).await?.attr),
        6 => told(*client.open(file, true, true).await?.attr),
        7 => told(client.close(file, session, 2000).await?),
        8 => told(client.sync(file, session, 3000, 1).await?),
        9 => nothing(client.unlink(a, b"f").await?),
        10 => {
            client.mkdir(a, b"sub", 0o755).await?;
            nothing(client.rmdir(a, b"sub").await?)
        }
        11 => nothing(client.rename((a, b"f"), (b, b"g"), 0).await?),
        12 => nothing(client.rename((ROOT, b"a"), (b, b"g"), 2).await?),
        13 => told(client.link(file, b, b"other").await?),
        14 => told(client.chmod(file, 0o600).await?),
        _ => told(client.truncate(file, 10).await?),
    }
}

/// The numbers that follow from chance, which a second attempt draws anew.
fn without_chance(mut attr: AttrT) -> AttrT {
    attr.layout.seed = 0;
    attr
}

/// All names and attributes, and how many sessions there are.
async fn whole(client: &Client) -> (Vec<(String, AttrT)>, u64) {
    let mut found = vec![("/".to_string(), client.stat(ROOT).await.unwrap())];
    let mut at = 0;
    while at < found.len() {
        let (path, attr) = found[at].clone();
        at += 1;
        if attr.kind == Kind::Directory {
            for entry in client.list_plus(attr.inode, b"", 0, true).await.unwrap().entries {
                let name = String::from_utf8(entry.name).unwrap();
                found.push((format!("{path}{name}/"), without_chance(*entry.attr.unwrap())));
            }
        }
    }
    (found, client.fs.check().await.unwrap().sessions)
}

/// Runs one operation with what goes wrong with its commits, and gives what was told and what is there.
async fn trial(
    number: usize,
    faults: &[Option<Fault>],
    repeat: impl AsyncFn(&Client) -> Option<Client>,
) -> (Vec<AttrT>, (Vec<(String, AttrT)>, u64)) {
    let (fs, world) = fresh().await;
    let client = root(&fs);
    let ground = ground(&client, &world).await;
    world.stand_still();
    fs.kv().script(faults.iter().copied());
    let mut told = act(&client, &ground, number).await.unwrap();
    if let Some(copy) = repeat(&client).await {
        // The same request again, as after a lost reply.
        let again = match number {
            10 => copy.again().rmdir(ground.a, b"sub").await.map(|()| Vec::new()),
            _ => act(copy.again(), &ground, number).await,
        };
        assert_eq!(again.unwrap(), told, "operation {number}");
    }
    fs.kv().settle();
    assert_clean(&fs).await;
    told = told.into_iter().map(without_chance).collect();
    let left = whole(&client).await;
    (told, left)
}

const NO_REPEAT: fn(&Client) -> std::future::Ready<Option<Client>> = |_| std::future::ready(None);

#[test]
fn whatever_becomes_of_the_commit() {
    block_on(async {
        for number in 0..OPERATIONS {
            let expected = trial(number, &[], NO_REPEAT).await;
            for first in [Fault::UnknownDone, Fault::UnknownNever, Fault::UnknownLate] {
                for second in [None, Some(Fault::Conflict), Some(first)] {
                    let found = trial(number, &[Some(first), second], NO_REPEAT).await;
                    assert_eq!(found, expected, "operation {number}, {first:?} then {second:?}");
                }
            }
        }
    });
}

#[test]
fn however_often_and_wherever_it_is_asked_for() {
    block_on(async {
        for number in 0..OPERATIONS {
            let expected = trial(number, &[], NO_REPEAT).await;
            let same = trial(number, &[], async |client| Some(client.copy(client.fs.clone()))).await;
            assert_eq!(same, expected, "operation {number} again");
            let other = trial(number, &[], async |client| Some(client.copy(another(&client.fs)))).await;
            assert_eq!(other, expected, "operation {number} at another server");
        }
    });
}

#[test]
fn a_failure_is_not_remembered() {
    block_on(async {
        let (fs, _) = fresh().await;
        let client = root(&fs);
        assert_eq!(code(client.unlink(ROOT, b"f").await), ErrorCode::NotFound);
        let other = Client::new(fs.clone(), 200);
        other.create(ROOT, b"f", 0o644).await.unwrap();
        client.again().unlink(ROOT, b"f").await.unwrap();
        client.again().unlink(ROOT, b"f").await.unwrap();
        other.create(ROOT, b"f", 0o644).await.unwrap();
        client.again().unlink(ROOT, b"f").await.unwrap();
        assert!(client.lookup(ROOT, b"f").await.is_ok());
        assert_clean(&fs).await;
    });
}

/// The first server stands still with the request; the second tells the caller that it failed, or that there was nothing to do; the
/// world goes on, and then the first server wakes up.
#[test]
fn what_was_told_of_a_repeated_request_holds_for_its_copies() {
    block_on(async {
        let (fs, _) = fresh().await;
        let client = root(&fs);
        let other = Client::new(fs.clone(), 200);
        let copies = || {
            let (late, second) = (client.copy(another(&fs)), client.copy(another(&fs)));
            second.repeated.set(true);
            (late, second)
        };
        let (late, second) = copies();
        assert_eq!(code(second.unlink(ROOT, b"f").await), ErrorCode::NotFound);
        let made = other.create(ROOT, b"f", 0o644).await.unwrap();
        assert_eq!(code(late.unlink(ROOT, b"f").await), ErrorCode::NotFound);
        assert_eq!(other.lookup(ROOT, b"f").await.unwrap().inode, made.inode);

        client.caller();
        let (late, second) = copies();
        let found = |client: &Client| {
            let mut request = client.create_request(ROOT, b"f", Kind::File, 0o644);
            request.exclusive = false;
            request
        };
        assert!(!second.send_create(found(&second)).await.unwrap().created);
        other.unlink(ROOT, b"f").await.unwrap();
        let told = late.send_create(found(&late)).await.unwrap();
        assert_eq!((told.created, told.attr.inode), (false, made.inode));
        assert_eq!(code(other.lookup(ROOT, b"f").await), ErrorCode::NotFound);
        assert_clean(&fs).await;
    });
}

/// The copy that stood still and the one that fails meet: whichever commits first is what became of the request.
#[test]
fn a_repeated_failure_meets_its_copy() {
    for seed in 0..200 {
        let (fs, _) = block_on(crate::support::over(corefs_kv::Mem::with_faults(seed, Faults::STORM), seed));
        let client = root(&fs);
        let copies: Vec<Client> = (0..3).map(|_| client.copy(another(&fs))).collect();
        let told = Rc::new(RefCell::new(Vec::new()));
        let mut tasks: Vec<Pin<Box<dyn Future<Output = ()>>>> = Vec::new();
        for (number, copy) in copies.into_iter().enumerate() {
            copy.repeated.set(number > 0);
            let told = told.clone();
            tasks.push(Box::pin(async move {
                let outcome = copy.unlink(ROOT, b"f").await.map_err(|error| error.code);
                if number > 0 {
                    told.borrow_mut().push(outcome);
                }
            }));
        }
        let other = Client::new(fs.clone(), 200);
        tasks.push(Box::pin(async move {
            other.create(ROOT, b"f", 0o644).await.unwrap();
        }));
        crate::support::schedule::run(seed, tasks);
        fs.kv().set_faults(Faults::default());
        fs.kv().settle();
        let there = block_on(client.lookup(ROOT, b"f")).is_ok();
        for outcome in &*told.borrow() {
            let expected = if there { Err(ErrorCode::NotFound) } else { Ok(()) };
            assert_eq!(*outcome, expected, "seed {seed}");
        }
        block_on(assert_clean(&fs));
    }
}

#[test]
fn one_number_is_one_request() {
    block_on(async {
        let (fs, _) = fresh().await;
        let client = root(&fs);
        client.create(ROOT, b"f", 0o644).await.unwrap();
        assert_eq!(code(client.again().unlink(ROOT, b"f").await), ErrorCode::Duplicate);
        // Without a number the unknown is the caller's to know.
        let mut request = UnlinkT::default();
        (request.parent, request.name) = (ROOT, b"f".to_vec());
        fs.kv().script([Some(Fault::UnknownDone)]);
        assert_eq!(code(fs.unlink(&request).await), ErrorCode::KvUnknownCommit);
        assert_eq!(code(client.lookup(ROOT, b"f").await), ErrorCode::NotFound);
    });
}

#[test]
fn what_is_done_with_is_forgotten_and_refused() {
    block_on(async {
        let (fs, _) = fresh().await;
        let client = root(&fs);
        client.create(ROOT, b"f", 0o644).await.unwrap();
        let old = client.copy(fs.clone());
        client.unlink(ROOT, b"f").await.unwrap();
        client.low_water.set(true);
        let rows = || {
            let letter = |key: &[u8]| key[5] == b'R';
            fs.kv().dump().iter().filter(|(key, _)| letter(key)).count()
        };
        for number in 0..100u32 {
            client.mkdir(ROOT, format!("{number}").as_bytes(), 0o755).await.unwrap();
        }
        assert!(rows() <= 32, "{} rows are kept", rows());
        // A copy of the first request, held up in the network until now.
        assert_eq!(code(old.again().create(ROOT, b"f", 0o644).await), ErrorCode::Duplicate);
        assert_eq!(code(client.lookup(ROOT, b"f").await), ErrorCode::NotFound);
        assert_clean(&fs).await;
    });
}

/// A client is cut off between its request and the answer, its lease ends, and it is back and sends the request again.
#[test]
fn what_a_dead_client_did_is_not_done_again() {
    block_on(async {
        let (fs, world) = fresh().await;
        let (client, other) = (root(&fs), Client::new(fs.clone(), 200));
        let held = client.mkdir(ROOT, b"held", 0o755).await.unwrap().inode;
        client.create(held, b"f", 0o644).await.unwrap();
        client.open(client.lookup(held, b"f").await.unwrap().inode, true, false).await.unwrap();
        client.unlink(held, b"f").await.unwrap();
        world.kill(client.id);
        assert_eq!(fs.settle_dead_clients().await.unwrap().dead_clients, 1);
        assert_eq!(fs.settle_dead_clients().await.unwrap().dead_clients, 0);
        other.create(held, b"f", 0o644).await.unwrap();
        assert_eq!(code(client.again().unlink(held, b"f").await), ErrorCode::LeaseExpired);
        assert_eq!(code(client.create(held, b"g", 0o644).await), ErrorCode::LeaseExpired);
        assert!(other.lookup(held, b"f").await.is_ok());
        assert_clean(&fs).await;

        // Much later nothing of it is under way, and nothing is left.
        let marks = || fs.kv().dump().iter().filter(|(key, _)| key[5] == b'L').count();
        assert_eq!(marks(), 1);
        world.pass(3600 * 1_000_000_000);
        fs.settle_dead_clients().await.unwrap();
        assert_eq!(marks(), 0);
    });
}

#[test]
fn a_new_incarnation_forgets_the_old_one() {
    block_on(async {
        let (fs, _) = fresh().await;
        let client = root(&fs);
        client.create(ROOT, b"f", 0o644).await.unwrap();
        client.incarnation.set(2);
        client.unlink(ROOT, b"f").await.unwrap();
        fs.settle_dead_clients().await.unwrap();
        let rows: Vec<_> = fs.kv().dump().into_iter().filter(|(key, _)| key[5] == b'R').collect();
        assert_eq!(rows.len(), 1);
        client.again().unlink(ROOT, b"f").await.unwrap();
        assert_clean(&fs).await;
    });
}
