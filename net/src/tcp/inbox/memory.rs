//! Where received bytes land: memory of the connection's own, or a block of a pool, parts of which are lent out as data.
//!
//! Invariant: a part that is lent is never written again while anybody has it. Whoever writes, which is the inbox and on its
//! behalf the kernel, writes behind all lent parts, or asks [`Memory::is_lent`] first. So no reference to the whole is ever made:
//! only to the parts that are asked for.

use crate::buffer::{Buffer, Pool};
use std::ops::Range;

pub enum Memory {
    Own(Box<[u8]>),
    Block(Buffer),
}

impl Memory {
    pub fn own(len: usize) -> Self {
        Self::Own(vec![0; len].into())
    }

    /// A block, if the pool has ample memory.
    pub fn block(pool: &Pool, len: usize) -> Option<Self> {
        if pool.is_ample() { pool.get(len).map(Self::Block) } else { None }
    }

    pub fn len(&self) -> usize {
        match self {
            Self::Own(bytes) => bytes.len(),
            Self::Block(block) => block.len(),
        }
    }

    pub fn is_block(&self) -> bool {
        matches!(self, Self::Block(_))
    }

    /// Whether somebody has a part of it.
    pub fn is_lent(&self) -> bool {
        matches!(self, Self::Block(block) if !block.is_unique())
    }

    /// A part that will not be written from now on, if this is memory that can be lent.
    pub fn lend(&self, part: Range<usize>) -> Option<Buffer> {
        match self {
            Self::Own(_) => None,
            Self::Block(block) => Some(block.part(part)),
        }
    }

    /// The address of a byte, or of the end, to write from there on: not into what is lent.
    pub fn at(&mut self, at: usize) -> *mut u8 {
        assert!(at <= self.len());
        let base = match self {
            Self::Own(bytes) => bytes.as_mut_ptr(),
            Self::Block(block) => block.as_mut_ptr(),
        };
        base.wrapping_add(at)
    }

    /// Bytes that have been received.
    #[inline]
    pub fn bytes(&self, part: Range<usize>) -> &[u8] {
        match self {
            Self::Own(bytes) => &bytes[part],
            Self::Block(block) => {
                assert!(part.start <= part.end && part.end <= block.len());
                // SAFETY: the range lies in the block, which is initialised memory (see `Buffer::as_slice`). What is written while
                // this reference lives: by the kernel, what is behind all received bytes; by us nothing, which `&self` says.
                unsafe { std::slice::from_raw_parts(block.as_ptr().add(part.start), part.len()) }
            }
        }
    }

    /// Puts bytes at the front of memory that is not lent.
    pub fn fill(&mut self, bytes: &[u8]) {
        assert!(bytes.len() <= self.len() && !self.is_lent());
        let to = self.at(0);
        // SAFETY: they fit, and nobody else has memory that `self` owns alone, so the two don't overlap.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
    }

    /// Moves bytes; nothing of where they go to may be lent.
    pub fn shift(&mut self, part: Range<usize>, to: usize) {
        assert!(part.start <= part.end && part.end <= self.len() && to <= self.len() - part.len());
        let (from, to) = (self.at(part.start), self.at(to));
        // SAFETY: both ranges lie in the memory, and the caller has made sure that nobody else looks at the second.
        unsafe { std::ptr::copy(from, to, part.len()) };
    }
}
