//! Peers that owe something and stand still.

/// Looks in a row at which an accepted peer may be found to owe something and to have given nothing, before it is given up: 10 s
/// at least, at one look in a tenth of a second. Not by the clock, so that a process that stood still itself blames nobody.
const STALLED_LOOKS: u32 = 100;

/// What a peer owes.
#[derive(Default)]
pub struct Debt {
    given: u64,
    looks: u32,
}

impl Debt {
    /// Whether it has been owed for too long, while so much in all was given: bytes, or whatever else is counted.
    pub fn look(&mut self, owed: bool, given: u64) -> bool {
        self.looks = if owed && given == self.given { self.looks + 1 } else { 0 };
        self.given = given;
        self.looks > STALLED_LOOKS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_owed_all_the_time_and_never_given_is_too_long() {
        let mut debt = Debt::default();
        let mut looks = |owed, given| (0..STALLED_LOOKS).any(|_| debt.look(owed, given));
        assert!(!looks(true, 0) && !looks(true, 1) && !looks(false, 1) && !looks(true, 1));
        assert!(debt.look(true, 1));
    }
}
