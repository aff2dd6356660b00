//! What is known about the addresses of the one host: for how long that is used, when it is asked for
//! again, and what happens when nothing is to be had. It knows no socket and asks nobody itself.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// How long the addresses of a name are used.
const DNS_CACHE: Duration = Duration::from_secs(60);
/// How long a lookup may take before the last good addresses are used in the meantime.
const PATIENCE: Duration = Duration::from_secs(1);
/// The least time between two lookups.
const PACE: Duration = Duration::from_millis(20);
/// How long lookups pause after one that failed; twice as long after each further one, up to the last.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_millis(1600));

/// The addresses of one host.
pub struct Addresses {
    /// The last ones that were found, and until when they count as fresh; `None`: always.
    good: Option<(Rc<[SocketAddr]>, Option<Instant>)>,
    /// When the lookup under way began.
    asked: Option<Instant>,
    /// When the last lookup ended in nothing, and how many before it did.
    failed: Option<(Instant, u32)>,
    /// No lookup begins earlier.
    not_before: Option<Instant>,
}

/// What a dial does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Connects to one of these.
    Use(Rc<[SocketAddr]>),
    /// Has a lookup begun, and asks again.
    Lookup,
    /// Asks again when a lookup has ended, or at this time.
    Wait(Option<Instant>),
    /// Fails: the name has no address.
    Fail,
}

impl Addresses {
    /// Nothing is known yet.
    pub fn of_a_name() -> Addresses {
        Addresses { good: None, asked: None, failed: None, not_before: None }
    }

    /// Nothing is ever asked.
    pub fn literal(addresses: &[SocketAddr]) -> Addresses {
        let good = Some((Rc::from(addresses), None));
        Addresses { good, asked: None, failed: None, not_before: None }
    }

    /// For a dial that has waited since then.
    pub fn next(&self, since: Instant, now: Instant) -> Next {
        let (good, fresh) = match &self.good {
            Some((addresses, until)) => (Some(addresses), until.is_none_or(|until| now < until)),
            None => (None, false),
        };
        match (good, self.asked, self.failed) {
            (Some(good), ..) if fresh => Next::Use(good.clone()),
            (Some(good), Some(asked), _) if now >= asked + PATIENCE => Next::Use(good.clone()),
            (good, Some(asked), _) => Next::Wait(good.map(|_| asked + PATIENCE)),
            // A lookup has ended while it waited, or may not begin yet.
            (Some(good), None, Some((at, _))) if at >= since => Next::Use(good.clone()),
            (None, None, Some((at, _))) if at >= since => Next::Fail,
            (good, None, failed) => match (self.not_before, good) {
                (Some(then), Some(good)) if now < then && failed.is_some() => {
                    Next::Use(good.clone())
                }
                (Some(then), _) if now < then => Next::Wait(Some(then)),
                _ => Next::Lookup,
            },
        }
    }

    /// A lookup has begun.
    pub fn asked(&mut self, now: Instant) {
        self.asked = Some(now);
    }

    /// A lookup has ended. None found: it failed, or the name has none; the last good ones stay.
    pub fn found(&mut self, addresses: Vec<SocketAddr>, now: Instant) {
        self.asked = None;
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

    /// A lookup ended for a reason that says nothing about the name: another one may begin at once.
    pub fn again(&mut self) {
        self.asked = None;
    }

    /// The addresses led nowhere: the next dial has them looked up again.
    pub fn doubt(&mut self, now: Instant) {
        if let Some((_, Some(until))) = &mut self.good {
            *until = now.min(*until);
        }
    }
}

/// Families take turns, beginning with the one that the system prefers (RFC 8305 §4).
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

    fn used(next: Next) -> Vec<SocketAddr> {
        match next {
            Next::Use(addresses) => addresses.to_vec(),
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
        assert_eq!(addresses.next(start, start), Next::Lookup);
        addresses.asked(start);
        assert_eq!(addresses.next(start, start), Next::Wait(None));
        addresses.found(parse(&[A]), start);
        assert_eq!(used(addresses.next(start, start)), parse(&[A]));
        let late = start + DNS_CACHE;
        assert_eq!(used(addresses.next(late - MS, late - MS)), parse(&[A]));
        assert_eq!(addresses.next(late, late), Next::Lookup);
        addresses.doubt(start + 5 * MS);
        let soon = start + 6 * MS;
        assert_eq!(addresses.next(soon, soon), Next::Wait(Some(start + PACE)));
        assert_eq!(addresses.next(soon, start + PACE), Next::Lookup);
        let mut literal = Addresses::literal(&parse(&[B]));
        literal.doubt(start);
        assert_eq!(used(literal.next(start, start)), parse(&[B]));
    }

    #[test]
    fn the_last_good_addresses_are_used_when_a_lookup_fails_finds_nothing_or_hangs() {
        let start = Instant::now();
        let mut addresses = Addresses::of_a_name();
        addresses.found(parse(&[A]), start);
        let now = start + DNS_CACHE;
        assert_eq!(addresses.next(now, now), Next::Lookup);
        addresses.asked(now);
        assert_eq!(addresses.next(now, now), Next::Wait(Some(now + PATIENCE)));
        assert_eq!(used(addresses.next(now, now + PATIENCE)), parse(&[A]));
        addresses.found(vec![], now + MS);
        assert_eq!(used(addresses.next(now, now + MS)), parse(&[A]));
        // A later dial is not made to wait, and does not ask again at once.
        assert_eq!(used(addresses.next(now + 2 * MS, now + 2 * MS)), parse(&[A]));
        let then = now + MS + PAUSE.0;
        assert_eq!(addresses.next(then, then), Next::Lookup);
        addresses.asked(then);
        addresses.found(parse(&[B]), then);
        assert_eq!(used(addresses.next(then, then)), parse(&[B]));
    }

    #[test]
    fn lookups_that_fail_become_rarer() {
        let mut now = Instant::now();
        let mut addresses = Addresses::of_a_name();
        for pause in [100, 200, 400, 800, 1600, 1600, 1600] {
            assert_eq!(addresses.next(now, now), Next::Lookup);
            addresses.asked(now);
            addresses.found(vec![], now);
            assert_eq!(addresses.next(now, now), Next::Fail);
            let (later, then) = (now + MS, now + pause * MS);
            assert_eq!(addresses.next(later, later), Next::Wait(Some(then)));
            now = then;
        }
        addresses.asked(now);
        addresses.found(parse(&[A]), now);
        addresses.doubt(now);
        now += PACE;
        addresses.found(vec![], now);
        assert_eq!(addresses.not_before, Some(now + PAUSE.0), "it starts again");
    }
}
