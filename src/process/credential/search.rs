//! The search for the key in responses.
//!
//! A response is read in windows of 20 bytes. One window begins every 12 bytes. A window that
//! occurs in the key, at any offset, is a hit. Any 31 consecutive bytes of the key contain a whole
//! window, because 31 = 20 + 12 - 1. So 31 bytes of the key are always found, and 19 bytes never.
//! Between these lengths, the result depends on where the windows begin.
//!
//! Shorter keys need narrower windows:
//!
//! | length of the secret part | windows | always found | never found |
//! |---|---|---|---|
//! | 62 or more | 20 bytes, every 12 | 31 | 19 |
//! | 31 to 61 | 16 bytes, every 8 | 23 | 15 |
//! | 16 to 30 | the first half, at every position | the first half | less than that half |
//! | fewer than 16 | no search | – | – |
//!
//! # Time
//!
//! Every local user can read this process's CPU clock to the nanosecond. So the amount of work must
//! not reveal how much of a window matches the key. A hash of all bytes of a window, made with
//! secret factors, is looked up in a filter. Only a hash that is in the filter causes further work.
//! Such a hash belongs to a whole window of the key, or collides by chance. A window that differs
//! from the key in one byte collides no more often than any other window. A window is wider than
//! the public beginning of any known kind of key (`sk-svcacct-`), so no window can be guessed byte
//! by byte. The beginning of each piece is always searched together with the end of the piece
//! before, with the same work.
//!
//! Collisions show in the clock. An attacker who observes many collisions could compute the factors
//! and then the hashes in the filter. The attacker could then test beginnings of the key against
//! these hashes offline. So new factors are drawn, and new tables are made, after every
//! [`COLLISIONS`].
//!
//! # Where bytes of the key are
//!
//! The factors, the filter and the table of offsets are in the secret pages, as the key is.
//! [`SearchPosition`] holds the last 30 bytes of the response and wipes them when it is dropped.

use std::io;
use std::ops::Range;

use zeroize::Zeroize;

use super::position::{SEAM, SearchPosition};
use crate::process::sys;
use crate::process::sys::windows::{self, BLOCK, FILTER_BYTES, Factors, HashFilter};

/// The shortest key that is searched for, in bytes. Half of a shorter key is likely by chance.
const SHORTEST_KEY: usize = 16;
/// The shortest key, in bytes, for which [`Method::Wide`] is used. 31 bytes, which are always
/// found, are at most half of such a key.
const WIDE_KEY: usize = 62;
/// The shortest key, in bytes, for which [`Method::Narrow`] is used.
const NARROW_KEY: usize = 31;
/// The most bytes of the secret part that are searched for. No known kind of opaque key has more.
const LONGEST: usize = 1024;
/// The fewest bytes of a part of a token that is searched for on its own.
const LONG_PART: usize = 32;
/// The number of collisions after which new factors are drawn. With a key of 164 bytes, about one
/// window in 3,300 collides in text that is not chosen for that purpose.
const COLLISIONS: u32 = 64;
/// Bytes of the end of one piece together with the beginning of the next.
const JOINT: usize = 2 * SEAM;
/// The number of positions at which the first half of a short key is compared at once.
const LANES: usize = 64;

/// The number of places in the table of offsets. The table has at least twice as many places as the
/// key has windows.
const PLACES: usize = 2 * LONGEST;

/// The range of each table in the space that [`Search::new`] is given.
const FACTORS: Range<usize> = 0..size_of::<Factors>();
const FILTER: Range<usize> = FACTORS.end..FACTORS.end + FILTER_BYTES;
const OFFSETS: Range<usize> = FILTER.end..FILTER.end + 2 * PLACES;

/// Bytes of secret pages that the tables need.
pub(super) const SPACE: usize = OFFSETS.end;

/// How a key is searched for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    /// No search.
    Off,
    /// The part as a whole, at every position.
    Whole,
    /// Windows of 16 bytes, one every 8 bytes.
    Narrow,
    /// Windows of 20 bytes, one every 12 bytes.
    Wide,
}

/// The part of the key that is searched for, and the method.
pub(super) struct Search {
    method: Method,
    /// The range of the part in the key.
    part: Range<usize>,
    /// Windows whose hash is in the filter although the key does not contain them, counted since
    /// the factors were drawn.
    collisions: u32,
}

impl Search {
    /// Chooses the part and the method, and fills `space`, which is [`SPACE`] bytes long. Fails if
    /// the kernel returns no random numbers.
    pub(super) fn new(key: &[u8], space: &mut [u8]) -> io::Result<Search> {
        let (method, part) = choose(key);
        let mut search = Search { method, part, collisions: 0 };
        search.draw(key, space)?;
        Ok(search)
    }

    /// Draws new factors and makes the tables for them. Without random numbers the old factors and
    /// tables stay.
    fn draw(&mut self, key: &[u8], space: &mut [u8]) -> io::Result<()> {
        let width = match self.method {
            Method::Off | Method::Whole => return Ok(()),
            Method::Narrow => NARROW,
            Method::Wide => WIDE,
        };
        self.collisions = 0;
        sys::random(&mut space[FACTORS])?;
        let factors = factors(&space[FACTORS]);
        let (filter, offsets) = space[FILTER.start..].split_at_mut(FILTER_BYTES);
        filter.fill(0);
        offsets.fill(0);
        let (filter, offsets) = (filter.as_chunks_mut().0, offsets.as_chunks_mut::<2>().0);
        for (offset, window) in key[self.part.clone()].windows(width).enumerate() {
            let hash = hash(&factors, window);
            let (word, bits) = filter_place(hash);
            filter[word] = (u32::from_le_bytes(filter[word]) | bits).to_le_bytes();
            let mut place = first_place(hash);
            while offsets[place] != [0; 2] {
                place = (place + 1) % PLACES;
            }
            // Zero marks an empty place.
            offsets[place] = (offset as u16 + 1).to_le_bytes();
        }
        Ok(())
    }

    /// Whether responses are searched at all.
    pub(super) fn is_on(&self) -> bool {
        self.method != Method::Off
    }

    /// Searches the next piece of a response, and the seam between the last piece and this one.
    /// `key` and `space` must be the ones that [`Search::new`] was given.
    pub(super) fn finds(
        &mut self,
        key: &[u8],
        space: &mut [u8],
        position: &SearchPosition,
        piece: &[u8],
    ) -> bool {
        if self.method == Method::Off {
            return false;
        }
        let part = &key[self.part.clone()];
        let collisions = &mut self.collisions;
        let mut finds = |text: &[u8]| match self.method {
            Method::Off => false,
            Method::Whole => sys::with_wide_vectors(|| has_needle(text, part)),
            Method::Narrow => Tables::new(space, part, collisions).find::<NARROW, 8>(text),
            Method::Wide => Tables::new(space, part, collisions).find::<WIDE, 12>(text),
        };
        // The work is the same for every piece, whatever the bytes on either side of the seam.
        let mut joint = [0; JOINT];
        let joined = piece.len().min(SEAM);
        joint[..SEAM].copy_from_slice(&position.seam);
        joint[SEAM..SEAM + joined].copy_from_slice(&piece[..joined]);
        let found = finds(&joint) | (piece.len() > SEAM && finds(piece));
        joint.zeroize();
        if self.collisions >= COLLISIONS {
            // Without random numbers the old factors and tables stay.
            let _ = self.draw(key, space);
        }
        found
    }
}

/// Chooses the secret part of a key and the method. The header and the claims of a JWT are
/// predictable. Its signature, the last part, is secret. So of a key with parts of [`LONG_PART`]
/// bytes or more, the last such part is searched for. Any other key is searched for as a whole.
fn choose(key: &[u8]) -> (Method, Range<usize>) {
    let mut end = key.len();
    let mut part = 0..key.len();
    for text in key.rsplit(|byte| *byte == b'.') {
        let start = end - text.len();
        if text.len() >= LONG_PART {
            part = start..end;
            break;
        }
        end = start.saturating_sub(1);
    }
    part.end = part.end.min(part.start + LONGEST);
    match part.len() {
        ..SHORTEST_KEY => (Method::Off, 0..0),
        SHORTEST_KEY..NARROW_KEY => (Method::Whole, part.start..part.start + part.len() / 2),
        NARROW_KEY..WIDE_KEY => (Method::Narrow, part),
        WIDE_KEY.. => (Method::Wide, part),
    }
}

/// Widths of windows, in bytes.
const NARROW: usize = 16;
const WIDE: usize = 20;

/// Reads the secret factors of all hashes. Each factor is made odd.
fn factors(bytes: &[u8]) -> Factors {
    let words = bytes.as_chunks().0.first_chunk().expect("FACTORS has this length");
    words.map(|word| u32::from_le_bytes(word) | 1)
}

/// Hashes a window of up to 20 bytes: the sum of its four-byte words, each times its factor, modulo
/// 2^32. The filter uses the highest 21 bits. This is multiply-shift hashing: for two different
/// windows, these bits are equal for at most one in 2^20 choices of factors.
#[inline(always)]
fn hash(factors: &Factors, window: &[u8]) -> u32 {
    let words = window.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word));
    let products = words.zip(factors).map(|(word, factor)| word.wrapping_mul(*factor));
    products.fold(0, u32::wrapping_add)
}

/// The index of the filter's word for a hash, and the two bits in that word.
#[inline(always)]
fn filter_place(hash: u32) -> (usize, u32) {
    ((hash >> 21) as usize, 1 << ((hash >> 16) % 32) | 1 << ((hash >> 11) % 32))
}

/// The first place for a hash's offset in the table of offsets. If that place is taken, the offset
/// is in one of the next places.
fn first_place(hash: u32) -> usize {
    (hash >> 8) as usize % PLACES
}

/// A view of the tables for one search.
struct Tables<'a> {
    factors: Factors,
    filter: &'a HashFilter,
    offsets: &'a [[u8; 2]],
    part: &'a [u8],
    collisions: &'a mut u32,
}

impl Tables<'_> {
    fn new<'a>(space: &'a [u8], part: &'a [u8], collisions: &'a mut u32) -> Tables<'a> {
        let filter = space[FILTER].as_chunks().0.first_chunk();
        Tables {
            factors: factors(&space[FACTORS]),
            filter: filter.expect("FILTER has this length"),
            offsets: space[OFFSETS].as_chunks().0,
            part,
            collisions,
        }
    }

    /// Searches for windows of `WIDTH` bytes, one every `STRIDE` bytes.
    fn find<const WIDTH: usize, const STRIDE: usize>(&mut self, text: &[u8]) -> bool {
        let mut rest = text;
        loop {
            let passed =
                windows::unlisted_blocks::<WIDTH, STRIDE>(self.filter, &self.factors, rest);
            let passed = passed.unwrap_or_else(|| self.unlisted_blocks::<WIDTH, STRIDE>(rest));
            rest = &rest[passed * BLOCK * STRIDE..];
            // This is a block that contains a hash of the filter, or the last windows of the text.
            let windows = ((rest.len() + STRIDE).saturating_sub(WIDTH) / STRIDE).min(BLOCK);
            if self.is_any_listed::<WIDTH, STRIDE>(windows, rest)
                && self.is_confirmed::<WIDTH, STRIDE>(&rest[..(windows - 1) * STRIDE + WIDTH])
            {
                return true;
            }
            if windows < BLOCK {
                return false;
            }
            rest = &rest[BLOCK * STRIDE..];
        }
    }

    /// The portable form of [`windows::unlisted_blocks`].
    fn unlisted_blocks<const WIDTH: usize, const STRIDE: usize>(&self, text: &[u8]) -> usize {
        let mut rest = text;
        while let Some(block) = rest.get(..(BLOCK - 1) * STRIDE + WIDTH) {
            if self.is_any_listed::<WIDTH, STRIDE>(BLOCK, block) {
                break;
            }
            rest = &rest[BLOCK * STRIDE..];
        }
        (text.len() - rest.len()) / (BLOCK * STRIDE)
    }

    /// Looks up the first `windows` windows. All of them are looked up, whatever the result.
    #[inline(always)]
    fn is_any_listed<const WIDTH: usize, const STRIDE: usize>(
        &self,
        windows: usize,
        text: &[u8],
    ) -> bool {
        (0..windows).fold(false, |any, nth| {
            any | self.is_listed(hash(&self.factors, &text[nth * STRIDE..][..WIDTH]))
        })
    }

    /// Whether a hash is in the filter.
    #[inline(always)]
    fn is_listed(&self, hash: u32) -> bool {
        let (word, bits) = filter_place(hash);
        u32::from_le_bytes(self.filter[word]) & bits == bits
    }

    /// Compares each window whose hash is in the filter with the windows of the key.
    #[cold]
    #[inline(never)]
    fn is_confirmed<const WIDTH: usize, const STRIDE: usize>(&mut self, text: &[u8]) -> bool {
        text.windows(WIDTH).step_by(STRIDE).any(|window| {
            let hash = hash(&self.factors, window);
            let is_listed = self.is_listed(hash);
            let is_found = is_listed && self.is_in_the_key(hash, window);
            *self.collisions += u32::from(is_listed && !is_found);
            is_found
        })
    }

    /// Compares a window with each window of the key that may have the same hash. Each comparison
    /// reads all bytes of the window.
    fn is_in_the_key(&self, hash: u32, window: &[u8]) -> bool {
        let mut place = first_place(hash);
        loop {
            let offset = usize::from(u16::from_le_bytes(self.offsets[place]));
            if offset == 0 {
                return false;
            }
            let there = &self.part[offset - 1..offset - 1 + window.len()];
            if there.iter().zip(window).fold(0, |all, (x, y)| all | (x ^ y)) == 0 {
                return true;
            }
            place = (place + 1) % PLACES;
        }
    }
}

/// Compares a needle of fewer than 16 bytes with every position of the text. Each byte of the
/// needle is compared at [`LANES`] positions at once, in vectors. All bytes of the needle are
/// compared at every position.
#[inline(always)]
fn has_needle(text: &[u8], needle: &[u8]) -> bool {
    const BLOCK: usize = LANES + 16;
    let matches = |block: &[u8; BLOCK]| {
        let mut same = [!0u8; LANES];
        for (at, byte) in needle.iter().enumerate() {
            for (same, there) in same.iter_mut().zip(&block[at..at + LANES]) {
                *same &= if there == byte { !0 } else { 0 };
            }
        }
        same.iter().fold(0, |all, same| all | same) != 0
    };
    let mut rest = text;
    while let Some(block) = rest.first_chunk() {
        if matches(block) {
            return true;
        }
        rest = &rest[LANES..];
    }
    // A key contains no zero byte, so the padding matches nothing.
    let mut end = [0; BLOCK + LANES];
    end[..rest.len()].copy_from_slice(rest);
    let found = [0, LANES]
        .iter()
        .filter_map(|at| end[*at..].first_chunk())
        .fold(false, |found, block| found | matches(block));
    end.zeroize();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A key of this length in which no sequence of bytes occurs twice.
    fn key(len: usize) -> Vec<u8> {
        let digit = |n: usize| b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"[n % 52];
        (0..len)
            .map(|at| if at % 2 == 0 { digit(at / 2) } else { digit(at / 104 * 7 + at) })
            .collect()
    }

    struct Searched {
        key: Vec<u8>,
        space: Vec<u8>,
        search: Search,
    }

    impl Searched {
        fn new(key: Vec<u8>) -> Searched {
            let mut space = vec![0; SPACE];
            let search = Search::new(&key, &mut space).unwrap();
            Searched { key, space, search }
        }

        fn finds_in(&mut self, position: &mut SearchPosition, piece: &[u8]) -> bool {
            let found = self.search.finds(&self.key, &mut self.space, position, piece);
            if found {
                position.wipe()
            } else {
                position.advance(piece)
            }
            found
        }

        /// Whether the key is found in a response that arrives in these pieces.
        fn finds<'a>(&mut self, pieces: impl IntoIterator<Item = &'a [u8]>) -> bool {
            let mut position = SearchPosition::default();
            pieces.into_iter().any(|piece| self.finds_in(&mut position, piece))
        }
    }

    /// The length of a key, the bytes of it that are always found, and the bytes that are never
    /// found.
    const PROMISES: [(usize, usize, usize); 7] = [
        (31, 23, 15),
        (32, 23, 15),
        (61, 23, 15),
        (62, 31, 19),
        (164, 31, 19),
        (1017, 31, 19),
        (LONGEST, 31, 19),
    ];

    /// Text that shares no byte with a key.
    fn filled(len: usize) -> Vec<u8> {
        (0..len).map(|at| b" .,:\"{}[]\n"[at % 10]).collect()
    }

    #[test]
    fn so_many_bytes_of_any_part_are_found_at_every_place_and_fewer_are_not() {
        for (len, found, not_found) in PROMISES {
            let mut searched = Searched::new(key(len));
            for from in 0..=len - not_found {
                for at in 0..13 {
                    let mut text = filled(3 * SEAM + 113);
                    let places = [at, SEAM + at, 160 + at];
                    let place = places[from % 3];
                    text[place..place + not_found]
                        .copy_from_slice(&searched.key[from..from + not_found]);
                    assert!(!searched.finds([&text[..]]), "{not_found} of {len} from {from}");
                    let Some(run) = searched.key.get(from..from + found) else {
                        continue;
                    };
                    text[place..place + found].copy_from_slice(run);
                    assert!(searched.finds([&text[..]]), "{found} of {len} from {from} at {place}");
                }
            }
        }
    }

    #[test]
    fn so_many_bytes_are_found_however_the_response_is_cut_into_two_or_three() {
        for (len, found, not_found) in PROMISES {
            let mut searched = Searched::new(key(len));
            for from in [0, 1, (len - found) / 2, len - found] {
                for (run, want) in [(found, true), (not_found, false)] {
                    let run = &searched.key[from..from + run];
                    let text = [&filled(40), run, &filled(40)].concat();
                    for first in 0..=text.len() {
                        for second in (first..=text.len()).step_by(1 + len / 50) {
                            let pieces = [&text[..first], &text[first..second], &text[second..]];
                            assert!(
                                searched.finds(pieces) == want,
                                "{len}, from {from}, cut at {first} and {second}"
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn pieces_of_any_size_make_no_difference() {
        for (len, found, not_found) in PROMISES {
            let mut searched = Searched::new(key(len));
            for size in 1..=70 {
                for at in 0..size.min(24) {
                    let text = [&filled(at), &searched.key[len - found..], &filled(50)].concat();
                    assert!(searched.finds(text.chunks(size)), "{len} in pieces of {size}");
                    let text =
                        [&filled(at), &searched.key[len - not_found..], &filled(50)].concat();
                    assert!(!searched.finds(text.chunks(size)), "{len} in pieces of {size}");
                }
            }
        }
    }

    #[test]
    fn a_piece_that_completes_what_is_always_found_is_never_let_through() {
        for (len, found, _) in PROMISES {
            let mut searched = Searched::new(key(len));
            let mut position = SearchPosition::default();
            let mut passed = 0;
            for byte in key(len).chunks(1) {
                if searched.finds_in(&mut position, byte) {
                    break;
                }
                passed += 1;
            }
            assert!(passed < found, "{passed} bytes of {len} passed");
            assert!(position.seam == [0; SEAM], "what was found stays in the seam");
        }
    }

    #[test]
    fn a_key_that_lacks_its_first_or_last_byte_or_one_in_the_middle_is_found() {
        for (len, ..) in PROMISES {
            let mut searched = Searched::new(key(len));
            let mut other = searched.key.clone();
            other[len / 4] = b'.';
            for text in [&other[..], &key(len)[1..], &key(len)[..len - 1]] {
                assert!(searched.finds([text]));
                assert!(searched.finds(text.chunks(7)));
            }
        }
    }

    #[test]
    fn of_a_short_key_the_first_half_is_found_wherever_it_stands_and_a_byte_less_is_not() {
        for len in [16, 17, 25, 30] {
            let mut searched = Searched::new(key(len));
            let half = &key(len)[..len / 2];
            for at in (0..150).filter(|at| at % 64 < 3 || at % 64 > 45) {
                for (run, want) in
                    [(half, true), (&half[1..], false), (&half[..len / 2 - 1], false)]
                {
                    let text = [&filled(at), run, &filled(150 - at)].concat();
                    assert!(searched.finds([&text[..]]) == want, "{len} at {at}");
                    let (first, second) = text.split_at(at + 3);
                    assert!(searched.finds([first, second]) == want, "{len} at {at}, cut");
                    assert!(
                        searched.finds(text.chunks(1 + at % 5)) == want,
                        "{len} at {at}, cut up"
                    );
                }
            }
        }
        let mut searched = Searched::new(key(SHORTEST_KEY - 1));
        assert!(!searched.search.is_on() && !searched.finds([&key(SHORTEST_KEY - 1)[..]]));
    }

    #[test]
    fn eight_windows_at_once_and_each_alone_are_the_same() {
        for len in [40, 164, LONGEST] {
            let mut searched = Searched::new(key(len));
            let Searched { key, space, search } = &mut searched;
            let tables = Tables::new(space, &key[search.part.clone()], &mut search.collisions);
            let width = if search.method == Method::Narrow { NARROW } else { WIDE };
            let mut state = 1_u32;
            let mut random = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as usize
            };
            let (mut stops, texts) = (0, 1_500);
            for _ in 0..texts {
                let mut text: Vec<u8> = (0..random() % 2_000).map(|_| random() as u8).collect();
                // A window of the key in every second text.
                if let Some(room) = text.len().checked_sub(width)
                    && random() % 2 == 0
                {
                    let (at, from) = (random() % (room + 1), random() % (key.len() - width));
                    text[at..at + width].copy_from_slice(&key[from..from + width]);
                }
                let (wide, each, bytes) = match search.method {
                    Method::Narrow => (
                        windows::unlisted_blocks::<NARROW, 8>(
                            tables.filter,
                            &tables.factors,
                            &text,
                        ),
                        tables.unlisted_blocks::<NARROW, 8>(&text),
                        8 * BLOCK,
                    ),
                    _ => (
                        windows::unlisted_blocks::<WIDE, 12>(tables.filter, &tables.factors, &text),
                        tables.unlisted_blocks::<WIDE, 12>(&text),
                        12 * BLOCK,
                    ),
                };
                // The AVX2 form may leave the last block to the portable form.
                let is_end = text.len() < each * bytes + 2 * bytes;
                let same = wide.is_none_or(|wide| wide == each || is_end && wide + 1 == each);
                assert!(same, "{wide:?} and {each} of {}", text.len());
                stops += usize::from(!is_end);
            }
            assert!((20..texts).contains(&stops), "{stops} stops");
        }
    }

    #[test]
    fn after_so_many_collisions_the_factors_are_others_and_the_key_is_found_all_the_same() {
        let mut searched = Searched::new(key(LONGEST));
        let mut before = searched.space.clone();
        let mut state = 1_u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        };
        let mut draws = 0;
        for _ in 0..2_000 {
            let piece: Vec<u8> = (0..16_384).map(|_| random()).collect();
            assert!(!searched.finds([&piece[..]]));
            if before != searched.space {
                let bits =
                    |space: &[u8]| space[FILTER].iter().map(|byte| byte.count_ones()).sum::<u32>();
                assert!(bits(&before).abs_diff(bits(&searched.space)) < 120, "the old tables stay");
                before = searched.space.clone();
                draws += 1;
                if draws == 2 {
                    break;
                }
            }
        }
        assert_eq!(draws, 2);
        let text = [&filled(200), &key(LONGEST)[500..531]].concat();
        assert!(searched.finds([&text[..]]));
    }

    #[test]
    fn keys_that_repeat_themselves_are_found() {
        for key in
            [&b"a".repeat(16)[..], &b"ab".repeat(20), &b"abc".repeat(40), &b"a".repeat(LONGEST)]
        {
            let mut searched = Searched::new(key.to_vec());
            for at in 0..30 {
                let text = [&filled(at), key].concat();
                assert!(searched.finds([&text[..]]) && searched.finds(text.chunks(3)));
            }
            assert!(!searched.finds([&filled(5_000)[..]]));
        }
    }

    #[test]
    fn the_secret_part_of_a_token_is_its_last_long_part() {
        let part = |text: String| choose(text.as_bytes());
        let (long, short) = ("s".repeat(LONG_PART), "s".repeat(LONG_PART - 1));
        assert_eq!(part(format!("head.claims.{long}")), (Method::Narrow, 12..44));
        assert_eq!(part(format!("head.{long}.tail")), (Method::Narrow, 5..37));
        assert_eq!(part(format!("{long}.{short}")), (Method::Narrow, 0..32));
        assert_eq!(part(format!("ya29.{short}")), (Method::Narrow, 0..36));
        assert_eq!(part(format!("a.{short}")), (Method::Narrow, 0..33));
        assert_eq!(part("s".repeat(30)), (Method::Whole, 0..15));
        assert_eq!(part("s".repeat(16)), (Method::Whole, 0..8));
        assert_eq!(part("s".repeat(15)), (Method::Off, 0..0));
        assert_eq!(part(format!("head.{}", "s".repeat(62))), (Method::Wide, 5..67));
        assert_eq!(part("s".repeat(8_192)), (Method::Wide, 0..LONGEST));
    }
}
