//! Connections to owners: made when one is needed, in the time of the attempt that needs it.
//!
//! A node that has lost its power refuses nothing: the kernel asks again and again, for longer than any read may wait. So the
//! connection is a part of the attempt: it ends with it, it counts as load, and an owner that wasn't reached is asked only when there
//! is no other, for a while. The connection itself goes on being made; whoever comes later finds it.

use super::{OWNER_READS_MAX, Owner, SUSPECT, Storage};
use crate::route::OwnerIndex;
use corefs_net::rpc::Expected;
use corefs_net::transport::{Choice, Way};
use corefs_net::{Address, Buffer, ConnId};
use corefs_wire::{Error, ErrorCode, Result, Uuid};
use futures_lite::future;
use std::time::{Duration, Instant};

impl Storage {
    /// Reserves a request number at an owner, waiting while too much is under way there. From then on, what has to be done first included,
    /// the reply has the time `within` to come. Its data go to `dest`.
    #[inline]
    pub(super) async fn expect(
        &self,
        owner: OwnerIndex,
        dest: Option<Buffer>,
        within: Duration,
    ) -> Result<(ConnId, Expected)> {
        while self.load(owner) >= OWNER_READS_MAX {
            self.room.next().await;
        }
        let (conn, left) = match self.open(owner) {
            Some(conn) => (conn, within),
            None => self.reach(owner, within).await?,
        };
        match self.node.expect(conn, dest.map(|buffer| (buffer, 0))) {
            Ok(expected) => Ok((conn, expected.within(left))),
            Err(error) => {
                if error.code != ErrorCode::Overloaded {
                    // The next attempt connects anew.
                    self.lose(owner, conn);
                }
                Err(error)
            }
        }
    }

    /// The connection to an owner, if it is open.
    #[inline]
    pub(super) fn open(&self, owner: OwnerIndex) -> Option<ConnId> {
        let conn = self.owners.borrow().get(owner.0 as usize)?.conn?;
        // One that was closed because nobody used it is no failure.
        self.node.peer(conn).map(|_| conn)
    }

    /// Connects to an owner, and says what is left of the time. `TimedOut`; `Unreachable`; `ConnectionLost` when routing says meanwhile
    /// that its node is dead.
    #[cold]
    async fn reach(&self, owner: OwnerIndex, within: Duration) -> Result<(ConnId, Duration)> {
        {
            let mut owners = self.owners.borrow_mut();
            let len = owners.len().max(owner.0 as usize + 1);
            owners.resize_with(len, Owner::default);
        }
        // Others that come meanwhile see it, and go elsewhere; and its index is not given to another address.
        let _counted = self.count(owner);
        let until = Instant::now() + within;
        let connecting = self.node.within(within, self.connect(owner));
        let reached = future::or(connecting, self.left_for_dead(owner)).await;
        if let Err(error) = &reached
            && matches!(error.code, ErrorCode::TimedOut | ErrorCode::Unreachable)
        {
            self.suspect(owner);
        }
        Ok((reached?, until.saturating_duration_since(Instant::now())))
    }

    /// Connects to an owner, and makes sure that it is of our cluster.
    async fn connect(&self, index: OwnerIndex) -> Result<ConnId> {
        let text = self.ground.routes.borrow().address(index).to_owned();
        let address: Address = text.parse().map_err(|error: Error| {
            Error::new(ErrorCode::Unreachable, format!("the address of a storage shard: {}", error.message))
        })?;
        let conn = self.node.connection(&address).await?;
        let ours = self.ground.routes.borrow().info().cluster;
        let theirs = self.node.peer(conn).map_or(Uuid::NIL, |peer| peer.cluster);
        if theirs != ours && theirs != Uuid::NIL {
            let what = format!("{address} belongs to cluster {theirs}, we to {ours}");
            return Err(Error::new(ErrorCode::WrongCluster, what));
        }
        if self.node.transport() == Choice::Rdma
            && let Way::Tcp(why) = self.node.way(conn)
        {
            let what = format!(
                "RDMA was asked for, and {address} is reached by TCP: {why}; `corefs doctor --manager ADDR` says more, --transport auto takes what there is"
            );
            return Err(Error::new(ErrorCode::Unreachable, what));
        }
        self.owners.borrow_mut()[index.0 as usize].conn = Some(conn);
        Ok(conn)
    }

    /// Resolves when routing says that an owner's node is dead.
    async fn left_for_dead(&self, owner: OwnerIndex) -> Result<ConnId> {
        loop {
            self.ground.news.next().await;
            let routes = self.ground.routes.borrow();
            let address = routes.address(owner);
            let dead = routes.info().nodes.values().filter(|node| !node.alive).flat_map(|node| &node.shards);
            if dead.into_iter().any(|shard| shard == address) {
                return Err(Error::new(
                    ErrorCode::ConnectionLost,
                    format!("{address} is on a node that is dead"),
                ));
            }
        }
    }

    #[cold]
    pub(super) fn lose(&self, owner: OwnerIndex, conn: ConnId) {
        if let Some(owner) = self.owners.borrow_mut().get_mut(owner.0 as usize)
            && owner.conn == Some(conn)
        {
            owner.conn = None;
        }
    }

    /// From now on, for a while, an owner is asked only when there is no other.
    #[cold]
    pub(super) fn suspect(&self, owner: OwnerIndex) {
        if let Some(owner) = self.owners.borrow_mut().get_mut(owner.0 as usize) {
            owner.suspect_until = Some(self.node.now() + SUSPECT);
        }
    }
}
