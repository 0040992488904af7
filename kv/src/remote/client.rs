//! A store in another process.
//!
//! What an error of the transport means depends on where it strikes: a read, or a commit that was never sent, can
//! simply be done again (`KvUnavailable`); a commit that was sent and not answered may have happened, may not, or may
//! happen yet (`KvUnknownCommit`).

use super::codec::{self, REQUEST_BYTES_MAX, REQUEST_ITEMS_MAX, message};
use crate::contract::{Committed, RangePage};
use crate::prng::Prng;
use crate::store::{Commit, Found, ReadBatch, Store};
use corefs_net::tcp::ConnId;
use corefs_net::{Address, Node};
use corefs_wire::control::kv::{KeyT, ReadRequestT, ReadVersionRequestT};
use corefs_wire::control::{Call, Message};
use corefs_wire::frame::Kind;
use corefs_wire::{Error, ErrorCode, Result};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// How long a call may take. A transaction has no longer either.
const CALL_TIME: Duration = Duration::from_secs(5);
/// How long opening a connection may take.
const CONNECT_TIME: Duration = Duration::from_secs(2);
/// Released versions that wait for a request to be told with; more are forgotten, and end by their age.
const RELEASED_MAX: usize = 4096;

struct Shared {
    node: Node,
    address: Address,
    /// Versions that nobody reads any more, with the connection that gave them.
    released: RefCell<Vec<(ConnId, u64)>>,
    assembly: Cell<u64>,
    random: RefCell<Prng>,
    start: Instant,
}

/// A handle of the store behind an address; clones share it. It needs no opening or closing: connections are the
/// node's.
#[derive(Clone)]
pub struct Client(Rc<Shared>);

/// A version that the server keeps for this client.
pub struct Lease {
    version: u64,
    conn: ConnId,
    shared: Rc<Shared>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut released = self.shared.released.borrow_mut();
        if released.len() < RELEASED_MAX {
            released.push((self.conn, self.version));
        }
    }
}

impl Client {
    /// A client of the `corefs kv` at `address`. `seed` makes its pauses differ from those of other clients.
    pub fn new(node: Node, address: Address, seed: u64) -> Self {
        let (released, assembly) = (RefCell::default(), Cell::new(0));
        let random = RefCell::new(Prng::new(seed));
        Self(Rc::new(Shared { node, address, released, assembly, random, start: Instant::now() }))
    }

    pub fn address(&self) -> &Address {
        &self.0.address
    }

    /// The endpoint that it calls from.
    pub fn node(&self) -> &Node {
        &self.0.node
    }

    async fn connection(&self) -> Result<ConnId> {
        let node = &self.0.node;
        node.within(CONNECT_TIME, node.connection(&self.0.address))
            .await
            .map_err(|error| self.unavailable(error))
    }

    /// Nothing happened, and trying again may help.
    fn unavailable(&self, error: Error) -> Error {
        Error::new(ErrorCode::KvUnavailable, format!("the key-value store at {}: {error}", self.0.address))
    }

    /// Posts `request`; its reply is still to come. An error says that it was not sent.
    fn post<C: Call>(&self, conn: ConnId, request: &C) -> Result<corefs_net::rpc::Expected> {
        let node = &self.0.node;
        let expected = node.expect(conn, None)?.within(CALL_TIME);
        node.post(conn, Kind::Request, C::OP, expected.request_id(), &request.encode(), None)?;
        Ok(expected)
    }

    /// One call that changes nothing.
    async fn ask<C: Call>(&self, conn: ConnId, request: &C) -> Result<C::Reply> {
        let expected = self.post(conn, request).map_err(|error| self.unavailable(error))?;
        match expected.await {
            Ok(reply) => C::Reply::decode(&reply.body).map_err(|error| error.of(C::NAME)),
            Err(error) if is_answer(error.code) => Err(error),
            Err(error) => Err(self.unavailable(error)),
        }
    }

    /// The versions to release with a request on `conn`. Those of connections that are gone are released already.
    fn released_on(&self, conn: ConnId) -> Vec<u64> {
        let all = std::mem::take(&mut *self.0.released.borrow_mut());
        all.into_iter().filter(|(given_on, _)| *given_on == conn).map(|(_, version)| version).collect()
    }

    fn lease(&self, conn: ConnId, version: u64) -> Lease {
        Lease { version, conn, shared: self.0.clone() }
    }

    /// One request for what `found` lacks of `batch`, as much as fits; adds what came.
    async fn read_some(
        &self,
        conn: ConnId,
        lease: &mut Option<Lease>,
        batch: &ReadBatch<'_>,
        found: &mut Found,
    ) -> Result<()> {
        let mut bytes = 0;
        let fits = |key: &&&[u8]| {
            bytes += key.len();
            bytes <= REQUEST_BYTES_MAX
        };
        let keys = batch.keys[found.values.len()..].iter().take(REQUEST_ITEMS_MAX).take_while(fits);
        let keys: Vec<KeyT> = keys.map(|key| message!(KeyT { bytes: key.to_vec() })).collect();
        let last_keys = found.values.len() + keys.len() == batch.keys.len();
        let ranges = if last_keys { &batch.ranges[found.pages.len()..] } else { &[] };
        let ranges: Vec<_> = ranges.iter().map(codec::encode_range_read).collect();
        let asked = (keys.len(), ranges.len());
        let version = lease.as_ref().map_or(0, |lease| lease.version);
        let released = Some(self.released_on(conn));
        let request =
            message!(ReadRequestT { version: version, keys: keys, ranges: ranges, released: released });
        let reply = self.ask(conn, &request).await?;
        if lease.is_none() {
            *lease = Some(self.lease(conn, reply.version));
        }
        let came = (reply.values.len(), reply.ranges.len());
        if came.0 > asked.0 || came.1 > asked.1 || came == (0, 0) || (came.0 < asked.0 && came.1 > 0) {
            return Err(Error::new(
                ErrorCode::BadFrame,
                "the key-value store answered something else than was asked",
            ));
        }
        found.values.extend(reply.values.into_iter().map(codec::decode_value));
        found.pages.extend(reply.ranges.into_iter().map(codec::decode_page).collect::<Vec<RangePage>>());
        Ok(())
    }

    /// Posts all requests of one commit and waits for the last one's answer; those before it have none worth
    /// waiting for. Anything but a clear answer leaves the outcome unknown.
    async fn commit_on(&self, conn: ConnId, commit: Commit) -> Result<Committed> {
        let assembly = self.0.assembly.get() + 1;
        self.0.assembly.set(assembly);
        let requests = codec::encode_commit(commit, assembly, self.released_on(conn));
        let mut posted = Vec::with_capacity(requests.len());
        for request in &requests {
            // Without its last request, which was not sent then, nothing of a commit happens.
            posted.push(self.post(conn, request).map_err(|error| self.unavailable(error))?);
        }
        let last = posted.pop().expect("a commit is at least one request");
        let unknown = |error: Error| {
            let what = format!("the key-value store at {} did not answer: {error}", self.0.address);
            Error::new(ErrorCode::KvUnknownCommit, what)
        };
        match last.await {
            Ok(reply) => Message::decode(&reply.body).and_then(codec::decode_committed).map_err(unknown),
            Err(error) if is_answer(error.code) => Err(error),
            Err(error) if error.code == ErrorCode::Overloaded => Err(self.unavailable(error)),
            Err(error) => Err(unknown(error)),
        }
    }
}

/// Whether an error is the store's own, as opposed to one of the way there.
fn is_answer(code: ErrorCode) -> bool {
    let number = code as u32;
    let store = (300..400).contains(&number) || (500..600).contains(&number);
    store || matches!(code, ErrorCode::InvalidArgument | ErrorCode::BadFrame | ErrorCode::UnknownOperation)
}

impl Store for Client {
    type Snapshot = Lease;

    fn version(snapshot: &Lease) -> u64 {
        snapshot.version
    }

    fn now(&self) -> Duration {
        self.0.start.elapsed()
    }

    async fn snapshot(&self) -> Result<Lease> {
        let conn = self.connection().await?;
        let request = message!(ReadVersionRequestT { released: Some(self.released_on(conn)) });
        let reply = self.ask(conn, &request).await?;
        Ok(self.lease(conn, reply.version))
    }

    async fn read(&self, snapshot: &mut Option<Lease>, batch: ReadBatch<'_>) -> Result<Found> {
        let conn = self.connection().await?;
        if snapshot.as_ref().is_some_and(|lease| lease.conn != conn) {
            return Err(Error::new(
                ErrorCode::KvTooOld,
                "the snapshot ended with the connection that it was read on",
            ));
        }
        let mut found = Found::default();
        while found.values.len() < batch.keys.len() || found.pages.len() < batch.ranges.len() {
            self.read_some(conn, snapshot, &batch, &mut found).await?;
        }
        Ok(found)
    }

    async fn commit(&self, commit: Commit) -> Result<Committed> {
        let conn = self.connection().await?;
        self.commit_on(conn, commit).await
    }

    async fn pause(&self, duration: Duration) {
        self.0.node.sleep(duration).await;
    }

    fn random(&self) -> u64 {
        self.0.random.borrow_mut().draw()
    }
}
