//! The roads of corefs: the one ring of a core, its buffers, and the connections that carry frames.
//!
//! | module | is |
//! |---|---|
//! | [`ring`] | the one io_uring of a core: queueing, reaping, parking |
//! | [`executor`] | how the executor under a ring must be set up |
//! | [`buffer`] | the bounded arena of aligned buffers of a core |
//! | [`address`] | where a peer listens |
//! | [`handshake`] | who a peer is, and the proof that it knows the cluster's secret; pure |
//! | [`tcp`] | listeners and connections of one executor, driven by its turn loop |
//! | [`transport`] | the calls that every transport has |
//! | `rdma` | frames by queue pairs, beside TCP connections (feature `rdma`) |
//! | [`costs`] | what connections cost, in counts |
//! | [`heap`] | how often a thread asks for memory |
//! | [`mailbox`] | the bounded way into an executor from other threads |
//! | [`rpc`] | the async endpoint of control roles and clients: calls, services, deadlines |
//! | [`place`] | where devices, interfaces and threads are: NUMA nodes and networks |
//! | [`process`] | what the kernel says about this process |
//! | [`contract`] | what every transport promises, one-sided RDMA included |
//!
//! Everything here belongs to one executor and is `!Send`, but for [`mailbox::Sender`] and [`rpc::Remote`].

pub mod address;
pub mod bell;
pub mod buffer;
pub mod contract;
pub mod costs;
mod debt;
pub mod executor;
pub mod handshake;
pub mod heap;
pub mod mailbox;
pub mod place;
pub mod process;
#[cfg(feature = "rdma")]
pub mod rdma;
pub mod ring;
pub mod rpc;
pub mod tcp;
pub mod transport;

pub use address::Address;
pub use bell::Bell;
pub use buffer::{Buffer, Payload, Pool};
pub use contract::{Flow, FrameSink, Placement};
pub use handshake::{Identity, Peer, Role, Secret};
#[cfg(feature = "rdma")]
pub use rdma::{Rdma, RdmaConfig};
pub use ring::{Completion, Ring, RingConfig, Source, Token};
pub use rpc::{Node, NodeConfig, Remote, Reply, Request, Responder, Service};
pub use tcp::{ConnId, Tcp, TcpConfig};
pub use transport::{Carrier, Transport};
