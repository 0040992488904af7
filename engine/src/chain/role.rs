//! What routing says about one target: its place in its chain.

use corefs_wire::control::mgmtd::TargetState;
use corefs_wire::routing::Chain;
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
    /// How many come after, serving or being filled.
    pub behind: u8,
}

impl Role {
    /// The place of `target` in `chain`, `None` if it isn't a member.
    pub fn of(target: TargetId, chain: &Chain) -> Option<Self> {
        let position = chain.members.iter().position(|member| member.target == target)?;
        let receives = |state| matches!(state, TargetState::Serving | TargetState::Syncing);
        let behind = chain.members[position + 1..].iter().take_while(|member| receives(member.state)).count();
        Some(Self {
            chain: chain.id,
            version: chain.version,
            state: chain.members[position].state,
            head: chain.head() == Some(target),
            tail: chain.serving().next_back() == Some(target),
            successor: chain.successor(target),
            behind: behind as u8,
        })
    }

    pub fn serving(&self) -> bool {
        self.state == TargetState::Serving
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
    pub fn admit_update(&self, chain: ChainId, version: u64, forwarded: bool) -> Result<()> {
        self.check(chain, version)?;
        let receives = self.serving() || self.state == TargetState::Syncing;
        let admitted = if forwarded { receives && !self.head } else { self.head };
        if admitted {
            return Ok(());
        }
        let what =
            if forwarded { "no updates come from a predecessor here" } else { "the target isn't the head" };
        Err(Error::new(ErrorCode::NotServing, what))
    }
}
