//! Mounting and unmounting, and what can be wrong with either.

use crate::consistency::Consistency;
use crate::fs::CoreFs;
use crate::notices;
use corefs_client::ClientPool;
use corefs_wire::{Error, ErrorCode, Result};
use fuser::{BackgroundSession, Config, MountOption, Session, SessionACL};
use std::path::{Path, PathBuf};

/// How a mount behaves.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// Threads that take requests from the kernel.
    pub threads: usize,
    pub read_only: bool,
    /// Advisory locks count among this mount's programs only, and cost nothing.
    pub local_locks: bool,
    pub consistency: Consistency,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self { threads: 2, read_only: false, local_locks: false, consistency: Consistency::default() }
    }
}

/// A mounted file system. Dropping it unmounts.
pub struct Mounted {
    session: BackgroundSession,
    path: PathBuf,
}

/// Mounts at `path`, an existing directory. `NotFound`, `NotDirectory`; `Os` when FUSE can't be used here, saying why.
pub fn mount(pool: ClientPool, path: &Path, options: &MountOptions) -> Result<Mounted> {
    check(path)?;
    if pool.shards() != 1 {
        let what = "a mount is served by one client shard: see `handles`";
        return Err(Error::mismatch(ErrorCode::BadConfig, 1, pool.shards() as u64, what));
    }
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName("corefs".into()),
        MountOption::Subtype("corefs".into()),
        MountOption::DefaultPermissions,
        if options.read_only { MountOption::RO } else { MountOption::RW },
    ];
    // Only root may show a mount to other users without the system's consent (fuse.conf).
    // SAFETY: geteuid has no preconditions.
    config.acl = if unsafe { libc::geteuid() } == 0 { SessionACL::All } else { SessionACL::Owner };
    config.n_threads = Some(options.threads.max(1));
    config.clone_fd = options.threads > 1;
    let why = |error: std::io::Error| {
        let remedy = match error.kind() {
            std::io::ErrorKind::PermissionDenied => {
                "; mounting needs root, or fusermount3 from the package fuse3"
            }
            std::io::ErrorKind::NotFound => "; is fusermount3 (package fuse3) installed?",
            _ => "",
        };
        Error::new(ErrorCode::Os, format!("mounting at {}: {error}{remedy}", path.display()))
    };
    let file_system = CoreFs::new(pool.clone(), options.local_locks, options.consistency);
    let session = Session::new(file_system, path, &config).map_err(why)?;
    notices::start(&pool, session.notifier())?;
    if options.consistency.remembers() {
        pool.run(0, |client| async move { client.remember() })?;
    }
    let session = session.spawn().map_err(why)?;
    Ok(Mounted { session, path: path.to_owned() })
}

impl Mounted {
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether somebody else (umount(8)) has ended it.
    pub fn ended(&self) -> bool {
        self.session.guard.is_finished()
    }

    /// Unmounts and waits until every request is answered.
    pub fn unmount(self) -> Result<()> {
        let of = |error: std::io::Error| Error::from(error).of(format!("unmounting {}", self.path.display()));
        if self.session.guard.is_finished() {
            return self.session.join().map_err(of);
        }
        // Also lets go of a mount that somebody stands in: it vanishes from the tree, and ends with its last user.
        unmount(&self.path)?;
        self.session.join().map_err(of)
    }
}

/// What is asked of a mount point, before the kernel is.
fn check(path: &Path) -> Result<()> {
    let at = path.display();
    if !Path::new("/dev/fuse").exists() {
        let what =
            "there is no /dev/fuse: load the kernel module `fuse`, or pass the device to this container";
        return Err(Error::new(ErrorCode::Os, what));
    }
    match std::fs::metadata(path) {
        Ok(meta) if meta.is_dir() => Ok(()),
        Ok(_) => Err(Error::new(ErrorCode::NotDirectory, format!("{at} is not a directory"))),
        Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => {
            let what = format!("{at} is a mount whose process is gone; run `corefs umount {at}` first");
            Err(Error::new(ErrorCode::Os, what))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(Error::new(ErrorCode::NotFound, format!("{at} does not exist; make the directory first")))
        }
        Err(error) => Err(Error::from(error).of(at)),
    }
}

/// Unmounts whatever corefs has mounted at `path`, also when its process is gone. Lazily (umount2(2), MNT_DETACH), so
/// that a shell standing in it doesn't keep it.
pub fn unmount(path: &Path) -> Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let name = std::ffi::CString::new(path.as_os_str().as_bytes())
        .map_err(|_| Error::new(ErrorCode::InvalidName, "a path can't contain a NUL byte"))?;
    // SAFETY: `name` is NUL-terminated and lives through the call.
    if unsafe { libc::umount2(name.as_ptr(), libc::MNT_DETACH) } == 0 {
        return Ok(());
    }
    let error = std::io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EINVAL) => {
            Err(Error::new(ErrorCode::NotFound, format!("nothing is mounted at {}", path.display())))
        }
        Some(libc::EPERM) => {
            let done = std::process::Command::new("fusermount3").args(["-u", "-z"]).arg(path).status();
            match done {
                Ok(status) if status.success() => Ok(()),
                _ => {
                    Err(Error::from(error)
                        .of(format!("unmounting {} (and fusermount3 failed)", path.display())))
                }
            }
        }
        _ => Err(Error::from(error).of(format!("unmounting {}", path.display()))),
    }
}
