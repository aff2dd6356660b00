//! Keys in the order in which they were added. Any key is removed in constant time.

use super::slots::Key;

/// A doubly linked list. The links are in a table; the index of a key is the position of its link.
#[derive(Default)]
pub struct KeyList {
    links: Vec<Option<Link>>,
    last: Option<u32>,
    /// The last key before the mark (see [`KeyList::mark`]) that is still in the list.
    marked: Option<u32>,
    len: usize,
}

#[derive(Clone, Copy)]
struct Link {
    key: Key,
    before: Option<u32>,
    after: Option<u32>,
}

impl KeyList {
    /// The number of keys in the list.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The list contains no key.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The key that was added last; `None` if the list is empty.
    pub fn last(&self) -> Option<Key> {
        self.last.and_then(|index| self.link(index)).map(|link| link.key)
    }

    /// Puts the mark behind the last key. Later keys are added behind the mark.
    pub fn mark(&mut self) {
        self.marked = self.last;
    }

    /// The last key before the mark; `None` if no such key is in the list.
    pub fn last_marked(&self) -> Option<Key> {
        self.marked.and_then(|index| self.link(index)).map(|link| link.key)
    }

    /// Adds a key at the end. A key with the same index is removed first: it is the same key, or
    /// its entry no longer exists.
    pub fn push(&mut self, key: Key) {
        self.remove_index(key.index);
        if self.links.len() <= key.index as usize {
            self.links.resize(key.index as usize + 1, None);
        }
        let before = self.last.replace(key.index);
        if let Some(link) = before.and_then(|index| self.link_mut(index)) {
            link.after = Some(key.index);
        }
        self.links[key.index as usize] = Some(Link { key, before, after: None });
        self.len += 1;
    }

    /// Removes a key, if it is in the list.
    pub fn remove(&mut self, key: Key) {
        if self.link(key.index).is_some_and(|link| link.key == key) {
            self.remove_index(key.index);
        }
    }

    fn remove_index(&mut self, index: u32) {
        let Some(link) = self.links.get_mut(index as usize).and_then(Option::take) else {
            return;
        };
        self.len -= 1;
        if self.marked == Some(index) {
            self.marked = link.before;
        }
        if let Some(before) = link.before.and_then(|index| self.link_mut(index)) {
            before.after = link.after;
        }
        match link.after.and_then(|index| self.link_mut(index)) {
            Some(after) => after.before = link.before,
            None => self.last = link.before,
        }
    }

    fn link(&self, index: u32) -> Option<Link> {
        self.links.get(index as usize).copied().flatten()
    }

    fn link_mut(&mut self, index: u32) -> Option<&mut Link> {
        self.links.get_mut(index as usize)?.as_mut()
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::net::slots::Slots;

    /// Empties the list and returns its keys, the last one first.
    fn all(list: &mut KeyList) -> Vec<u32> {
        let mut all = Vec::new();
        while let Some(key) = list.last() {
            list.remove(key);
            all.push(key.index);
        }
        assert!(list.is_empty());
        all
    }

    fn keys(count: usize) -> Vec<Key> {
        let mut slots = Slots::new(count);
        (0..count).map(|_| slots.insert(|_| Some(())).unwrap()).collect()
    }

    #[test]
    fn the_last_key_comes_first_whichever_are_removed() {
        let keys = keys(5);
        for removed in 0..1u32 << 5 {
            let mut list = KeyList::default();
            keys.iter().for_each(|key| list.push(*key));
            let is_removed = |key: &&Key| removed >> key.index & 1 == 1;
            keys.iter().filter(is_removed).for_each(|key| list.remove(*key));
            keys.iter().filter(is_removed).for_each(|key| list.remove(*key));
            assert_eq!(list.len() as u32, 5 - removed.count_ones());
            let want: Vec<u32> = (0..5).rev().filter(|index| removed >> index & 1 == 0).collect();
            assert_eq!(all(&mut list), want);
        }
    }

    #[test]
    fn keys_before_the_mark_are_told_from_keys_behind_it() {
        for removed in 0..1u32 << 4 {
            let keys = keys(4);
            let mut list = KeyList::default();
            assert_eq!(list.last_marked(), None);
            list.push(keys[0]);
            list.push(keys[1]);
            list.mark();
            list.push(keys[2]);
            list.push(keys[3]);
            let is_removed = |key: &&Key| removed >> key.index & 1 == 1;
            keys.iter().filter(is_removed).for_each(|key| list.remove(*key));
            let marked = keys[..2].iter().rev().find(|key| !is_removed(key));
            assert_eq!(list.last_marked(), marked.copied(), "without {removed:b}");
            list.push(keys[1]);
            let marked = Some(keys[0]).filter(|key| !is_removed(&key));
            assert_eq!(list.last_marked(), marked, "one that came again is behind the mark");
            list.mark();
            assert_eq!(list.last_marked(), Some(keys[1]));
        }
    }

    #[test]
    fn a_key_that_came_again_is_the_last_one() {
        let keys = keys(3);
        let mut list = KeyList::default();
        keys.iter().for_each(|key| list.push(*key));
        list.push(keys[0]);
        assert_eq!((list.len(), all(&mut list)), (3, vec![0, 2, 1]));
    }

    #[test]
    fn a_key_of_an_entry_that_is_gone_removes_no_other() {
        let mut slots = Slots::new(1);
        let old = slots.insert(|_| Some(())).unwrap();
        slots.remove(old);
        let new = slots.insert(|_| Some(())).unwrap();
        let mut list = KeyList::default();
        list.push(old);
        list.push(new);
        list.remove(old);
        assert_eq!((list.len(), list.last()), (1, Some(new)));
    }

    #[test]
    fn a_removal_takes_as_long_in_a_long_list_as_in_a_short_one() {
        // Two million removals of the first key. A search from the end would take hours.
        let start = Instant::now();
        let keys = keys(200_000);
        let mut list = KeyList::default();
        keys.iter().for_each(|key| list.push(*key));
        for _ in 0..10 {
            for key in &keys {
                list.remove(*key);
                list.push(*key);
            }
            assert!(start.elapsed() < Duration::from_secs(60));
        }
        assert_eq!(list.len(), keys.len());
    }
}
