//! A blocking connection that can say anything.

use corefs_net::handshake::{Handshake, Step, random};
use corefs_net::{Address, Identity, Role};
use corefs_wire::frame::{HEADER, Header, Kind};
use corefs_wire::limits::FRAME_BODY_MAX;
use corefs_wire::{Uuid, error};
use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// How long a peer may take for anything before it counts as hanging.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// One connection.
pub enum Link {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// What came back.
pub struct Frame {
    pub header: Header,
    pub body: Vec<u8>,
}

impl Link {
    /// Connects, and says nothing yet.
    pub fn open(address: &Address) -> Result<Self> {
        let link = match address {
            Address::Tcp(address) => {
                let stream = TcpStream::connect(address)?;
                stream.set_nodelay(true)?;
                Self::Tcp(stream)
            }
            Address::Unix(path) => Self::Unix(UnixStream::connect(path)?),
        };
        match &link {
            Self::Tcp(stream) => stream.set_write_timeout(Some(PATIENCE))?,
            Self::Unix(stream) => stream.set_write_timeout(Some(PATIENCE))?,
        }
        link.set_read_timeout(PATIENCE)?;
        Ok(link)
    }

    /// Connects and shakes hands, as a tool without a secret.
    pub fn greet(address: &Address) -> Result<Self> {
        let mut link = Self::open(address)?;
        let identity = Identity { role: Role::Tool, id: 0, incarnation: 0, cluster: Uuid::NIL, secret: None };
        let nonce = random().map_err(Error::other)?;
        let (mut shake, first) = Handshake::connect(&identity, address.clone(), nonce);
        link.send(Kind::Handshake, first.op, 0, &first.body)?;
        loop {
            let frame = link.receive()?;
            let header = frame.header;
            if header.status() != 0 {
                return Err(Error::other(error::decode_error(header.status(), &frame.body)));
            }
            let step = shake.message(&identity, header.op(), &frame.body).map_err(Error::other)?;
            let (answer, done) = match step {
                Step::Send(message) => (Some(message), false),
                Step::Done(message, _) => (message, true),
            };
            if let Some(message) = answer {
                link.send(Kind::Handshake, message.op, 0, &message.body)?;
            }
            if done {
                return Ok(link);
            }
        }
    }

    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        match self {
            Self::Tcp(stream) => stream.write_all(bytes),
            Self::Unix(stream) => stream.write_all(bytes),
        }
    }

    /// A good frame without bulk data.
    pub fn send(&mut self, kind: Kind, op: u16, request: u64, body: &[u8]) -> Result<()> {
        self.write(&frame(kind, op, request, body, &[]))
    }

    /// The next frame; its bulk data are thrown away.
    pub fn receive(&mut self) -> Result<Frame> {
        let mut head = [0; HEADER];
        self.read_exact(&mut head)?;
        let header = Header::parse(&head, FRAME_BODY_MAX).map_err(Error::other)?;
        let mut body = vec![0; header.body_len()];
        self.read_exact(&mut body)?;
        header.check_body(&body).map_err(Error::other)?;
        self.read_exact(&mut vec![0; header.data_len()])?;
        Ok(Frame { header, body })
    }

    /// Throws away what has come so far. `false` when the peer has closed.
    pub fn drain(&mut self) -> bool {
        if self.blocking(false).is_err() {
            return false;
        }
        let mut bytes = [0; 1 << 14];
        let open = loop {
            match self.read(&mut bytes) {
                Ok(0) => break false,
                Ok(_) => {}
                Err(error) => break error.kind() == ErrorKind::WouldBlock,
            }
        };
        open && self.blocking(true).is_ok()
    }

    /// Waits until the peer closes. An error means that it doesn't within `patience`.
    pub fn closed(&mut self, patience: Duration) -> Result<()> {
        self.set_read_timeout(patience)?;
        let mut bytes = [0; 1 << 14];
        loop {
            match self.read(&mut bytes) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return Err(Error::new(ErrorKind::TimedOut, "the connection is still open"));
                }
                // Closed with our bytes unread.
                Err(_) => return Ok(()),
            }
        }
    }

    fn set_read_timeout(&self, patience: Duration) -> Result<()> {
        match self {
            Self::Tcp(stream) => stream.set_read_timeout(Some(patience)),
            Self::Unix(stream) => stream.set_read_timeout(Some(patience)),
        }
    }

    fn blocking(&self, yes: bool) -> Result<()> {
        match self {
            Self::Tcp(stream) => stream.set_nonblocking(!yes),
            Self::Unix(stream) => stream.set_nonblocking(!yes),
        }
    }
}

impl Read for Link {
    fn read(&mut self, out: &mut [u8]) -> Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(out),
            Self::Unix(stream) => stream.read(out),
        }
    }
}

/// The bytes of a good frame.
pub fn frame(kind: Kind, op: u16, request: u64, body: &[u8], data: &[u8]) -> Vec<u8> {
    let header = Header::new(kind, op, request, 0, body, data.len());
    let mut bytes = header_bytes(&header).to_vec();
    bytes.extend_from_slice(body);
    bytes.extend_from_slice(data);
    bytes
}

fn header_bytes(header: &Header) -> [u8; HEADER] {
    zerocopy::transmute!(*header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_does_not_close_is_found_out() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut link = Link::Unix(ours);
        theirs.write_all(b"not closing").unwrap();
        let error = link.closed(Duration::from_millis(20)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert!(link.drain());
        theirs.write_all(b"closing").unwrap();
        drop(theirs);
        assert!(link.closed(PATIENCE).is_ok());
        assert!(!link.drain());
    }
}
