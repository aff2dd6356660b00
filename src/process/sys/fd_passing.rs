//! Messages over a socket pair, with or without a descriptor (`SCM_RIGHTS`, unix(7)).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

use libc::c_int;

use super::result::check;

/// socketpair(2): two connected, non-blocking sockets that preserve message boundaries and are
/// closed on execve(2).
pub fn message_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    let mut fds: [c_int; 2] = [-1; 2];
    // SAFETY: the kernel fills two numbers that no other code refers to.
    check(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()) })?;
    // SAFETY: both descriptors have just been created, and no other code owns them.
    Ok(unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) })
}

/// Space for a control message with one descriptor, aligned as the header requires.
#[repr(C)]
struct Control {
    header: libc::cmsghdr,
    fd: c_int,
}

/// The length in bytes of a control message with one descriptor (CMSG_LEN). A buffer of this length
/// receives at most one descriptor. The kernel closes any further descriptor.
fn control_len() -> usize {
    // SAFETY: computes a number.
    unsafe { libc::CMSG_LEN(size_of::<c_int>() as u32) as usize }
}

/// Makes a message header for one buffer and, optionally, a control message.
fn header(iov: &mut libc::iovec, control: Option<&mut Control>) -> libc::msghdr {
    // SAFETY: plain memory, of which zero is a legal value: no name, no buffer, no control message.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = iov;
    header.msg_iovlen = 1;
    if let Some(control) = control {
        header.msg_control = ptr::from_mut(control).cast();
        header.msg_controllen = control_len() as _;
    }
    header
}

/// Sends one whole message, and with it a copy of the descriptor. Does not block: a full socket is
/// [`io::ErrorKind::WouldBlock`].
pub fn send_message(
    to: BorrowedFd<'_>,
    message: &[u8],
    descriptor: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    // The kernel only reads from the buffer.
    let mut iov =
        libc::iovec { iov_base: message.as_ptr().cast_mut().cast(), iov_len: message.len() };
    // SAFETY: plain memory, of which zero is a legal value.
    let mut control: Control = unsafe { std::mem::zeroed() };
    let control = descriptor.map(|descriptor| {
        control.header.cmsg_len = control_len() as _;
        control.header.cmsg_level = libc::SOL_SOCKET;
        control.header.cmsg_type = libc::SCM_RIGHTS;
        control.fd = descriptor.as_raw_fd();
        &mut control
    });
    let header = header(&mut iov, control);
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    // SAFETY: the header points to a buffer and a control message, with their lengths. Both outlive
    // the call.
    let n = unsafe { libc::sendmsg(to.as_raw_fd(), &header, flags) };
    match usize::try_from(n) {
        Ok(n) if n == message.len() => Ok(()),
        Ok(_) => Err(io::ErrorKind::WriteZero.into()),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// The descriptor that came with a message.
#[derive(Debug)]
pub enum Passed {
    /// No descriptor.
    Nothing,
    /// One descriptor, which is closed on execve(2).
    Descriptor(OwnedFd),
    /// A descriptor that this process could not receive, because it has reached its limit on open
    /// files (`MSG_CTRUNC`).
    Lost,
}

// musl declares the lengths with another type than glibc.
#[allow(clippy::unnecessary_cast)]
/// Receives one message, and returns its length in bytes. The length is 0 when the other end is
/// closed. Does not block: without a message the error is [`io::ErrorKind::WouldBlock`]. A message
/// that does not fit is [`io::ErrorKind::InvalidData`], and so is a control message that holds
/// anything but one descriptor.
pub fn receive_message(from: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, Passed)> {
    let mut iov = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: plain memory, of which zero is a legal value.
    let mut control: Control = unsafe { std::mem::zeroed() };
    let mut header = header(&mut iov, Some(&mut control));
    let flags = libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT;
    // SAFETY: the header points to a buffer and a control message, with their lengths. Both outlive
    // the call, and no other code refers to them.
    let n = unsafe { libc::recvmsg(from.as_raw_fd(), &mut header, flags) };
    let n = usize::try_from(n).map_err(|_| io::Error::last_os_error())?;
    let (flags, len) = (header.msg_flags, header.msg_controllen as usize);
    let passed = if len >= control_len() {
        let Control { header, fd } = control;
        let (level, kind) = (header.cmsg_level, header.cmsg_type);
        if (level, kind, header.cmsg_len as usize)
            != (libc::SOL_SOCKET, libc::SCM_RIGHTS, control_len())
        {
            return Err(io::ErrorKind::InvalidData.into());
        }
        // SAFETY: the kernel has just put this descriptor into the table of this process, and no
        // other code owns it.
        Passed::Descriptor(unsafe { OwnedFd::from_raw_fd(fd) })
    } else if flags & libc::MSG_CTRUNC != 0 {
        Passed::Lost
    } else {
        Passed::Nothing
    };
    // There was more than one descriptor. The kernel has dropped the others and sets MSG_CTRUNC.
    let more = matches!(passed, Passed::Descriptor(_)) && flags & libc::MSG_CTRUNC != 0;
    if more || flags & libc::MSG_TRUNC != 0 {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok((n, passed))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_descriptor_arrives_beside_its_message_and_stays_out_of_other_programs() {
        let (a, b) = message_pair().unwrap();
        let (mut reader, mut writer) = io::pipe().unwrap();
        send_message(a.as_fd(), b"with", Some(reader.as_fd())).unwrap();
        send_message(a.as_fd(), b"without", None).unwrap();
        let mut buffer = [0; 16];
        let (n, passed) = receive_message(b.as_fd(), &mut buffer).unwrap();
        assert_eq!(&buffer[..n], b"with");
        let Passed::Descriptor(fd) = passed else { panic!("{passed:?}") };
        // SAFETY: asks for the flags of a descriptor of our own.
        assert_eq!(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFD) }, libc::FD_CLOEXEC);
        writer.write_all(b"x").unwrap();
        drop(writer);
        let mut text = String::new();
        File::from(fd).read_to_string(&mut text).unwrap();
        assert_eq!(text, "x");
        assert_eq!(reader.read(&mut buffer).unwrap(), 0);
        let (n, passed) = receive_message(b.as_fd(), &mut buffer).unwrap();
        assert!(&buffer[..n] == b"without" && matches!(passed, Passed::Nothing));
        let error = receive_message(b.as_fd(), &mut buffer).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        drop(a);
        assert_eq!(receive_message(b.as_fd(), &mut buffer).unwrap().0, 0);
    }

    #[test]
    fn a_message_that_does_not_fit_is_an_error() {
        let (a, b) = message_pair().unwrap();
        send_message(a.as_fd(), &[7; 9], None).unwrap();
        let error = receive_message(b.as_fd(), &mut [0; 8]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_second_descriptor_is_an_error() {
        let (a, b) = message_pair().unwrap();
        #[repr(C)]
        struct Two {
            header: libc::cmsghdr,
            fds: [c_int; 2],
        }
        // SAFETY: plain memory, of which zero is a legal value.
        let mut two: Two = unsafe { std::mem::zeroed() };
        // SAFETY: computes a number.
        let len = unsafe { libc::CMSG_LEN(8) };
        two.header.cmsg_len = len as _;
        two.header.cmsg_level = libc::SOL_SOCKET;
        two.header.cmsg_type = libc::SCM_RIGHTS;
        two.fds = [a.as_raw_fd(), b.as_raw_fd()];
        let mut byte = 1u8;
        let mut iov = libc::iovec { iov_base: ptr::from_mut(&mut byte).cast(), iov_len: 1 };
        let mut message = header(&mut iov, None);
        message.msg_control = ptr::from_mut(&mut two).cast();
        message.msg_controllen = len as _;
        // SAFETY: what the header points to outlives the call.
        assert_eq!(unsafe { libc::sendmsg(a.as_raw_fd(), &message, 0) }, 1);
        let error = receive_message(b.as_fd(), &mut [0; 8]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
