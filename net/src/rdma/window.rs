//! Memory windows: what one peer may do with one range, for as long as a request lasts.
//!
//! A window of type 2B (InfiniBand Architecture, 10.6.7.2; RFC 7306 has the same for iWARP) belongs to a queue pair. Bound to a range of a
//! [`Region`](super::memory::Region), it has a key that lets that queue pair's peer, and nobody else, write or read that range and nothing else.
//! Invalidated, the key opens nothing. Each binding has another key: the last byte counts. That is few: a peer that may hold an old key must not find its window
//! in use again, see [`Window::spent`].

use super::library::made;
use super::memory::Domain;
use super::queue_pair::Held;
use corefs_wire::{Error, ErrorCode, Result};
use ibverbs_sys as sys;
use std::rc::Rc;

/// What the peer may do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rights {
    Write,
    Read,
}

impl Rights {
    pub(super) fn flags(self) -> u32 {
        match self {
            Self::Write => sys::ibv_access_flags::IBV_ACCESS_REMOTE_WRITE.0,
            Self::Read => sys::ibv_access_flags::IBV_ACCESS_REMOTE_READ.0,
        }
    }
}

/// One window, and what it opens.
pub(super) struct Window {
    pub raw: *mut sys::ibv_mw,
    /// Of the present binding, or the last.
    pub key: u32,
    /// Owned until the window is known to be shut.
    pub held: Held,
    pub state: State,
    /// It was shut without the peer's word that it won't use the key. After 255 more bindings that would be the key of somebody else's memory, so there are none.
    pub spent: bool,
    domain: Rc<Domain>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    Free,
    Open,
    /// Its invalidation is on its way.
    Shutting,
}

impl Window {
    /// `Os` if the device has no more.
    pub fn new(domain: &Rc<Domain>) -> Result<Self> {
        let Some(alloc) = domain.context.ops().alloc_mw else {
            return Err(Error::new(ErrorCode::Os, "the RDMA device has no memory windows"));
        };
        // SAFETY: the domain is there, and the window holds it.
        let raw = made("ibv_alloc_mw", unsafe { alloc(domain.raw(), sys::IBV_MW_TYPE_2) })?;
        // SAFETY: the window has just been made.
        let key = unsafe { (*raw).rkey };
        Ok(Self {
            raw,
            key,
            held: Held::Nothing,
            state: State::Free,
            spent: false,
            domain: Rc::clone(domain),
        })
    }

    /// The key of the next binding.
    pub fn next_key(&self) -> u32 {
        (self.key & !0xFF) | (self.key.wrapping_add(1) & 0xFF)
    }
}

impl Window {
    /// Gives the window back to the device; what it opened stays held. It is to be done before its queue pair is destroyed: the kernel's soft-RoCE
    /// would wait a minute for that window. Once is enough.
    pub fn give_back(&mut self) {
        let raw = std::mem::replace(&mut self.raw, std::ptr::null_mut());
        let Some(dealloc) = self.domain.context.ops().dealloc_mw.filter(|_| !raw.is_null()) else { return };
        // SAFETY: the window is there, and no work request that names it is executed any more.
        let result = unsafe { dealloc(raw) };
        if result != 0 {
            tracing::warn!(result, "an RDMA memory window can't be given back");
        }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        self.give_back();
    }
}
