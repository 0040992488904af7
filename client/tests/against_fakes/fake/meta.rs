//! A metadata server for files in one directory, with real sequences and sessions.

use super::{LAYOUT, answer};
use corefs_net::{Node, Request, Responder, Service};
use corefs_wire::checksum::crc32c;
use corefs_wire::control::meta::{
    AppendReplyT, AppendT, AttrReplyT, AttrResultT, AttrT, CallerT, CloseT, CreateReplyT, CreateT, EmptyT,
    EndSessionsT, GetAttrReplyT, GetAttrT, InlineT, Kind, KnownAttrT, LookupT, OpenReplyT, OpenT,
    ReadLinkReplyT, ReadLinkT, SetAttrFieldsT, SetAttrT, SyncLengthT, UnlinkT, UnlinkedT,
};
use corefs_wire::control::{Call, Message};
use corefs_wire::limits::INLINE_MAX;
use corefs_wire::{Error, ErrorCode, Result};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// The mark of an inode that keeps its file's bytes.
const INLINE: u8 = 8;

#[derive(Default)]
pub struct Meta {
    pub inodes: RefCell<BTreeMap<u64, AttrT>>,
    pub names: RefCell<BTreeMap<(u64, Vec<u8>), u64>>,
    pub targets: RefCell<BTreeMap<u64, Vec<u8>>>,
    pub sessions: RefCell<BTreeSet<u64>>,
    /// Where the place of another client's append ends, by inode: for the next append.
    pub taken: RefCell<BTreeMap<u64, u64>>,
    /// What was done, by (client, sequence): the reply.
    done: RefCell<BTreeMap<(u64, u64), Vec<u8>>>,
    /// Calls that were done, by name.
    pub calls: RefCell<Vec<&'static str>>,
    pub callers: RefCell<Vec<CallerT>>,
    /// For the next requests: refuse with this, or with `ConnectionLost` do it and close instead of answering.
    pub faults: RefCell<VecDeque<Option<ErrorCode>>>,
    pub lost: Cell<u32>,
    /// Unlinks wait for [`Meta::catch_up`].
    pub slow: Cell<bool>,
    /// Times that the last session ended that there was, of any file.
    pub none_left: Cell<u32>,
    pub behind: RefCell<Vec<(Request, Responder)>>,
    /// Nothing is changed for now.
    pub refusing: Cell<bool>,
    /// New files may keep their bytes with their inodes.
    pub keeps: Cell<bool>,
    /// Those bytes.
    pub kept: RefCell<BTreeMap<u64, Vec<u8>>>,
    /// Bytes that went to chunks.
    pub moved: RefCell<BTreeMap<u64, Vec<u8>>>,
    pub node: RefCell<Option<Node>>,
    next: Cell<u64>,
}

fn attr_reply(attr: &AttrT) -> AttrReplyT {
    let mut reply = AttrReplyT::default();
    reply.attr = Box::new(attr.clone());
    reply
}

impl Meta {
    fn number(&self) -> u64 {
        self.next.set(self.next.get() + 1);
        self.next.get() + 100
    }

    pub fn add(&self, parent: u64, name: &[u8], kind: Kind) -> AttrT {
        let mut attr = AttrT::default();
        (attr.inode, attr.kind, attr.mode, attr.nlink, attr.epoch) = (self.number(), kind, 0o644, 1, 1);
        attr.layout = Box::new(LAYOUT.to_message());
        attr.parent = parent;
        self.names.borrow_mut().insert((parent, name.to_vec()), attr.inode);
        self.inodes.borrow_mut().insert(attr.inode, attr.clone());
        attr
    }

    fn inode(&self, inode: u64) -> Result<AttrT> {
        if inode == 1 {
            let mut root = AttrT::default();
            (root.inode, root.kind, root.mode) = (1, Kind::Directory, 0o755);
            return Ok(root);
        }
        self.inodes.borrow().get(&inode).cloned().ok_or_else(|| ErrorCode::NoSuchInode.into())
    }

    fn find(&self, parent: u64, name: &[u8]) -> Option<u64> {
        self.names.borrow().get(&(parent, name.to_vec())).copied()
    }

    fn change(&self, inode: u64, change: impl FnOnce(&mut AttrT)) -> Result<AttrT> {
        let mut inodes = self.inodes.borrow_mut();
        let attr = inodes.get_mut(&inode).ok_or(ErrorCode::NoSuchInode)?;
        change(attr);
        Ok(attr.clone())
    }

    /// Truncates from elsewhere.
    pub fn truncate(&self, inode: u64, size: u64) {
        let cut = |attr: &mut AttrT| (attr.size, attr.epoch) = (size, attr.epoch + 1);
        self.change(inode, cut).unwrap();
    }

    fn begin(&self) -> u64 {
        let session = self.number();
        self.sessions.borrow_mut().insert(session);
        session
    }

    fn end(&self, ended: &[u64]) {
        let mut sessions = self.sessions.borrow_mut();
        sessions.retain(|session| !ended.contains(session));
        self.none_left.set(self.none_left.get() + u32::from(sessions.is_empty()));
    }

    fn session(&self, session: u64) -> Result<()> {
        if self.sessions.borrow().contains(&session) { Ok(()) } else { Err(ErrorCode::NoSuchSession.into()) }
    }

    fn create(&self, asked: CreateT) -> Result<CreateReplyT> {
        let mut reply = CreateReplyT::default();
        match self.find(asked.parent, &asked.name) {
            Some(_) if asked.exclusive => return Err(ErrorCode::Exists.into()),
            Some(inode) => reply.attr = Box::new(self.inode(inode)?),
            None => {
                let made = self.add(asked.parent, &asked.name, asked.kind);
                let keeps = asked.inline && self.keeps.get();
                let change =
                    |attr: &mut AttrT| (attr.mode, attr.marks) = (asked.mode, u8::from(keeps) * INLINE);
                let attr = self.change(made.inode, change)?;
                if keeps {
                    self.kept.borrow_mut().insert(attr.inode, Vec::new());
                }
                self.targets.borrow_mut().insert(attr.inode, asked.symlink_target);
                (reply.attr, reply.created) = (Box::new(attr), true);
            }
        }
        reply.session = if asked.open { self.begin() } else { 0 };
        Ok(reply)
    }

    fn open(&self, asked: OpenT) -> Result<OpenReplyT> {
        if asked.truncate {
            self.truncate(asked.inode, 0);
        }
        let mut reply = OpenReplyT::default();
        reply.attr = Box::new(self.inode(asked.inode)?);
        reply.session = if asked.write || asked.hold { self.begin() } else { 0 };
        if let (true, Some(bytes)) = (asked.bytes, self.kept.borrow().get(&asked.inode)) {
            let mut inline = InlineT::default();
            (inline.bytes, inline.crc) = (bytes.clone(), crc32c(bytes));
            reply.inline = Some(Box::new(inline));
        }
        Ok(reply)
    }

    /// As if somebody else had made the file longer than what is kept.
    pub fn move_out(&self, inode: u64) {
        if let Some(bytes) = self.kept.borrow_mut().remove(&inode) {
            self.moved.borrow_mut().insert(inode, bytes);
            self.change(inode, |attr| (attr.marks, attr.epoch) = (0, attr.epoch + 2)).unwrap();
        }
    }

    fn keep(&self, inode: u64, epoch: u32, piece: Option<&InlineT>) -> Result<()> {
        let Some(piece) = piece else { return Ok(()) };
        assert_eq!(piece.crc, crc32c(&piece.bytes));
        let mut kept = self.kept.borrow_mut();
        let bytes = kept.get_mut(&inode).filter(|_| self.inode(inode).is_ok_and(|attr| attr.epoch == epoch));
        let bytes = bytes.ok_or(ErrorCode::MovedOut)?;
        let start = piece.start as usize;
        let end = start + piece.bytes.len();
        bytes.resize(bytes.len().max(end), 0);
        bytes[start..end].copy_from_slice(&piece.bytes);
        self.change(inode, |attr| attr.size = attr.size.max(end as u64)).map(drop)
    }

    pub fn catch_up(&self) {
        self.slow.set(false);
        for (request, responder) in self.behind.take() {
            self.request(request, responder);
        }
    }

    fn unlink(&self, asked: &UnlinkT) -> Result<UnlinkedT> {
        let gone = self.names.borrow_mut().remove(&(asked.parent, asked.name.clone()));
        let mut reply = UnlinkedT::default();
        reply.inode = gone.ok_or(ErrorCode::NotFound)?;
        let held = asked.hold.as_ref().is_some_and(|hold| hold.contains(&reply.inode));
        reply.session = if held { self.begin() } else { 0 };
        Ok(reply)
    }

    /// What close and sync have in common.
    fn take_length(&self, inode: u64, epoch: u32, length: u64, mtime: i64) -> Result<AttrT> {
        self.change(inode, |attr| {
            if epoch == 0 || epoch == attr.epoch {
                attr.size = attr.size.max(length);
            }
            attr.mtime = if mtime == 0 { attr.mtime } else { mtime };
        })
    }

    fn append(&self, asked: &AppendT) -> Result<AppendReplyT> {
        let attr = self.inode(asked.inode)?;
        let elsewhere = self.taken.borrow_mut().remove(&asked.inode).unwrap_or(0);
        let mut reply = AppendReplyT::default();
        let first = attr.size.max(asked.at_least);
        reply.offset = first.max(elsewhere);
        let too_long = elsewhere > first || reply.offset + asked.count > INLINE_MAX as u64;
        reply.given = attr.epoch == asked.epoch && !(attr.marks & INLINE != 0 && too_long);
        reply.attr = Box::new(attr);
        Ok(reply)
    }

    fn set_attr(&self, asked: SetAttrT) -> Result<AttrReplyT> {
        Ok(attr_reply(&self.set(asked.inode, &asked.set)?))
    }

    fn set(&self, inode: u64, set: &SetAttrFieldsT) -> Result<AttrT> {
        self.change(inode, |attr| {
            if set.mask & 8 != 0 {
                (attr.size, attr.epoch) = (set.size, attr.epoch + 1);
                if let Some(bytes) = self.kept.borrow_mut().get_mut(&inode) {
                    bytes.truncate(set.size as usize);
                }
            }
            let stays = |was: fn(&KnownAttrT) -> i64, is: i64| {
                set.known.as_ref().is_some_and(|known| was(known) != is)
            };
            let (mode, mtime) =
                (stays(|known| known.mode.into(), attr.mode.into()), stays(|known| known.mtime, attr.mtime));
            attr.mtime = if set.mask & 32 != 0 && !mtime { set.mtime } else { attr.mtime };
            attr.mode = if set.mask & 1 != 0 && !mode { set.mode } else { attr.mode };
            attr.uid = if set.mask & 2 != 0 { set.uid } else { attr.uid };
        })
    }

    fn get_attrs(&self, asked: &GetAttrT) -> GetAttrReplyT {
        let result = |inode: &u64| {
            let mut result = AttrResultT::default();
            match self.inode(*inode) {
                Ok(attr) => result.attr = Some(Box::new(attr)),
                Err(error) => result.status = error.code as u32,
            }
            result
        };
        let mut reply = GetAttrReplyT::default();
        reply.results = asked.inodes.iter().map(result).collect();
        reply
    }

    /// Does a changing call once, and answers unless told to lose the answer.
    fn once<C: Call>(
        &self,
        request: &Request,
        responder: Responder,
        caller: impl FnOnce(&C) -> &CallerT,
        act: impl FnOnce(C) -> Result<C::Reply>,
    ) {
        let asked = C::decode(&request.body).unwrap();
        let caller = caller(&asked).clone();
        let key = (caller.client, caller.sequence);
        self.callers.borrow_mut().push(caller);
        if self.refusing.get() {
            return responder.err(&Error::from(ErrorCode::NotReady));
        }
        let fault = self.faults.borrow_mut().pop_front().flatten();
        if let Some(code) = fault.filter(|code| *code != ErrorCode::ConnectionLost) {
            return responder.err(&Error::new(code, "as told"));
        }
        let remembered = self.done.borrow().get(&key).cloned();
        let reply = match remembered {
            Some(reply) if key.1 != 0 => Ok(reply),
            _ => {
                self.calls.borrow_mut().push(C::NAME);
                act(asked).map(|reply| reply.encode())
            }
        };
        if let Ok(reply) = &reply
            && key.1 != 0
        {
            self.done.borrow_mut().insert(key, reply.clone());
        }
        if fault.is_some() {
            self.lost.set(self.lost.get() + 1);
            if let Some(node) = &*self.node.borrow() {
                node.close(request.conn);
            }
            // The answer to a connection that is being closed goes nowhere.
            return drop(responder);
        }
        responder.done(reply);
    }
}

impl Service for Meta {
    fn request(&self, request: Request, responder: Responder) {
        match request.op {
            LookupT::OP => answer::<LookupT>(&request, responder, |asked| {
                let found = self.find(asked.parent, &asked.name).ok_or(ErrorCode::NotFound)?;
                Ok(attr_reply(&self.inode(found)?))
            }),
            GetAttrT::OP => answer::<GetAttrT>(&request, responder, |asked| Ok(self.get_attrs(&asked))),
            ReadLinkT::OP => answer::<ReadLinkT>(&request, responder, |asked| {
                let mut reply = ReadLinkReplyT::default();
                reply.target =
                    self.targets.borrow().get(&asked.inode).cloned().ok_or(ErrorCode::NotSymlink)?;
                Ok(reply)
            }),
            CreateT::OP => {
                self.once::<CreateT>(&request, responder, |c| &c.caller, |asked| self.create(asked))
            }
            OpenT::OP => self.once::<OpenT>(&request, responder, |c| &c.caller, |asked| self.open(asked)),
            SetAttrT::OP => {
                self.once::<SetAttrT>(&request, responder, |c| &c.caller, |asked| self.set_attr(asked))
            }
            UnlinkT::OP if self.slow.get() => self.behind.borrow_mut().push((request, responder)),
            UnlinkT::OP => {
                self.once::<UnlinkT>(&request, responder, |c| &c.caller, |asked| self.unlink(&asked))
            }
            SyncLengthT::OP => self.once::<SyncLengthT>(
                &request,
                responder,
                |c| &c.caller,
                |asked| {
                    self.session(asked.session)?;
                    self.keep(asked.inode, asked.epoch, asked.inline.as_deref())?;
                    let attr = self.take_length(asked.inode, asked.epoch, asked.length, asked.mtime)?;
                    if asked.move_out {
                        self.move_out(asked.inode);
                        return Ok(attr_reply(&self.inode(asked.inode)?));
                    }
                    Ok(attr_reply(&attr))
                },
            ),
            AppendT::OP => self.once::<AppendT>(
                &request,
                responder,
                |c| &c.caller,
                |asked| {
                    self.session(asked.session)?;
                    self.append(&asked)
                },
            ),
            CloseT::OP => self.once::<CloseT>(
                &request,
                responder,
                |c| &c.caller,
                |asked| {
                    self.session(asked.session)?;
                    self.keep(asked.inode, asked.epoch, asked.inline.as_deref())?;
                    self.end(&[asked.session]);
                    let attr = self.take_length(asked.inode, asked.epoch, asked.length, asked.mtime)?;
                    match &asked.set {
                        Some(set) => Ok(attr_reply(&self.set(asked.inode, set)?)),
                        None => Ok(attr_reply(&attr)),
                    }
                },
            ),
            EndSessionsT::OP if self.refusing.get() => responder.err(&Error::from(ErrorCode::NotReady)),
            EndSessionsT::OP => answer::<EndSessionsT>(&request, responder, |asked| {
                self.calls.borrow_mut().push(EndSessionsT::NAME);
                let ended: Vec<u64> = asked.sessions.iter().map(|ended| ended.session).collect();
                self.end(&ended);
                Ok(EmptyT::default())
            }),
            _ => responder.err(&Error::from(ErrorCode::UnknownOperation)),
        }
    }
}
