//! Disks that come while the node serves: asked for by a file in its directory (see [`home::request`](super::home::request)).

use super::cores::Core;
use super::home::{Home, HomeSlice, Request};
use super::membership::Membership;
use crate::disk::file::DiskFile;
use crate::disk::open::format_slice;
use crate::mesh::{ShardMessage, answer};
use crate::store::Geometry;
use corefs_net::executor;
use corefs_wire::{ErrorCode, NodeId, Result, Uuid};
use std::cell::RefCell;
use std::rc::{Rc, Weak};
use std::time::Duration;

/// How often it is looked for a request.
const LOOK: Duration = Duration::from_secs(1);

/// Looks for requests as long as the node lives.
pub(super) struct Looking {
    home: Weak<RefCell<Home>>,
    cores: Rc<Vec<Core>>,
    membership: Rc<Membership>,
}

impl Looking {
    pub(super) fn new(home: &Rc<RefCell<Home>>, cores: &Rc<Vec<Core>>, membership: &Rc<Membership>) -> Self {
        let (cores, membership) = (Rc::clone(cores), Rc::clone(membership));
        Self { home: Rc::downgrade(home), cores, membership }
    }

    pub(super) async fn run(self) {
        while !self.membership.is_stopped() {
            executor::sleep(LOOK).await;
            let Some(home) = self.home.upgrade() else { return };
            let request = home.borrow().requested();
            let Some(request) = request else { continue };
            let outcome = match request {
                Ok(request) => self.add(&home, &request).await,
                Err(error) => Err(error),
            };
            match &outcome {
                Ok(()) => tracing::info!("a disk was added"),
                Err(error) => tracing::error!(%error, "a disk can't be added"),
            }
            if let Err(error) = home.borrow().answer_request(&outcome) {
                tracing::error!(%error, "the answer to a request can't be written down");
            }
        }
    }

    /// Names the disk, formats it, and has each shard take its slices. The managers hear of them with the next heartbeat.
    async fn add(&self, home: &Rc<RefCell<Home>>, request: &Request) -> Result<()> {
        let added = home.borrow_mut().add_disk(&request.path, request.size);
        let (position, disk) = match added {
            // A process before this one took it, and died before it could say so.
            Err(error) if error.code == ErrorCode::Exists => return Ok(()),
            added => added?,
        };
        let (node, cluster) = (self.membership.node(), home.borrow().cluster());
        let all = home.borrow().slices();
        let slices: Vec<HomeSlice> = all.into_iter().filter(|slice| slice.disk == position).collect();
        // Elsewhere: heartbeats go on meanwhile.
        let (answer, awaited) = answer();
        let (file, wanted) = (disk.share()?, slices.clone());
        std::thread::spawn(move || answer.send(format(file, &wanted, node, cluster)));
        if let Err(error) = awaited.await.and_then(|formatted| formatted) {
            home.borrow_mut().forget_fresh_disk(position)?;
            return Err(error);
        }
        home.borrow_mut().formatted(|disk| disk == position)?;
        self.membership.grows(&slices);
        let given = self.give(&disk, &slices).await;
        self.membership.grown();
        given
    }

    /// Gives each shard its slices. Those that a shard can't open are reported as dead, like those of a disk that isn't there.
    async fn give(&self, disk: &DiskFile, slices: &[HomeSlice]) -> Result<()> {
        let mut outcome = Ok(());
        for (index, core) in self.cores.iter().enumerate() {
            let ours = |slice: &&HomeSlice| usize::from(slice.index.0) % self.cores.len() == index;
            let ours: Vec<HomeSlice> = slices.iter().filter(ours).copied().collect();
            let given = async {
                let (answer, awaited) = answer();
                let slices = ours.iter().map(|slice| (slice.index, slice.extent, slice.store)).collect();
                core.handle.send(ShardMessage::AddDisk { disk: disk.share()?, slices, answer })?;
                awaited.await?
            };
            if let Err(error) = given.await {
                self.membership.lack(&ours, self.cores.len());
                outcome = Err(error);
            }
        }
        outcome
    }
}

fn format(mut file: DiskFile, slices: &[HomeSlice], node: NodeId, cluster: Uuid) -> Result<()> {
    for slice in slices {
        let geometry = Geometry::for_slice(cluster, slice.store, node, slice.index, slice.extent.bytes)?;
        format_slice(&mut file, slice.extent.base, &geometry)?;
    }
    Ok(())
}
