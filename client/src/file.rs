//! Open files.
//!
//! | part | is |
//! |---|---|
//! | `read` | reads: cut, widened to whole blocks, put together |
//! | `write` | writes: held behind the caller in cells, or direct |
//! | `inline` | files that keep their bytes with their inodes |
//! | `append` | appends: held without a place, until they get one behind everybody's |
//! | `sync` | flush, sync, truncate, close |
//! | `space` | holes: made, found; copying within the cluster |

mod append;
mod inline;
mod read;
mod space;
mod sync;
mod write;

pub(crate) use append::Appends;
pub use read::{Data, read_batch};
pub(crate) use sync::close_handle;

use crate::client::{Client, Orphan};
use crate::inode::Inode;
use crate::{Attr, Credentials};
use corefs_wire::{ClientId, Error, ErrorCode, InodeId, Result};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// How a file is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct OpenOptions {
    pub write: bool,
    /// To length 0.
    pub truncate: bool,
    /// Writes go to storage before they return, as large as they came.
    pub direct: bool,
    /// If it is opened for reading and keeps its bytes with its inode, they come with the answer, and are read from there for a second unless
    /// this client hears of a change: for callers who needn't see what is written after the open.
    pub ahead: bool,
}

/// How a file is created.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CreateOptions {
    /// Permission bits, already masked.
    pub mode: u32,
    /// Refuse when the name exists.
    pub exclusive: bool,
    /// To length 0 if it exists.
    pub truncate: bool,
    pub direct: bool,
    /// Bytes of a chunk, 0: the cluster's choice.
    pub chunk_size: u32,
    /// Chains to spread over, 0: the cluster's choice.
    pub stripe: u32,
    /// Bits to take off the mode, unless the directory has a default access control list.
    pub umask: u32,
}

impl Default for CreateOptions {
    fn default() -> Self {
        Self {
            mode: 0o644,
            exclusive: false,
            truncate: false,
            direct: false,
            chunk_size: 0,
            stripe: 0,
            umask: 0,
        }
    }
}

/// An open file. Handles of one inode in one client share its length and its unwritten bytes. `!Send`.
///
/// [`close`](Self::close) it: a handle that is dropped is closed in the background and its errors only logged.
pub struct File {
    client: Client,
    inode: Rc<Inode>,
    /// 0: opened for reading, or it ended with a [`finish`](Self::finish) and nothing was written since.
    session: Cell<u64>,
    writable: bool,
    /// Its session had to be begun again: it is used by several, so it is kept from now on.
    revived: Cell<bool>,
    /// Writes under way.
    writing: Cell<u32>,
    direct: bool,
    who: Credentials,
    /// Failures of the inode that this handle has reported, or that are older than it.
    seen: Cell<u64>,
    closed: Cell<bool>,
    /// Bytes that came with the open.
    ahead: RefCell<Option<inline::Ahead>>,
}

impl File {
    pub(crate) fn new(
        client: Client,
        inode: Rc<Inode>,
        (session, of): (u64, ClientId),
        direct: bool,
        who: Credentials,
    ) -> Self {
        if session != 0 {
            inode.sessions.begun(session, of);
        }
        inode.handles.set(inode.handles.get() + 1);
        let seen = Cell::new(inode.failures.borrow().count);
        let direct = direct || client.0.write_behind == 0;
        Self {
            client,
            inode,
            session: Cell::new(session),
            writable: session != 0,
            revived: Cell::new(false),
            writing: Cell::new(0),
            direct,
            who,
            seen,
            closed: Cell::new(false),
            ahead: RefCell::default(),
        }
    }

    pub(crate) fn shared(&self) -> &Rc<Inode> {
        &self.inode
    }

    pub fn inode(&self) -> InodeId {
        self.inode.id()
    }

    /// As of open or the last time we heard, with what was written here since.
    pub fn attr(&self) -> Attr {
        self.inode.attr()
    }

    /// Bytes, as far as this client knows.
    pub fn length(&self) -> u64 {
        self.inode.length.get()
    }

    /// Whether it was opened for writing.
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The newest failure of a write that nobody waited for, once.
    fn check_failures(&self) -> Result<()> {
        let failures = self.inode.failures.borrow();
        if self.seen.replace(failures.count) == failures.count {
            return Ok(());
        }
        let unknown = || Error::new(ErrorCode::Internal, "a write failed");
        Err(failures.last.clone().unwrap_or_else(unknown))
    }
}

impl Drop for File {
    fn drop(&mut self) {
        if self.closed.replace(true) {
            return;
        }
        let orphan =
            Orphan { inode: Rc::clone(&self.inode), session: self.session.get(), who: self.who.clone() };
        self.client.0.orphans.borrow_mut().push(orphan);
    }
}
