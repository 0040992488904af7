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
    /// Alive and filled completely, under the chain version that is still the chain's (other claims are `Online`).
    UpToDate,
    /// Alive.
    Online,
    /// Alive, in a process that isn't the one last heard of: the old one died.
    Restarted,
    /// Its node's lease ran out, its slice is dead, or its recovery was not clean.
    Offline,
}

impl Local {
    pub const ALL: [Self; 4] = [Self::UpToDate, Self::Online, Self::Restarted, Self::Offline];

    /// Whether the process that served is still the one that serves.
    fn stays(self) -> bool {
        matches!(self, Self::UpToDate | Self::Online)
    }
}

/// The rest of the chain, as far as the table asks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Situation {
    /// Another member serves, and its process still lives.
    pub serving: bool,
    /// Another member is being filled.
    pub syncing: bool,
    /// This member comes first in chain order of those that served.
    pub first: bool,
    /// This member belongs to the serving set of the last chain version that could commit.
    pub last_set: bool,
}

impl Situation {
    /// All sixteen.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..16).map(|bits| Self {
            serving: bits & 8 != 0,
            syncing: bits & 4 != 0,
            first: bits & 2 != 0,
            last_set: bits & 1 != 0,
        })
    }
}

/// What a row asks of the situation; `None` doesn't care.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct When {
    pub serving: Option<bool>,
    pub syncing: Option<bool>,
    pub first: Option<bool>,
    pub last_set: Option<bool>,
}

const ANY: When = When { serving: None, syncing: None, first: None, last_set: None };
const SERVED: When = When { serving: Some(true), ..ANY };
const UNSERVED: When = When { serving: Some(false), ..ANY };

impl When {
    fn holds(self, situation: Situation) -> bool {
        let agrees = |asked: Option<bool>, found: bool| asked.is_none_or(|asked| asked == found);
        agrees(self.serving, situation.serving)
            && agrees(self.syncing, situation.syncing)
            && agrees(self.first, situation.first)
            && agrees(self.last_set, situation.last_set)
    }

    fn render(self) -> String {
        let say = |asked: Option<bool>, yes: &'static str, no: &'static str| match asked {
            Some(true) => Some(yes),
            Some(false) => Some(no),
            None => None,
        };
        let parts = [
            say(self.serving, "somebody else serves", "nobody else serves"),
            say(self.syncing, "somebody is being filled", "nobody is being filled"),
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
    pub next: Public,
    pub why: &'static str,
}

const ALIVE: &[Local] = &[Local::UpToDate, Local::Online, Local::Restarted];
const SAME: &[Local] = &[Local::UpToDate, Local::Online];
const GONE: &[Local] = &[Local::Restarted, Local::Offline];

/// The table. Every combination of state, local state and situation matches exactly one row: a test tries them all.
pub const TABLE: &[Row] = &[
    Row {
        public: &[Public::Serving],
        local: SAME,
        when: ANY,
        next: Public::Serving,
        why: "nothing happened",
    },
    Row {
        public: &[Public::Serving],
        local: GONE,
        when: SERVED,
        next: Public::Offline,
        why: "the others go on without it, so it misses updates from now on; a new incarnation means that the old \
              one died",
    },
    Row {
        public: &[Public::Serving],
        local: GONE,
        when: When { first: Some(true), ..UNSERVED },
        next: Public::LastServing,
        why: "it holds every acknowledged update and nobody else goes on",
    },
    Row {
        public: &[Public::Serving],
        local: GONE,
        when: When { first: Some(false), ..UNSERVED },
        next: Public::Offline,
        why: "complete as well, and remembered in the last serving set",
    },
    Row {
        public: &[Public::LastServing],
        local: ALIVE,
        when: UNSERVED,
        next: Public::Serving,
        why: "the copy is complete: nothing was committed since",
    },
    Row {
        public: &[Public::LastServing],
        local: &[Local::Offline],
        when: UNSERVED,
        next: Public::LastServing,
        why: "still the last complete copy",
    },
    Row {
        public: &[Public::LastServing],
        local: &Local::ALL,
        when: SERVED,
        next: Public::Offline,
        why: "another one of the last serving set came back first",
    },
    Row {
        public: &[Public::Syncing],
        local: &[Local::UpToDate],
        when: ANY,
        next: Public::Serving,
        why: "it has everything, under this very chain version",
    },
    Row {
        public: &[Public::Syncing],
        local: &[Local::Online],
        when: SERVED,
        next: Public::Syncing,
        why: "filling goes on",
    },
    Row {
        public: &[Public::Syncing],
        local: &[Local::Online],
        when: UNSERVED,
        next: Public::Waiting,
        why: "whoever filled it is gone",
    },
    Row {
        public: &[Public::Syncing],
        local: &[Local::Restarted],
        when: ANY,
        next: Public::Waiting,
        why: "the process that was being filled died: filling starts over under a new chain version",
    },
    Row {
        public: &[Public::Syncing],
        local: &[Local::Offline],
        when: ANY,
        next: Public::Offline,
        why: "it misses updates from now on",
    },
    Row {
        public: &[Public::Waiting, Public::Offline],
        local: ALIVE,
        when: When { syncing: Some(false), ..SERVED },
        next: Public::Syncing,
        why: "there is somebody to fill it",
    },
    Row {
        public: &[Public::Waiting, Public::Offline],
        local: ALIVE,
        when: When { syncing: Some(true), ..SERVED },
        next: Public::Waiting,
        why: "one at a time",
    },
    Row {
        public: &[Public::Waiting, Public::Offline],
        local: ALIVE,
        when: When { last_set: Some(true), ..UNSERVED },
        next: Public::Serving,
        why: "first of the last serving set to come back: every acknowledged update is durable on each of that set",
    },
    Row {
        public: &[Public::Waiting, Public::Offline],
        local: ALIVE,
        when: When { last_set: Some(false), ..UNSERVED },
        next: Public::Waiting,
        why: "nobody is there to fill it",
    },
    Row {
        public: &[Public::Waiting, Public::Offline],
        local: &[Local::Offline],
        when: ANY,
        next: Public::Offline,
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
}

/// Applies the table to a chain once: members in order, each seeing what those before it have become. Returns the
/// members in their new order (by state, else as they were), and whether anything changed, which raises the chain
/// version. `last_set` is the serving set of the last chain version that could commit.
pub fn advance(seats: &[Seat], last_set: &BTreeSet<TargetId>) -> (Vec<(TargetId, Public)>, bool) {
    let mut now: Vec<Public> = seats.iter().map(|seat| seat.public).collect();
    let first = seats.iter().position(|seat| seat.public == Public::Serving);
    for (at, seat) in seats.iter().enumerate() {
        // One that only now came to serve lives; one that served before does if its process stayed.
        let serves = |other: usize| {
            let came = seats[other].public != Public::Serving;
            now[other] == Public::Serving && (came || seats[other].local.stays())
        };
        let others = || (0..seats.len()).filter(|other| *other != at);
        let situation = Situation {
            serving: others().any(serves),
            syncing: others().any(|other| now[other] == Public::Syncing),
            first: first == Some(at),
            last_set: last_set.contains(&seat.target),
        };
        now[at] = row(seat.public, seat.local, situation).next;
    }
    let mut members: Vec<(TargetId, Public)> =
        seats.iter().zip(&now).map(|(seat, public)| (seat.target, *public)).collect();
    members.sort_by_key(|(_, public)| *public);
    let changed = members.iter().zip(seats).any(|(new, old)| *new != (old.target, old.public));
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
         Local state: *UpToDate* names the chain version of the sync that made it so, other claims count as Online;\n\
         *Restarted* is alive with a new incarnation; *Offline* is a lease that ran out, a dead slice, or a target that couldn't\n\
         take what it was to be filled with and says so for some seconds.\n\n\
         | public | local | condition | next | why |\n|---|---|---|---|---|\n",
    );
    for row in TABLE {
        let public = names(row.public.iter().map(|public| format!("{public:?}")).collect());
        let local = names(row.local.iter().map(|local| format!("{local:?}")).collect());
        let _infallible =
            writeln!(out, "| {public} | {local} | {} | {:?} | {} |", row.when.render(), row.next, row.why);
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
        let member = (0..5usize, 0..4usize);
        proptest::collection::vec(member, 1..5).prop_map(|members| {
            let mut seats: Vec<Seat> = members
                .into_iter()
                .enumerate()
                .map(|(at, (public, local))| Seat {
                    target: TargetId(at as u64),
                    public: Public::ALL[public],
                    local: Local::ALL[local],
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
                let was_filled = seat.public == Public::Syncing && seat.local == Local::UpToDate;
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
        let seat = |id, public, local| Seat { target: TargetId(id), public, local };
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
