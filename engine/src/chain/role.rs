//! What routing says about one target: its place in its chain.

use crate::event::Offer;
use corefs_wire::control::mgmtd::TargetState;
use corefs_wire::routing::{Chain, Member};
use corefs_wire::{ChainId, Error, ErrorCode, Result, TargetId};

/// A target's place in its chain at one chain version.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Role {
    pub chain: ChainId,
    pub version: u64,
    pub state: TargetState,
    /// Takes clients' updates.
    pub head: bool,
    /// The last that serves: what it has committed may always be shown.
    pub tail: bool,
    /// Who gets updates next.
    pub successor: Option<TargetId>,
    /// The successor is being filled, which is this one's to do.
    pub filling: bool,
    /// Somebody serves, this one or another.
    pub served: bool,
    /// How many come after, serving or being filled.
    pub behind: u8,
    /// Who else may have a block, those that serve first: bytes are known by their CRC, whoever has them.
    pub peers: Vec<TargetId>,
}

impl Role {
    /// The place of `target` in `chain`, `None` if it isn't a member.
    pub fn of(target: TargetId, chain: &Chain) -> Option<Self> {
        let position = chain.members.iter().position(|member| member.target == target)?;
        let gone = |state| matches!(state, TargetState::Offline | TargetState::LastServing);
        let present = |member: &&Member| member.target != target && !gone(member.state);
        let receives = |state| matches!(state, TargetState::Serving | TargetState::Syncing);
        let behind = chain.members[position + 1..].iter().take_while(|member| receives(member.state)).count();
        Some(Self {
            chain: chain.id,
            version: chain.version,
            state: chain.members[position].state,
            head: chain.head() == Some(target),
            tail: chain.serving().next_back() == Some(target),
            successor: chain.successor(target),
            filling: chain.members.get(position + 1).is_some_and(|next| next.state == TargetState::Syncing)
                && chain.members[position].serving(),
            served: chain.serving().next().is_some(),
            behind: behind as u8,
            peers: chain
                .members
                .iter()
                .filter(|member| present(member))
                .map(|member| member.target)
                .collect(),
        })
    }

    pub fn serving(&self) -> bool {
        self.state == TargetState::Serving
    }

    /// Being filled by its predecessor.
    pub fn syncing(&self) -> bool {
        self.state == TargetState::Syncing
    }

    /// The request knows this chain at this version.
    pub fn check(&self, chain: ChainId, version: u64) -> Result<()> {
        if chain != self.chain {
            let (ours, theirs) = (self.chain.0, chain.0);
            return Err(Error::mismatch(
                ErrorCode::UnknownChain,
                ours,
                theirs,
                "the target is of another chain",
            ));
        }
        if version != self.version {
            return Err(Error::mismatch(ErrorCode::StaleRouting, self.version, version, "chain version"));
        }
        Ok(())
    }

    /// A client may read here.
    pub fn admit_read(&self, chain: ChainId, version: u64) -> Result<()> {
        self.check(chain, version)?;
        if self.serving() { Ok(()) } else { Err(ErrorCode::NotServing.into()) }
    }

    /// A client or the predecessor may offer an update here.
    pub fn admit_update(&self, offer: &Offer) -> Result<()> {
        self.check(offer.chain, offer.chain_version)?;
        let forwarded = offer.forwarded.is_some();
        let receives = self.serving() || self.syncing();
        let admitted = match offer.fill {
            Some(_) => forwarded && self.syncing(),
            None if forwarded => receives && !self.head,
            None => self.head,
        };
        if admitted {
            return Ok(());
        }
        let what = match offer.fill {
            Some(_) => "the target isn't being filled",
            None if forwarded => "no updates come from a predecessor here",
            None => "the target isn't the head",
        };
        Err(Error::new(ErrorCode::NotServing, what))
    }
}
