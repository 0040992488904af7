//! The bytes of a message by queue pair. Pure.
//!
//! ```text
//!  0    1    2      3        4       6     8         12        16
//!  +----+----+------+--------+-------+-----+---------+---------+----------------+-----------+----------+-------+------+
//!  |kind|data|grants|releases|credits|  0  |  rest   |  piece  | grants, 24 each| releases,4| source,24| piece | data |
//!  +----+----+------+--------+-------+-----+---------+---------+----------------+-----------+----------+-------+------+
//! ```
//! A frame's header and body go in one piece, or, if they are longer than a message, in several: `rest` bytes of them follow in messages of kind
//! MORE. Its data follow in the message (INLINE), or are to be read from where the source says (PULL), or lie already where a grant said (WRITTEN).
//! A GREETING is filled up to the length of a message, and says nothing. RECALL takes grants back whose requests its piece names (8 bytes each); RECALLED, with
//! the same, says that nothing is written there any more.
//!
//! Any message brings credits (so many more may be sent) and releases (what was open to be read has been).
//!
//! Every length and count is checked here against the bytes that came; what grants and sources say of memory is only ever given back to the peer's
//! own device.

use super::setup::GRANTS_MAX;
use crate::contract::RemoteBuf;
use corefs_wire::limits::{FRAME_BODY_MAX, FRAME_DATA_MAX};
use corefs_wire::{Error, ErrorCode, Result};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes before the lists.
pub const PREFIX: usize = size_of::<Prefix>();
/// Releases in one message, so that a message of the least length has room for all lists.
pub const RELEASES_MAX: usize = 32;

/// What a message is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// A frame, or the first piece of one.
    Frame = 1,
    /// The next piece.
    More = 2,
    /// Only credits and releases.
    News = 3,
    /// The sender closes: it sends nothing behind this.
    Bye = 4,
    /// It got here: the path takes messages of this length.
    Greeting = 5,
    /// Grants are taken back.
    Recall = 6,
    /// Nothing will be written any more where these grants were.
    Recalled = 7,
}

/// Where a frame's data are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Data {
    None,
    /// Behind the piece.
    Inline,
    /// To be read from there, and released then.
    Pull(RemoteBuf),
    /// Where the receiver had granted.
    Written,
}

/// Memory that is open to the peer's write of the data of one reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Grant {
    /// The number of the request.
    pub request: u64,
    pub to: RemoteBuf,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Prefix {
    kind: u8,
    data: u8,
    grants: u8,
    releases: u8,
    credits: U16,
    reserved: U16,
    rest: U32,
    piece: U32,
}
const _: () = assert!(PREFIX == 16);

/// A grant or a source.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Place {
    /// The request, or the slot that is to be released.
    number: U64,
    addr: U64,
    len: U32,
    key: U32,
}
const PLACE: usize = size_of::<Place>();
const _: () = assert!(PLACE == 24);

/// Everything in a message but its piece and data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Envelope<'a> {
    pub kind: Kind,
    pub data: Data,
    pub credits: u16,
    pub grants: &'a [Grant],
    pub releases: &'a [u32],
    /// Bytes of header and body that follow in other messages.
    pub rest: u32,
}

/// Bytes of an envelope with so many grants and releases.
pub fn envelope_len(grants: usize, releases: usize, data: Data) -> usize {
    let source = if matches!(data, Data::Pull(_)) { PLACE } else { 0 };
    PREFIX + grants * PLACE + releases * 4 + source
}

impl Envelope<'_> {
    /// Bytes that it takes.
    pub fn len(&self) -> usize {
        envelope_len(self.grants.len(), self.releases.len(), self.data)
    }

    /// Writes it, and `piece` behind it, to the start of `to`; returns the bytes written.
    pub fn encode(&self, piece: &[u8], to: &mut [u8]) -> usize {
        let prefix = Prefix {
            kind: self.kind as u8,
            data: match self.data {
                Data::None => 0,
                Data::Inline => 1,
                Data::Pull(_) => 2,
                Data::Written => 3,
            },
            grants: self.grants.len() as u8,
            releases: self.releases.len() as u8,
            credits: self.credits.into(),
            reserved: 0.into(),
            rest: self.rest.into(),
            piece: (piece.len() as u32).into(),
        };
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            to[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        put(prefix.as_bytes());
        for grant in self.grants {
            put(place(grant.request, grant.to).as_bytes());
        }
        for release in self.releases {
            put(&release.to_le_bytes());
        }
        if let Data::Pull(source) = self.data {
            put(place(source.slot, source).as_bytes());
        }
        put(piece);
        at
    }
}

fn place(number: u64, buf: RemoteBuf) -> Place {
    Place { number: number.into(), addr: buf.addr.into(), len: buf.len.into(), key: buf.key.into() }
}

impl Place {
    /// `None` for a range that is empty, too long or beyond the end of memory.
    fn check(&self) -> Option<RemoteBuf> {
        let (addr, len) = (self.addr.get(), self.len.get());
        let fits = len > 0 && len as usize <= FRAME_DATA_MAX && addr.checked_add(len.into()).is_some();
        fits.then_some(RemoteBuf { addr, len, key: self.key.get(), slot: self.number.get() })
    }
}

/// A message that was received, its lengths checked.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    pub kind: Kind,
    pub data: Data,
    pub credits: u16,
    pub rest: u32,
    grants: &'a [Place],
    releases: &'a [U32],
    /// Where in the message the piece lies, and behind it the data.
    pub piece: (usize, usize),
}

impl<'a> Message<'a> {
    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        let bad = |what: &str| Error::new(ErrorCode::BadFrame, format!("RDMA message: {what}"));
        let (prefix, lists) = Prefix::ref_from_prefix(bytes).map_err(|_| bad("too short"))?;
        let kind = match prefix.kind {
            1 => Kind::Frame,
            2 => Kind::More,
            3 => Kind::News,
            4 => Kind::Bye,
            5 => Kind::Greeting,
            6 => Kind::Recall,
            7 => Kind::Recalled,
            _ => return Err(bad("unknown kind")),
        };
        if usize::from(prefix.releases) > RELEASES_MAX {
            return Err(bad("too many releases"));
        }
        let (grants, rest) = <[Place]>::ref_from_prefix_with_elems(lists, prefix.grants.into())
            .map_err(|_| bad("grants are cut off"))?;
        let (releases, rest) = <[U32]>::ref_from_prefix_with_elems(rest, prefix.releases.into())
            .map_err(|_| bad("releases are cut off"))?;
        let (data, rest) = match prefix.data {
            0 => (Data::None, rest),
            1 => (Data::Inline, rest),
            2 => {
                let (source, rest) =
                    Place::ref_from_prefix(rest).map_err(|_| bad("the source is cut off"))?;
                let source = source.check().ok_or_else(|| bad("not a range to read"))?;
                if u32::try_from(source.slot).is_err() {
                    return Err(bad("not a slot to release"));
                }
                (Data::Pull(source), rest)
            }
            3 => (Data::Written, rest),
            _ => return Err(bad("unknown kind of data")),
        };
        let (piece, from) = (prefix.piece.get() as usize, bytes.len() - rest.len());
        if piece > rest.len() {
            return Err(bad("its piece is cut off"));
        }
        let inline = rest.len() - piece;
        let followed = prefix.rest.get() as usize;
        let fits = match kind {
            Kind::Frame if followed > 0 => data != Data::Inline && inline == 0 && piece > 0,
            Kind::Frame => (data == Data::Inline) == (inline > 0),
            Kind::More => piece > 0 && data == Data::None && inline == 0 && grants.is_empty(),
            Kind::News | Kind::Bye => {
                piece == 0 && data == Data::None && inline == 0 && grants.is_empty() && followed == 0
            }
            Kind::Greeting => piece == 0 && data == Data::None && grants.is_empty() && followed == 0,
            Kind::Recall | Kind::Recalled => {
                let whole = piece > 0 && piece.is_multiple_of(8) && piece / 8 <= GRANTS_MAX.into();
                whole && data == Data::None && inline == 0 && grants.is_empty() && followed == 0
            }
        };
        if !fits {
            return Err(bad("parts that don't belong together"));
        }
        if followed > FRAME_BODY_MAX + corefs_wire::frame::HEADER {
            return Err(bad("too much is to follow"));
        }
        let piece = (from, from + piece);
        Ok(Self {
            kind,
            data,
            credits: prefix.credits.get(),
            rest: prefix.rest.get(),
            grants,
            releases,
            piece,
        })
    }

    /// What is granted; an error for a range that can't be one.
    pub fn grants(&self) -> impl Iterator<Item = Result<Grant>> + use<'a> {
        self.grants.iter().map(|place| {
            let bad = || Error::new(ErrorCode::BadFrame, "RDMA message: not a range to write");
            Ok(Grant { request: place.number.get(), to: place.check().ok_or_else(bad)? })
        })
    }

    pub fn releases(&self) -> impl Iterator<Item = u32> + use<'a> {
        self.releases.iter().map(|slot| slot.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BUF: RemoteBuf = RemoteBuf { addr: 0x1000, len: 4096, key: 7, slot: 9 };

    fn encoded(envelope: &Envelope<'_>, piece: &[u8], inline: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; envelope.len() + piece.len()];
        assert_eq!(envelope.encode(piece, &mut bytes), bytes.len());
        bytes.extend(inline);
        bytes
    }

    fn plain(kind: Kind, data: Data) -> Envelope<'static> {
        Envelope { kind, data, credits: 0, grants: &[], releases: &[], rest: 0 }
    }

    #[test]
    fn messages_are_read_as_they_were_written() {
        let grants = [Grant { request: u64::MAX, to: BUF }, Grant { request: 1, to: BUF }];
        let envelope = Envelope {
            kind: Kind::Frame,
            data: Data::Pull(BUF),
            credits: 300,
            grants: &grants,
            releases: &[1, u32::MAX],
            rest: 5,
        };
        let bytes = encoded(&envelope, b"piece", b"");
        let message = Message::parse(&bytes).unwrap();
        assert_eq!((message.kind, message.credits, message.rest), (Kind::Frame, 300, 5));
        assert_eq!(message.data, Data::Pull(BUF));
        let found: Vec<Grant> = message.grants().map(Result::unwrap).collect();
        assert!(found.iter().zip(&grants).all(|(a, b)| (a.request, a.to.addr) == (b.request, b.to.addr)));
        assert_eq!(message.releases().collect::<Vec<_>>(), [1, u32::MAX]);
        assert_eq!(&bytes[message.piece.0..message.piece.1], b"piece");
    }

    #[test]
    fn what_does_not_belong_together_is_refused() {
        let refused = |envelope: Envelope<'_>, piece: &[u8], inline: &[u8]| {
            let bytes = encoded(&envelope, piece, inline);
            assert_eq!(Message::parse(&bytes).unwrap_err().code, ErrorCode::BadFrame, "{envelope:?}");
        };
        refused(plain(Kind::Frame, Data::None), b"piece", b"data");
        refused(plain(Kind::Frame, Data::Inline), b"piece", b"");
        refused(Envelope { rest: 1, ..plain(Kind::Frame, Data::Inline) }, b"piece", b"data");
        refused(Envelope { rest: 8 << 20, ..plain(Kind::Frame, Data::None) }, b"piece", b"");
        refused(plain(Kind::More, Data::None), b"", b"");
        refused(plain(Kind::More, Data::Written), b"x", b"");
        refused(plain(Kind::News, Data::None), b"x", b"");
        refused(Envelope { rest: 1, ..plain(Kind::Bye, Data::None) }, b"", b"");
        for bad in [
            RemoteBuf { len: 0, ..BUF },
            RemoteBuf { len: (1 << 20) + 1, ..BUF },
            RemoteBuf { addr: u64::MAX - 4094, ..BUF },
            RemoteBuf { slot: 1 << 32, ..BUF },
        ] {
            refused(plain(Kind::Frame, Data::Pull(bad)), b"piece", b"");
            let grants = [Grant { request: 1, to: bad }];
            let bytes =
                encoded(&Envelope { grants: &grants, ..plain(Kind::Frame, Data::None) }, b"piece", b"");
            let granted = Message::parse(&bytes).unwrap().grants().next().unwrap();
            assert_eq!(granted.is_err(), bad.slot == BUF.slot, "{bad:?}");
        }
    }

    #[test]
    fn greetings_have_any_length_and_recalls_name_whole_requests() {
        let greeting = encoded(&plain(Kind::Greeting, Data::None), b"", &[0; 4000]);
        assert_eq!(Message::parse(&greeting).unwrap().kind, Kind::Greeting);
        let of = |kind, piece: &[u8]| {
            Message::parse(&encoded(&plain(kind, Data::None), piece, b"")).map(|message| message.piece)
        };
        for kind in [Kind::Recall, Kind::Recalled] {
            assert_eq!(of(kind, &[1; 24]), Ok((PREFIX, PREFIX + 24)));
            assert!(of(kind, b"").is_err() && of(kind, &[1; 23]).is_err(), "whole numbers, and some");
            assert!(of(kind, &[1; 8 * (GRANTS_MAX as usize + 1)]).is_err(), "more than may be open");
        }
        assert!(of(Kind::Greeting, &[1; 8]).is_err());
    }

    #[test]
    fn a_message_that_is_cut_off_is_refused() {
        let grants = [Grant { request: 1, to: BUF }];
        let envelope = Envelope { grants: &grants, releases: &[3], ..plain(Kind::Frame, Data::Pull(BUF)) };
        let bytes = encoded(&envelope, b"piece", b"");
        for len in 0..bytes.len() {
            assert!(Message::parse(&bytes[..len]).is_err(), "{len} bytes");
        }
    }

    proptest! {
        #[test]
        fn garbage_never_names_bytes_that_are_not_there(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0..6u8) {
            if let Some(first) = bytes.first_mut() { *first = kind; }
            if let Ok(message) = Message::parse(&bytes) {
                prop_assert!(message.piece.0 <= message.piece.1 && message.piece.1 <= bytes.len());
                prop_assert!(message.grants().count() <= 255 && message.releases().count() <= RELEASES_MAX);
            }
        }
    }
}
