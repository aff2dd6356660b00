//! One TCP socket as the kernel describes it, and the owner that follows from this description.

use std::net::{IpAddr, SocketAddr};

const ESTABLISHED: u8 = 1;
const SYN_SENT: u8 = 2;
const SYN_RECV: u8 = 3;
/// The state of a socket that waits for connections.
pub(super) const LISTEN: u8 = 10;

/// The owner of one end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// A process of this user. For an accepted socket, this is the user that called accept(2).
    User(u32),
    /// No process yet: the socket waits to be accepted. The kernel then reports uid 0 or the uid of
    /// the listener, neither of which is the user that will accept it.
    Unaccepted,
    /// This end has sent its last byte (FIN) or is closed.
    Closing,
    /// This network namespace has no such socket.
    Missing,
}

/// A socket as the kernel describes it. Its addresses are canonical: none is an IPv4 address in
/// IPv6 form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct KernelSocket {
    /// The TCP state (`tcp_states.h` of the kernel).
    pub state: u8,
    /// The socket's own address.
    pub end: SocketAddr,
    /// The address of the other end.
    pub other: SocketAddr,
    /// The uid that the kernel reports.
    pub user: u32,
    /// The inode number; 0 while no process holds the socket.
    pub inode: u64,
    /// The address families of the connections that it accepts, if it is a listener.
    pub takes: Families,
}

/// Which connections a listener on `[::]` accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Families {
    /// IPv6 connections only (IPV6_V6ONLY).
    V6,
    /// IPv4 connections too, or the kernel does not say.
    Both,
}

impl KernelSocket {
    /// The owner of this end.
    pub(super) fn owner(&self) -> Owner {
        match self.state {
            // SYN_RECV with an inode: a process has called connect(2), and its SYN crossed ours
            // (simultaneous open, RFC 9293 §3.5). Another user's process may listen on that port,
            // so the owner is the process that connects, not the listener.
            ESTABLISHED | SYN_RECV if self.inode != 0 => Owner::User(self.user),
            ESTABLISHED | SYN_RECV => Owner::Unaccepted,
            // When there is no such connection, netlink reports the listener. A socket that is
            // still connecting from that address is no end of a connection either.
            LISTEN | SYN_SENT => Owner::Missing,
            _ => Owner::Closing,
        }
    }

    /// Whether a listener accepts connections to this address.
    pub(super) fn is_listening_at(&self, at: SocketAddr) -> bool {
        self.end.port() == at.port()
            && match (self.end.ip(), at.ip()) {
                (mine, at) if mine == at => true,
                (IpAddr::V4(mine), IpAddr::V4(_)) => mine.is_unspecified(),
                (IpAddr::V6(mine), IpAddr::V6(_)) => mine.is_unspecified(),
                (IpAddr::V6(mine), IpAddr::V4(_)) => {
                    mine.is_unspecified() && self.takes == Families::Both
                }
                (IpAddr::V4(_), IpAddr::V6(_)) => false,
            }
    }
}

/// Returns the address with an IPv4-mapped IPv6 address (RFC 4291 §2.5.5.2) turned into IPv4.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
