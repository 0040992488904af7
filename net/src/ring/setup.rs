//! Setting a ring up with the best flags and registrations that this kernel grants, and saying what it refused.

use super::RingConfig;
use corefs_wire::{Error, ErrorCode, Result};
use io_uring::{Builder, IoUring};
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

/// Registers `len` bytes from `start` as fixed buffers of [`REGION_PIECE`] each.
pub fn register_region(ring: &IoUring, (start, len): (*mut u8, usize)) -> bool {
    let pieces: Vec<libc::iovec> = (0..len)
        .step_by(REGION_PIECE)
        .map(|at| libc::iovec {
            iov_base: start.wrapping_add(at).cast(),
            iov_len: REGION_PIECE.min(len - at),
        })
        .collect();
    // SAFETY: the ring keeps a handle of the pool whose arena this is, until after it is torn down.
    match unsafe { ring.submitter().register_buffers(&pieces) } {
        Ok(()) => true,
        Err(error) => {
            tracing::info!(%error, bytes = len, "buffers are not registered with the ring: each access looks its pages up");
            false
        }
    }
}
