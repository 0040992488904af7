//! Sessions: who has an inode open.
//!
//! A session for writing says that the inode's length may be behind what the chains hold: whoever truncates must trim
//! even an inode that looks short enough, and when the client's lease ends without a close the length is settled from
//! the chains. Any session keeps the bytes of an inode without names.
//!
//! Opening for reading costs a commit only when the caller asks to hold the inode. A mount can hold lazily: an inode
//! that it has open needs no session until somebody takes its last name away, so a mount that holds before it
//! unlinks or replaces (its own) names keeps POSIX's promise for its own processes without a commit an open, and one that
//! holds at every open keeps it against other machines too.

use crate::encoding::{Reader, Writer};
use corefs_wire::{ClientId, Result};

/// One open of one inode by one client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Session {
    pub client: ClientId,
    pub incarnation: u32,
    /// For writing; else it only holds the inode.
    pub write: bool,
    /// The inode's truncate epoch when it was opened: lengths that don't name another belong to it.
    pub epoch: u32,
    /// When it began (ns since the epoch, UTC), for people.
    pub began: i64,
}

const VERSION: u8 = 1;

impl Session {
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new(VERSION);
        writer.byte(self.write.into()).varint(self.client.0).varint(self.incarnation.into());
        writer.varint(self.epoch.into()).fixed(self.began as u64).finish()
    }

    pub fn decode(value: &[u8]) -> Result<Self> {
        let (mut reader, _) = Reader::new("session", value, VERSION)?;
        let session = Self {
            write: reader.byte()? != 0,
            client: ClientId(reader.varint()?),
            incarnation: reader.varint32()?,
            epoch: reader.varint32()?,
            began: reader.fixed()? as i64,
        };
        reader.end()?;
        Ok(session)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_golden() {
        let session = Session { client: ClientId(300), incarnation: 2, write: true, epoch: 4, began: 1 };
        assert_eq!(session.encode(), [1, 1, 0xAC, 2, 2, 4, 1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(Session::decode(&session.encode()), Ok(session));
        assert!(Session::decode(&session.encode()[..5]).is_err());
    }
}
