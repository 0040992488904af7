//! A client of the namespace: numbers its requests, and says everything in a line.

use super::{Fs, World};
use corefs_kv::KvEngine;
use corefs_meta::Namespace;
use corefs_wire::control::meta::*;
use corefs_wire::{ErrorCode, Result};
use std::cell::Cell;
use std::rc::Rc;

pub struct Client<E = corefs_kv::Mem> {
    pub fs: Rc<Namespace<E, World>>,
    pub id: u64,
    pub incarnation: Cell<u32>,
    pub uid: Cell<u32>,
    pub gid: Cell<u32>,
    pub groups: Vec<u32>,
    pub privileged: Cell<bool>,
    sequence: Cell<u64>,
    /// The next request repeats the last number, as after a lost reply.
    repeats: Cell<bool>,
    /// Requests say that they were sent before.
    pub repeated: Cell<bool>,
    /// Requests are called done as soon as the next one is made.
    pub low_water: Cell<bool>,
}

/// What most tests make.
pub fn root(fs: &Rc<Fs>) -> Client {
    Client::new(fs.clone(), 100)
}

pub const ROOT: u64 = 1;

impl<E: KvEngine> Client<E> {
    pub fn new(fs: Rc<Namespace<E, World>>, id: u64) -> Self {
        Self {
            fs,
            id,
            incarnation: Cell::new(1),
            uid: Cell::new(0),
            gid: Cell::new(0),
            groups: Vec::new(),
            privileged: Cell::new(false),
            sequence: Cell::new(0),
            repeats: Cell::new(false),
            repeated: Cell::new(false),
            low_water: Cell::new(false),
        }
    }

    /// An ordinary user.
    pub fn user(fs: &Rc<Namespace<E, World>>, id: u64, uid: u32, gid: u32) -> Self {
        let client = Self::new(fs.clone(), id);
        client.uid.set(uid);
        client.gid.set(gid);
        client
    }

    /// The same client at another server: what it sends again are this one's requests.
    pub fn copy(&self, fs: Rc<Namespace<E, World>>) -> Self {
        let copy = Self::new(fs, self.id);
        copy.sequence.set(self.sequence.get());
        copy
    }

    /// The next request is the last one again.
    pub fn again(&self) -> &Self {
        self.repeats.set(true);
        self
    }

    pub fn caller(&self) -> Box<CallerT> {
        if !self.repeats.take() {
            self.sequence.set(self.sequence.get() + 1);
        }
        let mut caller = CallerT::default();
        caller.client = self.id;
        caller.incarnation = self.incarnation.get();
        caller.sequence = self.sequence.get();
        caller.low_water = if self.low_water.get() { caller.sequence } else { 0 };
        caller.uid = self.uid.get();
        caller.gid = self.gid.get();
        caller.groups = self.groups.clone();
        caller.privileged = self.privileged.get();
        caller.repeated = self.repeated.get();
        Box::new(caller)
    }

    /// Reads need no number.
    fn reader(&self) -> Box<CallerT> {
        let mut caller = self.again().caller();
        caller.sequence = 0;
        caller.low_water = 0;
        caller
    }

    pub async fn lookup(&self, parent: u64, name: &[u8]) -> Result<AttrT> {
        let mut request = LookupT::default();
        (request.caller, request.parent, request.name) = (self.reader(), parent, name.to_vec());
        Ok(*self.fs.lookup(&request).await?.attr)
    }

    pub async fn stat(&self, inode: u64) -> Result<AttrT> {
        let mut request = GetAttrT::default();
        (request.caller, request.inodes) = (self.reader(), vec![inode]);
        let result = self.fs.get_attr(&request).await?.results.remove(0);
        match (result.status, result.attr) {
            (0, Some(attr)) => Ok(*attr),
            (status, _) => Err(ErrorCode::from_number(status).unwrap().into()),
        }
    }

    pub fn create_request(&self, parent: u64, name: &[u8], kind: Kind, mode: u32) -> CreateT {
        let mut request = CreateT::default();
        (request.parent, request.name, request.kind, request.mode) = (parent, name.to_vec(), kind, mode);
        request.exclusive = true;
        request
    }

    pub async fn send_create(&self, mut request: CreateT) -> Result<CreateReplyT> {
        request.caller = self.caller();
        self.fs.create(&request).await
    }

    async fn make(&self, request: CreateT) -> Result<AttrT> {
        Ok(*self.send_create(request).await?.attr)
    }

    pub async fn create(&self, parent: u64, name: &[u8], mode: u32) -> Result<AttrT> {
        self.make(self.create_request(parent, name, Kind::File, mode)).await
    }

    pub async fn mkdir(&self, parent: u64, name: &[u8], mode: u32) -> Result<AttrT> {
        self.make(self.create_request(parent, name, Kind::Directory, mode)).await
    }

    pub async fn symlink(&self, parent: u64, name: &[u8], target: &[u8]) -> Result<AttrT> {
        let mut request = self.create_request(parent, name, Kind::Symlink, 0);
        request.symlink_target = target.to_vec();
        self.make(request).await
    }

    pub async fn open(&self, inode: u64, write: bool, truncate: bool) -> Result<OpenReplyT> {
        self.send_open(inode, write, truncate, false).await
    }

    pub async fn send_open(&self, inode: u64, write: bool, truncate: bool, hold: bool) -> Result<OpenReplyT> {
        let mut request = OpenT::default();
        (request.caller, request.inode) = (self.caller(), inode);
        (request.write, request.truncate, request.hold) = (write, truncate, hold);
        self.fs.open(&request).await
    }

    pub fn close_request(&self, inode: u64, session: u64, length: u64) -> CloseT {
        let mut request = CloseT::default();
        (request.inode, request.session, request.length) = (inode, session, length);
        request
    }

    pub async fn send_close(&self, mut request: CloseT) -> Result<AttrT> {
        request.caller = self.caller();
        Ok(*self.fs.close(&request).await?.attr)
    }

    pub async fn close(&self, inode: u64, session: u64, length: u64) -> Result<AttrT> {
        self.send_close(self.close_request(inode, session, length)).await
    }

    pub async fn end_sessions(&self, names: &[(u64, u64)]) -> Result<EmptyT> {
        let mut request = EndSessionsT::default();
        request.caller = self.caller();
        request.sessions = names.iter().map(|&(inode, session)| SessionNameT { inode, session }).collect();
        self.fs.end_sessions(&request).await
    }

    pub async fn sync(&self, inode: u64, session: u64, length: u64, epoch: u32) -> Result<AttrT> {
        let mut request = SyncLengthT::default();
        (request.caller, request.inode, request.session) = (self.caller(), inode, session);
        (request.length, request.epoch) = (length, epoch);
        Ok(*self.fs.sync_length(&request).await?.attr)
    }

    /// A place for an append; `StaleLayout` when none was given.
    pub async fn append(
        &self,
        inode: u64,
        session: u64,
        (count, at_least): (u64, u64),
        epoch: u32,
    ) -> Result<u64> {
        let mut request = AppendT::default();
        (request.caller, request.inode, request.session) = (self.caller(), inode, session);
        (request.count, request.at_least, request.epoch) = (count, at_least, epoch);
        let reply = self.fs.append(&request).await?;
        let keeps = reply.attr.marks & 8 != 0;
        assert!(if reply.given { reply.attr.epoch == epoch } else { reply.attr.epoch != epoch || keeps });
        if reply.given { Ok(reply.offset) } else { Err(ErrorCode::StaleLayout.into()) }
    }

    /// A page of names.
    pub async fn list(&self, inode: u64, after: &[u8], limit: u32) -> Result<(Vec<Vec<u8>>, bool)> {
        let reply = self.list_plus(inode, after, limit, false).await?;
        Ok((reply.entries.into_iter().map(|entry| entry.name).collect(), reply.more))
    }

    pub async fn list_plus(&self, inode: u64, after: &[u8], limit: u32, plus: bool) -> Result<ReadDirReplyT> {
        let mut request = ReadDirT::default();
        (request.caller, request.inode, request.after) = (self.reader(), inode, after.to_vec());
        (request.limit, request.plus) = (limit, plus);
        self.fs.read_dir(&request).await
    }

    pub async fn unlink(&self, parent: u64, name: &[u8]) -> Result<()> {
        let mut request = UnlinkT::default();
        (request.caller, request.parent, request.name) = (self.caller(), parent, name.to_vec());
        self.fs.unlink(&request).await.map(drop)
    }

    pub async fn rmdir(&self, parent: u64, name: &[u8]) -> Result<()> {
        let mut request = RmDirT::default();
        (request.caller, request.parent, request.name) = (self.caller(), parent, name.to_vec());
        self.fs.rmdir(&request).await.map(drop)
    }

    pub async fn rename(&self, from: (u64, &[u8]), to: (u64, &[u8]), flags: u32) -> Result<()> {
        let mut request = RenameT::default();
        (request.caller, request.flags) = (self.caller(), flags);
        (request.parent, request.name) = (from.0, from.1.to_vec());
        (request.new_parent, request.new_name) = (to.0, to.1.to_vec());
        self.fs.rename(&request).await.map(drop)
    }

    pub async fn link(&self, inode: u64, parent: u64, name: &[u8]) -> Result<AttrT> {
        let mut request = LinkT::default();
        (request.caller, request.inode) = (self.caller(), inode);
        (request.parent, request.name) = (parent, name.to_vec());
        Ok(*self.fs.link(&request).await?.attr)
    }

    pub async fn read_link(&self, inode: u64) -> Result<Vec<u8>> {
        let mut request = ReadLinkT::default();
        (request.caller, request.inode) = (self.reader(), inode);
        Ok(self.fs.read_link(&request).await?.target)
    }

    pub async fn set_attr(&self, inode: u64, set: SetAttrFieldsT) -> Result<AttrT> {
        let mut request = SetAttrT::default();
        (request.caller, request.inode, request.set) = (self.caller(), inode, Box::new(set));
        Ok(*self.fs.set_attr(&request).await?.attr)
    }

    pub async fn truncate(&self, inode: u64, size: u64) -> Result<AttrT> {
        let mut set = SetAttrFieldsT::default();
        (set.mask, set.size) = (8, size);
        self.set_attr(inode, set).await
    }

    pub async fn chmod(&self, inode: u64, mode: u32) -> Result<AttrT> {
        let mut set = SetAttrFieldsT::default();
        (set.mask, set.mode) = (1, mode);
        self.set_attr(inode, set).await
    }

    pub async fn chown(&self, inode: u64, uid: u32, gid: u32) -> Result<AttrT> {
        let mut set = SetAttrFieldsT::default();
        (set.mask, set.uid, set.gid) = (6, uid, gid);
        self.set_attr(inode, set).await
    }

    pub async fn utimes(&self, inode: u64, atime: i64, mtime: i64) -> Result<AttrT> {
        let mut set = SetAttrFieldsT::default();
        (set.mask, set.atime, set.mtime) = (48, atime, mtime);
        self.set_attr(inode, set).await
    }
}
