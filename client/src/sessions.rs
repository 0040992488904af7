//! The sessions by which the metadata servers know that this client has an inode open.
//!
//! A session ends with the lease of the client that began it. So a handle names its session by the number that this had at first, and
//! [`Inner::current`] begins anew under the present lease what was begun under an earlier one. Until then nobody else knows that the
//! file is open here: it may have been removed meanwhile, with its chunks, and then it is gone for its handles, too.

use crate::client::Inner;
use crate::inode::Inode;
use crate::{Credentials, wait::Waiters};
use corefs_wire::{ClientId, Error, ErrorCode, InodeId, Result};
use std::cell::{Cell, RefCell};

/// A session for writing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Session {
    /// The number it began with.
    pub name: u64,
    /// By which the servers know it.
    pub number: u64,
    /// Under whose lease it was begun; 0: the servers have forgotten it.
    of: ClientId,
}

/// All of an inode.
#[derive(Default)]
pub struct Sessions {
    writing: RefCell<Vec<Session>>,
    /// Keeps an unlinked file's bytes for handles that have no session themselves; 0: none.
    hold: Cell<u64>,
    hold_of: Cell<ClientId>,
    /// All of them were begun under this client's lease.
    current: Cell<ClientId>,
    /// The file was removed while nobody knew that it is open here.
    gone: Cell<bool>,
    /// It may have no name any more: only a session keeps it.
    nameless: Cell<bool>,
    /// Some are being begun anew.
    renewing: Cell<bool>,
    renewed: Waiters,
}

/// What the servers have forgotten.
enum Lapsed {
    Writing(u64),
    Hold,
}

impl Sessions {
    /// One was begun for a handle, while this client had the number `of`.
    pub fn begun(&self, number: u64, of: ClientId) {
        self.join(of);
        self.writing.borrow_mut().push(Session { name: number, number, of });
    }

    /// The file is held by this session from now on. Says no when it is held already.
    pub fn held(&self, number: u64, of: ClientId) -> bool {
        if self.hold.get() != 0 {
            return false;
        }
        self.join(of);
        self.hold.set(number);
        self.hold_of.set(of);
        true
    }

    /// One of this client comes to those that are there.
    fn join(&self, of: ClientId) {
        if !self.keep_it() {
            self.current.set(of);
        } else if self.current.get() != of {
            self.current.set(ClientId(0));
        }
    }

    pub fn is_empty(&self) -> bool {
        self.writing.borrow().is_empty()
    }

    /// Whether the servers know of any, for writing or to hold it.
    pub fn keep_it(&self) -> bool {
        !self.is_empty() || self.hold.get() != 0
    }

    /// Whether a session keeps an unlinked file's bytes as long as any handle is open.
    pub fn is_held(&self) -> bool {
        self.hold.get() != 0
    }

    /// Any one for writing.
    pub fn any(&self) -> Option<Session> {
        self.writing.borrow().last().copied()
    }

    pub fn names(&self) -> Vec<u64> {
        self.writing.borrow().iter().map(|session| session.name).collect()
    }

    /// It is about to be ended.
    pub fn take(&self, name: u64) -> Option<Session> {
        let mut writing = self.writing.borrow_mut();
        let at = writing.iter().position(|session| session.name == name)?;
        Some(writing.swap_remove(at))
    }

    pub fn has(&self, name: u64) -> bool {
        self.writing.borrow().iter().any(|session| session.name == name)
    }

    /// It could not be ended.
    pub fn put_back(&self, session: Session) {
        self.join(session.of);
        self.writing.borrow_mut().push(session);
    }

    pub fn take_hold(&self) -> u64 {
        self.hold.take()
    }

    pub fn is_gone(&self) -> bool {
        self.gone.get()
    }

    /// A name was taken from it, perhaps its last.
    pub fn lost_a_name(&self) {
        self.nameless.set(true);
    }

    pub fn is_nameless(&self) -> bool {
        self.nameless.get()
    }

    /// Whether nothing else keeps the bytes of a file without names.
    pub fn keeps_it_alone(&self, name: u64) -> bool {
        self.hold.get() == 0 && matches!(self.writing.borrow()[..], [only] if only.name == name)
    }

    /// The servers have forgotten it.
    pub fn lapsed(&self, name: u64) {
        let mut writing = self.writing.borrow_mut();
        for session in writing.iter_mut().filter(|session| session.name == name) {
            session.of = ClientId(0);
            self.current.set(ClientId(0));
        }
    }

    fn next_lapsed(&self, client: ClientId) -> Option<Lapsed> {
        let writing = self.writing.borrow();
        let session = writing.iter().find(|session| session.of != client);
        let hold = || (self.hold.get() != 0 && self.hold_of.get() != client).then_some(Lapsed::Hold);
        session.map(|session| Lapsed::Writing(session.name)).or_else(hold)
    }

    /// One was begun anew. Says no when nobody needs it any more.
    fn renew(&self, which: &Lapsed, number: u64, of: ClientId) -> bool {
        match which {
            Lapsed::Writing(name) => {
                let mut writing = self.writing.borrow_mut();
                let session = writing.iter_mut().find(|session| session.name == *name);
                session.map(|session| (session.number, session.of) = (number, of)).is_some()
            }
            Lapsed::Hold if self.hold.get() == 0 => false,
            Lapsed::Hold => {
                self.hold.set(number);
                self.hold_of.set(of);
                true
            }
        }
    }

    fn lose(&self) {
        self.gone.set(true);
        self.writing.borrow_mut().clear();
        self.hold.set(0);
    }
}

/// Ends also when whoever renews is dropped.
struct Renewing<'a>(&'a Sessions);

impl Drop for Renewing<'_> {
    fn drop(&mut self) {
        self.0.renewing.set(false);
        self.0.renewed.wake_all();
    }
}

pub(crate) fn gone(inode: InodeId) -> Error {
    let what = format!("{inode} was removed while this client had no lease");
    Error::new(ErrorCode::NoSuchInode, what)
}

impl Inner {
    /// Makes sure that the metadata servers know that the inode is open here, and so keep it. `NoSuchInode` when it is too late.
    #[inline]
    pub async fn current(&self, inode: &Inode) -> Result<()> {
        let sessions = &inode.sessions;
        if self.has_lease() && sessions.current.get() == self.client() && !sessions.gone.get() {
            return Ok(());
        }
        Box::pin(self.make_current(inode)).await
    }

    /// Whether any session was begun under an earlier lease.
    pub fn is_lapsed(&self, inode: &Inode) -> bool {
        inode.sessions.current.get() != self.client()
    }

    #[cold]
    async fn make_current(&self, inode: &Inode) -> Result<()> {
        let sessions = &inode.sessions;
        loop {
            if sessions.gone.get() {
                return Err(gone(inode.id()));
            }
            if !self.has_lease() {
                self.have_lease().await?;
                continue;
            }
            let client = self.client();
            let Some(lapsed) = sessions.next_lapsed(client) else {
                sessions.current.set(client);
                return Ok(());
            };
            if sessions.renewing.replace(true) {
                sessions.renewed.next().await;
                continue;
            }
            let _renewing = Renewing(sessions);
            // Whether the handles may write was asked when they were opened.
            let root = Credentials::root();
            let begun = match lapsed {
                Lapsed::Writing(_) => self.meta.open(&root, inode.id(), true, false).await,
                Lapsed::Hold => self.meta.hold(&root, inode.id()).await,
            };
            match begun {
                Ok((attr, number)) => {
                    inode.absorb(&attr);
                    if !sessions.renew(&lapsed, number, client) {
                        self.end_later(inode.id(), number);
                    }
                }
                Err(error) if error.code == ErrorCode::NoSuchInode => {
                    tracing::warn!(inode = %inode.id(), "an open file was removed while this client had no lease");
                    sessions.lose();
                }
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: ClientId = ClientId(1);
    const TWO: ClientId = ClientId(2);

    #[test]
    fn what_was_begun_under_another_lease_is_begun_anew() {
        let sessions = Sessions::default();
        sessions.begun(10, ONE);
        assert!(sessions.held(11, ONE) && !sessions.held(12, ONE));
        assert!(sessions.next_lapsed(ONE).is_none());
        let lapsed = sessions.next_lapsed(TWO).unwrap();
        assert!(sessions.renew(&lapsed, 20, TWO));
        let lapsed = sessions.next_lapsed(TWO).unwrap();
        assert!(sessions.renew(&lapsed, 21, TWO) && sessions.next_lapsed(TWO).is_none());
        let session = sessions.take(10).unwrap();
        assert_eq!(
            (session.number, sessions.take_hold()),
            (20, 21),
            "handles still name it by its first number"
        );
        assert!(!sessions.renew(&Lapsed::Writing(10), 30, TWO) && !sessions.renew(&Lapsed::Hold, 31, TWO));
        sessions.put_back(session);
        assert!(sessions.has(10) && sessions.next_lapsed(TWO).is_none());
        sessions.begun(40, TWO);
        sessions.lapsed(40);
        assert!(sessions.next_lapsed(TWO).is_some());
    }
}
