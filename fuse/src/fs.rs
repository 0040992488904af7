//! The kernel's requests, each delegated to the client shard that owns the inode. No decisions here but POSIX's own.
//!
//! Permission checks are the kernel's (`default_permissions`), so requests go on behalf of the caller, privileged.

use crate::attr::{file_attr, given_time, kind_of_mode, nameless_attr, nanoseconds};
use crate::consistency::Consistency;
use crate::directory::Listed;
use crate::errno::{INVALID, NO_ATTRIBUTE, NOT_SUPPORTED, STOP_ASKING, TOO_SMALL, errno};
use crate::handles::{self, with_directory};
use crate::locks;
use crate::marks;
use crate::notices;
use corefs_client::{
    Attr, Changes, Client, ClientPool, CreateOptions, Credentials, File, Kind, NewInode, OpenOptions,
    has_set_ids,
};
use corefs_wire::limits::FRAME_DATA_MAX;
use corefs_wire::{ErrorCode, InodeId, Result};
use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLock, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

/// Inode numbers are never reused.
const GENERATION: Generation = Generation(0);
/// Requests the kernel may have waiting: enough that readahead and direct I/O keep a disk busy.
const BACKGROUND: u16 = 256;

pub struct CoreFs {
    pool: ClientPool,
    local_locks: bool,
    consistency: Consistency,
}

impl CoreFs {
    pub fn new(pool: ClientPool, local_locks: bool, consistency: Consistency) -> Self {
        Self { pool, local_locks, consistency }
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

fn entry(reply: ReplyEntry, result: Result<Attr>, believed: Duration) {
    match result {
        Ok(attr) => {
            let believed = marks::heard(&attr, believed);
            reply.entry(&believed, &file_attr(&attr), GENERATION);
        }
        Err(error) => reply.error(errno(&error)),
    }
}

fn attributes(reply: ReplyAttr, result: Result<Attr>, believed: Duration) {
    match result {
        Ok(attr) => {
            let believed = marks::heard(&attr, believed);
            reply.attr(&believed, &file_attr(&attr));
        }
        Err(error) => reply.error(errno(&error)),
    }
}

/// An answer of any length, for a buffer of `size` bytes; 0 asks how long it is.
fn bytes(reply: ReplyXattr, size: u32, result: Result<Vec<u8>>) {
    match result {
        Ok(bytes) if size == 0 => reply.size(bytes.len() as u32),
        Ok(bytes) if bytes.len() > size as usize => reply.error(TOO_SMALL),
        Ok(bytes) => reply.data(&bytes),
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

/// Bytes of one copy_file_range(2): programs ask again for the rest.
const COPY_MAX: u64 = 8 << 20;

impl Filesystem for CoreFs {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wishes = [
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_AUTO_INVAL_DATA,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_ATOMIC_O_TRUNC,
            // Who writes to a program that runs as its owner takes that away: we do it, and the kernel need not ask for
            // attributes before each write.
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
            // A default access control list takes the umask's place, and only the metadata server knows of it.
            InitFlags::FUSE_DONT_MASK,
            InitFlags::FUSE_POSIX_ACL,
            // Files of a strict mount are opened for direct I/O, and programs map them all the same.
            InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
        ];
        // Without them the kernel keeps locks itself.
        let locks = [InitFlags::FUSE_POSIX_LOCKS, InitFlags::FUSE_FLOCK_LOCKS];
        let locks = locks.into_iter().filter(|_| !self.local_locks);
        for wish in wishes.into_iter().chain(locks) {
            // A kernel without one of them is slower, or refuses what it can't do.
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
        let (who, name, consistency) = (who(request), name_of(name), self.consistency);
        self.run(parent, move |client| async move {
            match client.lookup(&who, id(parent), &name).await {
                // Believed, too: searches in many directories ask for the same names again and again.
                Err(error) if error.code == ErrorCode::NotFound && !consistency.remembered().is_zero() => {
                    let missing = consistency.believed_of_nothing(&client, id(parent), &name);
                    let nothing = nameless_attr(INodeNo(0), FileType::RegularFile);
                    reply.entry(&missing, &nothing, GENERATION);
                }
                Ok(attr) => {
                    let believed = consistency.believed_of(&client, attr.inode);
                    entry(reply, Ok(attr), believed);
                }
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn getattr(&self, request: &Request, inode: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        let (who, consistency) = (who(request), self.consistency);
        self.run(inode, move |client| async move {
            let attr = client.get_attr_within(&who, id(inode), consistency.remembered()).await;
            attributes(reply, attr, consistency.believed_of(&client, id(inode)));
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
            known: None,
        };
        let consistency = self.consistency;
        self.run(inode, move |client| async move {
            let mut result = client.set_attr(&who, id(inode), changes).await;
            if let Ok(attr) = &result
                && changes.size.is_some()
                && who.uid != 0
                && has_set_ids(attr.mode)
            {
                result = client.set_attr(&who, id(inode), without_set_ids(attr)).await;
            }
            if result.is_ok()
                && let Err(error) = consistency.after_changing(&client, id(inode)).await
            {
                result = Err(error);
            }
            attributes(reply, result, consistency.believed());
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
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let Some(kind) = kind_of_mode(mode) else { return reply.error(INVALID) };
        let node = NewInode { rdev, umask, ..NewInode::new(kind, mode & 0o7777) };
        self.make(request, parent, name, node, reply);
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let node = NewInode { umask, ..NewInode::new(Kind::Directory, mode & 0o7777) };
        self.make(request, parent, name, node, reply);
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
            empty(reply, client.meta().rmdir(&who, id(parent), &name, false).await);
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
        let (who, name, believed) = (who(request), name_of(name), self.consistency.believed());
        self.run(inode, move |client| async move {
            let linked = client.meta().link(&who, id(inode), id(parent), &name).await;
            // The reply's attributes become the kernel's, so they must include what is written here and not synced.
            let result = match linked {
                Ok(_) => client.get_attr(&who, id(inode)).await,
                Err(error) => Err(error),
            };
            entry(reply, result, believed);
        });
    }

    fn open(&self, request: &Request, inode: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let (who, consistency) = (who(request), self.consistency);
        let options = OpenOptions {
            write: flags.acc_mode() != OpenAccMode::O_RDONLY,
            truncate: flags.0 & libc::O_TRUNC != 0,
            direct: direct(flags.0) || consistency.is_strict(),
            ahead: !consistency.is_strict() && !direct(flags.0),
        };
        self.run(inode, move |client| async move {
            let opened = async {
                let file = client.open(&who, id(inode), options).await?;
                if options.truncate && who.uid != 0 {
                    kill_privileges(&client, &file).await?;
                }
                Ok(file)
            };
            match opened.await {
                Ok(file) => {
                    if options.truncate {
                        // The kernel cuts it itself.
                        marks::heard(&file.attr(), consistency.believed());
                    } else if marks::believes_otherwise(&file.attr(), consistency.believed()) {
                        notices::attributes_changed(file.inode());
                    }
                    reply.opened(handles::insert_file(file), consistency.opened());
                }
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
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (who, name, consistency) = (who(request), name_of(name), self.consistency);
        let options = CreateOptions {
            mode: mode & 0o7777,
            exclusive: flags & libc::O_EXCL != 0,
            truncate: flags & libc::O_TRUNC != 0,
            direct: direct(flags) || consistency.is_strict(),
            umask,
            ..CreateOptions::default()
        };
        self.run(parent, move |client| async move {
            match client.create(&who, id(parent), &name, options).await {
                Ok((file, _)) => {
                    let believed = marks::heard(&file.attr(), consistency.believed());
                    let attr = file_attr(&file.attr());
                    let handle = handles::insert_file(file);
                    reply.created(&believed, &attr, GENERATION, handle, consistency.opened());
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
        let consistency = self.consistency;
        self.run(inode, move |_client| async move {
            let read = async {
                let file = handles::file(handle)?;
                consistency.before_reading(&file).await?;
                file.read_at(offset, size as usize).await
            };
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
        write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        // The one copy on this path: the kernel's request sits in its thread's buffer, which is reused on return.
        let data = data.to_vec();
        let kill = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        // What comes from a mapping has a place, however the file was opened.
        let append = flags.0 & libc::O_APPEND != 0 && !write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let consistency = self.consistency;
        self.run(inode, move |client| async move {
            let write = async {
                let file = handles::file(handle)?;
                if kill {
                    kill_privileges(&client, &file).await?;
                }
                match append {
                    // The kernel's offset is only its guess.
                    true => file.append_believing(offset, &data).await?,
                    false => file.write_at(offset, &data).await?,
                }
                consistency.after_writing(&file).await
            };
            match write.await {
                Ok(()) => {
                    marks::written(id(inode), offset.saturating_add(data.len() as u64));
                    reply.written(data.len() as u32);
                }
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
        owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        self.run(inode, move |client| async move {
            let synced = async { handles::file(handle)?.finish().await }.await;
            // A process that closes a file loses its locks on it, through whichever descriptor it took them (fcntl(2)).
            let released = locks::release(&client, id(inode), owner.0).await;
            empty(reply, synced.and(released));
        });
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
        lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.run(inode, move |client| async move {
            // Nobody waits for this reply, and errors were told by flush.
            reply.ok();
            // flock(2): the lock goes with the open file.
            let flock = match lock_owner {
                Some(owner) => locks::release(&client, id(inode), owner.0).await,
                None => Ok(()),
            };
            if let Err(error) = flock.and(locks::release_handle(&client, id(inode), handle).await) {
                tracing::warn!("giving back a lock: {error}");
            }
            if let Ok(file) = handles::remove_file(handle) {
                close(file).await;
                marks::closed(id(inode));
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
        _request: &Request,
        inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        self.run(inode, move |client| async move {
            let mut add = |listed: Listed<'_>| {
                reply.add(listed.inode, listed.next, listed.kind, OsStr::from_bytes(listed.name))
            };
            match with_directory(handle, async |open| open.list(&client, offset, false, &mut add).await).await
            {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn readdirplus(
        &self,
        _request: &Request,
        inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let consistency = self.consistency;
        self.run(inode, move |client| async move {
            let mut add = |listed: Listed<'_>| {
                let (attr, believed) = match listed.attr {
                    Some(attr) => {
                        let believed = consistency.believed_of(&client, attr.inode);
                        (file_attr(&attr), marks::heard(&attr, believed))
                    }
                    None if listed.name == b"." || listed.name == b".." => {
                        (nameless_attr(listed.inode, listed.kind), consistency.believed())
                    }
                    // An entry whose inode went away meanwhile is left out, as if the listing had come later.
                    None => return false,
                };
                let name = OsStr::from_bytes(listed.name);
                reply.add(listed.inode, listed.next, name, &believed, &attr, GENERATION)
            };
            match with_directory(handle, async |open| open.list(&client, offset, true, &mut add).await).await
            {
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

    // The kernel checks permissions itself, and stops asking after the first such answer.
    fn access(&self, _request: &Request, _inode: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        reply.error(STOP_ASKING);
    }

    fn getxattr(&self, request: &Request, inode: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let (who, name, remembered) = (who(request), name_of(name), self.consistency.remembered());
        self.run(inode, move |client| async move {
            if marks::has_none(id(inode), Some(&name), remembered) {
                return reply.error(NO_ATTRIBUTE);
            }
            bytes(reply, size, client.meta().get_xattr(&who, id(inode), &name).await);
        });
    }

    fn listxattr(&self, request: &Request, inode: INodeNo, size: u32, reply: ReplyXattr) {
        // Which names somebody may know of isn't among what the kernel checks.
        let who = Credentials { privileged: request.uid() == 0, ..who(request) };
        let remembered = self.consistency.remembered();
        self.run(inode, move |client| async move {
            let names = match marks::has_none(id(inode), None, remembered) {
                true => Ok(Vec::new()),
                false => client.meta().list_xattr(&who, id(inode)).await,
            };
            let join =
                |names: Vec<Vec<u8>>| names.into_iter().flat_map(|name| [name, vec![0]]).flatten().collect();
            bytes(reply, size, names.map(join));
        });
    }

    fn setxattr(
        &self,
        request: &Request,
        inode: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let (mut who, name, value) = (who(request), name_of(name), value.to_vec());
        if marks::is_list(&name) && who.uid != 0 {
            // Set-group-id stays only if the caller is in the group, which the kernel doesn't say here.
            who.groups = locks::groups_of(request.pid());
        }
        let consistency = self.consistency;
        self.run(inode, move |client| async move {
            // A copy sets the list of a file that has none, which says what its mode says: then that is what is set.
            if let (Some(bits), Some(attr)) =
                (marks::bits_of_list(&name, &value), client.open_attr(id(inode)))
                && who.uid == 0
                && !attr.marks.access_list
            {
                let mode = Some(attr.mode & !0o777 | bits);
                let changes = Changes { mode, ..Changes::default() };
                let changed = async {
                    client.set_attr(&who, id(inode), changes).await?;
                    consistency.after_changing(&client, id(inode)).await
                };
                return empty(reply, changed.await);
            }
            let set = client.meta().set_xattr(&who, id(inode), &name, &value, flags as u32).await;
            marks::changed(id(inode));
            empty(reply, set);
        });
    }

    fn removexattr(&self, request: &Request, inode: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (who, name) = (who(request), name_of(name));
        self.run(inode, move |client| async move {
            let removed = client.meta().remove_xattr(&who, id(inode), &name).await;
            marks::changed(id(inode));
            empty(reply, removed);
        });
    }

    fn getlk(
        &self,
        request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        owner: LockOwner,
        start: u64,
        end: u64,
        kind: i32,
        pid: u32,
        reply: ReplyLock,
    ) {
        let who = who(request);
        self.run(inode, move |client| async move {
            let found = async {
                let lock = locks::lock_of(start, end, kind, pid)?;
                client.meta().get_lock(&who, id(inode), owner.0, &lock).await
            };
            match found.await {
                Ok(Some(lock)) => reply.locked(lock.start, lock.end, locks::kind_of(lock.kind), lock.pid),
                Ok(None) => reply.locked(start, end, libc::F_UNLCK, 0),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn setlk(
        &self,
        request: &Request,
        inode: INodeNo,
        handle: FileHandle,
        owner: LockOwner,
        start: u64,
        end: u64,
        kind: i32,
        pid: u32,
        sleep: bool,
        reply: ReplyEmpty,
    ) {
        let (who, waiter) = (who(request), sleep.then(|| request.pid()));
        self.run(inode, move |client| async move {
            let own = client.clone();
            let set = async move {
                let lock = locks::lock_of(start, end, kind, pid)?;
                locks::set(&own, &who, (id(inode), handle), owner.0, &lock, waiter).await
            };
            match waiter {
                None => empty(reply, set.await),
                // Not among the work of this shard, whose bound others would meet: it may take for ever.
                Some(_) => client.detach(async move { empty(reply, set.await) }),
            }
        });
    }

    fn fallocate(
        &self,
        _request: &Request,
        inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let known = libc::FALLOC_FL_KEEP_SIZE | libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE;
        if mode & !known != 0 {
            return reply.error(NOT_SUPPORTED);
        }
        let Some(end) = offset.checked_add(length) else { return reply.error(INVALID) };
        let consistency = self.consistency;
        self.run(inode, move |_client| async move {
            let allocate = async {
                let file = handles::file(handle)?;
                if mode & (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE) != 0 {
                    file.punch(offset..end).await?;
                }
                if mode & libc::FALLOC_FL_KEEP_SIZE == 0 {
                    file.extend(end).await?;
                }
                consistency.after_writing(&file).await
            };
            empty(reply, allocate.await);
        });
    }

    /// The kernel asks only about data and holes.
    fn lseek(
        &self,
        _request: &Request,
        inode: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let consistency = self.consistency;
        self.run(inode, move |_client| async move {
            let find = async {
                let file = handles::file(handle)?;
                consistency.before_reading(&file).await?;
                let offset = u64::try_from(offset).map_err(|_| ErrorCode::PastEnd)?;
                match whence {
                    libc::SEEK_DATA => file.find_data(offset).await,
                    libc::SEEK_HOLE => file.find_hole(offset).await,
                    _ => Err(ErrorCode::InvalidArgument.into()),
                }
            };
            match find.await {
                Ok(offset) => reply.offset(offset as i64),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn copy_file_range(
        &self,
        _request: &Request,
        inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        _to: INodeNo,
        to_handle: FileHandle,
        to_offset: u64,
        length: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let consistency = self.consistency;
        self.run(inode, move |_client| async move {
            let copy = async {
                let (from, to) = (handles::file(handle)?, handles::file(to_handle)?);
                consistency.before_reading(&from).await?;
                let copied = to.copy_range(to_offset, &from, offset, length.min(COPY_MAX)).await?;
                consistency.after_writing(&to).await.map(|()| copied)
            };
            match copy.await {
                Ok(copied) => reply.written(copied as u32),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }
}

impl CoreFs {
    fn make(&self, request: &Request, parent: INodeNo, name: &OsStr, node: NewInode, reply: ReplyEntry) {
        let (who, name, believed) = (who(request), name_of(name), self.consistency.believed());
        self.run(parent, move |client| async move {
            let made = client.meta().create(&who, id(parent), &name, &node).await;
            entry(reply, made.map(|made| made.attr), believed);
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

/// The mode of a file without what makes it run as its owner or group.
fn without_set_ids(attr: &Attr) -> Changes {
    let group = if attr.mode & 0o010 != 0 { 0o2000 } else { 0 };
    Changes { mode: Some(attr.mode & !(0o4000 | group)), ..Changes::default() }
}

/// What a write by somebody who isn't privileged does to a program that would run with privileges.
async fn kill_privileges(client: &Client, file: &File) -> Result<()> {
    let attr = file.attr();
    if has_set_ids(attr.mode) {
        client.set_attr(&Credentials::root(), attr.inode, without_set_ids(&attr)).await?;
    }
    if attr.marks.xattrs {
        let removed =
            client.meta().remove_xattr(&Credentials::root(), attr.inode, b"security.capability").await;
        match removed {
            Err(error) if error.code != ErrorCode::NoSuchAttribute => return Err(error),
            _ => marks::changed(attr.inode),
        }
    }
    Ok(())
}
