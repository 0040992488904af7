//! Typed calls to the metadata servers.
//!
//! A call that changes something carries (client, sequence), which stay the same however often it is sent, so that it
//! happens once; and the low-water mark, below which everything is done and may be forgotten.

mod begin;
mod encode;
mod sequences;
mod xattr;

use crate::ground::Ground;
use crate::lock::Lock;
use crate::watch::{Memory, Own};
use crate::{Attr, Changes, Credentials, Entry, Kind, Space};
use corefs_wire::checksum::crc32c;
use corefs_wire::control::meta::{
    AppendT, CallerT, CloseT, CreateT, EndSessionsT, GetAttrT, GetLockT, InlineT, LinkT, LookupT, OpenT,
    ReadDirT, ReadLinkT, RenameT, RmDirT, SessionNameT, SetAttrT, SetLockT, StatFsT, SyncLengthT, UnlinkT,
    UnlinkedT,
};
use corefs_wire::limits::{INLINE_MAX, NAME_MAX};
use corefs_wire::{Class, ClientId, Error, ErrorCode, InodeId, Result};
pub(crate) use encode::Repeat;
use encode::{fields, set_caller};
use sequences::Sequences;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Instant;

/// Flags of [`Meta::rename`], as renameat2(2).
pub const RENAME_NOREPLACE: u32 = 1;
pub const RENAME_EXCHANGE: u32 = 2;

/// What to create: anything but a hard link.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewInode {
    pub kind: Kind,
    pub mode: u32,
    pub rdev: u32,
    /// Of symlinks.
    pub target: Vec<u8>,
    /// Refuse when the name exists, else return what is there.
    pub exclusive: bool,
    /// Also begin a write session (files).
    pub open: bool,
    /// Keep its bytes with its inode as long as they are few (files).
    pub inline: bool,
    /// 0: the cluster's choice.
    pub chunk_size: u32,
    pub stripe: u32,
    /// Bits to take off the mode, unless the directory has a default access control list.
    pub umask: u32,
}

impl NewInode {
    pub fn new(kind: Kind, mode: u32) -> Self {
        Self {
            kind,
            mode,
            rdev: 0,
            target: Vec::new(),
            exclusive: true,
            open: false,
            inline: false,
            chunk_size: 0,
            stripe: 0,
            umask: 0,
        }
    }
}

/// What a create made or found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Created {
    pub attr: Attr,
    /// 0: none was asked for.
    pub session: u64,
    pub created: bool,
}

/// What was written in a session and its server doesn't know yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Written<'a> {
    /// The end of the last byte written; 0: nothing was.
    pub length: u64,
    /// Nanoseconds since the epoch; 0: unchanged.
    pub mtime: i64,
    /// The truncate epoch that the writes named; 0: the one at which the session began.
    pub epoch: u32,
    /// To be written now, to a file that keeps its bytes with its inode. `MovedOut` when it doesn't, or has another epoch.
    pub piece: Option<Piece<'a>>,
}

/// Bytes of a file that keeps them with its inode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Piece<'a> {
    pub start: u64,
    pub bytes: &'a [u8],
}

impl Piece<'_> {
    fn to_message(self) -> Box<InlineT> {
        let mut message = Box::<InlineT>::default();
        message.start = self.start;
        message.bytes = self.bytes.to_vec();
        message.crc = crc32c(self.bytes);
        message
    }
}

/// Entries of a directory, and whether there are more.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Page {
    pub entries: Vec<Entry>,
    pub more: bool,
    /// Of the directory itself.
    pub parent: InodeId,
}

/// What a name led to that was taken away.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unlinked {
    /// 0: nothing.
    pub inode: InodeId,
    /// Keeps its bytes; 0: none was begun.
    pub session: u64,
    /// What a rename gave another name. 0: nobody knows, or it was two.
    moved: InodeId,
}

impl Unlinked {
    fn from_message(reply: &UnlinkedT) -> Self {
        Self { inode: InodeId(reply.inode), session: reply.session, moved: InodeId(reply.moved) }
    }
}

fn numbers(inodes: &[InodeId]) -> Option<Vec<u64>> {
    (!inodes.is_empty()).then(|| inodes.iter().map(|inode| inode.0).collect())
}

struct Calls {
    ground: Rc<Ground>,
    from: Cell<(ClientId, u32)>,
    sequences: RefCell<Sequences>,
    /// When the last call ended that changed something.
    changed: Cell<Instant>,
    memory: Rc<Memory>,
}

/// The metadata calls. Each is retried, at another server if need be, until the client's patience ends; one that changes
/// something keeps its number while it is, so that it happens once.
#[derive(Clone)]
pub struct Meta(Rc<Calls>);

/// The sequence of one changing call while it is under way. What it changes, or may have, is not remembered any more when it has ended.
struct Sequence {
    calls: Rc<Calls>,
    number: u64,
    changes: RefCell<Vec<Own>>,
    /// It is known what became of it.
    settled: Cell<bool>,
}

impl Sequence {
    /// A name, and with it its directory.
    fn of_name(&self, parent: InodeId, name: &[u8]) -> &Self {
        self.of(|| Own::Name(parent, name.to_vec()))
    }

    /// A name, and what it leads to.
    fn of_what(&self, parent: InodeId, name: &[u8]) -> &Self {
        self.of(|| Own::What(parent, name.to_vec()))
    }

    fn of_inode(&self, inode: InodeId) -> &Self {
        self.of(|| Own::Inode(inode))
    }

    /// Attributes of nobody knows what.
    fn of_some_inode(&self) -> &Self {
        self.of(|| Own::SomeInode)
    }

    fn of(&self, own: impl FnOnce() -> Own) -> &Self {
        if self.calls.memory.is_on() {
            self.changes.borrow_mut().push(own());
        }
        self
    }

    /// Inodes that lost a name, or have another one, as far as that is known.
    fn of_outcome(&self, gone: &Result<Unlinked>, renamed: bool) {
        let Ok(gone) = gone else { return };
        self.of_inode(gone.inode);
        match (renamed, gone.moved) {
            (false, _) => self,
            (true, InodeId(0)) => self.of_some_inode(),
            (true, moved) => self.of_inode(moved),
        };
    }
}

impl Drop for Sequence {
    fn drop(&mut self) {
        self.changes.take().iter().for_each(|own| self.calls.memory.change(own));
        if !self.settled.get() {
            // It may still happen, and nobody will tell us of a change of our own.
            self.calls.memory.doubt();
        }
        self.calls.sequences.borrow_mut().end(self.number);
        self.calls.changed.set(Instant::now());
    }
}

impl Meta {
    pub(crate) fn new(ground: Rc<Ground>) -> Self {
        Self(Rc::new(Calls {
            ground,
            from: Cell::default(),
            sequences: RefCell::default(),
            changed: Cell::new(Instant::now()),
            memory: Rc::default(),
        }))
    }

    pub(crate) fn set_client(&self, client: ClientId, incarnation: u32) {
        self.0.from.set((client, incarnation));
    }

    pub(crate) fn memory(&self) -> &Rc<Memory> {
        &self.0.memory
    }

    /// How many calls have begun that change something, if none is under way: none was between two equal answers.
    pub(crate) fn quiet(&self) -> Option<u64> {
        self.0.sequences.borrow().quiet()
    }

    /// What was heard before then may be out of date by our own doing.
    pub(crate) fn changed(&self) -> Instant {
        self.0.changed.get()
    }

    /// A call that only looks. An inode that isn't there tells that what is remembered of the way to it is out of date.
    async fn ask<C: Repeat>(&self, key: u64, request: &C) -> Result<C::Reply> {
        let outcome = self.0.ground.meta(key, request).await;
        if outcome.as_ref().is_err_and(|error| error.code == ErrorCode::NoSuchInode) {
            self.0.memory.forget_all();
        }
        outcome
    }

    /// A call that changes something.
    async fn carry_out<C: Repeat>(&self, sequence: &Sequence, key: u64, request: &C) -> Result<C::Reply> {
        let outcome = self.ask(key, request).await;
        sequence.settled.set(outcome.as_ref().err().is_none_or(|error| error.class() == Class::Fatal));
        outcome
    }

    /// For a call that only looks.
    fn looking(&self, who: &Credentials) -> Box<CallerT> {
        let mut caller = Box::<CallerT>::default();
        set_caller(&mut caller, self.0.from.get(), who);
        caller
    }

    /// For a call that changes something.
    fn changing(&self, who: &Credentials) -> (Box<CallerT>, Sequence) {
        let mut caller = self.looking(who);
        let number = self.0.sequences.borrow_mut().begin();
        caller.sequence = number;
        caller.low_water = self.0.sequences.borrow().low_water();
        (
            caller,
            Sequence {
                calls: Rc::clone(&self.0),
                number,
                changes: RefCell::default(),
                settled: Cell::default(),
            },
        )
    }

    pub async fn lookup(&self, who: &Credentials, parent: InodeId, name: &[u8]) -> Result<Attr> {
        check_name(name)?;
        let mut request = LookupT::default();
        request.caller = self.looking(who);
        request.parent = parent.0;
        request.name = name.to_vec();
        Attr::from_message(&self.ask(parent.0, &request).await?.attr)
    }

    pub async fn get_attr(&self, who: &Credentials, inode: InodeId) -> Result<Attr> {
        let found = self.get_attrs(who, &[inode]).await?.pop();
        found.unwrap_or_else(|| Err(bad("a batch stat without its result")))
    }

    /// Each inode with its own result, in order.
    pub async fn get_attrs(&self, who: &Credentials, inodes: &[InodeId]) -> Result<Vec<Result<Attr>>> {
        let Some(first) = inodes.first() else { return Ok(Vec::new()) };
        let mut request = GetAttrT::default();
        request.caller = self.looking(who);
        request.inodes = inodes.iter().map(|inode| inode.0).collect();
        let reply = self.ask(first.0, &request).await?;
        if reply.results.len() != inodes.len() {
            return Err(bad("a batch stat with another number of results"));
        }
        let results = reply.results.iter().zip(inodes).map(|(result, inode)| encode::result(result, *inode));
        let results: Vec<Result<Attr>> = results.collect();
        let is_gone =
            |result: &Result<Attr>| result.as_ref().is_err_and(|error| error.code == ErrorCode::NoSuchInode);
        if results.iter().any(is_gone) {
            self.0.memory.forget_all();
        }
        Ok(results)
    }

    pub async fn create(
        &self,
        who: &Credentials,
        parent: InodeId,
        name: &[u8],
        node: &NewInode,
    ) -> Result<Created> {
        check_name(name)?;
        let (caller, sequence) = self.changing(who);
        sequence.of_name(parent, name);
        let mut request = CreateT::default();
        request.caller = caller;
        request.parent = parent.0;
        request.name = name.to_vec();
        request.kind = node.kind;
        request.mode = node.mode;
        request.rdev = node.rdev;
        request.symlink_target = node.target.clone();
        request.exclusive = node.exclusive;
        request.open = node.open;
        request.inline = node.inline;
        request.chunk_size = node.chunk_size;
        request.stripe = node.stripe;
        request.umask = node.umask;
        let reply = self.carry_out(&sequence, parent.0, &request).await?;
        let attr = Attr::from_message(&reply.attr)?;
        Ok(Created { attr, session: reply.session, created: reply.created })
    }

    /// Attributes, and the session if `write`.
    pub async fn open(
        &self,
        who: &Credentials,
        inode: InodeId,
        write: bool,
        truncate: bool,
    ) -> Result<(Attr, u64)> {
        let changing = write || truncate;
        let mut request = OpenT::default();
        let sequence = if changing {
            let (caller, sequence) = self.changing(who);
            sequence.of_inode(inode);
            request.caller = caller;
            Some(sequence)
        } else {
            request.caller = self.looking(who);
            None
        };
        request.inode = inode.0;
        request.write = write;
        request.truncate = truncate;
        let reply = match sequence {
            Some(sequence) => self.begin(request, sequence).await?,
            None => self.ask(inode.0, &request).await?,
        };
        Ok((Attr::from_message(&reply.attr)?, reply.session))
    }

    /// Attributes, and of a file that keeps its bytes with its inode these, from the first on; what follows them is zeros. `PermissionDenied`
    /// for who may not read it; `ChecksumMismatch`.
    pub async fn look(&self, who: &Credentials, inode: InodeId) -> Result<(Attr, Option<Vec<u8>>)> {
        let mut request = OpenT::default();
        request.caller = self.looking(who);
        request.inode = inode.0;
        request.bytes = true;
        let reply = self.ask(inode.0, &request).await?;
        let attr = Attr::from_message(&reply.attr)?;
        let Some(inline) = reply.inline else {
            return if attr.marks.inline {
                Err(bad("a small file without its bytes"))
            } else {
                Ok((attr, None))
            };
        };
        let found = crc32c(&inline.bytes);
        if found != inline.crc {
            let what = "bytes of an inode were altered on their way";
            return Err(Error::mismatch(ErrorCode::ChecksumMismatch, inline.crc.into(), found.into(), what));
        }
        if inline.start != 0 || inline.bytes.len() as u64 > attr.size.min(INLINE_MAX as u64) {
            return Err(bad("bytes of an inode that it can't have"));
        }
        Ok((attr, Some(inline.bytes)))
    }

    /// Begins a session that keeps a file's bytes although its last name goes; end it with [`close`](Self::close).
    pub async fn hold(&self, who: &Credentials, inode: InodeId) -> Result<(Attr, u64)> {
        let (caller, sequence) = self.changing(who);
        let mut request = OpenT::default();
        request.caller = caller;
        request.inode = inode.0;
        request.hold = true;
        let reply = self.begin(request, sequence).await?;
        Ok((Attr::from_message(&reply.attr)?, reply.session))
    }

    /// Ends a session. `changes`: made in the same step.
    pub async fn close(
        &self,
        who: &Credentials,
        inode: InodeId,
        session: u64,
        written: Written<'_>,
        changes: Option<Changes>,
    ) -> Result<Attr> {
        let (caller, sequence) = self.changing(who);
        sequence.of_inode(inode);
        let mut request = CloseT::default();
        request.caller = caller;
        request.inode = inode.0;
        request.session = session;
        request.length = written.length;
        request.mtime = written.mtime;
        request.epoch = written.epoch;
        request.inline = written.piece.map(Piece::to_message);
        request.set = changes.map(|changes| Box::new(fields(&changes)));
        Attr::from_message(&self.carry_out(&sequence, inode.0, &request).await?.attr)
    }

    /// Ends sessions, at most [`SESSIONS_MAX`](corefs_wire::limits::SESSIONS_MAX), that have nothing to tell.
    pub async fn end_sessions(&self, sessions: &[(InodeId, u64)]) -> Result<()> {
        let Some((first, _)) = sessions.first() else { return Ok(()) };
        let mut request = EndSessionsT::default();
        request.caller = self.looking(&Credentials::root());
        request.sessions = sessions
            .iter()
            .map(|(inode, session)| SessionNameT { inode: inode.0, session: *session })
            .collect();
        self.ask(first.0, &request).await.map(drop)
    }

    /// Makes length and times of what was written durable; the session stays. `move_out`: bytes that are kept with the inode go to chunks.
    pub async fn sync_length(
        &self,
        who: &Credentials,
        inode: InodeId,
        session: u64,
        written: Written<'_>,
        move_out: bool,
    ) -> Result<Attr> {
        let (caller, sequence) = self.changing(who);
        sequence.of_inode(inode);
        let mut request = SyncLengthT::default();
        request.caller = caller;
        request.inode = inode.0;
        request.session = session;
        request.length = written.length;
        request.mtime = written.mtime;
        request.epoch = written.epoch;
        request.inline = written.piece.map(Piece::to_message);
        request.move_out = move_out;
        Attr::from_message(&self.carry_out(&sequence, inode.0, &request).await?.attr)
    }

    /// A place for `count` bytes behind everything that anybody wrote or was given, and behind `at_least`; none when the file's epoch
    /// isn't `epoch` any more.
    pub(crate) async fn append(
        &self,
        inode: InodeId,
        session: u64,
        count: u64,
        at_least: u64,
        epoch: u32,
    ) -> Result<(Attr, Option<u64>)> {
        let (caller, sequence) = self.changing(&Credentials::root());
        sequence.of_inode(inode);
        let mut request = AppendT::default();
        request.caller = caller;
        request.inode = inode.0;
        request.session = session;
        request.count = count;
        request.at_least = at_least;
        request.epoch = epoch;
        let reply = self.carry_out(&sequence, inode.0, &request).await?;
        Ok((Attr::from_message(&reply.attr)?, reply.given.then_some(reply.offset)))
    }

    /// Entries after `after`.
    pub async fn read_dir(
        &self,
        who: &Credentials,
        inode: InodeId,
        after: &[u8],
        limit: u32,
        plus: bool,
    ) -> Result<Page> {
        let mut request = ReadDirT::default();
        request.caller = self.looking(who);
        request.inode = inode.0;
        request.after = after.to_vec();
        request.limit = limit;
        request.plus = plus;
        let reply = self.ask(inode.0, &request).await?;
        let entries: Result<Vec<Entry>> = reply.entries.into_iter().map(encode::entry).collect();
        Ok(Page { entries: entries?, more: reply.more, parent: InodeId(reply.parent) })
    }

    /// Goes past files open here but those in `hold`: most callers want [`Client::unlink`](crate::Client::unlink).
    pub async fn unlink(
        &self,
        who: &Credentials,
        parent: InodeId,
        name: &[u8],
        hold: &[InodeId],
    ) -> Result<Unlinked> {
        check_name(name)?;
        let (caller, sequence) = self.changing(who);
        sequence.of_name(parent, name);
        let mut request = UnlinkT::default();
        request.caller = caller;
        request.parent = parent.0;
        request.name = name.to_vec();
        request.hold = numbers(hold);
        let gone =
            self.carry_out(&sequence, parent.0, &request).await.map(|reply| Unlinked::from_message(&reply));
        sequence.of_outcome(&gone, false);
        gone
    }

    /// `tree`: with everything below it, which is gone from sight at once. Root's alone (`NotPermitted`); `NotEmpty` of a server that can't.
    pub async fn rmdir(&self, who: &Credentials, parent: InodeId, name: &[u8], tree: bool) -> Result<()> {
        check_name(name)?;
        let (caller, sequence) = self.changing(who);
        sequence.of_what(parent, name);
        let mut request = RmDirT::default();
        request.caller = caller;
        request.tree = tree;
        request.parent = parent.0;
        request.name = name.to_vec();
        self.carry_out(&sequence, parent.0, &request).await.map(drop)
    }

    /// Goes past files open here but those in `hold`: most callers want [`Client::rename`](crate::Client::rename).
    pub async fn rename(
        &self,
        who: &Credentials,
        from: (InodeId, &[u8]),
        to: (InodeId, &[u8]),
        flags: u32,
        hold: &[InodeId],
    ) -> Result<Unlinked> {
        check_name(from.1)?;
        check_name(to.1)?;
        let (caller, sequence) = self.changing(who);
        sequence.of_name(from.0, from.1).of_name(to.0, to.1);
        let mut request = RenameT::default();
        request.caller = caller;
        request.parent = from.0.0;
        request.name = from.1.to_vec();
        request.new_parent = to.0.0;
        request.new_name = to.1.to_vec();
        request.flags = flags;
        request.hold = numbers(hold);
        let gone =
            self.carry_out(&sequence, from.0.0, &request).await.map(|reply| Unlinked::from_message(&reply));
        sequence.of_outcome(&gone, true);
        gone
    }

    pub async fn link(
        &self,
        who: &Credentials,
        inode: InodeId,
        parent: InodeId,
        name: &[u8],
    ) -> Result<Attr> {
        check_name(name)?;
        let (caller, sequence) = self.changing(who);
        sequence.of_inode(inode).of_name(parent, name);
        let mut request = LinkT::default();
        request.caller = caller;
        request.inode = inode.0;
        request.parent = parent.0;
        request.name = name.to_vec();
        Attr::from_message(&self.carry_out(&sequence, parent.0, &request).await?.attr)
    }

    pub async fn read_link(&self, who: &Credentials, inode: InodeId) -> Result<Vec<u8>> {
        let mut request = ReadLinkT::default();
        request.caller = self.looking(who);
        request.inode = inode.0;
        Ok(self.ask(inode.0, &request).await?.target)
    }

    /// Goes past files open here: most callers want [`Client::set_attr`](crate::Client::set_attr).
    pub async fn set_attr(&self, who: &Credentials, inode: InodeId, changes: Changes) -> Result<Attr> {
        let (caller, sequence) = self.changing(who);
        sequence.of_inode(inode);
        let mut request = SetAttrT::default();
        request.caller = caller;
        request.inode = inode.0;
        *request.set = fields(&changes);
        Attr::from_message(&self.carry_out(&sequence, inode.0, &request).await?.attr)
    }

    /// Takes, changes or gives back a lock; `Locked` at once when somebody else's is in the way. Most callers want
    /// [`Client::lock`](crate::Client::lock).
    pub(crate) async fn set_lock(
        &self,
        who: &Credentials,
        inode: InodeId,
        owner: u64,
        lock: &Lock,
    ) -> Result<()> {
        let (caller, sequence) = self.changing(who);
        let mut request = SetLockT::default();
        request.caller = caller;
        (request.inode, request.owner) = (inode.0, owner);
        *request.lock = lock.to_message();
        self.carry_out(&sequence, inode.0, &request).await.map(drop)
    }

    /// The first lock that is in the way of this one.
    pub async fn get_lock(
        &self,
        who: &Credentials,
        inode: InodeId,
        owner: u64,
        lock: &Lock,
    ) -> Result<Option<Lock>> {
        let mut request = GetLockT::default();
        request.caller = self.looking(who);
        (request.inode, request.owner) = (inode.0, owner);
        *request.lock = lock.to_message();
        let reply = self.ask(inode.0, &request).await?;
        Ok(reply.lock.map(|lock| Lock::from_message(&lock)))
    }

    pub async fn statfs(&self) -> Result<Space> {
        let reply = self.ask(0, &StatFsT::default()).await?;
        Ok(Space {
            total: reply.total,
            free: reply.free,
            files: reply.files,
            block_size: reply.block_size,
            chunk_size: reply.chunk_size,
        })
    }
}

/// `NameTooLong` before anything is sent; the rest is the server's to judge.
pub(crate) fn check_name(name: &[u8]) -> Result<()> {
    if name.len() <= NAME_MAX {
        return Ok(());
    }
    let (most, found) = (NAME_MAX as u64, name.len() as u64);
    Err(Error::mismatch(ErrorCode::NameTooLong, most, found, "a file name has at most 255 bytes"))
}

fn bad(what: &str) -> Error {
    Error::new(ErrorCode::BadFrame, what)
}
