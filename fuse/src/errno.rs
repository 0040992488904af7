//! The one place where corefs errors become errno values.
//!
//! Sources: errno(3), and the ERRORS sections of the system calls that a mount serves.

use corefs_wire::{Error, ErrorCode};
use fuser::Errno;

/// A request that makes no sense.
pub const INVALID: Errno = Errno::EINVAL;
/// We don't serve this kind of request: the kernel stops asking and does without.
pub const STOP_ASKING: Errno = Errno::ENOSYS;

/// No extended attribute of that name.
pub const NO_ATTRIBUTE: Errno = Errno::ENODATA;
/// The program's buffer is too small for the answer.
pub const TOO_SMALL: Errno = Errno::ERANGE;
/// This isn't done here, and asking for something else may be.
pub const NOT_SUPPORTED: Errno = Errno::EOPNOTSUPP;

/// The errno that the kernel hands to the program for an error of ours.
pub fn errno(error: &Error) -> Errno {
    match error.code {
        ErrorCode::NotFound | ErrorCode::NoSuchChunk => Errno::ENOENT,
        // The kernel asks for the names on the way again, once, before a program hears of it.
        ErrorCode::NoSuchInode => Errno::ESTALE,
        ErrorCode::Exists => Errno::EEXIST,
        ErrorCode::NotDirectory => Errno::ENOTDIR,
        ErrorCode::IsDirectory => Errno::EISDIR,
        ErrorCode::NotEmpty => Errno::ENOTEMPTY,
        ErrorCode::NameTooLong => Errno::ENAMETOOLONG,
        ErrorCode::WouldLoop
        | ErrorCode::InvalidName
        | ErrorCode::InvalidArgument
        | ErrorCode::NotSymlink
        | ErrorCode::CrossKind => Errno::EINVAL,
        ErrorCode::TooManyLinks => Errno::EMLINK,
        ErrorCode::PermissionDenied => Errno::EACCES,
        ErrorCode::NotPermitted => Errno::EPERM,
        ErrorCode::FileTooLarge => Errno::EFBIG,
        ErrorCode::TooManySymlinks => Errno::ELOOP,
        ErrorCode::NotSupported | ErrorCode::UnknownOperation => Errno::EOPNOTSUPP,
        ErrorCode::NoSuchSession => Errno::EBADF,
        ErrorCode::NoSpace | ErrorCode::AttributesTooLarge => Errno::ENOSPC,
        ErrorCode::NoSuchAttribute => NO_ATTRIBUTE,
        ErrorCode::Locked => Errno::EAGAIN,
        ErrorCode::TooManyLocks => Errno::ENOLCK,
        ErrorCode::PastEnd => Errno::ENXIO,
        ErrorCode::Interrupted => Errno::EINTR,
        // A damaged block, a dead slice or a lost peer all mean: this one operation could not be done.
        _ => Errno::EIO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_programs_branch_on_is_exact() {
        let number = |code: ErrorCode| i32::from(errno(&Error::from(code)));
        assert_eq!(number(ErrorCode::NoSpace), libc::ENOSPC);
        assert_eq!(number(ErrorCode::NotFound), libc::ENOENT);
        assert_eq!(number(ErrorCode::NoSuchInode), libc::ESTALE);
        assert_eq!(number(ErrorCode::Corrupt), libc::EIO);
        assert_eq!(number(ErrorCode::WouldLoop), libc::EINVAL);
    }
}
