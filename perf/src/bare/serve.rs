//! The server of `wire` and `bare`: a thread a core, each with one ring, one listener and at most one file.

use super::{READY, identity};
use clap::Args;
use corefs_net::buffer::POOL_DEFAULT;
use corefs_net::ring::{Alarm, File as RingFile};
use corefs_net::{
    Address, Buffer, Completion, ConnId, Flow, FrameSink, Payload, Peer, Placement, Pool, Ring, RingConfig,
    Role, Source, Tcp, TcpConfig, Token,
};
use corefs_wire::data::{ReadEntry, ReadReply, op, read_entries};
use corefs_wire::error::encode_error;
use corefs_wire::frame::{Header, Kind};
use corefs_wire::limits::{BLOCK, FRAME_DATA_MAX};
use corefs_wire::{Error, ErrorCode, Result};
use slab::Slab;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use zerocopy::IntoBytes;
use zerocopy::little_endian::U32;

/// CRCs that replies carry, of a whole frame: nobody looks at them.
const CRCS_MAX: usize = FRAME_DATA_MAX / BLOCK;

/// Flags of the server, which `corefs perf` starts itself.
#[derive(Args, Clone, Debug)]
pub struct ServeArgs {
    /// Threads, each pinned to a core.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub threads: usize,
    /// The file to read; without it, answers come from memory.
    #[arg(long, value_name = "FILE")]
    pub path: Option<PathBuf>,
    /// Microseconds to poll before sleeping.
    #[arg(long, value_name = "US", default_value_t = 0)]
    pub busy_poll: u64,
}

/// Serves until standard input ends.
pub fn serve(args: &ServeArgs) -> Result<()> {
    let serving = start(args.path.as_deref(), args.threads, Duration::from_micros(args.busy_poll))?;
    let list: Vec<String> = serving.addresses.iter().map(Address::to_string).collect();
    let mut out = std::io::stdout();
    writeln!(out, "{READY}{}", list.join(" ")).and_then(|()| out.flush())?;
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    serving.stop();
    Ok(())
}

/// The threads of a server.
pub struct Serving {
    addresses: Vec<Address>,
    alarms: Vec<Alarm>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Serving {
    #[cfg(test)]
    pub fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    pub fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.alarms.iter().for_each(Alarm::raise);
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a thread of the bare server panicked");
            }
        }
    }
}

/// Starts `threads` threads on the first cores and says where they listen, on loopback.
pub fn start(path: Option<&Path>, threads: usize, busy_poll: Duration) -> Result<Serving> {
    let stop = Arc::new(AtomicBool::new(false));
    let places = core_affinity::get_core_ids().unwrap_or_default();
    let mut serving = Serving { addresses: Vec::new(), alarms: Vec::new(), stop, threads: Vec::new() };
    for thread in 0..threads {
        let (send, receive) = mpsc::channel();
        let (path, stop) = (path.map(Path::to_owned), Arc::clone(&serving.stop));
        let place = places.iter().cycle().nth(thread).copied();
        serving.threads.push(std::thread::spawn(move || {
            place.map(core_affinity::set_for_current);
            match Thread::start(path.as_deref(), busy_poll) {
                Ok(mut thread) => {
                    // The starter waits for this.
                    let _sent = send.send(Ok((thread.address.clone(), thread.ring.alarm())));
                    if let Err(error) = thread.run(&stop) {
                        tracing::error!(%error, "the bare server's ring has failed");
                    }
                }
                Err(error) => drop(send.send(Err(error))),
            }
        }));
        match receive.recv() {
            Ok(Ok((address, alarm))) => {
                serving.addresses.push(address);
                serving.alarms.push(alarm);
            }
            outcome => {
                serving.stop();
                return Err(outcome.map_or_else(
                    |_| ErrorCode::Internal.into(),
                    |why| why.err().unwrap_or_else(|| ErrorCode::Internal.into()),
                ));
            }
        }
    }
    Ok(serving)
}

/// A read that the disk is doing.
struct Read {
    conn: ConnId,
    request: u64,
    buffer: Buffer,
}

struct Thread {
    /// First: dropped first, it ends what is in flight before the memory goes.
    ring: Ring,
    tcp: Tcp,
    desk: Desk,
    source: Option<Plain>,
    pool: Pool,
    /// What `wire` answers with.
    memory: Buffer,
    reads: Slab<Read>,
    body: Vec<u8>,
    address: Address,
}

/// The file that `bare` reads.
struct Plain {
    _file: File,
    name: RingFile,
    bytes: u64,
}

/// Takes requests.
#[derive(Default)]
struct Desk {
    asked: Vec<(ConnId, ReadEntry)>,
    refused: Vec<(ConnId, u64, Error)>,
}

impl FrameSink for Desk {
    fn place(&mut self, _conn: ConnId, _header: &Header, _body: &[u8], _here: Option<Buffer>) -> Placement {
        Placement::Discard
    }

    fn frame(&mut self, conn: ConnId, header: &Header, body: &[u8], _data: Option<Buffer>) -> Flow {
        match read_entries(body)
            .and_then(|(_, entries)| entries.iter().try_for_each(ReadEntry::check).map(|()| entries))
        {
            Ok(entries) => self.asked.extend(entries.iter().map(|entry| (conn, *entry))),
            Err(error) => self.refused.push((conn, header.request(), error)),
        }
        Flow::Continue
    }

    fn opened(&mut self, _conn: ConnId, _peer: &Peer) {}

    fn closed(&mut self, _conn: ConnId, _error: Error) {}
}

impl Thread {
    fn start(path: Option<&Path>, busy_poll: Duration) -> Result<Self> {
        let mut ring = Ring::new(&RingConfig { busy_poll, ..RingConfig::default() })?;
        let pool = Pool::with_huge_pages(POOL_DEFAULT)?;
        ring.register_pool(&pool);
        let source = path.map(|path| Plain::open(path, &mut ring)).transpose()?;
        let mut tcp = Tcp::new(TcpConfig::new(identity(Role::Tool)));
        let address = tcp.listen(&"127.0.0.1:0".parse()?)?;
        let memory = pool.get(FRAME_DATA_MAX).ok_or(ErrorCode::Internal)?;
        let (desk, reads) = (Desk::default(), Slab::new());
        Ok(Self { ring, tcp, desk, source, pool, memory, reads, body: Vec::new(), address })
    }

    fn run(&mut self, stop: &AtomicBool) -> Result<()> {
        let mut completions: Vec<Completion> = Vec::with_capacity(1024);
        while !stop.load(Ordering::Relaxed) {
            match self.tcp.has_work() {
                true => self.ring.turn(&mut completions)?,
                false => self.ring.rest(&mut (), &mut completions)?,
            }
            self.ring.heard_alarm();
            for completion in completions.drain(..) {
                match completion.token.source() {
                    Source::TCP => self.tcp.complete(completion, &mut self.desk),
                    Source::DISK => self.read_done(completion),
                    _ => (),
                }
            }
            self.tcp.advance(Instant::now(), &mut self.desk);
            let mut asked = std::mem::take(&mut self.desk.asked);
            asked.drain(..).for_each(|(conn, entry)| self.begin(conn, &entry));
            self.desk.asked = asked;
            for (conn, request, error) in std::mem::take(&mut self.desk.refused) {
                self.refuse(conn, request, &error);
            }
            self.tcp.flush(&mut self.ring);
        }
        Ok(())
    }

    fn begin(&mut self, conn: ConnId, entry: &ReadEntry) {
        let (request, len) = (entry.request.get(), entry.length.get() as usize);
        let Some(source) = &self.source else {
            let memory = Payload::new(self.memory.clone(), 0..len);
            return self.reply(conn, request, memory);
        };
        // A block's number stands where a chunk's index does.
        let offset = u64::from(entry.index.get()) * BLOCK as u64;
        if offset + len as u64 > source.bytes {
            let what = format!("byte {offset} + {len} of a file of {} bytes", source.bytes);
            return self.refuse(conn, request, &Error::new(ErrorCode::InvalidArgument, what));
        }
        let Some(buffer) = self.pool.get(len) else {
            let what = "the bare server has no memory for so much in flight; lower --depth";
            return self.refuse(conn, request, &Error::new(ErrorCode::Overloaded, what));
        };
        let (name, to) = (source.name, buffer.as_mut_ptr());
        let slot = self.reads.insert(Read { conn, request, buffer });
        let token = Token::new(Source::DISK, slot as u64);
        // SAFETY: the buffer is the read's own and stays in its slot until the completion; the ring is dropped first.
        unsafe { self.ring.read(name, to, len as u32, offset, token) };
    }

    fn read_done(&mut self, completion: Completion) {
        let read = self.reads.remove(completion.token.payload() as usize);
        let len = read.buffer.len();
        match completion.check() {
            Ok(bytes) if bytes == len => {
                self.reply(read.conn, read.request, Payload::new(read.buffer, 0..len))
            }
            outcome => {
                let why =
                    outcome.map_or_else(|error| error.to_string(), |bytes| format!("{bytes} of {len} bytes"));
                self.refuse(read.conn, read.request, &Error::new(ErrorCode::DiskError, why));
            }
        }
    }

    fn reply(&mut self, conn: ConnId, request: u64, data: Payload) {
        let blocks = data.len() / BLOCK;
        self.body.clear();
        let head = ReadReply { blocks: (blocks as u32).into(), ..ReadReply::default() };
        self.body.extend_from_slice(head.as_bytes());
        self.body.extend_from_slice([U32::ZERO; CRCS_MAX][..blocks].as_bytes());
        let sent = self.tcp.send(conn, Kind::Reply, op::READ, request, 0, &self.body, Some(data));
        self.sent(conn, sent);
    }

    fn refuse(&mut self, conn: ConnId, request: u64, error: &Error) {
        let body = encode_error(error);
        let sent = self.tcp.send(conn, Kind::Reply, op::READ, request, error.code as u32, &body, None);
        self.sent(conn, sent);
    }

    /// A peer that is gone needs no answer; one that would miss an answer is cut off, and its run fails.
    fn sent(&mut self, conn: ConnId, sent: Result<()>) {
        if let Err(error) = sent
            && error.code == ErrorCode::Overloaded
        {
            self.tcp.close(conn);
        }
    }
}

impl Plain {
    fn open(path: &Path, ring: &mut Ring) -> Result<Self> {
        use std::io::{Seek, SeekFrom};
        let of = |error: std::io::Error| Error::from(error).of(path.display());
        let mut file = File::options().read(true).custom_flags(libc::O_DIRECT).open(path).map_err(of)?;
        let bytes = file.seek(SeekFrom::End(0)).map_err(of)?;
        let name = ring.add_file(file.as_raw_fd());
        Ok(Self { _file: file, name, bytes })
    }
}
