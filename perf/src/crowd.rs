//! Connections that are open and ask for nothing, to see what they cost a storage node, and whoever else asks it.

use corefs_net::ring::Alarm;
use corefs_net::{
    Address, Buffer, ConnId, Flow, FrameSink, Identity, Peer, Placement, Ring, RingConfig, Role, Secret,
    Source, Tcp, TcpConfig,
};
use corefs_wire::frame::Header;
use corefs_wire::limits::CONNECTIONS_MAX;
use corefs_wire::{Error, ErrorCode, Result, Uuid};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Instant;

/// Connections that are being made at once: fewer than a listener lets wait.
const WAVE: usize = 256;

/// Open connections, until it is dropped.
pub struct Crowd {
    stop: Arc<AtomicBool>,
    alarm: Alarm,
    thread: Option<JoinHandle<()>>,
}

impl Crowd {
    /// Opens `each` connections to each of these addresses and returns when all are open.
    pub fn open(addresses: &[Address], each: usize, secret: Option<Secret>) -> Result<Self> {
        if addresses.len() * each > CONNECTIONS_MAX {
            let what = format!("--connections {each}: at most {CONNECTIONS_MAX} to all shards together");
            return Err(Error::new(ErrorCode::BadConfig, what));
        }
        let all: Vec<Address> = (0..each).flat_map(|_| addresses.iter().cloned()).collect();
        let stop = Arc::new(AtomicBool::new(false));
        let theirs = Arc::clone(&stop);
        let (send, receive) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let made = Hall::new(secret).and_then(|mut hall| hall.open(all).map(|()| hall));
            match made {
                Ok(mut hall) => {
                    // The opener waits for this.
                    let _sent = send.send(Ok(hall.ring.alarm()));
                    while !theirs.load(Ordering::Relaxed) && hall.turn().is_ok() {}
                }
                Err(error) => drop(send.send(Err(error))),
            }
        });
        let alarm = receive.recv().map_err(|_| ErrorCode::Internal)??;
        Ok(Self { stop, alarm, thread: Some(thread) })
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.alarm.raise();
        // Whatever became of it, it is over.
        let _ended = self.thread.take().map(JoinHandle::join);
    }
}

/// Where they stand.
struct Hall {
    ring: Ring,
    tcp: Tcp,
    desk: Desk,
}

#[derive(Default)]
struct Desk {
    open: usize,
    lost: Option<Error>,
}

impl FrameSink for Desk {
    fn place(&mut self, _conn: ConnId, _header: &Header, _body: &[u8], _here: Option<Buffer>) -> Placement {
        Placement::Discard
    }

    fn frame(&mut self, _: ConnId, _: &Header, _: &[u8], _: Option<Buffer>) -> Flow {
        Flow::Continue
    }

    fn opened(&mut self, _conn: ConnId, _peer: &Peer) {
        self.open += 1;
    }

    fn closed(&mut self, _conn: ConnId, error: Error) {
        self.lost = Some(error);
    }
}

impl Hall {
    fn new(secret: Option<Secret>) -> Result<Self> {
        let identity = Identity { role: Role::Client, id: 0, incarnation: 0, cluster: Uuid::NIL, secret };
        let (ring, tcp) = (Ring::new(&RingConfig::default())?, Tcp::new(TcpConfig::new(identity)));
        Ok(Self { ring, tcp, desk: Desk::default() })
    }

    fn open(&mut self, all: Vec<Address>) -> Result<()> {
        for (made, address) in all.iter().enumerate() {
            while made >= self.desk.open + WAVE {
                self.turn()?;
            }
            self.tcp.connect(address)?;
        }
        while self.desk.open < all.len() {
            self.turn()?;
        }
        Ok(())
    }

    fn turn(&mut self) -> Result<()> {
        let mut completions = Vec::new();
        self.tcp.flush(&mut self.ring);
        match self.tcp.has_work() {
            true => self.ring.turn(&mut completions)?,
            false => self.ring.rest(&mut (), &mut completions)?,
        }
        self.ring.heard_alarm();
        for completion in completions {
            if completion.token.source() == Source::TCP {
                self.tcp.complete(completion, &mut self.desk);
            }
        }
        self.tcp.advance(Instant::now(), &mut self.desk);
        self.desk.lost.take().map_or(Ok(()), Err)
    }
}
