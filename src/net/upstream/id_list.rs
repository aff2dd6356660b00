//! Ids in the order in which they were added. Any id is removed in constant time.

use crate::net::slots::SlotId;

/// A doubly linked list. The nodes are in a table; the index of an id is the position of its node.
#[derive(Default)]
pub(super) struct IdList {
    nodes: Vec<Option<Node>>,
    last: Option<u32>,
    /// The last id before the mark (see [`IdList::mark`]) that is still in the list.
    marked: Option<u32>,
    len: usize,
}

#[derive(Clone, Copy)]
struct Node {
    id: SlotId,
    before: Option<u32>,
    after: Option<u32>,
}

impl IdList {
    /// The number of ids in the list.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The list contains no id.
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The id that was added last; `None` if the list is empty.
    pub(super) fn last(&self) -> Option<SlotId> {
        self.last.and_then(|index| self.node(index)).map(|node| node.id)
    }

    /// Puts the mark after the last id. Further ids are added after the mark.
    pub(super) fn mark(&mut self) {
        self.marked = self.last;
    }

    /// The last id before the mark; `None` if no such id is in the list.
    pub(super) fn last_marked(&self) -> Option<SlotId> {
        self.marked.and_then(|index| self.node(index)).map(|node| node.id)
    }

    /// Adds an id at the end. An id with the same index is removed first: it is the same id, or
    /// its entry no longer exists.
    pub(super) fn push(&mut self, id: SlotId) {
        self.remove_index(id.index);
        if self.nodes.len() <= id.index as usize {
            self.nodes.resize(id.index as usize + 1, None);
        }
        let before = self.last.replace(id.index);
        if let Some(node) = before.and_then(|index| self.node_mut(index)) {
            node.after = Some(id.index);
        }
        self.nodes[id.index as usize] = Some(Node { id, before, after: None });
        self.len += 1;
    }

    /// Removes an id, if it is in the list.
    pub(super) fn remove(&mut self, id: SlotId) {
        if self.node(id.index).is_some_and(|node| node.id == id) {
            self.remove_index(id.index);
        }
    }

    fn remove_index(&mut self, index: u32) {
        let Some(node) = self.nodes.get_mut(index as usize).and_then(Option::take) else {
            return;
        };
        self.len -= 1;
        if self.marked == Some(index) {
            self.marked = node.before;
        }
        if let Some(before) = node.before.and_then(|index| self.node_mut(index)) {
            before.after = node.after;
        }
        match node.after.and_then(|index| self.node_mut(index)) {
            Some(after) => after.before = node.before,
            None => self.last = node.before,
        }
    }

    fn node(&self, index: u32) -> Option<Node> {
        self.nodes.get(index as usize).copied().flatten()
    }

    fn node_mut(&mut self, index: u32) -> Option<&mut Node> {
        self.nodes.get_mut(index as usize)?.as_mut()
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::net::slots::Slots;

    /// Empties the list and returns its ids, the last one first.
    fn all(list: &mut IdList) -> Vec<u32> {
        let mut all = Vec::new();
        while let Some(id) = list.last() {
            list.remove(id);
            all.push(id.index);
        }
        assert!(list.is_empty());
        all
    }

    fn ids(count: usize) -> Vec<SlotId> {
        let mut slots = Slots::new(count);
        (0..count).map(|_| slots.insert(|_| Some(())).unwrap()).collect()
    }

    #[test]
    fn the_last_id_comes_first_whichever_are_removed() {
        let ids = ids(5);
        for removed in 0..1u32 << 5 {
            let mut list = IdList::default();
            ids.iter().for_each(|id| list.push(*id));
            let is_removed = |id: &&SlotId| removed >> id.index & 1 == 1;
            ids.iter().filter(is_removed).for_each(|id| list.remove(*id));
            ids.iter().filter(is_removed).for_each(|id| list.remove(*id));
            assert_eq!(list.len() as u32, 5 - removed.count_ones());
            let want: Vec<u32> = (0..5).rev().filter(|index| removed >> index & 1 == 0).collect();
            assert_eq!(all(&mut list), want);
        }
    }

    #[test]
    fn ids_before_the_mark_are_told_from_ids_behind_it() {
        for removed in 0..1u32 << 4 {
            let ids = ids(4);
            let mut list = IdList::default();
            assert_eq!(list.last_marked(), None);
            list.push(ids[0]);
            list.push(ids[1]);
            list.mark();
            list.push(ids[2]);
            list.push(ids[3]);
            let is_removed = |id: &&SlotId| removed >> id.index & 1 == 1;
            ids.iter().filter(is_removed).for_each(|id| list.remove(*id));
            let marked = ids[..2].iter().rev().find(|id| !is_removed(id));
            assert_eq!(list.last_marked(), marked.copied(), "without {removed:b}");
            list.push(ids[1]);
            let marked = Some(ids[0]).filter(|id| !is_removed(&id));
            assert_eq!(list.last_marked(), marked, "one that came again is behind the mark");
            list.mark();
            assert_eq!(list.last_marked(), Some(ids[1]));
        }
    }

    #[test]
    fn an_id_that_came_again_is_the_last_one() {
        let ids = ids(3);
        let mut list = IdList::default();
        ids.iter().for_each(|id| list.push(*id));
        list.push(ids[0]);
        assert_eq!((list.len(), all(&mut list)), (3, vec![0, 2, 1]));
    }

    #[test]
    fn an_id_of_an_entry_that_is_gone_removes_no_other() {
        let mut slots = Slots::new(1);
        let old = slots.insert(|_| Some(())).unwrap();
        slots.remove(old);
        let new = slots.insert(|_| Some(())).unwrap();
        let mut list = IdList::default();
        list.push(old);
        list.push(new);
        list.remove(old);
        assert_eq!((list.len(), list.last()), (1, Some(new)));
    }

    #[test]
    fn a_removal_takes_as_long_in_a_long_list_as_in_a_short_one() {
        // Two million removals of the first id. A search from the end would take hours.
        let start = Instant::now();
        let ids = ids(200_000);
        let mut list = IdList::default();
        ids.iter().for_each(|id| list.push(*id));
        for _ in 0..10 {
            for id in &ids {
                list.remove(*id);
                list.push(*id);
            }
            assert!(start.elapsed() < Duration::from_secs(60));
        }
        assert_eq!(list.len(), ids.len());
    }
}
