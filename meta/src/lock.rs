//! Advisory locks on ranges of a file's bytes, as fcntl(2) has them (`F_SETLK`). One row holds all locks of an inode.
//!
//! Invariants of the list
//! - Locks of one owner don't overlap, and equal ones that touch are one.
//! - An exclusive lock overlaps no lock of another owner.
//! - Each lock belongs to a client whose row is in the store, so that it goes with that client's lease.

use crate::encoding::{Reader, Writer};
use corefs_wire::limits::LOCKS_MAX;
use corefs_wire::{ClientId, Error, ErrorCode, Result};

/// Who holds a lock: a process or an open file of one client, under the number that its mount gives it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Owner {
    pub client: ClientId,
    pub number: u64,
}

/// The bytes from `start` to `end`, both included.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Lock {
    pub owner: Owner,
    pub start: u64,
    pub end: u64,
    pub exclusive: bool,
    /// For `F_GETLK`, which tells people who is in the way.
    pub pid: u32,
}

impl Lock {
    fn overlaps(&self, other: &Lock) -> bool {
        self.start <= other.end && other.start <= self.end
    }
}

/// All locks of one inode.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Locks(Vec<Lock>);

const VERSION: u8 = 1;

impl Locks {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn clients(&self) -> impl Iterator<Item = ClientId> + '_ {
        self.0.iter().map(|lock| lock.owner.client)
    }

    /// A lock that keeps `wanted` from being granted.
    pub fn in_the_way(&self, wanted: &Lock) -> Option<&Lock> {
        self.0.iter().find(|lock| {
            lock.owner != wanted.owner && lock.overlaps(wanted) && (lock.exclusive || wanted.exclusive)
        })
    }

    /// Takes whatever `range`'s owner holds of its bytes away.
    pub fn release(&mut self, range: &Lock) {
        let mut rest = Vec::with_capacity(self.0.len() + 1);
        for lock in &self.0 {
            if lock.owner != range.owner || !lock.overlaps(range) {
                rest.push(*lock);
                continue;
            }
            if lock.start < range.start {
                rest.push(Lock { end: range.start - 1, ..*lock });
            }
            if lock.end > range.end {
                rest.push(Lock { start: range.end + 1, ..*lock });
            }
        }
        self.0 = rest;
    }

    /// Grants `wanted`, in place of what its owner held of these bytes. Only if nothing is in the way; `TooManyLocks` at the
    /// bound.
    pub fn grant(&mut self, mut wanted: Lock) -> Result<()> {
        self.release(&wanted);
        self.0.retain(|lock| {
            let same = lock.owner == wanted.owner && lock.exclusive == wanted.exclusive;
            let touches = lock.end.checked_add(1) == Some(wanted.start)
                || wanted.end.checked_add(1) == Some(lock.start);
            if same && touches {
                wanted.start = wanted.start.min(lock.start);
                wanted.end = wanted.end.max(lock.end);
            }
            !(same && touches)
        });
        self.0.push(wanted);
        self.0.sort_by_key(|lock| (lock.start, lock.owner));
        if self.0.len() <= LOCKS_MAX {
            return Ok(());
        }
        let (most, found) = (LOCKS_MAX as u64, self.0.len() as u64);
        Err(Error::mismatch(ErrorCode::TooManyLocks, most, found, "too many locks on one file"))
    }

    /// Drops the locks of clients that are gone; whether there were any.
    pub fn drop_clients(&mut self, gone: impl Fn(ClientId) -> bool) -> bool {
        let before = self.0.len();
        self.0.retain(|lock| !gone(lock.owner.client));
        self.0.len() != before
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new(VERSION);
        writer.varint(self.0.len() as u64);
        for lock in &self.0 {
            writer.varint(lock.owner.client.0).fixed(lock.owner.number).varint(lock.pid.into());
            writer.varint(lock.start).varint(lock.end - lock.start).byte(lock.exclusive.into());
        }
        writer.finish()
    }

    pub fn decode(value: &[u8]) -> Result<Self> {
        let (mut reader, _) = Reader::new("list of locks", value, VERSION)?;
        let count = reader.varint()?;
        let mut locks = Vec::new();
        for _ in 0..count {
            let owner = Owner { client: ClientId(reader.varint()?), number: reader.fixed()? };
            let (pid, start, length) = (reader.varint32()?, reader.varint()?, reader.varint()?);
            let end = start.checked_add(length).ok_or_else(|| reader.corrupt())?;
            locks.push(Lock { owner, start, end, exclusive: reader.byte()? != 0, pid });
        }
        reader.end()?;
        Ok(Self(locks))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lock(number: u64, start: u64, end: u64, exclusive: bool) -> Lock {
        Lock { owner: Owner { client: ClientId(300), number }, start, end, exclusive, pid: 7 }
    }

    #[test]
    fn bytes_are_golden() {
        let locks = Locks(vec![lock(2, 1, 300, true)]);
        assert_eq!(locks.encode(), [1, 1, 0xAC, 2, 2, 0, 0, 0, 0, 0, 0, 0, 7, 1, 0xAB, 2, 1]);
        assert_eq!(Locks::decode(&locks.encode()), Ok(locks.clone()));
        for end in 0..locks.encode().len() {
            assert!(Locks::decode(&locks.encode()[..end]).is_err());
        }
    }

    #[test]
    fn ranges_split_and_join() {
        let mut locks = Locks::default();
        locks.grant(lock(1, 0, 99, true)).unwrap();
        locks.grant(lock(1, 40, 49, false)).unwrap();
        assert_eq!(locks.0, [lock(1, 0, 39, true), lock(1, 40, 49, false), lock(1, 50, 99, true)]);
        locks.grant(lock(1, 40, 49, true)).unwrap();
        assert_eq!(locks.0, [lock(1, 0, 99, true)]);
        locks.release(&lock(1, 10, u64::MAX, true));
        assert_eq!(locks.0, [lock(1, 0, 9, true)]);
        locks.release(&lock(2, 0, u64::MAX, true));
        assert_eq!(locks.0.len(), 1, "somebody else's locks stay");
        assert_eq!(locks.in_the_way(&lock(2, 9, 9, false)), Some(&lock(1, 0, 9, true)));
        assert_eq!(locks.in_the_way(&lock(1, 9, 9, true)), None);
        assert!(locks.drop_clients(|client| client == ClientId(300)) && locks.is_empty());
    }

    #[test]
    fn a_file_has_only_so_many() {
        let mut locks = Locks::default();
        let most = LOCKS_MAX as u64;
        for at in 0..most {
            locks.grant(lock(1, 2 * at, 2 * at, false)).unwrap();
        }
        let full = locks.clone();
        assert_eq!(
            locks.grant(lock(1, 2 * most, 2 * most, false)).unwrap_err().code,
            ErrorCode::TooManyLocks
        );
        assert!(full.encode().len() < corefs_wire::limits::KV_VALUE_MAX);
    }

    proptest! {
        /// Byte by byte the list says what a table of bytes says.
        #[test]
        fn as_a_table_of_bytes(steps in prop::collection::vec((0u64..3, 0u64..20, 0u64..20, 0u8..3), 1..60)) {
            let mut locks = Locks::default();
            let mut table = [[0u8; 20]; 3];
            for (owner, a, b, kind) in steps {
                let wanted = lock(owner, a.min(b), a.max(b), kind == 2);
                let others = (0..3).filter(|other| *other != owner as usize);
                let blocked = kind > 0 && others.clone().any(|other| {
                    table[other][wanted.start as usize..=wanted.end as usize]
                        .iter().any(|held| *held == 2 || (*held == 1 && kind == 2))
                });
                prop_assert_eq!(kind > 0 && locks.in_the_way(&wanted).is_some(), blocked);
                if blocked { continue; }
                if kind == 0 { locks.release(&wanted); } else { locks.grant(wanted).unwrap(); }
                table[owner as usize][wanted.start as usize..=wanted.end as usize].fill(kind);
                for lock in &locks.0 {
                    for at in lock.start..=lock.end {
                        let held = table[lock.owner.number as usize][at as usize];
                        prop_assert_eq!(held, if lock.exclusive { 2 } else { 1 });
                    }
                }
                let held: u64 = locks.0.iter().map(|lock| lock.end - lock.start + 1).sum();
                prop_assert_eq!(held, table.iter().flatten().filter(|held| **held > 0).count() as u64);
            }
        }
    }
}
