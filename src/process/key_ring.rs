//! The current key and the older keys. With `--rotate` each further line on stdin becomes the key.
//!
//! ```text
//!   stdin ─ read(2) ─► lines ─ check ─► free pages ─ swap ─► the current key ─► an older key ─ wipe ─► free
//! ```
//!
//! Every byte is read into secret pages. All pages are mapped before the process is confined. The
//! key is replaced between two requests. Responses are searched for an older key until each
//! exchange that carried it has ended; then the key is wiped.

use std::fmt;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use super::credential::{
    Credential, KeyError, KeyForm, KeyPages, LINE_END, Lines, SearchPosition, Settled, Source,
    first_line, locked_kib,
};
use super::key_memory::{KeyMemory, least_protected};
use super::sys::{self, ProtectedPages, ProtectionKey, SecretMemory};
use crate::http1::{digits, limits};

/// How lines are read, and how long a key may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// `--key-max-age`: since a key was read.
    pub max_age: Option<Duration>,
    /// The form of a line.
    pub line: LineForm,
}

/// For the start line and `--check`.
impl fmt::Display for Terms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.line {
            LineForm::Key => "each further line on stdin replaces the key",
            LineForm::KeyAndLifetime => "the key comes by GitHub's OIDC and is renewed",
        })?;
        self.max_age.map_or(Ok(()), |age| write!(f, "; a key is used for {} s", age.as_secs()))
    }
}

/// The form of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineForm {
    /// A key.
    Key,
    /// A key, a space, and the key's remaining lifetime in milliseconds: at most
    /// [`LIFETIME_DIGITS`] digits.
    KeyAndLifetime,
}

/// Digits of a lifetime.
const LIFETIME_DIGITS: usize = 8;

impl Terms {
    /// Splits a line into a key of this form, whose length is returned, and for how long it may be
    /// used.
    fn read(self, form: KeyForm, line: &[u8]) -> Result<(usize, Option<Duration>), KeyError> {
        let (key, lifetime) = match self.line {
            LineForm::Key => (line, None),
            LineForm::KeyAndLifetime => {
                let space =
                    line.iter().rposition(|byte| *byte == b' ').ok_or(KeyError::Lifetime)?;
                let time = digits::decimal(&line[space + 1..], LIFETIME_DIGITS);
                let time = time.filter(|time| *time > 0).ok_or(KeyError::Lifetime)?;
                (&line[..space], Some(Duration::from_millis(time)))
            }
        };
        form.check(key)?;
        Ok((key.len(), lifetime.into_iter().chain(self.max_age).min()))
    }

    /// The longest line with its end, in bytes.
    fn longest_line(self, form: KeyForm) -> usize {
        let lifetime = match self.line {
            LineForm::Key => 0,
            LineForm::KeyAndLifetime => 1 + LIFETIME_DIGITS,
        };
        form.longest() + lifetime + LINE_END
    }
}

/// The keys of the process.
pub struct KeyRing {
    current: Credential,
    generation: Carried,
    /// The older keys that an exchange may still carry, the oldest first.
    older: Vec<(Credential, Carried)>,
    /// `None` without `--rotate`.
    rotation: Option<Box<Rotation>>,
}

/// The key that an exchange carries. While this exists, responses are searched for the key.
#[derive(Clone)]
pub struct Carried(Rc<u64>);

impl Carried {
    /// The number of the key: 1 for the first.
    pub fn generation(&self) -> u64 {
        *self.0
    }
}

struct Rotation {
    form: KeyForm,
    terms: Terms,
    free: Vec<KeyPages>,
    /// The pages into which lines are read.
    pages: ProtectedPages,
    lines: Lines,
    validity: Validity,
}

/// The time for which the current key may be used, by the clock that counts the time since the
/// machine was booted, including the time for which it was suspended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Validity {
    Unlimited,
    Until(Duration),
    /// The time is over, and [`KeyRing::expire`] has reported it.
    Expired,
}

impl Validity {
    fn from_now(limit: Option<Duration>) -> Validity {
        limit.map_or(Validity::Unlimited, |limit| Validity::Until(sys::time_since_boot() + limit))
    }

    fn is_over(self) -> bool {
        match self {
            Validity::Unlimited => false,
            Validity::Until(when) => sys::time_since_boot() >= when,
            Validity::Expired => true,
        }
    }
}

/// The result of the lines that were read.
#[derive(Default)]
pub struct Taken {
    /// The last line that is a key.
    pub key: Option<TakenKey>,
    /// Why the last refused line is not a key.
    pub refused: Option<KeyError>,
    /// The number of refused lines.
    pub refused_lines: u64,
}

/// How an accepted line changed the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TakenKey {
    /// It is a new key. Requests carry it from the next one on.
    Fresh,
    /// It is the current key, which counts as read just now.
    Same,
    /// It is the current key, which had expired.
    Revived,
}

impl Taken {
    fn refuse(&mut self, error: KeyError) {
        self.refused = Some(error);
        self.refused_lines += 1;
    }
}

impl KeyRing {
    /// One key for the whole life of the process.
    pub fn fixed(current: Credential) -> KeyRing {
        KeyRing { current, generation: Carried(Rc::new(1)), older: Vec::new(), rotation: None }
    }

    /// Reads the first key as [`Credential::read`] does, and maps the pages for further ones. What
    /// was read behind it waits for [`KeyRing::take`].
    pub fn rotating(
        prefix: &[u8],
        form: KeyForm,
        terms: Terms,
        source: Source<'_>,
    ) -> Result<KeyRing, KeyError> {
        let KeyMemory { lines: pages, mut free } = KeyRing::map(prefix.len(), form, Some(terms))?;
        let mut pages = pages.ok_or_else(no_pages)?;
        let first = free.pop().ok_or_else(no_pages)?;

        let mut open = pages.open();
        let buffer = &mut open.writable()[..terms.longest_line(form)];
        let mut lines = Lines::default();
        let line = first_line(&mut lines, buffer, form, source)?;
        let (length, limit) = terms.read(form, &buffer[line.clone()])?;
        let current = first.load(prefix, &buffer[line.start..line.start + length])?;
        drop(open);
        let validity = Validity::from_now(limit);
        let rotation = Rotation { form, terms, free, pages, lines, validity };
        Ok(KeyRing { rotation: Some(Box::new(rotation)), ..KeyRing::fixed(current) })
    }

    /// `--rotate`: the key may be replaced.
    pub fn is_rotating(&self) -> bool {
        self.rotation.is_some()
    }

    /// The form of the lines that keys are read from.
    pub fn line(&self) -> LineForm {
        self.rotation.as_ref().map_or(LineForm::Key, |rotation| rotation.terms.line)
    }

    /// The key that requests carry.
    pub fn current(&mut self) -> &mut Credential {
        &mut self.current
    }

    /// Registers an exchange that carries the current key. The exchange keeps the result until it
    /// ends.
    pub fn carry(&self) -> Carried {
        self.generation.clone()
    }

    /// The kind of memory that holds the keys; the less protected kind if there are two.
    pub fn memory(&self) -> SecretMemory {
        match self.current.memory() {
            SecretMemory::MemfdSecret => {
                least_protected(self.rotation.iter().flat_map(|rotation| &rotation.free))
            }
            SecretMemory::Locked => SecretMemory::Locked,
        }
    }

    /// Maps the pages of a start. `prefix` is the length of the prefix of the key.
    pub fn map(prefix: usize, form: KeyForm, terms: Option<Terms>) -> Result<KeyMemory, KeyError> {
        KeyMemory::map(prefix, form, terms.map(|terms| terms.longest_line(form)))
    }

    /// The mechanism that closes the pages between two uses.
    pub fn protection_key(&self) -> ProtectionKey {
        self.current.protection_key()
    }

    /// Searches the next piece of a response for all keys that an exchange may carry.
    pub fn reflected(&mut self, position: &mut SearchPosition, piece: &[u8]) -> bool {
        let mut is_searched = self.current.is_searched_for();
        let mut found = self.current.is_in(position, piece);
        for (key, _) in &mut self.older {
            is_searched |= key.is_searched_for();
            found |= key.is_in(position, piece);
        }
        match (found, is_searched) {
            (true, _) => position.wipe(),
            (false, true) => position.advance(piece),
            (false, false) => {}
        }
        found
    }

    /// Reads once into the secret pages. Returns the number of bytes; 0 is the end of the input.
    /// `source` is read(2).
    pub fn read(&mut self, source: Source<'_>) -> io::Result<usize> {
        let Some(rotation) = &mut self.rotation else {
            return Ok(0);
        };
        let longest = rotation.terms.longest_line(rotation.form);
        let mut open = rotation.pages.open();
        rotation.lines.read(&mut open.writable()[..longest], source)
    }

    /// Checks the lines that have been read. The last one that is a key becomes the current key:
    /// those before it would be replaced before a request could carry them.
    pub fn take(&mut self) -> Taken {
        let mut taken = Taken::default();
        let Some(rotation) = &mut self.rotation else {
            return taken;
        };
        let Rotation { form, terms, free, pages, lines, validity } = &mut **rotation;
        let mut open = pages.open();
        let buffer = &mut open.writable()[..terms.longest_line(*form)];
        let mut last = None;
        while let Some(line) = lines.next(buffer) {
            match terms.read(*form, &buffer[line.clone()]) {
                Ok((length, limit)) => last = Some((line.start..line.start + length, limit)),
                Err(error) => taken.refuse(error),
            }
        }
        let mut fresh = None;
        if let Some((key, limit)) = last {
            let key = &buffer[key];
            if self.current.matches(key) {
                let is_over = validity.is_over();
                taken.key = Some(if is_over { TakenKey::Revived } else { TakenKey::Same });
                *validity = Validity::from_now(limit);
            } else {
                let pages = free.pop().ok_or_else(no_pages);
                match pages.and_then(|pages| self.current.load_with_same_prefix(pages, key)) {
                    Ok(credential) => {
                        fresh = Some(credential);
                        *validity = Validity::from_now(limit);
                    }
                    Err(error) => taken.refuse(error),
                }
            }
        }
        if lines.settle(buffer) == Settled::TooLong {
            taken.refuse(KeyError::TooLong(*form));
        }
        drop(open);
        if let Some(fresh) = fresh {
            taken.key = Some(TakenKey::Fresh);
            self.swap(fresh);
        }
        taken
    }

    fn swap(&mut self, fresh: Credential) {
        let next = Carried(Rc::new(self.generation.generation() + 1));
        let replaced = std::mem::replace(&mut self.current, fresh);
        self.older.push((replaced, std::mem::replace(&mut self.generation, next)));
        self.retire();
    }

    /// The input has ended. Returns whether it ended within a line, which is dropped.
    pub fn end(&mut self) -> Ended {
        let Some(rotation) = &mut self.rotation else {
            return Ended::BetweenLines;
        };
        let mut open = rotation.pages.open();
        let is_cut = rotation.lines.end(open.writable()).is_some();
        zeroize::Zeroize::zeroize(open.writable());
        if is_cut { Ended::WithinLine } else { Ended::BetweenLines }
    }

    /// Wipes the older keys that no exchange carries any more.
    pub fn retire(&mut self) {
        let Some(rotation) = self.rotation.as_mut() else {
            return;
        };
        let is_over = |(_, carried): &(Credential, Carried)| Rc::strong_count(&carried.0) == 1;
        while let Some(at) = self.older.iter().position(is_over) {
            // Pages that cannot be wiped are unmapped instead.
            rotation.free.extend(self.older.remove(at).0.wipe().ok());
        }
    }

    /// The generation of the oldest key, if no pages are free for a new one. The caller must then
    /// end the exchanges that carry it.
    pub fn crowded_by(&self) -> Option<u64> {
        let has_free = self.rotation.as_ref().is_none_or(|rotation| !rotation.free.is_empty());
        let (_, oldest) = self.older.first().filter(|_| !has_free)?;
        Some(oldest.generation())
    }

    /// Whether the current key may no longer be used.
    pub fn is_expired(&self) -> bool {
        self.rotation.as_ref().is_some_and(|rotation| rotation.validity.is_over())
    }

    /// How long the current key may still be used. `None` if the time has no limit, or is over.
    pub fn expires_in(&self) -> Option<Duration> {
        match self.rotation.as_ref()?.validity {
            Validity::Unlimited | Validity::Expired => None,
            Validity::Until(when) => Some(when.saturating_sub(sys::time_since_boot())),
        }
    }

    /// Records that the current key has expired. Returns `Some` once each time that it expires.
    pub fn expire(&mut self) -> Option<Expired> {
        let is_over = self.expires_in()?.is_zero();
        let rotation = self.rotation.as_mut().filter(|_| is_over)?;
        rotation.validity = Validity::Expired;
        Some(Expired)
    }
}

/// Where the input has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// After a line.
    BetweenLines,
    /// Within a line, which is ignored.
    WithinLine,
}

/// The current key has expired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expired;

fn no_pages() -> KeyError {
    KeyError::Memory(
        io::ErrorKind::OutOfMemory.into(),
        locked_kib(sys::page_size(), limits::KEY_SETS),
    )
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::http1::limits;

    const PREFIX: &[u8] = b"POST / HTTP/1.1\r\nAuthorization: Bearer ";
    const TERMS: Terms = Terms { max_age: None, line: LineForm::Key };
    const LEASED: Terms = Terms { max_age: None, line: LineForm::KeyAndLifetime };

    fn ring(terms: Terms, input: &[u8]) -> KeyRing {
        let mut input = input;
        let read = &mut |buffer: &mut [u8]| io::Read::read(&mut input, buffer);
        KeyRing::rotating(PREFIX, KeyForm::Token68, terms, read).ok().unwrap()
    }

    /// Has these bytes read, as far as there is room, and taken.
    fn give(keys: &mut KeyRing, mut input: &[u8]) -> Taken {
        keys.read(&mut |buffer| io::Read::read(&mut input, buffer)).unwrap();
        keys.take()
    }

    fn key(keys: &mut KeyRing) -> Vec<u8> {
        let mut record = Vec::new();
        keys.current().splice_into(&[], &mut record).unwrap();
        record.strip_prefix(PREFIX).unwrap().strip_suffix(b"\r\n").unwrap().to_vec()
    }

    /// A key that is looked for.
    fn long(n: usize) -> Vec<u8> {
        format!("{n:02}key").repeat(16).into_bytes()
    }

    fn line(key: &[u8]) -> Vec<u8> {
        [key, b"\n"].concat()
    }

    #[test]
    fn a_fresh_key_is_whole_whatever_the_lengths_of_it_and_of_the_one_before() {
        let mut keys = ring(TERMS, b"k\n");
        for length in [2, limits::TOKEN68, 1, 100, limits::TOKEN68 - 1] {
            let fresh = vec![b'a' + length as u8 % 20; length];
            let all = [line(&fresh), b"x".to_vec()].concat();
            let mut rest = &all[..];
            let mut taken = None;
            while !rest.is_empty() {
                let read = keys.read(&mut |buffer| io::Read::read(&mut rest, buffer));
                assert!(read.unwrap() > 0);
                taken = keys.take().key.or(taken);
            }
            assert_eq!(taken, Some(TakenKey::Fresh));
            assert!(key(&mut keys) == fresh, "another key");
            // The rest is the beginning of the next line: it is refused with its end.
            assert_eq!(give(&mut keys, b"=y\n").refused_lines, 1);
        }
    }

    #[test]
    fn keys_that_no_exchange_carries_need_no_room() {
        let mut keys = ring(TERMS, &line(&long(0)));
        for n in 1..3 * limits::KEY_SETS {
            assert_eq!(give(&mut keys, &line(&long(n))).key, Some(TakenKey::Fresh));
            assert_eq!((keys.older.len(), keys.crowded_by()), (0, None));
            assert_eq!(keys.carry().generation(), n as u64 + 1);
        }
    }

    #[test]
    fn there_is_room_for_a_fresh_key_until_each_of_the_others_is_carried() {
        let mut keys = ring(TERMS, &line(&long(0)));
        let mut carried = Vec::new();
        for n in 1..limits::KEY_SETS {
            assert_eq!(keys.crowded_by(), None, "{n} keys");
            carried.push(keys.carry());
            assert_eq!(give(&mut keys, &line(&long(n))).key, Some(TakenKey::Fresh));
        }
        assert_eq!(keys.crowded_by(), Some(1), "{} keys", limits::KEY_SETS);
        // One more finds no room, and the key stays.
        let taken = give(&mut keys, &line(&long(99)));
        assert!(taken.key.is_none() && matches!(taken.refused, Some(KeyError::Memory(..))));
        assert!(key(&mut keys) == long(limits::KEY_SETS - 1));
        // Any of them makes room.
        carried.remove(3);
        keys.retire();
        assert_eq!(keys.crowded_by(), None);
        carried.push(keys.carry());
        assert_eq!(give(&mut keys, &line(&long(99))).key, Some(TakenKey::Fresh));
        assert_eq!(keys.crowded_by(), Some(1));
    }

    #[test]
    fn each_key_that_is_carried_is_looked_for_and_no_other() {
        let mut keys = ring(TERMS, &line(&long(0)));
        let first = keys.carry();
        give(&mut keys, &line(&long(1)));
        let second = keys.carry();
        give(&mut keys, &line(&long(2)));
        let found = |keys: &mut KeyRing| {
            [0, 1, 2].map(|n| keys.reflected(&mut SearchPosition::default(), &long(n)))
        };
        assert_eq!(found(&mut keys), [true, true, true]);
        drop(second);
        keys.retire();
        assert_eq!(found(&mut keys), [true, false, true]);
        drop(first);
        keys.retire();
        assert_eq!(found(&mut keys), [false, false, true]);
    }

    #[test]
    fn a_key_is_found_in_pieces_whichever_of_the_keys_is_searched_for() {
        // The first is too short to be looked for, and the second is not; and the other way round.
        for (first, second) in [(b"short".to_vec(), long(1)), (long(1), b"short".to_vec())] {
            let mut keys = ring(TERMS, &line(&first));
            let _first = keys.carry();
            give(&mut keys, &line(&second));
            let mut position = SearchPosition::default();
            let mut found = false;
            for byte in long(1).chunks(1) {
                found |= keys.reflected(&mut position, byte);
            }
            assert!(found);
        }
    }

    #[test]
    fn pages_are_wiped_when_their_key_is_retired() {
        let mut keys = ring(TERMS, &line(&long(0)));
        let carried = keys.carry();
        give(&mut keys, &line(&long(1)));
        drop(carried);
        keys.retire();
        let rotation = keys.rotation.as_mut().unwrap();
        assert_eq!(rotation.free.len(), limits::KEY_SETS - 1);
        for pages in &mut rotation.free {
            assert!(pages.is_wiped(), "something of a key is left");
        }
        // What was read lies there no longer either.
        assert!(rotation.pages.open().bytes().iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_key_expires_once_and_a_line_revives_it() {
        let day = Some(Duration::from_secs(86_400));
        let mut keys = ring(Terms { max_age: day, ..TERMS }, &line(&long(0)));
        assert!(!keys.is_expired() && keys.expire().is_none());
        assert!(keys.expires_in() <= day && keys.expires_in() > Some(Duration::from_secs(86_000)));
        let end = |keys: &mut KeyRing| {
            keys.rotation.as_mut().unwrap().validity = Validity::Until(sys::time_since_boot());
        };
        end(&mut keys);
        assert!(keys.is_expired() && keys.expires_in() == Some(Duration::ZERO));
        assert!(keys.expire().is_some() && keys.expire().is_none());
        assert!(keys.is_expired() && keys.expires_in().is_none());
        // A line that is no key does not.
        give(&mut keys, b"\n");
        assert!(keys.is_expired());
        assert_eq!(give(&mut keys, &line(&long(0))).key, Some(TakenKey::Revived));
        assert!(!keys.is_expired());
        assert_eq!(give(&mut keys, &line(&long(0))).key, Some(TakenKey::Same));
        end(&mut keys);
        assert_eq!(give(&mut keys, &line(&long(1))).key, Some(TakenKey::Fresh));
        assert!(!keys.is_expired() && keys.expires_in() > Some(Duration::from_secs(86_000)));
    }

    #[test]
    fn a_lifetime_follows_the_key_where_lines_have_one() {
        let mut keys = ring(LEASED, b"first 60000\n");
        assert!(key(&mut keys) == b"first");
        let left = |keys: &KeyRing| keys.expires_in().unwrap().as_secs_f64().round() as u64;
        assert_eq!(left(&keys), 60);
        let longest_time = "9".repeat(LIFETIME_DIGITS);
        assert_eq!(
            give(&mut keys, format!("second {longest_time}\r\n").as_bytes()).refused_lines,
            0
        );
        assert!(key(&mut keys) == b"second" && left(&keys) == 100_000);
        for bad in
            ["third", "third ", "third 0", "third x", "third -1", "third +1", "third 100000000"]
        {
            let taken = give(&mut keys, format!("{bad}\n").as_bytes());
            assert!(matches!(taken.refused, Some(KeyError::Lifetime)), "{bad}");
        }
        for (bad, want) in [(" 5", "Empty"), ("a b 5", "BadCharacter")] {
            let error = give(&mut keys, format!("{bad}\n").as_bytes()).refused.unwrap();
            assert!(format!("{error:?}").starts_with(want), "{bad}");
        }
        // The shorter of the two counts.
        let terms = Terms { max_age: Some(Duration::from_secs(100)), ..LEASED };
        assert_eq!(left(&ring(terms, b"key 60000\n")), 60);
        assert_eq!(left(&ring(terms, b"key 600000\n")), 100);
        // The longest key has room for the longest lifetime.
        let longest = vec![b'k'; limits::TOKEN68];
        let mut keys = ring(LEASED, &[&longest, &b" 99999999\r\n"[..]].concat());
        assert!(key(&mut keys) == longest);
        // Without a lifetime on it, a line has no space.
        let taken = give(&mut ring(TERMS, b"first\n"), b"key 60\n");
        assert!(matches!(taken.refused, Some(KeyError::BadCharacter(..))));
    }

    #[test]
    fn the_first_key_is_checked_as_ever() {
        for (input, want) in [
            (&b""[..], "Empty"),
            (b"\nkey\n", "Empty"),
            (b"k ey\n", "BadCharacter"),
            (&[b'k'; limits::TOKEN68 + 1], "TooLong"),
            (&[b'k'; limits::TOKEN68 + 3], "TooLong"),
        ] {
            let mut rest = input;
            let read = &mut |buffer: &mut [u8]| io::Read::read(&mut rest, buffer);
            let error = KeyRing::rotating(PREFIX, KeyForm::Token68, TERMS, read).err().unwrap();
            assert!(format!("{error:?}").starts_with(want), "{error:?}");
        }
    }

    #[test]
    fn a_record_after_a_replacement_holds_the_fresh_key_alone() {
        let mut keys = ring(TERMS, &line(&vec![b'a'; 3_000]));
        give(&mut keys, b"bbb\n");
        let mut record = Vec::new();
        let after = [io::IoSlice::new(b"body")];
        assert_eq!(keys.current().splice_into(&after, &mut record).unwrap(), 4);
        record.flush().unwrap();
        assert!(record == [PREFIX, b"bbb\r\nbody"].concat(), "another record");
    }
}
