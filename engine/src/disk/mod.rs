//! Disks: O_DIRECT files and block devices on the shard's ring.

pub mod bench;
