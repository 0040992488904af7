//! What leaves a node, and how it arrives: late, twice, in another order, or never.

use super::*;

/// After so long a connection that carries nothing is given up.
const NOTICED: Nanos = 1500 * MILLI;

impl World {
    /// Delivers a message some time, or never.
    pub(super) fn send(&mut self, from: End, to: End, happening: Happening) {
        let now = self.now;
        let cut = self.cuts.iter().any(|(a, b, until)| (*a, *b) == (from, to) && now < *until);
        if cut {
            self.notice(&happening);
        }
        if cut || (!self.ending && self.prng.chance(self.config.loss, 1000)) {
            self.truth.counts.lost_messages += 1;
            return;
        }
        if !self.ending && self.prng.chance(self.config.twice, 1000) {
            self.truth.counts.repeated_messages += 1;
            let delay = self.delay();
            self.after(delay, happening.clone());
        }
        let delay = self.delay();
        self.after(delay, happening);
    }

    /// A node whose forward, or the answer to it, goes over a link that is cut has its connection ended after a while.
    fn notice(&mut self, lost: &Happening) {
        let (node, epoch, forward) = match lost {
            Happening::Update { from: Requester::Node { node, epoch, forward }, .. } => {
                (*node, *epoch, *forward)
            }
            Happening::ForwardAnswered { node, epoch, forward, .. } => (*node, *epoch, *forward),
            _ => return,
        };
        let result = Err(ErrorCode::ConnectionLost.into());
        self.after(NOTICED, Happening::ForwardAnswered { node, epoch, forward, result });
    }

    fn delay(&mut self) -> Nanos {
        let most = match self.prng.below(1000) {
            slow if slow < self.config.slow && !self.ending => {
                self.truth.counts.late_messages += 1;
                8000 * MILLI
            }
            late if late >= 990 => 200 * MILLI,
            _ => 2 * MILLI,
        };
        self.prng.below(most)
    }

    /// Has a node woken when it wants to be.
    pub(super) fn schedule_tick(&mut self, node: usize) {
        let Some(deadline) = self.nodes[node].next_deadline() else { return };
        let place = &self.places[node];
        let wait = u128::from(deadline.saturating_sub(self.clock(node)));
        // Its clock goes at another pace than the world's. Shards are never woken early, and often a little late.
        let wait = (wait * 1_000_000 / u128::from(1_000_000 - DRIFT_PPM + place.fast_ppm)) as Nanos;
        let at = self.now + wait + 1 + self.prng.below(MILLI);
        if at < place.tick_at {
            self.places[node].tick_at = at;
            let epoch = self.nodes[node].epoch;
            self.after(at - self.now, Happening::Tick { node, epoch, at });
        }
    }

    /// Takes over what a node wants done.
    pub(super) fn gather(&mut self, node: usize) {
        let epoch = self.nodes[node].epoch;
        let mut jobs = std::mem::take(&mut self.nodes[node].jobs);
        for job in jobs.drain(..) {
            self.number += 1;
            let number = self.number;
            self.places[node].jobs.insert(number, job);
            let slow = self.now < self.places[node].slow_until;
            let delay = match self.prng.below(50) {
                _ if slow => self.prng.below(400 * MILLI),
                0 => self.prng.between(20, 21) * MILLI,
                _ => self.prng.below(MILLI),
            };
            self.after(delay, Happening::Done { node, epoch, job: number });
        }
        let mut sent = std::mem::take(&mut self.nodes[node].sent);
        sent.drain(..).for_each(|sent| self.deliver(node, sent));
        // Their room is used again.
        (self.nodes[node].jobs, self.nodes[node].sent) = (jobs, sent);
        for accepted in std::mem::take(&mut self.nodes[node].accepted) {
            let chain = &self.managers.state.chains[&accepted.chain];
            let head = chain.members.iter().find(|member| member.target == accepted.head);
            // One that was handed on, or is about to leave, may not know: nothing is committed without it, so nothing by it.
            let counts = head.is_some_and(|head| matches!(head.state, Public::Serving | Public::Syncing));
            let checked = self.truth.accepted(accepted, counts);
            if let Err(what) = checked {
                self.nodes[node].failure.get_or_insert(what);
            }
        }
        self.schedule_tick(node);
    }

    pub(super) fn deliver(&mut self, node: usize, sent: Sent) {
        let from_here = End::Node(node);
        match sent {
            Sent::Forward { to, forward, message } => {
                self.truth.counts.fills += u64::from(message.offer.fill.is_some());
                let epoch = self.nodes[node].epoch;
                let from = Requester::Node { node, epoch, forward };
                let fill = message.offer.fill.is_some();
                let lies = match self.config.canary {
                    Some(Canary::AnswersInvented) => self.prng.chance(1, 4),
                    Some(Canary::LastAnswersInvented) => self.ending,
                    _ => false,
                };
                if lies && !fill {
                    let version = message.offer.forwarded.unwrap_or(0);
                    let result = Err(Error::from(ErrorCode::Internal));
                    // The length can't be known: learn it from the node itself, as a lying network could.
                    let length = self.nodes[node].pending_length(forward.target, message.offer.chunk);
                    let result = length.map_or(result, |length| Ok(Ack { version, length, merged_crc: 0 }));
                    let answered = Happening::ForwardAnswered { node, epoch, forward, result };
                    return self.send(from_here, from_here, answered);
                }
                if let Some(owner) = self.node_of(to) {
                    let update = Happening::Update { node: owner, from, message };
                    self.send(from_here, End::Node(owner), update);
                }
            }
            Sent::Ask(mut question) => {
                if let Ask::Rows { rows, .. } = &mut question.ask {
                    self.truth.counts.rows_handed_over += rows.len() as u64;
                    match self.config.canary {
                        Some(Canary::RowsForgotten) => rows.clear(),
                        Some(Canary::PendingRowsHandedOver) => {
                            rows.extend(self.nodes[node].pending_rows(question.target));
                        }
                        _ => {}
                    }
                }
                if let Some(owner) = self.node_of(question.to) {
                    let from = (node, self.nodes[node].epoch);
                    let asked = Happening::Asked { node: owner, from, question: Box::new(question) };
                    self.send(from_here, End::Node(owner), asked);
                }
            }
            Sent::Answer { to: Requester::Client { client, attempt }, result } => {
                self.send(from_here, End::Clients, Happening::Answered { client, attempt, result });
            }
            Sent::Answer { to: Requester::Replica { .. }, .. } => unreachable!("a fetch is a read"),
            Sent::Answer { to: Requester::Node { node, epoch, forward }, result } => {
                self.truth.counts.refusal(result.as_ref().err().map(|error| error.code));
                let answered = Happening::ForwardAnswered { node, epoch, forward, result };
                self.send(from_here, End::Node(node), answered);
            }
            Sent::Read { to: Requester::Client { client, attempt }, result } => {
                self.send(from_here, End::Clients, Happening::ReadDone { client, attempt, result });
            }
            Sent::Read { to: Requester::Replica { node, epoch, ticket }, result } => {
                let result = result.map(|(_, bytes)| bytes);
                self.send(from_here, End::Node(node), Happening::Fetched { node, epoch, ticket, result });
            }
            Sent::Read { to: Requester::Node { .. }, .. } => unreachable!("predecessors don't read"),
            Sent::Fetch(fetch) => {
                self.truth.counts.fetches += 1;
                let from = Requester::Replica { node, epoch: self.nodes[node].epoch, ticket: fetch.ticket };
                if let Some(owner) = self.node_of(fetch.to) {
                    self.send(from_here, End::Node(owner), Happening::Wanted { node: owner, from, fetch });
                }
            }
        }
    }

    pub(super) fn asked(&mut self, node: usize, from: (usize, u32), question: &Question) {
        if !self.nodes[node].is_on() {
            return;
        }
        let now = self.clock(node);
        let mut result = self.nodes[node].asked(now, question);
        if let Ask::Compare { from, last, .. } = question.ask
            && self.config.canary == Some(Canary::ComparisonsInvented)
            && from != last
            && result.is_ok()
        {
            result = Ok(Told::Equal);
        }
        self.gather(node);
        let (target, ticket) = (question.target, question.ticket);
        let told = Happening::Told { node: from.0, epoch: from.1, target, ticket, result };
        self.send(End::Node(node), End::Node(from.0), told);
    }
}
