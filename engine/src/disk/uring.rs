//! The disks of one shard on its ring: registered files, fixed buffers, typed transfers.
//!
//! A transfer is named by what it is for ([`Io`]); its completion carries the name back. Offsets are of the slice; the base
//! on the file is added here. The memory of a transfer belongs to whoever asked until the completion.
//!
//! Each disk has its [`Way`], chosen when it is taken over: entries on the core's ring, or on one of drives beside it.

use super::BlockingDisk;
use super::cache::{Cache, Write};
use super::file::DiskFile;
use super::nvme::{Namespace, OPERATION, Transfer, status_text};
use super::open::Extent;
use super::record::Recorder;
use super::sysfs::Device;
use super::way::{Choice, Survey, Way};
use crate::event::{DiskIndex, Nanos};
use crate::store::Store;
use crate::store::disk_log::Acknowledged;
use corefs_net::ring::{Begun, Beside, DriveRing, File, Sync, Wakes, drive_status};
use corefs_net::{Buffer, Completion, Pool, Ring, Source, Token};
use corefs_wire::limits::BLOCK;
use corefs_wire::{ChunkId, Error, ErrorCode, Result, SliceIndex, TargetId};
use std::path::Path;
use std::time::{Duration, Instant};

/// Commands that a shard's drives have at a time; more wait. Half of what the kernel's queue of an NVMe drive takes (1023).
const DRIVE_ENTRIES: u32 = 512;
/// How long a way to a disk may take to read a block, to be taken.
const TRIAL: Duration = Duration::from_secs(5);
/// How often it is tried, since another shard may be writing the block at the time.
const TRIALS: usize = 3;
/// Entries and memory of a trial's ring.
const TRIAL_ENTRIES: u32 = 8;
const TRIAL_BYTES: usize = 1 << 20;
/// Free space that isn't worth a command is shorter (bytes).
const DISCARD_MIN: u64 = 16 * BLOCK as u64;
/// The mark of a completion whose bytes are in the drive's cache; the rest of it is the disk's position.
const CACHED: u32 = 1 << 31;

/// What a transfer is for. `op` and `slot` are positions in the shard's tables, `part` counts the transfers of one operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Io {
    /// A piece of a client's read.
    Read {
        op: u32,
        part: u16,
    },
    /// An old block that an update keeps a part of.
    Merge {
        op: u32,
        part: u16,
    },
    /// A piece of a pending update that is read back.
    Load {
        op: u32,
        part: u16,
    },
    /// Blocks of an update.
    Data {
        op: u32,
        part: u16,
    },
    /// A part of a batch.
    Batch {
        slot: u32,
    },
    Flush {
        disk: DiskIndex,
    },
    /// A part of a step that is verified.
    Check {
        slot: u32,
        part: u16,
    },
    /// Good blocks over bad ones.
    Mend {
        slot: u32,
        part: u16,
    },
}

impl Io {
    pub fn token(self) -> Token {
        let (kind, part, index) = match self {
            Self::Read { op, part } => (0, part, op),
            Self::Merge { op, part } => (1, part, op),
            Self::Load { op, part } => (2, part, op),
            Self::Data { op, part } => (3, part, op),
            Self::Batch { slot } => (4, 0, slot),
            Self::Flush { disk } => (5, 0, disk.0.into()),
            Self::Check { slot, part } => (6, part, slot),
            Self::Mend { slot, part } => (7, part, slot),
        };
        Token::new(Source::DISK, kind << 48 | u64::from(part) << 32 | u64::from(index))
    }

    /// Reads what [`Self::token`] wrote.
    pub fn of(token: Token) -> Self {
        let payload = token.payload();
        let (part, index) = ((payload >> 32) as u16, payload as u32);
        match payload >> 48 {
            0 => Self::Read { op: index, part },
            1 => Self::Merge { op: index, part },
            2 => Self::Load { op: index, part },
            3 => Self::Data { op: index, part },
            4 => Self::Batch { slot: index },
            6 => Self::Check { slot: index, part },
            7 => Self::Mend { slot: index, part },
            _ => Self::Flush { disk: DiskIndex(index as u16) },
        }
    }
}

/// How transfers of a disk are asked for.
enum Route {
    /// On the core's own ring.
    Core(File),
    /// On a ring of drives, as reads and writes of at most so many bytes, since parts that the kernel makes of larger ones aren't polled for. Flushes
    /// on the core's own: they can't be, either.
    Polled { ring: usize, file: File, core: File, transfer_max: u32 },
    /// On a ring of drives, as NVMe commands. Flushes as above: commands without data can't be polled for, and Linux 6.1 follows
    /// a wild pointer when it is asked to.
    Commands { ring: usize, file: File, core: File, namespace: Namespace },
}

impl Route {
    /// Whether it knows of a cache that loses what wasn't flushed. Elsewhere the kernel does.
    fn has_volatile_cache(&self) -> bool {
        matches!(self, Self::Commands { namespace, .. } if namespace.has_volatile_cache())
    }
}

struct Disk {
    route: Route,
    way: Way,
    /// Held open, and locked.
    open: DiskFile,
    /// When its last flush began.
    flush_began: Nanos,
    cache: Cache,
}

/// Where a slice is.
#[derive(Clone, Copy)]
struct Place {
    disk: DiskIndex,
    extent: Extent,
}

/// What was done to make writes durable, beside what was asked for.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Durability {
    /// Flushes that the kernel or a drive was asked for.
    pub flush_commands: u64,
    /// Flushes that were asked for when everything written was durable already.
    pub flushes_spared: u64,
    /// Writes that were durable when they completed, on drives with a volatile cache (FUA).
    pub fua_writes: u64,
}

/// The disks of one shard.
#[derive(Default)]
pub struct Disks {
    /// First: what is in flight is waited for before anything else goes.
    rings: Vec<DriveRing>,
    disks: Vec<Disk>,
    /// By [`SliceIndex`].
    places: Vec<Option<Place>>,
    recorder: Option<Recorder>,
    choice: Choice,
    /// Flushes that had nothing to do.
    spared: Vec<Completion>,
    durability: Durability,
    /// What disks were told to hold nothing.
    discarded_bytes: u64,
    /// Transfers that never complete, and those that didn't.
    #[cfg(test)]
    pub(crate) hangs: Option<fn(Io) -> bool>,
    #[cfg(test)]
    pub(crate) hung: Vec<Token>,
}

/// What came of trying the ways to a disk: may be done elsewhere than in the shard that takes it, because a disk that doesn't answer is waited for.
pub struct Trial {
    survey: Survey,
    /// Up to the first that works, and whether its commands may name registered memory.
    tried: Vec<(Way, Result<bool>)>,
}

impl Trial {
    /// Tries what `choice` allows. `choice` is to be that of the shard.
    pub fn of(choice: Choice, open: &DiskFile) -> Self {
        let survey = Survey::of(open.path());
        let mut tried = Vec::new();
        for way in survey.ways(choice) {
            let works = try_way(way, &survey, open);
            let done = works.is_ok();
            tried.push((way, works));
            if done {
                break;
            }
        }
        Self { survey, tried }
    }
}

impl Disks {
    /// For disks that are reached by the shortest way that works, or by the one that is wanted.
    pub fn new(choice: Choice) -> Self {
        Self { choice, ..Self::default() }
    }

    /// Takes a disk over, by the shortest way that works: each is tried with a read. `BadConfig`, with the reasons, if the way that is
    /// wanted doesn't.
    pub fn add(&mut self, ring: &mut Ring, pool: &Pool, open: DiskFile) -> Result<DiskIndex> {
        let trial = Trial::of(self.choice, &open);
        self.add_tried(ring, pool, open, trial)
    }

    /// As [`add`](Self::add), without waiting for the disk: its ways have been tried.
    pub fn add_tried(
        &mut self,
        ring: &mut Ring,
        pool: &Pool,
        open: DiskFile,
        trial: Trial,
    ) -> Result<DiskIndex> {
        let Trial { mut survey, mut tried } = trial;
        let mut refused = survey.obstacles(self.choice);
        if let (Choice::Auto, Err(why), Ok(())) = (self.choice, &survey.passthrough, &survey.polled) {
            tracing::warn!(disk = %open.path().display(), %why, "a disk with queues for polling isn't reached by passthrough");
        }
        for way in survey.ways(self.choice) {
            let known = tried.iter().position(|(tried, _)| *tried == way);
            let works = known.map(|at| tried.swap_remove(at).1);
            // Not tried before if the way before it worked, and then couldn't be taken.
            let works = works.unwrap_or_else(|| try_way(way, &survey, &open));
            match works.and_then(|fixed| self.route(ring, pool, (way, fixed), &mut survey, &open)) {
                Ok(route) => {
                    tracing::info!(disk = %open.path().display(), %way, obstacles = ?refused, "the way to a disk");
                    let index = DiskIndex(self.disks.len() as u16);
                    let cache = Cache::new(route.has_volatile_cache());
                    self.disks.push(Disk { route, way, open, flush_began: 0, cache });
                    return Ok(index);
                }
                Err(error) => {
                    tracing::warn!(disk = %open.path().display(), %way, %error, "a way to a disk doesn't work: trying the next one");
                    refused.push(format!("{way}: {}", error.message));
                }
            }
        }
        let what =
            format!("{}: no way to it that was asked for: {}", open.path().display(), refused.join("; "));
        Err(Error::new(ErrorCode::BadConfig, what))
    }

    /// What a way takes. The survey gives the namespace away. `fixed`: commands may name registered memory.
    fn route(
        &mut self,
        ring: &mut Ring,
        pool: &Pool,
        (way, fixed): (Way, bool),
        survey: &mut Survey,
        open: &DiskFile,
    ) -> Result<Route> {
        match way {
            Way::Plain => Ok(Route::Core(ring.add_file(open.fd()))),
            Way::Polled => {
                let at = self.ring_of(Wakes::Polled, pool)?;
                let (file, core) = (self.rings[at].add_file(open.fd()), ring.add_file(open.fd()));
                let device = Device::of(open.path());
                let transfer_max = device.map_or(BLOCK as u32, |device| device.transfer_max());
                Ok(Route::Polled { ring: at, file, core, transfer_max })
            }
            Way::Passthrough(wakes) => {
                let at = self.ring_of(wakes, pool)?;
                if !fixed {
                    self.rings[at].forget_fixed_commands();
                }
                let taken = std::mem::replace(&mut survey.passthrough, Err("it is in use".to_string()));
                let namespace = taken.map_err(|why| Error::new(ErrorCode::BadConfig, why))?;
                let file = self.rings[at].add_file(namespace.fd());
                let core = ring.add_file(open.fd());
                Ok(Route::Commands { ring: at, file, core, namespace })
            }
        }
    }

    /// The ring of drives of that kind; made when the first is needed.
    fn ring_of(&mut self, wakes: Wakes, pool: &Pool) -> Result<usize> {
        if let Some(at) = self.rings.iter().position(|ring| ring.wakes() == wakes) {
            return Ok(at);
        }
        let mut ring = DriveRing::new(DRIVE_ENTRIES, wakes)?;
        ring.register_pool(pool);
        self.rings.push(ring);
        Ok(self.rings.len() - 1)
    }

    /// Hands over what is queued, and appends what has completed to `out`. With `rest` it waits until something has, the alarm is
    /// raised, or something has come `beside` the rings; it may return for nothing.
    #[inline]
    pub fn gather(
        &mut self,
        ring: &mut Ring,
        rest: bool,
        beside: &mut impl Beside,
        out: &mut Vec<Completion>,
    ) -> Result<()> {
        out.append(&mut self.spared);
        match (rest && out.is_empty(), self.rings.is_empty()) {
            (true, true) => ring.rest(beside, out),
            (true, false) => ring.rest_with_drives(&mut self.rings, beside, out),
            (false, _) => {
                ring.turn(out)?;
                self.rings.iter_mut().try_for_each(|drives| drives.turn(out))
            }
        }
    }

    /// Waits for everything that the rings of drives have in flight.
    pub fn drain(&mut self) {
        self.rings.iter_mut().for_each(DriveRing::drain);
    }

    pub fn place(&mut self, slice: SliceIndex, disk: DiskIndex, extent: Extent) {
        let index = usize::from(slice.0);
        if self.places.len() <= index {
            self.places.resize(index + 1, None);
        }
        assert!(extent.base + extent.bytes <= self.disks[usize::from(disk.0)].open.bytes());
        self.places[index] = Some(Place { disk, extent });
    }

    /// Tells a block device which bytes of a slice hold nothing; `store` is what is there, and nothing of the slice is under way. Of a device that
    /// doesn't take that, it is said in the log.
    pub fn discard(&mut self, slice: SliceIndex, store: &Store) {
        let Some(Place { disk, extent }) = self.places[usize::from(slice.0)] else { return };
        let open = &self.disks[usize::from(disk.0)].open;
        for (offset, bytes) in store.free_extents().filter(|(_, bytes)| *bytes >= DISCARD_MIN) {
            assert!(offset + bytes <= extent.bytes, "free space beyond the end of a slice");
            if let Err(error) = open.discard(extent.base + offset, bytes) {
                tracing::warn!(%slice, %error, "the disk isn't told what is free");
                return;
            }
            self.discarded_bytes += bytes;
        }
    }

    #[inline]
    pub fn disk_of(&self, slice: SliceIndex) -> DiskIndex {
        self.places[usize::from(slice.0)].expect("only placed slices are used").disk
    }

    /// On which disk a slice is, for people.
    pub fn path_of(&self, slice: SliceIndex) -> &Path {
        self.path(self.disk_of(slice))
    }

    pub fn path(&self, disk: DiskIndex) -> &Path {
        self.disks[usize::from(disk.0)].open.path()
    }

    /// By which ways disks may be reached.
    pub fn choice(&self) -> Choice {
        self.choice
    }

    /// By which way a disk is reached.
    pub fn way(&self, disk: DiskIndex) -> Way {
        self.disks[usize::from(disk.0)].way
    }

    /// What was done so far, under the names of counters.
    pub fn counters(&self) -> [(&'static str, u64); 10] {
        let ways = |which: fn(Way) -> bool| self.disks.iter().filter(|disk| which(disk.way)).count() as u64;
        [
            ("flush_commands", self.durability.flush_commands),
            ("flushes_spared", self.durability.flushes_spared),
            ("fua_writes", self.durability.fua_writes),
            ("discarded_bytes", self.discarded_bytes),
            ("drive_enters", self.rings.iter().map(DriveRing::enters).sum()),
            ("drive_commands", self.rings.iter().map(DriveRing::commanded).sum()),
            ("drive_retries", self.rings.iter().map(DriveRing::retries).sum()),
            ("disks_passthrough", ways(|way| matches!(way, Way::Passthrough(_)))),
            ("disks_polled", ways(|way| matches!(way, Way::Polled | Way::Passthrough(Wakes::Polled)))),
            ("disks_plain", ways(|way| way == Way::Plain)),
        ]
    }

    /// The file itself, to be read by waiting for it.
    pub fn blocking(&self, disk: DiskIndex) -> Result<DiskFile> {
        self.disks[usize::from(disk.0)].open.share()
    }

    /// Logs everything from now on.
    pub fn record(&mut self, recorder: Recorder) {
        self.recorder = Some(recorder);
    }

    /// An update of this slice is about to be acknowledged: writes it down, if anybody listens.
    #[inline]
    pub fn acknowledged(&mut self, slice: SliceIndex, target: TargetId, chunk: ChunkId, version: u64) {
        if let Some(recorder) = &mut self.recorder {
            recorder.acknowledged(&Acknowledged { disk: slice.0.into(), target, chunk, version });
        }
    }

    /// # Safety
    /// `to` is owned by the transfer until its completion.
    #[inline]
    pub unsafe fn read(
        &mut self,
        ring: &mut Ring,
        slice: SliceIndex,
        offset: u64,
        to: *mut u8,
        len: u32,
        io: Io,
    ) {
        #[cfg(test)]
        if self.hangs(io) {
            return;
        }
        let (disk, offset) = self.locate(slice, offset, len);
        match &self.disks[disk].route {
            // SAFETY: passed on to the caller.
            Route::Core(file) => unsafe { ring.read(*file, to, len, offset, io.token()) },
            // SAFETY: passed on to the caller.
            route => unsafe { read_beside(&mut self.rings, route, to, len, offset, io.token()) },
        }
    }

    /// # Safety
    /// `from` is valid and unchanged until the completion.
    pub unsafe fn write(
        &mut self,
        ring: &mut Ring,
        slice: SliceIndex,
        offset: u64,
        from: *const u8,
        len: u32,
        io: Io,
    ) {
        #[cfg(test)]
        if self.hangs(io) {
            return;
        }
        if let Some(recorder) = &mut self.recorder {
            // SAFETY: the caller promises that the bytes are valid.
            let bytes = unsafe { std::slice::from_raw_parts(from, len as usize) };
            recorder.write(slice, io.token(), offset, bytes);
        }
        let (index, offset) = self.locate(slice, offset, len);
        let disk = &mut self.disks[index];
        match &disk.route {
            // SAFETY: passed on to the caller.
            Route::Core(file) => unsafe { ring.write(*file, from, len, offset, io.token()) },
            Route::Polled { ring: at, file, transfer_max, .. } => {
                let drives = &mut self.rings[*at];
                let begun = drives.begin(io.token(), 0);
                for done in (0..len).step_by(*transfer_max as usize) {
                    let (from, piece) = (from.wrapping_add(done as usize), (len - done).min(*transfer_max));
                    // SAFETY: a part of the caller's memory; passed on to the caller.
                    unsafe { drives.write(begun, *file, from, piece, offset + u64::from(done)) }
                }
            }
            Route::Commands { ring: at, file, namespace, .. } => {
                let (what, mark) = match disk.cache.write() {
                    Write::Durable => (Transfer::Write, 0),
                    Write::Through => (Transfer::WriteThrough, 0),
                    Write::Cached => (Transfer::Write, CACHED | index as u32),
                };
                self.durability.fua_writes += u64::from(what == Transfer::WriteThrough);
                let drives = &mut self.rings[*at];
                let begun = drives.begin(io.token(), mark);
                // SAFETY: passed on to the caller.
                unsafe { command_all(drives, begun, *file, namespace, what, (from, len), offset) }
            }
        }
    }

    /// Everything that has completed before is to be durable.
    pub fn flush(&mut self, ring: &mut Ring, disk: DiskIndex, now: Nanos) {
        let token = Io::Flush { disk }.token();
        #[cfg(test)]
        if self.hangs(Io::Flush { disk }) {
            return;
        }
        if let Some(recorder) = &mut self.recorder {
            let there = |(index, place): (usize, &Option<Place>)| {
                place.is_some_and(|place| place.disk == disk).then_some(SliceIndex(index as u16))
            };
            recorder.flush(self.places.iter().enumerate().filter_map(there), token);
        }
        let disk = &mut self.disks[usize::from(disk.0)];
        disk.flush_began = now;
        let (core, needed) = match &disk.route {
            Route::Core(core) | Route::Polled { core, .. } => (*core, true),
            Route::Commands { core, .. } => (*core, disk.cache.flush()),
        };
        match needed {
            true => ring.sync(core, Sync::Data, token),
            false => self.spared.push(Completion { token, result: 0, flags: 0 }),
        }
        self.durability.flush_commands += u64::from(needed);
        self.durability.flushes_spared += u64::from(!needed);
    }

    /// What a flush came to. One that failed is the end of the disk for every shard; then one that succeeded promises nothing,
    /// since it may have found nothing left to write.
    pub fn flushed(&self, disk: DiskIndex, result: Result<()>) -> Result<()> {
        let fate = self.disks[usize::from(disk.0)].open.fate();
        match result {
            Err(error) => {
                fate.seal();
                Err(error)
            }
            Ok(()) if fate.is_sealed() => Err(failed_elsewhere()),
            Ok(()) => Ok(()),
        }
    }

    /// Slices of disks of which a flush has failed, in whichever shard, and why they are lost.
    pub fn lost(&self) -> impl Iterator<Item = (SliceIndex, Error)> {
        let lost = |place: &Option<Place>| {
            place.is_some_and(|place| self.disks[usize::from(place.disk.0)].open.fate().is_sealed())
        };
        let slices = self.places.iter().enumerate().filter(move |(_, place)| lost(place));
        slices.map(|(index, _)| (SliceIndex(index as u16), failed_elsewhere()))
    }

    /// When the last flush of a disk began.
    pub fn flush_began(&self, disk: DiskIndex) -> Nanos {
        self.disks[usize::from(disk.0)].flush_began
    }

    /// A transfer or flush is over.
    #[inline]
    pub fn complete(&mut self, io: Io, completion: &Completion) {
        if completion.flags & CACHED != 0 {
            self.disks[(completion.flags & !CACHED) as usize].cache.written();
        }
        if let Some(recorder) = self.recorder.as_mut().filter(|_| completion.result >= 0) {
            recorder.complete(io.token(), matches!(io, Io::Flush { .. }));
        }
    }

    #[cfg(test)]
    fn hangs(&mut self, io: Io) -> bool {
        let hangs = self.hangs.is_some_and(|hangs| hangs(io));
        self.hung.extend(hangs.then(|| io.token()));
        hangs
    }

    #[inline]
    fn locate(&self, slice: SliceIndex, offset: u64, len: u32) -> (usize, u64) {
        let place = self.places[usize::from(slice.0)].expect("only placed slices are used");
        // A transfer beyond the slice would destroy a neighbour's: this holds in release too.
        assert!(offset + u64::from(len) <= place.extent.bytes, "a transfer beyond the end of its slice");
        (usize::from(place.disk.0), place.extent.base + offset)
    }
}

/// Whether each way that there is to a disk works, and why not: tried as a node does at its start. Changes nothing, and doesn't ask whether
/// somebody else uses the disk. `Os` if it can't be opened.
pub fn try_ways(path: &Path) -> Result<Vec<(Way, Result<()>)>> {
    let (open, survey) = (DiskFile::look(path)?, Survey::of(path));
    let tried = |way| (way, try_way(way, &survey, &open).map(drop));
    Ok(survey.ways(Choice::Auto).into_iter().map(tried).collect())
}

/// Reads the first block by a way, and the last, on a ring of its own: an error, or other bytes than the usual way reads, and the way isn't to be taken. A disk
/// that was formatted has a superblock at either end, so that another disk, or a wrong place on it, is noticed. Whether its commands may name registered memory.
fn try_way(way: Way, survey: &Survey, open: &DiskFile) -> Result<bool> {
    let wakes = match way {
        Way::Plain => return Ok(true),
        Way::Polled => Wakes::Polled,
        Way::Passthrough(wakes) => wakes,
    };
    let namespace = survey.passthrough.as_ref().ok().filter(|_| way != Way::Polled);
    let pool = Pool::new(TRIAL_BYTES)?;
    let mut buffer = pool.get(BLOCK).ok_or_else(|| Error::from(ErrorCode::Overloaded))?;
    // After the memory, so that it is dropped, and drained, before that.
    let mut drives = DriveRing::new(TRIAL_ENTRIES, wakes)?;
    drives.register_pool(&pool);
    let file = drives.add_file(namespace.map_or(open.fd(), Namespace::fd));
    let mut usual = open.share()?;
    let last = (usual.bytes() / BLOCK as u64).saturating_sub(1) * BLOCK as u64;
    let mut fixed = true;
    for offset in [0, last] {
        try_block(&mut usual, &mut buffer, offset, |buffer| {
            let read = read_block(&mut drives, file, namespace, buffer, offset)?;
            if read == -libc::EINVAL && namespace.is_some() && drives.forget_fixed_commands() {
                fixed = false;
                return read_block(&mut drives, file, namespace, buffer, offset);
            }
            Ok(read)
        })?;
    }
    Ok(fixed)
}

/// Reads a block by `read`, and the usual way before and after. What is in the buffer before that is nothing of what is expected, so that a read which
/// moves nothing doesn't pass on a disk of zeros.
fn try_block(
    usual: &mut DiskFile,
    buffer: &mut Buffer,
    offset: u64,
    mut read: impl FnMut(&Buffer) -> Result<i32>,
) -> Result<()> {
    let mut expected = vec![0; BLOCK];
    usual.read_at(offset, &mut expected)?;
    for _ in 0..TRIALS {
        let before = buffer.get_mut().ok_or_else(|| Error::from(ErrorCode::Internal))?;
        before.iter_mut().zip(&expected).for_each(|(to, expected)| *to = !expected);
        let read = read(buffer)?;
        if read != BLOCK as i32 {
            return Err(disk_error((-read).max(0)));
        }
        let before = std::mem::replace(&mut expected, vec![0; BLOCK]);
        usual.read_at(offset, &mut expected)?;
        if buffer.as_slice() == before || buffer.as_slice() == expected {
            return Ok(());
        }
    }
    Err(Error::new(ErrorCode::DiskError, "it reads other bytes than the block device"))
}

/// Reads a block into `buffer`, of whose memory the ring knows, and waits for it: what came of that.
fn read_block(
    drives: &mut DriveRing,
    file: File,
    namespace: Option<&Namespace>,
    buffer: &Buffer,
    offset: u64,
) -> Result<i32> {
    let begun = drives.begin(Token::new(Source::DISK, 0), 0);
    let memory = buffer.as_mut_ptr();
    // SAFETY: nobody looks at the buffer before the completion. If that doesn't come, the caller drops the ring, which waits for it.
    unsafe {
        match namespace {
            Some(namespace) => {
                command_all(drives, begun, file, namespace, Transfer::Read, (memory, BLOCK as u32), offset);
            }
            None => drives.read(begun, file, memory, BLOCK as u32, offset),
        }
    }
    let (until, mut completed) = (Instant::now() + TRIAL, Vec::new());
    while completed.is_empty() && Instant::now() < until {
        drives.turn(&mut completed)?;
    }
    let lost = || Error::new(ErrorCode::DiskError, "a read doesn't come back");
    completed.first().map(|completion| completion.result).ok_or_else(lost)
}

/// Asks for a read by way of a ring of drives.
///
/// # Safety
/// `to` is owned by the transfer until its completion.
#[inline]
unsafe fn read_beside(
    rings: &mut [DriveRing],
    route: &Route,
    to: *mut u8,
    len: u32,
    offset: u64,
    token: Token,
) {
    match route {
        Route::Core(_) => unreachable!("it has no ring of drives"),
        Route::Polled { ring, file, transfer_max, .. } => {
            let drives = &mut rings[*ring];
            let begun = drives.begin(token, 0);
            for done in (0..len).step_by(*transfer_max as usize) {
                let (to, piece) = (to.wrapping_add(done as usize), (len - done).min(*transfer_max));
                // SAFETY: a part of the caller's memory; passed on to the caller.
                unsafe { drives.read(begun, *file, to, piece, offset + u64::from(done)) }
            }
        }
        Route::Commands { ring, file, namespace, .. } => {
            let drives = &mut rings[*ring];
            let begun = drives.begin(token, 0);
            // SAFETY: passed on to the caller.
            unsafe { command_all(drives, begun, *file, namespace, Transfer::Read, (to, len), offset) }
        }
    }
}

/// Asks for a transfer by as many commands as it takes.
///
/// # Safety
/// The memory is the transfer's until its completion.
#[inline]
unsafe fn command_all(
    drives: &mut DriveRing,
    begun: Begun,
    file: File,
    namespace: &Namespace,
    what: Transfer,
    (memory, len): (*const u8, u32),
    offset: u64,
) {
    let mut done = 0;
    while done < len {
        let (memory, piece) = (memory.wrapping_add(done as usize), namespace.piece(len - done));
        let command = namespace.transfer(what, memory, piece, offset + u64::from(done));
        // SAFETY: the command names the piece's memory and no other; passed on to the caller.
        unsafe { drives.command(begun, file, OPERATION, command, (memory, piece)) };
        done += piece;
    }
}

#[cold]
fn failed_elsewhere() -> Error {
    Error::new(ErrorCode::DiskError, "a flush of the disk has failed in another shard")
}

/// What became of a transfer, from the number that it ended with: of an error of the system or of the drive, or 0 if it came up short.
#[cold]
pub fn disk_error(number: i32) -> Error {
    let what = match (number, drive_status(-number)) {
        (_, Some(status)) => status_text(status),
        (0, None) => "the disk gave less than was asked for".to_string(),
        (_, None) => std::io::Error::from_raw_os_error(number).to_string(),
    };
    Error::new(ErrorCode::DiskError, what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use corefs_net::RingConfig;

    /// A command that does nothing, and one that reads another place, read what a new disk has: zeros.
    #[test]
    fn a_way_that_reads_nothing_or_elsewhere_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = DiskFile::create(&dir.path().join("disk"), 1 << 20).unwrap();
        let pool = Pool::new(1 << 20).unwrap();
        let mut buffer = pool.get(BLOCK).unwrap();
        let mut other = file.share().unwrap();
        let mut try_with = |file: &mut DiskFile, offset, read: &mut dyn FnMut(&Buffer)| {
            try_block(file, &mut buffer, offset, |buffer| {
                read(buffer);
                Ok(BLOCK as i32)
            })
        };
        assert!(try_with(&mut file, 0, &mut |_| {}).is_err(), "nothing was moved");
        let mut from = |offset, buffer: &Buffer| {
            // SAFETY: nobody else looks at it.
            let to = unsafe { std::slice::from_raw_parts_mut(buffer.as_mut_ptr(), BLOCK) };
            other.read_at(offset, to).unwrap();
        };
        try_with(&mut file, 0, &mut |buffer| from(0, buffer)).unwrap();
        // With a superblock at the end, its place is known.
        file.write_at((1 << 20) - BLOCK as u64, &[7; BLOCK]).unwrap();
        let last = (1 << 20) - BLOCK as u64;
        assert!(try_with(&mut file, last, &mut |buffer| from(0, buffer)).is_err());
        try_with(&mut file, last, &mut |buffer| from(last, buffer)).unwrap();
    }

    /// The disks of a shard, with these files.
    fn shard(files: &[&DiskFile]) -> Disks {
        let (mut ring, pool) = (Ring::new(&RingConfig::default()).unwrap(), Pool::new(1 << 20).unwrap());
        let mut disks = Disks::new(Choice::Plain);
        for (index, file) in files.iter().enumerate() {
            let disk = disks.add(&mut ring, &pool, file.share().unwrap()).unwrap();
            disks.place(SliceIndex(index as u16), disk, Extent { base: 0, bytes: 1 << 20 });
        }
        disks
    }

    #[test]
    fn a_flush_that_fails_is_the_end_of_the_disk_in_every_shard() {
        let dir = tempfile::tempdir().unwrap();
        let [first, second] =
            ["first", "second"].map(|name| DiskFile::create(&dir.path().join(name), 1 << 20).unwrap());
        let (one, other) = (shard(&[&first, &second]), shard(&[&first, &second]));
        let lost = |disks: &Disks| disks.lost().map(|(slice, _)| slice).collect::<Vec<_>>();
        assert_eq!((other.flushed(DiskIndex(0), Ok(())), lost(&other)), (Ok(()), vec![]));
        one.flushed(DiskIndex(0), Err(disk_error(libc::EIO))).unwrap_err();
        assert_eq!(other.flushed(DiskIndex(0), Ok(())).unwrap_err().code, ErrorCode::DiskError);
        assert_eq!((lost(&one), lost(&other)), (vec![SliceIndex(0)], vec![SliceIndex(0)]));
        assert_eq!(other.flushed(DiskIndex(1), Ok(())), Ok(()), "the other disk is none the worse for it");
    }

    #[test]
    fn tokens_name_what_they_were_made_of() {
        let (op, part) = (u32::MAX, u16::MAX);
        let all = [
            Io::Read { op, part },
            Io::Merge { op: 1, part },
            Io::Load { op, part: 1 },
            Io::Data { op, part },
            Io::Batch { slot: 7 },
            Io::Flush { disk: DiskIndex(u16::MAX) },
            Io::Check { slot: 3, part },
            Io::Mend { slot: u32::MAX, part },
        ];
        for io in all {
            assert_eq!((Io::of(io.token()), io.token().source()), (io, Source::DISK));
        }
    }
}
