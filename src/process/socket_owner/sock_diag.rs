//! Requests to the kernel over netlink (sock_diag(7)).

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};

use super::socket::{Families, KernelSocket, LISTEN, canonical};
use crate::process::sys;

/// The largest part of a list that the kernel sends, in bytes.
const DUMP_PART: usize = 32 * 1024;

/// Message types and flags of `linux/netlink.h` and `linux/sock_diag.h`.
const BY_FAMILY: u16 = 20;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const REQUEST: u16 = 1;
const DUMP: u16 = 0x300;
/// Bytes of a request: `struct nlmsghdr` with `struct inet_diag_req_v2`.
const REQUEST_LEN: usize = 72;
/// Bytes of a response before its attributes: `struct nlmsghdr` with `struct inet_diag_msg`.
const RESPONSE: usize = 88;

/// Whether the kernel has the module `tcp_diag`. A kernel without it reports every socket as
/// missing, so the request names a socket that exists.
pub(super) fn has_diagnosis(fd: &OwnedFd) -> bool {
    let find = || {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        ask(fd, 0, listener.local_addr()?, (Ipv4Addr::UNSPECIFIED, 0).into())
    };
    find().is_ok()
}

/// Asks for one socket. The kernel has queued its response when send(2) returns. A socket that does
/// not exist is ENOENT.
pub(super) fn ask(
    fd: &OwnedFd,
    number: u32,
    end: SocketAddr,
    other: SocketAddr,
) -> io::Result<KernelSocket> {
    let family = if end.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let mut request = request(REQUEST, number, family as u8, u32::MAX);
    put(&mut request, 24, &end.port().to_be_bytes());
    put(&mut request, 26, &other.port().to_be_bytes());
    for (at, address) in [(28, end), (44, other)] {
        match address.ip() {
            IpAddr::V4(ip) => put(&mut request, at, &ip.octets()),
            IpAddr::V6(ip) => put(&mut request, at, &ip.octets()),
        }
    }
    sys::send(fd.as_fd(), &request)?;
    let mut part = [0; 1024];
    loop {
        let len = sys::read(fd.as_fd(), &mut part)?;
        let message = Message::first(&part[..len]).ok_or(io::ErrorKind::InvalidData)?;
        // Other numbers belong to an earlier request that failed before its response was read.
        if message.number == number {
            return message.socket();
        }
    }
}

/// Asks for all listeners of a family and port, and calls `note` with each.
pub(super) fn list_listeners(
    fd: &OwnedFd,
    number: u32,
    family: u8,
    port: u16,
    mut note: impl FnMut(KernelSocket),
) -> io::Result<()> {
    let mut request = request(REQUEST | DUMP, number, family, 1 << LISTEN);
    put(&mut request, 24, &port.to_be_bytes());
    sys::send(fd.as_fd(), &request)?;
    let mut part = vec![0; DUMP_PART];
    loop {
        let len = sys::read(fd.as_fd(), &mut part)?;
        let mut rest = &part[..len];
        while !rest.is_empty() {
            let message = Message::first(rest).ok_or(io::ErrorKind::InvalidData)?;
            rest = rest.get(message.bytes.len().next_multiple_of(4)..).unwrap_or_default();
            match message.kind {
                _ if message.number != number => {}
                DONE => return Ok(()),
                _ => note(message.socket()?),
            }
        }
    }
}

/// Builds a request for one socket, or for all sockets in one of these states (one bit for each).
fn request(flags: u16, number: u32, family: u8, states: u32) -> [u8; REQUEST_LEN] {
    let mut request = [0; REQUEST_LEN];
    put(&mut request, 0, &(REQUEST_LEN as u32).to_ne_bytes());
    put(&mut request, 4, &BY_FAMILY.to_ne_bytes());
    put(&mut request, 6, &flags.to_ne_bytes());
    put(&mut request, 8, &number.to_ne_bytes());
    put(&mut request, 16, &[family, libc::IPPROTO_TCP as u8]);
    put(&mut request, 20, &states.to_ne_bytes());
    // INET_DIAG_NOCOOKIE: any socket with these addresses.
    put(&mut request, 64, &[0xff; 8]);
    request
}

fn put(request: &mut [u8], at: usize, bytes: &[u8]) {
    request[at..at + bytes.len()].copy_from_slice(bytes);
}

/// A netlink message.
struct Message<'a> {
    kind: u16,
    number: u32,
    /// The whole message with its header.
    bytes: &'a [u8],
}

impl<'a> Message<'a> {
    /// The message at the beginning of these bytes.
    fn first(part: &'a [u8]) -> Option<Message<'a>> {
        let bytes = part.get(..u32_at(part, 0)? as usize).filter(|bytes| bytes.len() >= 16)?;
        let kind = (u32_at(bytes, 4)?.to_ne_bytes()[..2]).try_into().map(u16::from_ne_bytes);
        Some(Message { kind: kind.ok()?, number: u32_at(bytes, 8)?, bytes })
    }

    /// The socket that the message describes, or the error that it reports.
    fn socket(&self) -> io::Result<KernelSocket> {
        match self.kind {
            BY_FAMILY => self.read_socket().ok_or(io::ErrorKind::InvalidData.into()),
            ERROR => {
                let error = u32_at(self.bytes, 16).ok_or(io::ErrorKind::InvalidData)? as i32;
                Err(io::Error::from_raw_os_error(error.wrapping_neg()))
            }
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    fn read_socket(&self) -> Option<KernelSocket> {
        let [family, state, ..] = u32_at(self.bytes, 16)?.to_ne_bytes();
        let address = |ip: usize, port: usize| {
            let ip = self.bytes.get(ip..ip + 16)?;
            let ip = if c_int(family) == libc::AF_INET {
                IpAddr::from(<[u8; 4]>::try_from(&ip[..4]).ok()?)
            } else {
                IpAddr::from(<[u8; 16]>::try_from(ip).ok()?)
            };
            let port = self.bytes.get(port..port + 2)?;
            Some(canonical(SocketAddr::new(ip, u16::from_be_bytes([port[0], port[1]]))))
        };
        Some(KernelSocket {
            state,
            end: address(24, 20)?,
            other: address(40, 22)?,
            user: u32_at(self.bytes, 80)?,
            inode: u32_at(self.bytes, 84)?.into(),
            takes: self.families(),
        })
    }

    /// Reads the attribute INET_DIAG_SKV6ONLY.
    fn families(&self) -> Families {
        const V6ONLY: u16 = 11;
        let mut rest = self.bytes.get(RESPONSE..).unwrap_or_default();
        while let [a, b, c, d, value, ..] = rest {
            let (len, kind) = (u16::from_ne_bytes([*a, *b]), u16::from_ne_bytes([*c, *d]));
            if kind == V6ONLY && *value == 1 {
                return Families::V6;
            }
            rest = rest.get(usize::from(len.max(4)).next_multiple_of(4)..).unwrap_or_default();
        }
        Families::Both
    }
}

fn c_int(family: u8) -> libc::c_int {
    family.into()
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}
