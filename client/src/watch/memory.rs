//! Names and attributes that were heard and count until there is news of them. Pure but for the clock.

use super::News;
use crate::Attr;
use corefs_wire::InodeId;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Names and inodes remembered, of some 250 bytes each: beyond them all are forgotten and learnt again.
const REMEMBERED_MAX: usize = 1 << 19;
/// Not for ever: a metadata server that the managers have forgotten, that can't be reached from here, and that still serves somebody who
/// doesn't know, tells us nothing.
const AGE_MAX: Duration = Duration::from_secs(60);

/// For so long nothing is remembered after a call of our own whose outcome isn't known: servers try for some seconds.
const DOUBT: Duration = Duration::from_secs(30);

/// What this client itself changes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Own {
    /// A name, and the attributes of its directory.
    Name(InodeId, Vec<u8>),
    /// Those, and the attributes of what it leads to.
    What(InodeId, Vec<u8>),
    Inode(InodeId),
    /// Attributes of nobody knows what.
    SomeInode,
}

/// Nothing is remembered until it is switched on.
#[derive(Default)]
pub struct Memory {
    on: Cell<bool>,
    doubtful_until: Cell<Option<Instant>>,
    store: RefCell<Store>,
}

#[derive(Default)]
struct Store {
    names: HashMap<InodeId, HashMap<Vec<u8>, Name>>,
    attrs: HashMap<InodeId, (Attr, Instant)>,
    /// Of names.
    count: usize,
}

struct Name {
    /// What it leads to, if to anything.
    inode: Option<InodeId>,
    since: Instant,
}

impl Memory {
    pub fn is_on(&self) -> bool {
        self.on.get()
    }

    pub fn switch_on(&self) {
        self.on.set(true);
    }

    pub fn forget_all(&self) {
        if self.on.get() {
            self.store.take();
        }
    }

    /// Something may still be changed that nobody will tell us of.
    pub fn doubt(&self) {
        self.forget_all();
        self.doubtful_until.set(Some(Instant::now() + DOUBT));
    }

    /// Whether what is heard now may be remembered.
    pub fn is_ready(&self) -> bool {
        self.on.get() && self.doubtful_until.get().is_none_or(|until| Instant::now() >= until)
    }

    /// The attributes of an inode.
    pub fn attr(&self, inode: InodeId) -> Option<Attr> {
        let store = self.store.borrow();
        store.attrs.get(&inode).filter(|(_, since)| is_fresh(*since)).map(|(attr, _)| *attr)
    }

    /// What a name leads to, if to anything, with its attributes; none if that isn't known.
    pub fn name(&self, parent: InodeId, name: &[u8]) -> Option<Option<Attr>> {
        let led = {
            let store = self.store.borrow();
            let known = store.names.get(&parent)?.get(name).filter(|known| is_fresh(known.since))?;
            known.inode
        };
        match led {
            Some(inode) => self.attr(inode).map(Some),
            None => Some(None),
        }
    }

    pub fn put_attr(&self, attr: &Attr) {
        let mut store = self.store.borrow_mut();
        store.make_room();
        store.attrs.insert(attr.inode, (*attr, Instant::now()));
    }

    pub fn put_name(&self, parent: InodeId, name: &[u8], inode: Option<InodeId>) {
        let mut store = self.store.borrow_mut();
        store.make_room();
        let known = Name { inode, since: Instant::now() };
        if store.names.entry(parent).or_default().insert(name.to_vec(), known).is_none() {
            store.count += 1;
        }
    }

    /// A server has said what may not be remembered. What is remembered and differs is out of date, or will be.
    pub fn compare_attr(&self, attr: &Attr) {
        if !self.on.get() {
            return;
        }
        let mut store = self.store.borrow_mut();
        if store.attrs.get(&attr.inode).is_some_and(|(known, _)| known != attr) {
            store.attrs.remove(&attr.inode);
        }
    }

    /// The same of what a name leads to.
    pub fn compare_name(&self, parent: InodeId, name: &[u8], inode: Option<InodeId>) {
        let mut store = self.store.borrow_mut();
        let known = store.names.get(&parent).and_then(|names| names.get(name));
        if known.is_some_and(|known| known.inode != inode) {
            store.forget(parent, name);
        }
    }

    pub(crate) fn hear(&self, news: &News) {
        let mut store = self.store.borrow_mut();
        match news {
            News::Inode(inode) => drop(store.attrs.remove(inode)),
            News::Name(parent, name) => drop(store.forget(*parent, name)),
        }
    }

    pub(crate) fn change(&self, own: &Own) {
        let mut store = self.store.borrow_mut();
        match own {
            Own::Inode(inode) => drop(store.attrs.remove(inode)),
            Own::SomeInode => store.attrs.clear(),
            Own::Name(parent, name) => {
                store.attrs.remove(parent);
                store.forget(*parent, name);
            }
            Own::What(parent, name) => {
                store.attrs.remove(parent);
                match store.forget(*parent, name) {
                    Some(Name { inode: Some(inode), .. }) => drop(store.attrs.remove(&inode)),
                    _ => store.attrs.clear(),
                }
            }
        }
    }
}

fn is_fresh(since: Instant) -> bool {
    since.elapsed() < AGE_MAX
}

impl Store {
    fn make_room(&mut self) {
        if self.count + self.attrs.len() >= REMEMBERED_MAX {
            *self = Self::default();
        }
    }

    fn forget(&mut self, parent: InodeId, name: &[u8]) -> Option<Name> {
        let names = self.names.get_mut(&parent)?;
        let known = names.remove(name)?;
        if names.is_empty() {
            self.names.remove(&parent);
        }
        self.count -= 1;
        Some(known)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attr::plain as attr;

    /// A directory 1 with a: 5, b: 6, and no c.
    fn filled() -> Memory {
        let memory = Memory::default();
        [1, 5, 6].map(attr).iter().for_each(|attr| memory.put_attr(attr));
        for (name, inode) in [(b"a", Some(5)), (b"b", Some(6)), (b"c", None)] {
            memory.put_name(InodeId(1), name, inode.map(InodeId));
        }
        memory
    }

    fn known(memory: &Memory) -> (Vec<Option<Option<u64>>>, Vec<u64>) {
        let name = |name: &[u8; 1]| memory.name(InodeId(1), name).map(|led| led.map(|attr| attr.inode.0));
        let inodes = [1, 5, 6].into_iter().filter(|inode| memory.attr(InodeId(*inode)).is_some());
        ([b"a", b"b", b"c"].map(name).to_vec(), inodes.collect())
    }

    #[test]
    fn what_was_heard_counts_until_there_is_news_of_it() {
        let memory = filled();
        assert_eq!(known(&memory), (vec![Some(Some(5)), Some(Some(6)), Some(None)], vec![1, 5, 6]));
        memory.hear(&News::Name(InodeId(1), b"c".to_vec()));
        memory.hear(&News::Name(InodeId(2), b"a".to_vec()));
        assert_eq!(known(&memory), (vec![Some(Some(5)), Some(Some(6)), None], vec![1, 5, 6]));
        memory.hear(&News::Inode(InodeId(5)));
        assert_eq!(known(&memory), (vec![None, Some(Some(6)), None], vec![1, 6]));
        memory.switch_on();
        memory.forget_all();
        assert_eq!(known(&memory), (vec![None, None, None], vec![]));
        assert_eq!(memory.store.borrow().count, 0);
    }

    #[test]
    fn what_is_changed_here_is_not_remembered() {
        let memory = filled();
        memory.change(&Own::Name(InodeId(1), b"c".to_vec()));
        assert_eq!(known(&memory), (vec![Some(Some(5)), Some(Some(6)), None], vec![5, 6]));
        memory.change(&Own::What(InodeId(1), b"a".to_vec()));
        assert_eq!(known(&memory), (vec![None, Some(Some(6)), None], vec![6]));
        memory.change(&Own::What(InodeId(1), b"z".to_vec()));
        assert_eq!(known(&memory), (vec![None, None, None], vec![]), "nobody knows what z led to");
        let memory = filled();
        memory.change(&Own::Inode(InodeId(6)));
        assert_eq!(known(&memory), (vec![Some(Some(5)), None, Some(None)], vec![1, 5]));
        memory.change(&Own::SomeInode);
        assert_eq!(known(&memory), (vec![None, None, Some(None)], vec![]));
    }

    #[test]
    fn what_differs_from_what_a_server_says_is_forgotten() {
        let memory = filled();
        memory.switch_on();
        [1, 5].map(attr).iter().for_each(|attr| memory.compare_attr(attr));
        memory.compare_name(InodeId(1), b"a", Some(InodeId(5)));
        memory.compare_name(InodeId(1), b"c", None);
        assert_eq!(known(&memory), (vec![Some(Some(5)), Some(Some(6)), Some(None)], vec![1, 5, 6]));
        memory.compare_attr(&Attr { size: 1, ..attr(5) });
        memory.compare_name(InodeId(1), b"c", Some(InodeId(7)));
        assert_eq!(known(&memory), (vec![None, Some(Some(6)), None], vec![1, 6]));
        assert!(memory.is_ready());
        memory.doubt();
        assert_eq!((known(&memory), memory.is_ready()), ((vec![None; 3], vec![]), false));
    }

    #[test]
    fn there_is_an_end_to_what_is_remembered() {
        let memory = filled();
        (0..REMEMBERED_MAX as u64)
            .for_each(|number| memory.put_name(InodeId(2), &number.to_le_bytes(), None));
        let store = memory.store.borrow();
        assert!(store.count + store.attrs.len() <= REMEMBERED_MAX);
        assert_eq!(store.count, store.names.values().map(HashMap::len).sum::<usize>());
    }
}
