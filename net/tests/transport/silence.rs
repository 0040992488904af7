//! Peers that are gone without a word: a machine that lost its power sends nothing, and whoever awaits nothing of it would keep its connection for ever.

use crate::world::{World, open, until_ends};
use corefs_net::{Address, Tcp};
use std::os::fd::RawFd;

/// An option of a socket (getsockopt(2)).
fn option(fd: RawFd, level: i32, option: i32) -> i32 {
    let (mut value, mut len) = (-1, size_of::<i32>() as libc::socklen_t);
    // SAFETY: writes one int of ours.
    let result = unsafe { libc::getsockopt(fd, level, option, (&raw mut value).cast(), &mut len) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    value
}

/// The port of one end of a socket, `None` for what isn't one of IPv4.
fn port(
    fd: RawFd,
    end: unsafe extern "C" fn(i32, *mut libc::sockaddr, *mut libc::socklen_t) -> i32,
) -> Option<u16> {
    // SAFETY: all zeros is a valid address.
    let mut found: libc::sockaddr_in = unsafe { std::mem::zeroed() };
    let mut len = size_of_val(&found) as libc::socklen_t;
    // SAFETY: writes at most as many bytes as the address has.
    let result = unsafe { end(fd, (&raw mut found).cast(), &mut len) };
    (result == 0 && i32::from(found.sin_family) == libc::AF_INET).then(|| u16::from_be(found.sin_port))
}

/// The descriptors of this process that are an end of a connection to this address.
fn ends(of: &Address) -> Vec<RawFd> {
    let Address::Tcp(of) = of else { panic!("not of TCP") };
    let all = std::fs::read_dir("/proc/self/fd").unwrap();
    let all = all.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let connected = |fd: &RawFd| {
        let (here, there) = (port(*fd, libc::getsockname), port(*fd, libc::getpeername));
        there.is_some() && [here, there].contains(&Some(of.port()))
    };
    all.filter(connected).collect()
}

#[test]
fn both_ends_of_a_connection_are_asked_whether_they_are_there() {
    let (mut server, mut client) = (World::<Tcp>::plain(), World::<Tcp>::plain());
    let address = server.net.listen(&"127.0.0.1:0".parse().unwrap()).unwrap();
    open(&mut client, &mut server, &address);
    let ends = ends(&address);
    assert_eq!(ends.len(), 2, "the one that was made, and the one that was accepted");
    for fd in ends {
        assert_eq!(option(fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE), 1);
        let tcp = |which| option(fd, libc::IPPROTO_TCP, which);
        let quiet = tcp(libc::TCP_KEEPIDLE) + tcp(libc::TCP_KEEPINTVL) * tcp(libc::TCP_KEEPCNT);
        assert!(quiet <= 30, "{quiet} s until a peer that is gone is missed");
        assert_eq!(tcp(libc::TCP_USER_TIMEOUT), quiet * 1000);
        assert_eq!(tcp(libc::TCP_NODELAY), 1);
    }
}

/// A network of this thread's own, whose only interface can be taken away. `false`, and a line that says why, where that isn't allowed.
fn alone() -> bool {
    // SAFETY: a plain system call; the thread is this test's, and nothing else of it uses the network.
    let made = unsafe { libc::unshare(libc::CLONE_NEWNET) } == 0;
    if !made {
        println!("skipped, because a network namespace can't be made: {}", std::io::Error::last_os_error());
    }
    made
}

/// Has the loopback interface of this thread's network carry packets, or none.
fn loopback(up: bool) {
    // SAFETY: a socket of ours, and a request whose name ends in a zero; both live through the calls.
    unsafe {
        let socket = libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[..2].copy_from_slice(&[b'l' as libc::c_char, b'o' as libc::c_char]);
        request.ifr_ifru.ifru_flags = if up { libc::IFF_UP as i16 } else { 0 };
        let result = libc::ioctl(socket, libc::SIOCSIFFLAGS, &request);
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
        libc::close(socket);
    }
}

#[test]
fn a_peer_that_vanishes_without_a_word_is_missed_though_nothing_is_awaited() {
    if !alone() {
        return;
    }
    loopback(true);
    let (mut server, mut client) = (World::<Tcp>::plain(), World::<Tcp>::plain());
    let address = server.net.listen(&"127.0.0.1:0".parse().unwrap()).unwrap();
    open(&mut client, &mut server, &address);
    loopback(false);
    until_ends(&mut client, &mut server, "both ends to miss the other", |client, server| {
        client.sink.closed.len() == 1 && server.sink.closed.len() == 1
    });
    assert_eq!((client.net.live(), server.net.live()), (0, 1), "only the listener is left");
}
