//! Every bound in one place. Whoever is at a bound gets a typed error or waits; nothing grows without one.

/// The unit of checksums, and of every O_DIRECT transfer (bytes).
pub const BLOCK: usize = 4096;

/// Chunk sizes are powers of two in this range (bytes).
pub const CHUNK_MIN: u32 = 64 << 10;
pub const CHUNK_MAX: u32 = 64 << 20;
pub const CHUNK_DEFAULT: u32 = 512 << 10;

/// Most bulk data in one frame (bytes): bounds what one request may hold in memory. Clients cut at it.
pub const FRAME_DATA_MAX: usize = 1 << 20;
/// Most structured bytes in one frame: a routing table of a large cluster is the biggest.
pub const FRAME_BODY_MAX: usize = 6 << 20;
/// Most structured bytes in a frame before the handshake has succeeded.
pub const HANDSHAKE_BODY_MAX: usize = 4 << 10;

/// Most reads in one batch frame.
pub const READ_BATCH_MAX: usize = 256;
/// Requests one connection may have unanswered at the server; beyond it the server stops reading the socket.
pub const CONNECTION_REQUESTS_MAX: usize = 1024;
/// Connections a listener holds; beyond it new ones are closed at once.
pub const CONNECTIONS_MAX: usize = 4096;
/// Bytes that may wait to be sent on one connection; beyond it sending is refused. From an eighth of it on, the side that
/// accepted the connection reads no further requests from a peer that doesn't read its replies.
pub const CONNECTION_SEND_MAX: usize = 64 << 20;
/// Updates that may wait behind the active one of a chunk; beyond it they are refused as overloaded.
pub const CHUNK_UPDATES_WAITING_MAX: usize = 64;
/// Requests that a storage shard works on or holds back for want of buffers, of all connections together.
pub const SHARD_OPERATIONS_MAX: usize = 64 << 10;
/// Chunks whose digests are compared in one step of a resync; also the most entries of one answer.
pub const COMPARE_CHUNKS_MAX: usize = 256;
/// Chunks that one target sends to the replica that it fills at the same time.
pub const FILLS_MAX: usize = 4;
/// Rows of duplicate detection in one message at the end of a resync.
pub const ROWS_MAX: usize = 4096;
/// Seconds a peer has for its handshake.
pub const HANDSHAKE_SECONDS: u64 = 5;

/// Longest file name (bytes), as Linux's NAME_MAX.
pub const NAME_MAX: usize = 255;
/// Longest path and longest symlink target (bytes, without the terminating NUL), as Linux's PATH_MAX.
pub const PATH_MAX: usize = 4095;
/// Largest file (bytes): chunk indexes are u32, so this holds from the smallest chunk size up to 256 TiB.
pub const FILE_SIZE_MAX: u64 = CHUNK_MIN as u64 * u32::MAX as u64;
/// Most hard links of one inode, as ext4's.
pub const LINK_MAX: u32 = 65_000;
/// Most bytes of a file that are kept with its inode; a file that grows beyond it moves to chunks. Less than the smallest chunk.
pub const INLINE_MAX: usize = 16 << 10;
/// Longest name of an extended attribute, its namespace included, and longest value (bytes): what Linux allows at most.
pub const XATTR_NAME_MAX: usize = 255;
pub const XATTR_VALUE_MAX: usize = 64 << 10;
/// Most bytes of an inode's extended attribute names, a NUL after each: what listxattr(2) can return.
pub const XATTR_LIST_MAX: usize = 64 << 10;
/// Most advisory locks on one file: they share one row of the store.
pub const LOCKS_MAX: usize = 1024;
/// Most open files that a client names when a name goes.
pub const HOLDS_MAX: usize = 64;
/// Most sessions that one request ends.
pub const SESSIONS_MAX: usize = 64;
/// Most changes of others that one answer tells: with the longest names they fit a frame.
pub const CHANGES_MAX: usize = 2048;
/// Most inodes in one batch stat.
pub const ATTR_BATCH_MAX: usize = 1024;
/// Most entries in one page of a directory, whatever the request asks for: a page with attributes fits a frame.
pub const DIR_PAGE_MAX: usize = 4096;

/// Copies of a chunk.
pub const REPLICAS_MAX: usize = 6;
/// Members of a chain: its replicas, and for a while those that take another's place.
pub const MEMBERS_MAX: usize = REPLICAS_MAX + 2;
/// Shards (cores) of a node.
pub const SHARDS_MAX: usize = 256;
/// Shards that may share a core: more than one gains nothing, and shows what many shards cost.
pub const SHARDS_A_CORE_MAX: usize = 8;
/// Slices of a node.
pub const SLICES_MAX: usize = 1024;

/// FoundationDB's limits, which every key-value backend keeps. Of its 10,000 bytes of a key, a cluster's name takes some
/// (`kv::fdb`).
pub const KV_KEY_MAX: usize = 9_900;
pub const KV_VALUE_MAX: usize = 100_000;
pub const KV_TRANSACTION_BYTES_MAX: usize = 10_000_000;
pub const KV_TRANSACTION_SECONDS: u64 = 5;

const _: () = assert!((CHUNK_MIN as usize).is_multiple_of(BLOCK), "a chunk is whole checksum blocks");
const _: () = assert!(FRAME_DATA_MAX.is_multiple_of(BLOCK), "a full frame carries whole checksum blocks");
const _: () =
    assert!(CONNECTION_SEND_MAX / 8 > FRAME_BODY_MAX + FRAME_DATA_MAX, "the largest frame can be queued");
const _: () = assert!(XATTR_VALUE_MAX <= KV_VALUE_MAX, "an extended attribute is one value");
const _: () = assert!(LOCKS_MAX * 48 <= KV_VALUE_MAX, "all locks of a file are one value");
const _: () =
    assert!(COMPARE_CHUNKS_MAX * 48 + ROWS_MAX * 56 < FRAME_BODY_MAX, "answers and rows fit a frame");
const _: () = assert!(KV_TRANSACTION_BYTES_MAX > KV_VALUE_MAX, "one value fits a transaction");
