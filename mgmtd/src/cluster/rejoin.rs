//! What a storage node's restart does to the chains it belongs to. The one place to replace when chains shrink.
//!
//! Today every member of a chain is `Serving` for ever: a dead node stays a member, and while it is gone its chains
//! refuse updates (the successor can't be reached: `ChainBroken`) and the other members go on answering reads. When
//! it registers again, with a new incarnation, its targets are `Serving` at once, and each of its chains gets a
//! higher version. No waiting, no filling.
//!
//! # Why that is safe while no chain is ever shrunk
//!
//! The claim: a member that comes back holds, durably, every update that was ever acknowledged, so it may serve. The
//! premises, each somebody's duty:
//!
//! 1. *All commit or none.* An update is committed, shown to a reader as committed, or acknowledged only after every
//!    member of the chain has flushed it, at least as pending. The tail commits first; the tail is reached only through
//!    every other member, each of which flushes before it forwards (engine, chain replication).
//! 2. *Membership and order never change.* So "every member" is the same set before and after any restart: nothing can
//!    have been committed while a member was gone. (This file, and nothing else in `mgmtd` writes chains.)
//! 3. *It is the same store.* A node is recognised by the store uuids of its slices, not by its address or number alone:
//!    [`state::register`](super::state::State::register) refuses others. Recovery of a slice is clean or the slice is dead
//!    and its shard refuses everything (engine).
//! 4. *The old process is gone.* The node's directory is locked by one process, and the manager accepts other
//!    addresses for a node only when the old process's lease has run out.
//!
//! From 1 and 2: at any moment, for each chunk, every member's disk has all updates up to the highest version committed
//! anywhere, the newest of them perhaps still marked pending (a commit mark needs no flush). A restart with 3 loses
//! nothing that was flushed, so this still holds afterwards.
//!
//! What may differ between members are *pendings*: an update that some have flushed and others haven't. Since a member
//! forwards only what it has flushed, a member's pendings are always among what its predecessor has flushed. The new
//! chain version makes every member stop, re-drive its pendings in order, and let the last one commit them before any
//! new update is admitted (protocols, 3.9). So a pending that is committed elsewhere is committed here too, never
//! dropped; and one that was acknowledged to nobody is completed, which its client, who doesn't know the outcome, may
//! not distinguish from success. Reads of a chunk with a pending ask the tail or are told `Pending`: nobody sees a version
//! that a later read takes back.
//!
//! Why a higher chain version is needed although the members stay the same: messages of the old incarnation (forwards
//! to it, acknowledgments from it) may still be on their way. They name the old version and are refused; their
//! senders re-drive under the new one. The version is raised in the transaction that stores the new incarnation and
//! checks the manager's lease, so that no two incarnations ever share a chain version.
//!
//! A node that falls silent and returns with the *same* incarnation changes nothing: its memory is intact, and by 1 and 2
//! nobody went on without it.
//!
//! # What breaks it
//!
//! Any one of: committing without a dead member (premise 1 or 2), adding a member or changing the order (2), accepting a
//! replaced or rolled-back disk under an old uuid (3). Whoever lets chains go on without a dead member must replace
//! [`rejoin`] by [`transition::advance`](super::transition::advance), which sends a restarted member through Offline, Syncing and
//! UpToDate.

use super::state::Chain;
use super::transition::Public;
use corefs_wire::NodeId;

/// A member's process was replaced: the chain keeps its members, their order and states, under a higher version.
/// Returns whether `node` is a member at all.
pub fn rejoin(chain: &mut Chain, node: NodeId) -> bool {
    if !chain.members.iter().any(|member| member.node == node) {
        return false;
    }
    let healthy = chain.members.iter().all(|member| member.state == Public::Serving);
    // See premise 2: on a chain that had been shrunk this function would hand out old data.
    assert!(healthy, "a chain that isn't whole must not be rejoined");
    chain.version += 1;
    true
}
