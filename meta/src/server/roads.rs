//! The world outside as a server has it: the machine's clock, and a client of the storage servers and managers.

use crate::outside::{ChunkService, ClientLeases, Clock, Random, Space};
use corefs_client::Client;
use corefs_kv::prng::Prng;
use corefs_wire::control::mgmtd::{CheckClientsT, Standing, StatusT};
use corefs_wire::layout::Layout;
use corefs_wire::routing::RoutingInfo;
use corefs_wire::{ClientId, Error, ErrorCode, InodeId, Result};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// How long a report of the servers' space is good for: they report about as often, and statfs may be asked for with
/// every `df`, `ls` and file manager's glance.
const SPACE_AGE_MAX: Duration = Duration::from_secs(1);

pub struct Roads {
    client: Client,
    random: RefCell<Prng>,
    space: Cell<Option<(Instant, Space)>>,
}

impl Roads {
    /// `random` must be seeded by chance: its numbers name sessions of all servers.
    pub fn new(client: Client, random: Prng) -> Self {
        Self { client, random: RefCell::new(random), space: Cell::new(None) }
    }
}

impl Clock for Roads {
    fn now(&self) -> i64 {
        i64::try_from(super::wall_ns()).unwrap_or(i64::MAX)
    }
}

impl Random for Roads {
    fn random(&self) -> u64 {
        self.random.borrow_mut().draw()
    }
}

impl ChunkService for Roads {
    async fn truncate_chunks(&self, inode: InodeId, layout: &Layout, length: u64, epoch: u32) -> Result<()> {
        self.client.truncate_chunks(inode, layout, length, epoch).await
    }

    async fn write_first_chunk(
        &self,
        inode: InodeId,
        layout: &Layout,
        bytes: &[u8],
        epoch: u32,
    ) -> Result<()> {
        self.client.write_first_chunk(inode, layout, bytes, epoch).await
    }

    async fn remove_chunks(&self, inode: InodeId, layout: &Layout, slice: Duration) -> Result<bool> {
        self.client.remove_chunks(inode, layout, slice).await
    }

    async fn inode_length(&self, inode: InodeId, layout: &Layout) -> Result<u64> {
        self.client.inode_length(inode, layout).await
    }

    fn routing(&self) -> Rc<RoutingInfo> {
        self.client.routing()
    }

    async fn space(&self) -> Result<Space> {
        match self.space.get() {
            Some((when, space)) if when.elapsed() < SPACE_AGE_MAX => Ok(space),
            _ => {
                let space = space_of(&self.client.status().await?);
                self.space.set(Some((Instant::now(), space)));
                Ok(space)
            }
        }
    }
}

/// Room on all slices that live and are in use, each byte counted once however many replicas it gets.
fn space_of(status: &StatusT) -> Space {
    let replicas = u64::from(status.replicas.max(1));
    let slices = status.nodes.iter().filter(|node| node.alive).flat_map(|node| &node.slices);
    let (mut total, mut used) = (0u64, 0u64);
    for slice in slices.filter(|slice| !slice.dead && slice.standing == Standing::Active) {
        total = total.saturating_add(slice.capacity);
        used = used.saturating_add(slice.used.min(slice.capacity));
    }
    Space { total: total / replicas, free: (total - used) / replicas }
}

impl ClientLeases for Roads {
    async fn alive(&self, clients: &[ClientId]) -> Result<Vec<bool>> {
        let mut request = CheckClientsT::default();
        request.clients = clients.iter().map(|client| client.0).collect();
        let alive = self.client.manager(&request).await?.alive;
        if alive.len() != clients.len() {
            let (asked, told) = (clients.len() as u64, alive.len() as u64);
            return Err(Error::mismatch(ErrorCode::BadFrame, asked, told, "an answer for each client"));
        }
        Ok(alive)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use corefs_wire::control::mgmtd::{NodeStatusT, SliceInfoT};

    #[test]
    fn space_counts_living_slices_once() {
        let slice = |capacity, used, dead| {
            let mut slice = SliceInfoT::default();
            (slice.capacity, slice.used, slice.dead) = (capacity, used, dead);
            slice.standing = Standing::Active;
            slice
        };
        let mut leaving = slice(1000, 10, false);
        leaving.standing = Standing::Leaving;
        let node = |alive, slices| {
            let mut node = NodeStatusT::default();
            (node.alive, node.slices) = (alive, slices);
            node
        };
        let mut status = StatusT::default();
        status.replicas = 2;
        status.nodes = vec![
            node(true, vec![slice(1000, 100, false), slice(1000, 0, true), slice(500, 600, false)]),
            node(true, vec![leaving]),
            node(false, vec![slice(1000, 0, false)]),
        ];
        assert_eq!(space_of(&status), Space { total: 750, free: 450 });
        assert_eq!(space_of(&StatusT::default()), Space::default());
    }
}
