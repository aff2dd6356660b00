//! Who gets a turn next. Each user has queues of their own and the users take turns, so that the
//! connections of one do not hold up those of another.

use std::collections::VecDeque;

use super::admission::User;
use super::limits::TURNS_PER_USER;

/// Connections that wait for a turn; the caller sees to it that each is in one queue at most.
pub struct Turns<K> {
    users: Vec<Queues<K>>,
    /// The user who comes first in the next pass.
    first: usize,
}

struct Queues<K> {
    ready: VecDeque<K>,
    bulk: VecDeque<K>,
}

impl<K> Turns<K> {
    /// For so many users.
    pub fn new(users: usize) -> Turns<K> {
        let queues = || Queues { ready: VecDeque::new(), bulk: VecDeque::new() };
        Turns { users: std::iter::repeat_with(queues).take(users.max(1)).collect(), first: 0 }
    }

    /// Something has come for this connection, which moves little.
    pub fn push_ready(&mut self, user: User, key: K) {
        self.users[user.0].ready.push_back(key);
    }

    /// This connection moves much, or has used up its share of a pass.
    pub fn push_bulk(&mut self, user: User, key: K) {
        self.users[user.0].bulk.push_back(key);
    }

    /// No connection waits for a turn.
    pub fn is_empty(&self) -> bool {
        self.users.iter().all(|queues| queues.ready.is_empty() && queues.bulk.is_empty())
    }

    /// Takes the connections of the next pass in the order of their turns: those that are ready,
    /// user by user, then one of those that move much. What comes meanwhile waits for that one at
    /// most.
    pub fn next_pass(&mut self, pass: &mut Vec<K>) {
        let count = self.users.len();
        if let [only] = &mut self.users[..] {
            pass.extend(only.ready.drain(..));
            pass.extend(only.bulk.pop_front());
            return;
        }
        let first = self.first;
        for _ in 0..TURNS_PER_USER {
            let before = pass.len();
            for offset in 0..count {
                pass.extend(self.users[(first + offset) % count].ready.pop_front());
            }
            if pass.len() == before {
                break;
            }
        }
        self.first = (first + 1) % count;
        let bulk = (0..count).map(|offset| (first + offset) % count);
        if let Some(user) = bulk.into_iter().find(|user| !self.users[*user].bulk.is_empty()) {
            pass.extend(self.users[user].bulk.pop_front());
            // The user of this bulk turn is the last to have the next one.
            self.first = (user + 1) % count;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pass(turns: &mut Turns<u32>) -> Vec<u32> {
        let mut pass = Vec::new();
        turns.next_pass(&mut pass);
        pass
    }

    #[test]
    fn one_user_gets_every_ready_turn_and_one_of_bulk() {
        let mut turns = Turns::new(1);
        (0..40).for_each(|key| turns.push_ready(User(0), key));
        (40..43).for_each(|key| turns.push_bulk(User(0), key));
        assert_eq!(pass(&mut turns), (0..41).collect::<Vec<_>>());
        assert_eq!((pass(&mut turns), pass(&mut turns)), (vec![41], vec![42]));
        assert!(turns.is_empty() && pass(&mut turns).is_empty());
    }

    #[test]
    fn a_user_with_many_connections_does_not_hold_up_one_with_few() {
        let mut turns = Turns::new(3);
        (0..100).for_each(|key| turns.push_ready(User(0), key));
        turns.push_ready(User(2), 1000);
        let first = pass(&mut turns);
        assert_eq!(first.len(), TURNS_PER_USER + 1);
        assert!(first[..2].contains(&1000), "{first:?}");
        // Nothing is lost.
        let mut rest = Vec::new();
        while !turns.is_empty() {
            turns.next_pass(&mut rest);
        }
        assert_eq!(first.len() + rest.len(), 101);
    }

    #[test]
    fn users_take_turns_in_bulk_too() {
        let mut turns = Turns::new(2);
        (0..9).for_each(|key| turns.push_bulk(User(0), key));
        (100..103).for_each(|key| turns.push_bulk(User(1), key));
        let order: Vec<u32> = (0..6).flat_map(|_| pass(&mut turns)).collect();
        assert_eq!(order, [0, 100, 1, 101, 2, 102]);
        assert_eq!(pass(&mut turns), [3]);
    }
}
