//! Between the store's own types and the messages of `wire/schemas/kv.fbs`. Pure. What comes from the wire is
//! checked here only as far as it must be to have a type; sizes and keys are [`bounds`](crate::bounds)' business.

use crate::bounds::{mutation_bytes, range_bytes};
use crate::contract::{Atomic, Direction, KeyRange, RangePage, RangeRead, Versionstamp};
use crate::contract::{Committed, next_key};
use crate::mutation::Mutation;
use crate::store::Commit;
use corefs_wire::control::kv::{
    CommitReplyT, CommitRequestT, ConflictRangeT, MutationKind, MutationT, PairT, RangeReadT, RangeResultT,
    ValueT,
};
use corefs_wire::{Error, ErrorCode, Result};

/// A generated message: they can only be built from their default outside of their crate.
macro_rules! message {
    ($type:ident { $($field:ident: $value:expr),* $(,)? }) => {{
        let mut message = $type::default();
        $(message.$field = $value;)*
        message
    }};
}
pub(crate) use message;

/// Most bytes of keys, values and ranges in one request. With what FlatBuffers add it fits a frame.
pub const REQUEST_BYTES_MAX: usize = 2 << 20;
/// Most keys or mutations in one request: small ones have mostly overhead.
pub const REQUEST_ITEMS_MAX: usize = 1 << 13;

pub fn encode_range_read(read: &RangeRead) -> RangeReadT {
    message!(RangeReadT {
        begin: read.range.begin.clone(),
        end: read.range.end.clone(),
        limit: u32::try_from(read.limit).unwrap_or(u32::MAX),
        reverse: read.direction == Direction::Reverse,
    })
}

pub fn decode_range_read(read: RangeReadT) -> RangeRead {
    let direction = if read.reverse { Direction::Reverse } else { Direction::Forward };
    RangeRead { range: KeyRange { begin: read.begin, end: read.end }, limit: read.limit as usize, direction }
}

pub fn encode_value(value: Option<Vec<u8>>) -> ValueT {
    message!(ValueT { present: value.is_some(), bytes: value.unwrap_or_default() })
}

pub fn decode_value(value: ValueT) -> Option<Vec<u8>> {
    value.present.then_some(value.bytes)
}

pub fn encode_page(page: RangePage) -> RangeResultT {
    let pairs =
        page.pairs.into_iter().map(|(key, value)| message!(PairT { key: key, value: value })).collect();
    message!(RangeResultT { pairs: pairs, more: page.more })
}

pub fn decode_page(page: RangeResultT) -> RangePage {
    let pairs = page.pairs.into_iter().map(|pair| (pair.key, pair.value)).collect();
    RangePage { pairs, more: page.more }
}

fn encode_conflict(range: KeyRange) -> ConflictRangeT {
    let single = range.end.strip_prefix(range.begin.as_slice()) == Some(&[0]);
    let end = if single { Vec::new() } else { range.end };
    message!(ConflictRangeT { begin: range.begin, end: end })
}

fn decode_conflict(range: ConflictRangeT) -> KeyRange {
    let end = if range.end.is_empty() { next_key(&range.begin) } else { range.end };
    KeyRange { begin: range.begin, end }
}

fn encode_mutation(mutation: Mutation) -> MutationT {
    let of = |kind, key, value, stamp_at: usize| {
        message!(MutationT { kind: kind, key: key, value: value, stamp_at: stamp_at as u32 })
    };
    match mutation {
        Mutation::Set { key, value } => of(MutationKind::Set, key, value, 0),
        Mutation::Clear { key } => of(MutationKind::Clear, key, Vec::new(), 0),
        Mutation::ClearRange(range) => of(MutationKind::ClearRange, range.begin, range.end, 0),
        Mutation::Atomic { operation: Atomic::Add, key, operand } => of(MutationKind::Add, key, operand, 0),
        Mutation::Atomic { operation: Atomic::Max, key, operand } => of(MutationKind::Max, key, operand, 0),
        Mutation::StampedKey { key, stamp_at, value } => {
            of(MutationKind::VersionstampedKey, key, value, stamp_at)
        }
        Mutation::StampedValue { key, stamp_at, value } => {
            of(MutationKind::VersionstampedValue, key, value, stamp_at)
        }
    }
}

fn decode_mutation(mutation: MutationT) -> Result<Mutation> {
    let MutationT { kind, key, value, stamp_at, .. } = mutation;
    let stamp_at = stamp_at as usize;
    Ok(match kind {
        MutationKind::Set => Mutation::Set { key, value },
        MutationKind::Clear => Mutation::Clear { key },
        MutationKind::ClearRange => Mutation::ClearRange(KeyRange { begin: key, end: value }),
        MutationKind::Add => Mutation::Atomic { operation: Atomic::Add, key, operand: value },
        MutationKind::Max => Mutation::Atomic { operation: Atomic::Max, key, operand: value },
        MutationKind::VersionstampedKey => Mutation::StampedKey { key, stamp_at, value },
        MutationKind::VersionstampedValue => Mutation::StampedValue { key, stamp_at, value },
        MutationKind(other) => {
            let what = "an unknown kind of mutation";
            return Err(Error::mismatch(
                ErrorCode::BadFrame,
                MutationKind::ENUM_MAX.into(),
                other.into(),
                what,
            ));
        }
    })
}

/// Fills requests one after the other.
struct Requests {
    done: Vec<CommitRequestT>,
    current: CommitRequestT,
    bytes: usize,
    items: usize,
}

impl Requests {
    /// The request that takes `bytes` more.
    fn room(&mut self, bytes: usize) -> &mut CommitRequestT {
        if self.items > 0 && (self.bytes + bytes > REQUEST_BYTES_MAX || self.items >= REQUEST_ITEMS_MAX) {
            self.done.push(std::mem::take(&mut self.current));
            (self.bytes, self.items) = (0, 0);
        }
        self.bytes += bytes;
        self.items += 1;
        &mut self.current
    }
}

/// The requests that carry `commit`, in their order; one unless it is large.
pub fn encode_commit(commit: Commit, assembly: u64, released: Vec<u64>) -> Vec<CommitRequestT> {
    let read_version = commit.read_version;
    let mut requests = Requests { done: Vec::new(), current: CommitRequestT::default(), bytes: 0, items: 0 };
    for range in commit.read_conflicts {
        requests.room(range_bytes(&range)).read_conflicts.push(encode_conflict(range));
    }
    for range in commit.write_conflicts {
        requests.room(range_bytes(&range)).write_conflicts.push(encode_conflict(range));
    }
    for mutation in commit.mutations {
        requests.room(mutation_bytes(&mutation)).mutations.push(encode_mutation(mutation));
    }
    let mut requests = requests.done.into_iter().chain([requests.current]).collect::<Vec<_>>();
    let last = requests.len() - 1;
    for (place, request) in requests.iter_mut().enumerate() {
        request.assembly = assembly;
        request.part = place as u32;
        request.unfinished = place < last;
    }
    requests[last].read_version = read_version;
    requests[last].released = Some(released);
    requests
}

/// Adds what `request` carries to `commit`.
pub fn decode_commit(request: CommitRequestT, commit: &mut Commit) -> Result<()> {
    commit.read_version = request.read_version;
    commit.read_conflicts.extend(request.read_conflicts.into_iter().map(decode_conflict));
    commit.write_conflicts.extend(request.write_conflicts.into_iter().map(decode_conflict));
    for mutation in request.mutations {
        commit.mutations.push(decode_mutation(mutation)?);
    }
    Ok(())
}

pub fn encode_committed(committed: Committed) -> CommitReplyT {
    let versionstamp = committed.versionstamp.map_or(Vec::new(), |stamp| stamp.0.to_vec());
    message!(CommitReplyT { version: committed.version, versionstamp: versionstamp })
}

pub fn decode_committed(reply: CommitReplyT) -> Result<Committed> {
    let versionstamp = match reply.versionstamp.as_slice() {
        [] => None,
        stamp => Some(Versionstamp::parse(stamp)?),
    };
    Ok(Committed { version: reply.version, versionstamp })
}

#[cfg(test)]
mod tests {
    use super::*;
    use corefs_wire::control::Message;
    use corefs_wire::limits::FRAME_BODY_MAX;

    fn round_trip(commit: Commit) -> usize {
        let requests = encode_commit(commit.clone(), 7, vec![1, 1, 2]);
        let mut decoded = Commit::default();
        for (place, request) in requests.iter().enumerate() {
            assert_eq!((request.unfinished, request.assembly), (place + 1 < requests.len(), 7));
            let bytes = request.encode();
            assert!(bytes.len() < FRAME_BODY_MAX, "{} bytes", bytes.len());
            decode_commit(CommitRequestT::decode(&bytes).unwrap(), &mut decoded).unwrap();
        }
        assert_eq!(decoded, commit);
        assert_eq!(requests.last().unwrap().released, Some(vec![1, 1, 2]));
        requests.len()
    }

    #[test]
    fn commits_survive_the_round_trip() {
        let key = || b"key".to_vec();
        let stamped = [b"k".as_slice(), &[0; 10]].concat();
        let commit = Commit {
            read_version: 9,
            read_conflicts: vec![KeyRange::single(b""), KeyRange::single(b"a"), KeyRange::new(*b"a", *b"b")],
            write_conflicts: vec![KeyRange::prefix(b"x")],
            mutations: vec![
                Mutation::Set { key: key(), value: vec![1] },
                Mutation::Clear { key: key() },
                Mutation::ClearRange(KeyRange::prefix(b"p")),
                Mutation::Atomic { operation: Atomic::Add, key: key(), operand: vec![2] },
                Mutation::Atomic { operation: Atomic::Max, key: key(), operand: vec![3] },
                Mutation::StampedKey { key: stamped.clone(), stamp_at: 1, value: vec![4] },
                Mutation::StampedValue { key: key(), stamp_at: 1, value: stamped },
            ],
        };
        assert_eq!(round_trip(commit), 1);
        assert_eq!(round_trip(Commit::default()), 1);
    }

    #[test]
    fn large_commits_come_in_frames() {
        let set = |number: u32| Mutation::Set { key: number.to_be_bytes().to_vec(), value: vec![7; 90_000] };
        let large = Commit { mutations: (0..100).map(set).collect(), ..Commit::default() };
        assert!(round_trip(large) > 3);
        let tiny = |number: u32| Mutation::Clear { key: number.to_be_bytes().to_vec() };
        let many = Commit { mutations: (0..100_000).map(tiny).collect(), ..Commit::default() };
        assert!(round_trip(many) > 10);
    }

    #[test]
    fn unknown_mutations_are_refused() {
        let mutation = message!(MutationT { kind: MutationKind(9) });
        let request = message!(CommitRequestT { mutations: vec![mutation] });
        let error = decode_commit(request, &mut Commit::default()).unwrap_err();
        assert_eq!(error.code, ErrorCode::BadFrame);
    }
}
