//! Options of sockets, and the netlink socket that is asked about other sockets.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

use libc::c_int;

use super::result::check;

/// The socket speaks TCP and listens.
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

/// Makes close(2) reset the connection, which the other end cannot take for an orderly end.
pub fn reset_on_close(fd: BorrowedFd<'_>) -> io::Result<()> {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    set_option(fd, libc::SOL_SOCKET, libc::SO_LINGER, &linger)
}

/// Lets more connections wait to be accepted than std does. The kernel drops the SYN of a client
/// beyond the backlog, which then tries again after a second.
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
/// probes (tcp(7)). Without it a request on a connection that a network has forgotten would wait
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

/// Bounds what the kernel buffers for each connection of a listener.
pub fn bound_buffers(fd: BorrowedFd<'_>) -> io::Result<()> {
    set_option(fd, libc::SOL_SOCKET, libc::SO_RCVBUF, &CLIENT_BUFFER)?;
    set_option(fd, libc::SOL_SOCKET, libc::SO_SNDBUF, &CLIENT_BUFFER)
}

/// Bounds the bytes that the kernel keeps for the upstream before it has sent them. The kernel
/// sizes the send buffer by the path, up to 4 MiB, and an upstream that takes nothing would have
/// all of it filled. Bytes on their way do not count, so this does not bound throughput.
pub const UPSTREAM_UNSENT: c_int = 512 * 1024;

/// Bytes that the kernel keeps for a client's connection in each direction, before it doubles them
/// for its own book-keeping. What a client does not read, or sends while the upstream takes
/// nothing, is bounded by that. Set on a listener: its connections have it from there.
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

/// A netlink socket, connected to the kernel, for questions about other sockets.
pub fn socket_diagnosis() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no memory is involved.
    let fd = check(unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_SOCK_DIAG) })?;
    // SAFETY: the descriptor was just made and nobody else has it.
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

/// Sends a question on a datagram socket.
pub fn send(fd: BorrowedFd<'_>, question: &[u8]) -> io::Result<usize> {
    let (start, len) = (question.as_ptr().cast(), question.len());
    // SAFETY: the kernel reads `len` bytes that outlive the call.
    let n = unsafe { libc::send(fd.as_raw_fd(), start, len, libc::MSG_NOSIGNAL) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// recv(2) on a connected socket, once, without waiting.
pub fn receive(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    let (start, len) = (buffer.as_mut_ptr().cast(), buffer.len());
    // SAFETY: the kernel writes at most `len` bytes into memory that is ours alone.
    let n = unsafe { libc::recv(fd.as_raw_fd(), start, len, libc::MSG_DONTWAIT) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}
