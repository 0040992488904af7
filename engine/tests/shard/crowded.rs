//! More clients than there is memory for.

use crate::harness::*;
use crate::stopped::{send, stranger, wait_for};
use corefs_wire::data::{Prefix, op};
use corefs_wire::frame::{HEADER, Header, Kind};
use corefs_wire::limits::{FRAME_BODY_MAX, READ_BATCH_MAX};
use std::io::Read;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use zerocopy::IntoBytes;

/// Asks for `batch` again and again, so that it always waits for some of what it wants, until it is told to stop.
fn read_greedily(mut socket: TcpStream, batch: &[u8], stop: &AtomicBool) {
    (0..2).for_each(|_| send(&mut socket, Kind::Request, op::READ, batch, 0));
    let mut rest = vec![0; FRAME_BODY_MAX];
    let mut answered = 0;
    while !stop.load(Ordering::Relaxed) {
        let mut head = [0; HEADER];
        socket.read_exact(&mut head).unwrap();
        let header = Header::parse(&head, FRAME_BODY_MAX).unwrap();
        assert_eq!(header.status(), 0);
        socket.read_exact(&mut rest[..header.body_len() + header.data_len()]).unwrap();
        answered += 1;
        if answered % READ_BATCH_MAX == 0 {
            send(&mut socket, Kind::Request, op::READ, batch, 0);
        }
    }
}

/// Reads that wait take all memory that comes free. The head of a chain of three may use less of it for updates than reads have then; these go on
/// all the same. (With this load also without the rule that holds reads back: it is not what shows that the rule is needed.)
#[test]
fn reads_without_end_leave_memory_to_updates() {
    const READERS: usize = 6;
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start_for_crowds(dir.path(), THREE);
    with_client(&cluster, async |client| {
        let bytes = pattern(1, CHUNK as usize);
        client.write(HEAD, chunk(1, 0), 0, &bytes).await.unwrap();
        let mut batch = Prefix::default().as_bytes().to_vec();
        for request in 1..=READ_BATCH_MAX as u64 {
            let mut entry = client.entry(HEAD, chunk(1, 0), 0, CHUNK);
            entry.request = request.into();
            batch.extend_from_slice(entry.as_bytes());
        }
        let (batch, stop) = (Arc::new(batch), Arc::new(AtomicBool::new(false)));
        let readers: Vec<_> = (0..READERS)
            .map(|_| {
                let (socket, batch, stop) = (stranger(client), Arc::clone(&batch), Arc::clone(&stop));
                std::thread::spawn(move || read_greedily(socket, &batch, &stop))
            })
            .collect();
        wait_for(&cluster, "starved", |starved| starved > 1000);
        for n in 0..20 {
            client.write(HEAD, chunk(2, n), 0, &bytes).await.unwrap();
        }
        let before = cluster.counter(1, "reads");
        wait_for(&cluster, "reads", |reads| reads > before + 1000);
        stop.store(true, Ordering::Relaxed);
        readers.into_iter().for_each(|reader| reader.join().unwrap());
    });
}
