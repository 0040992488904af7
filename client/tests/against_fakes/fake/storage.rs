//! A storage shard that keeps chunks in memory and does what it is told, once each.

use super::node;
use corefs_net::handshake::Role;
use corefs_net::{Address, Node, Request, Responder, Service};
use corefs_wire::checksum::{block_crcs, crc32c};
use corefs_wire::data::{self, List, ListEntry, ReadEntry, ReadReply, Update, UpdateKind, UpdateReply, op};
use corefs_wire::frame::Kind;
use corefs_wire::limits::BLOCK;
use corefs_wire::{Error, ErrorCode, UpdateTag};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use zerocopy::IntoBytes;

/// What to do with the next request of a kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Nothing: the next but one is meant.
    None,
    Refuse(ErrorCode),
    /// Do it, then close the connection instead of answering.
    DoAndClose,
    /// Close the connection.
    Close,
    /// Flip a bit of the data, under its old checksum.
    Corrupt,
    /// Don't answer, as long as the shard lives.
    Keep,
}

#[derive(Default)]
pub struct Chunk {
    pub bytes: Vec<u8>,
    pub version: u64,
    pub epoch: u32,
}

pub type Chunks = Rc<RefCell<BTreeMap<(u64, u32), Chunk>>>;

pub struct Shard {
    pub node: Node,
    pub address: Address,
    /// Of all targets: replicas of one chain are told apart by nothing here.
    pub chunks: Chunks,
    pub read_faults: RefCell<VecDeque<Fault>>,
    pub update_faults: RefCell<VecDeque<Fault>>,
    pub batches: RefCell<Vec<usize>>,
    pub reads: Cell<u64>,
    /// Every update that arrived, refused or not, with its chain version.
    pub tags: RefCell<Vec<(UpdateTag, u64)>>,
    /// How many were done, each tag once.
    pub applied: Cell<u64>,
    done: RefCell<BTreeMap<(u64, u32), (u64, UpdateReply)>>,
    /// The chain version that requests must name; 0: any.
    pub version: Cell<u64>,
    pub held: RefCell<Vec<Responder>>,
    /// Reads are answered when [`Shard::catch_up`] is called.
    pub slow: Cell<bool>,
    behind: RefCell<Vec<(Request, Responder)>>,
}

impl Shard {
    pub fn start() -> Rc<Self> {
        Self::over(Rc::default())
    }

    /// A shard of these chunks: another shard's, if it is to look like one that moved.
    pub fn over(chunks: Chunks) -> Rc<Self> {
        let node = node(Role::Storage);
        let address = node.listen(&"127.0.0.1:0".parse().unwrap()).unwrap();
        let shard = Rc::new(Self {
            node: node.clone(),
            address,
            chunks,
            read_faults: RefCell::default(),
            update_faults: RefCell::default(),
            batches: RefCell::default(),
            reads: Cell::default(),
            tags: RefCell::default(),
            applied: Cell::default(),
            done: RefCell::default(),
            version: Cell::default(),
            held: RefCell::default(),
            slow: Cell::default(),
            behind: RefCell::default(),
        });
        node.serve(shard.clone());
        shard
    }

    pub fn fail_reads(&self, faults: impl IntoIterator<Item = Fault>) {
        self.read_faults.borrow_mut().extend(faults);
    }

    pub fn fail_updates(&self, faults: impl IntoIterator<Item = Fault>) {
        self.update_faults.borrow_mut().extend(faults);
    }

    /// Answers the reads that wait because it is slow.
    pub fn catch_up(&self) {
        for (request, responder) in self.behind.take() {
            self.reads(&request, responder);
        }
    }

    pub fn put(&self, inode: u64, index: u32, bytes: &[u8]) {
        let chunk = Chunk { bytes: bytes.to_vec(), version: 1, epoch: 0 };
        self.chunks.borrow_mut().insert((inode, index), chunk);
    }

    fn reads(&self, request: &Request, responder: Responder) {
        let (_, entries) = data::read_entries(&request.body).unwrap();
        self.batches.borrow_mut().push(entries.len());
        self.reads.set(self.reads.get() + entries.len() as u64);
        let fault = self.read_faults.borrow_mut().pop_front().unwrap_or(Fault::None);
        let mut responder = Some(responder);
        for (at, entry) in entries.iter().enumerate() {
            entry.check().unwrap();
            let fault = if at == 0 { fault } else { Fault::None };
            let read = self.read(entry, fault);
            match (responder.take(), fault, read) {
                (Some(responder), Fault::Refuse(code), _) => responder.err(&Error::new(code, "as told")),
                (Some(responder), Fault::Keep, _) => self.held.borrow_mut().push(responder),
                (_, Fault::Close | Fault::DoAndClose, _) => return self.node.close(request.conn),
                (Some(responder), _, Ok((body, data))) => responder.ok(&body, Some(data.into())),
                (Some(responder), _, Err(error)) => responder.err(&error),
                (None, _, read) => {
                    // Refusals take a status, which only the answer to the frame itself can have here; of a chunk that
                    // isn't there, no blocks says the same.
                    let nothing = || (ReadReply::default().as_bytes().to_vec(), Vec::new());
                    let (number, (body, data)) = (entry.request.get(), read.unwrap_or_else(|_| nothing()));
                    let data = Some(data.into());
                    // A connection that another request has closed takes nothing more.
                    let _ = self.node.post(request.conn, Kind::Reply, op::READ, number, &body, data);
                }
            }
        }
    }

    fn read(&self, entry: &ReadEntry, fault: Fault) -> Result<(Vec<u8>, Vec<u8>), Error> {
        let version = self.version.get();
        if version != 0 && entry.chain_version.get() != version {
            let what = "a read under another chain version";
            return Err(Error::mismatch(ErrorCode::StaleRouting, version, entry.chain_version.get(), what));
        }
        let chunks = self.chunks.borrow();
        let chunk = chunks.get(&(entry.inode.get(), entry.index.get()));
        let chunk = chunk.ok_or_else(|| Error::from(ErrorCode::NoSuchChunk))?;
        let (start, length) = (entry.offset.get() as usize, entry.length.get() as usize);
        let end = (start + length).min(chunk.bytes.len().next_multiple_of(BLOCK)).max(start);
        let mut data = chunk.bytes.get(start..).unwrap_or_default().to_vec();
        data.resize(end - start, 0);
        let mut crcs = Vec::new();
        block_crcs(&data, &mut crcs);
        if let (Fault::Corrupt, Some(byte)) = (fault, data.get_mut(BLOCK / 2)) {
            *byte ^= 4;
        }
        let reply = ReadReply {
            commit_version: chunk.version.into(),
            chunk_length: (chunk.bytes.len() as u32).into(),
            blocks: (crcs.len() as u32).into(),
        };
        let mut body = reply.as_bytes().to_vec();
        crcs.iter().for_each(|crc| body.extend_from_slice(&crc.to_le_bytes()));
        Ok((body, data))
    }

    fn update(&self, request: &Request, responder: Responder) {
        let (_, update, crcs) = data::update(&request.body).unwrap();
        self.tags.borrow_mut().push((update.tag(), update.chain_version.get()));
        let fault = self.update_faults.borrow_mut().pop_front().unwrap_or(Fault::None);
        match fault {
            Fault::Refuse(code) => return responder.err(&Error::new(code, "as told")),
            Fault::Keep => return self.held.borrow_mut().push(responder),
            Fault::Close => return self.node.close(request.conn),
            _ => (),
        }
        let payload = request.data.as_ref().map_or(&[][..], |data| data.as_slice());
        let reply = self.apply(update, crcs.iter().map(|crc| crc.get()).collect(), payload);
        match (fault, reply) {
            (Fault::DoAndClose, _) => self.node.close(request.conn),
            (_, Ok(reply)) => responder.ok(reply.as_bytes(), None),
            (_, Err(error)) => responder.err(&error),
        }
    }

    fn apply(&self, update: &Update, crcs: Vec<u32>, payload: &[u8]) -> Result<UpdateReply, Error> {
        update.check(payload.len())?;
        let version = self.version.get();
        if version != 0 && update.chain_version.get() != version {
            return Err(Error::new(ErrorCode::StaleRouting, "an update under another chain version"));
        }
        let mut expected = Vec::new();
        data::segment_crcs(update.offset.get() as usize, payload, |crc| expected.push(crc));
        assert_eq!(crcs, expected, "the payload's checksums");
        let tag = update.tag();
        let channel = (tag.client.0, tag.channel);
        let mut done = self.done.borrow_mut();
        match done.get(&channel) {
            Some((sequence, reply)) if *sequence == tag.sequence => return Ok(*reply),
            Some((sequence, _)) if *sequence > tag.sequence => return Err(ErrorCode::Duplicate.into()),
            _ => (),
        }
        let mut chunks = self.chunks.borrow_mut();
        let key = (update.inode.get(), update.index.get());
        let chunk = chunks.entry(key).or_default();
        if update.epoch.get() < chunk.epoch {
            return Err(Error::new(ErrorCode::StaleLayout, "an older truncate epoch"));
        }
        chunk.epoch = update.epoch.get();
        chunk.version += 1;
        let (offset, length) = (update.offset.get() as usize, update.length.get() as usize);
        match update.kind()? {
            UpdateKind::Write => {
                let end = chunk.bytes.len().max(offset + length);
                chunk.bytes.resize(end, 0);
                chunk.bytes[offset..offset + length].copy_from_slice(payload);
            }
            UpdateKind::Truncate => chunk.bytes.resize(length, 0),
            UpdateKind::Remove => chunk.bytes.clear(),
            kind => return Err(Error::new(ErrorCode::InvalidArgument, format!("a client sent {kind:?}"))),
        }
        let reply = UpdateReply {
            version: chunk.version.into(),
            chunk_length: (chunk.bytes.len() as u32).into(),
            merged_crc: crc32c(&chunk.bytes).into(),
        };
        if update.kind()? == UpdateKind::Remove {
            chunks.remove(&key);
        }
        done.insert(channel, (tag.sequence, reply));
        self.applied.set(self.applied.get() + 1);
        Ok(reply)
    }

    fn list(&self, request: &Request, responder: Responder) {
        let list = List::parse(&request.body).unwrap();
        let from = (list.inode.get(), list.from_index.get());
        let to = (list.inode.get(), u32::MAX);
        let mut body = Vec::new();
        for ((_, index), chunk) in self.chunks.borrow().range(from..=to).take(list.limit.get() as usize) {
            let entry = ListEntry {
                version: chunk.version.into(),
                index: (*index).into(),
                length: (chunk.bytes.len() as u32).into(),
            };
            body.extend_from_slice(entry.as_bytes());
        }
        responder.ok(&body, None);
    }
}

impl Service for Shard {
    fn request(&self, request: Request, responder: Responder) {
        match request.op {
            op::READ if self.slow.get() => self.behind.borrow_mut().push((request, responder)),
            op::READ => self.reads(&request, responder),
            op::UPDATE => self.update(&request, responder),
            op::LIST => self.list(&request, responder),
            _ => responder.err(&Error::from(ErrorCode::UnknownOperation)),
        }
    }
}
