//! A server in a process of its own: this program again, whose world is driven by hand from here, turn by turn, as one in this process would be.
//!
//! The test holds a [`Far`] in the place of the transport. A call of it, or a turn, is an exchange over a socket pair, the child's standard input. What the child's sink
//! wrote down in a turn comes back with that, so a test reads it where it reads its own. Buffers stay where they are: of them their bytes come, and how many are in use.
//!
//! `COREFS_TEST_FAR` is what stands before the program's name in the command, such as `ip netns exec far`, and `COREFS_TEST_FAR_ADDRESS` where such a process listens.

use crate::world::{Flow, Frame, Policy, Setting, Sink, Tested, World};
use corefs_net::ring::Beside;
use corefs_net::tcp::ConnCounters;
use corefs_net::{
    Address, Buffer, Completion, ConnId, FrameSink, Payload, Peer, Pool, Ring, Role, Source, Tcp, Transport,
};
use corefs_wire::error::{decode_error, encode_error};
use corefs_wire::frame::{HEADER, Header, Kind};
use corefs_wire::limits::FRAME_BODY_MAX;
use corefs_wire::{Error, Result, Uuid};
use std::cell::RefCell;
use std::io::{Read, Write};
use std::marker::PhantomData;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use zerocopy::IntoBytes;

const TRANSPORT: &str = "COREFS_TEST_FAR_TRANSPORT";
/// Where such a process listens.
pub const FAR_ADDRESS: &str = "COREFS_TEST_FAR_ADDRESS";

/// What is asked of the other process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
enum Call {
    Make,
    Turn,
    Listen,
    StopListening,
    Send,
    Close,
    Pause,
    Resume,
    IsOpen,
    IsItsOwn,
    Queued,
    Counters,
    Live,
    HasWork,
    InUse,
}

const CALLS: [Call; 15] = [
    Call::Make,
    Call::Turn,
    Call::Listen,
    Call::StopListening,
    Call::Send,
    Call::Close,
    Call::Pause,
    Call::Resume,
    Call::IsOpen,
    Call::IsItsOwn,
    Call::Queued,
    Call::Counters,
    Call::Live,
    Call::HasWork,
    Call::InUse,
];

/// A message in the making, or as it is read: numbers, and bytes behind their length.
#[derive(Default)]
struct Message {
    bytes: Vec<u8>,
    at: usize,
}

impl Message {
    fn of(numbers: &[u64]) -> Self {
        let mut message = Self::default();
        numbers.iter().for_each(|number| message.put(*number));
        message
    }

    fn put(&mut self, number: u64) {
        self.bytes.extend(number.to_le_bytes());
    }

    fn put_bytes(&mut self, bytes: &[u8]) {
        self.put(bytes.len() as u64);
        self.bytes.extend(bytes);
    }

    fn put_conn(&mut self, conn: ConnId) {
        self.put(u64::from(conn.index) << 32 | u64::from(conn.generation));
    }

    fn put_result<T>(&mut self, result: Result<T>, put: impl FnOnce(&mut Self, T)) {
        match result {
            Ok(found) => {
                self.put(0);
                put(self, found);
            }
            Err(error) => self.put_error(&error),
        }
    }

    fn put_error(&mut self, error: &Error) {
        self.put((error.code as u32).into());
        self.put_bytes(&encode_error(error));
    }

    fn take(&mut self) -> u64 {
        let bytes = self.bytes[self.at..self.at + 8].try_into().unwrap();
        self.at += 8;
        u64::from_le_bytes(bytes)
    }

    fn take_bytes(&mut self) -> Vec<u8> {
        let len = self.take() as usize;
        self.at += len;
        self.bytes[self.at - len..self.at].to_vec()
    }

    fn take_text(&mut self) -> String {
        String::from_utf8(self.take_bytes()).unwrap()
    }

    fn take_conn(&mut self) -> ConnId {
        let both = self.take();
        ConnId { index: (both >> 32) as u32, generation: both as u32 }
    }

    fn take_result<T>(&mut self, take: impl FnOnce(&mut Self) -> T) -> Result<T> {
        match self.take() {
            0 => Ok(take(self)),
            status => Err(decode_error(status as u32, &self.take_bytes())),
        }
    }

    fn write(&self, to: &mut UnixStream) -> std::io::Result<()> {
        to.write_all(&(self.bytes.len() as u64).to_le_bytes())?;
        to.write_all(&self.bytes)
    }

    /// `None` when the other end is gone.
    fn read(from: &mut UnixStream) -> Option<Self> {
        let mut len = [0; 8];
        from.read_exact(&mut len).ok()?;
        let mut bytes = vec![0; u64::from_le_bytes(len) as usize];
        from.read_exact(&mut bytes).ok()?;
        Some(Self { bytes, at: 0 })
    }
}

/// A transport of kind `T` in a process of its own.
pub struct Far<T> {
    socket: RefCell<Option<UnixStream>>,
    child: Child,
    kind: PhantomData<T>,
}

impl<T: Tested> Far<T> {
    fn ask(&self, call: Call, mut with: Message) -> Message {
        let mut socket = self.socket.borrow_mut();
        let socket = socket.as_mut().unwrap();
        let mut message = Message::of(&[call as u64]);
        message.bytes.append(&mut with.bytes);
        message.write(socket).unwrap();
        Message::read(socket).unwrap_or_else(|| panic!("the other process ended, asked to {call:?}"))
    }

    fn ask_of(&self, call: Call, conn: ConnId) -> Message {
        let mut with = Message::default();
        with.put_conn(conn);
        self.ask(call, with)
    }
}

impl<T> Drop for Far<T> {
    /// Returns when the other process has dropped everything.
    fn drop(&mut self) {
        drop(self.socket.take());
        let ended = self.child.wait().unwrap();
        assert!(ended.success() || std::thread::panicking(), "the other process: {ended}");
    }
}

impl<T: Tested> Tested for Far<T> {
    const NAME: &'static str = T::NAME;

    fn make(setting: &Setting, _pool: &Pool) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let before = std::env::var("COREFS_TEST_FAR").unwrap_or_default();
        let mut words = before.split_whitespace().map(str::to_string).collect::<Vec<_>>();
        words.push(std::env::current_exe().unwrap().to_str().unwrap().to_string());
        let child = Command::new(&words[0])
            .args(&words[1..])
            .args(["--ignored", "--exact", "--nocapture", "far::serves_another_process"])
            .env(TRANSPORT, T::NAME)
            .envs(T::elsewhere())
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let far = Self { socket: RefCell::new(Some(ours)), child, kind: PhantomData };
        let some = |value: Option<u64>| value.map_or(0, |value| value + 1);
        let mut with = Message::of(&[
            some(setting.secret.map(u64::from)),
            some(setting.patience.map(|patience| patience.as_nanos() as u64)),
            some(setting.connections_max.map(|max| max as u64)),
        ]);
        with.put_bytes(&setting.cluster.0);
        far.ask(Call::Make, with);
        far
    }

    fn local() -> Address {
        std::env::var(FAR_ADDRESS).map_or_else(|_| T::local(), |address| address.parse().unwrap())
    }

    fn is_its_own(&self, conn: ConnId) -> bool {
        self.ask_of(Call::IsItsOwn, conn).take() != 0
    }

    fn turn(world: &mut World<Self>) {
        let sink = &mut world.sink;
        let policy = [Policy::Place, Policy::Wait, Policy::Discard].iter().position(|p| *p == sink.policy);
        let numbers =
            [world.later.as_nanos() as u64, policy.unwrap() as u64, u64::from(sink.flow == Flow::Pause)];
        let mut told = world.net.ask(Call::Turn, Message::of(&numbers));
        take_events(&mut told, sink);
    }

    fn in_use(world: &World<Self>) -> usize {
        world.net.ask(Call::InUse, Message::default()).take() as usize
    }
}

/// What a sink has written down since it was asked last.
fn put_events(to: &mut Message, sink: &mut Sink) {
    to.put(std::mem::take(&mut sink.asked) as u64);
    to.put(sink.opened.len() as u64);
    for (conn, peer) in sink.opened.drain(..) {
        to.put_conn(conn);
        [
            peer.id,
            peer.incarnation,
            u64::from(peer.authenticated),
            u64::from(peer.version),
            peer.capabilities,
        ]
        .into_iter()
        .for_each(|number| to.put(number));
        to.put(ROLES.iter().position(|role| *role == peer.role).unwrap() as u64);
        to.put_bytes(&peer.cluster.0);
        to.put_bytes(peer.address.to_string().as_bytes());
    }
    to.put(sink.frames.len() as u64);
    for frame in sink.frames.drain(..) {
        to.put_conn(frame.conn);
        to.put_bytes(frame.header.as_bytes());
        to.put_bytes(&frame.body);
        to.put(u64::from(frame.data.is_some()));
        to.put_bytes(&frame.data.unwrap_or_default());
    }
    to.put(sink.closed.len() as u64);
    for (conn, error) in sink.closed.drain(..) {
        to.put_conn(conn);
        to.put_error(&error);
    }
}

const ROLES: [Role; 2] = [Role::Client, Role::Storage];

fn take_events(from: &mut Message, sink: &mut Sink) {
    sink.asked += from.take() as usize;
    for _ in 0..from.take() {
        let conn = from.take_conn();
        let [id, incarnation, authenticated, version, capabilities, role] =
            std::array::from_fn(|_| from.take());
        let peer = Peer {
            role: ROLES[role as usize],
            id,
            incarnation,
            cluster: Uuid(from.take_bytes().try_into().unwrap()),
            address: from.take_text().parse().unwrap(),
            authenticated: authenticated != 0,
            version: version as u8,
            capabilities,
        };
        sink.opened(conn, &peer);
    }
    for _ in 0..from.take() {
        let conn = from.take_conn();
        let header: [u8; HEADER] = from.take_bytes().try_into().unwrap();
        let header = Header::parse(&header, FRAME_BODY_MAX).unwrap();
        let (body, some) = (from.take_bytes(), from.take() != 0);
        let data = Some(from.take_bytes()).filter(|_| some);
        sink.frames.push_back(Frame { conn, header, body, data });
    }
    for _ in 0..from.take() {
        let conn = from.take_conn();
        let code = from.take() as u32;
        let error = decode_error(code, &from.take_bytes());
        sink.closed(conn, error);
    }
}

impl<T: Tested> Transport for Far<T> {
    fn owns(_: Source) -> bool {
        false
    }

    fn connect(&mut self, _: &Address) -> Result<ConnId> {
        unreachable!("the end in the other process listens")
    }

    fn listen(&mut self, address: &Address) -> Result<Address> {
        let mut with = Message::default();
        with.put_bytes(address.to_string().as_bytes());
        self.ask(Call::Listen, with).take_result(|found| found.take_text().parse().unwrap())
    }

    fn stop_listening(&mut self, _: &mut Ring) {
        self.ask(Call::StopListening, Message::default());
    }

    fn send(
        &mut self,
        conn: ConnId,
        kind: Kind,
        op: u16,
        request: u64,
        status: u32,
        body: &[u8],
        data: Option<Payload>,
    ) -> Result<()> {
        let mut with = Message::default();
        with.put_conn(conn);
        [kind as u64, op.into(), request, status.into(), u64::from(data.is_some())]
            .into_iter()
            .for_each(|number| with.put(number));
        with.put_bytes(body);
        with.put_bytes(data.as_ref().map_or(&[], |data| data.as_slice()));
        self.ask(Call::Send, with).take_result(|_| ())
    }

    fn grant(&mut self, _: ConnId, _: u64, buffer: Buffer, _: usize) -> std::result::Result<(), Buffer> {
        Err(buffer)
    }

    fn revoke(&mut self, _: ConnId, _: u64) {}

    fn complete(&mut self, _: Completion, _: &mut impl FrameSink) {}

    fn advance(&mut self, _: Instant, _: &mut impl FrameSink) {}

    fn flush(&mut self, _: &mut Ring) {}

    fn close(&mut self, conn: ConnId) {
        self.ask_of(Call::Close, conn);
    }

    fn pause(&mut self, conn: ConnId) {
        self.ask_of(Call::Pause, conn);
    }

    fn resume(&mut self, conn: ConnId) {
        self.ask_of(Call::Resume, conn);
    }

    fn is_open(&self, conn: ConnId) -> bool {
        self.ask_of(Call::IsOpen, conn).take() != 0
    }

    fn peer(&self, _: ConnId) -> Option<&Peer> {
        unreachable!("who the peers are is in what the sink wrote down")
    }

    fn queued(&self, conn: ConnId) -> usize {
        self.ask_of(Call::Queued, conn).take() as usize
    }

    fn counters(&self, conn: ConnId) -> Option<ConnCounters> {
        let mut told = self.ask_of(Call::Counters, conn);
        (told.take() != 0).then(|| {
            let [frames_in, frames_out, bytes_in, bytes_out, receives, sends, copied, direct] =
                std::array::from_fn(|_| told.take());
            ConnCounters { frames_in, frames_out, bytes_in, bytes_out, receives, sends, copied, direct }
        })
    }

    fn live(&self) -> usize {
        self.ask(Call::Live, Message::default()).take() as usize
    }

    fn has_work(&self) -> bool {
        self.ask(Call::HasWork, Message::default()).take() != 0
    }

    fn next_tick(&self) -> Option<Instant> {
        None
    }
}

impl<T: Tested> Beside for Far<T> {
    fn look(&mut self) -> bool {
        false
    }

    fn lie_down(&mut self, _: &mut Ring) -> bool {
        true
    }
}

/// Does what a test of another process says, until that is over.
fn serve<T: Tested>(mut socket: UnixStream) {
    let mut made = None;
    while let Some(mut asked) = Message::read(&mut socket) {
        let call = CALLS[asked.take() as usize];
        let mut told = Message::default();
        if call == Call::Make {
            made = Some(World::<T>::with(setting(&mut asked)));
        } else {
            let world = made.as_mut().expect("one is made first");
            answer(world, call, &mut asked, &mut told);
        }
        // Who asked may have been killed meanwhile.
        let _ = told.write(&mut socket);
    }
}

fn setting(asked: &mut Message) -> Setting {
    let [secret, patience, connections_max] = std::array::from_fn(|_| asked.take().checked_sub(1));
    Setting {
        secret: secret.map(|byte| byte as u8),
        patience: patience.map(Duration::from_nanos),
        connections_max: connections_max.map(|max| max as usize),
        cluster: Uuid(asked.take_bytes().try_into().unwrap()),
    }
}

fn answer<T: Tested>(world: &mut World<T>, call: Call, asked: &mut Message, told: &mut Message) {
    match call {
        Call::Make => unreachable!("it was made already"),
        Call::Turn => {
            world.later = Duration::from_nanos(asked.take());
            world.sink.policy = [Policy::Place, Policy::Wait, Policy::Discard][asked.take() as usize];
            world.sink.flow = if asked.take() != 0 { Flow::Pause } else { Flow::Continue };
            world.turn();
            put_events(told, &mut world.sink);
        }
        Call::Listen => {
            let address = asked.take_text().parse().unwrap();
            let found = world.net.listen(&address);
            told.put_result(found, |told, address| told.put_bytes(address.to_string().as_bytes()));
        }
        Call::StopListening => world.net.stop_listening(&mut world.ring),
        Call::Send => {
            let conn = asked.take_conn();
            let [kind, op, request, status, some] = std::array::from_fn(|_| asked.take());
            let kind = if kind == Kind::Request as u64 { Kind::Request } else { Kind::Reply };
            let body = asked.take_bytes();
            let data = Some(asked.take_bytes()).filter(|_| some != 0).map(Payload::from);
            let sent = world.net.send(conn, kind, op as u16, request, status as u32, &body, data);
            told.put_result(sent, |_, ()| ());
        }
        Call::Close => world.net.close(asked.take_conn()),
        Call::Pause => world.net.pause(asked.take_conn()),
        Call::Resume => world.net.resume(asked.take_conn()),
        Call::IsOpen => told.put(world.net.is_open(asked.take_conn()).into()),
        Call::IsItsOwn => told.put(world.net.is_its_own(asked.take_conn()).into()),
        Call::Queued => told.put(world.net.queued(asked.take_conn()) as u64),
        Call::Counters => match world.net.counters(asked.take_conn()) {
            None => told.put(0),
            Some(found) => {
                let ConnCounters { frames_in, frames_out, bytes_in, bytes_out, .. } = found;
                let ConnCounters { receives, sends, copied, direct, .. } = found;
                [1, frames_in, frames_out, bytes_in, bytes_out, receives, sends, copied, direct]
                    .into_iter()
                    .for_each(|number| told.put(number));
            }
        },
        Call::Live => told.put(world.net.live() as u64),
        Call::HasWork => told.put(world.net.has_work().into()),
        Call::InUse => told.put(world.in_use() as u64),
    }
}

#[test]
#[ignore = "the other process of tests whose server is in one"]
fn serves_another_process() {
    let socket = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned().unwrap());
    match std::env::var(TRANSPORT).unwrap().as_str() {
        Tcp::NAME => serve::<Tcp>(socket),
        #[cfg(feature = "rdma")]
        corefs_net::Rdma::NAME => serve::<corefs_net::Rdma>(socket),
        other => panic!("there is no transport {other}"),
    }
}
