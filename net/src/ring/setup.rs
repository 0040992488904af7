//! Setting a ring up with the best flags and registrations that this kernel grants, and saying what it refused.

use super::RingConfig;
use crate::buffer::Pool;
use corefs_wire::{Error, ErrorCode, Result};
use io_uring::{Builder, IoUring, Submitter, cqueue, squeue};
use std::io;

/// The kernel takes at most 1 GiB in one registered buffer.
pub const REGION_PIECE: usize = 1 << 30;

/// Tries the kinds of ring from the best to the plainest.
pub fn build(config: &RingConfig) -> Result<IoUring> {
    assert!(config.entries.is_power_of_two() && config.completions >= config.entries);
    let best = |builder: &mut Builder| {
        builder.setup_single_issuer().setup_defer_taskrun().setup_coop_taskrun().setup_taskrun_flag();
    };
    let middle = |builder: &mut Builder| {
        builder.setup_coop_taskrun().setup_taskrun_flag();
    };
    let refused = match attempt(config, best) {
        Ok(ring) => return Ok(ring),
        Err(error) => error,
    };
    tracing::warn!(%refused, "this kernel has no deferred task runs (Linux 6.1); a slower ring is used");
    attempt(config, middle)
        .or_else(|_| attempt(config, |_| ()))
        .map_err(|error| Error::new(ErrorCode::Os, format!("io_uring can't be set up: {error}")))
}

fn attempt(config: &RingConfig, flags: impl Fn(&mut Builder)) -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder.setup_cqsize(config.completions).setup_submit_all().dontfork();
    flags(&mut builder);
    builder.build(config.entries)
}

/// A ring with entries of the size that a drive's commands take.
pub fn build_for_drives(entries: u32, polled: bool) -> Result<IoUring<squeue::Entry128, cqueue::Entry32>> {
    let attempt = |best: bool| {
        let mut builder = IoUring::<squeue::Entry128, cqueue::Entry32>::builder();
        builder.setup_cqsize(entries * 2).setup_submit_all().dontfork();
        if polled {
            builder.setup_iopoll();
        }
        match (best, polled) {
            (true, true) => builder.setup_single_issuer().setup_defer_taskrun(),
            // Its descriptor is polled by another ring, which a ring with deferred task runs doesn't wake.
            (true, false) => builder.setup_single_issuer().setup_coop_taskrun().setup_taskrun_flag(),
            (false, _) => &mut builder,
        };
        builder.build(entries)
    };
    let refused = |error| Error::new(ErrorCode::Os, format!("a ring for drives can't be set up: {error}"));
    attempt(true).or_else(|_| attempt(false)).map_err(refused)
}

/// The registered piece that holds all of these bytes, if the pool is registered.
#[inline]
pub fn fixed(registered: Option<&Pool>, start: *const u8, len: u32) -> Option<u16> {
    let (base, region) = registered?.region();
    let from = (start as usize).checked_sub(base as usize)?;
    let to = from.checked_add(len as usize)?;
    let piece = from / REGION_PIECE;
    (to <= region && to <= (piece + 1) * REGION_PIECE).then_some(piece as u16)
}

/// Registers `len` bytes from `start` as fixed buffers of [`REGION_PIECE`] each.
pub fn register_region(ring: &Submitter<'_>, (start, len): (*mut u8, usize)) -> bool {
    let pieces: Vec<libc::iovec> = (0..len)
        .step_by(REGION_PIECE)
        .map(|at| libc::iovec {
            iov_base: start.wrapping_add(at).cast(),
            iov_len: REGION_PIECE.min(len - at),
        })
        .collect();
    // SAFETY: the ring keeps a handle of the pool whose arena this is, until after it is torn down.
    match unsafe { ring.register_buffers(&pieces) } {
        Ok(()) => true,
        Err(error) => {
            tracing::info!(%error, bytes = len, "buffers are not registered with the ring: each access looks its pages up");
            false
        }
    }
}
