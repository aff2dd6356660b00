//! The client token. With `--client-token-file`, every request must carry it.

use std::fs::File;
use std::hint::black_box;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::credential::locked_kib;
use super::sys::{self, SecretPages};

/// The most bytes that a token may have.
pub const LONGEST: usize = 1024;
/// The fewest bytes that a token may have. A shorter token could be guessed.
pub const SHORTEST: usize = 16;

/// The users who may read the file, apart from its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readers {
    /// No other user.
    Owner,
    /// The file's group, or every user.
    Others,
}

/// The token, in secret pages of its own. Dropping it wipes the pages.
pub struct ClientToken {
    pages: SecretPages,
    len: usize,
}

/// Why there is no token. No error contains a byte that was read.
#[derive(Debug)]
pub enum TokenError {
    /// The file cannot be read.
    Read(io::Error),
    /// The file holds nothing but line ends.
    Empty,
    /// The token has fewer than [`SHORTEST`] bytes.
    TooShort,
    /// The token has more than [`LONGEST`] bytes.
    TooLong,
    /// The file's mode lets its group or every user write to it.
    Writable,
    /// The token contains a byte that is not visible ASCII.
    BadCharacter,
    /// The kernel provides neither secret nor locked memory. All secrets need this many KiB.
    Memory(io::Error, usize),
}

impl std::fmt::Display for TokenError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            TokenError::Read(error) => {
                write!(f, "cannot be read: {error}; name a file that the relay's user may read")
            }
            TokenError::Empty => f.write_str("is empty; write a random token into it"),
            TokenError::TooShort => {
                write!(f, "is too short; write a random token of {SHORTEST} bytes or more into it")
            }
            TokenError::Writable => {
                f.write_str("can be written by others, who could choose the token; chmod go-w it")
            }
            TokenError::TooLong => {
                write!(f, "is too long; write a token of at most {LONGEST} bytes into it")
            }
            TokenError::BadCharacter => f.write_str(
                "must hold one line of visible ASCII without spaces (e.g. from openssl rand -hex 32)",
            ),
            TokenError::Memory(error, kib) => write!(
                f,
                "cannot be kept in locked memory ({error}); raise the limit on it (ulimit -l) to {kib} \
                 KiB or more"
            ),
        }
    }
}

/// Returns who may read a file of this mode. A mode that lets others write is an error.
fn readers(mode: u32) -> Result<Readers, TokenError> {
    if mode & 0o022 != 0 {
        return Err(TokenError::Writable);
    }
    Ok(if mode & 0o044 != 0 { Readers::Others } else { Readers::Owner })
}

impl ClientToken {
    /// Checks the mode of the file and reads the token. The relay has so many `sets` of pages for
    /// keys.
    pub fn open(path: &Path, sets: usize) -> Result<(ClientToken, Readers), TokenError> {
        let file = File::open(path).map_err(TokenError::Read)?;
        let readers = readers(file.metadata().map_err(TokenError::Read)?.mode())?;
        let token = ClientToken::read(sets, |buffer| sys::read(file.as_fd(), buffer))?;
        Ok((token, readers))
    }

    /// Reads `source` to its end. `source` is read(2) on a file. Trailing line ends are trimmed.
    pub fn read(
        sets: usize,
        mut source: impl FnMut(&mut [u8]) -> io::Result<usize>,
    ) -> Result<ClientToken, TokenError> {
        let no_memory = |error| TokenError::Memory(error, locked_kib(sys::page_size(), sets));
        let mut pages = SecretPages::new(LONGEST + 3).map_err(no_memory)?;
        let buffer = &mut pages.writable()[..LONGEST + 3];
        let mut len = 0;
        loop {
            match source(&mut buffer[len..]) {
                Ok(0) => break,
                Ok(n) => len += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(TokenError::Read(error)),
            }
            if len == buffer.len() {
                return Err(TokenError::TooLong);
            }
        }
        let is_end = |byte: &u8| matches!(byte, b'\r' | b'\n');
        len = buffer[..len].iter().rposition(|byte| !is_end(byte)).map_or(0, |last| last + 1);
        match len {
            0 => return Err(TokenError::Empty),
            1..=LONGEST => {}
            _ => return Err(TokenError::TooLong),
        }
        if !buffer[..len].iter().all(u8::is_ascii_graphic) {
            return Err(TokenError::BadCharacter);
        }
        if len < SHORTEST {
            return Err(TokenError::TooShort);
        }
        let whole = pages.len();
        pages.make_read_only(whole).map_err(no_memory)?;
        Ok(ClientToken { pages, len })
    }

    /// Whether `shown` equals the token. The running time depends only on the length of `shown`.
    pub fn matches(&self, shown: &[u8]) -> bool {
        let token = &self.pages.bytes()[..self.len];
        let differing = shown
            .iter()
            .enumerate()
            .fold(0, |all, (at, byte)| all | black_box(byte ^ token[at % token.len()]));
        black_box(differing) == 0 && shown.len() == token.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(mut text: &[u8]) -> Result<ClientToken, TokenError> {
        ClientToken::read(1, move |buffer| io::Read::read(&mut text, buffer))
    }

    #[test]
    fn only_the_very_token_will_do() {
        let files = [&b"open-sesame-0001"[..], b"open-sesame-0001\n", b"open-sesame-0001\r\n"];
        for file in files {
            let token = token(file).ok().unwrap();
            assert!(token.matches(b"open-sesame-0001"));
            for shown in [
                &b""[..],
                b"o",
                b"open-sesame-000",
                b"open-sesame-0002",
                b"Open-sesame-0001",
                b"open-sesame-0001open-sesame-0001",
                b"open-sesame-0001\n",
            ] {
                assert!(!token.matches(shown));
            }
        }
    }

    #[test]
    fn only_the_owner_may_write_the_file() {
        for mode in [0o600, 0o400, 0o100_600, 0o700, 0o711] {
            assert_eq!(readers(mode).ok(), Some(Readers::Owner), "{mode:o}");
        }
        for mode in [0o644, 0o640, 0o604, 0o100_644] {
            assert_eq!(readers(mode).ok(), Some(Readers::Others), "{mode:o}");
        }
        for mode in [0o666, 0o620, 0o602, 0o100_660] {
            assert!(matches!(readers(mode), Err(TokenError::Writable)), "{mode:o}");
        }
    }

    #[test]
    fn a_file_that_holds_no_token_is_told_apart() {
        for (file, want) in [
            (&b""[..], "Empty"),
            (b"\r\n\n", "Empty"),
            (b"two words", "BadCharacter"),
            (b"two\nlines", "BadCharacter"),
            (b"caf\xc3\xa9", "BadCharacter"),
            (&[b'a'; SHORTEST - 1], "TooShort"),
            (b"0123456789abcde\r\n", "TooShort"),
            (&[b'a'; LONGEST + 1], "TooLong"),
            (&[b'a'; 1 << 16], "TooLong"),
        ] {
            assert_eq!(format!("{:?}", token(file).err().unwrap()), want);
        }
        assert!(token(&[b'a'; LONGEST]).is_ok() && token(&[b'a'; SHORTEST]).is_ok());
        let unreadable = ClientToken::read(1, |_| Err(io::ErrorKind::PermissionDenied.into()));
        assert!(matches!(unreadable, Err(TokenError::Read(_))));
    }
}
