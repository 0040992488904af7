//! The directory of a cluster on one machine.
//!
//! ```text
//! DIR/cluster.toml   what was chosen when it was made (nodes, replicas, ports), and how many nodes were added since
//! DIR/secret         the cluster's secret, 64 hexadecimal digits, readable by its owner only
//! DIR/lock           held by the `corefs up` that runs on it
//! DIR/kv/            the embedded key-value store; empty where metadata is in FoundationDB
//! DIR/node-1/ ...    a storage node each: its identity and its disk
//! DIR/log/           a log for each role
//! DIR/run/           sockets
//! ```

use corefs_net::handshake::Secret;
use corefs_wire::{Error, ErrorCode, Result};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// What a cluster is made of; only the number of added nodes changes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    pub nodes: u32,
    pub cores: u32,
    pub replicas: u32,
    pub targets: u32,
    pub chunk_size: u32,
    /// Bytes of disk each node preallocates.
    pub capacity: u64,
    /// Address of the manager, stable over restarts because clients are told it.
    pub manager: String,
    /// Where metadata is, if not in the directory's embedded store: `fdb:CLUSTER_FILE#NAME`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv: Option<String>,
    /// Nodes that were added since it was made.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub added: u32,
    /// Directories of nodes that were removed since: `node-2` is 2.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub removed: Vec<u32>,
}

fn is_zero(value: &u32) -> bool {
    *value == 0
}

impl Shape {
    /// The nodes that run on this machine, by the numbers of their directories.
    pub fn running(&self) -> impl Iterator<Item = u32> {
        let all = 1..=self.nodes.saturating_add(self.added);
        all.filter(|node| !self.removed.contains(node))
    }
}

/// An opened and locked cluster directory.
pub struct Directory {
    root: PathBuf,
    /// DIR/run, held open: see [`Directory::kv_address`].
    run: File,
    // The lock lasts as long as this file is open, so the kernel gives it back however this process ends.
    _lock: File,
}

impl Directory {
    /// Opens or makes the directory and takes its lock.
    pub fn open(root: &Path) -> Result<Self> {
        let of = |error: std::io::Error| Error::from(error).of(root.display());
        let fresh = !root.exists();
        fs::DirBuilder::new().recursive(true).mode(0o700).create(root).map_err(of)?;
        let root = root.canonicalize().map_err(of)?;
        if !fresh && !root.join("cluster.toml").exists() {
            refuse_foreign(&root)?;
        }
        let lock = File::options().create(true).append(true).open(root.join("lock")).map_err(of)?;
        if let Err(error) = lock.try_lock() {
            let what = match error {
                fs::TryLockError::WouldBlock => "another corefs runs on this directory; stop it first".into(),
                fs::TryLockError::Error(error) => error.to_string(),
            };
            return Err(Error::new(ErrorCode::DirectoryInUse, format!("{}: {what}", root.display())));
        }
        for part in ["kv", "log", "run"] {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(root.join(part)).map_err(of)?;
        }
        let run = File::open(root.join("run")).map_err(of)?;
        Ok(Self { root, run, _lock: lock })
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn node(&self, number: u32) -> PathBuf {
        self.root.join(format!("node-{number}"))
    }

    pub fn kv(&self) -> PathBuf {
        self.root.join("kv")
    }

    pub fn log(&self, role: &str) -> PathBuf {
        self.root.join("log").join(format!("{role}.log"))
    }

    pub fn secret_file(&self) -> PathBuf {
        self.root.join("secret")
    }

    /// The socket of the embedded store. It stays where it is when the store is started again: its managers know no other. A path too
    /// long for a socket's 108 bytes is named by the directory that this process holds open, which lives as long as all of its roles.
    pub fn kv_address(&self) -> String {
        let path = self.root.join("run").join("kv.sock");
        if path.as_os_str().len() < 100 {
            return format!("unix:{}", path.display());
        }
        format!("unix:/proc/{}/fd/{}/kv.sock", std::process::id(), self.run.as_raw_fd())
    }

    /// The shape this cluster was made with, `None` for a new one.
    pub fn shape(&self) -> Result<Option<Shape>> {
        read_shape(&self.root)
    }

    /// Makes the cluster: secret first, shape last, so that a shape means that everything is there.
    pub fn create(&self, shape: &Shape) -> Result<()> {
        write_synced(&self.secret_file(), Secret::generate()?.to_hex().as_bytes(), 0o600)?;
        write_shape(&self.root, shape)
    }
}

fn write_shape(root: &Path, shape: &Shape) -> Result<()> {
    let text = toml::to_string(shape).map_err(|error| Error::new(ErrorCode::Internal, error.to_string()))?;
    let text =
        format!("# Made by `corefs up`; what a cluster is made of can't be changed by editing.\n{text}");
    write_synced(&root.join("cluster.toml"), text.as_bytes(), 0o644)
}

/// Writes down that the cluster in `root` has one node more, which the `corefs up` that runs on it then starts. `manager` is the
/// cluster that the caller talks to. The number of the node's directory.
///
/// Errors: `BadConfig` if no cluster is there, or another one; `NotReady` if no `corefs up` runs on it; `NoSpace`.
pub fn add_node(root: &Path, manager: &str) -> Result<u32> {
    change(root, manager, |shape| {
        has_room(root, shape)?;
        shape.added += 1;
        Ok(shape.nodes + shape.added)
    })
}

/// Whether another node could be added, as far as that can be seen without changing anything: the errors are those of [`add_node`].
pub fn room_for_node(root: &Path, manager: &str) -> Result<Shape> {
    let shape = read_shape_of(root, manager)?;
    has_room(root, &shape)?;
    Ok(shape)
}

fn has_room(root: &Path, shape: &Shape) -> Result<()> {
    let free = crate::cluster::free_space(root)?;
    if shape.capacity <= free {
        return Ok(());
    }
    let what = format!("{}: a node needs {} bytes, {free} are free", root.display(), shape.capacity);
    Err(Error::new(ErrorCode::NoSpace, what))
}

/// What the cluster in `root` is made of now. Errors: those of [`add_node`] but `NoSpace`.
pub fn running_shape(root: &Path, manager: &str) -> Result<Shape> {
    read_shape_of(root, manager)
}

/// Writes down that the cluster in `root` hasn't that node any more, which the `corefs up` that runs on it then stops. `node` is the
/// number that the manager knows it by. Where its directory is; also if that was written down before. Errors: as for [`add_node`], and
/// `InvalidArgument` if the node isn't here.
pub fn remove_node(root: &Path, manager: &str, node: u32) -> Result<PathBuf> {
    change(root, manager, |shape| {
        let path = |number: u32| root.join(format!("node-{number}"));
        let is_it = |number: &u32| {
            corefs_engine::server::home::node_of(&path(*number)) == Some(corefs_wire::NodeId(node))
        };
        let found = shape.running().find(is_it);
        if let Some(number) = found {
            shape.removed.push(number);
            return Ok(path(number));
        }
        // The same command was given before, and didn't come to its end.
        shape.removed.iter().find(|number| is_it(number)).map(|number| path(*number)).ok_or_else(|| {
            let what = format!(
                "{}: node-{node} isn't one of this directory; one that is stopped is removed without --dir",
                root.display()
            );
            Error::new(ErrorCode::InvalidArgument, what)
        })
    })
}

/// Changes which nodes the running `corefs up` of a directory has.
fn change<T>(root: &Path, manager: &str, change: impl FnOnce(&mut Shape) -> Result<T>) -> Result<T> {
    read_shape_of(root, manager)?;
    // Two of us at once would write the same number.
    let turn = root.join("run").join("nodes");
    let turn = File::options().create(true).append(true).open(&turn).map_err(Error::from)?;
    turn.lock().map_err(|error| Error::from(error).of(root.display()))?;
    let mut shape = read_shape_of(root, manager)?;
    let value = change(&mut shape)?;
    write_shape(root, &shape)?;
    Ok(value)
}

/// The shape of a directory whose cluster has that manager, and on which `corefs up` runs.
fn read_shape_of(root: &Path, manager: &str) -> Result<Shape> {
    let bad = |code, what: String| Error::new(code, format!("{}: {what}", root.display()));
    let Some(shape) = read_shape(root)? else {
        return Err(bad(ErrorCode::BadConfig, "no cluster of `corefs up` is here".into()));
    };
    if shape.manager != manager {
        let what = format!("the manager of this cluster is {}, not {manager}; give --manager", shape.manager);
        return Err(bad(ErrorCode::BadConfig, what));
    }
    let lock = File::options().append(true).open(root.join("lock")).map_err(Error::from)?;
    if lock.try_lock().is_ok() {
        let what = "no `corefs up` runs on this directory; start it first";
        return Err(bad(ErrorCode::NotReady, what.into()));
    }
    Ok(shape)
}

/// The shape of the cluster in `root`, without locking it.
pub fn read_shape(root: &Path) -> Result<Option<Shape>> {
    let path = root.join("cluster.toml");
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::from(error).of(path.display())),
    };
    let shape = toml::from_str(&text);
    shape.map(Some).map_err(|error| Error::new(ErrorCode::BadConfig, format!("{}: {error}", path.display())))
}

/// The secret in a file, as [`Secret::to_hex`] writes it.
pub fn read_secret(path: &Path) -> Result<Secret> {
    let text = fs::read_to_string(path).map_err(|error| Error::from(error).of(path.display()))?;
    let bad =
        || Error::new(ErrorCode::BadConfig, format!("{}: a secret is 64 hexadecimal digits", path.display()));
    Secret::parse(&text).ok_or_else(bad)
}

/// A directory that holds something, but no cluster, is somebody else's.
fn refuse_foreign(root: &Path) -> Result<()> {
    let known = ["lock", "kv", "log", "run", "secret"];
    for entry in fs::read_dir(root).map_err(|error| Error::from(error).of(root.display()))? {
        let name = entry?.file_name();
        if !known.iter().any(|known| name == *known) {
            let what =
                format!("{} holds {name:?} and no cluster; name an empty or new directory", root.display());
            return Err(Error::new(ErrorCode::DirectoryInUse, what));
        }
    }
    Ok(())
}

/// Replaces a small file so that after a power cut either the old or the new one is there, whole.
fn write_synced(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let of = |error: std::io::Error| Error::from(error).of(path.display());
    let part = path.with_extension("part");
    let mut file =
        File::options().create(true).write(true).truncate(true).mode(mode).open(&part).map_err(of)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(of)?;
    fs::rename(&part, path).map_err(of)?;
    let parent = path.parent().unwrap_or(Path::new("."));
    File::open(parent).and_then(|dir| dir.sync_all()).map_err(of)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_made_once_locked_and_never_taken_from_others() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("cluster");
        let directory = Directory::open(&root).unwrap();
        assert_eq!(directory.shape().unwrap(), None);
        let manager = "127.0.0.1:1".into();
        let shape = Shape {
            nodes: 3,
            cores: 2,
            replicas: 3,
            targets: 32,
            chunk_size: 65536,
            capacity: 1 << 30,
            manager,
            kv: None,
            added: 0,
            removed: vec![],
        };
        directory.create(&shape).unwrap();
        assert_eq!(directory.shape().unwrap(), Some(shape));
        assert!(read_secret(&directory.secret_file()).is_ok());
        assert_eq!(Directory::open(&root).err().map(|error| error.code), Some(ErrorCode::DirectoryInUse));
        drop(directory);
        assert!(Directory::open(&root).is_ok());

        std::fs::write(dir.path().join("thesis.tex"), "").unwrap();
        let error = Directory::open(dir.path()).err().unwrap();
        assert!(error.message.contains("thesis.tex"), "{error}");
    }

    #[test]
    fn a_long_path_has_a_socket_that_stays() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("long".repeat(40));
        let directory = Directory::open(&root).unwrap();
        let address = directory.kv_address();
        let path = address.strip_prefix("unix:").unwrap();
        assert!(path.len() < 100 && address.parse::<corefs_net::Address>().is_ok(), "{address}");
        let _listener = std::os::unix::net::UnixListener::bind(path).unwrap();
        assert!(root.join("run/kv.sock").exists());
        assert_eq!(directory.kv_address(), address);
    }

    #[test]
    fn a_node_is_removed_again_by_the_same_command() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("cluster");
        let directory = Directory::open(&root).unwrap();
        let manager = "127.0.0.1:1";
        let shape = Shape {
            nodes: 2,
            cores: 1,
            replicas: 1,
            targets: 32,
            chunk_size: 65536,
            capacity: 1 << 30,
            manager: manager.into(),
            kv: None,
            added: 0,
            removed: vec![],
        };
        directory.create(&shape).unwrap();
        let plan = corefs_engine::server::home::Plan { disks: &[], capacity: 64 << 20, cores: 1 };
        let mut home = corefs_engine::server::home::Home::open(&directory.node(2), &plan).unwrap();
        home.join(corefs_wire::NodeId(7), corefs_wire::Uuid([3; 16])).unwrap();
        for _ in 0..2 {
            assert_eq!(remove_node(&root, manager, 7).unwrap(), root.join("node-2"));
            assert_eq!(read_shape(&root).unwrap().unwrap().removed, [2]);
        }
        assert_eq!(remove_node(&root, manager, 8).unwrap_err().code, ErrorCode::InvalidArgument);
    }
}
