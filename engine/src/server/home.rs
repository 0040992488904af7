//! A node's directory: who the node is, which disks it has, and the lock that keeps others out.
//!
//! ```text
//! DIR/lock        locked while a process serves the node
//! DIR/node.toml   node, cluster, disks and the names of their slices' stores
//! DIR/disk-0      the disk, unless others are named
//! DIR/disk.add    a disk that the running process is to take into use (see [`request`])
//! DIR/disk.failed why it couldn't
//! ```
//! The stores are named before anybody hears of them, so that a start that was cut off goes on where it was:
//! planned -> registered -> formatted.

use crate::disk::BlockingDisk;
use crate::disk::file::{DiskFile, lock};
use crate::disk::open::Extent;
use crate::store::format::SLICE_BYTES_MIN;
use corefs_wire::limits::{BLOCK, SLICES_MAX};
use corefs_wire::{Error, ErrorCode, NodeId, Result, SliceIndex, Uuid};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// The version of `node.toml`.
const VERSION: u32 = 1;
/// Slices of a disk for each core, so that they can be spread anew over more cores later.
const SLICES_PER_CORE: usize = 4;
/// Fewest slices of a disk.
const SLICES_MIN: usize = 8;

/// `node.toml`.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
#[serde(deny_unknown_fields)]
struct Record {
    version: u32,
    /// 0 until a manager has given a number.
    node: u32,
    /// Empty until a manager has told.
    cluster: String,
    formatted: bool,
    disks: Vec<DiskRecord>,
}

#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
#[serde(deny_unknown_fields)]
struct DiskRecord {
    /// Relative to the directory unless absolute.
    path: PathBuf,
    /// Bytes.
    size: u64,
    /// Of each slice, in order: equal parts of the disk.
    stores: Vec<String>,
    /// Added to a node that was formatted before, and not formatted yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    fresh: bool,
}

/// What a new node is to be made of.
pub struct Plan<'a> {
    /// Files or block devices; none: one file in the directory.
    pub disks: &'a [PathBuf],
    /// Bytes of each disk.
    pub capacity: u64,
    pub cores: usize,
}

/// A slice of the node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HomeSlice {
    pub index: SliceIndex,
    /// Position of its disk.
    pub disk: usize,
    pub extent: Extent,
    pub store: Uuid,
}

/// The opened and locked directory.
#[derive(Debug)]
pub struct Home {
    dir: PathBuf,
    record: Record,
    _lock: File,
}

impl Home {
    /// Opens the node's directory or plans a new node in it. `DirectoryInUse` if another process has it or it holds something
    /// else, `BadConfig` for a plan that can't be, `BadFormat` for a `node.toml` that can't be read.
    pub fn open(dir: &Path, plan: &Plan<'_>) -> Result<Self> {
        std::fs::create_dir_all(dir).map_err(|error| Error::from(error).of(dir.display()))?;
        let path = dir.join("node.toml");
        let known = path.exists();
        if !known {
            refuse_strangers(dir)?;
        }
        File::create(dir.join("lock")).map_err(|error| Error::from(error).of(dir.display()))?;
        let lock = lock(&dir.join("lock"))?;
        let record = if known { read(&path)? } else { planned(plan)? };
        let home = Self { dir: dir.to_path_buf(), record, _lock: lock };
        if !known {
            home.save()?;
        }
        Ok(home)
    }

    /// `None` for a node that has no number yet.
    pub fn node(&self) -> Option<NodeId> {
        (self.record.node != 0).then_some(NodeId(self.record.node))
    }

    /// NIL until a manager has told.
    pub fn cluster(&self) -> Uuid {
        Uuid::parse(&self.record.cluster).unwrap_or(Uuid::NIL)
    }

    pub fn is_formatted(&self) -> bool {
        self.record.formatted
    }

    /// A manager has said who we are. `WrongCluster` if we are of another cluster already.
    pub fn join(&mut self, node: NodeId, cluster: Uuid) -> Result<()> {
        let ours = self.cluster();
        if ours != Uuid::NIL && ours != cluster {
            let what = format!(
                "{} belongs to cluster {ours}, the manager to {cluster}: name that cluster's manager, or an empty \
                 directory to join this one",
                self.dir.display()
            );
            return Err(Error::new(ErrorCode::WrongCluster, what));
        }
        if self.node().is_some_and(|ours| ours != node) {
            let (ours, theirs) = (self.record.node.into(), node.0.into());
            return Err(Error::mismatch(ErrorCode::NodeConflict, ours, theirs, "the node's number changed"));
        }
        (self.record.node, self.record.cluster) = (node.0, cluster.to_string());
        self.save()
    }

    /// All slices hold stores now, but those of disks that aren't `there`.
    pub fn formatted(&mut self, there: impl Fn(usize) -> bool) -> Result<()> {
        let before = self.record.clone();
        self.record.formatted = true;
        for (_, disk) in self.record.disks.iter_mut().enumerate().filter(|(at, _)| there(*at)) {
            disk.fresh = false;
        }
        if self.record == before { Ok(()) } else { self.save() }
    }

    /// Whether the slices of a disk hold no stores yet.
    pub fn is_fresh(&self, disk: usize) -> bool {
        !self.record.formatted || self.record.disks.get(disk).is_some_and(|disk| disk.fresh)
    }

    /// Opens the disks, making the files of those that aren't formatted. `None` for one that can't be opened while others can: the node serves
    /// without it. Errors are those of [`DiskFile`], and `BadFormat` for one that became smaller.
    pub fn open_disks(&self) -> Result<Vec<Option<DiskFile>>> {
        let opened: Vec<Result<DiskFile>> =
            (0..self.record.disks.len()).map(|at| self.open_disk(at)).collect();
        let any = opened.iter().any(Result::is_ok);
        let tolerate = |opened: Result<DiskFile>| match opened {
            // One that is taken by another process is a mistake of people, not a lost disk.
            Err(error) if any && self.record.formatted && error.code != ErrorCode::DirectoryInUse => {
                tracing::error!(%error, "a disk can't be opened: the node serves without it");
                Ok(None)
            }
            other => other.map(Some),
        };
        opened.into_iter().map(tolerate).collect()
    }

    /// The disks as they are, for who only looks: `None` for one that holds no stores yet, which isn't made either. Errors as above.
    pub fn formatted_disks(&self) -> Vec<Option<Result<DiskFile>>> {
        let one = |at: usize| (!self.is_fresh(at)).then(|| self.open_formatted(at));
        (0..self.record.disks.len()).map(one).collect()
    }

    /// Opens one disk.
    fn open_disk(&self, at: usize) -> Result<DiskFile> {
        if !self.is_fresh(at) {
            return self.open_formatted(at);
        }
        let disk = &self.record.disks[at];
        DiskFile::create(&self.dir.join(&disk.path), disk.size)
    }

    fn open_formatted(&self, at: usize) -> Result<DiskFile> {
        let disk = &self.record.disks[at];
        let path = self.dir.join(&disk.path);
        let file = DiskFile::open(&path)?;
        if file.bytes() < disk.size {
            let what = format!("{} is smaller than it was; bring back the whole disk", path.display());
            return Err(Error::mismatch(ErrorCode::BadFormat, disk.size, file.bytes(), what));
        }
        Ok(file)
    }

    /// Takes a further disk into the node, behind those it has: made or checked, named, not formatted yet. Its position, and the disk.
    /// `Exists` for one that the node has, `BadConfig` if it is too small or the node has too many slices; those of [`DiskFile::create`].
    pub fn add_disk(&mut self, path: &Path, size: u64) -> Result<(usize, DiskFile)> {
        if self.record.disks.iter().any(|disk| self.dir.join(&disk.path) == self.dir.join(path)) {
            return Err(Error::new(ErrorCode::Exists, format!("{} is a disk of this node", path.display())));
        }
        let slices = self.record.disks[0].stores.len();
        let all = self.slices().len() + slices;
        if all > SLICES_MAX {
            let what = "the node has too many slices for another disk";
            return Err(Error::mismatch(ErrorCode::BadConfig, SLICES_MAX as u64, all as u64, what));
        }
        let size = size / BLOCK as u64 * BLOCK as u64;
        if slice_bytes(size, slices) < SLICE_BYTES_MIN {
            let least = SLICE_BYTES_MIN * slices as u64;
            let what = format!("a disk of this node has {slices} slices; give it at least {least} bytes");
            return Err(Error::mismatch(ErrorCode::BadConfig, least, size, what));
        }
        let file = DiskFile::create(&self.dir.join(path), size)?;
        let stores: Result<Vec<String>> = (0..slices).map(|_| fresh_uuid()).collect();
        self.record.disks.push(DiskRecord { path: path.to_path_buf(), size, stores: stores?, fresh: true });
        self.save()?;
        Ok((self.record.disks.len() - 1, file))
    }

    /// The disk that was added last, at `position`, couldn't be formatted: it is no disk of the node. Managers haven't heard of it. They
    /// have of others that are fresh (one that was added before a start, and wasn't there then), and count slices by their order.
    pub fn forget_fresh_disk(&mut self, position: usize) -> Result<()> {
        let last = position + 1 == self.record.disks.len();
        if last && self.record.disks.pop_if(|disk| disk.fresh).is_some() { self.save() } else { Ok(()) }
    }

    /// The disk that people want this node to take, as [`request`] wrote it down.
    pub fn requested(&self) -> Option<Result<Request>> {
        let path = self.dir.join(REQUEST);
        let text = std::fs::read_to_string(&path).ok()?;
        let read = toml::from_str(&text).map_err(|error| bad(&path, &error.to_string()));
        Some(read)
    }

    /// What became of it; it isn't wanted any more.
    pub fn answer_request(&self, outcome: &Result<()>) -> Result<()> {
        if let Err(error) = outcome {
            std::fs::write(self.dir.join(FAILED), &error.message).map_err(Error::from)?;
        }
        std::fs::remove_file(self.dir.join(REQUEST)).map_err(Error::from)
    }

    pub fn slices(&self) -> Vec<HomeSlice> {
        let mut slices = Vec::new();
        for (disk, record) in self.record.disks.iter().enumerate() {
            let bytes = slice_bytes(record.size, record.stores.len());
            for (position, store) in record.stores.iter().enumerate() {
                slices.push(HomeSlice {
                    index: SliceIndex(slices.len() as u16),
                    disk,
                    extent: Extent { base: position as u64 * bytes, bytes },
                    store: Uuid::parse(store).unwrap_or(Uuid::NIL),
                });
            }
        }
        slices
    }

    /// Replaces `node.toml` as a whole, durably.
    fn save(&self) -> Result<()> {
        let at = |error: std::io::Error| Error::from(error).of(self.dir.display());
        let text = toml::to_string(&self.record).map_err(|error| bad(&self.dir, &error.to_string()))?;
        let (path, fresh) = (self.dir.join("node.toml"), self.dir.join("node.toml.new"));
        let mut file = File::create(&fresh).map_err(at)?;
        let head = "# Made by corefs: who this node is. What stands here can't be changed by editing.\n";
        file.write_all(head.as_bytes()).and_then(|()| file.write_all(text.as_bytes())).map_err(at)?;
        file.sync_all().map_err(at)?;
        std::fs::rename(fresh, path).map_err(at)?;
        File::open(&self.dir).and_then(|dir| dir.sync_all()).map_err(at)
    }
}

const REQUEST: &str = "disk.add";
const FAILED: &str = "disk.failed";

/// A disk that a node is to take into use.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Relative to the node's directory unless absolute.
    pub path: PathBuf,
    /// Bytes.
    pub size: u64,
}

/// Asks the process that serves the node in `dir` to take a disk. Through a file: whoever may write into the directory may ask, nobody
/// who can merely reach the process. It looks there about once a second.
pub fn request(dir: &Path, wanted: &Request) -> Result<()> {
    let at = |error: std::io::Error| Error::from(error).of(dir.display());
    let text = toml::to_string(wanted).map_err(|error| bad(dir, &error.to_string()))?;
    let _none_before = std::fs::remove_file(dir.join(FAILED));
    let fresh = dir.join("disk.add.new");
    std::fs::write(&fresh, text).map_err(at)?;
    std::fs::rename(fresh, dir.join(REQUEST)).map_err(at)
}

/// What became of a request: `None` while nobody has looked at it.
pub fn answer(dir: &Path) -> Option<Result<()>> {
    if dir.join(REQUEST).exists() {
        return None;
    }
    match std::fs::read_to_string(dir.join(FAILED)) {
        Ok(why) => Some(Err(Error::new(ErrorCode::BadConfig, why))),
        Err(_) => Some(Ok(())),
    }
}

/// Nobody is to look at a request any more.
pub fn withdraw(dir: &Path) {
    let _gone = std::fs::remove_file(dir.join(REQUEST));
}

/// A disk of a node, for people.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DiskInfo {
    pub path: PathBuf,
    pub bytes: u64,
    /// Its slices.
    pub slices: std::ops::Range<u16>,
}

/// The disks of the node in `dir`, whether or not it runs. `BadFormat` if no node is there.
pub fn disks_of(dir: &Path) -> Result<Vec<DiskInfo>> {
    let record = read(&dir.join("node.toml"))?;
    let mut first = 0u16;
    let one = |disk: &DiskRecord| {
        let slices = first..first + disk.stores.len() as u16;
        first = slices.end;
        DiskInfo { path: dir.join(&disk.path), bytes: disk.size, slices }
    };
    Ok(record.disks.iter().map(one).collect())
}

/// The number of the node whose directory this is. `None` if it has none yet, or isn't one.
pub fn node_of(dir: &Path) -> Option<NodeId> {
    let record = read(&dir.join("node.toml")).ok()?;
    (record.node != 0).then_some(NodeId(record.node))
}

fn bad(path: &Path, what: &str) -> Error {
    Error::new(ErrorCode::BadFormat, format!("{}: {what}", path.display()))
}

/// A directory that holds something, but no node, is somebody else's.
fn refuse_strangers(dir: &Path) -> Result<()> {
    let entries = std::fs::read_dir(dir).map_err(|error| Error::from(error).of(dir.display()))?;
    for entry in entries.flatten() {
        let name = entry.file_name();
        let ours = ["lock", "node.toml.new"].iter().any(|ours| name == *ours);
        if !ours {
            let what =
                format!("{} holds {name:?} and no node; name an empty or new directory", dir.display());
            return Err(Error::new(ErrorCode::DirectoryInUse, what));
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<Record> {
    let text = std::fs::read_to_string(path).map_err(|error| Error::from(error).of(path.display()))?;
    let record: Record = toml::from_str(&text).map_err(|error| bad(path, &error.to_string()))?;
    if record.version != VERSION {
        let what = format!("{} was made by another version of corefs", path.display());
        return Err(Error::mismatch(ErrorCode::BadFormat, VERSION.into(), record.version.into(), what));
    }
    let stores = record.disks.iter().flat_map(|disk| &disk.stores);
    let sound = stores.clone().all(|store| Uuid::parse(store).is_some());
    let cluster = record.cluster.is_empty() || Uuid::parse(&record.cluster).is_some();
    let count = stores.count();
    let sizes = record
        .disks
        .iter()
        .all(|disk| !disk.stores.is_empty() && slice_bytes(disk.size, disk.stores.len()) >= SLICE_BYTES_MIN);
    if !sound || !cluster || !sizes || count == 0 || count > SLICES_MAX {
        return Err(bad(path, "it names impossible disks, stores or clusters"));
    }
    Ok(record)
}

fn planned(plan: &Plan<'_>) -> Result<Record> {
    let default = [PathBuf::from("disk-0")];
    let paths = if plan.disks.is_empty() { &default[..] } else { plan.disks };
    let slices = (plan.cores * SLICES_PER_CORE).max(SLICES_MIN);
    if slices * paths.len() > SLICES_MAX {
        let (most, found) = (SLICES_MAX as u64, (slices * paths.len()) as u64);
        return Err(Error::mismatch(ErrorCode::BadConfig, most, found, "too many slices: name fewer disks"));
    }
    let size = plan.capacity / BLOCK as u64 * BLOCK as u64;
    if slice_bytes(size, slices) < SLICE_BYTES_MIN {
        let least = SLICE_BYTES_MIN * slices as u64;
        let what =
            format!("a disk for {} cores has {slices} slices; give it at least {least} bytes", plan.cores);
        return Err(Error::mismatch(ErrorCode::BadConfig, least, plan.capacity, what));
    }
    let mut disks = Vec::new();
    for path in paths {
        let stores: Result<Vec<String>> = (0..slices).map(|_| fresh_uuid()).collect();
        disks.push(DiskRecord { path: path.clone(), size, stores: stores?, fresh: false });
    }
    Ok(Record { version: VERSION, node: 0, cluster: String::new(), formatted: false, disks })
}

fn fresh_uuid() -> Result<String> {
    let random = corefs_net::handshake::random()?;
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&random[..16]);
    Ok(Uuid(bytes).to_string())
}

fn slice_bytes(size: u64, slices: usize) -> u64 {
    size / slices.max(1) as u64 / BLOCK as u64 * BLOCK as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: Uuid = Uuid([3; 16]);

    fn plan(capacity: u64) -> Plan<'static> {
        Plan { disks: &[], capacity, cores: 2 }
    }

    #[test]
    fn a_node_stays_who_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node");
        let mut home = Home::open(&path, &plan(64 << 20)).unwrap();
        assert_eq!((home.node(), home.cluster(), home.slices().len()), (None, Uuid::NIL, 8));
        assert_eq!(Home::open(&path, &plan(64 << 20)).unwrap_err().code, ErrorCode::DirectoryInUse);
        let slices = home.slices();
        home.join(NodeId(4), CLUSTER).unwrap();
        assert_eq!(home.open_disks().unwrap()[0].as_ref().unwrap().bytes(), 64 << 20);
        home.formatted(|_| true).unwrap();
        drop(home);
        // The plan is for new nodes only.
        let mut home = Home::open(&path, &plan(0)).unwrap();
        assert_eq!((home.node(), home.cluster(), home.is_formatted()), (Some(NodeId(4)), CLUSTER, true));
        assert_eq!(home.slices(), slices);
        assert_eq!(home.join(NodeId(4), Uuid([9; 16])).unwrap_err().code, ErrorCode::WrongCluster);
        assert_eq!(home.join(NodeId(5), CLUSTER).unwrap_err().code, ErrorCode::NodeConflict);
        // One that came and couldn't be formatted stays fresh, and is served without; one that is lost, too.
        let more = dir.path().join("more");
        home.add_disk(&more, 64 << 20).unwrap();
        assert_eq!(home.add_disk(&more, 64 << 20).unwrap_err().code, ErrorCode::Exists);
        assert_eq!(home.add_disk(&dir.path().join("small"), 1 << 20).unwrap_err().code, ErrorCode::BadConfig);
        assert_eq!((home.slices().len(), home.slices()[8].disk), (16, 1));
        std::fs::remove_file(&more).unwrap();
        std::fs::create_dir(&more).unwrap();
        let there: Vec<bool> = home.open_disks().unwrap().iter().map(Option::is_some).collect();
        assert_eq!(there, [true, false]);
        home.formatted(|disk| there[disk]).unwrap();
        assert!(home.is_fresh(1) && !home.is_fresh(0));
        // The managers know that one by now. Another one that can't be formatted is forgotten alone.
        let (both, third) = (home.slices(), dir.path().join("third"));
        assert_eq!(home.add_disk(&third, 64 << 20).unwrap().0, 2);
        home.forget_fresh_disk(1).unwrap();
        assert_eq!(home.slices().len(), 24);
        home.forget_fresh_disk(2).unwrap();
        assert_eq!(home.slices(), both);
        home.formatted(|_| true).unwrap();
        home.forget_fresh_disk(1).unwrap();
        assert_eq!(home.slices(), both);
        // Who only looks makes nothing, and hears of each disk that can't be opened.
        home.add_disk(&dir.path().join("fourth"), 64 << 20).unwrap();
        std::fs::remove_file(dir.path().join("fourth")).unwrap();
        let looked = home.formatted_disks();
        assert!(matches!(&looked[..], [Some(Ok(_)), Some(Err(_)), None]), "{looked:?}");
        assert!(!dir.path().join("fourth").exists());
        drop(looked);
        home.forget_fresh_disk(2).unwrap();
        let file = std::fs::OpenOptions::new().write(true).open(path.join("disk-0")).unwrap();
        file.set_len(1 << 20).unwrap();
        assert_eq!(home.open_disks().unwrap_err().code, ErrorCode::BadFormat);
    }

    #[test]
    fn refuses_what_is_not_a_node_and_what_cannot_be() {
        let dir = tempfile::tempdir().unwrap();
        let code = |dir: &Path, plan: &Plan<'_>| Home::open(dir, plan).map(drop).unwrap_err().code;
        assert_eq!(code(&dir.path().join("small"), &plan(1 << 20)), ErrorCode::BadConfig);
        let many = Plan { cores: 256, ..plan(1 << 40) };
        assert_eq!(Home::open(&dir.path().join("many"), &many).unwrap().slices().len(), 1024);
        std::fs::write(dir.path().join("diary"), "dear diary").unwrap();
        assert_eq!(code(dir.path(), &plan(1 << 30)), ErrorCode::DirectoryInUse);
        for text in ["", "version = 1", "version = 7\nnode = 1\ncluster = ''\nformatted = true\ndisks = []"] {
            std::fs::write(dir.path().join("node.toml"), text).unwrap();
            assert_eq!(code(dir.path(), &plan(1 << 30)), ErrorCode::BadFormat);
        }
    }
}
