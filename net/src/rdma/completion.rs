//! The completion queue of a core, and how it sleeps until the next completion.
//!
//! While there is work it is polled, which costs no system call. Before the core rests, the queue is [armed](CompletionQueue::arm): the next completion
//! makes a descriptor readable, which the core's ring polls. What completed before it was armed signals nothing, so whoever arms polls once
//! more before it sleeps (ibv_get_cq_event(3)).

use super::device::Context;
use super::library::{done, failed, made, never_block};
use corefs_wire::{Error, ErrorCode, Result};
use ibverbs_sys as sys;
use std::cell::Cell;
use std::ffi::CStr;
use std::os::fd::RawFd;
use std::ptr;
use std::rc::Rc;

/// Completions that are taken at a time.
const BATCH: usize = 32;
/// Completions that a list may have after it was polled into: a device that completes as fast as it is asked keeps nobody for longer, and a list with room for
/// so many never grows.
pub const TAKEN_MAX: usize = 17 * BATCH;

/// What became of a work request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Completion {
    /// What it was posted under.
    pub name: u64,
    /// The number of its queue pair: of receives that are shared, nothing else tells whose it is.
    pub queue_pair: u32,
    /// Bytes that were received, or the device's status, which is not 0.
    pub outcome: std::result::Result<u32, u32>,
}

/// Instead of a queue pair's number: that of a port's first own queue pair, which nobody can make.
const NOBODY: u32 = 0;

/// What has completed under this number is nobody's.
pub fn disown(found: &mut [Completion], queue_pair: u32) {
    found
        .iter_mut()
        .filter(|found| found.queue_pair == queue_pair)
        .for_each(|found| found.queue_pair = NOBODY);
}

pub struct CompletionQueue {
    raw: *mut sys::ibv_cq,
    entries: u32,
    channel: *mut sys::ibv_comp_channel,
    /// Events that were taken and not acknowledged yet: together, because each acknowledgment takes a lock.
    unacknowledged: Cell<u32>,
    context: Rc<Context>,
}

impl CompletionQueue {
    /// A queue of `entries`. More completions than that at once would be the end of all its queue pairs: whoever makes these counts.
    pub fn new(context: &Rc<Context>, entries: u32) -> Result<Rc<Self>> {
        let library = &context.library;
        // SAFETY: the context is open.
        let channel = made("ibv_create_comp_channel", unsafe { (library.create_channel)(context.raw()) })?;
        let count = i32::try_from(entries).unwrap_or(i32::MAX);
        // SAFETY: the channel has just been made, and is destroyed after the queue.
        let raw = unsafe { (library.create_cq)(context.raw(), count, ptr::null_mut(), channel, 0) };
        let raw = match made("ibv_create_cq", raw) {
            Ok(raw) => raw,
            Err(error) => {
                // SAFETY: nothing uses the channel.
                unsafe { (library.destroy_channel)(channel) };
                return Err(error);
            }
        };
        let queue = Self { raw, entries, channel, unacknowledged: Cell::new(0), context: Rc::clone(context) };
        never_block(queue.fd())?;
        Ok(Rc::new(queue))
    }

    pub(super) fn raw(&self) -> *mut sys::ibv_cq {
        self.raw
    }

    /// Readable when a completion came after [`arm`](Self::arm).
    pub fn fd(&self) -> RawFd {
        // SAFETY: the channel is there as long as this is.
        unsafe { (*self.channel).fd }
    }

    /// Appends what has completed, at most as many as there is patience for. An error means that the device or the queue is broken.
    #[inline]
    pub fn poll(&self, out: &mut Vec<Completion>) -> Result<()> {
        let Some(poll) = self.context.ops().poll_cq else {
            return Err(Error::new(ErrorCode::Internal, "the RDMA device has no way to poll"));
        };
        let mut found = [sys::ibv_wc::default(); BATCH];
        while out.len() <= TAKEN_MAX - BATCH {
            // SAFETY: the queue is there, and the array has as many entries as are said.
            let count = unsafe { poll(self.raw, BATCH as i32, found.as_mut_ptr()) };
            let Ok(count) = usize::try_from(count) else {
                return Err(failed("ibv_poll_cq", -count));
            };
            out.extend(found[..count.min(BATCH)].iter().map(|wc| Completion {
                name: wc.wr_id(),
                queue_pair: wc.qp_num,
                outcome: match wc.error() {
                    None => Ok(wc.len() as u32),
                    Some((status, _)) => Err(status),
                },
            }));
            if count < BATCH {
                break;
            }
        }
        Ok(())
    }

    /// Appends everything that has completed by now.
    pub fn drain(&self, out: &mut Vec<Completion>) -> Result<()> {
        let mut list = Vec::with_capacity(TAKEN_MAX);
        // What completes meanwhile keeps nobody here: the queue held no more than its entries when this began.
        for _ in 0..=self.entries as usize / BATCH {
            self.poll(&mut list)?;
            let all = list.len() < BATCH;
            out.append(&mut list);
            if all {
                break;
            }
        }
        Ok(())
    }

    /// The next completion from now on makes [`fd`](Self::fd) readable, once. Poll again before sleeping.
    pub fn arm(&self) -> Result<()> {
        let Some(notify) = self.context.ops().req_notify_cq else {
            return Err(Error::new(ErrorCode::Internal, "the RDMA device has no events"));
        };
        // SAFETY: the queue is there.
        done("ibv_req_notify_cq", unsafe { notify(self.raw, 0) })
    }

    /// Takes the event that made the descriptor readable. The queue has to be armed again for another. One system call: there is one event for each time that it was armed, and
    /// if there were more, the descriptor would stay readable.
    pub fn heard(&self) {
        let (mut queue, mut context) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: the channel is there, doesn't block, and has events of this queue only.
        if unsafe { (self.context.library.get_cq_event)(self.channel, &mut queue, &mut context) } == 0 {
            self.unacknowledged.set(self.unacknowledged.get() + 1);
        }
        if self.unacknowledged.get() >= 1024 {
            self.acknowledge();
        }
    }

    fn acknowledge(&self) {
        // SAFETY: so many events were taken; the queue can't be destroyed before they are acknowledged.
        unsafe { (self.context.library.ack_cq_events)(self.raw, self.unacknowledged.take()) };
    }

    /// A device's status in words.
    pub fn status_text(&self, status: u32) -> String {
        // SAFETY: returns a string that lives for ever, whatever the number is.
        let text = unsafe { CStr::from_ptr((self.context.library.wc_status_str)(status)) };
        text.to_string_lossy().into_owned()
    }
}

impl Drop for CompletionQueue {
    fn drop(&mut self) {
        self.acknowledge();
        // SAFETY: queue pairs that complete here hold it, and so are gone.
        let results = unsafe {
            (
                (self.context.library.destroy_cq)(self.raw),
                (self.context.library.destroy_channel)(self.channel),
            )
        };
        if results != (0, 0) {
            tracing::warn!(?results, "an RDMA completion queue can't be given back");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_completed_under_the_number_is_disowned() {
        let of = |name, queue_pair| Completion { name, queue_pair, outcome: Ok(1) };
        let mut found = [of(1, 17), of(2, 18), of(3, 17)];
        disown(&mut found, 17);
        assert_eq!(found, [of(1, NOBODY), of(2, 18), of(3, NOBODY)]);
    }
}
