//! The secret memory of the feeder: the request token, the token of each step, and the two messages
//! that carry them.

use std::io;
use std::os::fd::BorrowedFd;

use zeroize::Zeroize;

use crate::http1::limits::TOKEN68;
use crate::oidc::limits::REQUEST;
use crate::oidc::notice::SetupFault;
use crate::oidc::receive::BUFFER;
use crate::oidc::token_response::is_token68;
use crate::process::sys::{self, ProtectedPages, SecretMemory, SecretPages};

/// Bytes behind a token on its line: a space, its lifetime, and the line's end.
const BEHIND: usize = 16;
const LINE: usize = TOKEN68 + BEHIND;
/// Bytes of everything.
const ALL: usize = LINE + LINE + REQUEST + BUFFER;

/// The memory. While no exchange is under way it holds the request token alone.
pub(super) struct TokenMemory {
    pages: ProtectedPages,
    kind: SecretMemory,
    /// The length of the request token.
    request_token: usize,
}

/// The parts of the memory.
pub(super) struct Parts<'a> {
    /// GitHub's request token.
    pub request_token: &'a [u8],
    /// The token of the step, with room for the rest of its line.
    pub token: &'a mut [u8],
    /// The request.
    pub request: &'a mut [u8],
    /// The response.
    pub response: &'a mut [u8],
}

impl TokenMemory {
    /// Maps the memory.
    pub(super) fn new() -> Result<TokenMemory, SetupFault> {
        let pages = SecretPages::new(ALL).map_err(|_| SetupFault::Memory)?;
        let kind = pages.memory();
        Ok(TokenMemory { pages: ProtectedPages::new(pages), kind, request_token: 0 })
    }

    /// The kind of memory.
    pub(super) fn kind(&self) -> SecretMemory {
        self.kind
    }

    /// Reads the request token: the first line, without its end.
    pub(super) fn read_request_token(&mut self, from: BorrowedFd<'_>) -> Result<(), SetupFault> {
        let mut pages = self.pages.open();
        let line = &mut pages.writable()[..LINE];
        let read = read_line(line, |buffer| sys::read(from, buffer));
        let len = read.map_err(|_| SetupFault::Unreadable)?;
        // What was read behind the line is no token.
        line[len.min(LINE)..].zeroize();
        match len {
            0 => Err(SetupFault::Empty),
            1..=TOKEN68 if is_token68(&line[..len]) => {
                self.request_token = len;
                Ok(())
            }
            1..=TOKEN68 => Err(SetupFault::BadCharacter),
            _ => Err(SetupFault::TooLong),
        }
    }

    /// Passes the parts to `work`, and wipes all but the request token behind it.
    pub(super) fn with<R>(&mut self, work: impl FnOnce(Parts<'_>) -> R) -> R {
        let mut pages = self.pages.open();
        let (request_token, rest) = pages.writable().split_at_mut(LINE);
        let (token, rest) = rest.split_at_mut(LINE);
        let (request, rest) = rest.split_at_mut(REQUEST);
        let (response, _) = rest.split_at_mut(BUFFER);
        let request_token = &request_token[..self.request_token];
        let result = work(Parts { request_token, token, request, response });
        pages.writable()[LINE..ALL].zeroize();
        result
    }
}

/// Reads to the first newline or the end of the input. Returns the length of the line without its
/// end; it is that of the buffer or more if the line does not fit.
fn read_line(
    buffer: &mut [u8],
    mut source: impl FnMut(&mut [u8]) -> io::Result<usize>,
) -> io::Result<usize> {
    let mut filled = 0;
    let end = loop {
        if filled == buffer.len() {
            return Ok(filled);
        }
        let n = match source(&mut buffer[filled..]) {
            Ok(0) => break filled,
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let newline = buffer[filled..filled + n].iter().position(|byte| *byte == b'\n');
        if let Some(at) = newline {
            break filled + at;
        }
        filled += n;
    };
    Ok(buffer[..end].iter().rposition(|byte| *byte != b'\r').map_or(0, |last| last + 1))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;

    use super::*;

    fn read(input: &[u8]) -> Result<Vec<u8>, SetupFault> {
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(input).unwrap();
        drop(writer);
        let mut memory = TokenMemory::new().unwrap();
        memory.read_request_token(reader.as_fd())?;
        let token = memory.with(|parts| parts.request_token.to_vec());
        let pages = memory.pages.open();
        assert!(pages.bytes()[token.len()..].iter().all(|byte| *byte == 0));
        Ok(token)
    }

    #[test]
    fn the_request_token_is_the_first_line() {
        for input in ["ey.J-_", "ey.J-_\n", "ey.J-_\r\n", "ey.J-_\nmore\n", "ey.J-_\n\n"] {
            assert_eq!(read(input.as_bytes()), Ok(b"ey.J-_".to_vec()));
        }
        for (input, want) in [
            ("", SetupFault::Empty),
            ("\n", SetupFault::Empty),
            ("\r\ntoken", SetupFault::Empty),
            (" token", SetupFault::BadCharacter),
            ("to\rken", SetupFault::BadCharacter),
            ("bearer token", SetupFault::BadCharacter),
        ] {
            assert_eq!(read(input.as_bytes()), Err(want), "{input:?}");
        }
    }

    #[test]
    fn a_request_token_has_the_bound_of_a_key() {
        let token = |n: usize| [&vec![b'a'; n][..], b"\r\n"].concat();
        assert_eq!(read(&token(TOKEN68)).unwrap().len(), TOKEN68);
        for n in [TOKEN68 + 1, TOKEN68 + BEHIND, 60_000] {
            assert_eq!(read(&token(n)), Err(SetupFault::TooLong));
        }
    }

    #[test]
    fn what_an_exchange_has_written_is_wiped_behind_it() {
        let mut memory = TokenMemory::new().unwrap();
        memory.with(|parts| {
            parts.token.fill(1);
            parts.request.fill(2);
            parts.response.fill(3);
        });
        assert!(memory.pages.open().bytes().iter().all(|byte| *byte == 0));
    }
}
