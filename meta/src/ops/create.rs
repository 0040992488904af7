//! New inodes of every kind.

use crate::acl::{CHANGE, WRITE, in_group};
use crate::chain_pick;
use crate::dirent::{Dirent, check_name};
use crate::inode::{Inode, MODE_BITS, SETGID, Stat};
use crate::namespace::{Namespace, Values};
use crate::once::{Attempt, Outcome};
use crate::outside::Outside;
use crate::session::Session;
use corefs_kv::{KvEngine, Transaction};
use corefs_wire::control::Call;
use corefs_wire::control::meta::{CallerT, CreateReplyT, CreateT, Kind};
use corefs_wire::limits::PATH_MAX;
use corefs_wire::{ClientId, Error, ErrorCode, InodeId, Result};
use std::cell::Cell;

impl<E: KvEngine, O: Outside> Namespace<E, O> {
    /// Creates `name` in `parent`, or finds it there unless `exclusive`. With `open` a file also gets a session for
    /// writing. `Exists`, `NoSuchInode` (the directory), `NotDirectory`, `PermissionDenied`; `IsDirectory` when a file was to be opened.
    pub async fn create(&self, request: &CreateT) -> Result<CreateReplyT> {
        check_request(request)?;
        let parent = InodeId(request.parent);
        let keys = [self.keys.inode(parent), self.keys.dirent(parent, &request.name)];
        // One number however often the transaction is tried.
        let taken = Cell::new(None);
        let outcome =
            self.once(CreateT::OP, &request.caller, &keys, async |txn: &mut E::Txn, mut values: Values| {
                let directory = values.directory()?;
                if let Some(dirent) = values.dirent()? {
                    return self.create_found(txn, request, dirent).await;
                }
                self.may(txn, &request.caller, parent, &directory, CHANGE).await?;
                let id = match taken.get() {
                    Some(id) => id,
                    None => self.new_inode_id().await?,
                };
                taken.set(Some(id));
                self.create_new(txn, request, &directory, id).await.map(Attempt::Changed)
            });
        let outcome = outcome.await?;
        let mut reply = CreateReplyT::default();
        reply.attr = outcome.attr()?;
        reply.session = outcome.session;
        reply.created = outcome.created;
        Ok(reply)
    }

    async fn create_new(
        &self,
        txn: &mut E::Txn,
        request: &CreateT,
        directory: &Inode,
        id: InodeId,
    ) -> Result<Outcome> {
        let parent = InodeId(request.parent);
        let now = self.outside.now();
        let mut inode = new_inode(request, directory, now);
        if inode.is_file() {
            let seed = self.outside.random();
            let routing = self.outside.routing();
            inode.layout = Some(chain_pick::pick(&routing, request.chunk_size, request.stripe, seed)?);
            inode.unopened = !request.open;
            inode.inline = request.inline;
        }
        self.inherit(txn, (parent, directory), request.umask, id, &mut inode).await?;
        self.put(txn, id, &inode);
        txn.set(&self.keys.dirent(parent, &request.name), &Dirent { inode: id, kind: request.kind }.encode());
        self.touch_directory(txn, parent, now, 1, i64::from(inode.is_directory()));
        self.count_inodes(txn, id, 1);
        let session = match request.open && inode.is_file() {
            true => self.begin_writing(txn, &request.caller, id, inode.epoch, now),
            false => 0,
        };
        Ok(Outcome { session, created: true, ..Outcome::of(Stat::new(id, inode)) })
    }

    /// The name exists.
    async fn create_found(&self, txn: &mut E::Txn, request: &CreateT, dirent: Dirent) -> Result<Attempt> {
        if request.exclusive || (request.kind != dirent.kind && !request.open) {
            return Err(ErrorCode::Exists.into());
        }
        if request.open && dirent.is_directory() {
            return Err(ErrorCode::IsDirectory.into());
        }
        let mut stat = self.stat(txn, dirent.inode, Some(dirent.kind)).await?;
        // Anything else that was there, such as a symlink, is for the caller to follow.
        if !request.open || dirent.kind != Kind::File {
            return Ok(Attempt::Unchanged(Outcome::of(stat)));
        }
        self.may(txn, &request.caller, stat.id, &stat.inode, WRITE).await?;
        txn.add_read_conflict_key(&self.keys.inode(stat.id));
        if std::mem::take(&mut stat.inode.unopened) {
            self.put(txn, stat.id, &stat.inode);
        }
        let epoch = stat.inode.epoch;
        let session = self.begin_writing(txn, &request.caller, stat.id, epoch, self.outside.now());
        Ok(Attempt::Changed(Outcome { session, ..Outcome::of(stat) }))
    }

    /// Begins a session for writing and returns its number.
    pub(crate) fn begin_writing(
        &self,
        txn: &mut E::Txn,
        caller: &CallerT,
        id: InodeId,
        epoch: u32,
        now: i64,
    ) -> u64 {
        let (client, incarnation) = (ClientId(caller.client), caller.incarnation);
        let session = Session { client, incarnation, write: true, epoch, began: now, place: None };
        let number = self.new_session_number();
        self.begin_session(txn, id, number, &session);
        number
    }
}

fn check_request(request: &CreateT) -> Result<()> {
    check_name(&request.name)?;
    let invalid = |what: &str| Err(Error::new(ErrorCode::InvalidArgument, what));
    if request.kind.variant_name().is_none() {
        return invalid("an unknown kind of inode");
    }
    let caller = &request.caller;
    if is_device(request.kind) && !caller.privileged && caller.uid != 0 {
        return Err(Error::new(ErrorCode::NotPermitted, "only the privileged make devices"));
    }
    if request.open && request.kind != Kind::File {
        return invalid("only files are opened by creating them");
    }
    let target = &request.symlink_target;
    if (request.kind == Kind::Symlink) == target.is_empty() {
        return invalid("symlinks have a target, and only they");
    }
    if target.len() > PATH_MAX {
        let (most, found) = (PATH_MAX as u64, target.len() as u64);
        return Err(Error::mismatch(ErrorCode::NameTooLong, most, found, "a symlink's target is too long"));
    }
    if target.contains(&0) {
        return invalid("a symlink's target contains a zero byte");
    }
    Ok(())
}

fn is_device(kind: Kind) -> bool {
    matches!(kind, Kind::CharDevice | Kind::BlockDevice)
}

/// Owner, group and mode of what a caller creates in a directory: in a set-group-id directory the group is the
/// directory's, and directories hand the bit on.
fn new_inode(request: &CreateT, directory: &Inode, now: i64) -> Inode {
    let caller = &request.caller;
    let inherits = directory.mode & SETGID != 0;
    let gid = if inherits { directory.gid } else { caller.gid };
    let mut mode = request.mode & MODE_BITS;
    match request.kind {
        Kind::Directory if inherits => mode |= SETGID,
        Kind::Directory => {}
        Kind::Symlink => mode = 0o777,
        // A set-group-id program of a group that its maker isn't in.
        _ if mode & (SETGID | 0o010) == SETGID | 0o010 => {
            let foreign = !caller.privileged && caller.uid != 0 && !in_group(caller, gid);
            mode = if foreign { mode & !SETGID } else { mode };
        }
        _ => {}
    }
    Inode {
        mode,
        uid: caller.uid,
        gid,
        rdev: if is_device(request.kind) { request.rdev } else { 0 },
        parent: if request.kind == Kind::Directory { InodeId(request.parent) } else { InodeId(0) },
        target: request.symlink_target.clone(),
        ..Inode::new(request.kind, now)
    }
}
