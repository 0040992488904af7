//! Sessions: what becomes of open files when the client's lease ends, when metadata servers can't be reached, and that none is left
//! behind.

use crate::fake::{CHUNK, Cluster, run, until};
use corefs_client::{Changes, Client, CreateOptions, Credentials, File, Kind, OpenOptions, Time};
use corefs_wire::control::mgmtd::{EndClientT, GetStatusT};
use corefs_wire::{ErrorCode, InodeId, ROOT_INODE};
use std::time::Duration;

const ROOT: Credentials = Credentials::root();
const BUFFERED: CreateOptions = CreateOptions {
    mode: 0o644,
    exclusive: true,
    truncate: false,
    direct: false,
    chunk_size: 0,
    stripe: 0,
    umask: 0,
};
const DIRECT: CreateOptions = CreateOptions { direct: true, ..BUFFERED };

async fn create(client: &Client, name: &[u8], options: CreateOptions) -> File {
    client.create(&ROOT, ROOT_INODE, name, options).await.unwrap().0
}

#[test]
fn who_only_asks_the_managers_needs_neither_lease_nor_routing() {
    run(|| async {
        let cluster = Cluster::start(1);
        // As before there are chains.
        cluster.manager.refusing.set(true);
        cluster.manager.routing.borrow_mut().version = 0;
        Client::ask_managers(cluster.options(), &EndClientT::default()).await.unwrap();
        assert_eq!((cluster.manager.renewals.get(), cluster.manager.fetches.get()), (0, 0));
        let refused = Client::ask_managers(cluster.options(), &GetStatusT::default()).await;
        assert_eq!(refused.unwrap_err().code, ErrorCode::UnknownOperation);
        cluster.stop().await;
    });
}

/// A file of one chunk that is open for reading, and whose name has gone.
async fn held(cluster: &Cluster, client: &Client) -> File {
    let inode = cluster.meta.add(1, b"held", Kind::File).inode;
    cluster.meta.inodes.borrow_mut().get_mut(&inode).unwrap().size = 2 * u64::from(CHUNK);
    cluster.shards[0].put(inode, 0, b"what is there");
    let file = client.open(&ROOT, InodeId(inode), OpenOptions::default()).await.unwrap();
    client.unlink(&ROOT, ROOT_INODE, b"held").await.unwrap();
    file
}

/// Ends the client's lease, as the managers see it, and lets it hear of that.
async fn end_lease(cluster: &Cluster, client: &Client) {
    let before = client.id();
    cluster.manager.ended.set(true);
    until(client.node(), || client.id() != before).await;
}

#[test]
fn a_file_that_was_collected_while_its_client_had_no_lease_is_gone() {
    run(|| async {
        let cluster = Cluster::start(1);
        let client = cluster.client().await;
        let reading = held(&cluster, &client).await;
        assert_eq!(&*reading.read_at(0, 13).await.unwrap(), b"what is there");
        let writing = create(&client, b"written", DIRECT).await;
        writing.write_at(0, b"x").await.unwrap();
        let buffered = create(&client, b"buffered", BUFFERED).await;
        let applied = cluster.shards[0].applied.get();

        // What the metadata servers do once the lease has ended.
        cluster.meta.sessions.borrow_mut().clear();
        cluster.meta.inodes.borrow_mut().clear();
        cluster.shards[0].chunks.borrow_mut().clear();
        end_lease(&cluster, &client).await;

        let code = |error: corefs_wire::Error| error.code;
        assert_eq!(reading.read_at(0, 13).await.map(|_| ()).map_err(code), Err(ErrorCode::NoSuchInode));
        assert_eq!(writing.read_at(0, 1).await.map(|_| ()).map_err(code), Err(ErrorCode::NoSuchInode));
        assert_eq!(writing.write_at(0, b"y").await.map_err(code), Err(ErrorCode::NoSuchInode));
        let late = async { buffered.write_at(0, b"z").await.and(buffered.sync().await) };
        assert_eq!(late.await.map_err(code), Err(ErrorCode::NoSuchInode));
        assert_eq!(cluster.shards[0].applied.get(), applied, "nothing that nobody would collect");
        client.close().await.ok();
        cluster.stop().await;
    });
}

#[test]
fn open_files_are_made_known_again_under_a_new_lease() {
    run(|| async {
        let cluster = Cluster::start(1);
        let client = cluster.client().await;
        let reading = held(&cluster, &client).await;
        let writing = create(&client, b"written", BUFFERED).await;
        writing.write_at(0, b"before").await.unwrap();
        cluster.meta.sessions.borrow_mut().clear();
        end_lease(&cluster, &client).await;
        until(client.node(), || cluster.meta.sessions.borrow().len() == 2).await;
        // The second chunk was never written.
        assert_eq!(&*reading.read_at(u64::from(CHUNK), 3).await.unwrap(), [0; 3]);
        writing.write_at(6, b" after").await.unwrap();
        let inode = writing.inode();
        writing.close().await.unwrap();
        reading.close().await.unwrap();
        assert_eq!(cluster.meta.inodes.borrow()[&inode.0].size, 12);
        // The new sessions end with the handles.
        until(client.node(), || cluster.meta.sessions.borrow().is_empty()).await;
        client.close().await.unwrap();
        cluster.stop().await;
    });
}

#[test]
fn nothing_is_stored_without_a_lease() {
    run(|| async {
        let cluster = Cluster::start(1);
        let client = cluster.client().await;
        let file = create(&client, b"a", DIRECT).await;
        cluster.manager.refusing.set(true);
        // It runs out.
        client.node().sleep(Duration::from_millis(500)).await;
        let asked = cluster.manager.renewals.get();
        let again = async {
            until(client.node(), || cluster.manager.renewals.get() > asked).await;
            assert_eq!(cluster.shards[0].applied.get(), 0);
            cluster.manager.refusing.set(false);
        };
        futures_lite::future::zip(file.write_at(0, b"x"), again).await.0.unwrap();
        assert_eq!(cluster.shards[0].applied.get(), 1);
        client.close().await.unwrap();
        cluster.stop().await;
    });
}

/// A client that gives up soon.
async fn impatient(cluster: &Cluster) -> Client {
    let mut options = cluster.options();
    options.deadline = Duration::from_millis(150);
    Client::connect(options).await.unwrap()
}

#[test]
fn what_a_close_could_not_report_an_fsync_does() {
    run(|| async {
        let cluster = Cluster::start(1);
        let client = impatient(&cluster).await;
        let file = create(&client, b"a", BUFFERED).await;
        file.write_at(0, b"abc").await.unwrap();
        let changes = Changes { mode: Some(0o664), atime: Some(Time::At(5)), ..Changes::default() };
        client.set_attr(&ROOT, file.inode(), changes).await.unwrap();
        cluster.meta.refusing.set(true);
        assert_eq!(file.finish().await.unwrap_err().code, ErrorCode::NotReady);
        assert_eq!(file.sync().await.unwrap_err().code, ErrorCode::NotReady, "nobody knows yet");
        cluster.meta.refusing.set(false);
        file.sync().await.unwrap();
        let stored = cluster.meta.inodes.borrow()[&file.inode().0].clone();
        assert_eq!((stored.size, stored.mode), (3, 0o664));
        file.close().await.unwrap();
        client.close().await.unwrap();
        assert!(cluster.meta.sessions.borrow().is_empty());
        cluster.stop().await;
    });
}

#[test]
fn files_that_are_closed_without_news_cost_no_commit_each() {
    run(|| async {
        let cluster = Cluster::start(1);
        let client = cluster.client().await;
        for round in 0..100 {
            let name = format!("file-{round}");
            create(&client, name.as_bytes(), BUFFERED).await.close().await.unwrap();
        }
        until(client.node(), || cluster.meta.sessions.borrow().is_empty()).await;
        let called = |name| cluster.meta.calls.borrow().iter().filter(|call| **call == name).count();
        assert_eq!(called("meta.close"), 0);
        assert!((1..50).contains(&called("meta.end_sessions")), "{}", called("meta.end_sessions"));
        // One with news is told at once.
        let file = create(&client, b"written", BUFFERED).await;
        file.write_at(0, b"x").await.unwrap();
        file.close().await.unwrap();
        assert_eq!((called("meta.close"), cluster.meta.sessions.borrow().len()), (1, 0));
        // A client that goes leaves none behind.
        create(&client, b"last", BUFFERED).await.close().await.unwrap();
        client.close().await.unwrap();
        assert!(cluster.meta.sessions.borrow().is_empty());
        cluster.stop().await;
    });
}

#[test]
fn sessions_of_closed_files_end_when_a_server_is_back() {
    run(|| async {
        let cluster = Cluster::start(1);
        let client = impatient(&cluster).await;
        let reading = held(&cluster, &client).await;
        let writing = create(&client, b"a", BUFFERED).await;
        writing.write_at(0, b"abc").await.unwrap();
        let inode = writing.inode();
        assert_eq!(cluster.meta.sessions.borrow().len(), 2);
        cluster.meta.refusing.set(true);
        assert_eq!(writing.close().await.unwrap_err().code, ErrorCode::NotReady);
        reading.close().await.unwrap();
        cluster.meta.refusing.set(false);
        until(client.node(), || cluster.meta.sessions.borrow().is_empty()).await;
        assert_eq!(cluster.meta.inodes.borrow()[&inode.0].size, 3, "and what was written is known");
        client.close().await.unwrap();
        cluster.stop().await;
    });
}

#[test]
fn a_session_that_began_although_nobody_heard_of_it_is_ended() {
    run(|| async {
        let cluster = Cluster::start(1);
        let client = impatient(&cluster).await;
        let inode = InodeId(cluster.meta.add(1, b"a", Kind::File).inode);
        let lost = [Some(ErrorCode::ConnectionLost)].into_iter();
        cluster.meta.faults.borrow_mut().extend(lost.chain([Some(ErrorCode::NotReady); 1000]));
        let write = OpenOptions { write: true, ..OpenOptions::default() };
        assert_eq!(client.open(&ROOT, inode, write).await.map(|_| ()).unwrap_err().code, ErrorCode::NotReady);
        assert_eq!(cluster.meta.sessions.borrow().len(), 1);
        cluster.meta.faults.borrow_mut().clear();
        until(client.node(), || cluster.meta.sessions.borrow().is_empty()).await;
        client.close().await.unwrap();
        cluster.stop().await;
    });
}

#[test]
fn a_write_that_found_no_session_leaves_the_length_alone() {
    run(|| async {
        let cluster = Cluster::start(1);
        let client = impatient(&cluster).await;
        let file = create(&client, b"a", BUFFERED).await;
        file.write_at(0, b"abc").await.unwrap();
        file.finish().await.unwrap();
        cluster.meta.refusing.set(true);
        assert_eq!(file.write_at(100, b"late").await.unwrap_err().code, ErrorCode::NotReady);
        assert_eq!((file.length(), &*file.read_at(0, 200).await.unwrap()), (3, &b"abc"[..]));
        cluster.meta.refusing.set(false);
        file.close().await.unwrap();
        client.close().await.unwrap();
        cluster.stop().await;
    });
}

/// The names of more files than one call can say: then the one that goes is held first.
#[test]
fn a_reader_among_many_is_held() {
    run(|| async {
        let cluster = Cluster::start(1);
        let client = cluster.client().await;
        let mut files = Vec::new();
        for number in 0..70u8 {
            let inode = InodeId(cluster.meta.add(1, &[b'f', number], Kind::File).inode);
            files.push(client.open(&ROOT, inode, OpenOptions::default()).await.unwrap());
        }
        client.unlink(&ROOT, ROOT_INODE, &[b'f', 66]).await.unwrap();
        assert_eq!(cluster.meta.calls.borrow()[70..], ["meta.open", "meta.unlink"]);
        assert_eq!(cluster.meta.sessions.borrow().len(), 1);
        for file in files {
            file.close().await.unwrap();
        }
        until(client.node(), || cluster.meta.sessions.borrow().is_empty()).await;
        client.close().await.unwrap();
        cluster.stop().await;
    });
}

/// It was no name to hold when the call was made.
#[test]
fn a_file_that_is_opened_while_its_name_goes_is_held() {
    run(|| async {
        let cluster = Cluster::start(1);
        let client = cluster.client().await;
        let inode = InodeId(cluster.meta.add(1, b"a", Kind::File).inode);
        cluster.meta.slow.set(true);
        let open = async {
            until(client.node(), || !cluster.meta.behind.borrow().is_empty()).await;
            let file = client.open(&ROOT, inode, OpenOptions::default()).await.unwrap();
            cluster.meta.catch_up();
            file
        };
        let (gone, file) = futures_lite::future::zip(client.unlink(&ROOT, ROOT_INODE, b"a"), open).await;
        gone.unwrap();
        assert_eq!(cluster.meta.sessions.borrow().len(), 1);
        file.close().await.unwrap();
        client.close().await.unwrap();
        cluster.stop().await;
    });
}

/// What was decided here long ago, and is told with the end of the session, goes with what it was decided on.
#[test]
fn changes_that_waited_say_what_they_were_decided_on() {
    run(|| async {
        let cluster = Cluster::start(1);
        let client = cluster.client().await;
        let file = create(&client, b"a", BUFFERED).await;
        let inode = file.inode();
        let chmod = |mode| Changes { mode: Some(mode), ..Changes::default() };
        client.set_attr(&ROOT, inode, chmod(0o666)).await.unwrap();
        cluster.meta.inodes.borrow_mut().get_mut(&inode.0).unwrap().mode = 0o600;
        // It hears of it, and of its own doings, before the session ends.
        client.get_attr(&ROOT, inode).await.unwrap();
        file.write_at(0, b"x").await.unwrap();
        file.close().await.unwrap();
        assert_eq!(cluster.meta.inodes.borrow()[&inode.0].mode, 0o600, "the later chmod stays");

        // Of what it has changed itself it knows.
        let file = create(&client, b"b", BUFFERED).await;
        let inode = file.inode();
        client
            .set_attr(&ROOT, inode, Changes { mtime: Some(Time::At(42)), ..Changes::default() })
            .await
            .unwrap();
        client.set_attr(&ROOT, inode, chmod(0o600)).await.unwrap();
        client.set_attr(&ROOT, inode, chmod(0o666)).await.unwrap();
        file.close().await.unwrap();
        let stored = cluster.meta.inodes.borrow()[&inode.0].clone();
        assert_eq!((stored.mode, stored.mtime), (0o666, 42));
        client.close().await.unwrap();
        cluster.stop().await;
    });
}

#[test]
fn who_closes_last_of_several_finds_a_file_without_a_name() {
    run(|| async {
        let cluster = Cluster::start(1);
        let client = cluster.client().await;
        let known = || cluster.meta.sessions.borrow().len();
        let settled = async || corefs_net::executor::sleep(Duration::from_millis(60)).await;

        // One of several descriptors of the only handle is closed.
        let finished = create(&client, b"finished", DIRECT).await;
        finished.write_at(0, b"x").await.unwrap();
        client.unlink(&ROOT, ROOT_INODE, b"finished").await.unwrap();
        finished.finish().await.unwrap();
        settled().await;
        assert_eq!(known(), 1, "nothing else keeps its bytes");
        finished.close().await.unwrap();
        until(client.node(), || known() == 0).await;

        // Who reads stays, who wrote goes; whether there is anything to report or not, and whoever took the name.
        for (name, synced, foreign) in
            [(b"one", false, false), (b"two", true, false), (b"six", true, true), (b"ten", false, true)]
        {
            let writing = create(&client, name, DIRECT).await;
            writing.write_at(0, b"x").await.unwrap();
            let reading = client.open(&ROOT, writing.inode(), OpenOptions::default()).await.unwrap();
            if foreign {
                let id = writing.inode().0;
                cluster.meta.inodes.borrow_mut().get_mut(&id).unwrap().nlink = 0;
                client.get_attr(&ROOT, writing.inode()).await.unwrap();
            } else {
                client.unlink(&ROOT, ROOT_INODE, name).await.unwrap();
            }
            if synced {
                writing.sync().await.unwrap();
            }
            let before = cluster.meta.none_left.get();
            writing.close().await.unwrap();
            settled().await;
            assert_eq!(known(), 1, "{}: somebody reads it", String::from_utf8_lossy(name));
            assert_eq!(cluster.meta.none_left.get(), before, "at no moment was there none");
            reading.close().await.unwrap();
            until(client.node(), || known() == 0).await;
        }

        // The name goes while a descriptor is closed.
        let racing = create(&client, b"racing", DIRECT).await;
        racing.write_at(0, b"x").await.unwrap();
        cluster.meta.slow.set(true);
        let unlinking = async { client.unlink(&ROOT, ROOT_INODE, b"racing").await };
        let finishing = async {
            settled().await;
            racing.finish().await.unwrap();
            settled().await;
            cluster.meta.catch_up();
        };
        let (unlinked, ()) = futures_lite::future::zip(unlinking, finishing).await;
        unlinked.unwrap();
        settled().await;
        assert_eq!(known(), 1, "it was named as one to hold");
        racing.close().await.unwrap();
        until(client.node(), || known() == 0).await;

        // A file that keeps its name is held by nobody once it was finished.
        let named = create(&client, b"named", DIRECT).await;
        named.write_at(0, b"x").await.unwrap();
        named.finish().await.unwrap();
        until(client.node(), || known() == 0).await;
        named.close().await.unwrap();
        client.close().await.unwrap();
        cluster.stop().await;
    });
}
