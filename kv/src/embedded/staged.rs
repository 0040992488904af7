//! The mutations of one group, gathered before they go into the tree.
//!
//! Keys that many transactions of a group write (a directory's times and counts) go into the tree once, and all go in
//! the order of their keys, which touches each page once.

use super::format::{open, seal, translate};
use crate::mutation::Mutation;
use corefs_wire::Result;
use redb::{ReadableTable, Table};
use std::collections::BTreeMap;

/// A table and what is yet to be written to it. What is staged for a key stands above what the table holds.
pub struct Staged<'a> {
    pairs: Table<'a, &'static [u8], &'static [u8]>,
    /// `None`: to be removed.
    values: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
}

impl<'a> Staged<'a> {
    pub fn new(pairs: Table<'a, &'static [u8], &'static [u8]>) -> Self {
        Self { pairs, values: BTreeMap::new() }
    }

    /// Does one step. `Corrupt` when it needs a damaged value; other errors are the disk's.
    pub fn apply(&mut self, mutation: Mutation) -> Result<()> {
        match mutation {
            Mutation::Set { key, value } => drop(self.values.insert(key, Some(value))),
            Mutation::Clear { key } => drop(self.values.insert(key, None)),
            Mutation::ClearRange(range) if range.is_empty() => {}
            Mutation::ClearRange(range) => {
                let inside: Vec<_> = self
                    .values
                    .range(range.begin.clone()..range.end.clone())
                    .map(|(key, _)| key.clone())
                    .collect();
                for key in inside {
                    self.values.remove(&key);
                }
                let range = range.begin.as_slice()..range.end.as_slice();
                self.pairs.retain_in::<&[u8], _>(range, |_, _| false).map_err(translate)?;
            }
            Mutation::Atomic { operation, key, operand } => {
                let value = match self.values.get(&key) {
                    Some(staged) => operation.apply(staged.as_deref(), &operand),
                    None => {
                        let stored = self.pairs.get(key.as_slice()).map_err(translate)?;
                        let old = stored.as_ref().map(|stored| open(&key, stored.value())).transpose()?;
                        operation.apply(old, &operand)
                    }
                };
                self.values.insert(key, Some(value));
            }
            Mutation::StampedKey { .. } | Mutation::StampedValue { .. } => {
                unreachable!("the writer has stamped them")
            }
        }
        Ok(())
    }

    /// Writes everything staged.
    pub fn finish(mut self) -> Result<()> {
        let mut stored = Vec::new();
        for (key, value) in self.values {
            match value {
                Some(value) => {
                    seal(&key, &value, &mut stored);
                    self.pairs.insert(key.as_slice(), stored.as_slice()).map_err(translate)?;
                }
                None => drop(self.pairs.remove(key.as_slice()).map_err(translate)?),
            }
        }
        Ok(())
    }
}
