//! What the kernel is told without having asked.

use corefs_client::ClientPool;
use corefs_wire::{Error, InodeId, Result};
use fuser::{INodeNo, Notifier};
use std::cell::RefCell;
use std::sync::mpsc;

thread_local! {
    /// On the thread of the mount's one client shard.
    static NOTIFIER: RefCell<Option<Notifier>> = RefCell::default();
}

/// Before the first request is taken. Bytes that appends put elsewhere than the kernel believed are forgotten by a thread of its own: the kernel
/// may wait for our answers meanwhile. It ends with the client.
pub fn start(pool: &ClientPool, notifier: Notifier) -> Result<()> {
    let (moved, heard) = mpsc::channel::<(InodeId, u64)>();
    let own = notifier.clone();
    pool.run(0, move |client| async move {
        client.on_moved(move |inode, from| _ = moved.send((inode, from)));
        NOTIFIER.set(Some(own));
    })?;
    let work = move || {
        for (inode, from) in heard {
            // A length of 0: up to the end.
            tell(&notifier, inode, from as i64);
        }
    };
    std::thread::Builder::new().name("corefs-forget".into()).spawn(work).map(drop).map_err(Error::from)
}

/// The kernel must ask for an open file's attributes again. It waits for nobody to do that.
pub fn attributes_changed(inode: InodeId) {
    NOTIFIER.with_borrow(|notifier| {
        if let Some(notifier) = notifier {
            tell(notifier, inode, -1);
        }
    });
}

/// From which byte on: -1 for the attributes alone (`fuse_notify_inval_inode_out` of linux/fuse.h).
fn tell(notifier: &Notifier, inode: InodeId, from: i64) {
    // A file that the kernel doesn't know is forgotten already.
    if let Err(error) = notifier.inval_inode(INodeNo(inode.0), from, 0) {
        tracing::debug!(%error, %inode, "the kernel was not told of a change");
    }
}
