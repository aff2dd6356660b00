//! Reads the key from `--key-file` or stdin, closes the source, and wipes other copies of the key.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::io::IsTerminal;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use super::credential::{Behind, Credential, KeyCopy, KeyError, KeyForm};
use super::key_readers::KeyReaders;
use super::key_ring::KeyRing;
use super::sys::{self, Standard};
use super::terminal::Prompt;

/// Why `--key-file` cannot be used.
#[derive(Debug)]
pub enum KeyFileError {
    /// The file cannot be opened.
    Open(io::Error),
    /// The path names a folder, a device or a socket.
    Kind,
}

impl fmt::Display for KeyFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeyFileError::Open(error) => write!(
                f,
                "cannot be read: {error}; name a file that the user who starts the relay may read"
            ),
            KeyFileError::Kind => f.write_str(
                "is neither a file nor a pipe; name the file that holds the key, or use <(COMMAND)",
            ),
        }
    }
}

/// Checks whether the file can be opened, and who can read it. Reads nothing, and opens no pipe: a
/// process that writes to the pipe would take this open for the reader. `user` is the uid of
/// `--user`.
pub fn look(path: &Path, user: Option<u32>) -> Result<KeyReaders, KeyFileError> {
    let metadata = fs::metadata(path).map_err(KeyFileError::Open)?;
    if metadata.is_file() {
        let file = File::open(path).map_err(KeyFileError::Open)?;
        return Ok(KeyReaders::of(&file, &metadata, user));
    }
    match metadata.file_type().is_fifo() {
        true => Ok(KeyReaders::Nobody),
        false => Err(KeyFileError::Kind),
    }
}

/// Opens the file as stdin and follows links. [`read`] then reads the key from stdin as usual. Call
/// this before any change of user. `user` is the uid of `--user`.
pub fn open(path: &Path, user: Option<u32>) -> Result<KeyReaders, KeyFileError> {
    let fits = |metadata: &fs::Metadata| metadata.is_file() || metadata.file_type().is_fifo();
    // The kind is checked before the file is opened, because opening a device can have side
    // effects.
    if !fits(&fs::metadata(path).map_err(KeyFileError::Open)?) {
        return Err(KeyFileError::Kind);
    }
    let file = File::open(path).map_err(KeyFileError::Open)?;
    let metadata = file.metadata().map_err(KeyFileError::Open)?;
    if !fits(&metadata) {
        return Err(KeyFileError::Kind);
    }
    sys::replace(Standard::Input, file.as_fd()).map_err(KeyFileError::Open)?;
    Ok(KeyReaders::of(&file, &metadata, user))
}

/// Reads the key from stdin. At a terminal, a prompt asks for the key. Returns also a warning if
/// more lines are there already.
pub fn read(prefix: &[u8], form: KeyForm) -> Result<(KeyRing, Option<String>), KeyError> {
    let stdin = io::stdin();
    let (credential, behind) = if stdin.is_terminal() {
        let mut prompt = Prompt::new(stdin.as_fd()).map_err(KeyError::Read)?;
        Credential::read_first(prefix, form, &mut |buffer| prompt.read(buffer))
    } else {
        Credential::read_first(prefix, form, &mut read_stdin)
    }?;
    let warning = match behind {
        Behind::Nothing => None,
        Behind::Text => Some(
            "the key is the first line of its input, and the rest is ignored; with --rotate, each \
             further line on stdin replaces the key"
                .to_owned(),
        ),
    };
    Ok((KeyRing::fixed(credential), warning))
}

/// Reads once from stdin. Waits for bytes even if another process has set O_NONBLOCK on what stdin
/// refers to.
pub(super) fn read_stdin(buffer: &mut [u8]) -> io::Result<usize> {
    let stdin = io::stdin();
    loop {
        match sys::read(stdin.as_fd(), buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                sys::wait_readable([stdin.as_raw_fd(); 2])?;
            }
            read => return read,
        }
    }
}

/// Wipes other copies of the key in this process. Returns one warning for each variable, and one
/// for all arguments. Call this only while the process has one thread.
pub fn wipe_copies(credential: &mut Credential) -> Vec<String> {
    let mut warnings = Vec::new();
    credential.wipe_copies(|copy| {
        warnings.push(match copy {
            KeyCopy::Variable(name) => {
                // The name is shown only if it contains no special characters.
                let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
                let plain = !name.is_empty() && name.iter().all(is_plain);
                let name = if plain { String::from_utf8_lossy(name) } else { "NAME".into() };
                format!(
                    "the key was also in the environment variable {name}, where it has been wiped; \
                     start the relay with env -u {name}"
                )
            }
            KeyCopy::Arguments => "the key was also in the arguments, where it has been wiped; \
                                   other users could read it there, so replace the key"
                .to_owned(),
        });
    });
    warnings
}

/// Replaces a file that the key was read from by an empty stdin. `of_flag` says that the source was
/// `--key-file`. A pipe or terminal that the caller gave as stdin stays: closing that pipe would
/// kill a process that writes to it later by SIGPIPE.
pub fn release_stdin(of_flag: bool) -> io::Result<()> {
    let stdin = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    if !of_flag && !stdin.metadata()?.is_file() {
        return Ok(());
    }
    match File::open("/dev/null") {
        Ok(null) if null.metadata()?.file_type().is_char_device() => {
            sys::replace(Standard::Input, null.as_fd())
        }
        // Without a usable `/dev/null`, stdin is a pipe whose writing end is closed.
        _ => sys::replace(Standard::Input, io::pipe()?.0.as_fd()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_and_pipes_will_do() {
        for path in ["/", "/dev/null", "/dev/zero"] {
            assert!(matches!(open(Path::new(path), None), Err(KeyFileError::Kind)), "{path}");
        }
        let missing = open(Path::new("/nowhere/key"), None);
        assert!(matches!(missing, Err(KeyFileError::Open(_))));
    }
}
