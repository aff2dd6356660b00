//! The folder of the server-info file: how its path is walked, and which users can change the path.

use std::ffi::{CString, OsString};
use std::fs::{File, Permissions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use crate::process::sys::paths::{self, Kind};

/// The most links that are followed on the way to one file: the limit of Linux
/// (path_resolution(7)).
const LINKS: usize = 40;

/// The users who can put another file in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Writers {
    /// Root, the relay's user, and perhaps a group.
    Trusted,
    /// Every local user: a folder on the way is writable for everyone and not sticky. Kubernetes
    /// makes its `emptyDir` volumes this way.
    Everyone,
}

/// A folder that was reached component by component, through descriptors. A link is followed, and a
/// missing folder is made, only if every folder before it belongs to root or to this user. The link
/// must belong to one of them too. A folder of another user may be on the way. From there on no
/// link is followed, and no folder or file is made, but an existing file may be written to. A
/// folder that is writable for everyone is allowed as well, and `writers` says so for a warning.
pub(super) struct Folder {
    pub(super) fd: OwnedFd,
    pub(super) owner_is_trusted: bool,
    pub(super) writers: Writers,
}

/// Returns the users who can rename files in this folder.
fn writers(folder: &OwnedFd) -> io::Result<Writers> {
    let mode = File::from(folder.try_clone()?).metadata()?.mode();
    let is_for_everyone = mode & libc::S_IWOTH != 0 && mode & libc::S_ISVTX == 0;
    Ok(if is_for_everyone { Writers::Everyone } else { Writers::Trusted })
}

impl Folder {
    /// Opens the folder, and makes the folders of its path that are missing.
    pub(super) fn open(path: &Path) -> io::Result<Folder> {
        let root = paths::open_folder(None, c"/")?;
        // In a user namespace, root may have another uid: the uid of the owner of the root folder.
        let (_, root_user) = paths::kind_at(root.as_fd(), c".")?;
        let is_trusted = |owner| owner == root_user || is_trusted(owner);
        let mut at = if path.is_absolute() {
            Folder { writers: writers(&root)?, fd: root, owner_is_trusted: true }
        } else {
            let fd = paths::open_folder(None, c".")?;
            let (_, owner) = paths::kind_at(fd.as_fd(), c".")?;
            Folder { writers: writers(&fd)?, fd, owner_is_trusted: is_trusted(owner) }
        };
        let mut names: Vec<OsString> = names(path);
        names.reverse();
        let mut links = 0;
        while let Some(name) = names.pop() {
            let name = CString::new(name.as_bytes())?;
            let owner = match paths::kind_at(at.fd.as_fd(), &name) {
                Ok((Kind::Folder, owner)) => owner,
                Ok((Kind::Link, owner)) => {
                    links += 1;
                    if !is_trusted(owner) || !at.owner_is_trusted {
                        return Err(untrusted());
                    }
                    if links > LINKS {
                        return Err(io::Error::from_raw_os_error(libc::ELOOP));
                    }
                    let target = PathBuf::from(OsString::from_vec(paths::read_link_at(
                        at.fd.as_fd(),
                        &name,
                    )?));
                    if target.is_absolute() {
                        let fd = paths::open_folder(None, c"/")?;
                        at = Folder { fd, owner_is_trusted: true, ..at };
                    }
                    names.extend(self::names(&target).into_iter().rev());
                    continue;
                }
                Ok(_) => return Err(io::ErrorKind::NotADirectory.into()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    if !at.owner_is_trusted {
                        return Err(untrusted());
                    }
                    at.make(&name)?;
                    paths::effective_user()
                }
                Err(error) => return Err(error),
            };
            let fd = paths::open_folder(Some(at.fd.as_fd()), &name)?;
            let owner_is_trusted = at.owner_is_trusted && is_trusted(owner);
            at = Folder { writers: writers(&fd)?.max(at.writers), fd, owner_is_trusted };
        }
        Ok(at)
    }

    /// Makes a folder with mode 0755, whatever the umask.
    fn make(&self, name: &CString) -> io::Result<()> {
        paths::make_folder_at(self.fd.as_fd(), name)?;
        let made = paths::open_at(self.fd.as_fd(), name, libc::O_RDONLY | libc::O_DIRECTORY, 0)?;
        File::from(made).set_permissions(Permissions::from_mode(0o755))
    }
}

fn names(path: &Path) -> Vec<OsString> {
    let name = |component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        _ => None,
    };
    path.components().filter_map(name).collect()
}

/// Whether the owner is root or the relay's user.
pub(super) fn is_trusted(owner: u32) -> bool {
    owner == 0 || owner == paths::effective_user()
}

/// The error for a path that another user can change.
pub(super) fn untrusted() -> io::Error {
    io::Error::new(
        io::ErrorKind::PermissionDenied,
        "another user can change the path to it; create the file first, or name one in a folder of \
         root's or of the relay's user",
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn as_many_links_are_followed_as_linux_follows_and_no_more() {
        // `/proc/self/fd` and `/dev/fd` have links on the way; this folder has none.
        let folder = std::env::temp_dir().canonicalize().unwrap();
        let folder = folder.join(format!("links-{}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        std::fs::set_permissions(&folder, Permissions::from_mode(0o755)).unwrap();
        std::fs::create_dir(folder.join("0")).unwrap();
        for link in 1..=LINKS + 1 {
            symlink((link - 1).to_string(), folder.join(link.to_string())).unwrap();
        }
        let open = |link: usize| Folder::open(&folder.join(link.to_string()));
        let (longest, too_long) = (open(LINKS).map(drop), open(LINKS + 1).map(drop));
        let kernel = std::fs::read_dir(folder.join((LINKS + 1).to_string())).map(drop);
        std::fs::remove_dir_all(&folder).unwrap();
        let error = |result: io::Result<()>| result.err().and_then(|error| error.raw_os_error());
        assert_eq!(error(longest), None);
        assert_eq!((error(too_long), error(kernel)), (Some(libc::ELOOP), Some(libc::ELOOP)));
    }
}
