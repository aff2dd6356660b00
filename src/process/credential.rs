//! The key's whole life.
//!
//! ```text
//!   guard | read-only pages            | writable pages        | guard
//!         |     POST … Bearer KEY CRLF | fields … first of body|
//!               └──── the block ─────┘ └─ copied in by splice ─┘
//!               └────────── one slice: one TLS record ─────────┘
//! ```
//!
//! The block ends where the writable pages begin, so that a record can be sealed from one slice in
//! which the key stands where it always stands: no second copy is ever put together. There is no way
//! to get at the bytes but [`Credential::splice_into`], which hands them to a sink, and
//! [`Credential::reflected`], which compares.

use std::fmt;
use std::io::{self, IoSlice, Write};
use std::ops::Range;

use zeroize::Zeroize;

use super::sys::{self, SecretMemory, SecretPages};
use crate::http1::limits;

/// Shorter keys are not looked for in answers: half of them would be in many.
const SHORTEST_NEEDLE_KEY: usize = 16;
/// Bytes of the key's beginning that are looked for, at most.
const NEEDLE: usize = 16;
/// Bytes of an answer that are searched at once.
const BLOCK: usize = 128;

/// Which keys are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyForm {
    /// Letters, digits, `-` and `_`, as the reference has it.
    Word,
    /// token68 (RFC 9110 §11.2), which is b64token (RFC 6750 §2.1): `.`, `~`, `+` and `/` too, and `=`
    /// at the end. JWTs are such.
    Token68,
}

impl KeyForm {
    /// Bytes of a key, at most.
    const fn longest(self) -> usize {
        match self {
            KeyForm::Word => limits::KEY - "Bearer ".len(),
            KeyForm::Token68 => limits::TOKEN68,
        }
    }

    fn fits(self, key: &[u8]) -> bool {
        let (word, marks): (_, &[u8]) = match self {
            KeyForm::Word => (key, b"-_"),
            KeyForm::Token68 => {
                let end = key.iter().rposition(|byte| *byte != b'=').map_or(0, |last| last + 1);
                (&key[..end], b"-._~+/")
            }
        };
        !word.is_empty() && word.iter().all(|b| b.is_ascii_alphanumeric() || marks.contains(b))
    }
}

/// Why there is no key. The texts say what to type; none holds a byte of what was read.
#[derive(Debug)]
pub enum KeyError {
    /// Nothing but line ends.
    Empty,
    /// More than fits.
    TooLong(KeyForm),
    /// A byte that no key of this form has.
    BadCharacter(KeyForm),
    /// read(2) failed.
    Read(io::Error),
    /// No memory fit to hold it.
    Memory(io::Error),
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeyError::Empty => f.write_str(
                "API key must be provided via stdin (e.g. printenv OPENAI_API_KEY | \
                 env -u OPENAI_API_KEY codex-responses-api-proxy)",
            ),
            KeyError::TooLong(form) => {
                let more = match form {
                    KeyForm::Word => "; add --allow-token68 for a longer one, a JWT for example",
                    KeyForm::Token68 => "",
                };
                write!(f, "API key is too large: at most {} bytes{more}", form.longest())
            }
            KeyError::BadCharacter(KeyForm::Word) => f.write_str(
                "API key may only contain ASCII letters, numbers, '-' or '_'; add --allow-token68 for \
                 one with '.', '~', '+', '/' or '=' (a JWT for example)",
            ),
            KeyError::BadCharacter(KeyForm::Token68) => f.write_str(
                "API key may only contain ASCII letters, numbers, '-', '.', '_', '~', '+' or '/', and \
                 '=' at its end",
            ),
            KeyError::Read(error) => write!(
                f,
                "cannot read the API key from stdin: {error}; give it through a pipe or from a file"
            ),
            KeyError::Memory(error) => write!(
                f,
                "no memory fit to hold the API key ({error}); raise the limit on locked memory \
                 (ulimit -l) to 64 KiB or more"
            ),
        }
    }
}

/// The key, in pages of its own. Wiped when it goes.
pub struct Credential {
    pages: SecretPages,
    /// Where the block begins.
    block: usize,
    /// Where the writable pages begin: behind the block.
    scratch: usize,
    /// What of the key is looked for; empty when answers are not searched.
    needle: Range<usize>,
    /// For each length of a match that fails: the length of the longest shorter one it ends in.
    failure: [u8; NEEDLE],
}

impl Credential {
    /// Reads the key: up to the first newline or the end, line ends trimmed. `prefix` is what stands
    /// in the block before it; `source` is read(2) on stdin.
    pub fn read(
        prefix: &[u8],
        form: KeyForm,
        mut source: impl FnMut(&mut [u8]) -> io::Result<usize>,
    ) -> Result<Credential, KeyError> {
        let longest = form.longest();
        let block_space = prefix.len() + longest + 2;
        let mut pages = SecretPages::new(block_space + limits::RECORD).map_err(KeyError::Memory)?;
        let scratch = block_space.next_multiple_of(pages.page());

        // What goes wrong from here on drops the pages, and that wipes them.
        let (block, read) = pages.open_mut().split_at_mut(scratch);
        let length = read_line(&mut read[..longest + 2], &mut source)?
            .filter(|length| *length <= longest)
            .ok_or(KeyError::TooLong(form))?;
        let line = &read[..length];
        if line.is_empty() {
            return Err(KeyError::Empty);
        }
        if !form.fits(line) {
            return Err(KeyError::BadCharacter(form));
        }
        let needle = needle(line);
        let key = scratch - length - 2;
        let start = key - prefix.len();
        block[start..key].copy_from_slice(prefix);
        block[key..key + length].copy_from_slice(line);
        block[key + length..].copy_from_slice(b"\r\n");
        read.zeroize();
        pages.seal(scratch).map_err(KeyError::Memory)?;

        let needle = key + needle.start..key + needle.end;
        let failure = failures(&pages.bytes()[needle.clone()]);
        Ok(Credential { pages, block: start, scratch, needle, failure })
    }

    /// Which memory the key lies in.
    pub fn memory(&self) -> SecretMemory {
        self.pages.memory()
    }

    /// The key is looked for in answers.
    pub fn is_searched_for(&self) -> bool {
        !self.needle.is_empty()
    }

    /// Hands the block and as much of `after` as one TLS record holds to `sink`, in one call.
    /// Returns how many bytes of `after` went with it. A sink that takes less is an error.
    pub fn splice_into(
        &mut self,
        after: &[IoSlice<'_>],
        sink: &mut impl Write,
    ) -> io::Result<usize> {
        let room = limits::RECORD - (self.scratch - self.block);
        let scratch = &mut self.pages.open_mut()[..room];
        let mut taken = 0;
        for run in after {
            let n = run.len().min(room - taken);
            scratch[taken..taken + n].copy_from_slice(&run[..n]);
            taken += n;
        }
        let record = &self.pages.bytes()[self.block..self.scratch + taken];
        match sink.write(record)? {
            n if n == record.len() => Ok(taken),
            _ => Err(io::ErrorKind::WriteZero.into()),
        }
    }

    /// Looks for the needle in an answer that comes in pieces. `position` is how much of it
    /// the end of the last piece matched; 0 at the start. True when this piece completes it.
    ///
    /// How long this takes tells nothing of how much of the needle's beginning a text holds, see
    /// `contains`.
    pub fn reflected(&self, position: &mut u8, piece: &[u8]) -> bool {
        let needle = &self.pages.bytes()[self.needle.clone()];
        let border = needle.len().saturating_sub(1);
        if piece.len() <= 2 * border || border == 0 {
            return self.advance(position, piece);
        }
        // What begins in the last piece, what lies within this one, what goes on in the next.
        let (head, tail) = (&piece[..border], &piece[piece.len() - border..]);
        if (*position > 0 && self.advance(position, head))
            || sys::with_wide_vectors(|| contains(piece, needle))
        {
            return true;
        }
        *position = 0;
        self.advance(position, tail)
    }

    /// Matches byte by byte, as Knuth, Morris and Pratt do.
    fn advance(&self, position: &mut u8, piece: &[u8]) -> bool {
        let needle = &self.pages.bytes()[self.needle.clone()];
        let mut matched = usize::from(*position);
        for byte in piece.iter().take_while(|_| !needle.is_empty()) {
            while matched > 0 && *byte != needle[matched] {
                matched = usize::from(self.failure[matched - 1]);
            }
            matched += usize::from(*byte == needle[matched]);
            if matched == needle.len() {
                return true;
            }
        }
        *position = matched as u8;
        false
    }
}

/// Finds the needle, of three bytes or more, by its end: in a block that is read as pairs of bytes, one
/// pair is the needle's last two bytes or the two before its last. That compiles to vector
/// instructions, and only a block with such a pair is looked at again. So time tells of a text whether
/// it holds one of these two pairs, and nothing of how much of the needle stands before them.
#[inline(always)]
fn contains(piece: &[u8], needle: &[u8]) -> bool {
    let [.., x, y, z] = *needle else {
        return false;
    };
    let (even, odd) = (u16::from_ne_bytes([y, z]), u16::from_ne_bytes([x, y]));
    let looks_like = |block: &[u8; BLOCK]| {
        let pairs = block.as_chunks::<2>().0.iter().map(|pair| u16::from_ne_bytes(*pair));
        pairs.fold(false, |found, pair| found | (pair == even) | (pair == odd))
    };
    // A needle that ends in the block or a byte behind it.
    let around = |at: usize| {
        let start = at.saturating_sub(needle.len() - 1);
        begins_within(&piece[start..piece.len().min(at + BLOCK + 1)], needle)
    };
    let Some(last) = piece.last_chunk() else {
        return begins_within(piece, needle);
    };
    let blocks = piece.as_chunks::<BLOCK>().0.iter().enumerate();
    for (index, block) in blocks {
        if looks_like(block) && around(index * BLOCK) {
            return true;
        }
    }
    // What is left is less than a block: it is looked at together with what stands before it.
    looks_like(last) && around(piece.len() - BLOCK)
}

/// Compares the needle with each place that ends as it does, without stopping at a difference.
fn begins_within(piece: &[u8], needle: &[u8]) -> bool {
    let end = needle.len() - 2;
    piece.windows(needle.len()).filter(|window| window[end..] == needle[end..]).any(|window| {
        window.iter().zip(needle).fold(0, |differences, (x, y)| differences | (x ^ y)) == 0
    })
}

/// What of a key is looked for in answers: the first 16 bytes, or half of a shorter key. In a JWT the
/// first ones are the same for everybody; what is secret is its signature, the last of its parts, so a
/// key with long parts is looked for by the beginning of the last of these.
fn needle(key: &[u8]) -> Range<usize> {
    let mut end = key.len();
    for part in key.rsplit(|byte| *byte == b'.') {
        let start = end - part.len();
        if part.len() >= 2 * NEEDLE {
            return start..start + NEEDLE;
        }
        end = start.saturating_sub(1);
    }
    0..if key.len() < SHORTEST_NEEDLE_KEY { 0 } else { NEEDLE.min(key.len() / 2) }
}

/// Reads to the first newline or the end; returns the length of the line without its line ends, or
/// none if the buffer does not hold it. What came behind the newline is the caller's to wipe.
fn read_line(
    buffer: &mut [u8],
    source: &mut impl FnMut(&mut [u8]) -> io::Result<usize>,
) -> Result<Option<usize>, KeyError> {
    let mut filled = 0;
    let end = loop {
        if filled == buffer.len() {
            return Ok(None);
        }
        let n = match source(&mut buffer[filled..]) {
            Ok(0) => break filled,
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(KeyError::Read(error)),
        };
        if let Some(at) = buffer[filled..filled + n].iter().position(|byte| *byte == b'\n') {
            break filled + at;
        }
        filled += n;
    };
    Ok(Some(buffer[..end].iter().rposition(|byte| *byte != b'\r').map_or(0, |last| last + 1)))
}

/// The failure function of Knuth, Morris and Pratt.
fn failures(needle: &[u8]) -> [u8; NEEDLE] {
    let mut failure = [0; NEEDLE];
    let mut matched = 0;
    for at in 1..needle.len() {
        while matched > 0 && needle[at] != needle[matched] {
            matched = usize::from(failure[matched - 1]);
        }
        matched += usize::from(needle[at] == needle[matched]);
        failure[at] = matched as u8;
    }
    failure
}

#[cfg(test)]
mod tests {
    use super::*;

    const PREFIX: &[u8] = b"POST /x HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer ";

    /// A source that gives these pieces, one a read, as far as they fit.
    fn pieces<'a>(
        pieces: impl IntoIterator<Item = &'a [u8]>,
    ) -> impl FnMut(&mut [u8]) -> io::Result<usize> {
        let mut pieces: Vec<&[u8]> = pieces.into_iter().collect();
        pieces.reverse();
        move |buffer| {
            let Some(piece) = pieces.pop() else {
                return Ok(0);
            };
            let n = piece.len().min(buffer.len());
            buffer[..n].copy_from_slice(&piece[..n]);
            if n < piece.len() {
                pieces.push(&piece[n..]);
            }
            Ok(n)
        }
    }

    fn intake(input: &[u8]) -> Result<Credential, KeyError> {
        Credential::read(PREFIX, KeyForm::Word, pieces([input]))
    }

    fn token68(input: &[u8]) -> Result<Credential, KeyError> {
        Credential::read(PREFIX, KeyForm::Token68, pieces([input]))
    }

    fn record(credential: &mut Credential, after: &[&[u8]]) -> (usize, Vec<u8>) {
        let after: Vec<IoSlice> = after.iter().map(|run| IoSlice::new(run)).collect();
        let mut out = Vec::new();
        let taken = credential.splice_into(&after, &mut out).unwrap();
        (taken, out)
    }

    #[test]
    fn the_key_is_the_first_line_without_its_end() {
        for input in [
            &b"sk-key_1"[..],
            b"sk-key_1\n",
            b"sk-key_1\r\n",
            b"sk-key_1\r\r\n",
            b"sk-key_1\nsecond line",
            b"sk-key_1\n\n\0",
        ] {
            let want = [PREFIX, b"sk-key_1\r\nA: b\r\n\r\n"].concat();
            let (_, got) = record(&mut intake(input).ok().unwrap(), &[b"A: b\r\n\r\n"]);
            assert!(got == want, "whole");
            let bytes = input.chunks(1);
            let mut credential =
                Credential::read(PREFIX, KeyForm::Word, pieces(bytes)).ok().unwrap();
            let (_, got) = record(&mut credential, &[b"A: b\r\n", b"\r\n"]);
            assert!(got == want, "byte by byte");
        }
    }

    #[test]
    fn nothing_is_read_behind_the_newline_that_need_not_be() {
        let mut reads = 0;
        let credential = Credential::read(PREFIX, KeyForm::Word, |buffer| {
            reads += 1;
            buffer[..4].copy_from_slice(b"abc\n");
            Ok(4)
        });
        assert!(credential.is_ok());
        assert_eq!(reads, 1);
    }

    #[test]
    fn every_way_to_have_no_key_has_its_error() {
        for (input, want) in [
            (&b""[..], "Empty"),
            (b"\n", "Empty"),
            (b"\r\n", "Empty"),
            (b"\nkey", "Empty"),
            (b" key", "BadCharacter(Word)"),
            (b"key ", "BadCharacter(Word)"),
            (b"k ey", "BadCharacter(Word)"),
            (b"k\0ey", "BadCharacter(Word)"),
            (b"k\rey", "BadCharacter(Word)"),
            (b"k.ey", "BadCharacter(Word)"),
            (b"k/ey", "BadCharacter(Word)"),
            (b"key=", "BadCharacter(Word)"),
            (b"k\xc3\xa9y", "BadCharacter(Word)"),
            (&[b'a'; KeyForm::Word.longest() + 1], "TooLong(Word)"),
            (&[b'a'; KeyForm::Word.longest() + 2], "TooLong(Word)"),
            (&[b'a'; 1 << 20], "TooLong(Word)"),
        ] {
            let error = intake(input).err().unwrap();
            assert_eq!(format!("{error:?}"), want);
        }
        for (input, want) in [
            (&b""[..], "Empty"),
            (b"=", "BadCharacter(Token68)"),
            (b"==", "BadCharacter(Token68)"),
            (b"=a", "BadCharacter(Token68)"),
            (b"a=b", "BadCharacter(Token68)"),
            (b"a= =", "BadCharacter(Token68)"),
            (b"a b", "BadCharacter(Token68)"),
            (b"a,b", "BadCharacter(Token68)"),
            (b"a:b", "BadCharacter(Token68)"),
            (b"a\"b", "BadCharacter(Token68)"),
            (b"a\\b", "BadCharacter(Token68)"),
            (b"a\rb", "BadCharacter(Token68)"),
            (b"a\0b", "BadCharacter(Token68)"),
            (b"a\x7fb", "BadCharacter(Token68)"),
            (b"k\xc3\xa9y", "BadCharacter(Token68)"),
            (&[b'a'; limits::TOKEN68 + 1], "TooLong(Token68)"),
            (&[b'a'; limits::TOKEN68 + 2], "TooLong(Token68)"),
            (&[b'a'; 1 << 20], "TooLong(Token68)"),
        ] {
            let error = token68(input).err().unwrap();
            assert_eq!(format!("{error:?}"), want);
        }
        let error =
            Credential::read(
                PREFIX,
                KeyForm::Word,
                |_| Err(io::ErrorKind::PermissionDenied.into()),
            );
        assert!(matches!(error, Err(KeyError::Read(_))));
    }

    #[test]
    fn the_longest_key_fits_with_either_line_end() {
        for end in [&b""[..], b"\n", b"\r\n"] {
            let input = [&[b'a'; limits::KEY - "Bearer ".len()][..], end].concat();
            assert!(intake(&input).is_ok());
            let input = [&[b'a'; limits::TOKEN68][..], end].concat();
            assert!(token68(&input).is_ok());
        }
    }

    #[test]
    fn a_token68_is_taken_as_it_is_where_that_is_allowed() {
        for key in [&b"a"[..], b"a=", b"a==", b"eyJh.eyJp.c2ln", b"-._~+/", b"AZaz09-._~+/==="] {
            let want = [PREFIX, key, b"\r\n"].concat();
            let (_, got) = record(&mut token68(&[key, b"\r\n"].concat()).ok().unwrap(), &[]);
            assert!(got == want);
        }
    }

    #[test]
    fn the_pages_are_no_more_than_the_form_of_the_key_needs() {
        for (credential, longest) in [(intake(b"key"), 1017), (token68(b"key"), 8192)] {
            let pages = credential.ok().unwrap().pages;
            let whole = PREFIX.len() + longest + 2 + limits::RECORD;
            assert_eq!(pages.len(), whole.next_multiple_of(pages.page()));
        }
    }

    #[test]
    fn a_jwt_is_looked_for_by_its_signature() {
        let (head, claims) =
            ("eyJhbGciOiJSUzI1NiIsInR5cCI6IkpXVCJ9", "eyJpc3MiOiJodHRwczovL2lzc3Vlci8ifQ");
        let signature = "0a1b2c3d4e5f6a7b8c9d0e1f2a3b4c5d6e7f8a9b0c1";
        let jwt = format!("{head}.{claims}.{signature}");
        // No part is long; a part is as long as a needle can be, twice; one byte less.
        let (short, long) = ("0123456789abcdef.ghij.klmnop", &signature[..32]);
        for (key, needle) in [
            (jwt.clone(), &signature[..16]),
            (format!("{head}.{claims}.{signature}."), &signature[..16]),
            (format!("{head}.{signature}.short"), &signature[..16]),
            (format!("{head}.{long}"), &long[..16]),
            (format!("{head}.{}", &long[..31]), &head[..16]),
            (format!("ya29.{signature}"), &signature[..16]),
            (short.to_owned(), &short[..14]),
            (format!("{}==", &signature[..30]), &signature[..16]),
            ("0123456789+/~=".to_owned(), ""),
        ] {
            let credential = token68(key.as_bytes()).ok().unwrap();
            let found = |text: &str| credential.reflected(&mut 0, text.as_bytes());
            assert!(credential.is_searched_for() != needle.is_empty());
            assert!(found(&key) != needle.is_empty());
            assert!(needle.is_empty() || found(&format!("x{needle}")));
            assert!(needle.is_empty() || !found(&needle[..needle.len() - 1]));
        }
        // Another token of the same issuer is nobody's secret here.
        let credential = token68(jwt.as_bytes()).ok().unwrap();
        assert!(!credential.reflected(&mut 0, format!("{head}.{claims}.x").as_bytes()));
    }

    #[test]
    fn interrupted_reads_are_repeated() {
        let mut turn = 0;
        let credential = Credential::read(PREFIX, KeyForm::Word, |buffer| {
            turn += 1;
            match turn {
                1 | 3 => Err(io::ErrorKind::Interrupted.into()),
                2 => {
                    buffer[0] = b'k';
                    Ok(1)
                }
                _ => Ok(0),
            }
        });
        let (_, got) = record(&mut credential.ok().unwrap(), &[]);
        assert!(got == [PREFIX, b"k\r\n"].concat());
    }

    #[test]
    fn nothing_of_the_key_stays_behind_the_block() {
        let mut credential = intake(b"sk-0123456789abcdef\nrest").ok().unwrap();
        assert!(credential.pages.open_mut().iter().all(|byte| *byte == 0));
        assert!(
            credential.memory() == SecretMemory::MemfdSecret
                || credential.memory() == SecretMemory::Locked
        );
    }

    #[test]
    fn a_record_is_filled_to_its_end_and_not_beyond() {
        let mut credential = intake(b"key").ok().unwrap();
        let block = PREFIX.len() + 5;
        for len in [0, 1, limits::RECORD - block - 1, limits::RECORD - block] {
            let after = vec![b'x'; len];
            let (taken, out) = record(&mut credential, &[&after]);
            assert_eq!((taken, out.len()), (len, block + len));
        }
        let after = vec![b'x'; limits::RECORD];
        let (taken, out) = record(&mut credential, &[b"y", &after]);
        assert_eq!((taken, out.len()), (limits::RECORD - block, limits::RECORD));
        assert!(out.ends_with(b"xx") && out[block..].starts_with(b"yx"));
    }

    #[test]
    fn a_sink_that_takes_less_or_fails_is_an_error() {
        struct Short;
        impl Write for Short {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                Ok(bytes.len() - 1)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut credential = intake(b"key").ok().unwrap();
        assert!(credential.splice_into(&[], &mut Short).is_err());
    }

    #[test]
    fn a_reflected_key_is_found_however_it_is_cut() {
        for key in [
            "abcabcabdabcabcabd",
            "aaaaaaaaaaaaaaaaaaaaaaaab",
            "sk-0123456789abcdefghijklmnopqrstuv",
            "abababababababacababababababab",
        ] {
            let credential = intake(key.as_bytes()).ok().unwrap();
            let needle = &key[..16.min(key.len() / 2)];
            for text in [
                format!("xx{needle}yy"),
                format!("{}{needle}", &needle[..needle.len() - 1]),
                format!("{}{}{needle}", &needle[..3], &needle[..needle.len() / 2]),
                format!("{}x{}", &needle[..needle.len() - 1], &needle[1..]),
                needle[..needle.len() - 1].repeat(3),
                "abc".repeat(30),
            ] {
                let want = text.contains(needle);
                for cut in 0..=text.len() {
                    for second in [cut, (cut + 1).min(text.len()), (cut + 5).min(text.len())] {
                        let mut position = 0;
                        let got = [&text[..cut], &text[cut..second], &text[second..]]
                            .iter()
                            .any(|piece| credential.reflected(&mut position, piece.as_bytes()));
                        assert!(got == want, "cut at {cut} and {second}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_reflected_key_is_found_wherever_it_stands_in_a_long_answer() {
        let key = "sk-proj-0123456789abcdefghijklmn";
        let credential = intake(key.as_bytes()).ok().unwrap();
        // What the needle ends in, again and again: every block is looked at twice.
        let fill = key[14..16].repeat(200);
        for at in 0..300 {
            for (needle, want) in [(&key[..16], true), (&key[..15], false), (&key[1..17], false)] {
                let mut text = fill.clone().into_bytes();
                text[at..at + needle.len()].copy_from_slice(needle.as_bytes());
                // A shorter beginning must not be completed by the fill.
                text[at + needle.len()] = b'.';
                let mut position = 0;
                assert!(credential.reflected(&mut position, &text) == want, "at {at}");
                let (first, second) = text.split_at(at + 7);
                let mut position = 0;
                let found = [first, second].iter().any(|p| credential.reflected(&mut position, p));
                assert!(found == want, "at {at}, cut");
            }
        }
    }

    #[test]
    fn short_keys_are_not_looked_for() {
        let credential = intake(b"012345678901234").ok().unwrap();
        assert!(!credential.is_searched_for());
        assert!(!credential.reflected(&mut 0, b"012345678901234"));
        assert!(intake(b"0123456789012345").ok().unwrap().is_searched_for());
    }
}
