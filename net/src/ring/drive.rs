//! A second ring of a core, for its drives: completions that are polled for, and commands that pass the kernel's block layer by.
//!
//! Neither fits in the core's [`Ring`](super::Ring): sockets can't be polled this way, and a drive's command takes entries of twice the size. So a
//! core with such drives has this one beside it, and rests in [`Ring::rest_with_drives`](super::Ring::rest_with_drives).
//!
//! A **polled** ring asks the drive's completion queue itself, in [`DriveRing::turn`]: no interrupt, and no completion without asking. One
//! that isn't polled is woken by interrupts, and then wakes whoever rests beside it.
//!
//! Invariants
//! - A transfer completes once, under its token, when all its pieces have. Its result is that of [`Completion`], but an error of
//!   the drive itself is negative and below [`STATUS`]: see [`drive_status`].
//! - A command that the drive refuses for now is tried again a few times, and one that didn't get to the drive, as while the kernel resets it, for some
//!   seconds, as the kernel's block layer would: commands pass that by.
//! - As of the core's ring: memory that a transfer names is the transfer's until then; what finds no room waits in order.
//! - A drive's commands can't be cancelled. Dropping the ring waits for them, so drop it before the memory.

use super::file::{FileTable, with_file};
use super::setup::{self, fixed};
use super::{Completion, DRAIN, File, GETEVENTS, Token};
use crate::buffer::Pool;
use corefs_wire::{Error, ErrorCode, Result};
use io_uring::{IoUring, cqueue, opcode, squeue, types};
use slab::Slab;
use std::collections::VecDeque;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

/// Results below minus this are a drive's status. Errors of the system are above: there are fewer than 4096.
pub const STATUS: i32 = 1 << 16;
/// Drives of a core.
const FILES: u32 = 64;

/// The drive says that it is of no use to try a command again.
const DO_NOT_RETRY: i32 = 0x4000;
/// So often a command is tried again: as often as the kernel's block layer does (nvme_core.max_retries).
const RETRIES: u8 = 5;
/// So long a command is tried again that didn't get to its drive. A reset of a drive takes a second or two, and a few on some.
const PATIENCE: Duration = Duration::from_secs(10);
/// Before the first of these tries; twice as long before each further one, up to 16 times as long.
const PAUSE: Duration = Duration::from_millis(20);
/// Completions that are taken at a time.
const REAPED: usize = 32;
/// In the name of an entry: it is a command, which is kept until it has completed.
const COMMAND: u64 = 1 << 63;

/// What came of a command, as far as it matters to whether it is tried again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    /// It succeeded, or failed and would again.
    Settled,
    /// The drive doesn't say that it is of no use to try again.
    Refused,
    /// It didn't get to the drive, or no answer came back.
    Astray,
}

/// Astray are commands whose status is of the path to the drive (status code type 3), as of one that was aborted or found its controller not ready; and what
/// the kernel cancelled, as it does with all that is in flight when it resets a controller: that gives EINTR and no status (Linux,
/// drivers/nvme/host/ioctl.c: `nvme_uring_cmd_end_io` of what is NVME_REQ_CANCELLED). What comes while the controller's queues are frozen a thread of the
/// kernel's waits with, and before registered memory can be named (6.1 was tried) that doesn't find ours: EFAULT, before the drive has heard of it. Ours is
/// always there.
fn fate(result: i32) -> Fate {
    match result {
        status if status > 0 && status & DO_NOT_RETRY != 0 => Fate::Settled,
        status if status > 0 && status & 0x700 == 0x300 => Fate::Astray,
        status if status > 0 => Fate::Refused,
        error if error == -libc::EINTR || error == -libc::EFAULT => Fate::Astray,
        _ => Fate::Settled,
    }
}

/// The drive's own status in a completion's result, if it is one: for NVMe its type and code, as in the completion queue
/// entry without the phase bit (NVM Express Base Specification 2.0, 3.3.3.2.1).
pub fn drive_status(result: i32) -> Option<u16> {
    (result <= -STATUS).then(|| (-STATUS - result) as u16)
}

/// One transfer, of one or more entries.
struct Transfer {
    token: Token,
    /// Entries that haven't completed.
    left: u32,
    /// Bytes that were moved; of commands, which don't say, all of them from the beginning.
    moved: i32,
    /// An error, or 0.
    failed: i32,
    mark: u32,
    /// Its entries' results are a drive's status, not bytes.
    commands: bool,
}

/// A command as it was handed over, and whose it is.
struct Command {
    entry: squeue::Entry128,
    transfer: usize,
    /// So often the drive refused it, and so often it went astray.
    refused: u8,
    astray: u8,
    /// It isn't tried again after this, while it goes astray.
    until: Option<Instant>,
}

impl Command {
    /// When it is to be tried again, if it is, after it has ended so: `Some(None)` at once.
    fn again(&mut self, result: i32) -> Option<Option<Instant>> {
        match fate(result) {
            Fate::Settled => None,
            Fate::Refused => {
                self.refused += 1;
                (self.refused <= RETRIES).then_some(None)
            }
            Fate::Astray => {
                let (now, pause) = (Instant::now(), PAUSE * (1 << self.astray.min(4)));
                self.astray = self.astray.saturating_add(1);
                let until = *self.until.get_or_insert(now + PATIENCE);
                (now < until).then_some(Some(now + pause))
            }
        }
    }
}

/// A transfer that is being queued: each piece of it is pushed under this.
#[derive(Clone, Copy, Debug)]
pub struct Begun(usize);

/// What completions of a ring's entries mean.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wakes {
    /// They are polled for. The drive must have queues for that.
    Polled,
    /// They come by interrupt.
    ByInterrupt,
}

/// See the module's documentation. `!Send`, as it is the ring of one core.
pub struct DriveRing {
    /// First, so that it is torn down before the memory it knows.
    ring: IoUring<squeue::Entry128, cqueue::Entry32>,
    /// Entries that the drives get when others have completed, oldest first.
    waiting: VecDeque<squeue::Entry128>,
    /// Commands that are tried again, and not before these times.
    paused: Vec<(Instant, squeue::Entry128)>,
    /// Entries that were handed over, or are about to be, and haven't completed; and how many may be.
    flying: u32,
    entries: u32,
    transfers: Slab<Transfer>,
    commands: Slab<Command>,
    files: FileTable,
    region: Option<Pool>,
    /// Commands may name registered memory as such.
    fixed_commands: bool,
    wakes: Wakes,
    /// The kernel didn't take what was queued: it is to be tried again.
    refused: bool,
    /// System calls; commands to drives, each counted once; those that were tried again.
    enters: u64,
    commanded: u64,
    retries: u64,
}

impl DriveRing {
    /// A ring for the calling thread, that hands over so many `entries` at a time: fewer than a queue of the drives takes. The kernel would have threads
    /// wait for places, and if they are polled for, spin. A power of two. `Os` if the kernel has no such rings (before Linux 5.19).
    pub fn new(entries: u32, wakes: Wakes) -> Result<Self> {
        let ring = setup::build_for_drives(entries, wakes == Wakes::Polled)?;
        let files = FileTable::register(&ring.submitter(), FILES);
        Ok(Self {
            ring,
            waiting: VecDeque::new(),
            paused: Vec::new(),
            flying: 0,
            entries,
            transfers: Slab::with_capacity(entries as usize),
            commands: Slab::with_capacity(entries as usize),
            files,
            region: None,
            fixed_commands: true,
            wakes,
            refused: false,
            enters: 0,
            commanded: 0,
            retries: 0,
        })
    }

    pub fn wakes(&self) -> Wakes {
        self.wakes
    }

    /// As [`Ring::register_pool`](super::Ring::register_pool).
    pub fn register_pool(&mut self, pool: &Pool) -> bool {
        assert!(self.region.is_none(), "one region a ring");
        let registered = setup::register_region(&self.ring.submitter(), pool.region());
        if registered {
            self.region = Some(pool.clone());
        }
        registered
    }

    /// Commands name memory by its address alone from now on: before Linux 6.2 the kernel refuses registered memory with EINVAL.
    /// `false` if they did so already.
    pub fn forget_fixed_commands(&mut self) -> bool {
        std::mem::replace(&mut self.fixed_commands, false)
    }

    /// As [`Ring::add_file`](super::Ring::add_file).
    pub fn add_file(&mut self, fd: RawFd) -> File {
        self.files.add(&self.ring.submitter(), fd)
    }

    /// Begins a transfer of `bytes`; it completes when all the pieces that are pushed before the next turn have. `mark` is
    /// given back as its completion's flags.
    #[inline]
    pub fn begin(&mut self, token: Token, mark: u32) -> Begun {
        Begun(self.transfers.insert(Transfer { token, left: 0, moved: 0, failed: 0, mark, commands: false }))
    }

    /// A piece of a transfer that is a read of a file or block device.
    ///
    /// # Safety
    /// `to` is owned by the transfer until its completion.
    #[inline]
    pub unsafe fn read(&mut self, begun: Begun, file: File, to: *mut u8, len: u32, offset: u64) {
        let entry = match fixed(self.region.as_ref(), to, len) {
            Some(piece) => {
                with_file!(file, |fd| opcode::ReadFixed::new(fd, to, len, piece).offset(offset).build())
            }
            None => with_file!(file, |fd| opcode::Read::new(fd, to, len).offset(offset).build()),
        };
        // SAFETY: passed on to the caller.
        unsafe { self.push(begun, entry.into()) }
    }

    /// A piece of a transfer that is a write to a file or block device.
    ///
    /// # Safety
    /// `from` is valid and unchanged until the completion.
    #[inline]
    pub unsafe fn write(&mut self, begun: Begun, file: File, from: *const u8, len: u32, offset: u64) {
        let entry = match fixed(self.region.as_ref(), from, len) {
            Some(piece) => {
                with_file!(file, |fd| opcode::WriteFixed::new(fd, from, len, piece).offset(offset).build())
            }
            None => with_file!(file, |fd| opcode::Write::new(fd, from, len).offset(offset).build()),
        };
        // SAFETY: passed on to the caller.
        unsafe { self.push(begun, entry.into()) }
    }

    /// A piece of a transfer that is a command of the drive's own (`IORING_OP_URING_CMD`), which moves the `len` bytes at `memory`,
    /// or nothing. It succeeds as a whole or not at all.
    ///
    /// # Safety
    /// The command names no memory but `len` bytes at `memory`, and these are owned by the transfer until its completion.
    #[inline]
    pub unsafe fn command(
        &mut self,
        begun: Begun,
        file: File,
        operation: u32,
        command: [u8; 80],
        (memory, len): (*const u8, u32),
    ) {
        let region = self.region.as_ref().filter(|_| self.fixed_commands && len > 0);
        let piece = fixed(region, memory, len);
        let entry = with_file!(file, |fd| opcode::UringCmd80::new(fd, operation)
            .cmd(command)
            .buf_index(piece)
            .build());
        let transfer = &mut self.transfers[begun.0];
        transfer.commands = true;
        transfer.moved += len as i32;
        self.commanded += 1;
        let kept = self.commands.vacant_entry();
        let entry = entry.user_data(COMMAND | kept.key() as u64);
        kept.insert(Command { entry: entry.clone(), transfer: begun.0, refused: 0, astray: 0, until: None });
        // SAFETY: passed on to the caller.
        unsafe { self.push_named(begun, entry) }
    }

    /// # Safety
    /// As of [`Ring::push`](super::Ring::push).
    #[inline]
    unsafe fn push(&mut self, begun: Begun, entry: squeue::Entry128) {
        // SAFETY: passed on to the caller.
        unsafe { self.push_named(begun, entry.user_data(begun.0 as u64)) }
    }

    /// # Safety
    /// As of [`Self::push`].
    #[inline]
    unsafe fn push_named(&mut self, begun: Begun, entry: squeue::Entry128) {
        self.transfers[begun.0].left += 1;
        // SAFETY: the caller's promise covers the entry until it completes.
        if !self.waiting.is_empty() || !unsafe { self.hand_over(&entry) } {
            self.waiting.push_back(entry);
        }
    }

    /// Queues an entry, unless the drives have enough to do.
    ///
    /// # Safety
    /// As of [`Self::push`].
    #[inline]
    unsafe fn hand_over(&mut self, entry: &squeue::Entry128) -> bool {
        // SAFETY: passed on to the caller.
        let queued = self.flying < self.entries && unsafe { self.ring.submission().push(entry) }.is_ok();
        self.flying += u32::from(queued);
        queued
    }

    /// Hands what is queued to the kernel, asks the drives if they are polled, and appends the transfers that are complete to `out`. Never
    /// blocks. An error means that the ring is unusable.
    #[inline]
    pub fn turn(&mut self, out: &mut Vec<Completion>) -> Result<()> {
        if self.transfers.is_empty() {
            return Ok(());
        }
        if !self.paused.is_empty() {
            let now = Instant::now();
            let due = self.paused.extract_if(.., |(at, _)| *at <= now);
            self.waiting.extend(due.map(|(_, entry)| entry));
        }
        loop {
            while let Some(entry) = self.waiting.pop_front() {
                // SAFETY: it was pushed under the promise of `push`, which holds until it completes.
                if !unsafe { self.hand_over(&entry) } {
                    self.waiting.push_front(entry);
                    break;
                }
            }
            let asks = {
                let queue = self.ring.submission();
                !queue.is_empty() || queue.taskrun() || queue.cq_overflow()
            };
            if asks || self.wakes == Wakes::Polled {
                self.enter()?;
            }
            let flying = self.flying;
            self.reap(out);
            // Whoever waits gets the places, and so does what is tried again: nobody may be woken for that later.
            if self.waiting.is_empty() || self.flying == flying {
                return Ok(());
            }
        }
    }

    /// Transfers that haven't completed.
    #[inline]
    pub fn in_flight(&self) -> usize {
        self.transfers.len()
    }

    /// Whether somebody has to go on asking.
    #[inline]
    pub(super) fn must_be_asked(&self) -> bool {
        let asks = self.wakes == Wakes::Polled || self.refused || !self.paused.is_empty();
        asks && !self.transfers.is_empty()
    }

    /// What becomes readable when something has completed; `None` if nothing is to be waited for.
    pub(super) fn readable(&self) -> Option<RawFd> {
        (self.wakes == Wakes::ByInterrupt && !self.transfers.is_empty()).then(|| self.ring.as_raw_fd())
    }

    /// Commands to drives so far, each counted once however often it was tried.
    pub fn commanded(&self) -> u64 {
        self.commanded
    }

    /// Commands that were tried again so far.
    pub fn retries(&self) -> u64 {
        self.retries
    }

    /// System calls so far.
    pub fn enters(&self) -> u64 {
        self.enters
    }

    /// Waits until nothing is in flight; completions are thrown away.
    pub fn drain(&mut self) {
        let (mut discarded, until) = (Vec::new(), Instant::now() + DRAIN);
        while !self.transfers.is_empty() && self.turn(&mut discarded).is_ok() && Instant::now() < until {
            discarded.clear();
            if self.in_flight() > 0 {
                std::thread::sleep(Duration::from_micros(100));
            }
        }
        if !self.transfers.is_empty() {
            tracing::error!(
                in_flight = self.in_flight(),
                "drives didn't answer: their ring is dropped all the same"
            );
        }
    }

    /// Submits what is queued as far as the kernel takes it, and runs what is due.
    fn enter(&mut self) -> Result<()> {
        self.enters += 1;
        let queued = self.ring.submission().len() as u32;
        // SAFETY: no argument block is passed, and the count is the queue's own.
        match unsafe { self.ring.submitter().enter::<libc::sigset_t>(queued, 0, GETEVENTS, None) } {
            Ok(_) => {
                self.refused = false;
                Ok(())
            }
            // Interrupted, or short of memory or room for completions: what is queued is tried again next time.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)) => {
                self.refused = true;
                Ok(())
            }
            Err(error) => Err(Error::new(ErrorCode::Os, format!("io_uring_enter for a drive: {error}"))),
        }
    }

    fn reap(&mut self, out: &mut Vec<Completion>) {
        let mut found = [(0, 0); REAPED];
        loop {
            let mut count = 0;
            for (to, entry) in found.iter_mut().zip(self.ring.completion()) {
                *to = (entry.user_data(), entry.result());
                count += 1;
            }
            for (name, result) in found.into_iter().take(count) {
                self.flying -= 1;
                self.settle(name, result, out);
            }
            if count < REAPED {
                return;
            }
        }
    }

    /// A command is tried again then. `first`: it hasn't gone astray before, and if no other one has the log says so.
    #[cold]
    fn pause(&mut self, at: Instant, entry: squeue::Entry128, first: bool, result: i32) {
        if first && self.paused.is_empty() {
            tracing::warn!(
                result,
                "commands don't get to a drive, as while it is reset: they are tried again for 10 s"
            );
        }
        self.paused.push((at, entry));
    }

    /// An entry of this name has ended so.
    #[inline]
    fn settle(&mut self, name: u64, result: i32, out: &mut Vec<Completion>) {
        let key = match name & COMMAND {
            0 => name as usize,
            _ => {
                let at = (name & !COMMAND) as usize;
                let command = &mut self.commands[at];
                if let Some(when) = command.again(result) {
                    let (entry, first) = (command.entry.clone(), command.astray == 1);
                    self.retries += 1;
                    match when {
                        Some(at) => self.pause(at, entry, first, result),
                        None => self.waiting.push_back(entry),
                    }
                    return;
                }
                self.commands.remove(at).transfer
            }
        };
        let transfer = &mut self.transfers[key];
        transfer.left -= 1;
        match result {
            failed if failed < 0 => transfer.failed = failed,
            moved if !transfer.commands => transfer.moved += moved,
            0 => {}
            status => transfer.failed = -STATUS - (status & 0xffff),
        }
        if transfer.left == 0 {
            let Transfer { token, moved, failed, mark, .. } = self.transfers.remove(key);
            let result = if failed < 0 { failed } else { moved };
            out.push(Completion { token, result, flags: mark });
        }
    }
}

impl Drop for DriveRing {
    fn drop(&mut self) {
        self.drain();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::Source;

    /// Not ready for now; aborted by the host; and an unrecovered read error that won't go away.
    const NOT_READY: i32 = 0x82;
    const ABORTED: i32 = 0x371;
    const LOST: i32 = 0x4281;

    #[test]
    fn a_command_is_tried_again_unless_the_drive_says_that_it_is_of_no_use() {
        let fates = |results: &[i32]| results.iter().map(|result| fate(*result)).collect::<Vec<_>>();
        assert_eq!(fates(&[ABORTED, 0x370, -libc::EINTR, -libc::EFAULT]), [Fate::Astray; 4]);
        assert_eq!(fates(&[NOT_READY, 0x1]), [Fate::Refused; 2]);
        assert_eq!(fates(&[0, LOST, ABORTED | DO_NOT_RETRY, -libc::EIO, -libc::ENODEV]), [Fate::Settled; 5]);
    }

    #[test]
    fn a_transfer_fails_only_when_its_command_was_tried_again_in_vain() {
        let Ok(mut ring) = DriveRing::new(8, Wakes::ByInterrupt) else {
            println!("skipped, because this kernel has no rings for drives");
            return;
        };
        let mut out = Vec::new();
        let mut transfer = |results: &[i32], ends: i32| {
            let begun = ring.begin(Token::new(Source::DISK, 7), 0);
            let file = File::Plain(-1);
            // SAFETY: it names no memory, and is never handed to the kernel.
            unsafe { ring.command(begun, file, 0, [0; 80], (std::ptr::null(), 0)) };
            ring.ring.submission().sync();
            for result in results {
                assert!(out.is_empty());
                let name = COMMAND | ring.commands.iter().next().unwrap().0 as u64;
                ring.waiting.clear();
                ring.paused.clear();
                ring.settle(name, *result, &mut out);
                let again = ring.waiting.len() + ring.paused.len();
                assert_eq!(again, usize::from(out.is_empty()));
                assert_eq!(!ring.paused.is_empty(), ring.must_be_asked(), "nothing else wakes it");
            }
            assert_eq!(out.pop().map(|completion| completion.result), Some(ends));
            assert!(ring.commands.is_empty() && ring.transfers.is_empty());
        };
        transfer(&[0], 0);
        transfer(&[NOT_READY, ABORTED, 0], 0);
        transfer(&[-libc::EINTR, NOT_READY, -libc::EINTR, 0], 0);
        transfer(&[NOT_READY; RETRIES as usize + 1], -STATUS - NOT_READY);
        transfer(&[ABORTED, -libc::EFAULT, ABORTED, ABORTED, -libc::EINTR, ABORTED, ABORTED, 0], 0);
        transfer(&[LOST], -STATUS - LOST);
        transfer(&[-libc::EIO], -libc::EIO);
        assert_eq!((ring.commanded(), ring.retries()), (7, 5 + 7 + u64::from(RETRIES)));
    }

    #[test]
    fn a_command_that_goes_astray_is_given_up_when_its_time_is_over() {
        let entry = opcode::UringCmd80::new(types::Fd(-1), 0).build();
        let mut command = Command { entry, transfer: 0, refused: 0, astray: 0, until: None };
        let mut last = Instant::now();
        for _ in 0..300 {
            let at = command.again(ABORTED).unwrap().expect("a pause");
            assert!(at > last && at < Instant::now() + PAUSE * 17);
            last = Instant::now();
        }
        command.until = Some(last);
        assert_eq!(command.again(ABORTED), None);
    }

    #[test]
    fn a_paused_command_is_handed_over_when_its_time_has_come() {
        let Ok(mut ring) = DriveRing::new(8, Wakes::ByInterrupt) else {
            println!("skipped, because this kernel has no rings for drives");
            return;
        };
        let mut out = Vec::new();
        let begun = ring.begin(Token::new(Source::DISK, 7), 0);
        // As if no place had been free, and it had been handed over and cancelled then.
        ring.flying = ring.entries;
        // SAFETY: it names no memory.
        unsafe { ring.command(begun, File::Plain(-1), 0, [0; 80], (std::ptr::null(), 0)) };
        ring.waiting.clear();
        ring.flying = 0;
        let name = COMMAND | ring.commands.iter().next().unwrap().0 as u64;
        ring.settle(name, -libc::EINTR, &mut out);
        let began = Instant::now();
        while out.is_empty() {
            ring.turn(&mut out).unwrap();
        }
        assert_eq!(
            out.pop().map(|completion| completion.result),
            Some(-libc::EBADF),
            "there is no such file"
        );
        assert!(began.elapsed() >= PAUSE / 2 && ring.paused.is_empty() && ring.in_flight() == 0);
    }
}
