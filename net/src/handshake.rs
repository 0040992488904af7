//! Who a peer is, and the proof that it knows the cluster's secret. Pure: nonces are passed in.
//!
//! ```text
//!  connector                                     acceptor
//!     | -- HELLO     versions, who, nonce A --------> |  version, secret and cluster checked
//!     | <- CHALLENGE version, who, nonce B, proof --- |  proof = HMAC(secret, "acceptor", HELLO, CHALLENGE)
//!     |    checked                                    |
//!     | -- PROOF     HMAC(secret, "connector", ..) -> |  checked
//!     | <- WELCOME ---------------------------------- |  frames may flow
//! ```
//! Both proofs cover both nonces and all that was said (RFC 2104, with SHA-256), so that none can be replayed,
//! reflected or bent. Frames behind the handshake carry checksums, not signatures: the secret keeps strangers out of a
//! cluster's network, it does not protect against someone who can rewrite its packets.
//!
//! - A listener with a secret lets nobody in without the proof.
//! - A connector with a secret demands the proof from peers on other machines; on this machine (loopback, Unix sockets)
//!   it is content with a listener that has none.
//! - A side that doesn't know the cluster yet says NIL and is told.

mod layout;

pub use layout::op;

use crate::address::Address;
use corefs_wire::version::{FRAME_VERSION, FRAME_VERSION_MIN};
use corefs_wire::{Error, ErrorCode, Result, Uuid};
use hmac::{Hmac, Mac};
use layout::{Challenge, HAS_SECRET, Hello, Proof, WANTS_PROOF, read};
use sha2::Sha256;
use zerocopy::IntoBytes;

/// Abilities beyond the version, which a side offers if it has them: bits.
pub mod capability {
    /// After the handshake the connector makes an offer to go on by RDMA, or declines to. See `rdma::setup`.
    pub const RDMA: u64 = 1;
}

/// The abilities that every build has.
pub const CAPABILITIES: u64 = 0;

/// What a process is to its peers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Role {
    Client = 1,
    Storage = 2,
    Meta = 3,
    Manager = 4,
    Kv = 5,
    Tool = 6,
}

impl Role {
    const ALL: [Self; 6] = [Self::Client, Self::Storage, Self::Meta, Self::Manager, Self::Kv, Self::Tool];

    fn from_number(number: u8) -> Result<Self> {
        let unknown = || Error::mismatch(ErrorCode::BadFrame, 1, number.into(), "unknown role");
        Self::ALL.into_iter().find(|role| *role as u8 == number).ok_or_else(unknown)
    }
}

/// The cluster's secret: 32 bytes from the kernel, kept in a file that only the cluster's user may read.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; 32]);

impl Secret {
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// A fresh one from the kernel.
    pub fn generate() -> Result<Self> {
        random().map(Self)
    }

    /// Reads the 64 hexadecimal digits that [`to_hex`](Self::to_hex) writes; anything else is `None`.
    pub fn parse(text: &str) -> Option<Self> {
        let (high, low) = text.trim_end().split_at_checked(32)?;
        let mut bytes = [0; 32];
        bytes[..16].copy_from_slice(&Uuid::parse(high)?.0);
        bytes[16..].copy_from_slice(&Uuid::parse(low)?.0);
        Some(Self(bytes))
    }

    pub fn to_hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// 32 bytes from the kernel: a nonce or a secret.
pub fn random() -> Result<[u8; 32]> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|error| Error::new(ErrorCode::Os, format!("getrandom: {error}")))?;
    Ok(bytes)
}

/// Who we are, said in every handshake.
#[derive(Clone, Debug)]
pub struct Identity {
    pub role: Role,
    /// A node's, client's or role process's id; its meaning belongs to the role.
    pub id: u64,
    /// Raised with each start of the process.
    pub incarnation: u64,
    /// [`Uuid::NIL`] when not known yet: the peer then tells.
    pub cluster: Uuid,
    pub secret: Option<Secret>,
}

/// Who the other side is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Peer {
    pub role: Role,
    pub id: u64,
    pub incarnation: u64,
    pub cluster: Uuid,
    /// Where it is: the address we connected to, or where an accepted connection comes from (for Unix sockets the
    /// listener's own path).
    pub address: Address,
    /// Both sides have proved that they know the secret.
    pub authenticated: bool,
    /// Frame version that both speak.
    pub version: u8,
    /// Bits of optional abilities that both have.
    pub capabilities: u64,
}

/// A handshake message to be sent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message {
    pub op: u16,
    pub body: Vec<u8>,
}

/// What a message from the peer leads to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// Send this and wait for the answer.
    Send(Message),
    /// The handshake is done, after this message if there is one.
    Done(Option<Message>, Peer),
}

/// One side of a handshake that is under way. After an error it is of no further use.
#[derive(Debug)]
pub struct Handshake {
    state: State,
    /// The peer's address.
    address: Address,
    nonce: [u8; 32],
    /// What we offer.
    capabilities: u64,
}

#[derive(Debug)]
enum State {
    /// Connector, has said this hello.
    AwaitChallenge(Vec<u8>),
    /// Connector, has proved itself to this peer.
    AwaitWelcome(Peer),
    /// Acceptor.
    AwaitHello,
    /// Acceptor, has challenged this peer and expects this proof.
    AwaitProof(Peer, Option<Hmac<Sha256>>),
    Over,
}

impl Handshake {
    /// The side that connects speaks first.
    pub fn connect(identity: &Identity, address: Address, nonce: [u8; 32]) -> (Self, Message) {
        Self::connect_with(CAPABILITIES, identity, address, nonce)
    }

    /// The same, with these abilities.
    pub fn connect_with(
        capabilities: u64,
        identity: &Identity,
        address: Address,
        nonce: [u8; 32],
    ) -> (Self, Message) {
        let mut flags = 0;
        if identity.secret.is_some() {
            flags = if address.is_local() { HAS_SECRET } else { HAS_SECRET | WANTS_PROOF };
        }
        let hello = hello(identity, FRAME_VERSION_MIN..=FRAME_VERSION, capabilities, flags, nonce);
        let body = hello.as_bytes().to_vec();
        let message = Message { op: op::HELLO, body: body.clone() };
        (Self { state: State::AwaitChallenge(body), address, nonce, capabilities }, message)
    }

    pub fn accept(address: Address, nonce: [u8; 32]) -> Self {
        Self::accept_with(CAPABILITIES, address, nonce)
    }

    /// The same, with these abilities.
    pub fn accept_with(capabilities: u64, address: Address, nonce: [u8; 32]) -> Self {
        Self { state: State::AwaitHello, address, nonce, capabilities }
    }

    /// Takes the peer's next message. An error is to be sent to the peer before the connection is closed.
    pub fn message(&mut self, identity: &Identity, code: u16, body: &[u8]) -> Result<Step> {
        match (std::mem::replace(&mut self.state, State::Over), code) {
            (State::AwaitHello, op::HELLO) => self.challenge(identity, body),
            (State::AwaitChallenge(hello), op::CHALLENGE) => self.prove(identity, &hello, body),
            (State::AwaitProof(peer, expected), op::PROOF) => {
                if let Some(expected) = expected {
                    verify(expected, &read::<Proof>(body)?.proof)?;
                }
                Ok(Step::Done(Some(Message { op: op::WELCOME, body: Vec::new() }), peer))
            }
            (State::AwaitWelcome(peer), op::WELCOME) => Ok(Step::Done(None, peer)),
            _ => Err(Error::mismatch(ErrorCode::BadFrame, 0, code.into(), "handshake message out of turn")),
        }
    }

    fn challenge(&mut self, identity: &Identity, body: &[u8]) -> Result<Step> {
        let theirs = read::<Hello>(body)?;
        let version = common_version(theirs)?;
        if identity.secret.is_some() && theirs.flags & HAS_SECRET == 0 {
            return Err(Error::new(
                ErrorCode::AuthenticationFailed,
                "this listener demands the cluster's secret",
            ));
        }
        if identity.secret.is_none() && theirs.flags & WANTS_PROOF != 0 {
            return Err(Error::new(ErrorCode::AuthenticationFailed, "this listener has no secret to prove"));
        }
        check_cluster(identity, theirs)?;
        let flags = if identity.secret.is_some() { HAS_SECRET | WANTS_PROOF } else { 0 };
        let capabilities = theirs.capabilities.get() & self.capabilities;
        let ours = hello(identity, version..=version, capabilities, flags, self.nonce);
        let mut challenge = Challenge { hello: ours, proof: [0; 32] };
        let mut expected = None;
        if let Some(secret) = &identity.secret {
            expected = Some(mac(secret, "connector", body, challenge.as_bytes()));
            let proof = mac(secret, "acceptor", body, challenge.as_bytes());
            challenge.proof = proof.finalize().into_bytes().into();
        }
        let peer = self.peer(theirs, version, capabilities, expected.is_some())?;
        self.state = State::AwaitProof(peer, expected);
        Ok(Step::Send(Message { op: op::CHALLENGE, body: challenge.as_bytes().to_vec() }))
    }

    fn prove(&mut self, identity: &Identity, hello: &[u8], body: &[u8]) -> Result<Step> {
        let Challenge { hello: theirs, proof } = *read::<Challenge>(body)?;
        let version = common_version(&theirs)?;
        check_cluster(identity, &theirs)?;
        let wanted = theirs.flags & WANTS_PROOF != 0;
        let mut ours = Proof { proof: [0; 32] };
        match &identity.secret {
            Some(secret) if wanted => {
                let mut blank = body.to_vec();
                blank[size_of::<Hello>()..size_of::<Challenge>()].fill(0);
                verify(mac(secret, "acceptor", hello, &blank), &proof)?;
                ours.proof = mac(secret, "connector", hello, &blank).finalize().into_bytes().into();
            }
            Some(_) if !self.address.is_local() => {
                return Err(Error::new(ErrorCode::AuthenticationFailed, "the listener proves no secret"));
            }
            None if wanted => {
                return Err(Error::new(
                    ErrorCode::AuthenticationFailed,
                    "the listener demands a secret, we have none",
                ));
            }
            _ => (),
        }
        let capabilities = theirs.capabilities.get() & self.capabilities;
        self.state = State::AwaitWelcome(self.peer(&theirs, version, capabilities, wanted)?);
        Ok(Step::Send(Message { op: op::PROOF, body: ours.as_bytes().to_vec() }))
    }

    fn peer(&self, theirs: &Hello, version: u8, capabilities: u64, authenticated: bool) -> Result<Peer> {
        Ok(Peer {
            role: Role::from_number(theirs.role)?,
            id: theirs.id.get(),
            incarnation: theirs.incarnation.get(),
            cluster: Uuid(theirs.cluster),
            address: self.address.clone(),
            authenticated,
            version,
            capabilities,
        })
    }
}

fn hello(
    identity: &Identity,
    versions: std::ops::RangeInclusive<u8>,
    capabilities: u64,
    flags: u8,
    nonce: [u8; 32],
) -> Hello {
    Hello {
        version_min: *versions.start(),
        version_max: *versions.end(),
        role: identity.role as u8,
        flags,
        reserved: [0; 4],
        id: identity.id.into(),
        incarnation: identity.incarnation.into(),
        capabilities: capabilities.into(),
        cluster: identity.cluster.0,
        nonce,
    }
}

/// The newest version that both understand.
fn common_version(theirs: &Hello) -> Result<u8> {
    let version = theirs.version_max.min(FRAME_VERSION);
    if version >= theirs.version_min.max(FRAME_VERSION_MIN) {
        return Ok(version);
    }
    let (ours, found) = (FRAME_VERSION.into(), theirs.version_max.into());
    Err(Error::mismatch(ErrorCode::VersionMismatch, ours, found, "no frame version in common"))
}

fn check_cluster(identity: &Identity, theirs: &Hello) -> Result<()> {
    let (ours, theirs) = (identity.cluster, Uuid(theirs.cluster));
    if ours == theirs || ours == Uuid::NIL || theirs == Uuid::NIL {
        return Ok(());
    }
    Err(Error::new(
        ErrorCode::WrongCluster,
        format!("one side belongs to cluster {ours}, the other to {theirs}"),
    ))
}

fn mac(secret: &Secret, side: &str, hello: &[u8], challenge: &[u8]) -> Hmac<Sha256> {
    // The three parts can't be confused: the side's name ends in a zero, and the hello's length comes before it.
    let mut mac =
        Hmac::<Sha256>::new_from_slice(&secret.0).unwrap_or_else(|_| unreachable!("any length is a key"));
    mac.update(b"corefs handshake 1 ");
    mac.update(side.as_bytes());
    mac.update(&[0]);
    mac.update(&(hello.len() as u64).to_le_bytes());
    mac.update(hello);
    mac.update(challenge);
    mac
}

/// In constant time.
fn verify(expected: Hmac<Sha256>, proof: &[u8; 32]) -> Result<()> {
    let failed =
        |_| Error::new(ErrorCode::AuthenticationFailed, "the peer does not know this cluster's secret");
    expected.verify_slice(proof).map_err(failed)
}

#[cfg(test)]
mod tests;
