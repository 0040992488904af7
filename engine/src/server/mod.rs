//! A storage node: one pinned executor per core, each with a shard, and a control endpoint that keeps them in the cluster.
//!
//! | file | is |
//! |---|---|
//! | [`home`] | the node's directory |
//! | `cores` | starting and joining the shards' threads |
//! | `disks` | disks that are added while it runs |
//! | `failure` | what becomes of the process when a shard fails |
//! | `membership` | registering, heartbeats, leases, routing |
//! | [`plan`] | which cores the shards run on |
//! | `process` | who this process is and what it has counted |
//! | `scrub` | how scrub and repair are, and beginning a pass |

pub mod home;
pub mod plan;

mod cores;
mod disks;
mod failure;
mod membership;
mod process;
mod scrub;

use crate::chain::RATE_DEFAULT;
use crate::disk::way::Choice;
use crate::mesh::{ShardMessage, ShardReport};
use crate::scrub::SCRUB_RATE_DEFAULT;
use corefs_net::transport::Choice as Transport;
use corefs_net::{Address, Identity, Node, NodeConfig, Role, Secret};
use corefs_wire::limits::{SHARDS_A_CORE_MAX, SHARDS_MAX};
use corefs_wire::{Error, ErrorCode, NodeId, Result, SliceIndex, Uuid};
use cores::Core;
use home::{Home, Plan};
use membership::{Member, Membership};
use std::cell::RefCell;
use std::net::IpAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Buffers of a shard unless told otherwise (bytes).
pub const POOL_DEFAULT: usize = 128 << 20;

/// What a storage node is started with.
#[derive(Clone, Debug)]
pub struct Options {
    /// The node's directory; made at the first start.
    pub dir: PathBuf,
    /// Disks of a new node: files to be made, or block devices. None: one file in `dir`.
    pub disks: Vec<PathBuf>,
    /// Bytes of each disk of a new node, allocated at the first start.
    pub capacity: u64,
    pub managers: Vec<Address>,
    pub secret: Option<Secret>,
    /// Shards: each takes a core of its own.
    pub cores: usize,
    /// The first shard's position among the cores that this process may use; the others follow, around the end. `None`: near the disks
    /// ([`plan`]).
    pub first_core: Option<usize>,
    /// Where shards and control endpoint listen, each on a free port.
    pub listen: IpAddr,
    /// Failure domain, empty for none.
    pub domain: String,
    /// By which way shards reach the disks.
    pub way: Choice,
    /// Block devices are told at the start which space is free.
    pub discard: bool,
    /// How long a shard polls before it sleeps.
    pub busy_poll: Duration,
    /// By what connections of shards go.
    pub transport: Transport,
    /// Bytes a second at which the node fills replicas that came back, all its shards together.
    pub resync_rate: u64,
    /// Bytes a second at which the node verifies what it stores in the background, all its shards together; 0: not by itself.
    pub scrub_rate: u64,
    /// Bytes of buffers of each shard.
    pub pool_bytes: usize,
    /// Where to log what the disks are asked; each shard appends `.N` to the name.
    pub record: Option<PathBuf>,
}

impl Options {
    pub fn new(dir: impl Into<PathBuf>, managers: Vec<Address>) -> Self {
        Self {
            dir: dir.into(),
            disks: Vec::new(),
            capacity: 64 << 30,
            managers,
            secret: None,
            cores: 1,
            first_core: None,
            listen: IpAddr::from([127, 0, 0, 1]),
            domain: String::new(),
            way: Choice::Auto,
            discard: false,
            busy_poll: Duration::ZERO,
            transport: Transport::Auto,
            resync_rate: RATE_DEFAULT,
            scrub_rate: SCRUB_RATE_DEFAULT,
            pool_bytes: POOL_DEFAULT,
            record: None,
        }
    }
}

/// A running storage node. Belongs to the executor that started it; `!Send`.
pub struct StorageServer {
    control: Node,
    address: Address,
    node: NodeId,
    cores: Rc<Vec<Core>>,
    membership: Rc<Membership>,
    _home: Rc<RefCell<Home>>,
}

impl StorageServer {
    /// Opens or makes the node in `options.dir`, joins the cluster and serves. Waits for a manager as long as it takes.
    ///
    /// Errors name path and remedy: `DirectoryInUse`, `WrongCluster`, `NodeConflict`, `NoSpace`, `BadConfig`, `BadFormat`,
    /// `Corrupt`, `AddressInUse`, and what the handshake with the manager refuses.
    pub async fn start(options: Options) -> Result<Self> {
        check(&options)?;
        options.transport.check()?;
        let plan = Plan { disks: &options.disks, capacity: options.capacity, cores: options.cores };
        let mut home = Home::open(&options.dir, &plan)?;
        let disks = home.open_disks()?;
        let incarnation =
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |time| time.as_nanos() as u64);
        let reserved = cores::reserve(options.listen, options.cores)?;
        let mut member = Member {
            node: home.node(),
            incarnation,
            domain: options.domain.clone(),
            control: String::new(),
            shards: reserved.iter().map(|(_, address)| address.to_string()).collect(),
            slices: membership::planned_slices(&home.slices(), options.cores, |disk| disks[disk].is_some()),
            resync_rate: options.resync_rate,
        };
        let identity = |node: Option<NodeId>, cluster: Uuid| Identity {
            role: Role::Storage,
            id: node.map_or(0, |node| node.0.into()),
            incarnation,
            cluster,
            secret: options.secret.clone(),
        };
        if home.node().is_none() {
            // Nobody can reach us under these addresses before we serve on them; whoever tries, tries again.
            let control = Node::start(config(identity(None, Uuid::NIL)))?;
            member.control = format!("{}", Address::from(std::net::SocketAddr::new(options.listen, 1)));
            let registered = membership::register(&control, &options.managers, 0, &member).await;
            control.shutdown().await;
            let registered = registered?.reply;
            home.join(NodeId(registered.node), membership::cluster(&registered)?)?;
            member.node = home.node();
        }
        let identity = identity(home.node(), home.cluster());
        let there: Vec<bool> = disks.iter().map(Option::is_some).collect();
        let (cores, unopened) = cores::start(&options, &home, &identity, disks, reserved).await?;
        // Also of a disk of which not every slice could be made: the others are about to be used, and must never be made again.
        home.formatted(|disk| there[disk])?;
        member.slices.iter_mut().for_each(|slice| slice.dead |= unopened.contains(&SliceIndex(slice.index)));
        let node = home.node().ok_or(ErrorCode::Internal)?;
        Self::join(&options, home, identity, member, node, cores).await
    }

    /// The shards run; the cluster is to know.
    async fn join(
        options: &Options,
        mut home: Home,
        identity: Identity,
        mut member: Member,
        node: NodeId,
        cores: Vec<Core>,
    ) -> Result<Self> {
        let control = Node::start(config(identity))?;
        let address = control.listen(&Address::from(std::net::SocketAddr::new(options.listen, 0)))?;
        member.control = address.to_string();
        let cores = Rc::new(cores);
        control.serve(Rc::new(process::ProcessService::new(Rc::clone(&cores), options.scrub_rate)));
        let registered = match membership::register(&control, &options.managers, 0, &member).await {
            Ok(registered) => registered,
            Err(error) => {
                cores::stop(&cores).await;
                return Err(error);
            }
        };
        home.join(NodeId(registered.reply.node), membership::cluster(&registered.reply)?)?;
        tracing::info!(%node, %address, shards = cores.len(), "serving");
        let membership =
            Rc::new(Membership::new(control.clone(), options.managers.clone(), member, Rc::clone(&cores)));
        membership.registered(registered)?;
        let beating = Rc::clone(&membership);
        glommio::spawn_local(async move { beating.run().await }).detach();
        let failing = failure::watch(Rc::clone(&cores), Rc::clone(&membership));
        glommio::spawn_local(failing).detach();
        let following = Rc::clone(&membership);
        glommio::spawn_local(async move { following.follow().await }).detach();
        let home = Rc::new(RefCell::new(home));
        let looking = disks::Looking::new(&home, &cores, &membership);
        glommio::spawn_local(async move { looking.run().await }).detach();
        Ok(Self { control, address, node, cores, membership, _home: home })
    }

    /// Where the control endpoint listens (`process.get`).
    pub fn address(&self) -> &Address {
        &self.address
    }

    pub fn node(&self) -> NodeId {
        self.node
    }

    /// Where each shard listens.
    pub fn shard_addresses(&self) -> Vec<Address> {
        self.cores.iter().map(|core| core.address.clone()).collect()
    }

    /// What the shards have done.
    pub async fn reports(&self) -> Result<Vec<ShardReport>> {
        cores::reports(&self.cores).await
    }

    /// Stops cleanly: takes nothing new, finishes what is under way, writes a last checkpoint.
    pub async fn stop(self) -> Result<()> {
        self.membership.stop();
        cores::stop(&self.cores).await;
        self.control.shutdown().await;
        Ok(())
    }

    /// Ends the shards at once, as a crash would. For tests.
    pub async fn kill(self) {
        self.membership.stop();
        for core in self.cores.iter() {
            // A full mailbox or a shard that is gone: both end below.
            let _ = core.handle.send(ShardMessage::Abort);
            core.join();
        }
        self.control.shutdown().await;
    }
}

fn config(identity: Identity) -> NodeConfig {
    // The control endpoint carries no bulk data.
    NodeConfig { pool_bytes: 4 << 20, ..NodeConfig::new(identity) }
}

fn check(options: &Options) -> Result<()> {
    let bad = |what: String| Err(Error::new(ErrorCode::BadConfig, what));
    if options.cores == 0 || options.cores > SHARDS_MAX {
        return bad(format!("{} cores: a node has 1 to {}", options.cores, SHARDS_MAX));
    }
    let (present, most) = (cores::present(), cores::present() * SHARDS_A_CORE_MAX);
    if options.cores > most {
        let what = format!(
            "{} shards were asked for: {most} are possible on the {present} cores that may be used",
            options.cores
        );
        return bad(what);
    }
    if options.cores > present {
        tracing::warn!(shards = options.cores, cores = present, "shards share cores, which gains nothing");
    }
    if options.managers.is_empty() {
        return bad("no manager was named".into());
    }
    if options.pool_bytes < 16 << 20 {
        return bad("a shard needs at least 16 MiB of buffers".into());
    }
    Ok(())
}
