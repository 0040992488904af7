//! Clients that stop in the middle of something, while their kernels go on answering for them.

use crate::harness::*;
use corefs_net::handshake::{Handshake, Message, Step};
use corefs_net::{Address, Identity, Role};
use corefs_wire::data::{self, Prefix, UpdateKind, op};
use corefs_wire::frame::{HEADER, Header, Kind};
use corefs_wire::limits::{FRAME_BODY_MAX, READ_BATCH_MAX};
use std::io::{Read, Write};
use std::net::TcpStream;
use zerocopy::IntoBytes;

pub fn send(socket: &mut TcpStream, kind: Kind, op: u16, body: &[u8], data_len: usize) {
    let header = Header::new(kind, op, u64::MAX, 0, body, data_len);
    socket.write_all(&[header.as_bytes(), body].concat()).unwrap();
}

/// A connection to the head's shard that has done its handshake, and nobody reads from it.
pub fn stranger(client: &Client) -> TcpStream {
    let identity = Identity { role: Role::Client, id: 77, incarnation: 1, cluster: CLUSTER, secret: None };
    let address = client.address(HEAD);
    let Address::Tcp(to) = &address else { panic!("shards of these tests listen on TCP") };
    let mut socket = TcpStream::connect(to).unwrap();
    let say = |socket: &mut TcpStream, message: &Message| {
        send(socket, Kind::Handshake, message.op, &message.body, 0);
    };
    let (mut handshake, hello) = Handshake::connect(&identity, address.clone(), [1; 32]);
    say(&mut socket, &hello);
    loop {
        let mut head = [0; HEADER];
        socket.read_exact(&mut head).unwrap();
        let header = Header::parse(&head, FRAME_BODY_MAX).unwrap();
        let mut body = vec![0; header.body_len()];
        socket.read_exact(&mut body).unwrap();
        match handshake.message(&identity, header.op(), &body).unwrap() {
            Step::Send(message) => say(&mut socket, &message),
            Step::Done(message, _) => {
                message.iter().for_each(|message| say(&mut socket, message));
                return socket;
            }
        }
    }
}

/// Waits until a counter is what it should be.
pub fn wait_for(cluster: &Cluster, name: &str, right: impl Fn(u64) -> bool) {
    let began = std::time::Instant::now();
    while !right(cluster.counter(1, name)) {
        assert!(began.elapsed() < PATIENCE, "{name} is {}", cluster.counter(1, name));
        std::thread::yield_now();
    }
}

/// It asked for as much as all reads may have in memory, and takes none of it.
#[test]
fn a_client_that_reads_no_replies_leaves_memory_to_others() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path(), SMALL);
    with_client(&cluster, async |client| {
        let bytes = pattern(1, CHUNK as usize);
        client.write(HEAD, chunk(1, 0), 0, &bytes).await.unwrap();
        let mut body = Prefix::default().as_bytes().to_vec();
        for request in 1..=READ_BATCH_MAX as u64 {
            let mut entry = client.entry(HEAD, chunk(1, 0), 0, CHUNK);
            entry.request = request.into();
            body.extend_from_slice(entry.as_bytes());
        }
        let mut stopped = stranger(client);
        // More than its kernel and ours take: twice what all reads may have.
        (0..3).for_each(|_| send(&mut stopped, Kind::Request, op::READ, &body, 0));
        wait_for(&cluster, "starved", |starved| starved > 0);
        for _ in 0..20 {
            assert!(client.read(HEAD, chunk(1, 0), 0, CHUNK).await.unwrap().data == bytes);
        }
        assert_eq!(cluster.counter(1, "connections_closed"), 0, "it has not been given up yet");
        drop(stopped);
    });
}

/// Each has memory for its update, which never arrives whole.
#[test]
fn clients_that_stop_in_the_middle_of_their_updates_leave_memory_to_reads() {
    const STRANGERS: usize = 200;
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path(), SMALL);
    with_client(&cluster, async |client| {
        let bytes = pattern(1, CHUNK as usize);
        client.write(HEAD, chunk(1, 0), 0, &bytes).await.unwrap();
        let mut update = client.update(HEAD, chunk(2, 0), UpdateKind::Write, 0, CHUNK);
        let mut crcs = Vec::new();
        data::segment_crcs(0, &bytes, |crc| crcs.extend_from_slice(&crc.to_le_bytes()));
        update.crcs = (crcs.len() as u32 / 4).into();
        let body = [Prefix::default().as_bytes(), update.as_bytes(), &crcs].concat();
        let half = &bytes[..bytes.len() / 2];
        let stopped: Vec<_> = (0..STRANGERS)
            .map(|_| {
                let mut stranger = stranger(client);
                send(&mut stranger, Kind::Request, op::UPDATE, &body, bytes.len());
                stranger.write_all(half).unwrap();
                stranger
            })
            .collect();
        wait_for(&cluster, "starved", |starved| starved > 0);
        assert!(client.read(HEAD, chunk(1, 0), 0, CHUNK).await.unwrap().data == bytes);
        assert_eq!(cluster.counter(1, "connections_closed"), 0, "none has been given up yet");
        drop(stopped);
        // Their memory comes back.
        client.write(HEAD, chunk(3, 0), 0, &bytes).await.unwrap();
    });
}
