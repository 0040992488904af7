//! Connections by index and generation: an id that outlived its connection finds nothing.

use super::ConnId;

struct Slot<T> {
    generation: u32,
    value: Option<Box<T>>,
}

/// A table of at most `bound` values. Values are boxed: they don't move while the table grows, because the kernel may hold
/// pointers into them.
pub struct Slots<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    bound: usize,
}

impl<T> Slots<T> {
    pub fn new(bound: usize) -> Self {
        Self { slots: Vec::new(), free: Vec::new(), bound }
    }

    /// Values present.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// `None` when full.
    pub fn insert(&mut self, value: T) -> Option<ConnId> {
        let index = match self.free.pop() {
            Some(index) => index,
            None if self.slots.len() < self.bound => {
                self.slots.push(Slot { generation: 0, value: None });
                (self.slots.len() - 1) as u32
            }
            None => return None,
        };
        let slot = &mut self.slots[index as usize];
        slot.value = Some(Box::new(value));
        Some(ConnId { index, generation: slot.generation })
    }

    pub fn get(&self, id: ConnId) -> Option<&T> {
        let slot = self.slots.get(id.index as usize).filter(|slot| slot.generation == id.generation)?;
        slot.value.as_deref()
    }

    pub fn get_mut(&mut self, id: ConnId) -> Option<&mut T> {
        let slot = self.slots.get_mut(id.index as usize).filter(|slot| slot.generation == id.generation)?;
        slot.value.as_deref_mut()
    }

    /// Takes the value out; its id is dead from here on.
    pub fn remove(&mut self, id: ConnId) -> Option<Box<T>> {
        let slot = self.slots.get_mut(id.index as usize).filter(|slot| slot.generation == id.generation)?;
        let value = slot.value.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(id.index);
        Some(value)
    }

    /// The ids of all values.
    pub fn ids(&self) -> impl Iterator<Item = ConnId> + '_ {
        let present = |(index, slot): (usize, &Slot<T>)| {
            slot.value.as_ref().map(|_| ConnId { index: index as u32, generation: slot.generation })
        };
        self.slots.iter().enumerate().filter_map(present)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_id_finds_nothing_though_its_slot_is_used_again() {
        let mut slots = Slots::new(2);
        let (a, b) = (slots.insert('a').unwrap(), slots.insert('b').unwrap());
        assert_eq!(slots.insert('c'), None);
        assert_eq!(slots.remove(a).as_deref(), Some(&'a'));
        let c = slots.insert('c').unwrap();
        assert_eq!(
            (c.index, slots.get(a), slots.get(c), slots.get(b)),
            (a.index, None, Some(&'c'), Some(&'b'))
        );
        assert_eq!((slots.remove(a), slots.len(), slots.ids().count()), (None, 2, 2));
    }
}
