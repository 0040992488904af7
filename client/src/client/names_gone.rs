//! Files that lost a name to this client lately: an open that was under way then couldn't be named among those to keep.

use corefs_wire::InodeId;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

/// Files remembered. Who was under way while more went is told that its file may be among them.
const LATELY: usize = 256;

#[derive(Default)]
pub struct NamesGone {
    count: Cell<u64>,
    /// The last of them, oldest first.
    lately: RefCell<VecDeque<InodeId>>,
}

impl NamesGone {
    /// How many went so far.
    pub fn count(&self) -> u64 {
        self.count.get()
    }

    /// What a name led to that was taken away. 0: nothing.
    pub fn add(&self, inode: InodeId) {
        if inode == InodeId(0) {
            return;
        }
        let mut lately = self.lately.borrow_mut();
        if lately.len() == LATELY {
            lately.pop_front();
        }
        lately.push_back(inode);
        self.count.set(self.count.get() + 1);
    }

    /// Whether a name of it may have gone since there were so many.
    pub fn since(&self, count: u64, inode: InodeId) -> bool {
        let new = (self.count.get() - count) as usize;
        new > LATELY || self.lately.borrow().iter().rev().take(new).any(|gone| *gone == inode)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_went_meanwhile_counts() {
        let gone = NamesGone::default();
        gone.add(InodeId(5));
        gone.add(InodeId(0));
        let before = gone.count();
        assert!(gone.since(0, InodeId(5)) && !gone.since(before, InodeId(5)));
        gone.add(InodeId(6));
        assert!(gone.since(before, InodeId(6)) && !gone.since(before, InodeId(5)));
        (0..LATELY as u64).for_each(|number| gone.add(InodeId(100 + number)));
        assert!(gone.since(before, InodeId(7)), "nobody knows any more");
        assert!(!gone.since(before + 1, InodeId(6)));
    }
}
