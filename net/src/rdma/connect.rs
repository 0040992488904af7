//! The states of a queue pair: initialised, ready to receive, ready to send, and the error that stops it (ibv_modify_qp(3)).

use super::device::{Gid, Link, Mtu};
use super::library::done;
use super::queue_pair::QueuePair;
use super::window::Rights;
use corefs_wire::Result;
use ibverbs_sys as sys;

/// Code 12 of the architecture: what a peer without a posted receive is told to wait, 0.64 ms. Credits keep that from happening, but where more are out than
/// there are [shared receives](super::shared).
const NOT_READY_TIMER: u8 = 12;
/// The same of soft-RoCE: 40.96 ms. In Linux 6.1 it sends a queue pair's messages again within the loop in which it heard that nobody received them, for as
/// long as the time to wait ends before it has sent them; meanwhile the core that would post receives does nothing else. 32 packets have taken longer than a tick.
const NOT_READY_TIMER_EMULATED: u8 = 24;
/// For ever: the peer's device is there and answers, and it has a receive as soon as its core has time. A process that is gone is noticed by TCP.
const NOT_READY_RETRIES: u8 = 7;
/// Hops of a routed packet.
const HOPS: u8 = 64;

/// The other end, as it was told by it and checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Remote {
    pub queue_pair: u32,
    pub sequence: u32,
    pub gid: [u8; 16],
    pub lid: u16,
    pub mtu: Mtu,
    /// Reads that we may have in flight there, and it here.
    pub reads_out: u8,
    pub reads_in: u8,
    /// It may have no receive at times.
    pub shares: bool,
}

/// How patient the device is: see ibv_modify_qp(3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Patience {
    /// An acknowledgment is waited for 4.096 us * 2^n.
    pub timeout: u8,
    /// So often it is tried again (at most 7).
    pub retries: u8,
}

impl QueuePair {
    /// From now on receives can be queued.
    pub(super) fn initialise(&mut self) -> Result<()> {
        let (port, rights) = (self.port, Rights::Write.flags() | Rights::Read.flags());
        self.modify("initialising", |attr| {
            use sys::ibv_qp_attr_mask as mask;
            attr.qp_state = sys::ibv_qp_state::IBV_QPS_INIT;
            attr.port_num = port;
            attr.qp_access_flags = rights;
            mask::IBV_QP_STATE | mask::IBV_QP_PKEY_INDEX | mask::IBV_QP_PORT | mask::IBV_QP_ACCESS_FLAGS
        })
    }

    /// Makes it receive from `remote`, then send to it, from packet number `sequence` (24 bits) on.
    pub fn connect(&mut self, remote: &Remote, sequence: u32, patience: Patience) -> Result<()> {
        let (port, gid) = (self.port, self.gid);
        let emulated = self.domain.context.limits.is_emulated;
        self.modify("ready to receive", |attr| {
            use sys::ibv_qp_attr_mask as mask;
            attr.qp_state = sys::ibv_qp_state::IBV_QPS_RTR;
            attr.path_mtu = remote.mtu.number().into();
            attr.dest_qp_num = remote.queue_pair;
            attr.rq_psn = remote.sequence;
            attr.max_dest_rd_atomic = remote.reads_in;
            attr.min_rnr_timer = if emulated { NOT_READY_TIMER_EMULATED } else { NOT_READY_TIMER };
            attr.ah_attr = address(remote, port, gid);
            mask::IBV_QP_STATE
                | mask::IBV_QP_AV
                | mask::IBV_QP_PATH_MTU
                | mask::IBV_QP_DEST_QPN
                | mask::IBV_QP_RQ_PSN
                | mask::IBV_QP_MAX_DEST_RD_ATOMIC
                | mask::IBV_QP_MIN_RNR_TIMER
        })?;
        self.modify("ready to send", |attr| {
            use sys::ibv_qp_attr_mask as mask;
            attr.qp_state = sys::ibv_qp_state::IBV_QPS_RTS;
            attr.sq_psn = sequence;
            attr.timeout = patience.timeout;
            attr.retry_cnt = patience.retries;
            attr.rnr_retry = if remote.shares { NOT_READY_RETRIES } else { patience.retries.min(6) };
            attr.max_rd_atomic = remote.reads_out;
            mask::IBV_QP_STATE
                | mask::IBV_QP_TIMEOUT
                | mask::IBV_QP_RETRY_CNT
                | mask::IBV_QP_RNR_RETRY
                | mask::IBV_QP_SQ_PSN
                | mask::IBV_QP_MAX_QP_RD_ATOMIC
        })
    }

    /// Nothing that is queued is begun any more.
    pub(super) fn stop(&mut self) -> Result<()> {
        self.modify("stopping", |attr| {
            attr.qp_state = sys::ibv_qp_state::IBV_QPS_ERR;
            sys::ibv_qp_attr_mask::IBV_QP_STATE
        })
    }

    fn modify(
        &mut self,
        what: &str,
        fill: impl FnOnce(&mut sys::ibv_qp_attr) -> sys::ibv_qp_attr_mask,
    ) -> Result<()> {
        // SAFETY: all zeros is a valid set of attributes.
        let mut attr: sys::ibv_qp_attr = unsafe { std::mem::zeroed() };
        let mask = fill(&mut attr).0 as i32;
        // SAFETY: the queue pair is there; the attributes are read, as far as the mask says.
        let result = unsafe { (self.domain.context.library.modify_qp)(self.raw, &mut attr, mask) };
        done("ibv_modify_qp", result).map_err(|error| error.of(what))
    }
}

/// How packets find `remote`: by its GID, or within an InfiniBand subnet by its LID.
fn address(remote: &Remote, port: u8, ours: Gid) -> sys::ibv_ah_attr {
    // SAFETY: all zeros is a valid address.
    let mut address: sys::ibv_ah_attr = unsafe { std::mem::zeroed() };
    address.port_num = port;
    address.dlid = remote.lid;
    let same_subnet = remote.gid[..8] == ours.bytes[..8];
    if ours.link != Link::InfiniBand || !same_subnet {
        address.is_global = 1;
        address.grh.dgid.raw = remote.gid;
        address.grh.sgid_index = ours.index;
        address.grh.hop_limit = HOPS;
    }
    address
}
