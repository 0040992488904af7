//! Listing a directory, a page at a time.

use crate::acl::READ;
use crate::dirent::Dirent;
use crate::key::Key;
use crate::namespace::Namespace;
use crate::outside::Outside;
use corefs_kv::{Direction, Isolation, KvEngine, Transaction};
use corefs_wire::control::meta::{DirEntryT, ReadDirReplyT, ReadDirT};
use corefs_wire::limits::{DIR_PAGE_MAX, NAME_MAX};
use corefs_wire::{ErrorCode, InodeId, Result};

impl<E: KvEngine, O: Outside> Namespace<E, O> {
    /// Entries after the name `after` in byte order, without `.` and `..`, at one snapshot a page; with `plus` each with
    /// its attributes. A page may be shorter than the limit although there is `more`.
    pub async fn read_dir(&self, request: &ReadDirT) -> Result<ReadDirReplyT> {
        if request.after.len() > NAME_MAX {
            return Err(ErrorCode::NameTooLong.into());
        }
        let id = InodeId(request.inode);
        let limit = match request.limit as usize {
            0 => DIR_PAGE_MAX,
            limit => limit.min(DIR_PAGE_MAX),
        };
        let mut range = self.keys.dirents(id);
        if !request.after.is_empty() {
            range = range.after(&self.keys.dirent(id, &request.after), Direction::Forward);
        }
        self.reading(async |txn: &mut E::Txn| {
            let directory = self.inode(txn, id, Isolation::Snapshot).await?;
            if !directory.is_directory() {
                return Err(ErrorCode::NotDirectory.into());
            }
            self.may(txn, &request.caller, id, &directory, READ).await?;
            let page = txn.range(&range, limit, Direction::Forward, Isolation::Snapshot).await?;
            let mut entries = Vec::with_capacity(page.pairs.len());
            for (key, value) in &page.pairs {
                let (Key::Dirent(_, name), dirent) = (self.keys.parse(key)?, Dirent::decode(value)?) else {
                    continue;
                };
                let mut entry = DirEntryT::default();
                (entry.name, entry.inode, entry.kind) = (name, dirent.inode.0, dirent.kind);
                entries.push(entry);
            }
            if request.plus {
                self.fill_attributes(txn, &mut entries).await?;
            }
            let mut reply = ReadDirReplyT::default();
            (reply.entries, reply.more, reply.parent) = (entries, page.more, directory.parent.0);
            Ok(reply)
        })
        .await
    }

    async fn fill_attributes(&self, txn: &mut E::Txn, entries: &mut [DirEntryT]) -> Result<()> {
        let wanted: Vec<_> = entries.iter().map(|entry| (InodeId(entry.inode), Some(entry.kind))).collect();
        let stats = self.stats(txn, &wanted).await?;
        for (entry, stat) in entries.iter_mut().zip(stats) {
            entry.attr = stat.map(|stat| Box::new(stat.to_message()));
        }
        Ok(())
    }
}
