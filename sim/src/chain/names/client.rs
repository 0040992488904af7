//! A client process: its number, its requests, and what it makes of answers.

use super::model::{Deed, Life, keeps, padded, piece};
use super::{Common, LOCKS, count, directory, lock_name};
use crate::chain::config::Canary;
use crate::chain::kv::Road;
use crate::chain::manager::OwnClock;
use crate::chain::names::Around;
use crate::tasks::{MILLI, Owner, Spawner};
use corefs_engine::event::Nanos;
use corefs_meta::Namespace;
use corefs_mgmtd::{Clock, ops};
use corefs_wire::checksum::crc32c;
use corefs_wire::control::meta::*;
use corefs_wire::control::mgmtd::RenewClientT;
use corefs_wire::{Class, ErrorCode, InodeId, ROOT_INODE, Result};
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

/// One attempt of a request, and of a question to a manager.
const ATTEMPT: Nanos = 1000 * MILLI;
/// The pause after an attempt that failed (milliseconds).
const PAUSE_MS: u64 = 50;
/// A third of a client's lease (milliseconds).
const RENEWAL_MS: u64 = 5000;
/// Names in a directory, and bytes of a file at most.
const NAMES: u64 = 4;
const BYTES: u64 = 10_000;

type Server = Namespace<Road, Around>;
type Answer<T> = Pin<Box<dyn Future<Output = Result<T>>>>;

/// Requests that say who asks.
trait Asked: Clone + 'static {
    fn caller(&mut self) -> &mut CallerT;
}

macro_rules! asked {
    ($($request:ty),*) => {
        $(impl Asked for $request {
            fn caller(&mut self) -> &mut CallerT {
                &mut self.caller
            }
        })*
    };
}

asked!(CloseT, CreateT, LinkT, LookupT, OpenT, RenameT, SetAttrT, SyncLengthT, UnlinkT);

pub struct Client {
    common: Rc<Common>,
    owner: Owner,
    clock: OwnClock,
    think: Nanos,
    /// Its number, once it has one.
    id: Cell<u64>,
    sequence: Cell<u64>,
    /// How often its lease was renewed, and whether the managers have ended it.
    renewals: Cell<u64>,
    lost: Cell<bool>,
    life: Rc<RefCell<Life>>,
}

/// The process is no more: it has lost its lease, or bytes of its files.
struct Lost;

impl Client {
    pub fn start(common: &Rc<Common>, spawner: &Spawner, owner: Owner, clock: OwnClock, think: Nanos) {
        let (common, here) = (Rc::clone(common), spawner.clone());
        spawner.spawn(owner, async move {
            while !common.ending.get() {
                let life = Rc::new(RefCell::new(Life { owner, ..Life::default() }));
                common.lives.borrow_mut().push(Rc::clone(&life));
                let client = Rc::new(Self {
                    common: Rc::clone(&common),
                    owner,
                    clock: clock.clone(),
                    think,
                    id: Cell::new(0),
                    sequence: Cell::new(0),
                    renewals: Cell::new(0),
                    lost: Cell::new(false),
                    life,
                });
                here.spawn(owner, Rc::clone(&client).renew());
                // Whoever is lost begins anew, as another client.
                if client.live().await.is_err() {
                    count(&common.leases_lost);
                }
                client.life.borrow_mut().over = true;
                client.lost.set(true);
            }
        });
    }

    /// Gets a number, and keeps it for as long as the managers let it.
    async fn renew(self: Rc<Self>) {
        let mut manager = 0;
        while !self.lost.get() {
            let machines = Rc::clone(&self.common.machines);
            let (at, id) = (manager % machines.borrow().len(), self.id.get());
            let ask = move || {
                let machine = machines.borrow()[at].clone()?;
                let mut request = RenewClientT::default();
                (request.client, request.name) = (id, "simulated".into());
                Some(async move { ops::renew_client(&machine, request).await })
            };
            match self.common.wire.call((self.owner, at), ATTEMPT, ask).await {
                Some(Ok(lease)) => {
                    self.id.set(lease.client);
                    count(&self.renewals);
                    self.clock.sleep(RENEWAL_MS).await;
                }
                Some(Err(error)) if error.code == ErrorCode::LeaseExpired => self.lost.set(true),
                _ => {
                    manager += 1;
                    self.clock.sleep(PAUSE_MS).await;
                }
            }
        }
    }

    fn below(&self, bound: u64) -> u64 {
        self.common.wire.below(bound)
    }

    async fn live(&self) -> std::result::Result<(), Lost> {
        while self.id.get() == 0 {
            if self.common.ending.get() {
                return Ok(());
            }
            self.clock.sleep(PAUSE_MS).await;
        }
        self.life.borrow_mut().client = self.id.get();
        let mut request = directory(ROOT_INODE.0, format!("client {}", self.id.get()).as_bytes());
        request.caller = self.caller();
        let made = self.ask(request, |server, request| {
            Box::pin(async move { server.create(&request).await.map(|reply| reply.attr.inode) })
        });
        match made.await? {
            Ok(inode) => self.life.borrow_mut().directory = inode,
            Err(error) => self.common.fail(format!("names: its own directory: {error}")),
        }
        while !self.common.ending.get() {
            self.clock.sleep(self.below(self.think / MILLI + 1)).await;
            if self.below(8) == 0 {
                self.fight().await?;
            } else {
                self.act(self.draw()).await?;
            }
        }
        Ok(())
    }

    fn draw(&self) -> Deed {
        let name = || b'a' + self.below(NAMES) as u8;
        match self.below(17) {
            0..5 => Deed::Create(name()),
            5..7 => Deed::Unlink(name()),
            7..9 => Deed::Rename(name(), name()),
            9 => Deed::Link(name(), name()),
            10 => Deed::Truncate(name(), self.below(BYTES)),
            11..13 => Deed::Write(name(), self.below(BYTES)),
            13 => Deed::MoveOut(name()),
            _ => Deed::Look(name()),
        }
    }

    /// Does something, and holds the answer against the model.
    async fn act(&self, deed: Deed) -> std::result::Result<(), Lost> {
        self.life.borrow_mut().pending = Some(deed);
        let outcome = self.carry_out(deed).await?;
        // The block that is cut was damaged where no other replica served, or there is no room to cut it, or for bytes that move out. It is done when
        // there is, or never: nobody is told, as of what a process asked for that died.
        let code = outcome.as_ref().err().map(|error| error.code);
        let left = matches!(code, Some(ErrorCode::Corrupt | ErrorCode::NoSpace));
        if matches!(deed, Deed::Truncate(..) | Deed::MoveOut(_) | Deed::Write(..)) && left {
            return Err(Lost);
        }
        let mut life = self.life.borrow_mut();
        life.pending = None;
        let (told, found) = match outcome {
            Ok(attr) => (attr, Ok(())),
            Err(error) => (None, Err(error)),
        };
        let before = life.model.clone();
        let expected = life.model.apply(deed, told.as_ref());
        if expected != found.as_ref().copied().map_err(|error| error.code) {
            self.common.fail(format!(
                "names: client {} was told {found:?} ({:?}) of {deed:?}, and expected {expected:?}: {before:?}",
                self.id.get(),
                told.map(|attr| (attr.inode, attr.nlink, attr.size)),
            ));
        }
        Ok(())
    }

    async fn carry_out(&self, deed: Deed) -> std::result::Result<Result<Option<AttrT>>, Lost> {
        let directory = self.life.borrow().directory;
        let inode = |name: u8| self.life.borrow().model.inode(name);
        // What isn't there has no inode to be asked for.
        let missing = || Ok(Err(ErrorCode::NotFound.into()));
        match deed {
            Deed::Create(name) => {
                let mut request = CreateT::default();
                (request.caller, request.parent, request.name) = (self.caller(), directory, vec![name]);
                (request.kind, request.mode, request.exclusive) = (Kind::File, 0o644, true);
                request.inline = keeps(name);
                self.ask(request, |server, request| {
                    Box::pin(async move { server.create(&request).await.map(|reply| Some(*reply.attr)) })
                })
                .await
            }
            Deed::Unlink(name) => self.unlink(directory, name).await,
            Deed::Rename(from, to) => {
                let mut request = RenameT::default();
                (request.caller, request.parent, request.name) = (self.caller(), directory, vec![from]);
                (request.new_parent, request.new_name) = (directory, vec![to]);
                self.ask(request, |server, request| {
                    Box::pin(async move { server.rename(&request).await.map(|_| None) })
                })
                .await
            }
            Deed::Link(from, to) => {
                let Some(inode) = inode(from) else { return missing() };
                let mut request = LinkT::default();
                (request.caller, request.inode) = (self.caller(), inode);
                (request.parent, request.name) = (directory, vec![to]);
                self.ask(request, |server, request| {
                    Box::pin(async move { server.link(&request).await.map(|reply| Some(*reply.attr)) })
                })
                .await
            }
            Deed::Truncate(name, size) => {
                let Some(inode) = inode(name) else { return missing() };
                let mut request = SetAttrT::default();
                (request.caller, request.inode) = (self.caller(), inode);
                (request.set.mask, request.set.size) = (8, size);
                self.ask(request, |server, request| {
                    Box::pin(async move { server.set_attr(&request).await.map(|reply| Some(*reply.attr)) })
                })
                .await
            }
            Deed::Look(name) => {
                if let Err(error) = self.look(name).await? {
                    return Ok(Err(error));
                }
                let mut request = LookupT::default();
                (request.parent, request.name) = (directory, vec![name]);
                self.ask(request, |server, request| {
                    Box::pin(async move { server.lookup(&request).await.map(|reply| Some(*reply.attr)) })
                })
                .await
            }
            Deed::Write(name, end) => {
                let Some(inode) = inode(name) else { return missing() };
                self.write(inode, end, false).await
            }
            Deed::MoveOut(name) => {
                let Some(inode) = inode(name) else { return missing() };
                self.write(inode, 0, true).await
            }
        }
    }

    /// The bytes of a file that keeps them with its inode.
    async fn look(&self, name: u8) -> std::result::Result<Result<()>, Lost> {
        let (inode, kept) = {
            let model = &self.life.borrow().model;
            (model.inode(name), model.kept(name).map(<[u8]>::to_vec))
        };
        let (Some(inode), Some(kept)) = (inode, kept) else { return Ok(Ok(())) };
        let mut request = OpenT::default();
        (request.inode, request.bytes) = (inode, true);
        let answer = self.ask(request, |server, request| {
            Box::pin(async move { server.open(&request).await.map(|reply| (reply.inline, reply.attr.size)) })
        });
        let found = match answer.await? {
            Ok((inline, size)) => inline.map(|inline| padded(&inline, size)),
            Err(error) => return Ok(Err(error)),
        };
        if found.as_deref() != Some(&kept[..]) {
            self.common.fail(format!("names: inode-{inode} keeps {found:?}, and should keep {kept:?}"));
        }
        Ok(Ok(()))
    }

    /// Has the bytes moved to chunks: the same that were kept.
    async fn move_out(
        &self,
        inode: u64,
        session: u64,
        kept: Vec<u8>,
    ) -> std::result::Result<Result<()>, Lost> {
        let mut request = SyncLengthT::default();
        (request.caller, request.inode, request.session) = (self.caller(), inode, session);
        request.move_out = true;
        let moved = self.ask(request, |server, request| {
            Box::pin(async move { server.sync_length(&request).await.map(|reply| reply.attr.marks) })
        });
        let marks = match moved.await? {
            Ok(marks) => marks,
            Err(error) => return Ok(Err(error)),
        };
        let mut there = self.common.moved.borrow().get(&InodeId(inode)).cloned().unwrap_or_default();
        there.resize(kept.len(), 0);
        if marks != 0 || there != kept {
            self.common.fail(format!("names: {there:?} went to chunks of inode-{inode}, not {kept:?}"));
        }
        Ok(Ok(()))
    }

    /// Opens for writing, and closes having written up to `end`, or having moved out what is kept with the inode.
    async fn write(
        &self,
        inode: u64,
        end: u64,
        moves: bool,
    ) -> std::result::Result<Result<Option<AttrT>>, Lost> {
        let mut request = OpenT::default();
        (request.caller, request.inode, request.write) = (self.caller(), inode, true);
        let opened = self.ask(request, |server, request| {
            Box::pin(async move { server.open(&request).await.map(|reply| (reply.session, reply.attr)) })
        });
        let (session, attr) = match opened.await? {
            Ok(opened) => opened,
            Err(error) => return Ok(Err(error)),
        };
        self.clock.sleep(self.below(self.think / MILLI + 1)).await;
        let kept = self.life.borrow().model.kept_by(inode).map(<[u8]>::to_vec);
        if kept.is_some() != (attr.marks != 0) {
            self.common.fail(format!("names: inode-{inode} keeps its bytes: {}", attr.marks));
        }
        if let (true, Some(kept)) = (moves, kept.clone()) {
            match self.move_out(inode, session, kept).await? {
                Err(error) if error.code == ErrorCode::NoSuchSession && !self.has_lease().await => {
                    return Err(Lost);
                }
                Err(error) => return Ok(Err(error)),
                Ok(()) => {}
            }
        }
        let mut request = CloseT::default();
        (request.caller, request.inode, request.session) = (self.caller(), inode, session);
        (request.length, request.epoch) = (end, attr.epoch);
        if !moves && kept.is_some() && end > 0 {
            let mut inline = InlineT::default();
            (inline.start, inline.bytes) = piece(end);
            inline.crc = crc32c(&inline.bytes);
            (request.length, request.inline) = (0, Some(Box::new(inline)));
        }
        let closed = self.ask(request, |server, request| {
            Box::pin(async move { server.close(&request).await.map(|reply| Some(*reply.attr)) })
        });
        match closed.await? {
            // Whoever was silent for too long has lost its lease, and its sessions, before it hears of that.
            Err(error) if error.code == ErrorCode::NoSuchSession && !self.has_lease().await => Err(Lost),
            outcome => Ok(outcome),
        }
    }

    /// Asks the managers whether its lease still runs.
    async fn has_lease(&self) -> bool {
        let asked = self.renewals.get();
        while !self.lost.get() && self.renewals.get() < asked + 2 {
            self.clock.sleep(PAUSE_MS).await;
        }
        !self.lost.get()
    }

    async fn unlink(&self, directory: u64, name: u8) -> std::result::Result<Result<Option<AttrT>>, Lost> {
        let mut request = UnlinkT::default();
        (request.caller, request.parent, request.name) = (self.caller(), directory, vec![name]);
        self.ask(request, |server, request| {
            Box::pin(async move { server.unlink(&request).await.map(|_| None) })
        })
        .await
    }

    /// Takes a name that others want, too, and gives it back after a while.
    async fn fight(&self) -> std::result::Result<(), Lost> {
        let lock = self.below(LOCKS as u64) as usize;
        let arena = self.common.arena.get();
        let mut request = CreateT::default();
        (request.caller, request.parent, request.name) = (self.caller(), arena, vec![lock_name(lock)]);
        (request.kind, request.mode, request.exclusive) = (Kind::File, 0o644, true);
        self.life.borrow_mut().wants = Some(lock);
        let made = self
            .ask(request, |server, request| Box::pin(async move { server.create(&request).await.map(drop) }));
        match made.await? {
            Err(error) if error.code == ErrorCode::Exists => {
                self.life.borrow_mut().wants = None;
                return Ok(());
            }
            Err(error) => {
                self.common.fail(format!("names: {error} for a name in the arena"));
                return Ok(());
            }
            Ok(()) => {}
        }
        let me = self.id.get();
        if let Some(other) = self.common.holders.borrow_mut()[lock].replace(me) {
            self.common.fail(format!("names: {lock} in the arena is had by {other} and by {me}"));
        }
        self.clock.sleep(self.below(self.think / MILLI + 1)).await;
        self.common.holders.borrow_mut()[lock] = None;
        if let Err(error) = self.unlink(arena, lock_name(lock)).await? {
            self.common.fail(format!("names: {me} can't give {lock} back: {error}"));
        }
        self.life.borrow_mut().wants = None;
        Ok(())
    }

    fn caller(&self) -> Box<CallerT> {
        let sequence = self.sequence.get() + 1;
        self.sequence.set(sequence);
        let mut caller = CallerT::default();
        (caller.client, caller.incarnation) = (self.id.get(), 1);
        if self.common.canary != Some(Canary::RequestsUnnumbered) {
            (caller.sequence, caller.low_water) = (sequence, sequence);
        }
        Box::new(caller)
    }

    /// The same request to one server after the other, until one of them says something that counts.
    async fn ask<R: Asked, T: 'static>(
        &self,
        mut request: R,
        answer: impl Fn(Rc<Server>, Rc<R>) -> Answer<T> + Copy + 'static,
    ) -> std::result::Result<Result<T>, Lost> {
        let servers = self.common.servers.borrow().len();
        let mut at = self.below(servers as u64) as usize;
        loop {
            let (all, sent) = (Rc::clone(&self.common.servers), Rc::new(request.clone()));
            let server = move || Some(answer(all.borrow()[at].clone()?, sent));
            let to = self.common.first_server + at;
            let outcome = self.common.wire.call((self.owner, to), ATTEMPT, server).await;
            match outcome {
                Some(Ok(value)) => {
                    count(&self.common.done);
                    return Ok(Ok(value));
                }
                Some(Err(error)) if error.class() == Class::Fatal => {
                    count(&self.common.done);
                    return Ok(Err(error));
                }
                _ if self.lost.get() => return Err(Lost),
                _ => {
                    count(&self.common.again);
                    request.caller().repeated = true;
                    at = (at + 1) % servers;
                    self.clock.sleep(PAUSE_MS).await;
                }
            }
        }
    }
}
