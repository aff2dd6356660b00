//! The one-line JSON file that tells other programs where the relay listens.
//!
//! The file is made in two steps. [`ServerInfo::open`] finds the place while the process still runs
//! as the user that started it. [`ServerInfo::publish`] writes the line once requests are served.
//! The way of writing depends on the file that the path names:
//!
//! | the path names | way of writing |
//! |---|---|
//! | nothing, a regular file, a link | a new file is renamed in its folder: the line appears whole |
//! | a regular file in a folder where that is impossible | the line is written into the file |
//! | a character device, a FIFO | the line is written to it |
//! | `/dev/stdout`, `/dev/stderr` | the line is written to that descriptor, as it is open already |
//!
//! Every path is walked component by component. `Folder` says which links and folders are accepted.

mod folder;

use std::ffi::{CString, OsStr};
use std::fs::{self, File, Metadata, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use self::folder::{Folder, Writers, is_trusted, untrusted};
use super::sys::paths::{self, Kind};

/// The user of the process when the line is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Later {
    /// The same user.
    SameUser,
    /// Another user (`--user`), who may not have the right to rename the file.
    OtherUser,
}

/// The server-info file. The file stays open, so that it can be emptied when the relay ends even if
/// its name leads elsewhere by then.
pub struct ServerInfo {
    file: File,
    way: Way,
    writers: Writers,
    line: Vec<u8>,
}

enum Way {
    /// A new file with a temporary name, which is still to be renamed.
    Beside { folder: Folder, temporary: CString, name: CString },
    /// A new file that already has its final name.
    Renamed,
    /// A file that existed before. Other processes may hold a descriptor of it.
    InPlace,
    /// A device or a FIFO, which cannot be emptied.
    Stream,
}

impl ServerInfo {
    /// Finds the place, and makes or opens the file. A new file stays empty, and an existing file
    /// stays as it is. With [`Later::OtherUser`] the new file gets its name now. Fails if the way
    /// leads through a link of another user, if a new file would be in a folder of another user, or
    /// if the path names a folder or a block device.
    pub fn open(path: &Path, port: u16, pid: u32, later: Later) -> io::Result<ServerInfo> {
        let line = format!("{{\"port\":{port},\"pid\":{pid}}}\n").into_bytes();
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        if is_closed_descriptor(path) {
            return Err(closed_descriptor());
        }
        let name = CString::new(name.as_bytes())?;
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let folder = Folder::open(parent.unwrap_or(Path::new(".")))?;
        match paths::kind_at(folder.fd.as_fd(), &name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
            Ok((Kind::Folder, _)) => return Err(io::ErrorKind::IsADirectory.into()),
            Ok((Kind::File, _)) => {}
            Ok((Kind::Link, owner)) => {
                // A link of another user is replaced, whatever file it leads to.
                let is_trusted = folder.owner_is_trusted && is_trusted(owner);
                if is_trusted && let Some(standard) = standard_descriptor(path, &folder, &name) {
                    return ServerInfo::stream(File::from(standard?), line);
                }
                if is_trusted && is_stream(path) {
                    return ServerInfo::stream(open_stream(path)?, line);
                }
            }
            Ok((Kind::Other, _)) => return ServerInfo::stream(open_stream(path)?, line),
        }
        let beside = match folder.owner_is_trusted {
            true => create_beside(&folder, &name),
            false => Err(untrusted()),
        };
        match beside {
            Ok((file, temporary)) => {
                let writers = folder.writers;
                let way = Way::Beside { folder, temporary, name };
                let mut info = ServerInfo { file, way, writers, line };
                // The mode does not depend on the umask: the line is no secret, and other users
                // need it.
                info.file.set_permissions(Permissions::from_mode(0o644))?;
                if later == Later::OtherUser {
                    info.rename()?;
                }
                Ok(info)
            }
            Err(error) if is_refusal(&error) => {
                let file = in_place(&folder, &name, error)?;
                Ok(ServerInfo { file, way: Way::InPlace, writers: folder.writers, line })
            }
            Err(error) => Err(error),
        }
    }

    /// Writes `{"port":PORT,"pid":PID}` and a newline. The descriptor may refer to another file
    /// afterwards, but its number stays the same.
    pub fn publish(&mut self) -> io::Result<()> {
        if matches!(self.way, Way::Stream) {
            // A pipe takes a write of at most PIPE_BUF bytes whole or not at all (pipe(7)), so one
            // write is enough.
            return match self.file.write(&self.line)? {
                n if n == self.line.len() => Ok(()),
                _ => Err(io::ErrorKind::WriteZero.into()),
            };
        }
        if matches!(self.way, Way::Beside { .. }) {
            self.write()?;
            self.rename()?;
        }
        match self.way {
            Way::InPlace | Way::Renamed => self.write(),
            Way::Beside { .. } | Way::Stream => Ok(()),
        }
    }

    fn write(&self) -> io::Result<()> {
        self.file.write_all_at(&self.line, 0)?;
        self.file.set_len(self.line.len() as u64)
    }

    /// Renames the new file. If the existing file cannot be replaced, the existing file is used
    /// instead.
    fn rename(&mut self) -> io::Result<()> {
        let Way::Beside { folder, temporary, name } = &self.way else {
            return Ok(());
        };
        match paths::rename_at(folder.fd.as_fd(), temporary, name) {
            Ok(()) => self.way = Way::Renamed,
            Err(error) if is_refusal(&error) => {
                let there = in_place(folder, name, error)?;
                let _ = paths::remove_at(folder.fd.as_fd(), temporary);
                // The seccomp filter names the number of this descriptor, so the number must stay.
                paths::replace_descriptor(self.file.as_fd(), there.as_fd())?;
                self.way = Way::InPlace;
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn stream(file: File, line: Vec<u8>) -> io::Result<ServerInfo> {
        refuse_block_device(&file.metadata()?)?;
        Ok(ServerInfo { file, way: Way::Stream, writers: Writers::Trusted, line })
    }

    /// A warning if every local user can replace the file.
    pub fn warning(&self, path: &Path) -> Option<String> {
        let advice = "every local user can put another file there; name one in a folder that others \
                      cannot write to, or chmod +t it";
        let warning = || format!("--server-info {}: {advice}", path.display());
        (self.writers == Writers::Everyone).then(warning)
    }

    /// The line that is written.
    pub fn line(&self) -> &[u8] {
        &self.line
    }

    /// Whether this is a file that can be emptied.
    pub fn is_file(&self) -> bool {
        !matches!(self.way, Way::Stream)
    }

    /// Whether `other` is the same pipe, device or file.
    pub fn is_same(&self, other: impl AsFd) -> bool {
        let id = |fd: OwnedFd| File::from(fd).metadata().map(|data| (data.dev(), data.ino()));
        let other = other.as_fd().try_clone_to_owned().and_then(id);
        let ours = self.file.metadata().map(|data| (data.dev(), data.ino()));
        matches!((ours, other), (Ok(ours), Ok(other)) if ours == other)
    }

    /// Whether the file still holds this relay's line. A file that cannot be read counts as not
    /// holding it.
    fn has_our_line(&self) -> bool {
        let mut there = Vec::with_capacity(2 * self.line.len());
        let limit = self.line.len() as u64 + 1;
        let read = (&self.file).take(limit).read_to_end(&mut there);
        read.is_ok() && there == self.line
    }
}

impl AsFd for ServerInfo {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Empties or removes the file, so that no program reads a stale port.
impl Drop for ServerInfo {
    fn drop(&mut self) {
        match &self.way {
            Way::Beside { folder, temporary, .. } => {
                let _ = paths::remove_at(folder.fd.as_fd(), temporary);
            }
            // The next relay may already have written its own line into the same file, also into
            // one that this relay has made.
            Way::Renamed | Way::InPlace if self.has_our_line() => drop(self.file.set_len(0)),
            Way::Renamed | Way::InPlace | Way::Stream => {}
        }
    }
}

/// Opens an existing file for writing, because the file cannot be replaced for this `reason`.
/// Returns `reason` as the error if the file cannot be written to either.
fn in_place(folder: &Folder, name: &CString, reason: io::Error) -> io::Result<File> {
    // The relay reads the file when it ends, to see whether the file still holds its line.
    let open = |mode| paths::open_at(folder.fd.as_fd(), name, mode | libc::O_NONBLOCK, 0);
    let opened = open(libc::O_RDWR).or_else(|_| open(libc::O_WRONLY));
    // The reason why the file could not be replaced is the more useful error.
    let Ok(opened) = opened else { return Err(reason) };
    let file = File::from(opened);
    let found = file.metadata()?;
    // A file with a second name may serve another purpose.
    if !found.is_file() || found.nlink() > 1 {
        return Err(reason);
    }
    Ok(file)
}

/// Whether the error says that the file cannot be replaced. Writing into the file may still be
/// possible.
fn is_refusal(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied
        || matches!(
            error.raw_os_error(),
            Some(libc::EACCES | libc::EPERM | libc::EBUSY | libc::EROFS)
        )
}

/// A copy of stdout or stderr, if the path names it; an error, if it names another descriptor of
/// this process, such as `/dev/stdin`. The path itself is not opened: writing would begin at offset
/// 0, over a log that may be there, and a socket cannot be opened.
fn standard_descriptor(
    path: &Path,
    folder: &Folder,
    name: &CString,
) -> Option<io::Result<OwnedFd>> {
    let target = paths::read_link_at(folder.fd.as_fd(), name).unwrap_or_default();
    let number = match target.strip_prefix(b"/proc/self/fd/") {
        Some(number) => number,
        None if is_own_descriptor(path) => name.as_bytes(),
        None => return None,
    };
    match number {
        b"1" => Some(io::stdout().as_fd().try_clone_to_owned()),
        b"2" => Some(io::stderr().as_fd().try_clone_to_owned()),
        _ => Some(Err(closed_descriptor())),
    }
}

/// Whether this is a link to a character device or FIFO, or to a descriptor of another process.
fn is_stream(path: &Path) -> bool {
    is_of_proc(path)
        || fs::metadata(path).is_ok_and(|found| {
            let kind = found.file_type();
            kind.is_char_device() || kind.is_fifo()
        })
}

fn open_stream(path: &Path) -> io::Result<File> {
    // Before it is opened too, which has effects with some drivers.
    refuse_block_device(&fs::metadata(path)?)?;
    let mut options = File::options();
    options.write(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    options.open(path).map_err(|error| match error.raw_os_error() {
        Some(libc::ENXIO) => io::Error::other("no process reads it"),
        _ => error,
    })
}

/// Whether the path names a file of `/proc/PID/fd`, perhaps by the name `/dev/fd`.
fn is_of_proc(path: &Path) -> bool {
    let folder = path.parent().and_then(|parent| fs::canonicalize(parent).ok());
    folder.is_some_and(|folder| folder.starts_with("/proc") && folder.ends_with(OsStr::new("fd")))
}

/// A disk, whose first bytes say what is on it.
fn refuse_block_device(found: &Metadata) -> io::Result<()> {
    match found.file_type().is_block_device() {
        true => Err(io::Error::other("it is a block device")),
        false => Ok(()),
    }
}

fn closed_descriptor() -> io::Error {
    io::Error::other("all descriptors but stdout and stderr are closed at the start")
}

/// Whether the path names a descriptor of this process other than stdout and stderr. The caller's
/// descriptor is closed by now, and its number may belong to another file.
fn is_closed_descriptor(path: &Path) -> bool {
    let name = path.file_name().map(OsStr::as_bytes);
    is_own_descriptor(path) && !matches!(name, Some(b"1" | b"2"))
}

/// Whether the path names a descriptor of this process.
fn is_own_descriptor(path: &Path) -> bool {
    let folder = path.parent().and_then(|parent| fs::canonicalize(parent).ok());
    folder.is_some() && folder == fs::canonicalize("/proc/self/fd").ok()
}

/// Makes a new file with a temporary name in the same folder. O_EXCL follows no link and opens no
/// existing file (open(2)).
fn create_beside(folder: &Folder, name: &CString) -> io::Result<(File, CString)> {
    for attempt in 0..16u32 {
        let moment = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let unique = format!(".{:x}.{:x}.{attempt}", std::process::id(), moment.as_nanos());
        let temporary = CString::new([b".", name.as_bytes(), unique.as_bytes()].concat())?;
        let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL;
        match paths::open_at(folder.fd.as_fd(), &temporary, flags, 0o600) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            result => return result.map(|fd| (File::from(fd), temporary)),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}
