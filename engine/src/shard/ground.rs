//! A shard for unit tests, that is turned by hand.

use super::{Shard, ShardConfig, SliceSpec};
use crate::disk::file::DiskFile;
use crate::disk::open::{Extent, format_slice};
use crate::disk::way::Choice;
use crate::store::Geometry;
use corefs_net::transport::Choice as Transport;
use corefs_net::{Identity, Role};
use corefs_wire::{NodeId, ShardIndex, SliceIndex, Uuid};
use std::path::Path;
use std::time::Duration;

pub const BYTES: u64 = 64 << 20;
pub const CLUSTER: Uuid = Uuid([1; 16]);

/// A disk of one slice.
pub fn disk(dir: &Path, slice: u16) -> (DiskFile, (SliceIndex, Extent, Uuid)) {
    let (index, store) = (SliceIndex(slice), Uuid([slice as u8 + 7; 16]));
    let mut file = DiskFile::create(&dir.join(index.to_string()), BYTES).unwrap();
    let geometry = Geometry::for_slice(CLUSTER, store, NodeId(1), index, BYTES).unwrap();
    format_slice(&mut file, 0, &geometry).unwrap();
    (file, (index, Extent { base: 0, bytes: BYTES }, store))
}

pub fn shard(dir: &Path) -> Shard {
    let (file, (index, extent, store)) = disk(dir, 0);
    let identity = Identity { role: Role::Storage, id: 1, incarnation: 1, cluster: CLUSTER, secret: None };
    Shard::start(ShardConfig {
        node: NodeId(1),
        shard: ShardIndex(0),
        identity,
        listen: "127.0.0.1:0".parse().unwrap(),
        disks: vec![file],
        slices: vec![SliceSpec { index, disk: 0, extent, store, format: false }],
        way: Choice::Auto,
        discard: false,
        busy_poll: Duration::ZERO,
        transport: Transport::Tcp,
        resync_rate: 1 << 20,
        scrub_rate: 0,
        pool_bytes: 16 << 20,
        record: None,
        strict: false,
    })
    .unwrap()
}
