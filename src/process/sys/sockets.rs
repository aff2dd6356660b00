//! Options of sockets, and the netlink socket that reports the owners of other sockets.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

use libc::c_int;

use super::result::check;

/// Whether this is a TCP socket that listens.
pub fn is_tcp_listener(fd: BorrowedFd<'_>) -> bool {
    let option = |name: c_int| {
        let mut value: c_int = 0;
        let mut len = libc::socklen_t::try_from(size_of::<c_int>()).unwrap_or(0);
        let value_at = ptr::from_mut(&mut value).cast();
        // SAFETY: the kernel fills one number that outlives the call.
        let result =
            unsafe { libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, name, value_at, &mut len) };
        (result == 0).then_some(value)
    };
    option(libc::SO_ACCEPTCONN) == Some(1)
        && option(libc::SO_TYPE) == Some(libc::SOCK_STREAM)
        && option(libc::SO_PROTOCOL) == Some(libc::IPPROTO_TCP)
}

/// Makes close(2) reset the connection, so that the other end cannot mistake it for an orderly end.
pub fn reset_on_close(fd: BorrowedFd<'_>) -> io::Result<()> {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    set_option(fd, libc::SOL_SOCKET, libc::SO_LINGER, &linger)
}

/// Lets more connections wait to be accepted than the standard library does. When the queue is
/// full, the kernel drops a client's SYN, and the client tries again after a second.
pub fn listen_for_bursts(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no memory is involved.
    check(unsafe { libc::listen(fd.as_raw_fd(), 4096) }).map(|_| ())
}

/// Options of every connection: TCP_NODELAY, urgent bytes in line with the others, and keep-alive
/// probes after a minute of silence, then every 15 seconds, four times. Accepted connections
/// inherit them from the listener.
pub fn set_stream_options(fd: BorrowedFd<'_>) -> io::Result<()> {
    set_common_options(fd)?;
    set_option::<c_int>(fd, libc::IPPROTO_TCP, libc::TCP_KEEPCNT, &4)
}

/// Further options of connections to the upstream. TCP_USER_TIMEOUT ends the connection when sent
/// bytes or keep-alive probes are not acknowledged for two minutes; it replaces the number of
/// probes (tcp(7)). Without it, a request on a connection that a router silently dropped would wait
/// for a quarter of an hour.
pub fn set_upstream_options(fd: BorrowedFd<'_>) -> io::Result<()> {
    set_common_options(fd)?;
    set_option::<c_int>(fd, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, &120_000)?;
    set_option(fd, libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, &UPSTREAM_UNSENT)
}

fn set_common_options(fd: BorrowedFd<'_>) -> io::Result<()> {
    set_option::<c_int>(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, &1)?;
    set_option::<c_int>(fd, libc::SOL_SOCKET, libc::SO_OOBINLINE, &1)?;
    set_option::<c_int>(fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE, &1)?;
    set_option::<c_int>(fd, libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, &60)?;
    set_option::<c_int>(fd, libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, &15)
}

/// Limits the buffers of each connection of a listener to [`CLIENT_BUFFER`].
pub fn bound_buffers(fd: BorrowedFd<'_>) -> io::Result<()> {
    set_option(fd, libc::SOL_SOCKET, libc::SO_RCVBUF, &CLIENT_BUFFER)?;
    set_option(fd, libc::SOL_SOCKET, libc::SO_SNDBUF, &CLIENT_BUFFER)
}

/// The most unsent bytes that the kernel buffers for a connection to the upstream. The kernel sizes
/// the send buffer to suit the path, up to 4 MiB; an upstream that reads nothing would have all of
/// it filled. Bytes that are sent but not acknowledged do not count, so this does not limit the
/// throughput.
pub const UPSTREAM_UNSENT: c_int = 512 * 1024;

/// The bytes that the kernel buffers for a client's connection in each direction. The kernel
/// doubles this number for its own bookkeeping. It limits the bytes that a client leaves unread,
/// and those that it sends while the upstream reads nothing. Connections inherit it from the
/// listener.
pub const CLIENT_BUFFER: c_int = 208 * 1024;

/// Sets a socket option.
fn set_option<T>(fd: BorrowedFd<'_>, level: c_int, name: c_int, value: &T) -> io::Result<()> {
    let len = libc::socklen_t::try_from(size_of::<T>()).unwrap_or(0);
    // SAFETY: the kernel reads `len` bytes of a value that outlives the call.
    check(unsafe {
        libc::setsockopt(fd.as_raw_fd(), level, name, ptr::from_ref(value).cast(), len)
    })
    .map(|_| ())
}

/// A netlink socket, connected to the kernel, for requests about other sockets (sock_diag(7)).
pub fn socket_diagnosis() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no memory is involved.
    let fd = check(unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_SOCK_DIAG) })?;
    // SAFETY: the descriptor has just been created, and no other code owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: plain memory; all zero is the kernel's own address.
    let mut kernel: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
    kernel.nl_family = libc::AF_NETLINK as libc::sa_family_t;
    let len = size_of_val(&kernel) as libc::socklen_t;
    // SAFETY: the kernel reads `len` bytes that outlive the call. From here on no other process can
    // send anything to this socket.
    check(unsafe { libc::connect(fd.as_raw_fd(), ptr::from_ref(&kernel).cast(), len) })?;
    Ok(fd)
}

/// send(2) on a connected datagram socket, once.
pub fn send(fd: BorrowedFd<'_>, message: &[u8]) -> io::Result<usize> {
    let (start, len) = (message.as_ptr().cast(), message.len());
    // SAFETY: the kernel reads `len` bytes that outlive the call.
    let n = unsafe { libc::send(fd.as_raw_fd(), start, len, libc::MSG_NOSIGNAL) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// recv(2) on a connected socket, once, without waiting.
pub fn receive(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    let (start, len) = (buffer.as_mut_ptr().cast(), buffer.len());
    // SAFETY: the kernel writes at most `len` bytes into memory that no other code refers to.
    let n = unsafe { libc::recv(fd.as_raw_fd(), start, len, libc::MSG_DONTWAIT) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}
