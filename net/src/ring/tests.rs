//! The ring against the real kernel, and above all: nobody sleeps through a wake-up.

use super::*;
use crate::bell::Bell;
use crate::executor::builder;
use crate::mailbox::mailbox;
use futures_lite::FutureExt;
use glommio::Placement;
use std::cell::Cell;
use std::fs;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Instant;

const MINE: Source = Source(16);

fn token(payload: u64) -> Token {
    Token::new(MINE, payload)
}

fn sleepy() -> RingConfig {
    RingConfig { entries: 8, completions: 16, files: 4, busy_poll: Duration::ZERO }
}

#[test]
fn tokens_keep_source_and_payload() {
    let token = Token::new(Source(0xAB), (1 << 56) - 1);
    assert_eq!((token.source(), token.payload()), (Source(0xAB), (1 << 56) - 1));
}

#[test]
fn more_entries_than_the_queue_holds_all_complete() {
    let mut ring = Ring::new(&sleepy()).unwrap();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&[7; 4096]).unwrap();
    let mut buffers = vec![[0u8; 8]; 500];
    for (n, buffer) in buffers.iter_mut().enumerate() {
        // SAFETY: the buffers live, untouched, until all have completed.
        unsafe {
            ring.read(File::Plain(file.as_raw_fd()), buffer.as_mut_ptr(), 8, n as u64, token(n as u64))
        };
    }
    let mut completions = Vec::new();
    while ring.in_flight() > 0 {
        ring.wait(&mut completions).unwrap();
    }
    let mut seen: Vec<u64> = completions.iter().map(|completion| completion.token.payload()).collect();
    seen.sort_unstable();
    assert!(seen.into_iter().eq(0..500) && completions.iter().all(|completion| completion.result == 8));
    assert!(buffers.iter().all(|buffer| buffer == &[7; 8]));
    let counters = ring.counters();
    assert_eq!((counters.submissions, counters.completions), (500, 500));
}

#[test]
fn disk_operations_work_registered_and_plain() {
    for register in [true, false] {
        let mut ring = Ring::new(&RingConfig { files: if register { 4 } else { 0 }, ..sleepy() }).unwrap();
        let pool = Pool::new(1).unwrap();
        if register && !ring.register_pool(&pool) {
            println!("skipped: this machine registers no buffers; the plain way is tested");
        }
        let mut disk = tempfile::tempfile().unwrap();
        let file = ring.add_file(disk.as_raw_fd());
        assert_eq!(matches!(file, File::Registered(_)), register);
        let mut from = pool.get(8192).unwrap();
        from.get_mut().unwrap().fill(9);
        let to = pool.get(8192).unwrap();
        let mut completions = Vec::new();
        let mut finish = |ring: &mut Ring, expected: i32| {
            ring.wait(&mut completions).unwrap();
            assert_eq!(completions.pop().unwrap().result, expected);
        };
        // SAFETY: both buffers outlive the operations, one at a time.
        unsafe {
            ring.write(file, from.as_ptr(), 8192, 4096, token(1));
            finish(&mut ring, 8192);
            ring.sync(file, Sync::Data, token(2));
            finish(&mut ring, 0);
            ring.read(file, to.as_mut_ptr(), 8192, 4096, token(3));
            finish(&mut ring, 8192);
            assert_eq!(to.as_slice(), [9; 8192]);
            let pieces = [(from.as_ptr(), 100), (from.as_ptr(), 200)]
                .map(|(start, len)| libc::iovec { iov_base: start.cast_mut().cast(), iov_len: len });
            ring.writev(file, pieces.as_ptr(), 2, 0, token(4));
            finish(&mut ring, 300);
        }
        ring.remove_file(file);
        let mut found = Vec::new();
        disk.rewind().unwrap();
        disk.read_to_end(&mut found).unwrap();
        assert_eq!(found, [vec![9; 300], vec![0; 4096 - 300], vec![9; 8192]].concat());
    }
}

#[test]
fn dropping_a_ring_ends_what_is_in_flight() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let mut ring = Ring::new(&sleepy()).unwrap();
    let mut buffer = vec![0; 100];
    // SAFETY: the ring is dropped, which waits for the receive, before the buffer.
    unsafe { ring.recv(ours.as_raw_fd(), buffer.as_mut_ptr(), 100, Try::AtOnce, token(1)) };
    ring.timeout(Duration::from_secs(3600), token(2));
    ring.turn(&mut Vec::new()).unwrap();
    assert_eq!(ring.in_flight(), 2);
    ring.drain();
    assert_eq!(ring.in_flight(), 0);
    drop(ring);
}

/// Parks once with an event that falls into the window; whether it woke within `patience`.
async fn wakes(blind: bool, patience: Duration, event: impl Fn(UnixStream, Alarm, Bell) + 'static) -> bool {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut ring = Ring::new(&sleepy()).unwrap();
    let (bell, mut out, mut byte) = (Bell::new(), Vec::new(), Box::new([0u8]));
    let (alarm, inner) = (ring.alarm(), bell.clone());
    ring.parking.blind = blind;
    ring.parking.window = Some(Box::new(move || {
        event(theirs.try_clone().unwrap(), alarm.clone(), inner.clone());
    }));
    // SAFETY: the byte outlives the ring's use of it: the ring is dropped, and drained, first.
    unsafe { ring.recv(ours.as_raw_fd(), byte.as_mut_ptr(), 1, Try::AtOnce, token(1)) };
    let woke = async {
        ring.park(&bell, &mut out).await.unwrap();
        true
    };
    let hung = async {
        glommio::timer::sleep(patience).await;
        false
    };
    let woke = woke.or(hung).await;
    drop(ring);
    woke
}

#[test]
fn what_happens_while_falling_asleep_is_noticed() {
    builder(Placement::Unbound).make().unwrap().run(async {
        let long = Duration::from_secs(60);
        assert!(wakes(false, long, |mut socket, _, _| socket.write_all(b"x").unwrap()).await);
        assert!(wakes(false, long, |_, alarm, _| alarm.raise()).await);
        assert!(wakes(false, long, |_, _, bell| bell.ring()).await);
        // The canary: without the second look the first two are slept through.
        let short = Duration::from_millis(50);
        assert!(!wakes(true, short, |mut socket, _, _| socket.write_all(b"x").unwrap()).await);
        assert!(!wakes(true, short, |_, alarm, _| alarm.raise()).await);
    });
}

/// Everything that can wake an executor, all at once, each so many times.
const ROUNDS: u32 = 3000;

/// One source of wake-ups: its next operation is queued when the one before has completed.
struct Sources {
    ring: Ring,
    socket: UnixStream,
    disk: std::fs::File,
    bytes: Box<[u8; 64]>,
    block: crate::buffer::Buffer,
}

const SOCKET: u64 = 1;
const DISK: u64 = 2;
const TIMER: u64 = 3;

impl Sources {
    fn start(&mut self, source: u64) {
        // SAFETY: socket, bytes and block are boxed or mapped, and the ring is dropped before them.
        unsafe {
            match source {
                SOCKET => {
                    let to = self.bytes.as_mut_ptr();
                    self.ring.recv(self.socket.as_raw_fd(), to, 64, Try::WhenReadable, token(SOCKET));
                }
                DISK => {
                    let to = self.block.as_mut_ptr();
                    self.ring.read(File::Plain(self.disk.as_raw_fd()), to, 4096, 0, token(DISK));
                }
                _ => self.ring.timeout(Duration::from_millis(10), token(TIMER)),
            }
        }
    }
}

/// Ends the process when there is no progress: a thread that can't be woken can't be asked to stop.
struct Watchdog(std::sync::Arc<std::sync::atomic::AtomicU32>);

impl Watchdog {
    fn start() -> Self {
        let progress = std::sync::Arc::new(std::sync::atomic::AtomicU32::new(0));
        let seen = progress.clone();
        std::thread::spawn(move || {
            let mut last = u32::MAX;
            loop {
                std::thread::sleep(Duration::from_secs(30));
                let now = seen.load(std::sync::atomic::Ordering::Relaxed);
                if now == u32::MAX {
                    return;
                }
                if now == last {
                    eprintln!("a wake-up was lost: no progress for 30 s at event {now}");
                    std::process::abort();
                }
                last = now;
            }
        });
        Self(progress)
    }

    fn note(&self, progress: u32) {
        self.0.store(progress, std::sync::atomic::Ordering::Relaxed);
    }
}

#[test]
fn no_wake_up_is_lost_under_everything_at_once() {
    builder(Placement::Unbound).make().unwrap().run(async {
        let mut ring = Ring::new(&sleepy()).unwrap();
        let (mail, mut mailbox) = mailbox::<u32>(8, ring.alarm());
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut disk = tempfile::tempfile().unwrap();
        disk.write_all(&[1; 4096]).unwrap();
        // The window of the race is held open for a while, differently each time.
        let mut turn = 0u64;
        ring.parking.window = Some(Box::new(move || {
            turn += 1;
            let until = Instant::now() + Duration::from_micros(turn * 7 % 60);
            while Instant::now() < until {
                std::hint::spin_loop();
            }
        }));
        let block = Pool::new(1).unwrap().get(4096).unwrap();
        let mut sources = Sources { ring, socket: ours, disk, bytes: Box::new([0; 64]), block };
        let writer = std::thread::spawn(move || {
            let mut socket = theirs;
            for n in 0..ROUNDS {
                socket.write_all(&[1]).unwrap();
                std::thread::sleep(Duration::from_micros(u64::from(n % 90)));
            }
        });
        let sender = std::thread::spawn(move || {
            for n in 0..ROUNDS {
                while mail.try_send(n).is_err() {
                    std::thread::yield_now();
                }
                std::thread::sleep(Duration::from_micros(u64::from(n % 70)));
            }
        });
        let bell = Bell::new();
        let (rings, local) = (Rc::new(Cell::new(0)), bell.clone());
        let count = rings.clone();
        let ringer = glommio::spawn_local(async move {
            for n in 0..ROUNDS / 10 {
                glommio::timer::sleep(Duration::from_micros(u64::from(n % 500))).await;
                count.set(count.get() + 1);
                local.ring();
            }
        });
        [SOCKET, DISK, TIMER].into_iter().for_each(|source| sources.start(source));
        let (mut received, mut reads, mut ticks, mut letters) = (0, 0, 0, 0);
        let (mut completions, watchdog) = (Vec::new(), Watchdog::start());
        while received < ROUNDS
            || reads < ROUNDS
            || ticks < 20
            || letters < ROUNDS
            || rings.get() < ROUNDS / 10
        {
            sources.ring.park(&bell, &mut completions).await.unwrap();
            bell.take();
            sources.ring.heard_alarm();
            letters += std::iter::from_fn(|| mailbox.pop()).count() as u32;
            for completion in completions.drain(..) {
                let source = completion.token.payload();
                match source {
                    SOCKET => received += completion.check().unwrap() as u32,
                    DISK => reads += 1,
                    _ => ticks += 1,
                }
                let more = match source {
                    SOCKET => received < ROUNDS,
                    DISK => reads < ROUNDS,
                    _ => true,
                };
                if more {
                    sources.start(source);
                }
            }
            watchdog.note(received + reads + ticks + letters);
        }
        watchdog.note(u32::MAX);
        writer.join().unwrap();
        sender.join().unwrap();
        ringer.await;
        assert!(sources.ring.counters().parks > 100, "{:?}: it slept", sources.ring.counters());
    });
}

#[test]
fn polling_before_sleeping_lets_others_run() {
    builder(Placement::Unbound).make().unwrap().run(async {
        let mut ring = Ring::new(&RingConfig { busy_poll: Duration::from_secs(60), ..sleepy() }).unwrap();
        let bell = Bell::new();
        let local = bell.clone();
        glommio::spawn_local(async move { local.ring() }).detach();
        ring.park(&bell, &mut Vec::new()).await.unwrap();
        assert_eq!(ring.counters().parks, 0, "it was still polling");
    });
}

/// As above for a loop that rests: its thread is its own.
#[test]
fn no_wake_up_is_lost_by_a_ring_that_rests() {
    let ring = Ring::new(&sleepy()).unwrap();
    let (mail, mut mailbox) = mailbox::<u32>(8, ring.alarm());
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut disk = tempfile::tempfile().unwrap();
    disk.write_all(&[1; 4096]).unwrap();
    let block = Pool::new(1).unwrap().get(4096).unwrap();
    let mut sources = Sources { ring, socket: ours, disk, bytes: Box::new([0; 64]), block };
    let writer = std::thread::spawn(move || {
        let mut socket = theirs;
        for n in 0..ROUNDS {
            socket.write_all(&[1]).unwrap();
            std::thread::sleep(Duration::from_micros(u64::from(n % 90)));
        }
    });
    let sender = std::thread::spawn(move || {
        for n in 0..ROUNDS {
            while mail.try_send(n).is_err() {
                std::thread::yield_now();
            }
            std::thread::sleep(Duration::from_micros(u64::from(n % 70)));
        }
    });
    [SOCKET, DISK, TIMER].into_iter().for_each(|source| sources.start(source));
    let (mut received, mut reads, mut ticks, mut letters) = (0, 0, 0, 0);
    let (mut completions, watchdog) = (Vec::new(), Watchdog::start());
    while received < ROUNDS || reads < ROUNDS || ticks < 20 || letters < ROUNDS {
        sources.ring.rest(&mut (), &mut completions).unwrap();
        sources.ring.heard_alarm();
        letters += std::iter::from_fn(|| mailbox.pop()).count() as u32;
        for completion in completions.drain(..) {
            let source = completion.token.payload();
            let more = match source {
                SOCKET => {
                    received += completion.check().unwrap() as u32;
                    received < ROUNDS
                }
                DISK => {
                    reads += 1;
                    reads < ROUNDS
                }
                _ => {
                    ticks += 1;
                    true
                }
            };
            if more {
                sources.start(source);
            }
        }
        watchdog.note(received + reads + ticks + letters);
    }
    watchdog.note(u32::MAX);
    writer.join().unwrap();
    sender.join().unwrap();
    assert!(sources.ring.counters().parks > 100, "{:?}: it slept", sources.ring.counters());
}

/// Something that is no entry of the ring: as a completion queue, it is looked at, and signals once if it was armed.
struct Queue {
    fd: OwnedFd,
    came: AtomicU32,
    armed: AtomicBool,
}

impl Queue {
    fn new() -> Self {
        // SAFETY: a plain system call; the descriptor it returns is ours.
        let fd = unsafe { OwnedFd::from_raw_fd(libc::eventfd(0, libc::EFD_CLOEXEC)) };
        Self { fd, came: AtomicU32::new(0), armed: AtomicBool::new(false) }
    }

    fn put(&self) {
        self.came.fetch_add(1, Ordering::SeqCst);
        if self.armed.swap(false, Ordering::SeqCst) {
            fs::File::from(self.fd.try_clone().unwrap()).write_all(&1u64.to_ne_bytes()).unwrap();
        }
    }
}

/// One end's view of it.
struct Looking {
    queue: Arc<Queue>,
    taken: u32,
    polled: bool,
    arms: u32,
}

impl Beside for Looking {
    fn look(&mut self) -> bool {
        self.queue.came.load(Ordering::SeqCst) != self.taken
    }

    fn lie_down(&mut self, ring: &mut Ring) -> bool {
        self.arms += 1;
        self.queue.armed.store(true, Ordering::SeqCst);
        if self.look() {
            return false;
        }
        if !std::mem::replace(&mut self.polled, true) {
            ring.when_readable(self.queue.fd.as_raw_fd(), Token::new(Source::RDMA, 0));
        }
        true
    }
}

/// Rests until `rounds` have come, one every 0 to 90 us; how often it slept, entered the kernel, and armed.
fn rest_beside(busy_poll: Duration, rounds: u32) -> (RingCounters, u32) {
    let mut ring = Ring::new(&RingConfig { busy_poll, ..sleepy() }).unwrap();
    let queue = Arc::new(Queue::new());
    let theirs = Arc::clone(&queue);
    let mut beside = Looking { queue, taken: 0, polled: false, arms: 0 };
    let sender = std::thread::spawn(move || {
        for n in 0..rounds {
            theirs.put();
            std::thread::sleep(Duration::from_micros(u64::from(n % 90)));
        }
    });
    let (mut completions, watchdog) = (Vec::new(), Watchdog::start());
    while beside.taken < rounds {
        ring.rest(&mut beside, &mut completions).unwrap();
        beside.taken = beside.queue.came.load(Ordering::SeqCst);
        for _ in completions.drain(..) {
            beside.polled = false;
            fs::File::from(beside.queue.fd.try_clone().unwrap()).read_exact(&mut [0; 8]).unwrap();
        }
        watchdog.note(beside.taken);
    }
    watchdog.note(u32::MAX);
    sender.join().unwrap();
    (ring.counters(), beside.arms)
}

#[test]
fn what_comes_beside_a_ring_wakes_it_whenever_it_comes() {
    let (slept, _) = rest_beside(Duration::ZERO, ROUNDS);
    assert!(slept.parks > 100, "{slept:?}: it slept");
    rest_beside(Duration::from_micros(60), ROUNDS);
}

#[test]
fn a_core_that_polls_finds_what_comes_beside_its_ring_without_the_kernel() {
    let (counters, arms) = rest_beside(Duration::from_secs(60), ROUNDS);
    assert_eq!((counters.enters, counters.parks, arms), (0, 0, 0));
}
