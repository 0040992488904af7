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
    /// Where it appends.
    pub place: Option<Place>,
}

/// Where the bytes end that a session was given to append to. Whoever asks for a place gets one behind those of all other clients.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// The truncate epoch: with a newer one it means nothing.
    pub epoch: u32,
    pub end: u64,
}

/// 2: with a place.
const VERSION: u8 = 2;

impl Session {
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new(if self.place.is_some() { VERSION } else { 1 });
        writer.byte(self.write.into()).varint(self.client.0).varint(self.incarnation.into());
        writer.varint(self.epoch.into()).fixed(self.began as u64);
        if let Some(place) = self.place {
            writer.varint(place.epoch.into()).varint(place.end);
        }
        writer.finish()
    }

    pub fn decode(value: &[u8]) -> Result<Self> {
        let (mut reader, version) = Reader::new("session", value, VERSION)?;
        let mut session = Self {
            write: reader.byte()? != 0,
            client: ClientId(reader.varint()?),
            incarnation: reader.varint32()?,
            epoch: reader.varint32()?,
            began: reader.fixed()? as i64,
            place: None,
        };
        if version >= 2 {
            session.place = Some(Place { epoch: reader.varint32()?, end: reader.varint()? });
        }
        reader.end()?;
        Ok(session)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_golden() {
        let session =
            Session { client: ClientId(300), incarnation: 2, write: true, epoch: 4, began: 1, place: None };
        assert_eq!(session.encode(), [1, 1, 0xAC, 2, 2, 4, 1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(Session::decode(&session.encode()), Ok(session));
        let session = Session { place: Some(Place { epoch: 5, end: 300 }), ..session };
        assert_eq!(session.encode(), [2, 1, 0xAC, 2, 2, 4, 1, 0, 0, 0, 0, 0, 0, 0, 5, 0xAC, 2]);
        assert_eq!(Session::decode(&session.encode()), Ok(session));
        assert!(Session::decode(&session.encode()[..5]).is_err());
    }
}
