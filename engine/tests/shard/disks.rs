//! The conformance suite of ways to a disk: the same real shard on a plain file, and by every way on the drives that `COREFS_TEST_DRIVES` names
//! (paths of block devices that may be overwritten, by spaces; `ci/guest` runs it so, one test at a time).

use crate::harness::*;
use corefs_engine::disk::BlockingDisk;
use corefs_engine::disk::file::DiskFile;
use corefs_engine::disk::nvme::{Namespace, OPERATION, Transfer, status_text};
use corefs_engine::disk::open::Extent;
use corefs_engine::disk::uring::{Disks, Io, try_ways};
use corefs_engine::disk::way::{Choice, Survey, Way};
use corefs_engine::event::DiskIndex;
use corefs_net::ring::{DriveRing, Wakes, drive_status};
use corefs_net::{Buffer, Completion, Pool, Ring, RingConfig, Source, Token};
use corefs_wire::limits::BLOCK;
use corefs_wire::{ErrorCode, SliceIndex};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A disk and a way to it.
struct Ground {
    /// `None`: a file.
    drive: Option<PathBuf>,
    way: Choice,
}

fn drives() -> Vec<PathBuf> {
    let named = std::env::var("COREFS_TEST_DRIVES").unwrap_or_default();
    if named.is_empty() {
        println!("skipped: drives by passthrough and polled, because COREFS_TEST_DRIVES names none");
    }
    named.split_whitespace().map(PathBuf::from).collect()
}

/// The ways that a drive has; a namespace without queues for polling has fewer.
fn ways(drive: &Path) -> Vec<Choice> {
    let survey = Survey::of(drive);
    let all = [Choice::Passthrough, Choice::Polled, Choice::Plain];
    all.into_iter().filter(|choice| !survey.ways(*choice).is_empty()).collect()
}

fn grounds() -> Vec<Ground> {
    let mut grounds = vec![Ground { drive: None, way: Choice::Auto }];
    for drive in drives() {
        let ways = ways(&drive);
        grounds.extend(ways.into_iter().map(|way| Ground { drive: Some(drive.clone()), way }));
    }
    grounds
}

impl Ground {
    fn start(&self, dir: &Path) -> Cluster {
        println!("on {self}");
        Cluster::start_on(dir, SMALL, self.drive.as_deref(), self.way)
    }
}

impl std::fmt::Display for Ground {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.drive {
            None => write!(f, "a file"),
            Some(drive) => write!(f, "{} by {:?}", drive.display(), self.way),
        }
    }
}

/// Writes, overwrites and cuts some chunks, in a way that `round` tells; what they hold then.
async fn scribble(client: &Client, round: u64) -> BTreeMap<u32, Vec<u8>> {
    let mut model = BTreeMap::new();
    for index in 0..6u32 {
        let one = chunk(round, index);
        let mut bytes = pattern(round * 100 + u64::from(index), CHUNK as usize >> (index % 4));
        client.write(HEAD, one, 0, &bytes).await.unwrap();
        let patch = pattern(round * 100 + 50, 3000 + index as usize);
        let at = 1000 * (1 + index as usize % 3);
        client.write(HEAD, one, at as u32, &patch).await.unwrap();
        bytes[at..at + patch.len()].copy_from_slice(&patch);
        if index == 5 {
            client.truncate(HEAD, one, 7000).await.unwrap();
            bytes.truncate(7000);
        }
        model.insert(index, bytes);
    }
    model
}

async fn compare(client: &Client, round: u64, model: &BTreeMap<u32, Vec<u8>>) {
    for (index, bytes) in model {
        let found = client.read_settled(HEAD, chunk(round, *index), 0, CHUNK).await.unwrap();
        assert_eq!(found.length as usize, bytes.len());
        assert!(found.data[..bytes.len()] == bytes[..], "chunk {index} of round {round}");
    }
}

#[test]
fn a_shard_keeps_what_it_was_given() {
    for ground in grounds() {
        let dir = tempfile::tempdir().unwrap();
        let mut cluster = ground.start(dir.path());
        let wanted = match ground.way {
            Choice::Passthrough => "disks_passthrough",
            Choice::Polled => "disks_polled",
            _ => "disks_plain",
        };
        assert_eq!(cluster.counter(1, wanted), 1, "{ground}");
        let model = with_client(&cluster, async |client| {
            let model = scribble(client, 1).await;
            compare(client, 1, &model).await;
            model
        });
        // Neither a crash of the process nor a proper end loses anything.
        cluster.kill(1);
        cluster.restart(1).unwrap();
        with_client(&cluster, async |client| compare(client, 1, &model).await);
        cluster.stop(1);
        cluster.restart(1).unwrap();
        with_client(&cluster, async |client| compare(client, 1, &model).await);
    }
}

#[test]
fn what_is_written_one_way_is_read_another() {
    for drive in drives() {
        let ways = ways(&drive);
        let dir = tempfile::tempdir().unwrap();
        let mut cluster = Cluster::start_on(dir.path(), SMALL, Some(&drive), Choice::Auto);
        let mut models = Vec::new();
        // Each way is followed by each other one.
        let order: Vec<Choice> =
            ways.iter().chain(ways.iter().rev()).chain(ways.iter().skip(1)).copied().collect();
        for (round, way) in (1u64..).zip(order) {
            if round.is_multiple_of(2) {
                cluster.kill(1)
            } else {
                cluster.stop(1)
            }
            cluster.way = way;
            cluster.restart(1).unwrap();
            println!("{} by {way:?}", drive.display());
            models.push(with_client(&cluster, async |client| {
                for (model, round) in models.iter().zip(1..) {
                    compare(client, round, model).await;
                }
                scribble(client, round).await
            }));
        }
    }
}

/// What a start tells the drive to forget is what holds nothing.
#[test]
fn freed_space_is_given_back() {
    let held = |cluster: &Cluster| {
        let mut disk = DiskFile::look(&cluster.disk_path(1)).unwrap();
        let mut bytes = vec![0; SMALL.slice_bytes as usize * usize::from(SMALL.slices)];
        disk.read_at(0, &mut bytes).unwrap();
        bytes.chunks(BLOCK).filter(|block| block.iter().any(|byte| *byte != 0)).count()
    };
    for drive in drives() {
        let dir = tempfile::tempdir().unwrap();
        let mut cluster = Cluster::start_on(dir.path(), SMALL, Some(&drive), Choice::Auto);
        let model = with_client(&cluster, async |client| {
            let model = scribble(client, 1).await;
            for index in 0..8 {
                client.write(HEAD, chunk(2, index), 0, &pattern(1, CHUNK as usize)).await.unwrap();
            }
            for index in 0..8 {
                client.remove(HEAD, chunk(2, index)).await.unwrap();
            }
            model
        });
        cluster.stop(1);
        let before = held(&cluster);
        cluster.discard = true;
        cluster.restart(1).unwrap();
        with_client(&cluster, async |client| compare(client, 1, &model).await);
        let (told, after) = (cluster.counter(1, "discarded_bytes"), held(&cluster));
        println!("{}: told of {told} free bytes, {before} blocks held, {after} left", drive.display());
        assert!(told > 0);
        // What was discarded reads as anything; as zeros on the emulated drive, whose removed chunks are gone so.
        assert!(after + 8 * CHUNK as usize / BLOCK <= before + 8);
    }
}

/// What the kernel's trace of a drive's commands counts, where `COREFS_TEST_TRACE` names the directory of it (nvme_setup_cmd is on).
struct Trace(Option<PathBuf>);

impl Trace {
    fn new() -> Self {
        Self(std::env::var_os("COREFS_TEST_TRACE").map(PathBuf::from))
    }

    fn clear(&self) {
        if let Some(dir) = &self.0 {
            std::fs::write(dir.join("trace"), "").unwrap();
        }
    }

    /// Flushes of the drive, and its writes with FUA (bit 30 of dword 12: bit 14 of its upper half).
    fn count(&self, drive: &Path) -> Option<[u64; 2]> {
        let trace = std::fs::read_to_string(self.0.as_ref()?.join("trace")).unwrap();
        let name = format!("disk={},", drive.file_name()?.to_str()?);
        let ours = || trace.lines().filter(|line| line.contains(&name));
        let control = |line: &str| {
            let hex = line.split("ctrl=0x").nth(1)?.split(',').next()?;
            u32::from_str_radix(hex, 16).ok()
        };
        let through = |line: &&str| {
            line.contains("nvme_cmd_write") && control(line).expect("its control bits") >> 14 & 1 == 1
        };
        let flushes = ours().filter(|line| line.contains("nvme_cmd_flush")).count() as u64;
        Some([flushes, ours().filter(through).count() as u64])
    }
}

/// One after the other: each acknowledgment waits for its own journal record. And many at once, which share flushes.
#[test]
fn what_is_acknowledged_was_made_durable_first() {
    const LONE: u64 = 20;
    for ground in grounds() {
        let dir = tempfile::tempdir().unwrap();
        let cluster = ground.start(dir.path());
        let counters = || {
            let report = cluster.report(1).counters;
            let names =
                ["flushes", "flush_commands", "flushes_spared", "fua_writes", "disk_writes", "batches"];
            names.map(|name| report.iter().find(|(found, _)| found == name).unwrap().1)
        };
        let since = |before: [u64; 6]| {
            let now = counters();
            std::array::from_fn::<u64, 6, _>(|at| now[at] - before[at])
        };
        with_client(&cluster, async |client| {
            client.write(HEAD, chunk(1, 0), 0, &pattern(1, BLOCK)).await.unwrap();
            let (trace, outer) = (Trace::new(), counters());
            trace.clear();
            let before = counters();
            for n in 0..LONE {
                client.write(HEAD, chunk(1, 1), 0, &pattern(n, BLOCK)).await.unwrap();
            }
            let [flushes, commands, spared, through, writes, batches] = since(before);
            if let Some(drive) = &ground.drive
                && let Some(seen) = trace.count(drive)
            {
                let [_, most, _, most_through, ..] = since(outer);
                println!("the kernel saw {seen:?} flushes and writes through");
                assert!(
                    commands <= seen[0] && seen[0] <= most,
                    "{commands} to {most} flushes, the kernel saw {seen:?}"
                );
                assert!(
                    through <= seen[1] && seen[1] <= most_through,
                    "{through} writes through, the kernel saw {seen:?}"
                );
            }
            println!(
                "{LONE} one after the other: {flushes} flushes, {commands} commands, {through} of {writes} writes through"
            );
            // The rule: a batch an update at least, and after each a flush, which is a command, or spared where all writes were durable. (One
            // that nobody waits for may be under way.)
            assert!(
                batches >= LONE && flushes >= LONE && flushes <= batches + 1,
                "{flushes} flushes of {batches} batches"
            );
            assert_eq!(flushes, commands + spared);
            match ground.way {
                // A lone update needs no flush: both its writes are written through. (Unless the drive has no cache to lose.)
                Choice::Passthrough => {
                    assert_eq!(commands, 0);
                    let volatile =
                        Namespace::find(ground.drive.as_ref().unwrap()).unwrap().has_volatile_cache();
                    assert_eq!(through, if volatile { writes } else { 0 });
                }
                _ => assert_eq!((commands, through), (flushes, 0)),
            }
            let before = counters();
            let many: Vec<Vec<u8>> = (0..64).map(|n| pattern(n, 4 * BLOCK)).collect();
            let many =
                many.iter().zip(0..).map(|(bytes, index)| client.write(HEAD, chunk(2, index), 0, bytes));
            for done in join(many.collect()).await {
                done.unwrap();
            }
            let [flushes, commands, spared, ..] = since(before);
            println!("64 at once: {flushes} flushes, {commands} commands");
            assert!(flushes > 0 && flushes < 64 && flushes == commands + spared);
        });
    }
}

/// Polls all to their ends.
async fn join<F: Future>(futures: Vec<F>) -> Vec<F::Output> {
    let mut futures: Vec<_> = futures.into_iter().map(Box::pin).collect();
    let mut results: Vec<Option<F::Output>> = futures.iter().map(|_| None).collect();
    std::future::poll_fn(|context| {
        for (future, result) in futures.iter_mut().zip(&mut results) {
            if result.is_none()
                && let std::task::Poll::Ready(value) = future.as_mut().poll(context)
            {
                *result = Some(value);
            }
        }
        if results.iter().all(Option::is_some) {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
    results.into_iter().flatten().collect()
}

/// Whoever sleeps is woken by what comes, and whoever has nothing to do sleeps.
#[test]
fn it_rests_and_wakes() {
    for ground in grounds() {
        let dir = tempfile::tempdir().unwrap();
        let cluster = ground.start(dir.path());
        with_client(&cluster, async |client| {
            client.write(HEAD, chunk(1, 0), 0, &pattern(1, CHUNK as usize)).await.unwrap();
            for n in 0..30 {
                client.node.sleep(Duration::from_millis(n % 7 * 3)).await;
                let at = (n % 16) as u32 * BLOCK as u32;
                client.read_settled(HEAD, chunk(1, 0), at, BLOCK as u32).await.unwrap();
            }
            let parks = cluster.counter(1, "ring_parks");
            client.node.sleep(Duration::from_millis(1500)).await;
            let turns = cluster.counter(1, "turns");
            client.node.sleep(Duration::from_millis(1500)).await;
            // Sealing the journal and the like come to an end; then it sleeps a second at a time.
            let more = cluster.counter(1, "turns") - turns;
            assert!(parks >= 10 && more < 20, "{ground}: {parks} rests, {more} turns while idle");
        });
    }
}

/// The disks of a shard by themselves: one slice that is the whole disk.
struct Alone {
    ring: Ring,
    disks: Disks,
    pool: Pool,
}

const ALONE: u64 = 32 << 20;

impl Alone {
    fn on(ground: &Ground, dir: &Path) -> Self {
        let path = ground.drive.clone().unwrap_or_else(|| dir.join("disk"));
        let mut ring = Ring::new(&RingConfig::default()).unwrap();
        let pool = Pool::new(16 << 20).unwrap();
        ring.register_pool(&pool);
        let mut disks = Disks::new(ground.way);
        let disk = disks.add(&mut ring, &pool, DiskFile::create(&path, ALONE).unwrap()).unwrap();
        disks.place(SliceIndex(0), disk, Extent { base: 1 << 20, bytes: ALONE - (1 << 20) });
        println!("on {ground}: {}", disks.way(disk));
        Self { ring, disks, pool }
    }

    /// Waits for so many completions.
    fn finish(&mut self, count: usize) -> Vec<Completion> {
        let (mut all, began) = (Vec::new(), Instant::now());
        while all.len() < count {
            assert!(began.elapsed() < PATIENCE, "{} of {count} after {PATIENCE:?}", all.len());
            let mut some = Vec::new();
            self.disks.gather(&mut self.ring, true, &mut (), &mut some).unwrap();
            some.iter().for_each(|done| self.disks.complete(Io::of(done.token), done));
            all.extend(some);
        }
        all
    }

    fn write(&mut self, part: u16, offset: u64, from: &Buffer) {
        let io = Io::Data { op: 1, part };
        // SAFETY: the caller keeps the buffer, unchanged, until it has waited for the completion.
        unsafe {
            self.disks.write(&mut self.ring, SliceIndex(0), offset, from.as_ptr(), from.len() as u32, io);
        }
    }

    fn read(&mut self, part: u16, offset: u64, to: &Buffer) {
        let io = Io::Read { op: 1, part };
        // SAFETY: the caller owns the only handle, and looks at the buffer only when it has waited for the completion.
        unsafe {
            self.disks.read(&mut self.ring, SliceIndex(0), offset, to.as_mut_ptr(), to.len() as u32, io);
        }
    }
}

/// From one block to more than any drive takes in a command, at odd places.
#[test]
fn transfers_of_any_size_come_back_whole() {
    for ground in grounds() {
        let dir = tempfile::tempdir().unwrap();
        let mut alone = Alone::on(&ground, dir.path());
        for (nth, blocks) in [1usize, 2, 31, 128, 129, 200, 512].into_iter().enumerate() {
            let (offset, bytes) = ((nth * 3 + 1) as u64 * BLOCK as u64, pattern(nth as u64, blocks * BLOCK));
            let mut buffer = alone.pool.get(bytes.len()).unwrap();
            buffer.get_mut().unwrap().copy_from_slice(&bytes);
            alone.write(0, offset, &buffer);
            assert_eq!(alone.finish(1)[0].result as usize, bytes.len(), "{ground}: writing {blocks}");
            alone.disks.flush(&mut alone.ring, DiskIndex(0), 0);
            assert_eq!(alone.finish(1)[0].result, 0);
            buffer.get_mut().unwrap().fill(0);
            alone.read(0, offset, &buffer);
            assert_eq!(alone.finish(1)[0].result as usize, bytes.len(), "{ground}: reading {blocks}");
            assert!(buffer.as_slice() == bytes, "{ground}: {blocks} blocks");
            let mut seen = vec![0; bytes.len()];
            alone.disks.blocking(DiskIndex(0)).unwrap().read_at((1 << 20) + offset, &mut seen).unwrap();
            assert!(seen == bytes, "{ground}: {blocks} blocks, read through the file");
        }
    }
}

/// More at once than any queue on the way has places for; each gets its own bytes.
#[test]
fn many_at_once_are_kept_apart() {
    const MANY: usize = 3000;
    for ground in grounds() {
        let dir = tempfile::tempdir().unwrap();
        let mut alone = Alone::on(&ground, dir.path());
        let bytes = pattern(5, 2 << 20);
        let mut whole = alone.pool.get(bytes.len()).unwrap();
        whole.get_mut().unwrap().copy_from_slice(&bytes);
        alone.write(0, 0, &whole);
        alone.finish(1);
        let buffers: Vec<Buffer> = (0..MANY).map(|_| alone.pool.get(BLOCK).unwrap()).collect();
        let place = |part: usize| part * 31 % (bytes.len() / BLOCK) * BLOCK;
        for (part, buffer) in buffers.iter().enumerate() {
            alone.read(part as u16, place(part) as u64, buffer);
        }
        let done = alone.finish(MANY);
        assert!(done.iter().all(|done| done.result == BLOCK as i32), "{ground}");
        for (part, buffer) in buffers.iter().enumerate() {
            assert!(buffer.as_slice() == &bytes[place(part)..place(part) + BLOCK], "{ground}: read {part}");
        }
    }
}

/// What a drive refuses is told in its own words, by its own number.
#[test]
fn a_drives_errors_keep_their_status() {
    for drive in drives() {
        let namespace = Namespace::find(&drive).unwrap();
        let mut disk = DiskFile::open(&drive).unwrap();
        let (pool, mut ring) = (Pool::new(1 << 20).unwrap(), DriveRing::new(8, Wakes::ByInterrupt).unwrap());
        let file = ring.add_file(namespace.fd());
        let buffer = pool.get(BLOCK).unwrap();
        let command = namespace.transfer(Transfer::Read, buffer.as_ptr(), BLOCK as u32, disk.bytes());
        let begun = ring.begin(Token::new(Source::DISK, 1), 0);
        // SAFETY: the command names the buffer, which has one owner and is kept until the completion.
        unsafe { ring.command(begun, file, OPERATION, command, (buffer.as_ptr(), BLOCK as u32)) };
        let (mut done, began) = (Vec::new(), Instant::now());
        while done.is_empty() && began.elapsed() < PATIENCE {
            ring.turn(&mut done).unwrap();
        }
        let status = drive_status(done[0].result).expect("the drive's own status");
        assert!(status_text(status).contains("block out of range"), "{}", status_text(status));
        assert!(disk.read_at(disk.bytes(), &mut [0; BLOCK]).is_err());
    }
}

/// Without its generic device, a drive is reached by the next best way.
#[test]
fn what_cannot_be_had_is_passed_over() {
    for drive in drives() {
        let generic = Namespace::find(&drive).unwrap().path().to_path_buf();
        let run = |program: &str, arguments: &[&Path]| {
            assert!(std::process::Command::new(program).args(arguments).status().unwrap().success());
        };
        run("mount", &["-o".as_ref(), "bind".as_ref(), "/dev/null".as_ref(), &generic]);
        let survey = Survey::of(&drive);
        let next = if survey.polled.is_ok() { Way::Polled } else { Way::Plain };
        let tried = try_ways(&drive).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let mut cluster = Cluster::start_on(dir.path(), SMALL, Some(&drive), Choice::Auto);
        let counts =
            ["disks_passthrough", "disks_polled", "disks_plain"].map(|name| cluster.counter(1, name));
        cluster.kill(1);
        cluster.way = Choice::Passthrough;
        let asked_for = cluster.restart(1);
        run("umount", &[&generic]);
        assert!(
            tried.iter().all(|(way, worked)| worked.is_ok() && !matches!(way, Way::Passthrough(_))),
            "{tried:?}"
        );
        assert_eq!(counts, if next == Way::Polled { [0, 1, 0] } else { [0, 0, 1] });
        let error = asked_for.unwrap_err();
        assert!(
            error.code == ErrorCode::BadConfig && error.message.contains("is not what the kernel calls so"),
            "{error}"
        );
        // With it, every way works that doctor shows.
        for (way, worked) in try_ways(&drive).unwrap() {
            assert!(worked.is_ok(), "{way}: {worked:?}");
        }
    }
}

/// For `ci/guest`, which pulls the plug while this writes: checks what earlier rounds were told, and writes on for ever.
#[test]
#[ignore = "ci/guest runs it, and ends it with the machine"]
fn writes_until_the_plug_is_pulled() {
    let drive = PathBuf::from(std::env::var("COREFS_TEST_DRIVES").expect("a drive"));
    let round: u64 = std::env::var("COREFS_TEST_ROUND").expect("which round it is").parse().unwrap();
    // Lines as they were printed below: what was acknowledged, in order.
    let known = std::fs::read_to_string("acknowledged").unwrap_or_default();
    let mut held = BTreeMap::new();
    for line in known.lines() {
        let mut words = line.split(' ').map(|word| word.parse::<u64>().expect("a number"));
        let mut next = || words.next().expect("three numbers");
        held.insert(next(), (next(), next()));
    }
    let dir = tempfile::tempdir().unwrap();
    let cluster = match round {
        0 => Cluster::start_on(dir.path(), SMALL, Some(&drive), Choice::Auto),
        _ => Cluster::continue_on(dir.path(), SMALL, &drive, Choice::Auto).expect("it recovers"),
    };
    assert_eq!(cluster.counter(1, "disks_passthrough"), 1);
    with_client(&cluster, async |client| {
        for (index, (version, seed)) in &held {
            let found = client.read_settled(HEAD, chunk(1, *index as u32), 0, CHUNK).await.unwrap();
            let lost =
                format!("chunk {index}: version {version} was acknowledged, {} is there", found.version);
            assert!(found.version >= *version, "{lost}");
            // A newer one was on its way when the plug was pulled: its bytes tell which.
            let told = if found.version == *version { *seed } else { seed_of(&found.data) };
            assert!(found.data == bytes_of(told), "chunk {index}, version {}: other bytes", found.version);
        }
        println!("\nverified {}", held.len());
        for n in 0.. {
            let some: Vec<u64> = (0..8).map(|nth| (n * 8 + nth) % 64).collect();
            let bytes: Vec<Vec<u8>> =
                some.iter().map(|index| bytes_of(round << 32 | n << 8 | index)).collect();
            let writes =
                some.iter().zip(&bytes).map(|(at, bytes)| client.write(HEAD, chunk(1, *at as u32), 0, bytes));
            for (index, done) in some.iter().zip(join(writes.collect()).await) {
                let version = done.unwrap().version.get();
                println!("acknowledged {index} {version} {}", round << 32 | n << 8 | index);
            }
        }
    });
}

/// Two blocks that begin with their seed.
fn bytes_of(seed: u64) -> Vec<u8> {
    let mut bytes = pattern(seed, 2 * BLOCK);
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    bytes
}

fn seed_of(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes[..8].try_into().unwrap())
}
