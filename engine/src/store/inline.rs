//! A vector that keeps its first `N` elements in place, so that the common short case allocates nothing.

use std::fmt;
use std::ops::Deref;

/// At most `N` elements inline; with more, all of them move to the heap.
#[derive(Clone)]
pub struct InlineVec<T: Copy + Default, const N: usize> {
    inline: [T; N],
    len: u32,
    heap: Vec<T>,
}

impl<T: Copy + Default, const N: usize> InlineVec<T, N> {
    pub fn new() -> Self {
        Self { inline: [T::default(); N], len: 0, heap: Vec::new() }
    }

    pub fn push(&mut self, item: T) {
        let len = self.len as usize;
        if len < N {
            self.inline[len] = item;
        } else {
            if len == N {
                self.heap.extend_from_slice(&self.inline);
            }
            self.heap.push(item);
        }
        self.len += 1;
    }

    pub fn extend_from_slice(&mut self, items: &[T]) {
        let len = self.len as usize;
        if len + items.len() <= N {
            self.inline[len..len + items.len()].copy_from_slice(items);
            self.len += items.len() as u32;
        } else {
            if len <= N {
                self.heap.reserve(len + items.len());
                self.heap.extend_from_slice(&self.inline[..len]);
            }
            self.heap.extend_from_slice(items);
            self.len += items.len() as u32;
        }
    }

    pub fn last_mut(&mut self) -> Option<&mut T> {
        let len = self.len as usize;
        if len <= N { self.inline[..len].last_mut() } else { self.heap.last_mut() }
    }
}

impl<T: Copy + Default, const N: usize> Default for InlineVec<T, N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Copy + Default, const N: usize> Deref for InlineVec<T, N> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        let len = self.len as usize;
        if len <= N { &self.inline[..len] } else { &self.heap }
    }
}

impl<T: Copy + Default + PartialEq, const N: usize> PartialEq for InlineVec<T, N> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<T: Copy + Default + fmt::Debug, const N: usize> fmt::Debug for InlineVec<T, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_order_across_the_move_to_the_heap() {
        for chunk in 1..6 {
            let (mut one, mut many) = (InlineVec::<u32, 4>::new(), InlineVec::<u32, 4>::new());
            let items: Vec<u32> = (0..11).collect();
            items.iter().for_each(|item| one.push(*item));
            items.chunks(chunk).for_each(|items| many.extend_from_slice(items));
            assert_eq!(&*one, &items[..]);
            assert_eq!(one, many);
            assert_eq!(many.last_mut(), Some(&mut 10));
        }
    }
}
