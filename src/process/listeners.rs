//! The sockets that clients connect to: 127.0.0.1:PORT and, where the machine has it, `[::1]:PORT`.
//!
//! Both are taken, because a client that uses the name "localhost" may try either, and another user
//! could listen on a free one.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsFd;

use super::sys;

/// How many free ports are tried until one is free on both addresses.
const ATTEMPTS: usize = 256;

/// Sockets that listen on one port.
pub struct Listeners {
    /// One or two, of different families.
    pub sockets: Vec<TcpListener>,
    /// Their port.
    pub port: u16,
}

/// Why no socket listens.
#[derive(Debug)]
pub struct ListenError {
    address: SocketAddr,
    error: io::Error,
}

impl std::fmt::Display for ListenError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ListenError { address, error } = self;
        write!(f, "cannot listen on {address}: {error}; ")?;
        match address {
            SocketAddr::V6(_) if error.kind() == io::ErrorKind::AddrInUse => f.write_str(
                "the program that has it would get the requests of clients that use \"localhost\"; end \
                 that program, choose another --port, or remove the flag for any free port",
            ),
            _ => f.write_str("choose another --port, or remove the flag for any free port"),
        }
    }
}

impl Listeners {
    /// Binds the port on both addresses; 0 means any port that is free on both. On a machine
    /// without ::1, only 127.0.0.1 is bound.
    pub fn bind(port: u16) -> Result<Listeners, ListenError> {
        let attempts = if port == 0 { ATTEMPTS } else { 1 };
        // Ports that are free on one address only are kept until the end, because the kernel would
        // offer them again.
        let mut unfit = Vec::new();
        loop {
            let v4 = listen(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
            let address = v4.local_addr();
            let unknown =
                |error| ListenError { address: (Ipv4Addr::LOCALHOST, port).into(), error };
            let port = address.map_err(unknown)?.port();
            match listen(SocketAddr::from((Ipv6Addr::LOCALHOST, port))) {
                Ok(v6) => return Ok(Listeners { sockets: vec![v4, v6], port }),
                Err(refused) if is_missing(&refused.error) => {
                    return Ok(Listeners { sockets: vec![v4], port });
                }
                Err(refused) => {
                    unfit.push(v4);
                    let is_taken = refused.error.kind() == io::ErrorKind::AddrInUse;
                    if !is_taken || unfit.len() >= attempts {
                        return Err(refused);
                    }
                }
            }
        }
    }

    /// The loopback address that this machine has and that is not bound.
    pub fn unheld(&self) -> Option<IpAddr> {
        let [socket] = &self.sockets[..] else {
            return None;
        };
        let other: IpAddr = match socket.local_addr().ok()? {
            SocketAddr::V4(_) => Ipv6Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => Ipv4Addr::LOCALHOST.into(),
        };
        UdpSocket::bind((other, 0)).is_ok().then_some(other)
    }

    /// Whether only one loopback address is bound.
    pub fn is_alone(&self) -> bool {
        self.sockets.len() == 1
    }
}

fn listen(address: SocketAddr) -> Result<TcpListener, ListenError> {
    TcpListener::bind(address)
        .and_then(|listener| sys::listen_for_bursts(listener.as_fd()).map(|()| listener))
        .map_err(|error| ListenError { address, error })
}

/// The kernel has no IPv6, or the machine has no ::1. Then no other process can listen there.
fn is_missing(error: &io::Error) -> bool {
    let missing = [libc::EAFNOSUPPORT, libc::EADDRNOTAVAIL, libc::EPROTONOSUPPORT];
    error.raw_os_error().is_some_and(|code| missing.contains(&code))
}
