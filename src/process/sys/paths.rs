//! Operations on files by name, one folder at a time. Each function returns the error of the system
//! call that it names.

use std::ffi::{CStr, c_int};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::result::check;

/// The kind of file that a name in a folder refers to. A link is not followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link.
    Link,
    /// A device, a FIFO or a socket.
    Other,
}

/// fstatat(2): the kind of the file and its owner's uid. A link is not followed.
pub fn kind_at(folder: BorrowedFd<'_>, name: &CStr) -> io::Result<(Kind, u32)> {
    // SAFETY: plain numbers; every pattern of bits is one.
    let mut found: libc::stat = unsafe { std::mem::zeroed() };
    let flags = libc::AT_SYMLINK_NOFOLLOW;
    // SAFETY: the name is a string and the kernel fills one struct; both outlive the call.
    check(unsafe { libc::fstatat(folder.as_raw_fd(), name.as_ptr(), &mut found, flags) })?;
    let kind = match found.st_mode & libc::S_IFMT {
        libc::S_IFREG => Kind::File,
        libc::S_IFDIR => Kind::Folder,
        libc::S_IFLNK => Kind::Link,
        _ => Kind::Other,
    };
    Ok((kind, found.st_uid))
}

/// openat(2) with O_PATH: opens a folder to look up names in it. A link is not followed. Without
/// `at`, the name is relative to the working directory.
pub fn open_folder(at: Option<BorrowedFd<'_>>, name: &CStr) -> io::Result<OwnedFd> {
    let at = at.map_or(libc::AT_FDCWD, |at| at.as_raw_fd());
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    // SAFETY: the name is a string that outlives the call.
    let fd = check(unsafe { libc::openat(at, name.as_ptr(), flags) })?;
    // SAFETY: the descriptor has just been created, and no other code owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// openat(2). A link is not followed.
pub fn open_at(at: BorrowedFd<'_>, name: &CStr, flags: c_int, mode: u32) -> io::Result<OwnedFd> {
    let flags = flags | libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NOCTTY;
    // SAFETY: the name is a string that outlives the call.
    let fd = check(unsafe { libc::openat(at.as_raw_fd(), name.as_ptr(), flags, mode) })?;
    // SAFETY: the descriptor has just been created, and no other code owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// mkdirat(2) with mode 0755, less the umask.
pub fn make_folder_at(at: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    // SAFETY: the name is a string that outlives the call.
    check(unsafe { libc::mkdirat(at.as_raw_fd(), name.as_ptr(), 0o755) }).map(|_| ())
}

/// renameat(2) inside one folder.
pub fn rename_at(folder: BorrowedFd<'_>, from: &CStr, to: &CStr) -> io::Result<()> {
    let fd = folder.as_raw_fd();
    // SAFETY: both names are strings that outlive the call.
    check(unsafe { libc::renameat(fd, from.as_ptr(), fd, to.as_ptr()) }).map(|_| ())
}

/// unlinkat(2) of a file. Folders are not removed.
pub fn remove_at(folder: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    // SAFETY: the name is a string that outlives the call.
    check(unsafe { libc::unlinkat(folder.as_raw_fd(), name.as_ptr(), 0) }).map(|_| ())
}

/// readlinkat(2): the target of a link, cut at PATH_MAX bytes.
pub fn read_link_at(folder: BorrowedFd<'_>, name: &CStr) -> io::Result<Vec<u8>> {
    let mut target = vec![0; libc::PATH_MAX as usize];
    let (at, len) = (target.as_mut_ptr().cast(), target.len());
    // SAFETY: the name is a string, and the kernel writes at most `len` bytes; both outlive the
    // call.
    let n = unsafe { libc::readlinkat(folder.as_raw_fd(), name.as_ptr(), at, len) };
    target.truncate(usize::try_from(n).map_err(|_| io::Error::last_os_error())?);
    Ok(target)
}

/// fgetxattr(2): the access control list of a file, as the kernel writes it (acl(5)). `None` if the
/// file has none but its mode.
pub fn access_list(file: BorrowedFd<'_>) -> Option<Vec<u8>> {
    // XATTR_SIZE_MAX, the limit of the kernel.
    let mut list = vec![0; 65_536];
    let name = c"system.posix_acl_access".as_ptr();
    let (at, len) = (list.as_mut_ptr().cast(), list.len());
    // SAFETY: the name is a string, and the kernel writes at most `len` bytes; both outlive the
    // call.
    let n = unsafe { libc::fgetxattr(file.as_raw_fd(), name, at, len) };
    list.truncate(usize::try_from(n).ok()?);
    Some(list)
}

/// geteuid(2): the uid that the kernel checks.
pub fn effective_user() -> u32 {
    // SAFETY: this reads a number of the process; no memory is involved.
    unsafe { libc::geteuid() }
}

/// dup3(2): `fd` keeps its number, and refers to the same file as `by` afterwards.
pub fn replace_descriptor(fd: BorrowedFd<'_>, by: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no memory is involved; the owner of `fd` still owns that number.
    check(unsafe { libc::dup3(by.as_raw_fd(), fd.as_raw_fd(), libc::O_CLOEXEC) }).map(|_| ())
}
