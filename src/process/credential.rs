//! The credential: the API key from its intake to its wiping. The key is read into secret pages,
//! checked, sent inside a TLS record and compared with responses.
//!
//! ```text
//!   guard | read-only pages        | writable pages                         | guard
//!         | POST … Bearer KEY CRLF | fields … first of body | search tables |
//!           └───── the block ────┘   └─ copied in by splice ┘
//!           └─────────── one slice: one TLS record ─────────┘
//! ```
//!
//! The block ends where the writable pages begin. So the block and the bytes after it form one
//! slice, which is encrypted as one TLS record. The key never moves, and no second copy is made.
//!
//! Once the key is in its pages, only [`Credential::splice_into`] passes its bytes on, to a sink.
//! All other uses compare: `is_in` with responses, for
//! [`KeyRing::reflected`](super::key_ring::KeyRing::reflected); `matches` with a line on stdin, for
//! `--rotate`; [`Credential::wipe_copies`] with other copies, once at the start. Where the machine
//! has protection keys, all these pages are closed between uses.

mod form;
mod lines;
mod position;
mod search;

use std::io::{self, IoSlice, Write};
use std::ops::Range;

use zeroize::Zeroize;

pub use form::{KeyError, KeyForm, Misfit};
pub(crate) use lines::{Lines, Settled, Source};
pub use position::SearchPosition;

use self::search::Search;
use super::sys::{self, ProtectedPages, ProtectionKey, SecretMemory, SecretPages};
use crate::http1::limits;

/// The most locked memory, in KiB, that all secrets of a relay with `sets` sets of pages for keys
/// need, rounded up to a power of two. The sum covers for each set the longest key with the longest
/// URL, one TLS record and the search tables; the lines of further keys; a client token, and the
/// credentials of an egress proxy. `page` is the page size in bytes.
pub fn locked_kib(page: usize, sets: usize) -> usize {
    let block = limits::URL + limits::AUTH_HEADER + 128 + limits::TOKEN68;
    let pages =
        |sizes: &[usize]| sizes.iter().map(|size| size.next_multiple_of(page)).sum::<usize>();
    let lines = if sets > 1 { limits::TOKEN68 + LINE_END } else { 0 };
    let set = pages(&[block, limits::RECORD + search::SPACE]);
    (sets * set + pages(&[lines, 1024, 8 * 1024])).next_power_of_two() / 1024
}

/// The bytes of a CR and a newline after the longest key.
pub(crate) const LINE_END: usize = 2;

/// The place where another copy of the key was found and wiped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyCopy<'a> {
    /// The environment: the variable of this name. The name is empty if it contains the key itself.
    Variable(&'a [u8]),
    /// The arguments.
    Arguments,
}

/// Secret pages for one key, which contain no key yet.
pub(crate) struct KeyPages {
    pages: ProtectedPages,
    memory: SecretMemory,
    /// The offset at which a block ends and the pages that stay writable begin.
    scratch: usize,
}

/// The key, in secret pages that are wiped when it is dropped.
pub struct Credential {
    pages: ProtectedPages,
    memory: SecretMemory,
    /// The offset at which the block ends and the writable pages begin.
    scratch: usize,
    contents: Contents,
}

/// The layout of the pages.
struct Contents {
    /// The offset at which the block begins.
    block: usize,
    /// The range of the key, which lies inside the block.
    key: Range<usize>,
    search: Search,
}

/// The bytes that have been read after the line of the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Behind {
    /// Only line ends.
    Nothing,
    /// More text.
    Text,
}

impl KeyPages {
    /// The kind of memory of the pages.
    pub(crate) fn memory(&self) -> SecretMemory {
        self.memory
    }

    /// The mechanism that closes the pages between two uses.
    pub(crate) fn protection_key(&self) -> ProtectionKey {
        self.pages.protection_key()
    }

    /// Maps pages for a key of this form after a prefix of this length. `page` is the page size in
    /// bytes, or a multiple of it.
    pub(crate) fn new(page: usize, prefix: usize, form: KeyForm) -> io::Result<KeyPages> {
        let scratch = (prefix + form.longest() + LINE_END).next_multiple_of(page);
        let pages = SecretPages::of(page, scratch + limits::RECORD + search::SPACE)?;
        let memory = pages.memory();
        Ok(KeyPages { pages: ProtectedPages::new(pages), memory, scratch })
    }

    /// Whether every byte is zero.
    #[cfg(test)]
    pub(crate) fn is_wiped(&mut self) -> bool {
        self.pages.open().bytes().iter().all(|byte| *byte == 0)
    }

    /// Writes a block with this prefix and key, and makes it read-only. The key must have been
    /// checked. After an error the pages are wiped and unmapped.
    pub(crate) fn load(mut self, prefix: &[u8], key: &[u8]) -> Result<Credential, KeyError> {
        let mut open = self.pages.open();
        let (block, rest) = open.writable().split_at_mut(self.scratch);
        let contents = fill(block, &mut rest[limits::RECORD..], prefix, key)?;
        open.make_read_only(self.scratch).map_err(no_memory)?;
        drop(open);
        let KeyPages { pages, memory, scratch } = self;
        Ok(Credential { pages, memory, scratch, contents })
    }
}

/// Writes the block so that it ends where its pages end, and the tables of the search.
fn fill(
    block: &mut [u8],
    tables: &mut [u8],
    prefix: &[u8],
    key: &[u8],
) -> Result<Contents, KeyError> {
    let place = block.len() - key.len() - 2..block.len() - 2;
    let start = place.start - prefix.len();
    let search = Search::new(key, tables).map_err(KeyError::Random)?;
    block[start..place.start].copy_from_slice(prefix);
    block[place.clone()].copy_from_slice(key);
    block[place.end..].copy_from_slice(b"\r\n");
    Ok(Contents { block: start, key: place, search })
}

fn no_memory(error: io::Error) -> KeyError {
    KeyError::Memory(error, locked_kib(sys::page_size(), 1))
}

impl Credential {
    /// Reads the key up to the first newline or the end of the input, and trims line ends. `prefix`
    /// precedes the key in the block. `source` is read(2) on stdin. On every error the pages
    /// are wiped.
    pub fn read(
        prefix: &[u8],
        form: KeyForm,
        mut source: impl FnMut(&mut [u8]) -> io::Result<usize>,
    ) -> Result<Credential, KeyError> {
        Credential::read_first(prefix, form, &mut source).map(|(credential, _)| credential)
    }

    /// As [`Credential::read`]. Also returns whether more text was read after the key; it is
    /// dropped.
    pub(crate) fn read_first(
        prefix: &[u8],
        form: KeyForm,
        source: Source<'_>,
    ) -> Result<(Credential, Behind), KeyError> {
        Credential::read_into(sys::page_size(), prefix, form, source)
    }

    /// `page` is the page size in bytes, or a multiple of it.
    fn read_into(
        page: usize,
        prefix: &[u8],
        form: KeyForm,
        source: Source<'_>,
    ) -> Result<(Credential, Behind), KeyError> {
        let empty = KeyPages::new(page, prefix.len(), form).map_err(no_memory)?;
        let KeyPages { mut pages, memory, scratch } = empty;

        // Every error from here on drops the pages. Dropping the pages wipes them.
        let mut open = pages.open();
        let (block, rest) = open.writable().split_at_mut(scratch);
        let (read, tables) = rest.split_at_mut(limits::RECORD);
        let buffer = &mut read[..form.longest() + LINE_END];
        let mut lines = Lines::default();
        let line = first_line(&mut lines, buffer, form, source)?;
        form.check(&buffer[line.clone()])?;
        let contents = fill(block, tables, prefix, &buffer[line])?;
        let behind = if lines.has_more(buffer) { Behind::Text } else { Behind::Nothing };
        read.zeroize();
        open.make_read_only(scratch).map_err(no_memory)?;
        drop(open);
        Ok((Credential { pages, memory, scratch, contents }, behind))
    }

    /// The kind of memory that holds the key.
    pub fn memory(&self) -> SecretMemory {
        self.memory
    }

    /// The mechanism that closes the pages between two uses.
    pub fn protection_key(&self) -> ProtectionKey {
        self.pages.protection_key()
    }

    /// Whether responses are searched for the key. A short key is not searched for, because any
    /// text might contain it.
    pub fn is_searched_for(&self) -> bool {
        self.contents.search.is_on()
    }

    /// Searches the environment and the arguments of this process for the key, and wipes each copy.
    /// Reports each variable to `found`, and all arguments together once. A key of fewer than 16
    /// bytes may be part of unrelated text, so such a key counts only where it is the whole value.
    /// Call this only while the process has one thread.
    pub fn wipe_copies(&mut self, mut found: impl FnMut(KeyCopy<'_>)) {
        const LONG: usize = 16;
        let pages = self.pages.open();
        let key = &pages.bytes()[self.contents.key.clone()];
        let is_copy = |text: &[u8]| match key.len() {
            ..LONG => text == key,
            _ => text.windows(key.len()).any(|window| window == key),
        };
        sys::wipe_values(is_copy, |name| {
            found(KeyCopy::Variable(if is_copy(name) { b"" } else { name }));
        });
        let wiped = sys::with_arguments(|arguments| {
            let arguments = arguments.split_mut(|byte| *byte == 0);
            arguments.filter(|text| is_copy(text)).map(|text| text.zeroize()).count()
        });
        if wiped.is_some_and(|wiped| wiped > 0) {
            found(KeyCopy::Arguments);
        }
    }

    /// Passes the block, and as much of `after` as fits into one TLS record, to `sink` in one call.
    /// Returns how many bytes of `after` were passed. A sink that takes fewer bytes than it is
    /// given is an error.
    pub fn splice_into(
        &mut self,
        after: &[IoSlice<'_>],
        sink: &mut impl Write,
    ) -> io::Result<usize> {
        let room = limits::RECORD - (self.scratch - self.contents.block);
        let mut pages = self.pages.open();
        let scratch = &mut pages.writable()[..room];
        let mut taken = 0;
        for run in after {
            let n = run.len().min(room - taken);
            scratch[taken..taken + n].copy_from_slice(&run[..n]);
            taken += n;
        }
        let record = &pages.bytes()[self.contents.block..self.scratch + taken];
        match sink.write(record)? {
            n if n == record.len() => Ok(taken),
            _ => Err(io::ErrorKind::WriteZero.into()),
        }
    }

    /// Searches the next piece of a response for the key. `credential/search.rs` says how many
    /// bytes of the key are found, and which facts the running time depends on. The position does
    /// not move, so that a piece can be searched for several keys.
    pub(crate) fn is_in(&mut self, position: &SearchPosition, piece: &[u8]) -> bool {
        let mut pages = self.pages.open();
        let (block, rest) = pages.split_mut();
        let Contents { key, search, .. } = &mut self.contents;
        search.finds(&block[key.clone()], &mut rest[limits::RECORD..], position, piece)
    }

    /// Writes a block with this key's prefix and another key into other pages.
    pub(crate) fn load_with_same_prefix(
        &mut self,
        pages: KeyPages,
        key: &[u8],
    ) -> Result<Credential, KeyError> {
        let prefix = self.contents.block..self.contents.key.start;
        pages.load(&self.pages.open().bytes()[prefix], key)
    }

    /// Whether these bytes are the key. The time does not depend on where they differ.
    pub(crate) fn matches(&mut self, other: &[u8]) -> bool {
        let pages = self.pages.open();
        let key = &pages.bytes()[self.contents.key.clone()];
        key.len() == other.len() && key.iter().zip(other).fold(0, |all, (x, y)| all | (x ^ y)) == 0
    }

    /// Wipes all of the pages. After an error they are unmapped.
    pub(crate) fn wipe(self) -> io::Result<KeyPages> {
        let Credential { mut pages, memory, scratch, .. } = self;
        let mut open = pages.open();
        open.make_writable()?;
        open.writable().zeroize();
        drop(open);
        Ok(KeyPages { pages, memory, scratch })
    }
}

/// Reads to the first newline or the end of the input. Returns the range of the line in the buffer,
/// which may also hold bytes from after the newline; the caller wipes the buffer.
pub(crate) fn first_line(
    lines: &mut Lines,
    buffer: &mut [u8],
    form: KeyForm,
    source: Source<'_>,
) -> Result<Range<usize>, KeyError> {
    loop {
        if let Some(line) = lines.next(buffer) {
            return Ok(line);
        }
        if lines.settle(buffer) == Settled::TooLong {
            return Err(KeyError::TooLong(form));
        }
        match lines.read(buffer, source) {
            Ok(0) => return Ok(lines.end(buffer).unwrap_or_default()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(KeyError::Read(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PREFIX: &[u8] = b"POST /x HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer ";

    /// A source that returns one of these pieces on each read, as far as the buffer has room.
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

    fn is_in(credential: &mut Credential, position: &mut SearchPosition, piece: &[u8]) -> bool {
        let found = credential.is_in(position, piece);
        position.advance(piece);
        found
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
            (b" key", "BadCharacter(Word, "),
            (b"key ", "BadCharacter(Word, "),
            (b"k ey", "BadCharacter(Word, "),
            (b"k\0ey", "BadCharacter(Word, "),
            (b"k\rey", "BadCharacter(Word, "),
            (b"k.ey", "BadCharacter(Word, "),
            (b"k/ey", "BadCharacter(Word, "),
            (b"key=", "BadCharacter(Word, "),
            (b"k\xc3\xa9y", "BadCharacter(Word, "),
            (&[b'a'; KeyForm::Word.longest() + 1], "TooLong(Word)"),
            (&[b'a'; KeyForm::Word.longest() + 2], "TooLong(Word)"),
            (&[b'a'; 1 << 20], "TooLong(Word)"),
        ] {
            let error = intake(input).err().unwrap();
            assert!(format!("{error:?}").starts_with(want), "{error:?}, not {want}");
        }
        for (input, want) in [
            (&b""[..], "Empty"),
            (b"=", "BadCharacter(Token68, "),
            (b"==", "BadCharacter(Token68, "),
            (b"=a", "BadCharacter(Token68, "),
            (b"a=b", "BadCharacter(Token68, "),
            (b"a= =", "BadCharacter(Token68, "),
            (b"a b", "BadCharacter(Token68, "),
            (b"a,b", "BadCharacter(Token68, "),
            (b"a:b", "BadCharacter(Token68, "),
            (b"a\"b", "BadCharacter(Token68, "),
            (b"a\\b", "BadCharacter(Token68, "),
            (b"a\rb", "BadCharacter(Token68, "),
            (b"a\0b", "BadCharacter(Token68, "),
            (b"a\x7fb", "BadCharacter(Token68, "),
            (b"k\xc3\xa9y", "BadCharacter(Token68, "),
            (&[b'a'; limits::TOKEN68 + 1], "TooLong(Token68)"),
            (&[b'a'; limits::TOKEN68 + 2], "TooLong(Token68)"),
            (&[b'a'; 1 << 20], "TooLong(Token68)"),
        ] {
            let error = token68(input).err().unwrap();
            assert!(format!("{error:?}").starts_with(want), "{error:?}, not {want}");
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
    fn of_a_byte_that_does_not_fit_the_kind_and_the_place_are_told() {
        for (key, want) in [
            (&b"Bearer sk-123"[..], Misfit::Scheme),
            (b"OPENAI_API_KEY=sk-123", Misfit::Variable),
            (b"\xef\xbb\xbfsk-123", Misfit::ByteOrderMark),
            (b"sk-123.a~b+c/d==", Misfit::Token68),
            (b"sk-12 3", Misfit::Byte(6, "a space")),
            (b"\"sk-123\"", Misfit::Byte(1, "a quotation mark")),
            (b"sk-1\t", Misfit::Byte(5, "a tab")),
            (b"sk-1\x1b", Misfit::Byte(5, "a control character")),
            (b"sk-\xc3\xa9", Misfit::Byte(4, "not ASCII")),
            (b"sk,1", Misfit::Byte(3, "a punctuation mark")),
            (b"sk.1 2", Misfit::Byte(3, "one of . ~ + / =")),
            (b"=", Misfit::Byte(1, "one of . ~ + / =")),
        ] {
            match intake(key) {
                Err(KeyError::BadCharacter(KeyForm::Word, misfit)) => assert_eq!(misfit, want),
                _ => panic!("{want:?}"),
            }
        }
        let error = token68(b"a=b").err().unwrap();
        assert!(matches!(error, KeyError::BadCharacter(_, Misfit::Byte(2, _))), "{error}");
    }

    #[test]
    fn the_limit_on_locked_memory_that_is_named_is_enough() {
        assert_eq!([4, 16, 64].map(|kib| locked_kib(kib * 1024, 1)), [64, 128, 256]);
        let rotating = [4, 16, 64].map(|kib| locked_kib(kib * 1024, limits::KEY_SETS));
        assert_eq!(rotating, [512, 512, 2048]);
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
            let mut credential = credential.ok().unwrap();
            let pages = credential.pages.open();
            let block = (PREFIX.len() + longest + 2).next_multiple_of(pages.page());
            let rest = (limits::RECORD + search::SPACE).next_multiple_of(pages.page());
            assert_eq!(pages.len(), block + rest);
        }
    }

    #[test]
    fn a_jwt_is_searched_for_by_its_signature() {
        let (head, claims) =
            ("eyJhbGciOiJSUzI1NiIsInR5cCI6IkpXVCJ9", "eyJpc3MiOiJodHRwczovL2lzc3Vlci8ifQ");
        let signature = "0a1b2c3d4e5f6a7b8c9d0e1f2a3b4c5d6e7f8a9b0c1";
        let jwt = format!("{head}.{claims}.{signature}");
        let mut credential = token68(jwt.as_bytes()).ok().unwrap();
        assert!(credential.is_searched_for());
        let mut found =
            |text: &str| is_in(&mut credential, &mut SearchPosition::default(), text.as_bytes());
        assert!(found(&jwt) && found(signature) && found(&signature[20..]));
        // Another token of the same issuer shares only the public parts, so it is no match.
        assert!(!found(&format!("{head}.{claims}.x")) && !found(&signature[28..]));
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
        assert!(credential.pages.open().writable().iter().all(|byte| *byte == 0));
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
    fn a_key_of_each_form_is_found_whole_and_cut_anywhere() {
        let word = "sk-proj-0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_-";
        let token = "ya29.a0~AfH6/SMB+x0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNO==";
        let longest = "0123456789abcdefghijklmnopqrstuvwxyz".repeat(30)[..1017].to_owned();
        for (credential, key) in [
            (intake(word.as_bytes()), word),
            (intake(&word.as_bytes()[..40]), &word[..40]),
            (intake(&word.as_bytes()[..20]), &word[..20]),
            (intake(longest.as_bytes()), &longest),
            (token68(token.as_bytes()), token),
        ] {
            let mut credential = credential.ok().unwrap();
            for cut in 0..=key.len() {
                let mut position = SearchPosition::default();
                let (first, second) = key.as_bytes().split_at(cut);
                assert!(
                    is_in(&mut credential, &mut position, first)
                        || is_in(&mut credential, &mut position, second),
                    "{} bytes, cut at {cut}",
                    key.len()
                );
            }
        }
    }

    #[test]
    fn short_keys_are_not_searched_for() {
        let mut credential = intake(b"012345678901234").ok().unwrap();
        assert!(!credential.is_searched_for());
        assert!(!is_in(&mut credential, &mut SearchPosition::default(), b"012345678901234"));
        assert!(intake(b"0123456789012345").ok().unwrap().is_searched_for());
    }

    #[test]
    fn pages_of_every_size_hold_the_key_and_a_whole_record() {
        for page in [4, 16, 64].map(|kib| kib * 1024) {
            for (form, key) in [
                (KeyForm::Word, vec![b'k'; KeyForm::Word.longest()]),
                (KeyForm::Token68, vec![b'k'; KeyForm::Token68.longest()]),
                (KeyForm::Word, b"sk-0123456789abcdef".to_vec()),
            ] {
                let read = Credential::read_into(page, PREFIX, form, &mut pieces([&key[..]]));
                let (mut credential, _) = read.ok().unwrap();
                let block = PREFIX.len() + key.len() + 2;
                let after = vec![b'x'; limits::RECORD];
                let (taken, out) = record(&mut credential, &[&after]);
                assert_eq!((taken, out.len()), (limits::RECORD - block, limits::RECORD));
                assert!(out[PREFIX.len()..].starts_with(&key), "another key, {page}");
                assert!(credential.scratch.is_multiple_of(page));
                assert!(credential.pages.open().len().is_multiple_of(page));
                assert!(is_in(&mut credential, &mut SearchPosition::default(), &key));
            }
        }
    }
}
