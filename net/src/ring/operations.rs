//! The operations that corefs asks of a ring, typed. Those that name memory are `unsafe`: the memory must outlive
//! the completion.

use super::file::with_file;
use super::setup::fixed;
use super::{File, Ring, Source, Token};
use io_uring::{opcode, squeue, types};
use std::os::fd::RawFd;
use std::time::Duration;

/// `IORING_RECVSEND_POLL_FIRST`: don't try before the socket is readable, it was just found empty.
const POLL_FIRST: u16 = 1;

/// Whether a receive is tried at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Try {
    AtOnce,
    /// The socket was empty a moment ago: wait for it to become readable first.
    WhenReadable,
}

/// What a sync makes durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sync {
    /// Data, and what is needed to find them.
    Data,
    /// All attributes too.
    All,
}

/// `# Safety` of everything here that names memory: the memory stays valid until the completion, and what the kernel
/// writes isn't looked at before.
impl Ring {
    /// Reads `len` bytes at `offset` to `to`, as a fixed buffer if they lie in the registered pool.
    ///
    /// # Safety
    /// `to` is owned by the entry until its completion.
    pub unsafe fn read(&mut self, file: File, to: *mut u8, len: u32, offset: u64, token: Token) {
        let entry = match fixed(self.region.as_ref(), to, len) {
            Some(piece) => {
                with_file!(file, |fd| opcode::ReadFixed::new(fd, to, len, piece).offset(offset).build())
            }
            None => with_file!(file, |fd| opcode::Read::new(fd, to, len).offset(offset).build()),
        };
        // SAFETY: passed on to the caller.
        unsafe { self.push(entry, token) }
    }

    /// Writes `len` bytes from `from` at `offset`, as a fixed buffer if they lie in the registered pool.
    ///
    /// # Safety
    /// `from` is valid and unchanged until the completion.
    pub unsafe fn write(&mut self, file: File, from: *const u8, len: u32, offset: u64, token: Token) {
        let entry = match fixed(self.region.as_ref(), from, len) {
            Some(piece) => {
                with_file!(file, |fd| opcode::WriteFixed::new(fd, from, len, piece).offset(offset).build())
            }
            None => with_file!(file, |fd| opcode::Write::new(fd, from, len).offset(offset).build()),
        };
        // SAFETY: passed on to the caller.
        unsafe { self.push(entry, token) }
    }

    /// Gathered write of `count` pieces at `offset`.
    ///
    /// # Safety
    /// The pieces and their list are valid and unchanged until the completion.
    pub unsafe fn writev(
        &mut self,
        file: File,
        pieces: *const libc::iovec,
        count: u32,
        offset: u64,
        token: Token,
    ) {
        let entry = with_file!(file, |fd| opcode::Writev::new(fd, pieces, count).offset(offset).build());
        // SAFETY: passed on to the caller.
        unsafe { self.push(entry, token) }
    }

    /// Makes what was written and completed before durable.
    pub fn sync(&mut self, file: File, what: Sync, token: Token) {
        let flags = match what {
            Sync::Data => types::FsyncFlags::DATASYNC,
            Sync::All => types::FsyncFlags::empty(),
        };
        let entry = with_file!(file, |fd| opcode::Fsync::new(fd).flags(flags).build());
        // SAFETY: the entry names no memory.
        unsafe { self.push(entry, token) }
    }

    /// Receives up to `len` bytes from a blocking socket.
    ///
    /// # Safety
    /// `to` is owned by the entry until its completion.
    pub unsafe fn recv(&mut self, socket: RawFd, to: *mut u8, len: u32, when: Try, token: Token) {
        let entry = opcode::Recv::new(types::Fd(socket), to, len).ioprio(poll_first(when)).build();
        // SAFETY: passed on to the caller.
        unsafe { self.push(entry, token) }
    }

    /// Receives into the pieces of a message.
    ///
    /// # Safety
    /// The message, its list and the pieces are owned by the entry until its completion.
    pub unsafe fn recvmsg(&mut self, socket: RawFd, message: *mut libc::msghdr, when: Try, token: Token) {
        let entry = opcode::RecvMsg::new(types::Fd(socket), message).ioprio(poll_first(when)).build();
        // SAFETY: passed on to the caller.
        unsafe { self.push(entry, token) }
    }

    /// Sends the pieces of a message, all of them unless the connection breaks. No SIGPIPE.
    ///
    /// # Safety
    /// The message, its list and the pieces are valid and unchanged until the completion.
    pub unsafe fn sendmsg(&mut self, socket: RawFd, message: *const libc::msghdr, token: Token) {
        let flags = (libc::MSG_NOSIGNAL | libc::MSG_WAITALL) as u32;
        let entry = opcode::SendMsg::new(types::Fd(socket), message).flags(flags).build();
        // SAFETY: passed on to the caller.
        unsafe { self.push(entry, token) }
    }

    /// Accepts connections until a completion comes without the MORE flag; each result is a descriptor.
    pub fn accept_multishot(&mut self, listener: RawFd, token: Token) {
        let entry = opcode::AcceptMulti::new(types::Fd(listener)).flags(libc::SOCK_CLOEXEC).build();
        // SAFETY: the entry names no memory.
        unsafe { self.push(entry, token) }
    }

    /// Connects a blocking socket.
    ///
    /// # Safety
    /// The address is valid until the completion.
    pub unsafe fn connect(
        &mut self,
        socket: RawFd,
        address: *const libc::sockaddr,
        len: libc::socklen_t,
        token: Token,
    ) {
        let entry = opcode::Connect::new(types::Fd(socket), address, len).build();
        // SAFETY: passed on to the caller.
        unsafe { self.push(entry, token) }
    }

    /// Completes when `fd` is readable; once, and at once if it is already.
    pub fn when_readable(&mut self, fd: RawFd, token: Token) {
        let entry = opcode::PollAdd::new(types::Fd(fd), libc::POLLIN as u32).build();
        // SAFETY: the entry names no memory.
        unsafe { self.push(entry, token) }
    }

    /// Completes with -ETIME after `duration`.
    pub fn timeout(&mut self, duration: Duration, token: Token) {
        let time = types::Timespec::new().sec(duration.as_secs()).nsec(duration.subsec_nanos());
        self.timespecs.push(Box::new(time));
        let time: *const types::Timespec =
            self.timespecs.last().map_or(std::ptr::null(), |time| &raw const **time);
        // SAFETY: the box lives until the kernel has copied it: the list is cleared only with the queue empty.
        unsafe { self.push(opcode::Timeout::new(time).build(), token) }
    }

    /// Asks the kernel to end the entry in flight under `token`, which then completes with -ECANCELED or its result.
    pub fn cancel(&mut self, token: Token) {
        let entry = opcode::AsyncCancel::new(token.0).build();
        // SAFETY: the entry names no memory.
        unsafe { self.push(entry, Token::new(Source::RING, 0)) }
    }

    pub(super) fn cancel_all(&mut self) {
        let entry: squeue::Entry = opcode::AsyncCancel2::new(types::CancelBuilder::any()).build();
        // SAFETY: the entry names no memory.
        unsafe { self.push(entry, Token::new(Source::RING, 0)) }
    }
}

fn poll_first(when: Try) -> u16 {
    match when {
        Try::AtOnce => 0,
        Try::WhenReadable => POLL_FIRST,
    }
}
