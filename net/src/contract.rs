//! What every transport promises, so that the layers above don't know which one carries them.
//!
//! TCP is the only transport so far; one-sided RDMA fills the same seam later. The promises:
//!
//! - **`reply` implies placement.** A transport that has delivered a reply frame has placed every byte of its
//!   data before. TCP keeps it by reading the data, straight into the buffer that the request named,
//!   before the frame is announced. RDMA will keep it by ordering the SEND of the reply behind the WRITEs of its data
//!   on one queue pair.
//! - **`write_remote(buf, local)`** puts local bytes where the requester asked for them. On TCP the destination is
//!   (request number, offset): the data ride behind the reply's header and the receiver's [`FrameSink::place`] finds
//!   the slot. On RDMA it is the [`RemoteBuf`] that travelled in the request.
//! - **`read_remote(buf, local)`** pulls the payload of a write from the requester. On TCP payloads are always inline
//!   (at most `limits::FRAME_DATA_MAX` bytes), so there is nothing to pull and [`RemoteBuf::len`] is 0.
//! - **A late byte never lands in memory that was handed out again.** A destination stays owned by its request until
//!   the reply, or until the connection's end is confirmed by [`FrameSink::closed`].
//! - **Bounds.** A receiver that has no buffer answers [`Placement::Wait`]; the transport then stops taking from that
//!   peer alone, and the peer's sends back up in its own bounded queue.

use crate::buffer::Buffer;
use crate::handshake::Peer;
use crate::tcp::ConnId;
use corefs_wire::Error;
use corefs_wire::frame::Header;

/// Memory of a peer that one-sided operations may reach. `len` 0 means that data travel inline, which is all that
/// TCP ever says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RemoteBuf {
    /// Address in the peer's memory.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
    /// The peer's remote key for it.
    pub key: u32,
    /// The peer's request slot that owns the memory, so that a late transfer can be told from a current one.
    pub slot: u64,
}

/// Where the bulk data of a frame go.
pub enum Placement {
    /// To `buffer[offset..offset + data_len]`. The buffer must be unique and long enough; it comes back in
    /// [`FrameSink::frame`], or is dropped with the connection.
    Into { buffer: Buffer, offset: usize },
    /// They stay where they are: what `place` was given as `here`.
    Here(Buffer),
    /// No buffer is free now: the connection stops receiving until [`Tcp::resume`](crate::Tcp::resume), then asks again.
    Wait,
    /// Nobody wants them: they are read and thrown away, and the frame is announced without data.
    Discard,
}

/// What a sink says about the connection whose frame it just took.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flow {
    Continue,
    /// At a bound: no further frame of this connection until [`Tcp::resume`](crate::Tcp::resume).
    Pause,
}

/// Who takes the frames of a [`Tcp`](crate::Tcp). Calls come only from within `Tcp::complete` and `Tcp::advance`.
pub trait FrameSink {
    /// Where the `header.data_len()` (> 0) bytes behind this frame go. Header and body have been checked. `here`: the data, if all
    /// of them have arrived in memory that may be lent ([`Tcp::lend`](crate::Tcp::lend)); to take them so costs no copy,
    /// and keeps the block that they arrived in from other use until they are dropped.
    fn place(&mut self, conn: ConnId, header: &Header, body: &[u8], here: Option<Buffer>) -> Placement;

    /// A whole frame. `data` is the placed buffer, or the data that stayed where they were; absent for frames without data and for
    /// discarded ones.
    fn frame(&mut self, conn: ConnId, header: &Header, body: &[u8], data: Option<Buffer>) -> Flow;

    /// The handshake succeeded: frames may flow.
    fn opened(&mut self, conn: ConnId, peer: &Peer);

    /// The connection is gone and its id is dead. Called exactly once for every id that `connect` returned or
    /// `opened` announced, whoever ended it; a connection that fails before it opened says why here.
    fn closed(&mut self, conn: ConnId, error: Error);
}
