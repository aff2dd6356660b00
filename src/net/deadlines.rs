//! When to look at a connection again: a heap with at most one entry for each place in a table.
//!
//! Entries are lazy. An entry never stands later than its connection's deadline; when it comes up
//! too early it is set again. So extending a deadline, which every byte does, is a field write, and
//! connections that come and go leave nothing behind.

use std::time::Instant;

/// Deadlines by place.
#[derive(Default)]
pub struct Deadlines {
    /// A binary heap of (when, place).
    heap: Vec<(Instant, u32)>,
    /// Where in the heap a place's entry stands.
    position: Vec<Option<u32>>,
}

impl Deadlines {
    /// Sees to it that `place` comes up at `when` or earlier.
    pub fn set(&mut self, place: u32, when: Instant) {
        if self.position.len() <= place as usize {
            self.position.resize(place as usize + 1, None);
        }
        match self.position[place as usize] {
            Some(at) if self.heap[at as usize].0 <= when => {}
            Some(at) => {
                self.heap[at as usize].0 = when;
                self.up(at as usize);
            }
            None => {
                self.heap.push((when, place));
                self.up(self.heap.len() - 1);
            }
        }
    }

    /// When the next entry comes up.
    pub fn next(&self) -> Option<Instant> {
        self.heap.first().map(|(when, _)| *when)
    }

    /// Takes out a place whose entry has come up.
    pub fn expired(&mut self, now: Instant) -> Option<u32> {
        let (when, place) = *self.heap.first()?;
        if when > now {
            return None;
        }
        self.heap.swap_remove(0);
        self.position[place as usize] = None;
        if !self.heap.is_empty() {
            self.down(0);
        }
        Some(place)
    }

    fn up(&mut self, mut at: usize) {
        while at > 0 && self.heap[at].0 < self.heap[(at - 1) / 2].0 {
            self.heap.swap(at, (at - 1) / 2);
            self.note(at);
            at = (at - 1) / 2;
        }
        self.note(at);
    }

    fn down(&mut self, mut at: usize) {
        loop {
            let sooner = |a: usize, b: usize| {
                if b < self.heap.len() && self.heap[b].0 < self.heap[a].0 { b } else { a }
            };
            let least = sooner(sooner(at, 2 * at + 1), 2 * at + 2);
            if least == at {
                break;
            }
            self.heap.swap(at, least);
            self.note(at);
            at = least;
        }
        self.note(at);
    }

    fn note(&mut self, at: usize) {
        self.position[self.heap[at].1 as usize] = Some(at as u32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn places_come_up_in_order_and_once() {
        let zero = Instant::now();
        let at = |n: u64| zero + Duration::from_millis(n);
        let mut deadlines = Deadlines::default();
        for (place, when) in [(3, 30), (1, 10), (4, 40), (2, 20), (0, 50)] {
            deadlines.set(place, at(when));
        }
        deadlines.set(4, at(5)); // sooner: moved
        deadlines.set(1, at(99)); // later: kept, to be set again by its owner
        assert_eq!(deadlines.next(), Some(at(5)));
        let mut order = Vec::new();
        while let Some(place) = deadlines.expired(at(45)) {
            order.push(place);
        }
        assert_eq!(order, [4, 1, 2, 3]);
        assert_eq!(deadlines.expired(at(50)), Some(0));
        assert_eq!(deadlines.next(), None);
    }

    #[test]
    fn there_is_never_more_than_one_entry_for_a_place() {
        let zero = Instant::now();
        let mut deadlines = Deadlines::default();
        for n in (0..100_000u64).rev() {
            deadlines.set((n % 7) as u32, zero + Duration::from_nanos(n));
        }
        assert_eq!(deadlines.heap.len(), 7);
    }
}
