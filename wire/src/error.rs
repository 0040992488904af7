//! Errors with stable numbers. Callers branch on the [`Class`], people read the message.
//!
//! Ranges: 1xx transport, 2xx routing and replication, 3xx store and disk, 4xx namespace, 5xx key-value
//! store, 6xx manager, 7xx configuration and local set-up. Errno exists only in the mount.

use std::fmt;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a caller does about an error.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Class {
    /// Try the same thing again after a pause: nothing is wrong with the request.
    Retry,
    /// Fetch routing first, then try again.
    Refresh,
    /// The request can't succeed as it is.
    Fatal,
}

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $class:ident;)*) => {
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(u32)]
        pub enum ErrorCode { $($(#[$doc])* $name = $number,)* }
        impl ErrorCode {
            /// Every code, in order: the documentation's table is rendered from it.
            pub const ALL: &[ErrorCode] = &[$(ErrorCode::$name,)*];
            /// The code of a number, `None` for one that this version doesn't know.
            pub fn from_number(number: u32) -> Option<Self> {
                match number { $($number => Some(Self::$name),)* _ => None }
            }
            pub fn class(self) -> Class {
                match self { $(Self::$name => Class::$class,)* }
            }
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* }
            }
        }
    };
}

codes! {
    /// The peer closed or the network failed; the outcome of an update in flight is unknown.
    ConnectionLost = 100, Retry;
    /// No reply before the deadline; the outcome is unknown.
    TimedOut = 101, Retry;
    /// A frame that breaks the protocol: bad magic, length, checksum or contents. The connection is closed.
    BadFrame = 102, Fatal;
    /// No protocol version in common.
    VersionMismatch = 103, Fatal;
    /// The peer does not know the cluster's secret.
    AuthenticationFailed = 104, Fatal;
    /// The peer belongs to another cluster.
    WrongCluster = 105, Fatal;
    /// A bound of the peer was reached; back off.
    Overloaded = 106, Retry;
    /// The peer doesn't know this operation.
    UnknownOperation = 107, Fatal;
    /// The server is stopping.
    ShuttingDown = 108, Refresh;
    /// No connection could be made.
    Unreachable = 109, Refresh;
    /// Bad argument values: lengths, offsets or counts out of their range.
    InvalidArgument = 110, Fatal;

    /// The chain version in the request isn't the shard's.
    StaleRouting = 200, Refresh;
    /// The target lives on another shard of this or another node.
    WrongShard = 201, Refresh;
    /// No such chain.
    UnknownChain = 202, Refresh;
    /// The target can't serve this in its present state.
    NotServing = 203, Refresh;
    /// The write's truncate epoch is older than the chunk's.
    StaleLayout = 204, Refresh;
    /// An update is in progress on the chunk; ask again or ask another replica.
    Pending = 205, Retry;
    /// The tag is older than the newest one seen of its channel.
    Duplicate = 206, Fatal;
    /// A successor refused or could not be reached.
    ChainBroken = 207, Refresh;
    /// The shard's lease has run out.
    LeaseExpired = 208, Refresh;
    /// Replicas hold different bytes and each is sure of its own.
    ReplicasDiffer = 209, Fatal;
    /// A replica that is being filled lacks what the update builds on: it needs the whole chunk first. Expected is 1 if its
    /// copy is to be replaced even though it looks the same.
    NeedsWhole = 210, Retry;
    /// A replica that is being filled doesn't hold what the fill was made for.
    BaseDiffers = 211, Retry;

    /// The chunk has never been written.
    NoSuchChunk = 300, Fatal;
    /// No room on the slice.
    NoSpace = 301, Fatal;
    /// Stored bytes don't match their checksum.
    Corrupt = 302, Fatal;
    /// The disk reported an error.
    DiskError = 303, Fatal;
    /// The slice was taken out of service after a failed write or flush.
    SliceDead = 304, Fatal;
    /// Bytes in flight don't match their checksum.
    ChecksumMismatch = 305, Retry;
    /// The superblock, journal or checkpoint is of another store or version.
    BadFormat = 306, Fatal;

    /// No such file or directory.
    NotFound = 400, Fatal;
    /// The name exists.
    Exists = 401, Fatal;
    NotDirectory = 402, Fatal;
    IsDirectory = 403, Fatal;
    NotEmpty = 404, Fatal;
    NameTooLong = 405, Fatal;
    /// A directory would become its own descendant.
    WouldLoop = 406, Fatal;
    TooManyLinks = 407, Fatal;
    PermissionDenied = 408, Fatal;
    FileTooLarge = 409, Fatal;
    InvalidName = 410, Fatal;
    NotSymlink = 411, Fatal;
    /// The caller may not do this whatever the mode bits say.
    NotPermitted = 412, Fatal;
    NoSuchSession = 413, Fatal;
    NotSupported = 414, Fatal;
    /// Too many symbolic links on the way.
    TooManySymlinks = 415, Fatal;
    /// Renaming or linking onto an incompatible kind.
    CrossKind = 416, Fatal;
    /// Somebody else holds a lock of these bytes.
    Locked = 417, Fatal;
    TooManyLocks = 418, Fatal;
    /// No extended attribute of that name.
    NoSuchAttribute = 419, Fatal;
    /// Extended attributes beyond what an inode may have.
    AttributesTooLarge = 420, Fatal;
    /// Nothing of what was looked for lies at or after that place of the file.
    PastEnd = 421, Fatal;
    /// Whoever waited for it doesn't want it any more.
    Interrupted = 422, Fatal;
    /// What was known by its number is gone: its last name was removed, perhaps by another client. A name may lead to something
    /// else by now, so it is worth being looked up again.
    NoSuchInode = 423, Fatal;
    /// The file doesn't keep its bytes with its inode, or was truncated since its epoch was learned.
    MovedOut = 424, Fatal;

    /// Another transaction wrote what this one read.
    KvConflict = 500, Retry;
    /// The commit may or may not have happened.
    KvUnknownCommit = 501, Retry;
    /// The transaction's snapshot is gone.
    KvTooOld = 502, Retry;
    KvTooLarge = 503, Fatal;
    KvUnavailable = 504, Retry;
    KvIo = 505, Fatal;
    /// The transaction reads what is only known after its commit (a versionstamp).
    KvUnreadable = 506, Fatal;

    /// This manager isn't the leader.
    NotPrimary = 600, Refresh;
    /// The cluster has not been formed yet.
    NotReady = 601, Retry;
    /// A node's identity and what the manager knows of it disagree.
    NodeConflict = 602, Fatal;
    /// Too few nodes for the replicas asked for.
    TooFewNodes = 603, Fatal;

    /// A flag, file or environment value makes no sense.
    BadConfig = 700, Fatal;
    /// The directory belongs to another cluster or a running process.
    DirectoryInUse = 701, Fatal;
    AddressInUse = 702, Fatal;
    /// Something the operating system refused.
    Os = 703, Fatal;
    /// A bug: an invariant did not hold.
    Internal = 799, Fatal;
}

/// An error with its number, what was expected and found (zero where that means nothing), and a sentence.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Error {
    pub code: ErrorCode,
    pub expected: u64,
    pub actual: u64,
    pub message: String,
}

impl Error {
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, expected: 0, actual: 0, message: message.into() }
    }

    /// An error that carries the two values that disagree.
    pub fn mismatch(code: ErrorCode, expected: u64, actual: u64, message: impl Into<String>) -> Self {
        Self { code, expected, actual, message: message.into() }
    }

    pub fn class(&self) -> Class {
        self.code.class()
    }

    /// The same error with `what` in front of its message: which file, which peer.
    #[must_use]
    pub fn of(mut self, what: impl fmt::Display) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }
}

impl From<ErrorCode> for Error {
    fn from(code: ErrorCode) -> Self {
        Self::new(code, "")
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        let code = match error.kind() {
            std::io::ErrorKind::AddrInUse => ErrorCode::AddressInUse,
            std::io::ErrorKind::StorageFull => ErrorCode::NoSpace,
            std::io::ErrorKind::ConnectionRefused => ErrorCode::Unreachable,
            std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::BrokenPipe => ErrorCode::ConnectionLost,
            _ => ErrorCode::Os,
        };
        Self::new(code, error.to_string())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (error {})", self.code.name(), self.code as u32)?;
        if !self.message.is_empty() {
            write!(f, ": {}", self.message)?;
        }
        if self.expected != 0 || self.actual != 0 {
            write!(f, " [expected {}, found {}]", self.expected, self.actual)?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

/// Most bytes of a message that travels; longer ones are cut.
pub const ERROR_MESSAGE_MAX: usize = 1 << 10;

/// The body of a reply whose header's status is `error.code`: expected u64, actual u64, the message in UTF-8 to the end.
pub fn encode_error(error: &Error) -> Vec<u8> {
    let end = error.message.floor_char_boundary(ERROR_MESSAGE_MAX);
    let mut body = Vec::with_capacity(16 + end);
    body.extend_from_slice(&error.expected.to_le_bytes());
    body.extend_from_slice(&error.actual.to_le_bytes());
    body.extend_from_slice(&error.message.as_bytes()[..end]);
    body
}

/// Reads what [`encode_error`] wrote, from anybody: a number that this version doesn't know becomes `Internal` and is
/// named in the message; a body that is cut off or isn't UTF-8 loses only what can't be read.
pub fn decode_error(status: u32, body: &[u8]) -> Error {
    let number = |at: usize| {
        body.get(at..at + 8).map_or(0, |bytes| bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b)))
    };
    let (expected, actual) = (number(0), number(8));
    let text = body.get(16..).unwrap_or_default();
    let message = String::from_utf8_lossy(&text[..text.len().min(ERROR_MESSAGE_MAX)]).into_owned();
    let error = |code, message| Error { code, expected, actual, message };
    match ErrorCode::from_number(status) {
        Some(code) => error(code, message),
        None => error(ErrorCode::Internal, format!("unknown error {status}: {message}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_unique_and_known() {
        for code in ErrorCode::ALL {
            assert_eq!(ErrorCode::from_number(*code as u32), Some(*code));
        }
        assert_eq!(ErrorCode::from_number(0), None);
    }

    #[test]
    fn an_error_survives_the_round_trip_and_garbage_is_an_error_too() {
        let error = Error::mismatch(ErrorCode::StaleRouting, 7, u64::MAX, "größer");
        assert_eq!(decode_error(error.code as u32, &encode_error(&error)), error);
        let long = Error::new(ErrorCode::Os, "é".repeat(ERROR_MESSAGE_MAX));
        assert_eq!(decode_error(703, &encode_error(&long)).message.len(), ERROR_MESSAGE_MAX);
        assert_eq!(
            decode_error(700, &[1; 9]),
            Error::mismatch(ErrorCode::BadConfig, 0x0101_0101_0101_0101, 0, "")
        );
        assert_eq!(decode_error(9, b"").message, "unknown error 9: ");
        assert_eq!(decode_error(100, &[0xFF; 17]).message, "\u{FFFD}");
    }
}
