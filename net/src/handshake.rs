//! Who a peer is, and the proof that it knows the cluster's secret. Pure: nonces are passed in.

use crate::address::Address;
use corefs_wire::{Error, ErrorCode, Result, Uuid};

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

/// The cluster's secret: 32 bytes from the kernel, kept in a file that only the cluster's user may read.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; 32]);

impl Secret {
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// A fresh one from the kernel.
    pub fn generate() -> Result<Self> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes)
            .map_err(|error| Error::new(ErrorCode::Os, format!("getrandom: {error}")))?;
        Ok(Self(bytes))
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
    /// Where it is: the address we connected to, or where an accepted connection comes from.
    pub address: Address,
    /// Both sides have proved that they know the secret.
    pub authenticated: bool,
    /// Frame version that both speak.
    pub version: u8,
    /// Bits of optional abilities that both have; none is defined yet.
    pub capabilities: u64,
}
