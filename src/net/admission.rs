//! Which connections get a place. The decision is made once for each connection, before its session
//! exists.
//!
//! `--max-connections` is the number of places. A single user may hold all of them except a small
//! reserve. As soon as other users connect, each gets a fair share. When no place is free, an idle
//! connection may be closed, but never a connection with a request under way.

use std::time::Instant;

use super::limits::{OVERLOADED_LINGERING, REFUSED_LINGERING, REFUSED_USERS, RESERVE};
use super::timeouts::{IDLE_BEFORE_EVICTION, REFUSALS, WAITING_USER};

/// The decision about an accepted connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It gets a place.
    Serve,
    /// Its local user may not use the relay.
    UserRefused,
    /// There is no place for it.
    Overloaded,
}

/// A local user who may use the relay: an index into the users of `--allow-uid`, or 0 without that
/// flag.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UserIndex(pub usize);

/// A client connection: its user, and the decision about it. Made once, before a session exists.
#[derive(Clone, Copy, Debug)]
pub struct Client {
    /// The decision about the connection.
    pub admission: Admission,
    /// The user at the other end.
    pub user: UserIndex,
    /// The uid of that user; `None` without `--allow-uid`.
    pub uid: Option<u32>,
    /// The number of the connection, counted since the start of the program.
    pub number: u64,
}

/// A connection that has a place and no request under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdleConnection<K> {
    /// The id of its session.
    pub id: K,
    /// The user at the other end.
    pub user: UserIndex,
    /// Since when no request has been under way.
    pub since: Instant,
}

/// The places of one user.
#[derive(Clone, Default)]
struct Share {
    held: usize,
    /// When the user last found no place.
    refused_at: Option<Instant>,
}

/// The places, and the users who hold them.
pub struct Places {
    limit: usize,
    held: usize,
    shares: Vec<Share>,
    refused: usize,
    overloaded: usize,
    /// Before this time, no connection has been idle long enough to be closed. Without this field,
    /// each connection that arrives while all places are busy would cost a search of the table.
    none_idle_before: Option<Instant>,
}

impl Places {
    /// `limit` places for this number of users.
    pub fn new(limit: usize, users: usize) -> Places {
        Places {
            limit,
            held: 0,
            shares: vec![Share::default(); users.max(1)],
            refused: 0,
            overloaded: 0,
            none_idle_before: None,
        }
    }

    /// A place is free that this user may take.
    pub fn has_place_for(&self, user: UserIndex, now: Instant) -> bool {
        self.held + self.kept_from(user) < self.limit && self.is_within_share(user, now)
    }

    /// The places that this user leaves free for users who are not connected yet. A request under
    /// way is never ended for another user, so without this reserve one user with long requests
    /// could keep all others out.
    fn kept_from(&self, user: UserIndex) -> usize {
        let reserve = self.limit / (RESERVE * self.shares.len());
        let others = self.shares.iter().enumerate().filter(|(index, _)| *index != user.0);
        others.map(|(_, share)| reserve.saturating_sub(share.held)).sum()
    }

    /// While no other user is active, a user's share has no bound ([`Places::kept_from`] keeps the
    /// reserve). As soon as another user is active, each user may hold half of the places that the
    /// others leave, and always an equal share of all places.
    fn is_within_share(&self, user: UserIndex, now: Instant) -> bool {
        let own = self.shares[user.0].held;
        let is_active = |share: &Share| {
            let waits = |at: Instant| now.saturating_duration_since(at) < WAITING_USER;
            share.held > 0 || share.refused_at.is_some_and(waits)
        };
        let others = self.shares.iter().enumerate().filter(|(index, _)| *index != user.0);
        let others = others.filter(|(_, share)| is_active(share)).count();
        if others == 0 {
            return true;
        }
        let left = self.limit.saturating_sub(self.held - own);
        own < left.div_ceil(2).max(self.limit / (others + 1)).max(1)
    }

    /// The connection to close for a user for whom [`Places::has_place_for`] is false. Of the
    /// connections that have been idle for [`IDLE_BEFORE_EVICTION`], the connections of the user
    /// with the most places come first, and of these the one that has been idle longest. A user
    /// with a full share loses a connection of their own. Otherwise a user loses none to a user who
    /// holds more.
    pub fn evict<K: Copy>(
        &mut self,
        user: UserIndex,
        idle: impl Iterator<Item = IdleConnection<K>>,
        now: Instant,
    ) -> Option<K> {
        if self.none_idle_before.is_some_and(|until| now < until) {
            return None;
        }
        let own_only = !self.is_within_share(user, now);
        let own = self.shares[user.0].held;
        let mut next = now + IDLE_BEFORE_EVICTION;
        let mut best: Option<(usize, IdleConnection<K>)> = None;
        for candidate in idle {
            next = next.min(candidate.since + IDLE_BEFORE_EVICTION);
            let held = self.shares[candidate.user.0].held;
            let may_go = candidate.user == user || (!own_only && held >= own);
            if candidate.since + IDLE_BEFORE_EVICTION > now || !may_go {
                continue;
            }
            let is_better = best.is_none_or(|(most, longest)| {
                held > most || (held == most && candidate.since < longest.since)
            });
            if is_better {
                best = Some((held, candidate));
            }
        }
        self.none_idle_before = (next > now).then_some(next);
        best.map(|(_, candidate)| candidate.id)
    }

    /// Counts a new connection with this decision.
    pub fn enter(&mut self, admission: Admission, user: UserIndex) {
        *self.count(admission) += 1;
        if admission == Admission::Serve {
            self.shares[user.0].held += 1;
        }
    }

    /// Counts the end of a connection with this decision.
    pub fn count_end(&mut self, admission: Admission, user: UserIndex) {
        *self.count(admission) -= 1;
        if admission == Admission::Serve {
            self.shares[user.0].held -= 1;
        }
    }

    fn count(&mut self, admission: Admission) -> &mut usize {
        match admission {
            Admission::Serve => &mut self.held,
            Admission::UserRefused => &mut self.refused,
            Admission::Overloaded => &mut self.overloaded,
        }
    }

    /// The user has found no place. For a while the other users take no more than their share, so
    /// that the next attempt finds one.
    pub fn note_overload(&mut self, user: UserIndex, now: Instant) {
        self.shares[user.0].refused_at = Some(now);
    }

    /// One more connection with this decision can linger. Few connections without a place may
    /// linger at one time. Further ones get their refusal and are closed at once.
    pub fn can_linger(&self, admission: Admission) -> bool {
        match admission {
            Admission::Serve => true,
            Admission::UserRefused => self.refused < REFUSED_LINGERING,
            Admission::Overloaded => self.overloaded < OVERLOADED_LINGERING,
        }
    }
}

/// Connections of refused users that are not in the log yet.
#[derive(Default)]
pub struct Refusals {
    /// The count of each uid. `None` is for unknown users, and for all users beyond
    /// [`REFUSED_USERS`].
    counts: Vec<(Option<u32>, u64)>,
    due: Option<Instant>,
}

impl Refusals {
    /// Counts one more connection of this user.
    pub fn note(&mut self, uid: Option<u32>, now: Instant) {
        self.due.get_or_insert(now + REFUSALS);
        let known = self.counts.iter().any(|(other, _)| *other == uid);
        let uid = uid.filter(|_| known || self.counts.len() < REFUSED_USERS);
        match self.counts.iter_mut().find(|(other, _)| *other == uid) {
            Some((_, count)) => *count += 1,
            None => self.counts.push((uid, 1)),
        }
    }

    /// When the counts are to be logged.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Removes the counts.
    pub fn take(&mut self) -> impl Iterator<Item = (Option<u32>, u64)> + '_ {
        self.due = None;
        self.counts.drain(..)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const A: UserIndex = UserIndex(0);
    const B: UserIndex = UserIndex(1);
    const C: UserIndex = UserIndex(2);

    /// Users take places one after the other; whether each got one.
    fn take(places: &mut Places, user: UserIndex, count: usize, now: Instant) -> usize {
        let got = (0..count).take_while(|_| {
            let is_free = places.has_place_for(user, now);
            if is_free {
                places.enter(Admission::Serve, user);
            }
            is_free
        });
        got.count()
    }

    fn idle(id: u32, user: UserIndex, since: Instant) -> IdleConnection<u32> {
        IdleConnection { id, user, since }
    }

    #[test]
    fn one_user_alone_has_every_place_and_none_beyond() {
        let now = Instant::now();
        for users in [0, 1, 3] {
            let mut places = Places::new(7, users);
            assert_eq!(take(&mut places, A, 9, now), 7);
        }
    }

    #[test]
    fn with_two_users_at_work_none_takes_more_than_half_of_what_is_left() {
        let now = Instant::now();
        let mut places = Places::new(100, 2);
        places.enter(Admission::Serve, B);
        // Of the 99 that B leaves.
        assert_eq!(take(&mut places, A, 100, now), 50);
        // Half of the 50 that A leaves would be 25, but 50 are B's equal share.
        assert_eq!(take(&mut places, B, 100, now), 49);
        assert_eq!(take(&mut places, A, 100, now), 0);
        // B leaves the relay: all of it is A's, but for three that B finds free at any time.
        (0..50).for_each(|_| places.count_end(Admission::Serve, B));
        assert_eq!(take(&mut places, A, 100, now), 47);
        assert_eq!(take(&mut places, B, 100, now), 3);
    }

    #[test]
    fn one_part_in_reserve_of_an_equal_share_is_kept_free_for_each_other_user() {
        let now = Instant::now();
        for (limit, kept) in [(2 * RESERVE - 1, 0), (2 * RESERVE, 1), (6 * RESERVE, 3)] {
            let mut places = Places::new(limit, 2);
            assert_eq!(take(&mut places, A, limit, now), limit - kept);
            assert_eq!(take(&mut places, B, limit, now), kept);
        }
    }

    #[test]
    fn everybody_gets_one_place_as_long_as_there_is_one() {
        let now = Instant::now();
        let mut places = Places::new(3, 4);
        assert_eq!(take(&mut places, A, 1, now), 1);
        assert_eq!(take(&mut places, B, 5, now), 1);
        assert_eq!(take(&mut places, C, 5, now), 1);
        assert_eq!(take(&mut places, UserIndex(3), 5, now), 0);
    }

    #[test]
    fn a_user_who_found_no_place_is_at_work_for_a_while() {
        let now = Instant::now();
        let mut places = Places::new(4, 2);
        assert_eq!(take(&mut places, A, 9, now), 4);
        places.note_overload(B, now);
        places.count_end(Admission::Serve, A);
        // A holds three of four and takes no more, so that B gets the free one.
        let soon = now + WAITING_USER - Duration::from_millis(1);
        assert!(!places.has_place_for(A, soon) && places.has_place_for(B, soon));
        assert!(places.has_place_for(A, now + WAITING_USER));
    }

    #[test]
    fn a_full_table_gives_up_what_the_greediest_user_left_idle_longest() {
        let start = Instant::now();
        let now = start + Duration::from_secs(60);
        let since = |seconds| start + Duration::from_secs(seconds);
        let mut places = Places::new(6, 3);
        assert_eq!(take(&mut places, A, 6, now), 6);
        places.count_end(Admission::Serve, A);
        places.count_end(Admission::Serve, A);
        places.enter(Admission::Serve, B);
        places.enter(Admission::Serve, C);
        let all = [idle(1, B, since(1)), idle(2, A, since(20)), idle(3, A, since(10))];
        assert_eq!(places.evict(C, all.into_iter(), now), Some(3));
        // Who has a full share gives up one of their own.
        assert_eq!(places.evict(A, all.into_iter(), now), Some(3));
        assert_eq!(places.evict(A, [idle(1, B, since(1))].into_iter(), now), None);
        // Nobody loses one to a user who holds more; to one who holds as much, yes.
        assert_eq!(places.evict(C, [idle(1, B, since(1))].into_iter(), now), Some(1));
        assert_eq!(places.evict::<u32>(C, [].into_iter(), now), None);
    }

    #[test]
    fn a_connection_is_idle_for_a_second_before_it_goes() {
        let start = Instant::now();
        let mut places = Places::new(1, 1);
        places.enter(Admission::Serve, A);
        let all = || [idle(1, A, start)].into_iter();
        let early = start + IDLE_BEFORE_EVICTION - Duration::from_nanos(1);
        assert_eq!(places.evict(A, all(), start), None);
        // Nobody is looked at again before one of them can go.
        let looked_at = std::cell::Cell::new(0);
        let watched = || all().inspect(|_| looked_at.set(looked_at.get() + 1));
        assert_eq!(places.evict(A, watched(), early), None);
        assert_eq!(looked_at.get(), 0);
        assert_eq!(places.evict(A, watched(), start + IDLE_BEFORE_EVICTION), Some(1));
    }

    #[test]
    fn a_handful_without_a_place_is_heard_out() {
        for (admission, most) in [
            (Admission::UserRefused, REFUSED_LINGERING),
            (Admission::Overloaded, OVERLOADED_LINGERING),
        ] {
            let mut places = Places::new(1, 1);
            for _ in 0..most {
                assert!(places.can_linger(admission));
                places.enter(admission, A);
            }
            assert!(!places.can_linger(admission));
            // They take nobody's place.
            assert!(places.has_place_for(A, Instant::now()));
            places.count_end(admission, A);
            assert!(places.can_linger(admission));
        }
    }

    #[test]
    fn refusals_are_counted_by_user_and_the_number_of_users_is_bounded() {
        let now = Instant::now();
        let mut refusals = Refusals::default();
        assert_eq!(refusals.due(), None);
        for n in 0..1000 {
            refusals.note(Some(n % 100), now + Duration::from_millis(n.into()));
        }
        assert_eq!(refusals.due(), Some(now + REFUSALS));
        let counts: Vec<_> = refusals.take().collect();
        assert_eq!(counts.len(), REFUSED_USERS + 1);
        assert_eq!(counts[0], (Some(0), 10));
        assert_eq!(counts[REFUSED_USERS], (None, 920));
        assert!(refusals.due().is_none() && refusals.take().next().is_none());
    }
}
