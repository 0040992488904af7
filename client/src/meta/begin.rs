//! Sessions that begin although nobody hears of it.
//!
//! When the patience of whoever opens a file ends, the server may have begun the session all the same, and it would last as long as this
//! client. So the question goes on in the background, under the number that it has, until it is answered; then the session is ended.
//!
//! That is for what changes nothing but sessions. A create or a truncation that was reported as failed must not be asked for again: it
//! might happen after its caller has done something else.

use super::{Meta, Sequence, Written};
use crate::Credentials;
use corefs_net::executor::{sleep, spawn};
use corefs_wire::control::meta::{OpenReplyT, OpenT};
use corefs_wire::{Class, Error, ErrorCode, InodeId, Result};
use std::time::Duration;

const PAUSE: Duration = Duration::from_millis(500);

impl Meta {
    pub(super) async fn begin(&self, request: OpenT, sequence: Sequence) -> Result<OpenReplyT> {
        let outcome = self.carry_out(&sequence, request.inode, &request).await;
        if !request.truncate && outcome.as_ref().is_err_and(|error| self.may_be_answered(error)) {
            spawn(self.clone().begin_and_end(request, sequence)).detach();
        }
        outcome
    }

    /// Whether asking again can bring another answer. One that our lease has ended says that so have all sessions of it.
    fn may_be_answered(&self, error: &Error) -> bool {
        error.class() != Class::Fatal && error.code != ErrorCode::LeaseExpired && !self.0.ground.closed.get()
    }

    async fn begin_and_end(self, request: OpenT, sequence: Sequence) {
        let reply = loop {
            sleep(PAUSE).await;
            match self.carry_out(&sequence, request.inode, &request).await {
                Ok(reply) => break reply,
                Err(error) if self.may_be_answered(&error) => {}
                Err(_) => return,
            }
        };
        drop(sequence);
        let (root, inode) = (Credentials::root(), InodeId(request.inode));
        while let Err(error) = self.close(&root, inode, reply.session, Written::default(), None).await {
            if !self.may_be_answered(&error) {
                return;
            }
            sleep(PAUSE).await;
        }
    }
}
