//! Names that this client takes away, and the files they led to: who has such a file open at that moment has to be kept from losing it.

use corefs_wire::InodeId;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

/// Files remembered: more than names go while one open is under way.
const LATELY: usize = 256;

#[derive(Default)]
pub struct NamesGone {
    under_way: Cell<u32>,
    lately: RefCell<VecDeque<InodeId>>,
}

/// A name is being taken away until it is dropped.
pub struct Taking<'a>(&'a NamesGone);

impl Drop for Taking<'_> {
    fn drop(&mut self) {
        self.0.under_way.set(self.0.under_way.get() - 1);
    }
}

impl NamesGone {
    pub fn taking(&self) -> Taking<'_> {
        self.under_way.set(self.under_way.get() + 1);
        Taking(self)
    }

    /// Whether any name is being taken away: of which file that is nobody knows before the answer.
    pub fn under_way(&self) -> bool {
        self.under_way.get() > 0
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
    }

    /// Whether a name of it went lately.
    pub fn lately(&self, inode: InodeId) -> bool {
        self.lately.borrow().contains(&inode)
    }
}
