//! What every transport promises, so that the layers above don't know which one carries them.
//!
//! There are two, with the same calls ([`Transport`](crate::Transport)): TCP, and RDMA, which is TCP until both ends have agreed on a queue pair. The
//! promises:
//!
//! - **`reply` implies placement.** A transport that has delivered a reply frame has placed every byte of its
//!   data before. TCP keeps it by reading the data, straight into the buffer that the request named,
//!   before the frame is announced. RDMA keeps it by ordering the SEND of the reply behind the WRITE of its data
//!   on one queue pair.
//! - **Data of replies** go where the requester wants them. On TCP the destination is
//!   (request number, offset): the data ride behind the reply's header and the receiver's [`FrameSink::place`] finds
//!   the slot. On RDMA it is the [`RemoteBuf`] of a grant that travelled with the request ([`Transport::grant`](crate::Transport::grant));
//!   without one `place` is asked, as on TCP.
//! - **Payloads of writes** come when [`FrameSink::place`] has said where to: on TCP they are read from the socket, on RDMA from the requester's
//!   memory, unless they are so small that they came with the request.
//! - **A late byte never lands in memory that was handed out again.** A destination stays owned by its request until
//!   the reply, or until the connection's end is confirmed by [`FrameSink::closed`], or the device has confirmed that it can't be reached any more.
//! - **Bounds.** A receiver that has no buffer answers [`Placement::Wait`]; the transport then stops taking from that
//!   peer alone, and the peer's sends back up in its own bounded queue.
//! - **Order.** Frames of a connection are announced in the order in which they were sent. On RDMA `place` may be asked for a frame before those ahead
//!   of it have been announced, so that their data come side by side.

use crate::buffer::Buffer;
use crate::handshake::Peer;
use crate::tcp::ConnId;
use corefs_wire::Error;
use corefs_wire::frame::Header;

/// Memory of a peer that one-sided operations may reach.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RemoteBuf {
    /// Address in the peer's memory.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
    /// The peer's remote key for it.
    pub key: u32,
    /// What the peer knows the memory by: the number of the request that it was granted for, or the window that opens it.
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

/// Who takes the frames of a [`Transport`](crate::Transport). Calls come only from within its `complete` and `advance`.
pub trait FrameSink {
    /// What is announced next may have come until now, and not only until the turn began: a clock that decides about it is to be read again. Called by
    /// drivers that take what has come while they announce it; those that are given completions announce what came before these were gathered.
    fn taken(&mut self) {}

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
