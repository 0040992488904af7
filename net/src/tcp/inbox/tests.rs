use super::*;
use crate::buffer::{Buffer, Pool};
use corefs_wire::ErrorCode;
use corefs_wire::frame::Kind;
use corefs_wire::limits::FRAME_BODY_MAX;
use zerocopy::IntoBytes;

/// What arrived of a frame: request number, body, data.
type Arrived = (u64, Vec<u8>, Option<Vec<u8>>);

fn frame(request: u64, body: &[u8], data: &[u8]) -> Vec<u8> {
    let header = Header::new(Kind::Reply, 1, request, 0, body, data.len());
    [header.as_bytes(), body, data].concat()
}

/// A stream of frames with and without bodies and data, and what must come of it. Odd request numbers are discarded.
fn sample() -> (Vec<u8>, Vec<Arrived>) {
    let mut random = 1u32;
    let mut bytes = |len: usize| -> Vec<u8> {
        std::iter::repeat_with(|| {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (random >> 24) as u8
        })
        .take(len)
        .collect()
    };
    let sizes = [(0, 0), (5, 0), (0, 7), (3, 100), (40, 4096), (0, 1), (1, 0), (0, 5000), (300, 9), (0, 0)];
    let (mut stream, mut arrived) = (Vec::new(), Vec::new());
    for (n, (body, data)) in sizes.into_iter().enumerate() {
        let (body, data) = (bytes(body), bytes(data));
        stream.extend(frame(n as u64, &body, &data));
        arrived.push((n as u64, body, (!data.is_empty() && n % 2 == 0).then_some(data)));
    }
    (stream, arrived)
}

/// Gives the inbox at most `most` bytes of the stream, as the kernel would.
fn feed(inbox: &mut Inbox, stream: &mut &[u8], most: usize) {
    let mut pieces: Vec<(*mut u8, usize)> = Vec::new();
    match inbox.start().unwrap() {
        Receive::Buffer { to, len, .. } => pieces.push((to, len as usize)),
        // SAFETY: the inbox keeps the message and its pieces until `received`.
        Receive::Message { message, .. } => unsafe {
            let list = std::slice::from_raw_parts((*message).msg_iov, (*message).msg_iovlen);
            pieces.extend(list.iter().map(|piece| (piece.iov_base.cast(), piece.iov_len)));
        },
    }
    let mut count = 0;
    for (to, len) in pieces {
        let bytes = len.min(stream.len()).min(most - count);
        // SAFETY: the inbox gave us this memory to write.
        unsafe { std::ptr::copy_nonoverlapping(stream.as_ptr(), to, bytes) };
        *stream = &stream[bytes..];
        count += bytes;
    }
    inbox.received(count, false);
}

/// Reads a whole stream in pieces of the given sizes; every other place is refused once.
fn read_all(mut stream: &[u8], pieces: &mut impl Iterator<Item = usize>) -> Vec<Arrived> {
    let pool = Pool::new(1).unwrap();
    let (mut inbox, mut arrived, mut refused) = (Inbox::new(None), Vec::new(), false);
    loop {
        match inbox.next(FRAME_BODY_MAX).unwrap() {
            Next::Receive if stream.is_empty() => break,
            Next::Receive => feed(&mut inbox, &mut stream, pieces.next().unwrap()),
            Next::Place => {
                let header = *inbox.current().0;
                refused = !refused;
                let placement = match (refused, header.request() % 2) {
                    (true, _) => Placement::Wait,
                    (_, 1) => Placement::Discard,
                    _ => Placement::Into { buffer: pool.get(header.data_len() + 3).unwrap(), offset: 3 },
                };
                assert_eq!(inbox.place(placement), !refused);
            }
            Next::Announce => {
                let (header, body, data) = inbox.take();
                let data = data.map(|buffer| buffer[3..3 + header.data_len()].to_vec());
                arrived.push((header.request(), body.to_vec(), data));
                inbox.consume();
            }
        }
    }
    drop(inbox);
    assert_eq!(pool.in_use(), 0);
    arrived
}

#[test]
fn frames_torn_anywhere_arrive_whole() {
    let (stream, expected) = sample();
    for first in 1..stream.len() {
        let mut pieces = std::iter::once(first).chain(std::iter::repeat(usize::MAX));
        assert_eq!(read_all(&stream, &mut pieces), expected, "torn after {first} bytes");
    }
}

#[test]
fn frames_arrive_whole_from_pieces_of_any_size() {
    let (stream, expected) = sample();
    for size in (1..50).chain([100, 1000, 4096, 16 << 10, usize::MAX]) {
        assert_eq!(read_all(&stream, &mut std::iter::repeat(size)), expected, "pieces of {size} bytes");
    }
}

#[test]
fn long_streams_and_large_bodies_pass_and_the_buffer_shrinks_again() {
    let (stream, expected) = sample();
    let large = vec![9; FRAME_BODY_MAX];
    let stream = [stream.repeat(50), frame(77, &large, b"x"), stream.repeat(5)].concat();
    let arrived = read_all(&stream, &mut std::iter::repeat(100_000));
    assert_eq!(arrived.len(), expected.len() * 55 + 1);
    assert_eq!(arrived[expected.len() * 50], (77, large, None));
    let mut inbox = Inbox { memory: Memory::own(8 << 20), ..Inbox::new(None) };
    inbox.start();
    assert_eq!(inbox.memory.len(), BUSY);
    for _ in 0..2 * QUIET + 1 {
        inbox.received(1, false);
        (inbox.start, inbox.end, inbox.hungry) = (0, 0, true);
        inbox.start();
    }
    assert_eq!(inbox.memory.len(), START);
}

#[test]
fn large_data_go_straight_to_their_place_and_small_ones_are_copied() {
    let pool = Pool::new(1).unwrap();
    let mut inbox = Inbox::new(None);
    let stream = [frame(0, b"", &[1; 100]), frame(2, b"body", &[2; 1 << 20])].concat();
    let mut rest = stream.as_slice();
    let mut seen = 0;
    while seen < 2 {
        match inbox.next(0x1000).unwrap() {
            Next::Receive => feed(&mut inbox, &mut rest, usize::MAX),
            Next::Place => {
                let buffer = pool.get(inbox.current().0.data_len()).unwrap();
                inbox.place(Placement::Into { buffer, offset: 0 });
            }
            Next::Announce => {
                let (header, body, data) = inbox.take();
                assert_eq!(body.len(), [0, 4][seen]);
                assert!(data.unwrap().iter().all(|byte| u64::from(*byte) == header.request().max(1)));
                inbox.consume();
                seen += 1;
            }
        }
    }
    let head = 2 * HEADER + 4 + 100;
    assert_eq!(
        (inbox.copied, inbox.direct),
        ((START - head + 100) as u64, ((1 << 20) - (START - head)) as u64)
    );
}

#[test]
fn data_that_are_skipped_leave_the_frames_around_them_whole() {
    let stream =
        [frame(0, &[3; 50], b""), frame(1, b"body", &[1; 200_000]), frame(2, &[4; 60], b"")].concat();
    let expected: Vec<Arrived> =
        vec![(0, vec![3; 50], None), (1, b"body".to_vec(), None), (2, vec![4; 60], None)];
    for size in [100, 5000, 16 << 10, usize::MAX] {
        assert_eq!(read_all(&stream, &mut std::iter::repeat(size)), expected, "pieces of {size} bytes");
    }
}

#[test]
fn violations_are_errors() {
    let refuse = |bytes: &[u8], body_max: usize| {
        let mut inbox = Inbox::new(None);
        let mut stream = bytes;
        assert_eq!(inbox.next(body_max), Ok(Next::Receive));
        feed(&mut inbox, &mut stream, usize::MAX);
        inbox.next(body_max).unwrap_err().code
    };
    assert_eq!(refuse(&[b'x'; 100], 100), ErrorCode::BadFrame);
    assert_eq!(refuse(&frame(0, &[0; 101], b""), 100), ErrorCode::BadFrame);
    let mut flipped = frame(0, b"body", b"");
    flipped[HEADER] ^= 1;
    assert_eq!(refuse(&flipped, 100), ErrorCode::BadFrame);
}

/// Reads a stream with a pool for lending, keeps all data until the end, and looks at them only then. Returns the bytes that were copied.
fn read_lent(
    stream: &[u8],
    expected: &[Arrived],
    pool: &Pool,
    mut pieces: impl Iterator<Item = usize>,
) -> u64 {
    let (mut rest, mut inbox) = (stream, Inbox::new(Some(pool.clone())));
    let mut kept: Vec<(u64, Vec<u8>, Option<Buffer>)> = Vec::new();
    loop {
        match inbox.next(FRAME_BODY_MAX).unwrap() {
            Next::Receive if rest.is_empty() => break,
            Next::Receive => feed(&mut inbox, &mut rest, pieces.next().unwrap()),
            Next::Place => {
                let (header, _, here) = inbox.current();
                let (len, odd) = (header.data_len(), header.request() % 2 == 1);
                inbox.place(match here {
                    _ if odd => Placement::Discard,
                    Some(here) => Placement::Here(here),
                    None => Placement::Into { buffer: pool.get(len).unwrap(), offset: 0 },
                });
            }
            Next::Announce => {
                let (header, body, data) = inbox.take();
                kept.push((header.request(), body.to_vec(), data));
                inbox.consume();
            }
        }
    }
    let copied = inbox.copied;
    drop(inbox);
    let kept: Vec<Arrived> = kept
        .into_iter()
        .map(|(request, body, data)| (request, body, data.map(|data| data.to_vec())))
        .collect();
    assert_eq!(kept.len(), expected.len());
    assert!(kept == *expected, "what was lent has changed");
    assert_eq!(pool.in_use(), 0);
    copied
}

#[test]
fn what_is_lent_stays_as_it_was_until_it_is_dropped() {
    let (stream, expected) = sample();
    let (stream, expected) = (stream.repeat(200), vec![expected; 200].concat());
    // A pool with room for everything, and one of which half is soon lent: then data are copied as without.
    for (bytes, sizes) in
        [(64 << 20, [3000, 9000, 30_000, usize::MAX]), (4 << 20, [20_000, 9001, 50_000, usize::MAX])]
    {
        let pool = Pool::new(bytes).unwrap();
        for size in sizes {
            read_lent(&stream, &expected, &pool, std::iter::repeat(size));
        }
        let mut random = 7u32;
        let sizes = std::iter::repeat_with(|| {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            1 + (random >> 15) as usize % 70_000
        });
        read_lent(&stream, &expected, &pool, sizes);
    }
}

#[test]
fn a_busy_connection_copies_few_bytes() {
    let frames = (0..1000).map(|n| frame(2 * n, &[1; 16], &[n as u8; 4096])).collect::<Vec<_>>().concat();
    let expected: Vec<Arrived> = (0..1000).map(|n| (2 * n, vec![1; 16], Some(vec![n as u8; 4096]))).collect();
    let pool = Pool::new(64 << 20).unwrap();
    let copied = read_lent(&frames, &expected, &pool, std::iter::repeat(usize::MAX));
    assert!(copied < 1000 * 4096 / 20, "{copied} of {} bytes", 1000 * 4096);
}

#[test]
fn a_quiet_connection_gives_its_block_back() {
    let pool = Pool::new(1).unwrap();
    let mut inbox = Inbox::new(Some(pool.clone()));
    for bytes in std::iter::once(START).chain(std::iter::repeat_n(1, 2 * QUIET as usize)) {
        inbox.start();
        inbox.received(bytes, false);
        assert!(bytes == 1 || pool.in_use() == BUSY);
        (inbox.start, inbox.end, inbox.hungry) = (0, 0, true);
    }
    inbox.start();
    assert_eq!((pool.in_use(), inbox.memory.len()), (0, START));
}
