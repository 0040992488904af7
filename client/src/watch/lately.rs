//! What there was news of lately. Pure.

use corefs_wire::InodeId;
use std::collections::HashMap;

/// News remembered. Beyond them all are forgotten, and with them whether what was asked before then stands.
const LATELY: usize = 8192;

/// What has changed.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum News {
    /// Attributes of an inode, and maybe its bytes.
    Inode(InodeId),
    /// What a name leads to, if to anything.
    Name(InodeId, Vec<u8>),
    /// Anything may have.
    Everything,
}

#[derive(Default)]
pub struct Lately {
    count: u64,
    /// What was asked before there were so many news doesn't stand, whatever it is about.
    floor: u64,
    /// How many news there were with the last one of each.
    last: HashMap<News, u64>,
}

impl Lately {
    /// How many news there were.
    pub fn count(&self) -> u64 {
        self.count
    }

    pub fn add(&mut self, news: &News) {
        self.count += 1;
        if *news == News::Everything || self.last.len() >= LATELY {
            self.floor = self.count;
            self.last.clear();
        } else {
            self.last.insert(news.clone(), self.count);
        }
    }

    /// Whether there were none `about` anything in question since there were `count`.
    pub fn none_since(&self, count: u64, about: &[News]) -> bool {
        let before = |news| self.last.get(news).is_none_or(|last| *last <= count);
        self.floor <= count && about.iter().all(before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::slice::from_ref;

    #[test]
    fn only_news_of_what_is_asked_about_count_and_only_those_since() {
        let mut lately = Lately::default();
        let (inode, name) = (News::Inode(InodeId(5)), News::Name(InodeId(5), b"a".to_vec()));
        lately.add(&inode);
        let before = lately.count();
        assert!(lately.none_since(before, &[inode.clone(), name.clone()]));
        lately.add(&name);
        assert!(lately.none_since(before, from_ref(&inode)));
        assert!(!lately.none_since(before, &[inode.clone(), name.clone()]));
        assert!(lately.none_since(lately.count(), from_ref(&name)));
        lately.add(&News::Everything);
        assert!(!lately.none_since(before + 1, from_ref(&inode)) && !lately.none_since(before + 1, &[]));
        assert!(lately.none_since(lately.count(), &[inode, name]));
    }

    #[test]
    fn what_is_forgotten_may_have_been_about_anything() {
        let mut lately = Lately::default();
        let before = lately.count();
        (0..=LATELY as u64).for_each(|inode| lately.add(&News::Inode(InodeId(100 + inode))));
        assert!(!lately.none_since(before, &[News::Inode(InodeId(7))]));
        assert!(lately.none_since(lately.count(), &[News::Inode(InodeId(7))]));
        assert!(lately.last.len() < LATELY);
    }
}
