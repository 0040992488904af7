//! The mutations of one group, gathered into what they come to for each key.
//!
//! Keys that many transactions of a group write (a directory's times and counts) are logged once.

use super::layer::Layer;
use super::recent::{Change, Changes};
use crate::mutation::Mutation;
use corefs_wire::Result;

/// What is staged for a key stands above what the layer holds.
pub struct Staged<'a> {
    layer: &'a Layer,
    changes: Changes,
}

impl<'a> Staged<'a> {
    pub fn new(layer: &'a Layer) -> Self {
        Self { layer, changes: Changes::new() }
    }

    /// Does one step. `Corrupt` when it needs a damaged value; other errors are the disk's.
    pub fn apply(&mut self, mutation: Mutation) -> Result<()> {
        match mutation {
            Mutation::Set { key, value } => drop(self.changes.insert(key, Change::Set(value))),
            Mutation::Clear { key } => drop(self.changes.insert(key, Change::Remove)),
            Mutation::ClearRange(range) if range.is_empty() => {}
            Mutation::ClearRange(range) => {
                let inside = self.changes.range(range.begin.clone()..range.end.clone());
                let inside: Vec<_> = inside.map(|(key, _)| key.clone()).collect();
                for key in inside {
                    self.changes.remove(&key);
                }
                self.layer.clear(&range, &mut self.changes)?;
            }
            Mutation::Atomic { operation, key, operand } => {
                let value = match self.changes.get(&key) {
                    Some(Change::Set(staged)) => operation.apply(Some(staged), &operand),
                    Some(Change::Remove | Change::Forget) => operation.apply(None, &operand),
                    None => operation.apply(self.layer.get(&key)?.as_deref(), &operand),
                };
                self.changes.insert(key, Change::Set(value));
            }
            Mutation::StampedKey { .. } | Mutation::StampedValue { .. } => {
                unreachable!("the writer has stamped them")
            }
        }
        Ok(())
    }

    /// Everything staged.
    pub fn finish(self) -> Changes {
        self.changes
    }
}
