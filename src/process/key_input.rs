//! stdin with `--rotate`: the lines of further keys, read without ever waiting for them.
//!
//! Other processes may share the file that stdin refers to. So O_NONBLOCK is never set on it: a
//! pipe is opened a second time, and a socket is read with MSG_DONTWAIT. Each read follows an
//! event, so a pipe that cannot be opened a second time does not block either, unless another
//! process reads the same pipe.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};

use super::credential::{KeyError, KeyForm};
use super::key_ring::{Ended, KeyRing, Terms};
use super::key_source::read_stdin;
use super::sys::{self, Standard};

/// The source of further keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyInput {
    /// An unnamed pipe, whose end is final.
    Pipe,
    /// A named pipe. It ends when its last writer closes it, and another writer may open it.
    NamedPipe,
    /// A socket.
    Socket,
}

/// The keys that a start with `--rotate` has read.
pub struct Begun {
    /// The keys.
    pub keys: KeyRing,
    /// The source of further keys. `None` if stdin was read to its end, as a file is.
    pub input: Option<KeyInput>,
    /// Lines that were refused.
    pub warnings: Vec<String>,
}

/// stdin is a terminal: a line would be shown as it is typed, and a relay in the background would
/// be stopped when it reads.
pub struct Terminal;

impl fmt::Display for Terminal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "--rotate does not read from a terminal, which would show the keys; give the lines \
             through a pipe",
        )
    }
}

impl KeyInput {
    /// Fails if stdin is a terminal.
    pub fn can_be_stdin() -> Result<(), Terminal> {
        if io::stdin().is_terminal() { Err(Terminal) } else { Ok(()) }
    }

    /// Reads the first key from stdin, and the further lines that have arrived already. A file is
    /// read to its end.
    pub fn begin(prefix: &[u8], form: KeyForm, terms: Terms) -> Result<Begun, KeyError> {
        let mut keys = KeyRing::rotating(prefix, form, terms, &mut read_stdin)?;
        let mut warnings = Vec::new();
        take(&mut keys, &mut warnings);
        let input = KeyInput::of_stdin().map_err(KeyError::Read)?;
        if input.is_none() {
            loop {
                match keys.read(&mut read_stdin) {
                    Ok(0) => break,
                    Ok(_) => take(&mut keys, &mut warnings),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(KeyError::Read(error)),
                }
            }
            if keys.end() == Ended::WithinLine {
                warnings.push(format!("stdin: {CUT}"));
            }
        }
        Ok(Begun { keys, input, warnings })
    }

    /// Finds out the kind of stdin. `None` if it is read to its end at once.
    fn of_stdin() -> io::Result<Option<KeyInput>> {
        let stdin = File::from(io::stdin().as_fd().try_clone_to_owned()?);
        let metadata = stdin.metadata()?;
        let kind = metadata.file_type();
        if kind.is_socket() {
            return Ok(Some(KeyInput::Socket));
        }
        if !kind.is_fifo() {
            return Ok(None);
        }
        // Opens the same pipe with separate flags. If that is not permitted, stdin is used as it
        // is.
        let again = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open("/proc/self/fd/0");
        if let Ok(again) = again {
            sys::replace(Standard::Input, again.as_fd())?;
        }
        // All unnamed pipes are on one file system of the kernel.
        let unnamed = File::from(std::os::fd::OwnedFd::from(io::pipe()?.0)).metadata()?;
        let is_named = unnamed.dev() != metadata.dev();
        Ok(Some(if is_named { KeyInput::NamedPipe } else { KeyInput::Pipe }))
    }

    /// Reads once, without waiting.
    pub fn read(self, buffer: &mut [u8]) -> io::Result<usize> {
        let stdin = io::stdin();
        match self {
            KeyInput::Pipe | KeyInput::NamedPipe => sys::read(stdin.as_fd(), buffer),
            KeyInput::Socket => sys::receive(stdin.as_fd(), buffer),
        }
    }
}

impl AsRawFd for KeyInput {
    fn as_raw_fd(&self) -> RawFd {
        io::stdin().as_raw_fd()
    }
}

/// The message about an input that ends within a line.
pub const CUT: &str = "the last line has no end and is ignored";

fn take(keys: &mut KeyRing, warnings: &mut Vec<String>) {
    let taken = keys.take();
    if let Some(error) = &taken.refused {
        warnings.push(format!("stdin: {}", refusal(error, taken.refused_lines)));
    }
}

/// Says why lines are no keys. No text contains a byte of them.
pub fn refusal(error: &KeyError, lines: u64) -> String {
    let reason = match error {
        KeyError::Empty => "it is empty".to_owned(),
        error => error.to_string(),
    };
    match lines {
        1 => format!("a line is refused and the key stays as it is: {reason}"),
        lines => format!("{lines} lines are refused, the last one because: {reason}"),
    }
}
