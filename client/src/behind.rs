//! What was written to a file and is not in storage yet: which bytes, in which buffers, on their way or not. Pure, over any
//! kind of buffer.
//!
//! A file is cut into cells (what one update may carry: a chunk, or a frame of it). A cell has at most one *extent* of bytes
//! that wait; a *flight* is an extent on its way to storage.
//!
//! Invariants
//! - An extent lies in one cell. Writes that touch it extend it; one that doesn't makes it leave first.
//! - Flights that overlap go one after the other, in the order of their numbers: [`Behind::may_fly`].
//! - Every byte is counted from the moment it is taken until its flight has landed, by the capacity of its buffer.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

/// Bytes that wait: `buffer[skip..skip + len]` belongs at `start` of the file.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Extent<B> {
    pub start: u64,
    pub len: usize,
    pub skip: usize,
    pub buffer: B,
    pub capacity: usize,
}

impl<B> Extent<B> {
    pub fn end(&self) -> u64 {
        self.start + self.len as u64
    }

    /// Where in the buffer the file's byte `offset` is, if the buffer has room for it.
    fn position(&self, offset: u64) -> Option<usize> {
        let base = self.start as i128 - self.skip as i128;
        usize::try_from(i128::from(offset) - base).ok().filter(|at| *at <= self.capacity)
    }
}

/// What becomes of a write that lies in one cell.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Fit {
    /// It goes into the extent's buffer at this position.
    Into(usize),
    /// The cell's extent must move to a buffer for this range of the file first.
    Grow(Range<u64>),
    /// The cell has no extent.
    New,
    /// The cell's extent must leave first.
    Apart,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Flight {
    number: u64,
    range: Range<u64>,
    capacity: usize,
}

/// The unwritten bytes of one file.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Behind<B> {
    cell: u64,
    waiting: BTreeMap<u64, Extent<B>>,
    flights: Vec<Flight>,
    next: u64,
    bytes: usize,
    /// When the oldest waiting byte was taken.
    since: Option<Duration>,
}

impl<B> Behind<B> {
    /// `cell`: bytes of a cell, a power of two.
    pub fn new(cell: u32) -> Self {
        assert!(cell.is_power_of_two());
        Self {
            cell: cell.into(),
            waiting: BTreeMap::new(),
            flights: Vec::new(),
            next: 1,
            bytes: 0,
            since: None,
        }
    }

    /// Bytes of memory held.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn flying(&self) -> usize {
        self.flights.len()
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.flights.is_empty()
    }

    pub fn waiting_since(&self) -> Option<Duration> {
        self.since
    }

    /// The end of the last byte held; 0 if none is.
    pub fn end(&self) -> u64 {
        let waiting = self.waiting.last_key_value().map_or(0, |(_, extent)| extent.end());
        self.flights.iter().map(|flight| flight.range.end).max().unwrap_or(0).max(waiting)
    }

    /// Whether any byte of the range is held.
    #[inline]
    pub fn overlaps(&self, range: &Range<u64>) -> bool {
        !self.is_empty()
            && (self.flights.iter().any(|flight| meet(&flight.range, range))
                || self.waiting_cells(range).next().is_some())
    }

    /// The cells that hold waiting bytes of the range.
    pub fn waiting_cells(&self, range: &Range<u64>) -> impl Iterator<Item = u64> + use<'_, B> {
        let range = range.clone();
        let cells = range.start / self.cell..=range.end.saturating_sub(1) / self.cell;
        let found = if range.is_empty() { None } else { Some(self.waiting.range(cells)) };
        found
            .into_iter()
            .flatten()
            .filter_map(move |(cell, extent)| meet(&(extent.start..extent.end()), &range).then_some(*cell))
    }

    /// All cells with waiting bytes.
    pub fn cells(&self) -> Vec<u64> {
        self.waiting.keys().copied().collect()
    }

    /// What becomes of a write of `range`, which lies in one cell.
    pub fn fit(&self, range: &Range<u64>) -> Fit {
        let cell = range.start / self.cell;
        debug_assert!(!range.is_empty() && (range.end - 1) / self.cell == cell);
        let Some(extent) = self.waiting.get(&cell) else { return Fit::New };
        if range.start > extent.end() || range.end < extent.start {
            return Fit::Apart;
        }
        match (extent.position(range.start), extent.position(range.end)) {
            (Some(at), Some(_)) => Fit::Into(at),
            _ => Fit::Grow(range.start.min(extent.start)..range.end.max(extent.end())),
        }
    }

    /// The extent that a write fits into, made to include it. Only after [`Fit::Into`].
    pub fn extend(&mut self, range: &Range<u64>) -> Option<&mut Extent<B>> {
        let extent = self.waiting.get_mut(&(range.start / self.cell))?;
        let base = extent.start - extent.skip as u64;
        let (start, end) = (extent.start.min(range.start), extent.end().max(range.end));
        extent.start = start;
        extent.skip = (start - base) as usize;
        extent.len = (end - start) as usize;
        debug_assert!(extent.skip + extent.len <= extent.capacity);
        Some(extent)
    }

    /// Takes an extent into a cell that has none.
    pub fn insert(&mut self, extent: Extent<B>, now: Duration) {
        debug_assert!(extent.len > 0 && extent.skip + extent.len <= extent.capacity);
        self.bytes += extent.capacity;
        self.since.get_or_insert(now);
        let old = self.waiting.insert(extent.start / self.cell, extent);
        assert!(old.is_none(), "a cell has one extent");
    }

    /// Takes the waiting extent of a cell out, to move it to a larger buffer.
    pub fn remove(&mut self, cell: u64) -> Option<Extent<B>> {
        let extent = self.waiting.remove(&cell)?;
        self.bytes -= extent.capacity;
        if self.waiting.is_empty() {
            self.since = None;
        }
        Some(extent)
    }

    /// Whether the extent of the cell of `offset` can't get any larger at its end.
    pub fn is_full(&self, offset: u64) -> bool {
        let cell = offset / self.cell;
        self.waiting.get(&cell).is_some_and(|extent| extent.end() == (cell + 1) * self.cell)
    }

    /// Lets the extent of a cell leave: its number, and itself.
    pub fn launch(&mut self, cell: u64) -> Option<(u64, Extent<B>)> {
        let extent = self.remove(cell)?;
        let number = self.next;
        self.next += 1;
        self.bytes += extent.capacity;
        self.flights.push(Flight { number, range: extent.start..extent.end(), capacity: extent.capacity });
        Some((number, extent))
    }

    /// Whether no earlier flight overlaps this one.
    pub fn may_fly(&self, number: u64) -> bool {
        let Some(flight) = self.flights.iter().find(|flight| flight.number == number) else { return true };
        !self.flights.iter().any(|other| other.number < number && meet(&other.range, &flight.range))
    }

    /// A flight has ended, one way or the other.
    pub fn land(&mut self, number: u64) {
        if let Some(at) = self.flights.iter().position(|flight| flight.number == number) {
            self.bytes -= self.flights.swap_remove(at).capacity;
        }
    }

    /// The number of the last flight that left.
    pub fn last_flight(&self) -> u64 {
        self.next - 1
    }

    /// Whether a flight up to `number` that overlaps the range is still on its way.
    pub fn awaits(&self, range: &Range<u64>, number: u64) -> bool {
        self.flights.iter().any(|flight| flight.number <= number && meet(&flight.range, range))
    }
}

fn meet(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start.max(b.start) < a.end.min(b.end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CELL: u32 = 64;

    fn extent(start: u64, len: usize, skip: usize, capacity: usize) -> Extent<()> {
        Extent { start, len, skip, buffer: (), capacity }
    }

    fn behind(extents: &[Extent<()>]) -> Behind<()> {
        let mut out = Behind::new(CELL);
        extents.iter().for_each(|extent| out.insert(extent.clone(), Duration::ZERO));
        out
    }

    #[test]
    fn writes_that_touch_extend_and_others_push_out() {
        let state = behind(&[extent(70, 10, 6, 32)]);
        let fit = |range: Range<u64>| state.fit(&range);
        assert_eq!(fit(80..90), Fit::Into(16));
        assert_eq!(fit(75..77), Fit::Into(11));
        assert_eq!(fit(64..71), Fit::Into(0));
        assert_eq!(fit(80..97), Fit::Grow(70..97));
        assert_eq!(fit(81..90), Fit::Apart);
        assert_eq!(fit(64..69), Fit::Apart);
        assert_eq!(fit(0..64), Fit::New);
    }

    #[test]
    fn flights_that_overlap_wait_for_each_other() {
        let mut state = behind(&[extent(0, 10, 0, 16)]);
        let (first, _) = state.launch(0).unwrap();
        state.insert(extent(5, 10, 0, 16), Duration::ZERO);
        let (second, _) = state.launch(0).unwrap();
        state.insert(extent(20, 10, 0, 16), Duration::ZERO);
        let (third, _) = state.launch(0).unwrap();
        assert!(state.may_fly(first) && !state.may_fly(second) && state.may_fly(third));
        assert!(state.awaits(&(0..5), first) && !state.awaits(&(10..15), first));
        assert_eq!((state.bytes(), state.end(), state.flying()), (48, 30, 3));
        state.land(first);
        assert!(state.may_fly(second));
        state.land(second);
        state.land(third);
        assert!(state.is_empty() && state.bytes() == 0);
    }

    #[test]
    fn overlap_is_seen_in_both_kinds() {
        let mut state = behind(&[extent(10, 10, 0, 16), extent(130, 10, 0, 16)]);
        state.launch(0);
        assert!(state.overlaps(&(0..11)) && state.overlaps(&(19..30)) && state.overlaps(&(0..1000)));
        assert!(!state.overlaps(&(0..10)) && !state.overlaps(&(20..130)) && !state.overlaps(&(15..15)));
        assert!(state.overlaps(&(139..140)));
        assert_eq!(state.waiting_cells(&(0..135)).collect::<Vec<_>>(), [2]);
    }

    proptest! {
        /// Random writes, launches and landings over real bytes: whatever is held plus what has landed is what a plain
        /// file would have.
        #[test]
        fn no_byte_is_lost_or_changed(steps in prop::collection::vec((0u64..256, 1u64..64, 0u8..4), 1..60)) {
            let mut state: Behind<Vec<u8>> = Behind::new(CELL);
            let (mut model, mut stored) = (vec![0u8; 512], vec![0u8; 512]);
            let mut flying: Vec<(u64, Extent<Vec<u8>>)> = Vec::new();
            let land = |state: &mut Behind<Vec<u8>>, flying: &mut Vec<(u64, Extent<Vec<u8>>)>, stored: &mut Vec<u8>| {
                let ready: Vec<usize> = (0..flying.len()).filter(|at| state.may_fly(flying[*at].0)).collect();
                if let Some(at) = ready.last() {
                    let (number, extent) = flying.remove(*at);
                    let start = extent.start as usize;
                    stored[start..start + extent.len].copy_from_slice(&extent.buffer[extent.skip..][..extent.len]);
                    state.land(number);
                }
            };
            for (value, (start, len, step)) in steps.into_iter().enumerate() {
                let end = (start + len).min((start / 64 + 1) * 64);
                let range = start..end;
                match step {
                    0 => flying.extend(state.launch(start / 64)),
                    1 => land(&mut state, &mut flying, &mut stored),
                    _ => loop {
                        match state.fit(&range) {
                            Fit::Apart => flying.extend(state.launch(start / 64)),
                            Fit::New => state.insert(Extent { start, len: 0, skip: 0, buffer: vec![0; 64], capacity: 64 }
                                .sized((end - start) as usize), Duration::ZERO),
                            Fit::Grow(all) => {
                                let old = state.remove(start / 64).unwrap();
                                let skip = (all.start % 64) as usize;
                                let mut buffer = vec![0; 64];
                                let at = skip + (old.start - all.start) as usize;
                                buffer[at..at + old.len].copy_from_slice(&old.buffer[old.skip..][..old.len]);
                                let grown = Extent { start: old.start, len: old.len, skip: at, buffer, capacity: 64 };
                                state.insert(grown, Duration::ZERO);
                            }
                            Fit::Into(at) => {
                                let extent = state.extend(&range).unwrap();
                                extent.buffer[at..at + (end - start) as usize].fill(value as u8 + 1);
                                model[start as usize..end as usize].fill(value as u8 + 1);
                                break;
                            }
                        }
                    },
                }
            }
            for cell in state.cells() {
                flying.extend(state.launch(cell));
            }
            while !flying.is_empty() {
                land(&mut state, &mut flying, &mut stored);
            }
            prop_assert!(state.is_empty() && state.bytes() == 0);
            prop_assert_eq!(stored, model);
        }
    }

    impl<B> Extent<B> {
        fn sized(mut self, len: usize) -> Self {
            self.len = len;
            self
        }
    }
}
