//! Ports on which nothing listens.

use std::net::TcpListener;
use std::ops::RangeInclusive;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::relay::random_hex;

/// A port of 127.0.0.1 that refuses connections as long as this value lives. A socket is bound to it
/// and does not listen, so no other test is given the port meanwhile.
pub struct ClosedPort {
    pub port: u16,
    _socket: OwnedFd,
}

/// Reserves a port that refuses connections.
pub fn closed_port() -> ClosedPort {
    // SAFETY: no memory is involved.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    assert!(fd >= 0);
    // SAFETY: the descriptor is new, and nothing else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut address = libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: 0,
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes([127, 0, 0, 1]) },
        sin_zero: [0; 8],
    };
    let mut size = size_of_val(&address) as u32;
    let at = std::ptr::from_mut(&mut address).cast();
    // SAFETY: the kernel reads and fills an address that outlives the calls.
    let done = unsafe {
        libc::bind(socket.as_raw_fd(), at, size) == 0
            && libc::getsockname(socket.as_raw_fd(), at, &mut size) == 0
    };
    assert!(done, "{}", std::io::Error::last_os_error());
    ClosedPort { port: u16::from_be(address.sin_port), _socket: socket }
}

/// A port that is free, for a program that takes it soon. The kernel does not give it to
/// programs that ask for any port, so no other test is given it meanwhile.
pub fn free_port() -> u16 {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
    let mut ends = text.split_whitespace().map(|end| end.parse().unwrap());
    let given: RangeInclusive<u16> = ends.next().unwrap()..=ends.next().unwrap();
    let random = usize::from_str_radix(&random_hex()[..4], 16).unwrap();
    let mut others = (10_000..=u16::MAX).cycle().skip(random).take(65_536);
    let is_free = |port: &u16| {
        !given.contains(port) && ["127.0.0.1", "::1"].iter().all(|host| is_unused(host, *port))
    };
    // Where the kernel gives away all of them, any is as good as another.
    others.find(is_free).unwrap_or_else(|| closed_port().port)
}

/// Nothing listens on this port. On a machine without IPv6 nothing can.
fn is_unused(host: &str, port: u16) -> bool {
    match TcpListener::bind((host, port)) {
        Ok(_) => true,
        Err(error) => error.kind() == std::io::ErrorKind::AddrNotAvailable,
    }
}
