//! Clients: what they want, whom they ask, and what they make of answers.

use super::*;

/// Damaged copies that a reader meets before it gives up.
const READS_DAMAGED_MAX: u32 = 5;

impl World {
    pub(super) fn next_wish(&mut self, client: usize) {
        if self.ending || self.clients[client].wish.is_some() {
            return;
        }
        let chunk = ChunkId::new(InodeId(1), self.prng.below(self.config.chunks.into()) as u32);
        let wish = if self.prng.chance(2, 5) {
            Wish::Read { chunk, floor: self.truth.floor(chunk), began: self.truth.begins() }
        } else {
            self.new_write(client, chunk)
        };
        self.begin(client, wish);
    }

    pub(super) fn begin(&mut self, client: usize, wish: Wish) {
        self.clients[client].wish = Some(wish);
        (self.clients[client].busy, self.clients[client].damaged) = (false, 0);
        self.clients[client].first = self.clients[client].attempt + 1;
        self.ask(client);
    }

    pub(super) fn new_write(&mut self, client: usize, chunk: ChunkId) -> Wish {
        let (kind, payload) = match self.prng.below(10) {
            0 => (UpdateKind::Truncate { len: self.prng.below(u64::from(CHUNK)) as u32 }, Vec::new()),
            1 => (UpdateKind::Remove, Vec::new()),
            _ => {
                let offset = self.prng.below(u64::from(CHUNK) - 1) as u32;
                let len = self.prng.between(1, u64::from(CHUNK - offset)) as u32;
                let mut payload = vec![0; len as usize];
                self.prng.fill(&mut payload);
                (UpdateKind::Write { offset, len }, payload)
            }
        };
        self.new_update(client, chunk, kind, payload)
    }

    pub(super) fn new_update(
        &mut self,
        client: usize,
        chunk: ChunkId,
        kind: UpdateKind,
        payload: Vec<u8>,
    ) -> Wish {
        self.clients[client].sequence += 1;
        let tag = UpdateTag {
            client: ClientId(client as u64 + 1),
            sequence: self.clients[client].sequence,
            incarnation: 1,
            channel: 0,
        };
        let id = write_id(&tag);
        let payload: Rc<[u8]> = payload.into();
        self.truth.wished(id, chunk, kind, Rc::clone(&payload));
        let offer = Offer {
            chunk,
            kind,
            tag,
            truncate_epoch: 0,
            chain: self.chain_of(chunk),
            chain_version: 0,
            forwarded: None,
            base: 0,
            fill: None,
        };
        Wish::Write { id, offer, payload }
    }

    /// Sends the wish, by the routing that the client knows.
    pub(super) fn ask(&mut self, client: usize) {
        let Some(wish) = self.clients[client].wish.clone() else { return };
        self.clients[client].attempt += 1;
        let attempt = self.clients[client].attempt;
        let from = Requester::Client { client, attempt };
        let routing = Rc::clone(&self.clients[client].routing);
        let chunk = match &wish {
            Wish::Write { offer, .. } => offer.chunk,
            Wish::Read { chunk, .. } => *chunk,
        };
        let patience = self.config.patience * MILLI;
        let patience = patience + self.prng.below(patience);
        self.after(patience, Happening::TimedOut { client, attempt });
        let Some(chain) = routing.chains.get(&self.chain_of(chunk)) else { return };
        let node = |target| routing.targets.get(&target).map(|target| target.node.0 as usize - 1);
        match wish {
            Wish::Write { mut offer, payload, .. } => {
                let Some((head, owner)) = chain.head().and_then(|head| Some((head, node(head)?))) else {
                    return;
                };
                offer.chain_version = chain.version;
                let message = Message { target: head, offer, payload };
                let update = Happening::Update { node: owner, from, message };
                self.send(End::Clients, End::Node(owner), update);
            }
            Wish::Read { chunk, .. } => {
                let serving: Vec<TargetId> = chain.serving().collect();
                let target = match serving.last() {
                    None => return,
                    Some(tail) if self.clients[client].busy => *tail,
                    Some(_) => *self.prng.pick(&serving),
                };
                let Some(owner) = node(target) else { return };
                self.read(client, owner, target, chain.version, chunk, from);
            }
        }
    }

    pub(super) fn read(
        &mut self,
        client: usize,
        owner: usize,
        target: TargetId,
        version: u64,
        chunk: ChunkId,
        from: Requester,
    ) {
        let attempt = self.clients[client].attempt;
        if self.config.canary == Some(Canary::ReadsUnguarded)
            && let Ok(held) = self.nodes[owner].peek_bytes(target, chunk)
        {
            let done = Happening::ReadDone { client, attempt, result: Ok(held) };
            return self.send(End::Node(owner), End::Clients, done);
        }
        let entry = ReadEntry {
            chain: self.chain_of(chunk).0.into(),
            chain_version: version.into(),
            target: target.0.into(),
            inode: chunk.inode.0.into(),
            index: chunk.index.into(),
            offset: 0.into(),
            length: CHUNK.into(),
            ..ReadEntry::default()
        };
        self.send(End::Clients, End::Node(owner), Happening::Read { node: owner, from, entry });
    }

    pub(super) fn retry(&mut self, client: usize) -> Result<(), String> {
        self.truth.counts.retries += 1;
        if !self.prng.chance(1, 4)
            && let Some((_, routing)) = self.managers.routing_beyond(self.clients[client].routing.version)
        {
            self.clients[client].routing = self.given_out(&routing)?;
        }
        self.ask(client);
        Ok(())
    }

    pub(super) fn answered(
        &mut self,
        client: usize,
        attempt: u64,
        result: Result<Ack>,
    ) -> Result<(), String> {
        let Some(Wish::Write { id, offer, .. }) = self.clients[client].wish.clone() else { return Ok(()) };
        if attempt < self.clients[client].first {
            return Ok(());
        }
        match result {
            // An acknowledgment of any attempt acknowledges the update.
            Ok(ack) => {
                self.truth.acknowledged(offer.chunk, id, &ack)?;
                self.hand_back(client, Ok(()));
                self.done(client);
            }
            Err(_) if attempt != self.clients[client].attempt => {}
            // What was damaged where the update came to may be whole when a late copy of it comes.
            Err(error) if error.code == ErrorCode::Corrupt => {
                self.truth.given_up(id);
                self.hand_back(client, Err(error));
                self.done(client);
            }
            // Its chain goes on without a dead slice.
            Err(error) if error.code == ErrorCode::SliceDead => {}
            Err(error) if error.code.class() == Class::Fatal => {
                self.truth.refused(id)?;
                self.hand_back(client, Err(error));
                self.done(client);
            }
            Err(error) => {
                self.truth.counts.fenced += u64::from(error.code == ErrorCode::LeaseExpired);
                if self.config.canary == Some(Canary::DoubtsCalledRefusals) {
                    self.truth.refused(id)?;
                    self.hand_back(client, Err(error));
                    self.done(client);
                }
                // It is asked again when its patience ends.
            }
        }
        Ok(())
    }

    pub(super) fn read_done(
        &mut self,
        client: usize,
        attempt: u64,
        result: Result<(u64, Vec<u8>)>,
    ) -> Result<(), String> {
        let Some(Wish::Read { chunk, floor, began }) = self.clients[client].wish.clone() else {
            return Ok(());
        };
        if attempt != self.clients[client].attempt {
            return Ok(());
        }
        match result {
            Ok((version, bytes)) => {
                self.truth.read(chunk, began, floor, version, &bytes)?;
                self.done(client);
            }
            // Never written, or removed.
            Err(error) if error.code == ErrorCode::NoSuchChunk => {
                self.truth.read_nothing(chunk, began, floor)?;
                self.done(client);
            }
            // Another replica may have it whole; if none has, the reader hears that.
            Err(error) if error.code == ErrorCode::Corrupt => {
                self.truth.counts.reads_damaged += 1;
                self.clients[client].damaged += 1;
                if self.clients[client].damaged > READS_DAMAGED_MAX {
                    self.truth.counts.reads_failed += 1;
                    self.done(client);
                } else {
                    self.ask(client);
                }
            }
            Err(error) => {
                let busy = error.code == ErrorCode::Pending;
                self.truth.counts.reads_pending += u64::from(busy);
                // A tail that is busy too is asked again later.
                let again = busy && !self.clients[client].busy;
                self.clients[client].busy = busy;
                if again {
                    self.ask(client);
                }
            }
        }
        Ok(())
    }

    pub(super) fn done(&mut self, client: usize) {
        self.clients[client].wish = None;
        if client >= self.config.clients {
            return self.lend_hands();
        }
        let pause = self.prng.below(self.config.think * MILLI + 1);
        self.after(pause, Happening::Next { client });
    }
}
