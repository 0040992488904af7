//! Chunks that no file has are queued like those of removed files: the metadata servers remove them when the cluster is up again.

use corefs_kv::{Isolation, KvEngine, Transaction, retry};
use corefs_meta::chain_pick;
use corefs_meta::gc::Garbage;
use corefs_meta::inode_alloc::block_of;
use corefs_meta::key::{Key, Keys, table};
use corefs_meta::server::FILE_SYSTEM;
use corefs_mgmtd::rows;
use corefs_wire::layout::Layout;
use corefs_wire::routing::RoutingInfo;
use corefs_wire::{ErrorCode, InodeId, Result};
use std::collections::BTreeMap;

/// Rows in one transaction.
const BATCH: usize = 1024;

/// Queues these inodes, of which nothing but chunks is left. Returns how many: a number that wasn't given out yet, as after going back to
/// an older copy of the store, may become a file's, which would be emptied then.
pub async fn queue<E: KvEngine>(kv: &E, orphans: &[InodeId]) -> Result<usize> {
    let keys = Keys::new(FILE_SYSTEM);
    let orphans = given_out(kv, &keys, orphans).await?;
    if orphans.is_empty() {
        return Ok(0);
    }
    let row = Garbage::Doomed { layout: everywhere(kv).await?, length: 0 }.encode();
    for batch in orphans.chunks(BATCH) {
        retry::run_repeatable(kv, async |txn: &mut E::Txn| {
            batch.iter().for_each(|inode| txn.set(&keys.garbage(*inode), &row));
            Ok(())
        })
        .await?;
    }
    Ok(orphans.len())
}

/// Those whose numbers nobody gets any more.
async fn given_out<E: KvEngine>(kv: &E, keys: &Keys, orphans: &[InodeId]) -> Result<Vec<InodeId>> {
    let lanes = retry::run(kv, async |txn: &mut E::Txn| {
        txn.range_all(&keys.table(table::ID_LANE), usize::MAX, Isolation::Snapshot).await
    })
    .await?;
    let mut next = BTreeMap::new();
    for (key, value) in &lanes {
        if let (Key::IdLane(lane), Ok(block)) = (keys.parse(key)?, value.as_slice().try_into()) {
            next.insert(u64::from(lane), u64::from_le_bytes(block));
        }
    }
    let given = |inode: &InodeId| {
        let (lane, block) = block_of(*inode);
        next.get(&lane).is_some_and(|next| block < *next)
    };
    Ok(orphans.iter().copied().filter(given).collect())
}

/// A layout of every chain there is: which of them had the files nobody knows any more.
async fn everywhere<E: KvEngine>(kv: &E) -> Result<Layout> {
    let stored = retry::run(kv, async |txn: &mut E::Txn| rows::load(txn).await).await?;
    let (state, ..) = stored.ok_or(ErrorCode::NotReady)?;
    let routing = RoutingInfo {
        chunk_size: state.formation.chunk_size,
        tables: state.tables,
        ..RoutingInfo::default()
    };
    chain_pick::pick(&routing, 0, u32::MAX, 0)
}
