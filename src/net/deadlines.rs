//! The deadlines of all connections: a heap with at most one entry for each slot.
//!
//! Entries are lazy. An entry is never later than the deadline of its connection. An entry that
//! expires too early is set again. Each byte that moves extends a deadline, and that costs a write
//! to a field of the connection, not to the heap. A connection that ends leaves its entry to the
//! next connection in its slot, so the heap does not grow.

use std::time::Instant;

use super::slots::DeadlineSlot;

/// The heap.
#[derive(Default)]
pub struct Deadlines {
    /// A binary heap, the earliest entry first.
    heap: Vec<(Instant, DeadlineSlot)>,
    /// The index in the heap of each slot's entry.
    index: Vec<Option<u32>>,
}

impl Deadlines {
    /// Makes `slot` expire at `when` or earlier.
    pub fn set(&mut self, slot: DeadlineSlot, when: Instant) {
        if self.index.len() <= slot.position() {
            self.index.resize(slot.position() + 1, None);
        }
        match self.index[slot.position()] {
            Some(at) if self.heap[at as usize].0 <= when => {}
            Some(at) => {
                self.heap[at as usize].0 = when;
                self.sift_up(at as usize);
            }
            None => {
                self.heap.push((when, slot));
                self.sift_up(self.heap.len() - 1);
            }
        }
    }

    /// When the earliest entry expires.
    pub fn next(&self) -> Option<Instant> {
        self.heap.first().map(|(when, _)| *when)
    }

    /// Removes an entry that has expired, and returns its slot.
    pub fn expired(&mut self, now: Instant) -> Option<DeadlineSlot> {
        let (when, slot) = *self.heap.first()?;
        if when > now {
            return None;
        }
        self.heap.swap_remove(0);
        self.index[slot.position()] = None;
        if !self.heap.is_empty() {
            self.sift_down(0);
        }
        Some(slot)
    }

    fn sift_up(&mut self, mut at: usize) {
        while at > 0 && self.heap[at].0 < self.heap[(at - 1) / 2].0 {
            self.heap.swap(at, (at - 1) / 2);
            self.update_index(at);
            at = (at - 1) / 2;
        }
        self.update_index(at);
    }

    fn sift_down(&mut self, mut at: usize) {
        loop {
            let earlier = |a: usize, b: usize| {
                if b < self.heap.len() && self.heap[b].0 < self.heap[a].0 { b } else { a }
            };
            let first = earlier(earlier(at, 2 * at + 1), 2 * at + 2);
            if first == at {
                break;
            }
            self.heap.swap(at, first);
            self.update_index(at);
            at = first;
        }
        self.update_index(at);
    }

    fn update_index(&mut self, at: usize) {
        self.index[self.heap[at].1.position()] = Some(at as u32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::slots::{Side, SlotId, Slots};
    use std::time::Duration;

    fn slots(count: usize) -> Vec<DeadlineSlot> {
        let mut slots = Slots::new(count);
        let ids = std::iter::from_fn(|| slots.insert(|_| Some(())));
        let slot = |(index, id): (usize, SlotId)| {
            let side = if index % 2 == 0 { Side::Client } else { Side::Upstream };
            DeadlineSlot::new(id, side)
        };
        ids.enumerate().map(slot).collect()
    }

    #[test]
    fn slots_come_up_in_order_and_once() {
        let zero = Instant::now();
        let at = |n: u64| zero + Duration::from_millis(n);
        let slots = slots(5);
        let mut deadlines = Deadlines::default();
        for (slot, when) in [(3, 30), (1, 10), (4, 40), (2, 20), (0, 50)] {
            deadlines.set(slots[slot], at(when));
        }
        deadlines.set(slots[4], at(5)); // Earlier: the entry moves.
        deadlines.set(slots[1], at(99)); // Later: the entry stays.
        assert_eq!(deadlines.next(), Some(at(5)));
        let mut order = Vec::new();
        while let Some(slot) = deadlines.expired(at(45)) {
            order.push(slot);
        }
        assert_eq!(order, [slots[4], slots[1], slots[2], slots[3]]);
        assert_eq!(deadlines.expired(at(50)), Some(slots[0]));
        assert_eq!(deadlines.next(), None);
    }

    #[test]
    fn there_is_never_more_than_one_entry_for_a_slot() {
        let zero = Instant::now();
        let slots = slots(7);
        let mut deadlines = Deadlines::default();
        for n in (0..100_000u64).rev() {
            deadlines.set(slots[(n % 7) as usize], zero + Duration::from_nanos(n));
        }
        assert_eq!(deadlines.heap.len(), 7);
    }
}
