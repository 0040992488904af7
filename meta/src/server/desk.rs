//! Answers requests: decodes by operation code, a task for each that has to wait, not too many at once.

use super::Shared;
use corefs_kv::KvEngine;
use corefs_net::{Request, Responder, Service, executor, process};
use corefs_wire::control::process::{GetProcessT, ProcessT};
use corefs_wire::control::{Call, Message, OPERATIONS, meta};
use corefs_wire::{Error, ErrorCode, Result};
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

/// Requests in progress, of all connections. Each holds a transaction's reads and writes, mostly a few KiB.
pub const REQUESTS_MAX: usize = 4096;

pub(super) struct Desk<E> {
    shared: Rc<Shared<E>>,
    started: Instant,
    in_progress: Cell<usize>,
    refused: Cell<u64>,
    /// How many requests succeeded and how many didn't, of each operation that there is, and of others at the end.
    requests: RefCell<Vec<(u64, u64)>>,
}

/// Answers each request, at once or in a task of its own.
pub(super) struct FrontDesk<E>(Rc<Desk<E>>);

impl<E> FrontDesk<E> {
    pub fn new(desk: Desk<E>) -> Self {
        Self(Rc::new(desk))
    }
}

impl<E: KvEngine> Service for FrontDesk<E> {
    fn request(&self, request: Request, responder: Responder) {
        let desk = Rc::clone(&self.0);
        if request.op == meta::WatchT::OP {
            // It waits on purpose, and isn't among the work that is bounded.
            executor::spawn(async move {
                let outcome = desk.watch(&request.body).await;
                desk.count(request.op, outcome.is_ok());
                responder.done(outcome);
            })
            .detach();
            return;
        }
        let in_progress = desk.in_progress.get();
        if in_progress >= REQUESTS_MAX {
            desk.refused.set(desk.refused.get() + 1);
            let (most, found) = (REQUESTS_MAX as u64, in_progress as u64);
            let what = "too many requests in progress";
            return responder.err(&Error::mismatch(ErrorCode::Overloaded, most, found, what));
        }
        desk.in_progress.set(in_progress + 1);
        let op = request.op;
        let mut answer = Box::pin({
            let desk = Rc::clone(&desk);
            async move { desk.answer(request.op, &request.body).await }
        });
        // The embedded store answers reads at once: what has nothing to wait for needs no task.
        if let Poll::Ready(outcome) = answer.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return desk.done(op, outcome, responder);
        }
        executor::spawn(async move {
            let outcome = answer.await;
            desk.done(op, outcome, responder);
        })
        .detach();
    }
}

impl<E: KvEngine> Desk<E> {
    pub fn new(shared: Rc<Shared<E>>) -> Self {
        Self {
            shared,
            started: Instant::now(),
            in_progress: Cell::new(0),
            refused: Cell::new(0),
            requests: RefCell::new(vec![(0, 0); OPERATIONS.len() + 1]),
        }
    }

    async fn answer(&self, op: u16, body: &[u8]) -> Result<Vec<u8>> {
        let names = &self.shared.namespace;
        match op {
            meta::LookupT::OP => carry(body, async |request| names.lookup(&request).await).await,
            meta::GetAttrT::OP => carry(body, async |request| names.get_attr(&request).await).await,
            meta::CreateT::OP => carry(body, async |request| names.create(&request).await).await,
            meta::OpenT::OP => carry(body, async |request| names.open(&request).await).await,
            meta::CloseT::OP => carry(body, async |request| names.close(&request).await).await,
            meta::SyncLengthT::OP => carry(body, async |request| names.sync_length(&request).await).await,
            meta::AppendT::OP => carry(body, async |request| names.append(&request).await).await,
            meta::ReadDirT::OP => carry(body, async |request| names.read_dir(&request).await).await,
            meta::EndSessionsT::OP => carry(body, async |request| names.end_sessions(&request).await).await,
            meta::UnlinkT::OP => carry(body, async |request| names.unlink(&request).await).await,
            meta::RmDirT::OP => carry(body, async |request| names.rmdir(&request).await).await,
            meta::RenameT::OP => carry(body, async |request| names.rename(&request).await).await,
            meta::LinkT::OP => carry(body, async |request| names.link(&request).await).await,
            meta::ReadLinkT::OP => carry(body, async |request| names.read_link(&request).await).await,
            meta::SetAttrT::OP => carry(body, async |request| names.set_attr(&request).await).await,
            meta::StatFsT::OP => carry(body, async |request| names.statfs(&request).await).await,
            meta::GetXattrT::OP => carry(body, async |request| names.get_xattr(&request).await).await,
            meta::ListXattrT::OP => carry(body, async |request| names.list_xattr(&request).await).await,
            meta::SetXattrT::OP => carry(body, async |request| names.set_xattr(&request).await).await,
            meta::RemoveXattrT::OP => carry(body, async |request| names.remove_xattr(&request).await).await,
            meta::GetLockT::OP => carry(body, async |request| names.get_lock(&request).await).await,
            meta::SetLockT::OP => carry(body, async |request| names.set_lock(&request).await).await,
            GetProcessT::OP => carry(body, async |_: GetProcessT| Ok(self.report())).await,
            other => {
                let what = format!("a metadata server has no operation {other:#06x}");
                Err(Error::new(ErrorCode::UnknownOperation, what))
            }
        }
    }

    async fn watch(&self, body: &[u8]) -> Result<Vec<u8>> {
        let (watchers, kv) = (&self.shared.watchers, self.shared.namespace.kv());
        carry(body, async |request| watchers.watch(&request, || kv.now()).await).await
    }

    fn done(&self, op: u16, outcome: Result<Vec<u8>>, responder: Responder) {
        self.count(op, outcome.is_ok());
        self.in_progress.set(self.in_progress.get() - 1);
        responder.done(outcome);
    }

    fn count(&self, op: u16, succeeded: bool) {
        let known = OPERATIONS.binary_search_by_key(&op, |(code, _)| *code);
        let (good, bad) = &mut self.requests.borrow_mut()[known.unwrap_or(OPERATIONS.len())];
        *(if succeeded { good } else { bad }) += 1;
    }

    fn report(&self) -> ProcessT {
        let (upkeep, changes) = (&self.shared.upkeep, self.shared.namespace.kv().changes().counts());
        let mut counters: Vec<(String, u64)> = vec![
            ("requests_refused".into(), self.refused.get()),
            ("inodes_removed".into(), upkeep.inodes_removed.get()),
            ("names_removed".into(), upkeep.names_removed.get()),
            ("sessions_settled".into(), upkeep.sessions_settled.get()),
            ("upkeep_failures".into(), upkeep.failures.get()),
            ("watchers".into(), self.shared.watchers.count() as u64),
            ("changes_noted".into(), changes.noted),
            ("changes_told".into(), changes.told),
            ("changes_lost".into(), changes.lost),
        ];
        let names = OPERATIONS.iter().map(|(_, name)| *name).chain(["unknown"]);
        let requests = self.requests.borrow();
        let mut asked: Vec<_> = names.zip(&*requests).filter(|(_, counts)| **counts != (0, 0)).collect();
        asked.sort_unstable();
        for (name, (good, bad)) in asked {
            counters.push((format!("{name}.ok"), *good));
            counters.push((format!("{name}.failed"), *bad));
        }
        process::report("meta", self.started.elapsed(), counters)
    }
}

/// Decodes a request, has it answered, encodes the reply.
async fn carry<C: Call>(body: &[u8], answer: impl AsyncFnOnce(C) -> Result<C::Reply>) -> Result<Vec<u8>> {
    let request = C::decode(body).map_err(|error| error.of(C::NAME))?;
    Ok(answer(request).await?.encode())
}
