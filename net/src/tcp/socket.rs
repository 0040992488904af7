//! The system calls of sockets: making, binding, naming. Sockets are blocking ones, as io_uring wants them: it waits itself.

use crate::address::Address;
use corefs_wire::{Error, ErrorCode, Result};
use std::mem;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

/// Connections the kernel completes before we accept them.
const BACKLOG: libc::c_int = 1024;

/// Times that the kernel has sent the same data again before it is said that nobody acknowledges them: it waits 0.2 s at least, and twice
/// as long each time (RFC 6298). A connection that was idle has long heard nothing, so the time alone says nothing.
const AGAIN: u8 = 3;

/// A peer that has said nothing for so long is asked whether it is there, then again so often and at such intervals (seconds): one that lost its power, or
/// its way here, is given up after 25 s although nobody sends it anything.
const QUIET: libc::c_int = 10;
const PROBES: libc::c_int = 3;
const BETWEEN: libc::c_int = 5;
/// What is sent and not acknowledged ends a connection as soon as silence does (milliseconds). Without it the kernel tries for a quarter of an hour.
const UNHEARD: libc::c_int = (QUIET + PROBES * BETWEEN) * 1000;

/// An address as the kernel wants it.
pub struct RawAddress {
    storage: libc::sockaddr_storage,
    len: libc::socklen_t,
}

impl RawAddress {
    pub fn new(address: &Address) -> Result<Self> {
        // SAFETY: all zeros is a valid address storage.
        let mut raw = Self { storage: unsafe { mem::zeroed() }, len: 0 };
        match address {
            Address::Tcp(SocketAddr::V4(v4)) => raw.put(libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                sin_zero: [0; 8],
            }),
            Address::Tcp(SocketAddr::V6(v6)) => raw.put(libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: v6.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                sin6_scope_id: v6.scope_id(),
            }),
            Address::Unix(path) => raw.put(unix_address(path)?),
        }
        Ok(raw)
    }

    fn put<T>(&mut self, address: T) {
        const { assert!(size_of::<T>() <= size_of::<libc::sockaddr_storage>()) };
        // SAFETY: the storage is large enough (checked above) and aligned for every kind of address.
        unsafe { (&raw mut self.storage).cast::<T>().write(address) };
        self.len = size_of::<T>() as libc::socklen_t;
    }

    pub fn as_ptr(&self) -> *const libc::sockaddr {
        (&raw const self.storage).cast()
    }

    pub fn len(&self) -> libc::socklen_t {
        self.len
    }

    /// The internet address it holds, `None` for other families.
    fn internet(&self) -> Option<SocketAddr> {
        match i32::from(self.storage.ss_family) {
            libc::AF_INET => {
                // SAFETY: the family says what the storage holds, and it is aligned for it.
                let v4 = unsafe { &*(&raw const self.storage).cast::<libc::sockaddr_in>() };
                let ip = Ipv4Addr::from(v4.sin_addr.s_addr.to_ne_bytes());
                Some(SocketAddrV4::new(ip, u16::from_be(v4.sin_port)).into())
            }
            libc::AF_INET6 => {
                // SAFETY: as above.
                let v6 = unsafe { &*(&raw const self.storage).cast::<libc::sockaddr_in6>() };
                let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
                let port = u16::from_be(v6.sin6_port);
                Some(SocketAddrV6::new(ip, port, v6.sin6_flowinfo, v6.sin6_scope_id).into())
            }
            _ => None,
        }
    }
}

fn unix_address(path: &Path) -> Result<libc::sockaddr_un> {
    // SAFETY: all zeros is a valid address of no name.
    let mut address: libc::sockaddr_un = unsafe { mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let bytes = path.as_os_str().as_bytes();
    if bytes.len() >= address.sun_path.len() || bytes.contains(&0) {
        return Err(Error::new(ErrorCode::BadConfig, format!("not a socket path: {}", path.display())));
    }
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    Ok(address)
}

/// A stream socket for the address's family; [`tune`]d if it is of TCP.
pub fn stream(address: &Address) -> Result<OwnedFd> {
    let family = match address {
        Address::Tcp(SocketAddr::V4(_)) => libc::AF_INET,
        Address::Tcp(SocketAddr::V6(_)) => libc::AF_INET6,
        Address::Unix(_) => libc::AF_UNIX,
    };
    // SAFETY: a plain system call; the descriptor it returns is ours.
    let socket = unsafe {
        match libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) {
            -1 => return Err(std::io::Error::last_os_error().into()),
            fd => OwnedFd::from_raw_fd(fd),
        }
    };
    if matches!(address, Address::Tcp(_)) {
        tune(&socket);
    }
    Ok(socket)
}

/// What every TCP connection has, whoever made it. Frames are gathered by us, so the kernel must not wait for more; and it is to tell when the peer is gone:
/// a machine that loses its power says nothing, and what is kept for its connection (a queue pair, a place) would be kept for ever. Fails only on what
/// is not TCP, where it isn't needed.
pub fn tune(socket: &OwnedFd) {
    for (level, option, value) in [
        (libc::IPPROTO_TCP, libc::TCP_NODELAY, 1),
        (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, QUIET),
        (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, BETWEEN),
        (libc::IPPROTO_TCP, libc::TCP_KEEPCNT, PROBES),
        (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, UNHEARD),
        (libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1),
    ] {
        if let Err(error) = set(socket, level, option, value) {
            tracing::debug!(%error, option, "a socket doesn't take an option");
        }
    }
}

fn set(socket: &OwnedFd, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> Result<()> {
    let len = size_of_val(&value) as libc::socklen_t;
    // SAFETY: reads one int of ours.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), len) })
}

/// If the same data were sent again and again and never acknowledged: how long ago the peer's kernel last acknowledged anything (tcp(7),
/// TCP_INFO). `None` when that isn't so, and for other kinds of sockets.
pub fn unacknowledged(socket: &OwnedFd) -> Option<Duration> {
    // SAFETY: all zeros is a valid report.
    let mut info: libc::tcp_info = unsafe { mem::zeroed() };
    let mut len = size_of_val(&info) as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes into `info`, which lives through the call.
    let told = unsafe {
        let into = (&raw mut info).cast();
        libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, into, &raw mut len)
    };
    let silent = told == 0 && info.tcpi_unacked > 0 && info.tcpi_retransmits >= AGAIN;
    silent.then(|| Duration::from_millis(info.tcpi_last_ack_recv.into()))
}

/// A listening socket and the address it got.
pub fn listen(address: &Address) -> Result<(OwnedFd, Address)> {
    let socket = stream(address)?;
    if let Address::Unix(path) = address {
        remove_stale(path, address)?;
    } else {
        set(&socket, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    }
    let raw = RawAddress::new(address)?;
    // SAFETY: reads `raw`, which is a valid address of its length.
    check(unsafe { libc::bind(socket.as_raw_fd(), raw.as_ptr(), raw.len()) })?;
    // SAFETY: a plain system call.
    check(unsafe { libc::listen(socket.as_raw_fd(), BACKLOG) })?;
    let bound = match address {
        Address::Tcp(_) => Address::Tcp(name(&socket, libc::getsockname)?),
        Address::Unix(_) => address.clone(),
    };
    Ok((socket, bound))
}

/// Removes the socket file of a process that is gone; one that answers is in use.
fn remove_stale(path: &Path, address: &Address) -> Result<()> {
    use std::os::unix::fs::FileTypeExt;
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    if !is_socket {
        return Ok(());
    }
    let (probe, raw) = (stream(address)?, RawAddress::new(address)?);
    // SAFETY: reads `raw`, which is a valid address of its length.
    let answered = check(unsafe { libc::connect(probe.as_raw_fd(), raw.as_ptr(), raw.len()) });
    match answered {
        Err(error) if error.code == ErrorCode::Unreachable => Ok(std::fs::remove_file(path)?),
        _ => Err(Error::new(ErrorCode::AddressInUse, "another process listens on this socket")),
    }
}

/// Where an accepted connection comes from.
pub fn peer(socket: &OwnedFd) -> Result<SocketAddr> {
    name(socket, libc::getpeername)
}

/// Where a connection goes out from.
#[cfg(feature = "rdma")]
pub fn local(socket: &OwnedFd) -> Result<SocketAddr> {
    name(socket, libc::getsockname)
}

type NameCall = unsafe extern "C" fn(libc::c_int, *mut libc::sockaddr, *mut libc::socklen_t) -> libc::c_int;

fn name(socket: &OwnedFd, call: NameCall) -> Result<SocketAddr> {
    // SAFETY: all zeros is a valid address storage.
    let mut raw = RawAddress { storage: unsafe { mem::zeroed() }, len: 0 };
    let mut len = size_of_val(&raw.storage) as libc::socklen_t;
    // SAFETY: the call writes at most `len` bytes to the storage, which has as many.
    check(unsafe { call(socket.as_raw_fd(), (&raw mut raw.storage).cast(), &mut len) })?;
    raw.internet().ok_or_else(|| Error::new(ErrorCode::Os, "the socket has no internet address"))
}

/// Ends both directions: what is in flight on the socket completes.
pub fn shut_down(socket: &OwnedFd, how: libc::c_int) {
    // SAFETY: a plain system call; a socket that isn't connected needs no end.
    let _ = unsafe { libc::shutdown(socket.as_raw_fd(), how) };
}

fn check(result: libc::c_int) -> Result<()> {
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error().into()) }
}
