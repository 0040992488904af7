//! What FoundationDB's error codes mean in the terms of the contract. Pure.
//!
//! The numbers are of `flow/error_definitions.h` and of the API reference, "Error Codes".

use corefs_wire::ErrorCode;

/// Where an error came up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum During {
    /// A read, or what precedes a commit: nothing was written.
    Read,
    /// A commit that was sent: what isn't known not to have happened may have.
    Commit,
}

/// What the library itself says of a code (`fdb_error_predicate`).
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Predicates {
    pub maybe_committed: bool,
    pub retryable_not_committed: bool,
}

/// The contract's error for FoundationDB's `code`.
pub fn translate(code: i32, predicates: Predicates, during: During) -> ErrorCode {
    match code {
        1007 => ErrorCode::KvTooOld,               // transaction_too_old
        1020 => ErrorCode::KvConflict,             // not_committed
        1036 => ErrorCode::KvUnreadable,           // accessed_unreadable
        2101..=2103 => ErrorCode::KvTooLarge,      // transaction_too_large, key_too_large, value_too_large
        2004 | 2005 => ErrorCode::InvalidArgument, // key_outside_legal_range, inverted_range
        // All that the proxies and the rate keeper turn away, and a locked database.
        1037 | 1038 | 1042 | 1051 | 1078 | 1213 | 1223 => ErrorCode::KvUnavailable,
        _ if during == During::Commit && predicates.maybe_committed => ErrorCode::KvUnknownCommit,
        _ if predicates.retryable_not_committed => ErrorCode::KvUnavailable,
        // transaction_timed_out, operation_cancelled, broken_promise, and whatever a later version adds.
        1000..2000 => match during {
            During::Read => ErrorCode::KvUnavailable,
            During::Commit => ErrorCode::KvUnknownCommit,
        },
        // The client refused the call: nothing was sent.
        2000..4000 => ErrorCode::InvalidArgument,
        _ => match during {
            During::Read => ErrorCode::KvIo,
            During::Commit => ErrorCode::KvUnknownCommit,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use corefs_wire::Class;

    const NONE: Predicates = Predicates { maybe_committed: false, retryable_not_committed: false };

    #[test]
    fn what_may_have_happened_is_never_said_not_to_have() {
        let maybe = Predicates { maybe_committed: true, ..NONE };
        for code in [1021, 1039] {
            assert_eq!(translate(code, maybe, During::Commit), ErrorCode::KvUnknownCommit);
            assert_eq!(translate(code, maybe, During::Read), ErrorCode::KvUnavailable);
        }
        // Timed out, cancelled, and codes that nobody has heard of.
        for code in [1031, 1025, 1999, 4100, 9999, -1] {
            assert_eq!(translate(code, NONE, During::Commit), ErrorCode::KvUnknownCommit, "{code}");
            assert_ne!(translate(code, NONE, During::Read), ErrorCode::KvUnknownCommit, "{code}");
        }
    }

    #[test]
    fn what_is_known_keeps_its_meaning() {
        for during in [During::Read, During::Commit] {
            let of = |code| translate(code, NONE, during);
            assert_eq!(of(1020), ErrorCode::KvConflict);
            assert_eq!(of(1007), ErrorCode::KvTooOld);
            assert_eq!(of(1036), ErrorCode::KvUnreadable);
            assert_eq!([2101, 2102, 2103].map(of), [ErrorCode::KvTooLarge; 3]);
            assert_eq!([2000, 2004, 2006, 2108].map(of), [ErrorCode::InvalidArgument; 4]);
            assert_eq!([1037, 1038, 1042, 1051, 1078, 1213, 1223].map(of), [ErrorCode::KvUnavailable; 7]);
            let later = Predicates { retryable_not_committed: true, ..NONE };
            assert_eq!(translate(1998, later, during), ErrorCode::KvUnavailable);
        }
        assert_eq!(translate(1009, NONE, During::Read).class(), Class::Retry);
    }
}
