//! The kernel's requests, each delegated to the client shard that owns the inode. No decisions here but POSIX's own.
//!
//! Permission checks are the kernel's (`default_permissions`), so requests go on behalf of the caller, privileged.

use crate::attr::{file_attr, file_type, given_time, kind_of_mode, nanoseconds};
use crate::errno::{INVALID, STOP_ASKING, errno};
use crate::handles::{self, with_directory};
use corefs_client::{
    Attr, Changes, Client, ClientPool, CreateOptions, Credentials, File, Kind, NewInode, OpenOptions,
};
use corefs_wire::limits::FRAME_DATA_MAX;
use corefs_wire::{Error, ErrorCode, InodeId, Result};
use fuser::{
    AccessFlags, BsdFileFlags, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenAccMode, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite,
    ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

/// How long the kernel may believe names and attributes: what other clients change is seen within it.
const TTL: Duration = Duration::from_secs(1);
/// Inode numbers are never reused.
const GENERATION: Generation = Generation(0);
/// Requests the kernel may have waiting: enough that readahead and direct I/O keep a disk busy.
const BACKGROUND: u16 = 256;

pub struct CoreFs {
    pool: ClientPool,
}

impl CoreFs {
    pub fn new(pool: ClientPool) -> Self {
        Self { pool }
    }

    /// Runs a request's future on the shard of `inode`. When the shard is gone the future is dropped, and with it the reply,
    /// which then says EIO.
    fn run<F: Future<Output = ()> + 'static>(
        &self,
        inode: INodeNo,
        work: impl FnOnce(Client) -> F + Send + 'static,
    ) {
        let shard = self.pool.shard_of(InodeId(inode.0));
        if let Err(error) = self.pool.run(shard, work) {
            tracing::debug!("a request was dropped: {error}");
        }
    }
}

fn who(request: &Request) -> Credentials {
    Credentials { uid: request.uid(), gid: request.gid(), groups: Vec::new(), privileged: true }
}

fn name_of(name: &OsStr) -> Vec<u8> {
    name.as_bytes().to_vec()
}

fn id(inode: INodeNo) -> InodeId {
    InodeId(inode.0)
}

fn entry(reply: ReplyEntry, result: Result<Attr>) {
    match result {
        Ok(attr) => reply.entry(&TTL, &file_attr(&attr), GENERATION),
        Err(error) => reply.error(errno(&error)),
    }
}

fn empty(reply: ReplyEmpty, result: Result<()>) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(&error)),
    }
}

/// Direct I/O when the program asks for it with O_DIRECT.
fn direct(flags: i32) -> bool {
    flags & libc::O_DIRECT != 0
}

/// The first of the directory's offsets that belongs to a stored entry, after `.` and `..`.
const DOTS: u64 = 2;

impl Filesystem for CoreFs {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wishes = [
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_AUTO_INVAL_DATA,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
        ];
        for wish in wishes {
            // A kernel without one of them is slower, not wrong.
            if config.add_capabilities(wish).is_err() {
                tracing::debug!("the kernel doesn't know {wish:?}");
            }
        }
        // Each setter answers with the nearest value the kernel takes, which is then used.
        let size = FRAME_DATA_MAX as u32;
        let _ = config.set_max_write(size).or_else(|nearest| config.set_max_write(nearest));
        let _ = config.set_max_readahead(size).or_else(|nearest| config.set_max_readahead(nearest));
        let _ = config.set_max_background(BACKGROUND);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (who, name) = (who(request), name_of(name));
        self.run(parent, move |client| async move {
            entry(reply, client.lookup(&who, id(parent), &name).await);
        });
    }

    fn getattr(&self, request: &Request, inode: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        let who = who(request);
        self.run(inode, move |client| async move {
            match client.get_attr(&who, id(inode)).await {
                Ok(attr) => reply.attr(&TTL, &file_attr(&attr)),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn setattr(
        &self,
        request: &Request,
        inode: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let who = who(request);
        let changes = Changes {
            mode: mode.map(|mode| mode & 0o7777),
            uid,
            gid,
            size,
            atime: atime.map(given_time),
            mtime: mtime.map(given_time),
            ctime: ctime.map(nanoseconds),
        };
        self.run(inode, move |client| async move {
            match client.set_attr(&who, id(inode), changes).await {
                Ok(attr) => reply.attr(&TTL, &file_attr(&attr)),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn readlink(&self, request: &Request, inode: INodeNo, reply: ReplyData) {
        let who = who(request);
        self.run(inode, move |client| async move {
            match client.meta().read_link(&who, id(inode)).await {
                Ok(target) => reply.data(&target),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let Some(kind) = kind_of_mode(mode) else { return reply.error(INVALID) };
        let node = NewInode { rdev, ..NewInode::new(kind, mode & 0o7777) };
        self.make(request, parent, name, node, reply);
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        self.make(request, parent, name, NewInode::new(Kind::Directory, mode & 0o7777), reply);
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let target = target.as_os_str().as_bytes().to_vec();
        self.make(request, parent, name, NewInode { target, ..NewInode::new(Kind::Symlink, 0o777) }, reply);
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (who, name) = (who(request), name_of(name));
        self.run(parent, move |client| async move {
            empty(reply, client.unlink(&who, id(parent), &name).await);
        });
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (who, name) = (who(request), name_of(name));
        self.run(parent, move |client| async move {
            empty(reply, client.meta().rmdir(&who, id(parent), &name).await);
        });
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        if !(RenameFlags::RENAME_NOREPLACE | RenameFlags::RENAME_EXCHANGE).contains(flags) {
            return reply.error(INVALID);
        }
        let (who, name, new_name) = (who(request), name_of(name), name_of(new_name));
        self.run(parent, move |client| async move {
            let (from, to) = ((id(parent), &name[..]), (id(new_parent), &new_name[..]));
            empty(reply, client.rename(&who, from, to, flags.bits()).await);
        });
    }

    fn link(&self, request: &Request, inode: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (who, name) = (who(request), name_of(name));
        self.run(inode, move |client| async move {
            let linked = client.meta().link(&who, id(inode), id(parent), &name).await;
            // The reply's attributes become the kernel's, so they must include what is written here and not synced.
            let result = match linked {
                Ok(_) => client.get_attr(&who, id(inode)).await,
                Err(error) => Err(error),
            };
            entry(reply, result);
        });
    }

    fn open(&self, request: &Request, inode: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let who = who(request);
        let options = OpenOptions {
            write: flags.acc_mode() != OpenAccMode::O_RDONLY,
            truncate: flags.0 & libc::O_TRUNC != 0,
            direct: direct(flags.0),
        };
        self.run(inode, move |client| async move {
            match client.open(&who, id(inode), options).await {
                Ok(file) => reply.opened(handles::insert_file(file), FopenFlags::empty()),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (who, name) = (who(request), name_of(name));
        let options = CreateOptions {
            mode: mode & 0o7777,
            exclusive: flags & libc::O_EXCL != 0,
            truncate: flags & libc::O_TRUNC != 0,
            direct: direct(flags),
            ..CreateOptions::default()
        };
        self.run(parent, move |client| async move {
            match client.create(&who, id(parent), &name, options).await {
                Ok((file, _)) => {
                    let attr = file_attr(&file.attr());
                    reply.created(&TTL, &attr, GENERATION, handles::insert_file(file), FopenFlags::empty());
                }
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn read(
        &self,
        _request: &Request,
        inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.run(inode, move |_client| async move {
            let read = async { handles::file(handle)?.read_at(offset, size as usize).await };
            match read.await {
                Ok(data) => reply.data(&data),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn write(
        &self,
        _request: &Request,
        inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        // The one copy on this path: the kernel's request sits in its thread's buffer, which is reused on return.
        let data = data.to_vec();
        self.run(inode, move |_client| async move {
            let write = async { handles::file(handle)?.write_at(offset, &data).await };
            match write.await {
                Ok(()) => reply.written(data.len() as u32),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    /// close(2) of one descriptor: what was written becomes visible to others, and errors reach the program.
    fn flush(
        &self,
        _request: &Request,
        inode: INodeNo,
        handle: FileHandle,
        _owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        self.run(inode, move |_client| async move { empty(reply, sync(handle).await) });
    }

    fn fsync(
        &self,
        _request: &Request,
        inode: INodeNo,
        handle: FileHandle,
        _data_only: bool,
        reply: ReplyEmpty,
    ) {
        self.run(inode, move |_client| async move { empty(reply, sync(handle).await) });
    }

    fn release(
        &self,
        _request: &Request,
        inode: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.run(inode, move |_client| async move {
            // Nobody waits for this reply, and errors were told by flush.
            reply.ok();
            if let Ok(file) = handles::remove_file(handle) {
                close(file).await;
            }
        });
    }

    fn opendir(&self, request: &Request, inode: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let who = who(request);
        self.run(inode, move |_client| async move {
            reply.opened(handles::insert_directory(id(inode), who), FopenFlags::empty());
        });
    }

    fn readdir(
        &self,
        request: &Request,
        inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let who = who(request);
        self.run(inode, move |client| async move {
            let mut add = |listed: Listed<'_>| {
                reply.add(listed.inode, listed.next, listed.kind, OsStr::from_bytes(listed.name))
            };
            let filled = list(&client, &who, handle, offset, &mut add).await;
            match filled {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn readdirplus(
        &self,
        request: &Request,
        inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let who = who(request);
        self.run(inode, move |client| async move {
            let mut add = |listed: Listed<'_>| {
                // An entry whose inode went away meanwhile is left out, as if the listing had come later.
                let Some(attr) = listed.attr else { return false };
                let name = OsStr::from_bytes(listed.name);
                reply.add(listed.inode, listed.next, name, &TTL, &file_attr(&attr), GENERATION)
            };
            let filled = list(&client, &who, handle, offset, &mut add).await;
            match filled {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn releasedir(
        &self,
        _request: &Request,
        inode: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.run(inode, move |_client| async move {
            handles::remove_directory(handle);
            reply.ok();
        });
    }

    /// Changes of the namespace are durable before they are answered: nothing is left to do.
    fn fsyncdir(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _data_only: bool,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn statfs(&self, _request: &Request, inode: INodeNo, reply: ReplyStatfs) {
        self.run(inode, move |client| async move {
            match client.meta().statfs().await {
                Ok(space) => {
                    let block = u64::from(space.block_size.max(512));
                    let free = space.free / block;
                    // Inodes have no bound of their own; programs want to see room for some.
                    let files = space.files.saturating_add(free);
                    reply.statfs(
                        space.total / block,
                        free,
                        free,
                        files,
                        free,
                        block as u32,
                        255,
                        block as u32,
                    );
                }
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    // The kernel checks permissions itself, and stops asking after the first of each of these answers.
    fn access(&self, _request: &Request, _inode: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        reply.error(STOP_ASKING);
    }

    fn getxattr(&self, _request: &Request, _inode: INodeNo, _name: &OsStr, _size: u32, reply: ReplyXattr) {
        reply.error(STOP_ASKING);
    }

    fn listxattr(&self, _request: &Request, _inode: INodeNo, _size: u32, reply: ReplyXattr) {
        reply.error(STOP_ASKING);
    }
}

impl CoreFs {
    fn make(&self, request: &Request, parent: INodeNo, name: &OsStr, node: NewInode, reply: ReplyEntry) {
        let (who, name) = (who(request), name_of(name));
        self.run(parent, move |client| async move {
            let made = client.meta().create(&who, id(parent), &name, &node).await;
            entry(reply, made.map(|made| made.attr));
        });
    }
}

async fn sync(handle: FileHandle) -> Result<()> {
    handles::file(handle)?.sync().await
}

/// Ends a file's session once the last request that uses it is done.
async fn close(file: Rc<File>) {
    // Somebody still reads or writes: dropping the last handle closes in the background.
    let Some(file) = Rc::into_inner(file) else { return };
    if let Err(error) = file.close().await {
        tracing::warn!("closing a file: {error}");
    }
}

/// An entry on its way to the kernel.
struct Listed<'a> {
    inode: INodeNo,
    /// The offset from which to go on after this entry.
    next: u64,
    kind: FileType,
    name: &'a [u8],
    attr: Option<Attr>,
}

/// Gives entries from `offset` on to `add` until it says that the reply is full, or there are no more.
async fn list(
    client: &Client,
    who: &Credentials,
    handle: FileHandle,
    offset: u64,
    add: &mut dyn FnMut(Listed<'_>) -> bool,
) -> Result<()> {
    with_directory(handle, async |directory| {
        let mut next = offset;
        if next < DOTS {
            let own = client.get_attr(who, directory.inode).await?;
            // The root is its own parent. A parent that is gone means that this directory was removed: show itself.
            let parent = client.get_attr(who, own.parent).await.unwrap_or(own);
            for (position, (name, attr)) in
                [(b".".as_slice(), own), (b"..".as_slice(), parent)].into_iter().enumerate()
            {
                let position = position as u64;
                if position < next {
                    continue;
                }
                let (inode, kind) = (INodeNo(attr.inode.0), FileType::Directory);
                if add(Listed { inode, next: position + 1, kind, name, attr: Some(attr) }) {
                    return Ok(());
                }
            }
            next = DOTS;
        }
        let mut fresh = offset <= DOTS;
        while let Some(found) = directory.entry(client, next - DOTS, fresh).await? {
            fresh = false;
            let (inode, kind) = (INodeNo(found.inode.0), file_type(found.kind));
            if add(Listed { inode, next: next + 1, kind, name: &found.name, attr: found.attr }) {
                break;
            }
            next = next.checked_add(1).ok_or_else(|| Error::from(ErrorCode::InvalidArgument))?;
        }
        Ok(())
    })
    .await
}
