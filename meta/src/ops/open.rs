//! Sessions begin.

use crate::acl::{READ, WRITE};
use crate::inode::Stat;
use crate::length::{Resized, finish};
use crate::namespace::{Namespace, Values};
use crate::once::{Attempt, Outcome};
use crate::outside::Outside;
use crate::session::Session;
use corefs_kv::{Isolation, KvEngine};
use corefs_wire::control::Call;
use corefs_wire::control::meta::{OpenReplyT, OpenT};
use corefs_wire::{ClientId, ErrorCode, InodeId, Result};

impl<E: KvEngine, O: Outside> Namespace<E, O> {
    /// Opens an inode: for reading without a session unless `hold`, for writing always with one, emptied first if
    /// `truncate`. `IsDirectory` for writing to one; `NoSuchInode`, `PermissionDenied`.
    pub async fn open(&self, request: &OpenT) -> Result<OpenReplyT> {
        let id = InodeId(request.inode);
        if !request.write && !request.truncate && !request.hold {
            return self.open_unheld(request, id).await;
        }
        let keys = [self.keys.inode(id)];
        let outcome =
            self.once(OpenT::OP, &request.caller, &keys, async |txn: &mut E::Txn, mut values: Values| {
                let mut inode = values.expect_inode()?;
                let writes = request.write || request.truncate;
                let wanted = if writes { WRITE } else { READ };
                self.may(txn, &request.caller, id, &inode, wanted).await?;
                if !inode.is_file() {
                    // Pipes, sockets and devices are the opener's kernel's affair.
                    return match writes && inode.is_directory() {
                        true => Err(ErrorCode::IsDirectory.into()),
                        false => Ok(Attempt::Unchanged(Outcome::of(self.stat(txn, id, None).await?))),
                    };
                }
                let now = self.outside.now();
                let mut trim = false;
                let first = request.write && std::mem::take(&mut inode.unopened);
                if request.truncate {
                    match self.resize(txn, id, &mut inode, 0, now).await? {
                        Resized::Done => {}
                        Resized::Trim => trim = true,
                        Resized::Blocked => return Ok(Attempt::Trimming(id)),
                    }
                }
                if request.truncate || first {
                    self.put(txn, id, &inode);
                }
                if request.truncate {
                    finish(&mut inode);
                }
                let session = match request.write || request.hold {
                    true => self.begin(txn, request, inode.epoch, now),
                    false => 0,
                };
                Ok(Attempt::Changed(Outcome { session, trim, ..Outcome::of(Stat::new(id, inode)) }))
            });
        reply(&outcome.await?)
    }

    /// A look at the permissions: nothing is written.
    async fn open_unheld(&self, request: &OpenT, id: InodeId) -> Result<OpenReplyT> {
        self.reading(async |txn: &mut E::Txn| {
            let stat = self.stat(txn, id, None).await?;
            self.may(txn, &request.caller, id, &stat.inode, READ).await?;
            let inline = match request.bytes && stat.inode.inline {
                true => Some(Box::new(self.inline(txn, id, Isolation::Snapshot).await?.to_message())),
                false => None,
            };
            let mut reply = reply(&Outcome::of(stat))?;
            reply.inline = inline;
            Ok(reply)
        })
        .await
    }

    fn begin(&self, txn: &mut E::Txn, request: &OpenT, epoch: u32, now: i64) -> u64 {
        let session = Session {
            client: ClientId(request.caller.client),
            incarnation: request.caller.incarnation,
            write: request.write,
            epoch,
            began: now,
            place: None,
        };
        let number = self.new_session_number();
        self.begin_session(txn, InodeId(request.inode), number, &session);
        number
    }
}

fn reply(outcome: &Outcome) -> Result<OpenReplyT> {
    let mut reply = OpenReplyT::default();
    reply.attr = outcome.attr()?;
    reply.session = outcome.session;
    Ok(reply)
}
