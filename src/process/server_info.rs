//! The one-line JSON file that tells others where the relay listens.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// The file, held open so that it can be emptied when it is no longer true, whatever its name leads
/// to by then.
pub struct ServerInfo {
    file: File,
    line: String,
}

impl ServerInfo {
    /// Writes `{"port":PORT,"pid":PID}` and a newline, whole or not at all: into a new file beside
    /// the target, which then takes its name. A symlink in its place is replaced, never followed.
    pub fn write(path: &Path, port: u16, pid: u32) -> io::Result<ServerInfo> {
        match fs::symlink_metadata(path) {
            Ok(found) if !found.is_file() && !found.is_symlink() => {
                return Err(io::Error::new(
                    io::ErrorKind::AlreadyExists,
                    "it exists and is not a regular file",
                ));
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            fs::create_dir_all(parent)?;
        }
        let (mut file, beside) = create_beside(path)?;
        let line = format!("{{\"port\":{port},\"pid\":{pid}}}\n");
        let written = file
            .write_all(line.as_bytes())
            // Whatever the umask: it tells nothing secret, and another user needs it.
            .and_then(|()| file.set_permissions(fs::Permissions::from_mode(0o644)))
            .and_then(|()| fs::rename(&beside, path));
        match written {
            Ok(()) => Ok(ServerInfo { file, line }),
            Err(error) => {
                let _ = fs::remove_file(&beside);
                Err(error)
            }
        }
    }
}

impl ServerInfo {
    /// What was written.
    pub fn line(&self) -> &[u8] {
        self.line.as_bytes()
    }
}

/// For the filter of system calls, which names it, and for the connector, which empties it should the
/// relay be killed.
impl AsFd for ServerInfo {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Nobody finds a stale port.
impl Drop for ServerInfo {
    fn drop(&mut self) {
        let _ = self.file.set_len(0);
    }
}

/// A new file in the same folder. `create_new` is O_EXCL, which follows no link and opens nothing
/// that somebody put there.
fn create_beside(path: &Path) -> io::Result<(File, PathBuf)> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    for attempt in 0..16u32 {
        let moment = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut beside = std::ffi::OsString::from(".");
        beside.push(name);
        beside.push(format!(".{:x}.{:x}.{attempt}", std::process::id(), moment.as_nanos()));
        let beside = path.with_file_name(beside);
        let options =
            OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&beside);
        match options {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            result => return result.map(|file| (file, beside)),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}
