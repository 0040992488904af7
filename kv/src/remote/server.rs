//! `corefs kv`: serves an [`Embedded`] store.
//!
//! Each connection is a session that holds the versions it was given, counted, until it releases them, they expire, or
//! it ends. Reads are answered on the spot, in as many pieces as fit frames; commits wait for the commit thread in tasks
//! of their own, so that those of all sessions share its flushes.

use super::codec::{self, message};
use crate::bounds;
use crate::embedded::Embedded;
use crate::embedded::snapshots::{SNAPSHOTS_MAX, Snapshot};
use crate::store::{Commit, ReadBatch, Store};
use corefs_net::tcp::ConnId;
use corefs_net::{Node, Request, Responder, Service};
use corefs_wire::control::kv::{
    CommitReplyT, CommitRequestT, ReadReplyT, ReadRequestT, ReadVersionReplyT, ReadVersionRequestT,
};
use corefs_wire::control::process::{CounterT, GetProcessT, ProcessT};
use corefs_wire::control::{Call, Message};
use corefs_wire::limits::KV_TRANSACTION_BYTES_MAX;
use corefs_wire::{Error, ErrorCode, Result};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

/// Versions that one connection may hold.
pub const VERSIONS_PER_CLIENT_MAX: usize = 128;
const _: () = assert!(VERSIONS_PER_CLIENT_MAX * 2 <= SNAPSHOTS_MAX, "one client can't starve the others");
/// Large commits that one connection may have in the making.
const ASSEMBLIES_MAX: usize = 4;
/// Bytes of large commits in the making, of all connections.
const ASSEMBLY_BYTES_MAX: usize = 8 * KV_TRANSACTION_BYTES_MAX;
/// Once a reply has that many bytes nothing more is put into it. A page may come on top, and still fits the frame.
const REPLY_BYTES: usize = 1 << 20;
/// Keys read at a time, between looks at how large the reply has become.
const KEYS_AT_ONCE: usize = 8;

struct Held {
    /// As many times as it was given and not released.
    times: u64,
    snapshot: Snapshot,
}

#[derive(Default)]
struct Session {
    held: BTreeMap<u64, Held>,
    /// By their numbers, which rise.
    assemblies: BTreeMap<u64, Assembly>,
}

/// A large commit of which more is to come.
#[derive(Default)]
struct Assembly {
    parts: u32,
    commit: Commit,
}

#[derive(Default)]
struct Counters {
    reads: Cell<u64>,
    commits: Cell<u64>,
    refused: Cell<u64>,
}

/// The service of one process. Clones share it.
#[derive(Clone)]
pub struct Server(Rc<Shared>);

struct Shared {
    store: Embedded,
    sessions: RefCell<HashMap<ConnId, Session>>,
    assembly_bytes: Cell<usize>,
    counters: Counters,
    /// Everything about the process but what the store counts.
    process: Box<dyn Fn() -> ProcessT>,
}

impl Server {
    /// Serves `store` on `node`, which listens already or will. `process` tells of the process; the server adds what
    /// the store counts.
    pub fn start(node: &Node, store: Embedded, process: impl Fn() -> ProcessT + 'static) -> Self {
        let shared = Rc::new(Shared {
            store,
            sessions: RefCell::default(),
            assembly_bytes: Cell::new(0),
            counters: Counters::default(),
            process: Box::new(process),
        });
        node.serve(shared.clone());
        let sweeping = shared.clone();
        node.on_tick(Rc::new(move |node, _| sweeping.end_closed(node)));
        Self(shared)
    }

    /// Answers what is in progress, then closes the store: everything acknowledged is durable, the directory free.
    pub async fn stop(&self, node: &Node) {
        node.shutdown().await;
        self.0.sessions.borrow_mut().clear();
        self.0.store.close().await;
    }

    /// Connections that hold something.
    pub fn sessions(&self) -> usize {
        self.0.sessions.borrow().len()
    }
}

impl Service for Shared {
    fn request(&self, request: Request, responder: Responder) {
        let Request { conn, op, body, .. } = request;
        let outcome = match op {
            ReadVersionRequestT::OP => self.read_version(conn, &body),
            ReadRequestT::OP => self.read(conn, &body),
            CommitRequestT::OP => match self.commit(conn, &body) {
                Ok(Some(commit)) => return self.commit_later(commit, responder),
                Ok(None) => Ok(CommitReplyT::default().encode()),
                Err(error) => Err(error),
            },
            GetProcessT::OP => Ok(self.describe().encode()),
            other => Err(Error::new(
                ErrorCode::UnknownOperation,
                format!("operation {other:#06x} is not served here"),
            )),
        };
        if outcome.is_err() {
            add(&self.counters.refused);
        }
        responder.done(outcome);
    }
}

impl Shared {
    fn read_version(&self, conn: ConnId, body: &[u8]) -> Result<Vec<u8>> {
        let request = ReadVersionRequestT::decode(body)?;
        let mut sessions = self.sessions.borrow_mut();
        let session = sessions.entry(conn).or_default();
        session.release(request.released);
        let version = session.give(&self.store)?;
        Ok(message!(ReadVersionReplyT { version: version }).encode())
    }

    fn read(&self, conn: ConnId, body: &[u8]) -> Result<Vec<u8>> {
        let request = ReadRequestT::decode(body)?;
        add(&self.counters.reads);
        let mut sessions = self.sessions.borrow_mut();
        let session = sessions.entry(conn).or_default();
        session.release(request.released);
        let keys: Vec<Vec<u8>> = request.keys.into_iter().map(|key| key.bytes).collect();
        let ranges: Vec<_> = request.ranges.into_iter().map(codec::decode_range_read).collect();
        keys.iter().try_for_each(|key| bounds::check_key(key))?;
        for read in &ranges {
            bounds::check_range(&read.range)?;
            if read.limit == 0 {
                return Err(Error::new(
                    ErrorCode::InvalidArgument,
                    "a range read needs a limit of at least 1",
                ));
            }
        }
        let version = if request.version == 0 { session.give(&self.store)? } else { request.version };
        let outcome = session.read(&self.store, version, &keys, ranges);
        if outcome.is_err() && request.version == 0 {
            // The client doesn't learn of the version, so it can't release it.
            session.release(Some(vec![version]));
        }
        Ok(outcome?.encode())
    }

    /// The transaction to commit, or `None` when more of it is to come.
    fn commit(&self, conn: ConnId, body: &[u8]) -> Result<Option<Commit>> {
        let mut request = CommitRequestT::decode(body)?;
        let mut sessions = self.sessions.borrow_mut();
        let session = sessions.entry(conn).or_default();
        session.release(request.released.take());
        let (number, part, unfinished) = (request.assembly, request.part, request.unfinished);
        let assembly = session.assemblies.remove(&number);
        self.count_bytes(&assembly, |all, these| all - these);
        let mut assembly = match assembly {
            _ if part == 0 => Assembly::default(),
            Some(assembly) if assembly.parts == part => assembly,
            // An earlier part was refused: what is left must not be taken for the whole.
            _ => {
                return Err(Error::new(
                    ErrorCode::KvUnavailable,
                    "an earlier part of the transaction is missing",
                ));
            }
        };
        codec::decode_commit(request, &mut assembly.commit)?;
        assembly.parts += 1;
        bounds::check_size(assembly.commit.bytes())?;
        if !unfinished {
            return Ok(Some(assembly.commit));
        }
        if session.assemblies.len() >= ASSEMBLIES_MAX {
            // Its client has probably given it up.
            let oldest = session.assemblies.pop_first().map(|(_, oldest)| oldest);
            self.count_bytes(&oldest, |all, these| all - these);
        }
        if self.assembly_bytes.get() + assembly.commit.bytes() > ASSEMBLY_BYTES_MAX {
            return Err(Error::new(ErrorCode::KvUnavailable, "too many large transactions are on their way"));
        }
        let assembly = Some(assembly);
        self.count_bytes(&assembly, |all, these| all + these);
        session.assemblies.extend(assembly.map(|assembly| (number, assembly)));
        Ok(None)
    }

    fn count_bytes(&self, assembly: &Option<Assembly>, count: impl FnOnce(usize, usize) -> usize) {
        let these = assembly.as_ref().map_or(0, |assembly| assembly.commit.bytes());
        self.assembly_bytes.set(count(self.assembly_bytes.get(), these));
    }

    fn commit_later(&self, commit: Commit, responder: Responder) {
        add(&self.counters.commits);
        let store = self.store.clone();
        let task = async move {
            let outcome = store.commit(commit).await;
            responder.done(outcome.map(|committed| codec::encode_committed(committed).encode()));
        };
        glommio::spawn_local(task).detach();
    }

    fn describe(&self) -> ProcessT {
        let mut process = (self.process)();
        let statistics = self.store.statistics();
        let counters = [
            ("kv.version", statistics.version),
            ("kv.commits", statistics.commits),
            ("kv.groups", statistics.groups),
            ("kv.conflicts", statistics.conflicts),
            ("kv.too_old", statistics.too_old),
            ("kv.snapshots", statistics.snapshots),
            ("kv.sessions", self.sessions.borrow().len() as u64),
            ("kv.read_requests", self.counters.reads.get()),
            ("kv.commit_requests", self.counters.commits.get()),
            ("kv.refused_requests", self.counters.refused.get()),
        ];
        let named = counters
            .into_iter()
            .map(|(name, value)| message!(CounterT { name: name.to_owned(), value: value }));
        process.counters.extend(named);
        process
    }

    /// Ends the sessions of connections that are gone.
    fn end_closed(&self, node: &Node) {
        let mut sessions = self.sessions.borrow_mut();
        sessions.retain(|conn, session| {
            let open = node.peer(*conn).is_some();
            if !open {
                let bytes: usize = session.assemblies.values().map(|assembly| assembly.commit.bytes()).sum();
                self.assembly_bytes.set(self.assembly_bytes.get() - bytes);
            }
            open
        });
    }
}

impl Session {
    /// The newest version, held for this session once more.
    fn give(&mut self, store: &Embedded) -> Result<u64> {
        let snapshot = store.take_snapshot()?;
        let version = snapshot.version();
        let held = self.held.len();
        if held >= VERSIONS_PER_CLIENT_MAX && !self.held.contains_key(&version) {
            self.forget_expired(store);
            let (limit, actual) = (VERSIONS_PER_CLIENT_MAX as u64, self.held.len() as u64);
            if actual >= limit {
                let what = "this client reads too many versions at once";
                return Err(Error::mismatch(ErrorCode::KvUnavailable, limit, actual, what));
            }
        }
        let times = self.held.remove(&version).map_or(1, |held| held.times + 1);
        self.held.insert(version, Held { times, snapshot });
        Ok(version)
    }

    /// A client that forgets to release, or whose release was lost, holds what can't be read any more.
    fn forget_expired(&mut self, store: &Embedded) {
        self.held.retain(|_, held| store.read_at(&held.snapshot, &ReadBatch::default()).is_ok());
    }

    fn release(&mut self, versions: Option<Vec<u64>>) {
        for version in versions.unwrap_or_default() {
            if let Some(held) = self.held.get_mut(&version) {
                held.times -= 1;
                if held.times == 0 {
                    self.held.remove(&version);
                }
            }
        }
    }

    /// As much of what was asked as fits a reply, at least the first.
    fn read(
        &self,
        store: &Embedded,
        version: u64,
        keys: &[Vec<u8>],
        ranges: Vec<crate::contract::RangeRead>,
    ) -> Result<ReadReplyT> {
        let gone =
            || Error::mismatch(ErrorCode::KvTooOld, 0, version, "this client doesn't hold that version");
        let snapshot = &self.held.get(&version).ok_or_else(gone)?.snapshot;
        let mut reply = message!(ReadReplyT { version: version });
        let mut bytes = 0;
        for some in keys.chunks(KEYS_AT_ONCE) {
            if bytes >= REPLY_BYTES {
                return Ok(reply);
            }
            let some = some.iter().map(Vec::as_slice).collect();
            let found = store.read_at(snapshot, &ReadBatch { keys: some, ranges: Vec::new() })?;
            bytes += found.values.iter().flatten().map(Vec::len).sum::<usize>();
            reply.values.extend(found.values.into_iter().map(codec::encode_value));
        }
        for range in ranges {
            if bytes >= REPLY_BYTES {
                return Ok(reply);
            }
            let found = store.read_at(snapshot, &ReadBatch { keys: Vec::new(), ranges: vec![range] })?;
            let pairs = found.pages.iter().flat_map(|page| &page.pairs);
            bytes += pairs.map(|(key, value)| key.len() + value.len()).sum::<usize>();
            reply.ranges.extend(found.pages.into_iter().map(codec::encode_page));
        }
        Ok(reply)
    }
}

fn add(counter: &Cell<u64>) {
    counter.set(counter.get() + 1);
}
