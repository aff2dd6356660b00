//! The known addresses of the one host: how long they are used, when a lookup is due, and what a
//! dial does without them. This module opens no socket and starts no lookup itself.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// How long the addresses of a name count as fresh.
const DNS_CACHE: Duration = Duration::from_secs(60);
/// How long a lookup may take before dials use the last good addresses in the meantime.
const PATIENCE: Duration = Duration::from_secs(1);
/// The minimum time from the end of a successful lookup to the next lookup.
const PACE: Duration = Duration::from_millis(20);
/// The pause after a failed lookup: the first value, doubled after each further failure, up to the
/// second value.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_millis(1600));

/// The addresses of one host.
pub(super) struct Addresses {
    /// The addresses that the last successful lookup found, and until when they count as fresh.
    /// `None` in place of the time means always.
    good: Option<(Rc<[SocketAddr]>, Option<Instant>)>,
    /// When the lookup under way began; `None` if none is under way.
    lookup_since: Option<Instant>,
    /// When the last lookup failed, and how many have failed in a row, that one included.
    failed: Option<(Instant, u32)>,
    /// No lookup begins before this time.
    not_before: Option<Instant>,
}

/// The next step of a dial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NextAction {
    /// Connects to one of these addresses.
    Use(Rc<[SocketAddr]>),
    /// Begins a lookup, then asks again.
    Lookup,
    /// Waits until a lookup has ended, or until this time, then asks again.
    Wait(Option<Instant>),
    /// Fails: a lookup found no address, and no earlier lookup had found one.
    Fail,
}

impl Addresses {
    /// The addresses of a name, none of which is known yet.
    pub(super) fn of_a_name() -> Addresses {
        Addresses { good: None, lookup_since: None, failed: None, not_before: None }
    }

    /// Fixed addresses, which are never looked up.
    pub(super) fn literal(addresses: &[SocketAddr]) -> Addresses {
        let good = Some((Rc::from(addresses), None));
        Addresses { good, lookup_since: None, failed: None, not_before: None }
    }

    /// The next step of a dial that has waited since the time `since`.
    pub(super) fn next(&self, since: Instant, now: Instant) -> NextAction {
        let (good, fresh) = match &self.good {
            Some((addresses, until)) => (Some(addresses), until.is_none_or(|until| now < until)),
            None => (None, false),
        };
        match (good, self.lookup_since, self.failed) {
            (Some(good), ..) if fresh => NextAction::Use(good.clone()),
            (Some(good), Some(asked), _) if now >= asked + PATIENCE => {
                NextAction::Use(good.clone())
            }
            (good, Some(asked), _) => NextAction::Wait(good.map(|_| asked + PATIENCE)),
            // A lookup has failed while the dial waited.
            (Some(good), None, Some((at, _))) if at >= since => NextAction::Use(good.clone()),
            (None, None, Some((at, _))) if at >= since => NextAction::Fail,
            // Before `not_before`, no lookup begins. After a failed one, the good addresses are
            // used.
            (good, None, failed) => match (self.not_before, good) {
                (Some(then), Some(good)) if now < then && failed.is_some() => {
                    NextAction::Use(good.clone())
                }
                (Some(then), _) if now < then => NextAction::Wait(Some(then)),
                _ => NextAction::Lookup,
            },
        }
    }

    /// Records that a lookup has begun.
    pub(super) fn lookup_began(&mut self, now: Instant) {
        self.lookup_since = Some(now);
    }

    /// Records that a lookup has ended. An empty list means that it failed or that the name has no
    /// address. The last good addresses then stay in use.
    pub(super) fn lookup_ended(&mut self, addresses: Vec<SocketAddr>, now: Instant) {
        self.lookup_since = None;
        if addresses.is_empty() {
            let before = self.failed.map_or(0, |(_, times)| times);
            let pause = PAUSE.0.saturating_mul(1 << before.min(8)).min(PAUSE.1);
            self.not_before = Some(now + pause);
            self.failed = Some((now, before.saturating_add(1)));
        } else {
            self.not_before = Some(now + PACE);
            self.failed = None;
            self.good = Some((interleaved(addresses).into(), Some(now + DNS_CACHE)));
        }
    }

    /// Records that a lookup ended for a reason that says nothing about the name. Another lookup
    /// may begin at once.
    pub(super) fn lookup_disturbed(&mut self) {
        self.lookup_since = None;
    }

    /// Records that the addresses led nowhere. They are no longer fresh, so the next dial needs a
    /// new lookup. Fixed addresses stay fresh.
    pub(super) fn doubt(&mut self, now: Instant) {
        if let Some((_, Some(until))) = &mut self.good {
            *until = now.min(*until);
        }
    }
}

/// Alternates between the address families. The first address is of the family that the system
/// prefers, and stays first (RFC 8305 §4).
fn interleaved(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let Some(first) = addresses.first() else {
        return addresses;
    };
    let v6 = first.is_ipv6();
    let (preferred, other): (Vec<_>, Vec<_>) =
        addresses.into_iter().partition(|address| address.is_ipv6() == v6);
    let mut other = other.into_iter();
    let mut order = Vec::new();
    for address in preferred {
        order.push(address);
        order.extend(other.next());
    }
    order.extend(other);
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(list: &[&str]) -> Vec<SocketAddr> {
        list.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn used(next: NextAction) -> Vec<SocketAddr> {
        match next {
            NextAction::Use(addresses) => addresses.to_vec(),
            other => panic!("{other:?}"),
        }
    }

    const A: &str = "192.0.2.1:1";
    const B: &str = "192.0.2.2:1";
    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn families_take_turns() {
        let (a, b, c) = ("[::1]:1", "[::2]:1", "[::3]:1");
        let (x, y, z) = ("1.1.1.1:1", "1.1.1.2:1", "1.1.1.3:1");
        assert_eq!(interleaved(parse(&[a, b, c, x, y])), parse(&[a, x, b, y, c]));
        assert_eq!(interleaved(parse(&[x, a, y, z])), parse(&[x, a, y, z]));
        assert_eq!(interleaved(parse(&[x, a, b, c])), parse(&[x, a, b, c]));
        assert_eq!(interleaved(vec![]), vec![]);
    }

    #[test]
    fn a_name_is_asked_for_once_a_minute_and_after_a_doubt() {
        let start = Instant::now();
        let mut addresses = Addresses::of_a_name();
        assert_eq!(addresses.next(start, start), NextAction::Lookup);
        addresses.lookup_began(start);
        assert_eq!(addresses.next(start, start), NextAction::Wait(None));
        addresses.lookup_ended(parse(&[A]), start);
        assert_eq!(used(addresses.next(start, start)), parse(&[A]));
        let late = start + DNS_CACHE;
        assert_eq!(used(addresses.next(late - MS, late - MS)), parse(&[A]));
        assert_eq!(addresses.next(late, late), NextAction::Lookup);
        addresses.doubt(start + 5 * MS);
        let soon = start + 6 * MS;
        assert_eq!(addresses.next(soon, soon), NextAction::Wait(Some(start + PACE)));
        assert_eq!(addresses.next(soon, start + PACE), NextAction::Lookup);
        let mut literal = Addresses::literal(&parse(&[B]));
        literal.doubt(start);
        assert_eq!(used(literal.next(start, start)), parse(&[B]));
    }

    #[test]
    fn the_last_good_addresses_are_used_when_a_lookup_fails_finds_nothing_or_hangs() {
        let start = Instant::now();
        let mut addresses = Addresses::of_a_name();
        addresses.lookup_ended(parse(&[A]), start);
        let now = start + DNS_CACHE;
        assert_eq!(addresses.next(now, now), NextAction::Lookup);
        addresses.lookup_began(now);
        assert_eq!(addresses.next(now, now), NextAction::Wait(Some(now + PATIENCE)));
        assert_eq!(used(addresses.next(now, now + PATIENCE)), parse(&[A]));
        addresses.lookup_ended(vec![], now + MS);
        assert_eq!(used(addresses.next(now, now + MS)), parse(&[A]));
        // A later dial does not wait, and does not begin a lookup at once.
        assert_eq!(used(addresses.next(now + 2 * MS, now + 2 * MS)), parse(&[A]));
        let then = now + MS + PAUSE.0;
        assert_eq!(addresses.next(then, then), NextAction::Lookup);
        addresses.lookup_began(then);
        addresses.lookup_ended(parse(&[B]), then);
        assert_eq!(used(addresses.next(then, then)), parse(&[B]));
    }

    #[test]
    fn lookups_that_fail_become_rarer() {
        let mut now = Instant::now();
        let mut addresses = Addresses::of_a_name();
        for pause in [100, 200, 400, 800, 1600, 1600, 1600] {
            assert_eq!(addresses.next(now, now), NextAction::Lookup);
            addresses.lookup_began(now);
            addresses.lookup_ended(vec![], now);
            assert_eq!(addresses.next(now, now), NextAction::Fail);
            let (later, then) = (now + MS, now + pause * MS);
            assert_eq!(addresses.next(later, later), NextAction::Wait(Some(then)));
            now = then;
        }
        addresses.lookup_began(now);
        addresses.lookup_ended(parse(&[A]), now);
        addresses.doubt(now);
        now += PACE;
        addresses.lookup_ended(vec![], now);
        assert_eq!(addresses.not_before, Some(now + PAUSE.0), "it starts again");
    }
}
