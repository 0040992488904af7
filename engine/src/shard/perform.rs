//! Doing what the targets decided, and telling them what became of it.

use super::Shard;
use super::desk::Ready;
use super::filling;
use super::links::{Question, Route};
use super::ops::Requester;
use super::reads::check_transfer;
use super::upkeep;
use crate::disk::uring::Io;
use crate::event::{Event, OpId, Output};
use corefs_net::{Completion, Payload};
use corefs_wire::error::encode_error;
use corefs_wire::frame::Kind;
use corefs_wire::limits::BLOCK;
use corefs_wire::{Error, ErrorCode, Result};

impl Shard {
    /// Performs everything that waits, and what follows from that.
    pub(super) fn perform(&mut self) {
        loop {
            for Ready { requester, op, result } in std::mem::take(&mut self.desk.ready) {
                match result {
                    Ok(body) => {
                        self.body.clear();
                        self.body.extend_from_slice(&body);
                        self.answer(requester, op, Ok(()), None);
                    }
                    Err(error) => self.answer(requester, op, Err(&error), None),
                }
            }
            if self.desk.outputs.is_empty() {
                return;
            }
            let mut outputs = std::mem::take(&mut self.desk.outputs);
            for output in outputs.drain(..) {
                self.do_one(output);
            }
            // What was decided meanwhile comes next; the larger of the two lists is kept.
            if self.desk.outputs.is_empty() {
                self.desk.outputs = outputs;
            }
        }
    }

    #[inline]
    fn do_one(&mut self, output: Output) {
        match output {
            Output::Read { op, slice, plan } => self.start_read(op, slice, plan),
            Output::Refuse { op, error } => self.refuse_read(op, &error),
            Output::Prepare { op, slice, blocks, payload, merges, .. } => {
                self.prepare(op, slice, blocks, payload, merges);
            }
            Output::Load { slice, target, ticket, pending, fill, plan } => {
                if let Some(plan) = plan.as_ref().filter(|_| fill.is_some()) {
                    self.desk.counters.filled_bytes += (plan.crcs.len() * BLOCK) as u64;
                }
                self.load(slice, target, ticket, &pending, fill, plan);
            }
            Output::Ask { target, ticket, to, chain, chain_version, ask } => {
                let (op, body) = filling::encode_ask(to, chain, chain_version, &ask);
                self.question(to, Question { target, ticket, op, body });
            }
            Output::Write { op, slice, batch, writes } => self.write_data(op, slice, batch, writes),
            Output::WriteBatch { slice, writes } => self.write_batch(slice, writes),
            Output::Flush { disk } => {
                self.desk.counters.flushes += 1;
                self.patience.flushes(disk);
                self.disks.flush(&mut self.ring, disk, self.desk.now);
            }
            Output::Forward { op, target, chunk, attempt, to, version, chain_version, base } => {
                self.forward(op, target, chunk, attempt, Route { to, version, chain_version, base });
            }
            Output::Check { ticket, slice, plan, urgent } => self.check(ticket, slice, plan, urgent),
            Output::Fetch { ticket, to, chain, chain_version, place, first, blocks } => {
                self.fetch(to, upkeep::encode_fetch(ticket, to, chain, chain_version, place, first, blocks));
            }
            Output::Mend { ticket, slice, plan, writes } => self.mend(ticket, slice, plan, writes),
            Output::Forget { ticket } => drop(self.desk.take_fetched(ticket)),
            Output::Reply { op, result } => self.reply_update(op, result),
            Output::End { op } => self.end_update(op),
            Output::SliceDied { slice, error } => {
                self.desk.counters.slices_dead += 1;
                tracing::error!(%slice, %error, "slice out of service: a write or flush failed");
            }
            Output::TargetFailed { target, error } => {
                tracing::error!(%target, %error, "the target can't be created; trying again with the next routing");
            }
            Output::Differs { target, chunk } => {
                tracing::error!(%target, %chunk, "replicas hold different bytes: the chunk is out of service");
            }
        }
    }

    /// A transfer of a disk is over.
    #[inline]
    pub(super) fn disk_done(&mut self, completion: Completion) {
        let (io, result) = (Io::of(completion.token), completion.result);
        self.disks.complete(io, &completion);
        let id = |op: u32| OpId(op.into());
        match io {
            Io::Read { op, part } => self.read_done(id(op), part, result),
            Io::Merge { op, .. } => self.merge_done(id(op), result),
            Io::Load { op, part } => self.load_done(id(op), part, result),
            Io::Data { op, part } => self.data_done(id(op), part, result),
            Io::Batch { slot } => self.batch_done(slot, result),
            Io::Check { slot, part } => self.check_done(slot, part, result),
            Io::Mend { slot, part } => self.mend_done(slot, part, result),
            // Its disk was given up, and all slices on it. Only that it failed is still worth knowing, for other shards.
            Io::Flush { disk } if !self.patience.flushed(disk) => {
                let _late = self.disks.flushed(disk, check_transfer(result, 0));
            }
            Io::Flush { disk } => match self.disks.flushed(disk, check_transfer(result, 0)) {
                Ok(()) => {
                    self.desk.counters.flush_nanos += self.desk.now - self.disks.flush_began(disk);
                    self.desk.tell(Event::Flushed { disk });
                }
                Err(error) => self.desk.tell(Event::FlushFailed { disk, error }),
            },
        }
    }

    /// Sends a reply whose body is in `self.body`, or an error.
    #[inline]
    pub(super) fn answer(
        &mut self,
        requester: Requester,
        op: u16,
        result: Result<(), &Error>,
        data: Option<Payload>,
    ) {
        let Requester { conn, request } = requester;
        self.desk.close_account(conn);
        let sent = match result {
            Ok(()) => self.carrier.send(conn, Kind::Reply, op, request, 0, &self.body, data),
            Err(error) => {
                let (status, body) = (error.code as u32, encode_error(error));
                self.carrier.send(conn, Kind::Reply, op, request, status, &body, None)
            }
        };
        // Whoever doesn't read its replies is cut off; whoever is gone needs none.
        if let Err(error) = sent
            && error.code == ErrorCode::Overloaded
        {
            self.carrier.close(conn);
        }
    }
}
