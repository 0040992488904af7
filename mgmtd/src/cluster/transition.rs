//! The states of a target and how they change: one declared table, from which the documentation is rendered.
//!
//! A chain's members are looked at one after the other, in chain order, each against what the others are at that
//! moment ([`advance`]). A change of any member's state raises the chain's version by one.
//!
//! [`reconfigure`](super::reconfigure) applies it.

use corefs_wire::TargetId;
use corefs_wire::control::mgmtd::TargetState;
use std::collections::BTreeSet;
use std::fmt::Write as _;

/// What a target is to the cluster. Ordered as members of a chain are after any change.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Public {
    /// Answers reads, takes updates; counts for every commit.
    Serving,
    /// Dead, and holds the last complete copy.
    LastServing,
    /// Being filled by its predecessor: takes updates, answers no reads.
    Syncing,
    /// Alive, but nothing fills it yet.
    Waiting,
    /// Dead, and others hold what it had.
    Offline,
}

impl Public {
    pub const ALL: [Self; 5] =
        [Self::Serving, Self::LastServing, Self::Syncing, Self::Waiting, Self::Offline];

    /// The state's number on the wire and in stored rows.
    pub fn to_wire(self) -> TargetState {
        match self {
            Self::Serving => TargetState::Serving,
            Self::LastServing => TargetState::LastServing,
            Self::Syncing => TargetState::Syncing,
            Self::Waiting => TargetState::Waiting,
            Self::Offline => TargetState::Offline,
        }
    }

    pub fn from_wire(state: TargetState) -> Option<Self> {
        Self::ALL.into_iter().find(|public| public.to_wire() == state)
    }
}

/// What a target's node says of it, or its silence.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Local {
    /// Alive and filled completely, under the chain version that is still the chain's (other claims aren't).
    UpToDate,
    /// Alive, and knows the chain version that is still the chain's.
    Online,
    /// Alive, and hasn't said that it knows that version: it may still do what it was allowed to under an earlier one.
    Behind,
    /// Alive, and the one before it in the chain or the one after it can't be reached from there.
    Cut,
    /// Alive, in a process that isn't the one last heard of: the old one died.
    Restarted,
    /// Its node's lease ran out, its slice is dead, or its recovery was not clean.
    Offline,
}

impl Local {
    pub const ALL: [Self; 6] =
        [Self::UpToDate, Self::Online, Self::Behind, Self::Cut, Self::Restarted, Self::Offline];

    /// Whether the process that served is still the one that serves.
    fn stays(self) -> bool {
        matches!(self, Self::UpToDate | Self::Online | Self::Behind | Self::Cut)
    }
}

/// The rest of the chain, as far as the table asks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Situation {
    /// Another member serves, and its process still lives.
    pub serving: bool,
    /// Another member is being filled.
    pub syncing: bool,
    /// Another member serves that is to give way because it isn't reached.
    pub cut: bool,
    /// This member comes first in chain order of those that served.
    pub first: bool,
    /// This member belongs to the serving set of the last chain version that could commit.
    pub last_set: bool,
    /// This member is to leave the chain, and why it can't or can yet.
    pub stay: Stay,
}

/// Whether a member stays in its chain.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Stay {
    /// For good.
    Stays,
    /// It is to leave as soon as all that stay serve.
    Leaving,
    /// All that stay serve: the chain doesn't need it any more.
    Released,
}

impl Stay {
    pub const ALL: [Self; 3] = [Self::Stays, Self::Leaving, Self::Released];
}

impl Situation {
    /// All that can be: whoever is released leaves others that serve.
    pub fn all() -> impl Iterator<Item = Self> {
        let of = |bits: u8, stay| Self {
            cut: bits & 16 != 0,
            serving: bits & 8 != 0,
            syncing: bits & 4 != 0,
            first: bits & 2 != 0,
            last_set: bits & 1 != 0,
            stay,
        };
        let every = Stay::ALL.into_iter().flat_map(move |stay| (0..32).map(move |bits| of(bits, stay)));
        every.filter(|at| at.serving || at.stay != Stay::Released && !at.cut)
    }
}

/// What a row asks of the situation; `None` doesn't care.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct When {
    pub serving: Option<bool>,
    pub syncing: Option<bool>,
    pub cut: Option<bool>,
    pub first: Option<bool>,
    pub last_set: Option<bool>,
    /// Any of these.
    pub stay: &'static [Stay],
}

const ANY: When =
    When { serving: None, syncing: None, cut: None, first: None, last_set: None, stay: &Stay::ALL };
const NEEDED: When = When { stay: &[Stay::Stays, Stay::Leaving], ..ANY };
const STAYS: When = When { stay: &[Stay::Stays], ..ANY };
const RELEASED: When = When { stay: &[Stay::Released], ..ANY };
const SERVED: When = When { serving: Some(true), ..ANY };
const UNSERVED: When = When { serving: Some(false), ..ANY };

impl When {
    fn holds(self, situation: Situation) -> bool {
        let agrees = |asked: Option<bool>, found: bool| asked.is_none_or(|asked| asked == found);
        agrees(self.serving, situation.serving)
            && agrees(self.syncing, situation.syncing)
            && agrees(self.cut, situation.cut)
            && agrees(self.first, situation.first)
            && agrees(self.last_set, situation.last_set)
            && self.stay.contains(&situation.stay)
    }

    fn render(self) -> String {
        let say = |asked: Option<bool>, yes: &'static str, no: &'static str| match asked {
            Some(true) => Some(yes),
            Some(false) => Some(no),
            None => None,
        };
        let stay = match self.stay {
            [Stay::Stays] => Some("stays in the chain"),
            [Stay::Leaving] => Some("to leave, but some that stay don't serve yet"),
            [Stay::Released] => Some("to leave, and all that stay serve"),
            [Stay::Stays, Stay::Leaving] => Some("stays, or is needed until all that stay serve"),
            _ => None,
        };
        let parts = [
            stay,
            say(self.serving, "somebody else serves", "nobody else serves"),
            say(self.syncing, "somebody is being filled", "nobody is being filled"),
            say(self.cut, "somebody who serves isn't reached", "whoever serves is reached"),
            say(self.first, "first of those that served", "not first of those that served"),
            say(self.last_set, "of the last serving set", "not of the last serving set"),
        ];
        parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
    }
}

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub public: &'static [Public],
    pub local: &'static [Local],
    pub when: When,
    /// `None`: it is no member any more.
    pub next: Option<Public>,
    pub why: &'static str,
}

const ALIVE: &[Local] = &[Local::UpToDate, Local::Online, Local::Behind, Local::Cut, Local::Restarted];
const UNFILLED: &[Local] = &[Local::Online, Local::Behind, Local::Cut, Local::Restarted];
const SAME: &[Local] = &[Local::UpToDate, Local::Online, Local::Behind];
const GONE: &[Local] = &[Local::Restarted, Local::Offline];

/// The table. Every combination of state, local state and situation matches exactly one row: a test tries them all.
pub const TABLE: &[Row] = &[
    Row {
        public: &[Public::Serving],
        local: SAME,
        when: NEEDED,
        next: Some(Public::Serving),
        why: "nothing happened",
    },
    Row {
        public: &[Public::Serving],
        local: SAME,
        when: When { syncing: Some(false), ..RELEASED },
        next: Some(Public::Syncing),
        why: "it answers no more reads, and everything is still sent to it until it knows that",
    },
    Row {
        public: &[Public::Serving],
        local: SAME,
        when: When { syncing: Some(true), ..RELEASED },
        next: Some(Public::Serving),
        why: "one at a time",
    },
    Row {
        public: &[Public::Serving],
        local: &[Local::Cut],
        when: When { syncing: Some(false), ..SERVED },
        next: Some(Public::Syncing),
        why: "it goes behind somebody who may reach it, and answers no reads meanwhile",
    },
    Row {
        public: &[Public::Serving],
        local: &[Local::Cut],
        when: When { syncing: Some(true), ..SERVED },
        next: Some(Public::Serving),
        why: "one at a time",
    },
    Row {
        public: &[Public::Serving],
        local: &[Local::Cut],
        when: UNSERVED,
        next: Some(Public::Serving),
        why: "nobody else does",
    },
    Row {
        public: &[Public::Serving],
        local: GONE,
        when: SERVED,
        next: Some(Public::Offline),
        why: "the others go on without it, so it misses updates from now on; a new incarnation means that the old \
              one died",
    },
    Row {
        public: &[Public::Serving],
        local: GONE,
        when: When { first: Some(true), ..UNSERVED },
        next: Some(Public::LastServing),
        why: "it holds every acknowledged update and nobody else goes on",
    },
    Row {
        public: &[Public::Serving],
        local: GONE,
        when: When { first: Some(false), ..UNSERVED },
        next: Some(Public::Offline),
        why: "complete as well, and remembered in the last serving set",
    },
    Row {
        public: &[Public::LastServing],
        local: ALIVE,
        when: UNSERVED,
        next: Some(Public::Serving),
        why: "the copy is complete: nothing was committed since",
    },
    Row {
        public: &[Public::LastServing],
        local: &[Local::Offline],
        when: UNSERVED,
        next: Some(Public::LastServing),
        why: "still the last complete copy",
    },
    Row {
        public: &[Public::LastServing],
        local: &Local::ALL,
        when: SERVED,
        next: Some(Public::Offline),
        why: "another one of the last serving set came back first",
    },
    Row {
        public: &[Public::Syncing],
        local: &[Local::UpToDate],
        when: NEEDED,
        next: Some(Public::Serving),
        why: "it has everything, under this very chain version",
    },
    Row {
        public: &[Public::Syncing],
        local: &[Local::UpToDate],
        when: RELEASED,
        next: None,
        why: "it knows the chain version under which it answers no reads: nobody can read there what is out of date",
    },
    Row {
        public: &[Public::Syncing],
        local: &[Local::Behind, Local::Cut],
        when: SERVED,
        next: Some(Public::Syncing),
        why: "filling goes on",
    },
    Row {
        public: &[Public::Syncing],
        local: &[Local::Online],
        when: When { cut: Some(false), ..SERVED },
        next: Some(Public::Syncing),
        why: "filling goes on",
    },
    Row {
        public: &[Public::Syncing],
        local: &[Local::Online],
        when: When { cut: Some(true), ..SERVED },
        next: Some(Public::Waiting),
        why: "it makes room for the one that isn't reached: one at a time, and writes wait for that one",
    },
    Row {
        public: &[Public::Syncing],
        local: &[Local::Online],
        when: UNSERVED,
        next: Some(Public::Waiting),
        why: "whoever filled it is gone",
    },
    Row {
        public: &[Public::Syncing],
        local: &[Local::Behind, Local::Cut],
        when: UNSERVED,
        next: Some(Public::Syncing),
        why: "it may have served and not know that it doesn't: nothing is to be committed without it until it says so",
    },
    Row {
        public: &[Public::Syncing],
        local: &[Local::Restarted],
        when: ANY,
        next: Some(Public::Waiting),
        why: "the process that was being filled died: filling starts over under a new chain version",
    },
    Row {
        public: &[Public::Syncing],
        local: &[Local::Offline],
        when: ANY,
        next: Some(Public::Offline),
        why: "it misses updates from now on",
    },
    Row {
        public: &[Public::Waiting, Public::Offline],
        local: &Local::ALL,
        when: RELEASED,
        next: None,
        why: "its place is taken",
    },
    Row {
        public: &[Public::Waiting, Public::Offline],
        local: ALIVE,
        when: When { stay: &[Stay::Leaving], ..SERVED },
        next: Some(Public::Waiting),
        why: "another one is filled instead",
    },
    Row {
        public: &[Public::Waiting, Public::Offline],
        local: ALIVE,
        when: When { serving: Some(true), syncing: Some(false), ..STAYS },
        next: Some(Public::Syncing),
        why: "there is somebody to fill it",
    },
    Row {
        public: &[Public::Waiting, Public::Offline],
        local: ALIVE,
        when: When { serving: Some(true), syncing: Some(true), ..STAYS },
        next: Some(Public::Waiting),
        why: "one at a time",
    },
    Row {
        public: &[Public::Waiting, Public::Offline],
        local: ALIVE,
        when: When { last_set: Some(true), ..UNSERVED },
        next: Some(Public::Serving),
        why: "first of the last serving set to come back: every acknowledged update is durable on each of that set",
    },
    Row {
        public: &[Public::Waiting, Public::Offline],
        local: UNFILLED,
        when: When { last_set: Some(false), ..UNSERVED },
        next: Some(Public::Waiting),
        why: "nobody is there to fill it",
    },
    Row {
        public: &[Public::Waiting, Public::Offline],
        local: &[Local::UpToDate],
        when: When { last_set: Some(false), ..UNSERVED },
        next: Some(Public::Serving),
        why: "it served before those that are gone, nothing was committed without it since, and nothing that it had then was replaced",
    },
    Row {
        public: &[Public::Waiting, Public::Offline],
        local: &[Local::Offline],
        when: NEEDED,
        next: Some(Public::Offline),
        why: "still gone",
    },
];

/// The row that applies.
pub fn row(public: Public, local: Local, situation: Situation) -> &'static Row {
    let matches =
        |row: &&Row| row.public.contains(&public) && row.local.contains(&local) && row.when.holds(situation);
    let found = TABLE.iter().find(matches);
    found.unwrap_or_else(|| unreachable!("the table covers {public:?} {local:?} {situation:?}"))
}

/// A member as [`advance`] sees it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Seat {
    pub target: TargetId,
    pub public: Public,
    pub local: Local,
    /// It is to leave the chain.
    pub leaving: bool,
}

/// Applies the table to a chain once: members in order, each seeing what those before it have become. Returns the
/// members in their new order (by state, else as they were; without those that have left), and whether anything changed,
/// which raises the chain version. `last_set` is the serving set of the last chain version that could commit.
pub fn advance(seats: &[Seat], last_set: &BTreeSet<TargetId>) -> (Vec<(TargetId, Public)>, bool) {
    let mut now: Vec<Option<Public>> = seats.iter().map(|seat| Some(seat.public)).collect();
    let first = seats.iter().position(|seat| seat.public == Public::Serving);
    for (at, seat) in seats.iter().enumerate() {
        // One that only now came to serve lives; one that served before does if its process stayed.
        let serves = |other: usize| {
            let came = seats[other].public != Public::Serving;
            now[other] == Some(Public::Serving) && (came || seats[other].local.stays())
        };
        let others = || (0..seats.len()).filter(|other| *other != at);
        let mut staying = others().filter(|other| !seats[*other].leaving).peekable();
        let stay = match seat.leaving {
            false => Stay::Stays,
            true if staying.peek().is_some() && staying.all(serves) => Stay::Released,
            true => Stay::Leaving,
        };
        let situation = Situation {
            serving: others().any(serves),
            syncing: others().any(|other| now[other] == Some(Public::Syncing)),
            cut: others().any(|other| serves(other) && seats[other].local == Local::Cut),
            first: first == Some(at),
            last_set: last_set.contains(&seat.target),
            stay,
        };
        now[at] = row(seat.public, seat.local, situation).next;
    }
    let left = |(seat, public): (&Seat, &Option<Public>)| Some((seat.target, (*public)?));
    let mut members: Vec<(TargetId, Public)> = seats.iter().zip(&now).filter_map(left).collect();
    members.sort_by_key(|(_, public)| *public);
    let changed = members.len() != seats.len()
        || members.iter().zip(seats).any(|(new, old)| *new != (old.target, old.public));
    (members, changed)
}

/// The table as the documentation shows it.
pub fn render() -> String {
    let names = |list: Vec<String>| list.join(", ");
    let mut out = String::from(
        "# The state table of targets\n\n\
         Rendered from `mgmtd/src/cluster/transition.rs`; a test compares. To render it again:\n\
         `COREFS_RENDER=1 cargo test -p corefs-mgmtd --test state_table`.\n\n\
         Members of a chain are looked at one after the other, in chain order. Afterwards they are ordered: Serving,\n\
         LastServing, Syncing, Waiting, Offline (as they were within each). Any change raises the chain version by one,\n\
         in the transaction that checks the manager's lease.\n\n\
         The table is applied again until nothing changes, and what that amounts to is stored and told at once. Why nothing\n\
         acknowledged is lost is in `mgmtd/src/cluster/reconfigure.rs`.\n\n\
         Local state: *UpToDate* names the chain version of the sync that made it so, or under which nobody serves and nothing was replaced that it\n\
         had when it served; other claims count as Online; *Behind* is alive\n\
         and hasn't said that it knows the present chain version; *Cut* is alive and serves, and its neighbour in the chain can't reach it, or it can't\n\
         reach its neighbour, and it is the one to blame (`mgmtd/src/cluster/cuts.rs`);\n\
         *Restarted* is alive with a new incarnation; *Offline* is a lease that ran out, a dead slice, a target that couldn't\n\
         take what it was to be filled with and says so for some seconds, or one that isn't reached by who is to fill it, or wasn't some seconds ago.\n\n\
         A member can be asked to leave its chain (its disk or node is to be emptied, or another one is to have its share).\n\
         Another member takes its place first.\n\n\
         | public | local | condition | next | why |\n|---|---|---|---|---|\n",
    );
    for row in TABLE {
        let public = names(row.public.iter().map(|public| format!("{public:?}")).collect());
        let local = names(row.local.iter().map(|local| format!("{local:?}")).collect());
        let next = row.next.map_or_else(|| "*gone*".into(), |next| format!("{next:?}"));
        let _infallible =
            writeln!(out, "| {public} | {local} | {} | {next} | {} |", row.when.render(), row.why);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_combination_matches_exactly_one_row() {
        for public in Public::ALL {
            for local in Local::ALL {
                for situation in Situation::all() {
                    let matching = TABLE
                        .iter()
                        .filter(|row| row.public.contains(&public) && row.local.contains(&local))
                        .filter(|row| row.when.holds(situation))
                        .count();
                    assert_eq!(matching, 1, "{public:?} {local:?} {situation:?}");
                }
            }
        }
    }

    #[test]
    fn states_survive_the_wire() {
        for public in Public::ALL {
            assert_eq!(Public::from_wire(public.to_wire()), Some(public));
        }
        assert_eq!(Public::from_wire(TargetState(9)), None);
    }

    fn seats() -> impl Strategy<Value = Vec<Seat>> {
        let member = (0..5usize, 0..6usize, any::<bool>());
        proptest::collection::vec(member, 1..5).prop_map(|members| {
            let mut seats: Vec<Seat> = members
                .into_iter()
                .enumerate()
                .map(|(at, (public, local, leaving))| Seat {
                    target: TargetId(at as u64),
                    public: Public::ALL[public],
                    local: Local::ALL[local],
                    leaving,
                })
                .collect();
            seats.sort_by_key(|seat| seat.public);
            seats
        })
    }

    proptest! {
        /// A chain that served keeps a complete copy on record, nobody incomplete comes to serve, at most one more
        /// is filled, and the order holds.
        #[test]
        fn a_chain_never_forgets_its_last_complete_copy(seats in seats(), all in any::<bool>()) {
            let served: BTreeSet<TargetId> = seats
                .iter()
                .filter(|seat| matches!(seat.public, Public::Serving | Public::LastServing))
                .map(|seat| seat.target)
                .collect();
            let last_set = if all { served.clone() } else { BTreeSet::new() };
            let (members, changed) = advance(&seats, &last_set);
            prop_assert!(members.is_sorted_by_key(|(_, public)| *public));
            let state_of = |target: TargetId| members.iter().find(|(id, _)| *id == target).map(|(_, public)| *public);
            let complete = |(_, public): &&(TargetId, Public)| matches!(public, Public::Serving | Public::LastServing);
            if !served.is_empty() {
                prop_assert!(members.iter().any(|member| complete(&member)));
            }
            for seat in &seats {
                let isnt_gone = matches!(seat.public, Public::Syncing | Public::Waiting | Public::Offline);
                let was_filled = isnt_gone && seat.local == Local::UpToDate;
                if state_of(seat.target) == Some(Public::Serving) {
                    prop_assert!(served.contains(&seat.target) || was_filled);
                    prop_assert!(seat.local != Local::Offline);
                }
            }
            let syncing = |list: &mut dyn Iterator<Item = Public>| list.filter(|public| *public == Public::Syncing).count();
            let before = syncing(&mut seats.iter().map(|seat| seat.public));
            prop_assert!(syncing(&mut members.iter().map(|(_, public)| *public)) <= before.max(1));
            let same = seats.iter().map(|seat| (seat.target, seat.public)).eq(members.iter().copied());
            prop_assert_eq!(changed, !same);
        }
    }

    #[test]
    fn of_two_that_come_back_after_total_loss_one_serves_and_one_is_filled() {
        let seat = |id, public, local| Seat { target: TargetId(id), public, local, leaving: false };
        let last_set = [TargetId(1), TargetId(2)].into();
        let both = [seat(1, Public::Serving, Local::Offline), seat(2, Public::Serving, Local::Offline)];
        let (members, _) = advance(&both, &last_set);
        assert_eq!(members, [(TargetId(1), Public::LastServing), (TargetId(2), Public::Offline)]);
        let back =
            [seat(1, Public::LastServing, Local::Restarted), seat(2, Public::Offline, Local::Restarted)];
        let (members, changed) = advance(&back, &last_set);
        assert!(changed);
        assert_eq!(members, [(TargetId(1), Public::Serving), (TargetId(2), Public::Syncing)]);
        let second =
            [seat(1, Public::LastServing, Local::Offline), seat(2, Public::Offline, Local::Restarted)];
        let (members, _) = advance(&second, &last_set);
        assert_eq!(members, [(TargetId(2), Public::Serving), (TargetId(1), Public::LastServing)]);
    }
}
