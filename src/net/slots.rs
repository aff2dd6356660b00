//! A table of connections. An id finds its connection by index, and its generation shows whether a
//! later connection has taken the same place.

use mio::Token;

/// The id of an entry. A later entry in the same place has another id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotId {
    /// The place in the table.
    pub index: u32,
    generation: u32,
}

/// One of the two tables: the two ends of the relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Client connections.
    Client,
    /// Upstream connections.
    Upstream,
}

/// Generations stay below this, so that no token of an entry is one of the loop's own tokens.
const GENERATIONS: u32 = 1 << 30;

impl SlotId {
    /// The token for poll: generation, index and side in one number.
    pub fn token(self, side: Side) -> Token {
        let side = usize::from(side == Side::Upstream);
        Token((self.generation as usize) << 33 | (self.index as usize) << 1 | side)
    }

    /// The inverse of [`SlotId::token`].
    pub fn of(Token(token): Token) -> (SlotId, Side) {
        let side = if token & 1 == 1 { Side::Upstream } else { Side::Client };
        (SlotId { index: (token >> 1) as u32, generation: (token >> 33) as u32 }, side)
    }
}

/// The place of a connection among the deadlines: one for each index of both tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeadlineSlot(u32);

impl DeadlineSlot {
    /// The slot of the connection with this id.
    pub fn new(id: SlotId, side: Side) -> DeadlineSlot {
        DeadlineSlot(id.index << 1 | u32::from(side == Side::Upstream))
    }

    /// The index, and the table that it belongs to. A later connection may have taken the place.
    pub fn split(self) -> (u32, Side) {
        let side = if self.0 & 1 == 1 { Side::Upstream } else { Side::Client };
        (self.0 >> 1, side)
    }

    /// The position of this slot in a table of all slots.
    pub fn position(self) -> usize {
        self.0 as usize
    }
}

struct Slot<T> {
    generation: u32,
    // Boxed, so that an empty place costs no more than a pointer.
    value: Option<Box<T>>,
}

/// At most `limit` values. Places are made when they are first needed.
pub struct Slots<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    limit: usize,
}

impl<T> Slots<T> {
    /// An empty table.
    pub fn new(limit: usize) -> Slots<T> {
        Slots { slots: Vec::new(), free: Vec::new(), limit }
    }

    /// How many values are in the table.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// No value is in the table.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// No further value fits.
    pub fn is_full(&self) -> bool {
        self.len() >= self.limit
    }

    /// Inserts the value that `make` builds from its id. Returns `None` if the table is full or
    /// `make` returns `None`.
    pub fn insert(&mut self, make: impl FnOnce(SlotId) -> Option<T>) -> Option<SlotId> {
        if self.is_full() {
            return None;
        }
        let index = *self.free.last().unwrap_or(&(self.slots.len() as u32));
        let generation = self.slots.get(index as usize).map_or(0, |slot| slot.generation);
        let id = SlotId { index, generation };
        let value = Some(Box::new(make(id)?));
        if self.free.pop().is_some() {
            self.slots[index as usize].value = value;
        } else {
            self.slots.push(Slot { generation, value });
        }
        Some(id)
    }

    /// The value, unless it has been removed.
    pub fn get(&mut self, id: SlotId) -> Option<&mut T> {
        let slot = self.slots.get_mut(id.index as usize)?;
        (slot.generation == id.generation).then_some(slot.value.as_deref_mut()).flatten()
    }

    /// Takes the value out for a while. Its id stays valid: see [`Slots::put_back`].
    pub fn take(&mut self, id: SlotId) -> Option<Box<T>> {
        let slot = self.slots.get_mut(id.index as usize)?;
        (slot.generation == id.generation).then(|| slot.value.take()).flatten()
    }

    /// Puts back a value that [`Slots::take`] returned.
    pub fn put_back(&mut self, id: SlotId, value: Box<T>) {
        self.slots[id.index as usize].value = Some(value);
    }

    /// Removes an entry. Drops its value, unless the value has been taken out.
    pub fn remove(&mut self, id: SlotId) {
        if let Some(slot) = self.slots.get_mut(id.index as usize)
            && slot.generation == id.generation
        {
            slot.value = None;
            slot.generation = (slot.generation + 1) % GENERATIONS;
            self.free.push(id.index);
        }
    }

    /// The ids of all values.
    pub fn ids(&self) -> Vec<SlotId> {
        let used = self.slots.iter().enumerate().filter(|(_, slot)| slot.value.is_some());
        used.map(|(i, slot)| SlotId { index: i as u32, generation: slot.generation }).collect()
    }

    /// All values.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.slots.iter().filter_map(|slot| slot.value.as_deref())
    }

    /// The id of the value that is in this place now.
    pub fn at(&self, index: u32) -> Option<SlotId> {
        let slot = self.slots.get(index as usize)?;
        slot.value.as_ref().map(|_| SlotId { index, generation: slot.generation })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_does_not_outlive_its_value() {
        let mut slots = Slots::new(2);
        let first = slots.insert(|_| Some("a")).unwrap();
        slots.remove(first);
        let second = slots.insert(|_| Some("b")).unwrap();
        assert_eq!(first.index, second.index);
        assert!(slots.get(first).is_none());
        slots.remove(first);
        assert_eq!(slots.get(second).copied(), Some("b"));
    }

    #[test]
    fn the_table_holds_its_limit_and_no_more() {
        let mut slots = Slots::new(2);
        let first = slots.insert(|_| Some(1)).unwrap();
        slots.insert(|_| Some(2)).unwrap();
        assert!(slots.insert(|_| Some(3)).is_none());
        slots.remove(first);
        assert!(slots.insert(|_| None).is_none());
        assert_eq!(slots.len(), 1);
        assert!(slots.insert(|_| Some(3)).is_some());
    }

    #[test]
    fn tokens_keep_generation_index_and_side() {
        let id = SlotId { index: u32::MAX, generation: GENERATIONS - 1 };
        for side in [Side::Client, Side::Upstream] {
            assert_eq!(SlotId::of(id.token(side)), (id, side));
            assert!(id.token(side).0 < usize::MAX - 8);
        }
    }

    #[test]
    fn deadline_slots_keep_index_and_side() {
        let mut positions = Vec::new();
        for index in [0, 1, 2, u32::MAX >> 1] {
            for side in [Side::Client, Side::Upstream] {
                let slot = DeadlineSlot::new(SlotId { index, generation: 7 }, side);
                assert_eq!(slot.split(), (index, side));
                positions.push(slot.position());
            }
        }
        // No two entries share a slot.
        assert!(positions.is_sorted_by(|a, b| a < b), "{positions:?}");
    }
}
