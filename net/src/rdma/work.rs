//! Work requests, chained: what is queued in a turn is handed to the device in one call for each queue.
//!
//! Requests name their pieces by pointers into a list that grows, so pointers are put in when the chain is posted.

use super::library::failed;
use corefs_wire::{Error, ErrorCode, Result};
use ibverbs_sys as sys;
use std::ptr;

/// Pieces of one request at most.
const PIECES: usize = 2;

/// What a request does, as ibv_post_send(3) has it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Operation {
    Send,
    Write {
        to: u64,
        key: u32,
    },
    Read {
        from: u64,
        key: u32,
    },
    /// Gives a window a range, and a key.
    Bind {
        window: *mut sys::ibv_mw,
        key: u32,
        region: *mut sys::ibv_mr,
        from: u64,
        len: u32,
        rights: u32,
    },
    /// Takes a key from whoever has it.
    Invalidate {
        key: u32,
    },
}

/// What is queued and not posted.
#[derive(Default)]
pub(super) struct Chain {
    sends: Vec<sys::ibv_send_wr>,
    pieces: Vec<sys::ibv_sge>,
    receives: Vec<sys::ibv_recv_wr>,
    places: Vec<sys::ibv_sge>,
    pub requests: u64,
    pub doorbells: u64,
}

impl Chain {
    /// Queues a request of at most two pieces, which travel in the request itself if they have `inline` bytes at most.
    pub fn send(&mut self, name: u64, operation: Operation, pieces: &[sys::ibv_sge], inline: u32) {
        debug_assert!(pieces.len() <= PIECES);
        // SAFETY: all zeros is a valid request, of pointers that are null.
        let mut request: sys::ibv_send_wr = unsafe { std::mem::zeroed() };
        request.wr_id = name;
        request.num_sge = pieces.len() as i32;
        let len: u32 = pieces.iter().map(|piece| piece.length).sum();
        let small = !pieces.is_empty() && len <= inline;
        match operation {
            Operation::Send => request.opcode = sys::ibv_wr_opcode::IBV_WR_SEND,
            Operation::Write { to, key } => {
                request.opcode = sys::ibv_wr_opcode::IBV_WR_RDMA_WRITE;
                request.wr.rdma = sys::ibv_send_wr__bindgen_ty_2__bindgen_ty_1 { remote_addr: to, rkey: key };
            }
            Operation::Read { from, key } => {
                request.opcode = sys::ibv_wr_opcode::IBV_WR_RDMA_READ;
                request.wr.rdma =
                    sys::ibv_send_wr__bindgen_ty_2__bindgen_ty_1 { remote_addr: from, rkey: key };
            }
            Operation::Bind { window, key, region, from, len, rights } => {
                request.opcode = sys::ibv_wr_opcode::IBV_WR_BIND_MW;
                request.__bindgen_anon_2.bind_mw = sys::ibv_send_wr__bindgen_ty_4__bindgen_ty_1 {
                    mw: window,
                    rkey: key,
                    bind_info: sys::ibv_mw_bind_info {
                        mr: region,
                        addr: from,
                        length: len.into(),
                        mw_access_flags: rights,
                    },
                };
            }
            Operation::Invalidate { key } => {
                request.opcode = sys::ibv_wr_opcode::IBV_WR_LOCAL_INV;
                request.__bindgen_anon_1.invalidate_rkey = key;
            }
        }
        if small && matches!(operation, Operation::Send | Operation::Write { .. }) {
            request.send_flags = sys::ibv_send_flags::IBV_SEND_INLINE.0;
        }
        self.pieces.extend_from_slice(pieces);
        self.sends.push(request);
    }

    /// Queues a receive.
    pub fn receive(&mut self, name: u64, place: sys::ibv_sge) {
        self.receives.push(sys::ibv_recv_wr {
            wr_id: name,
            next: ptr::null_mut(),
            sg_list: ptr::null_mut(),
            num_sge: 1,
        });
        self.places.push(place);
    }

    /// Hands everything over. The last request asks for a completion, which stands for all of them.
    ///
    /// # Safety
    /// What the requests name is owned by them until they complete or the queue pair is destroyed.
    pub unsafe fn post(&mut self, pair: *mut sys::ibv_qp, ops: &sys::ibv_context_ops) -> Result<()> {
        let (Some(post_send), Some(post_recv)) = (ops.post_send, ops.post_recv) else {
            return Err(Error::new(ErrorCode::Internal, "the RDMA device takes no work"));
        };
        if !self.receives.is_empty() {
            self.link_receives();
            let mut bad = ptr::null_mut();
            self.count(self.receives.len());
            // SAFETY: the list is linked and whole; the rest is the caller's promise.
            let result = unsafe { post_recv(pair, self.receives.as_mut_ptr(), &mut bad) };
            self.receives.clear();
            self.places.clear();
            check("ibv_post_recv", result)?;
        }
        if !self.sends.is_empty() {
            self.link_sends();
            let mut bad = ptr::null_mut();
            self.count(self.sends.len());
            // SAFETY: as above.
            let result = unsafe { post_send(pair, self.sends.as_mut_ptr(), &mut bad) };
            if result == 0 {
                self.note_keys();
            }
            self.sends.clear();
            self.pieces.clear();
            check("ibv_post_send", result)?;
        }
        Ok(())
    }

    /// As [`post`](Self::post), of receives that several queue pairs share.
    ///
    /// # Safety
    /// As there, until the queue is destroyed.
    pub unsafe fn post_shared(&mut self, queue: *mut sys::ibv_srq, ops: &sys::ibv_context_ops) -> Result<()> {
        if self.receives.is_empty() {
            return Ok(());
        }
        let Some(post) = ops.post_srq_recv else {
            return Err(Error::new(ErrorCode::Internal, "the RDMA device shares no receives"));
        };
        self.link_receives();
        let mut bad = ptr::null_mut();
        self.count(self.receives.len());
        // SAFETY: the list is linked and whole; the rest is the caller's promise.
        let result = unsafe { post(queue, self.receives.as_mut_ptr(), &mut bad) };
        self.receives.clear();
        self.places.clear();
        check("ibv_post_srq_recv", result)
    }

    fn count(&mut self, requests: usize) {
        self.requests += requests as u64;
        self.doorbells += 1;
    }

    fn link_sends(&mut self) {
        let (mut at, count) = (0, self.sends.len());
        let (first, pieces) = (self.sends.as_mut_ptr(), self.pieces.as_mut_ptr());
        for (index, request) in self.sends.iter_mut().enumerate() {
            request.sg_list = pieces.wrapping_add(at);
            at += request.num_sge as usize;
            if index + 1 < count {
                request.next = first.wrapping_add(index + 1);
            } else {
                request.send_flags |= sys::ibv_send_flags::IBV_SEND_SIGNALED.0;
            }
        }
    }

    fn link_receives(&mut self) {
        let count = self.receives.len();
        let (first, places) = (self.receives.as_mut_ptr(), self.places.as_mut_ptr());
        for (index, request) in self.receives.iter_mut().enumerate() {
            request.sg_list = places.wrapping_add(index);
            if index + 1 < count {
                request.next = first.wrapping_add(index + 1);
            }
        }
    }

    /// The device's code wants to find in a window the key that it was last given, when it gives it the next.
    fn note_keys(&mut self) {
        for request in &self.sends {
            if request.opcode == sys::ibv_wr_opcode::IBV_WR_BIND_MW {
                // SAFETY: of such a request this form of the union was written, and its window is there.
                unsafe {
                    (*request.__bindgen_anon_2.bind_mw.mw).rkey = request.__bindgen_anon_2.bind_mw.rkey
                };
            }
        }
    }
}

fn check(what: &str, result: i32) -> Result<()> {
    // The device's code returns an error number, older ones -1 with errno set.
    match result {
        0 => Ok(()),
        -1 => Err(std::io::Error::last_os_error().into()),
        number => Err(failed(what, number.abs())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_of_a_chain_asks_for_a_completion() {
        let mut chain = Chain::default();
        let piece = sys::ibv_sge { addr: 1, length: 100, lkey: 1 };
        chain.send(1, Operation::Write { to: 2, key: 3 }, &[piece], 10);
        chain.send(2, Operation::Send, &[piece, piece], 200);
        chain.send(3, Operation::Invalidate { key: 4 }, &[], 200);
        chain.link_sends();
        let flags: Vec<u32> = chain.sends.iter().map(|request| request.send_flags).collect();
        let (inline, signal) =
            (sys::ibv_send_flags::IBV_SEND_INLINE.0, sys::ibv_send_flags::IBV_SEND_SIGNALED.0);
        assert_eq!(flags, [0, inline, signal]);
        let (second, piece) = (&raw mut chain.sends[1], &raw mut chain.pieces[1]);
        assert_eq!(chain.sends[0].next, second);
        assert!(chain.sends[2].next.is_null());
        assert_eq!(chain.sends[1].sg_list, piece);
    }
}
