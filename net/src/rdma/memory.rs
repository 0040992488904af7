//! What a device may touch: protection domains, and arenas that are registered with it.
//!
//! An arena is registered once, as a whole, for the device's use on our behalf. No peer is ever told the key of that: it would open
//! everything. What a peer may touch is a [window](super::window) of one range.

use super::device::Context;
use super::library::made;
use crate::buffer::Pool;
use corefs_wire::{Error, Result};
use ibverbs_sys as sys;
use std::rc::Rc;

/// A protection domain: queue pairs, arenas and windows of one device that belong together.
pub struct Domain {
    raw: *mut sys::ibv_pd,
    pub context: Rc<Context>,
}

impl Domain {
    pub fn new(context: &Rc<Context>) -> Result<Rc<Self>> {
        // SAFETY: the context is open, and the domain holds it.
        let raw = made("ibv_alloc_pd", unsafe { (context.library.alloc_pd)(context.raw()) })?;
        Ok(Rc::new(Self { raw, context: Rc::clone(context) }))
    }

    pub(super) fn raw(&self) -> *mut sys::ibv_pd {
        self.raw
    }
}

impl Drop for Domain {
    fn drop(&mut self) {
        // SAFETY: what was made in it holds it, and so is gone.
        let result = unsafe { (self.context.library.dealloc_pd)(self.raw) };
        if result != 0 {
            tracing::warn!(result, "an RDMA protection domain can't be given back");
        }
    }
}

/// A registered arena: pinned, and known to the device by its addresses. It keeps the arena.
pub struct Region {
    raw: *mut sys::ibv_mr,
    /// Where the arena begins, and its bytes.
    base: usize,
    len: usize,
    /// The local key.
    key: u32,
    domain: Rc<Domain>,
    _pool: Pool,
}

impl Region {
    /// Registers a pool's arena, all of which is pinned by that. `Os`, with what to do, where the kernel refuses: it counts against the memlock
    /// limit (setrlimit(2)).
    pub fn register(domain: &Rc<Domain>, pool: &Pool) -> Result<Self> {
        let (base, len) = pool.region();
        let access =
            sys::ibv_access_flags::IBV_ACCESS_LOCAL_WRITE.0 | sys::ibv_access_flags::IBV_ACCESS_MW_BIND.0;
        let library = &domain.context.library;
        // SAFETY: the arena is mapped as long as the pool is, which this holds; the device writes to it only by work requests, which own what
        // they name (`queue_pair`), and through windows, which do so as well.
        let raw = unsafe { (library.reg_mr)(domain.raw(), base.cast(), len, access as i32) };
        let raw = made("ibv_reg_mr", raw).map_err(|error| advise(error, len))?;
        // SAFETY: the registration is there until it is given back.
        let key = unsafe { (*raw).lkey };
        Ok(Self { raw, base: base as usize, len, key, domain: Rc::clone(domain), _pool: pool.clone() })
    }

    /// The local key for these bytes, if all of them lie in the arena.
    #[inline]
    pub fn key_of(&self, bytes: &[u8]) -> Option<u32> {
        let from = (bytes.as_ptr() as usize).checked_sub(self.base)?;
        (from <= self.len && bytes.len() <= self.len - from).then_some(self.key)
    }

    pub(super) fn raw(&self) -> *mut sys::ibv_mr {
        self.raw
    }
}

fn advise(error: Error, len: usize) -> Error {
    let what =
        format!("pinning {} MiB: raise the memlock limit (ulimit -l; LimitMEMLOCK= of systemd)", len >> 20);
    error.of(what)
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: queue pairs and windows that name it hold it, and so are gone.
        let result = unsafe { (self.domain.context.library.dereg_mr)(self.raw) };
        if result != 0 {
            tracing::error!(result, "registered memory can't be given back: it is kept for good");
            // The device may still know it.
            std::mem::forget(self._pool.clone());
        }
    }
}
