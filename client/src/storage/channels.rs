//! Update channels: which (channel, sequence) the next update goes under. Pure.
//!
//! Invariants
//! - A channel that was taken isn't given out again before it is given back: one update at a time.
//! - Sequences of a channel rise by one with each update that was taken on it.
//! - A channel that isn't given back is lost for ever, and a new number takes its place: nobody knows whether its last update
//!   is still on its way.

/// Updates of one client that may be under way.
pub const CHANNELS_MAX: usize = 256;

/// One update's place: its tag without the client.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Channel {
    pub number: u32,
    pub sequence: u64,
    /// Which client's: channels of before [`Channels::start_anew`] are not taken back.
    life: u32,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Channels {
    /// Free channels and the last sequence of each.
    free: Vec<(u32, u64)>,
    next: u32,
    taken: usize,
    life: u32,
}

impl Channels {
    /// `None` when as many as may be are taken.
    pub fn take(&mut self) -> Option<Channel> {
        if self.taken >= CHANNELS_MAX {
            return None;
        }
        self.taken += 1;
        let (number, last) = self.free.pop().unwrap_or_else(|| {
            self.next = self.next.checked_add(1).expect("fewer than 2^32 updates of unknown outcome");
            (self.next, 0)
        });
        Some(Channel { number, sequence: last + 1, life: self.life })
    }

    /// The update has ended, one way or the other, and everybody knows how.
    pub fn give(&mut self, channel: Channel) {
        self.retire(channel);
        if channel.life == self.life {
            self.free.push((channel.number, channel.sequence));
        }
    }

    /// The update's outcome is unknown.
    pub fn retire(&mut self, channel: Channel) {
        assert!(channel.life != self.life || self.taken > 0, "given back more often than taken");
        if channel.life == self.life {
            self.taken -= 1;
        }
    }

    /// For another client id: nothing is remembered.
    pub fn start_anew(&mut self) {
        *self = Self { life: self.life + 1, ..Self::default() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_rise_and_lost_channels_stay_lost() {
        let mut channels = Channels::default();
        let (a, b) = (channels.take().unwrap(), channels.take().unwrap());
        assert_eq!(((a.number, a.sequence), (b.number, b.sequence)), ((1, 1), (2, 1)));
        channels.give(a);
        let again = channels.take().unwrap();
        assert_eq!((again.number, again.sequence), (1, 2));
        channels.retire(again);
        let other = channels.take().unwrap();
        assert_eq!((other.number, other.sequence), (3, 1));
    }

    #[test]
    fn they_are_bounded_and_losing_one_makes_room() {
        let mut channels = Channels::default();
        let all: Vec<Channel> = std::iter::from_fn(|| channels.take()).collect();
        assert_eq!(all.len(), CHANNELS_MAX);
        channels.retire(all[0]);
        assert_eq!(channels.take().map(|channel| channel.number), Some(CHANNELS_MAX as u32 + 1));
        assert_eq!(channels.take(), None);
    }

    #[test]
    fn another_client_starts_anew() {
        let mut channels = Channels::default();
        let old = channels.take().unwrap();
        channels.start_anew();
        channels.give(old);
        let new = channels.take().unwrap();
        assert_eq!((new.number, new.sequence), (1, 1));
        assert_ne!(new, old);
    }
}
