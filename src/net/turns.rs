//! The scheduler: which session gets a turn next.
//!
//! Each local user has two queues, and the users take turns, so that the sessions of one do not
//! delay those of another. In one pass of the loop every ready session gets a turn (with several
//! users, [`TURNS_PER_USER`] of each at most), and one bulk session at most. So a small request
//! waits for at most one session that transfers bulk data.

use std::collections::VecDeque;

use super::admission::UserIndex;
use super::limits::TURNS_PER_USER;
use super::slots::SlotId;

/// How much a session moved in its last turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// Little: it gets a turn in the next pass.
    Light,
    /// Much: one session of this kind gets a turn in each pass.
    Bulk,
}

/// Sessions that wait for a turn.
pub struct Turns {
    users: Vec<Queues>,
    /// The user who comes first in the next pass.
    first: usize,
    /// The remaining turns of this pass.
    pass: VecDeque<SlotId>,
    /// For each index, the id that waits. The id of a session that has ended is replaced by the
    /// next id with the same index.
    waiting: Vec<Option<SlotId>>,
}

#[derive(Default)]
struct Queues {
    ready: VecDeque<SlotId>,
    bulk: VecDeque<SlotId>,
}

impl Turns {
    /// Empty queues for this number of users.
    pub fn new(users: usize) -> Turns {
        let users = std::iter::repeat_with(Queues::default).take(users.max(1)).collect();
        Turns { users, first: 0, pass: VecDeque::new(), waiting: Vec::new() }
    }

    /// Queues a session for one turn, unless it waits for one already: events from its client and
    /// from its upstream share that turn.
    pub fn push(&mut self, user: UserIndex, id: SlotId, load: Load) {
        let index = id.index as usize;
        if self.waiting.len() <= index {
            self.waiting.resize(index + 1, None);
        }
        if self.waiting[index].replace(id) == Some(id) {
            return;
        }
        let queues = &mut self.users[user.0];
        match load {
            Load::Light => queues.ready.push_back(id),
            Load::Bulk => queues.bulk.push_back(id),
        }
    }

    /// No session waits for a turn.
    pub fn is_empty(&self) -> bool {
        self.users.iter().all(|queues| queues.ready.is_empty() && queues.bulk.is_empty())
    }

    /// Decides the order of the next pass: ready sessions, user by user, then one bulk session.
    /// Sessions that are queued from now on wait for the pass after it.
    pub fn begin_pass(&mut self) {
        let count = self.users.len();
        if let [only] = &mut self.users[..] {
            self.pass.append(&mut only.ready);
            self.pass.extend(only.bulk.pop_front());
            return;
        }
        let first = self.first;
        for _ in 0..TURNS_PER_USER {
            let before = self.pass.len();
            for offset in 0..count {
                self.pass.extend(self.users[(first + offset) % count].ready.pop_front());
            }
            if self.pass.len() == before {
                break;
            }
        }
        self.first = (first + 1) % count;
        let mut order = (0..count).map(|offset| (first + offset) % count);
        if let Some(user) = order.find(|user| !self.users[*user].bulk.is_empty()) {
            self.pass.extend(self.users[user].bulk.pop_front());
            // The user of this bulk turn comes last in the next pass.
            self.first = (user + 1) % count;
        }
    }

    /// The session whose turn is next in this pass. From now on it can be queued again.
    pub fn take_next(&mut self) -> Option<SlotId> {
        let id = self.pass.pop_front()?;
        self.waiting[id.index as usize].take_if(|waiting| *waiting == id);
        Some(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::slots::Slots;

    fn ids(count: usize) -> Vec<SlotId> {
        let mut slots = Slots::new(count);
        (0..count).map(|_| slots.insert(|_| Some(())).unwrap()).collect()
    }

    /// The indexes of one pass.
    fn pass(turns: &mut Turns) -> Vec<u32> {
        turns.begin_pass();
        std::iter::from_fn(|| turns.take_next()).map(|id| id.index).collect()
    }

    fn push(turns: &mut Turns, user: usize, ids: &[SlotId], load: Load) {
        ids.iter().for_each(|id| turns.push(UserIndex(user), *id, load));
    }

    #[test]
    fn one_user_gets_every_ready_turn_and_one_of_bulk() {
        let (ids, mut turns) = (ids(43), Turns::new(1));
        push(&mut turns, 0, &ids[..40], Load::Light);
        push(&mut turns, 0, &ids[40..], Load::Bulk);
        assert_eq!(pass(&mut turns), (0..41).collect::<Vec<_>>());
        assert_eq!((pass(&mut turns), pass(&mut turns)), (vec![41], vec![42]));
        assert!(turns.is_empty() && pass(&mut turns).is_empty());
    }

    #[test]
    fn a_session_waits_for_one_turn_however_often_it_is_queued() {
        let (ids, mut turns) = (ids(2), Turns::new(1));
        for load in [Load::Bulk, Load::Light, Load::Bulk] {
            push(&mut turns, 0, &ids, load);
        }
        // The first queue counts: a session that moves much does not get ahead by an event.
        assert_eq!((pass(&mut turns), pass(&mut turns)), (vec![0], vec![1]));
        assert!(turns.is_empty());
        push(&mut turns, 0, &ids, Load::Light);
        assert_eq!(pass(&mut turns), [0, 1], "after its turn it can be queued again");
    }

    #[test]
    fn a_session_that_is_queued_in_its_turn_waits_for_the_next_pass() {
        let (ids, mut turns) = (ids(3), Turns::new(1));
        push(&mut turns, 0, &ids, Load::Light);
        turns.begin_pass();
        let mut order = Vec::new();
        while let Some(id) = turns.take_next() {
            order.push(id.index);
            push(&mut turns, 0, &[id], Load::Bulk);
        }
        assert_eq!(order, [0, 1, 2]);
        assert_eq!((pass(&mut turns), pass(&mut turns)), (vec![0], vec![1]));
    }

    #[test]
    fn a_session_that_ends_while_it_waits_costs_its_successor_no_turn() {
        let mut slots = Slots::new(1);
        let mut turns = Turns::new(1);
        let old = slots.insert(|_| Some(())).unwrap();
        turns.push(UserIndex(0), old, Load::Light);
        slots.remove(old);
        let new = slots.insert(|_| Some(())).unwrap();
        assert_eq!(old.index, new.index);
        turns.push(UserIndex(0), new, Load::Light);
        turns.begin_pass();
        assert_eq!((turns.take_next(), turns.take_next()), (Some(old), Some(new)));
        assert_eq!(turns.take_next(), None);
        turns.push(UserIndex(0), new, Load::Light);
        assert_eq!(pass(&mut turns), [0]);
    }

    #[test]
    fn a_user_with_many_sessions_does_not_hold_up_one_with_few() {
        let (ids, mut turns) = (ids(101), Turns::new(3));
        push(&mut turns, 0, &ids[..100], Load::Light);
        push(&mut turns, 2, &ids[100..], Load::Light);
        let first = pass(&mut turns);
        assert_eq!(first.len(), TURNS_PER_USER + 1);
        assert!(first[..2].contains(&100), "{first:?}");
        // Nothing is lost.
        let mut count = first.len();
        while !turns.is_empty() {
            count += pass(&mut turns).len();
        }
        assert_eq!(count, 101);
    }

    #[test]
    fn users_take_turns_in_bulk_too() {
        let (ids, mut turns) = (ids(12), Turns::new(2));
        push(&mut turns, 0, &ids[..9], Load::Bulk);
        push(&mut turns, 1, &ids[9..], Load::Bulk);
        let order: Vec<u32> = (0..6).flat_map(|_| pass(&mut turns)).collect();
        assert_eq!(order, [0, 9, 1, 10, 2, 11]);
        assert_eq!(pass(&mut turns), [3]);
    }

    #[test]
    fn a_light_session_waits_for_one_bulk_turn_at_most() {
        let (ids, mut turns) = (ids(20), Turns::new(1));
        push(&mut turns, 0, &ids[1..], Load::Bulk);
        for round in 1..10 {
            push(&mut turns, 0, &ids[..1], Load::Light);
            assert_eq!(pass(&mut turns), [0, round]);
        }
    }
}
