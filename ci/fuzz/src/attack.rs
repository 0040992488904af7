//! The hostile messages: bytes from a seed.

use crate::link::frame;
use corefs_wire::checksum::crc32c;
use corefs_wire::control::{Call, Message, OPERATIONS, kv, meta, mgmtd, process};
use corefs_wire::data;
use corefs_wire::frame::{HEADER, Kind};
use corefs_wire::limits::{FRAME_BODY_MAX, FRAME_DATA_MAX};

/// What a peer must do about a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Duty {
    /// Close the connection: the message breaks the protocol, nothing behind it can be understood.
    Close,
    /// Live. It may answer with an error, or close.
    Live,
}

/// When a message may be sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum When {
    BeforeHandshake,
    Connected,
}

/// A kind of hostile message.
#[derive(Clone, Copy)]
pub struct Attack {
    pub name: &'static str,
    pub when: When,
    pub duty: Duty,
    make: fn(&mut Dice) -> Vec<u8>,
}

impl Attack {
    pub fn bytes(&self, dice: &mut Dice) -> Vec<u8> {
        (self.make)(dice)
    }
}

const fn attack(name: &'static str, when: When, duty: Duty, make: fn(&mut Dice) -> Vec<u8>) -> Attack {
    Attack { name, when, duty, make }
}

/// All kinds.
pub const ATTACKS: [Attack; 19] = [
    attack("garbage instead of a hello", When::BeforeHandshake, Duty::Close, garbage),
    attack("request before the handshake", When::BeforeHandshake, Duty::Close, good_request),
    attack("hello of random bytes", When::BeforeHandshake, Duty::Live, random_handshake),
    attack("hello longer than any", When::BeforeHandshake, Duty::Close, long_hello),
    attack("hello cut off", When::BeforeHandshake, Duty::Live, cut_off),
    attack("garbage", When::Connected, Duty::Close, garbage),
    attack("flipped bit in the header", When::Connected, Duty::Close, flipped_header),
    attack("flipped bit in the body", When::Connected, Duty::Close, flipped_body),
    attack("wrong version", When::Connected, Duty::Close, wrong_version),
    attack("unknown kind", When::Connected, Duty::Close, unknown_kind),
    attack("body too long", When::Connected, Duty::Close, long_body),
    attack("data too long", When::Connected, Duty::Close, long_data),
    attack("cut off", When::Connected, Duty::Live, cut_off),
    attack("handshake out of turn", When::Connected, Duty::Live, random_handshake),
    attack("reply that nobody asked for", When::Connected, Duty::Live, unasked_reply),
    attack("unknown operation", When::Connected, Duty::Live, unknown_operation),
    attack("control request of random bytes", When::Connected, Duty::Live, random_control),
    attack("control request with flipped bits", When::Connected, Duty::Live, flipped_control),
    attack("data request of random bytes", When::Connected, Duty::Live, random_data),
];

/// SplitMix64 (Steele, Lea, Flood 2014).
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.roll() % bound.max(1) as u64) as usize
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.roll() as u8).collect()
    }

    /// A length that is often at an edge.
    fn len(&mut self) -> usize {
        match self.below(4) {
            0 => 0,
            1 => self.below(16),
            2 => self.below(300),
            _ => self.below(5000),
        }
    }
}

/// At least a header long, so that it can be judged.
fn garbage(dice: &mut Dice) -> Vec<u8> {
    let len = HEADER + dice.len();
    dice.bytes(len)
}

fn good_request(dice: &mut Dice) -> Vec<u8> {
    frame(
        Kind::Request,
        process::GetProcessT::OP,
        dice.roll(),
        &process::GetProcessT::default().encode(),
        &[],
    )
}

/// Puts the right checksum on a changed header.
fn seal(mut bytes: Vec<u8>) -> Vec<u8> {
    let crc = crc32c(&bytes[..HEADER - 4]);
    bytes[HEADER - 4..HEADER].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn flip(bytes: &mut [u8], bit: usize) {
    bytes[bit / 8] ^= 1 << (bit % 8);
}

fn flipped_header(dice: &mut Dice) -> Vec<u8> {
    let mut bytes = good_request(dice);
    flip(&mut bytes, dice.below(HEADER * 8));
    bytes
}

fn flipped_body(dice: &mut Dice) -> Vec<u8> {
    let len = 1 + dice.len();
    let body = dice.bytes(len);
    let mut bytes = frame(Kind::Request, dice.roll() as u16, dice.roll(), &body, &[]);
    flip(&mut bytes, HEADER * 8 + dice.below(len * 8));
    bytes
}

fn wrong_version(dice: &mut Dice) -> Vec<u8> {
    let mut bytes = good_request(dice);
    bytes[4] = *dice.pick(&[0, 2, 3, 127, 255]);
    seal(bytes)
}

fn unknown_kind(dice: &mut Dice) -> Vec<u8> {
    let mut bytes = good_request(dice);
    bytes[5] = *dice.pick(&[0, 4, 5, 128, 255]);
    seal(bytes)
}

/// Replaces a length of the header: `at` is 16 for the body, 20 for the data.
fn with_length(dice: &mut Dice, kind: Kind, at: usize, over: usize) -> Vec<u8> {
    let mut bytes = frame(kind, process::GetProcessT::OP, dice.roll(), &[], &[]);
    let length = *dice.pick(&[over as u32 + 1, u32::MAX, u32::MAX / 2, over as u32 * 2]);
    bytes[at..at + 4].copy_from_slice(&length.to_le_bytes());
    let tail = dice.len();
    bytes.extend(dice.bytes(tail));
    seal(bytes)
}

fn long_hello(dice: &mut Dice) -> Vec<u8> {
    with_length(dice, Kind::Handshake, 16, FRAME_BODY_MAX)
}

fn long_body(dice: &mut Dice) -> Vec<u8> {
    with_length(dice, Kind::Request, 16, FRAME_BODY_MAX)
}

fn long_data(dice: &mut Dice) -> Vec<u8> {
    with_length(dice, Kind::Request, 20, FRAME_DATA_MAX)
}

/// Promises more than it sends.
fn cut_off(dice: &mut Dice) -> Vec<u8> {
    let (body, data) = (dice.len(), dice.len());
    let (body, data) = (dice.bytes(body), dice.bytes(data));
    let kind = *dice.pick(&[Kind::Request, Kind::Handshake]);
    let mut bytes = frame(kind, dice.pick(OPERATIONS).0, dice.roll(), &body, &data);
    bytes.truncate(dice.below(bytes.len()));
    bytes
}

fn random_handshake(dice: &mut Dice) -> Vec<u8> {
    let len = dice.len().min(4000);
    let body = dice.bytes(len);
    frame(Kind::Handshake, dice.below(8) as u16, 0, &body, &[])
}

fn unasked_reply(dice: &mut Dice) -> Vec<u8> {
    let (body, data) = (dice.len(), dice.len());
    let (body, data) = (dice.bytes(body), dice.bytes(data));
    frame(Kind::Reply, dice.pick(OPERATIONS).0, dice.roll() % 100, &body, &data)
}

fn unknown_operation(dice: &mut Dice) -> Vec<u8> {
    let (body, data) = (dice.len(), dice.len());
    let (body, data) = (dice.bytes(body), dice.bytes(data));
    frame(Kind::Request, 0x0500 + dice.below(0xF000) as u16, dice.roll(), &body, &data)
}

fn random_control(dice: &mut Dice) -> Vec<u8> {
    let (body, data) = (dice.len(), if dice.below(4) == 0 { dice.len() } else { 0 });
    let (body, data) = (dice.bytes(body), dice.bytes(data));
    frame(Kind::Request, dice.pick(OPERATIONS).0, dice.roll(), &body, &data)
}

/// Requests that change nothing, with some bits flipped: what still is a request must be harmless.
fn flipped_control(dice: &mut Dice) -> Vec<u8> {
    let mut lookup = meta::LookupT::default();
    (lookup.parent, lookup.name) = (1, b"name".to_vec());
    let (op, mut body) = match dice.below(6) {
        0 => (kv::ReadVersionRequestT::OP, kv::ReadVersionRequestT::default().encode()),
        1 => (mgmtd::GetStatusT::OP, mgmtd::GetStatusT::default().encode()),
        2 => (mgmtd::GetRoutingT::OP, mgmtd::GetRoutingT::default().encode()),
        3 => (process::GetProcessT::OP, process::GetProcessT::default().encode()),
        4 => (meta::StatFsT::OP, meta::StatFsT::default().encode()),
        _ => (meta::LookupT::OP, lookup.encode()),
    };
    for _ in 0..=dice.below(8) {
        let bit = dice.below(body.len() * 8);
        flip(&mut body, bit);
    }
    if dice.below(4) == 0 {
        body.truncate(dice.below(body.len()));
    }
    frame(Kind::Request, op, dice.roll(), &body, &[])
}

/// Requests of the data path whose fields are random: no such chain, or lengths and counts that don't fit.
fn random_data(dice: &mut Dice) -> Vec<u8> {
    let (op, mut len) = match dice.below(3) {
        0 => (data::op::READ, size_of::<data::Prefix>() + dice.below(300) * size_of::<data::ReadEntry>()),
        1 => {
            let crcs = dice.below(40) * 4;
            (data::op::UPDATE, size_of::<data::Prefix>() + size_of::<data::Update>() + crcs)
        }
        _ => (data::op::LIST, size_of::<data::Prefix>() + size_of::<data::List>()),
    };
    if dice.below(8) == 0 {
        len = dice.below(len + 8);
    }
    let bulk = if dice.below(2) == 0 { 0 } else { dice.below(70_000) };
    let (body, bulk) = (dice.bytes(len), dice.bytes(bulk));
    frame(Kind::Request, op, dice.roll(), &body, &bulk)
}

#[cfg(test)]
mod tests {
    use super::*;
    use corefs_wire::frame::Header;

    /// Whether a header is good, and the checksum of what follows it.
    fn is_sound(bytes: &[u8]) -> bool {
        let Some(head) = bytes.first_chunk::<HEADER>() else { return false };
        Header::parse(head, FRAME_BODY_MAX).is_ok_and(|header| {
            let body = bytes.get(HEADER..HEADER + header.body_len());
            body.is_some_and(|body| header.check_body(body).is_ok())
        })
    }

    #[test]
    fn what_must_be_closed_breaks_the_protocol_and_the_rest_mostly_does_not() {
        for attack in ATTACKS {
            let mut dice = Dice(3);
            let sound = (0..200).filter(|_| is_sound(&attack.bytes(&mut dice))).count();
            match (attack.duty, attack.name) {
                (Duty::Close, "request before the handshake") => assert_eq!(sound, 200),
                (Duty::Close, _) => assert_eq!(sound, 0, "{}", attack.name),
                (Duty::Live, name) if name.contains("cut off") => assert!(sound < 200, "{name}"),
                (Duty::Live, _) => assert_eq!(sound, 200, "{}", attack.name),
            }
        }
    }

    #[test]
    fn a_seed_gives_the_same_bytes() {
        for attack in ATTACKS {
            assert_eq!(attack.bytes(&mut Dice(9)), attack.bytes(&mut Dice(9)), "{}", attack.name);
        }
    }
}
