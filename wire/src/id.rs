//! Names of things. Numbers are never reused; each has its own type so that one can't stand in for another.

use std::fmt;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty), $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(transparent)]
        pub struct $name(pub $inner);
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

id!(/** One storage server process and its disks. Assigned by the manager, kept in the node's directory. */
    NodeId(u32), "node-");
id!(/** One replica store of one chain, a logical space inside one slice. */
    TargetId(u64), "target-");
id!(/** An ordered list of targets that hold the same chunks. */
    ChainId(u64), "chain-");
id!(/** A file, directory or other object of the namespace. */
    InodeId(u64), "inode-");
id!(/** One client process, from start to end. Never reused. */
    ClientId(u64), "client-");
id!(/** Position of a shard (one pinned executor) within its node. */
    ShardIndex(u16), "shard-");
id!(/** Position of a slice (a byte range of a disk owned by one shard) within its node. */
    SliceIndex(u16), "slice-");

/// The root directory of every file system.
pub const ROOT_INODE: InodeId = InodeId(1);

/// One fixed-size piece of a file: which inode, which piece, and the snapshot generation that wrote it.
///
/// Ordered by inode, then index, then generation: the chunks of a file are neighbours.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    Debug,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(C)]
pub struct ChunkId {
    pub inode: InodeId,
    pub index: u32,
    pub generation: u32,
}

impl ChunkId {
    /// The last in order.
    pub const MAX: Self = Self { inode: InodeId(u64::MAX), index: u32::MAX, generation: u32::MAX };

    pub const fn new(inode: InodeId, index: u32) -> Self {
        Self { inode, index, generation: 0 }
    }

    /// The next in order, `None` after the last.
    pub fn next(self) -> Option<Self> {
        let (generation, carry) = self.generation.overflowing_add(1);
        let (index, carry) = self.index.overflowing_add(carry.into());
        let inode = self.inode.0.checked_add(carry.into())?;
        Some(Self { inode: InodeId(inode), index, generation })
    }
}

impl fmt::Display for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.inode, self.index)?;
        if self.generation != 0 { write!(f, "@{}", self.generation) } else { Ok(()) }
    }
}

/// What makes a retried update recognisable anywhere in the chain: at most one update of a channel is in
/// flight, and its sequence rises by one with each.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    Debug,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(C)]
pub struct UpdateTag {
    pub client: ClientId,
    pub sequence: u64,
    pub incarnation: u32,
    pub channel: u32,
}

/// A random 128-bit name: of a cluster, of a slice's store.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(transparent)]
pub struct Uuid(pub [u8; 16]);

impl Uuid {
    pub const NIL: Self = Self([0; 16]);

    /// Reads the 32 hexadecimal digits that `Display` writes; anything else is `None`.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.as_bytes();
        if text.len() != 32 || !text.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        let mut out = [0; 16];
        for (byte, pair) in out.iter_mut().zip(text.chunks_exact(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(Self(out))
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_follow_each_other() {
        let chunk = |inode, index, generation| ChunkId { inode: InodeId(inode), index, generation };
        assert_eq!(chunk(1, 2, 3).next(), Some(chunk(1, 2, 4)));
        assert_eq!(chunk(1, 2, u32::MAX).next(), Some(chunk(1, 3, 0)));
        assert_eq!(chunk(1, u32::MAX, u32::MAX).next(), Some(chunk(2, 0, 0)));
        assert_eq!(ChunkId::MAX.next(), None);
    }

    #[test]
    fn uuid_reads_what_it_writes() {
        let uuid = Uuid(*b"0123456789abcdef");
        assert_eq!(Uuid::parse(&uuid.to_string()), Some(uuid));
        assert_eq!(Uuid::parse("xyz"), None);
        assert_eq!(Uuid::parse(&"é".repeat(16)), None);
    }
}
