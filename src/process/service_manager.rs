//! The interface to systemd: sockets that listen already (sd_listen_fds(3)), and a socket to which
//! the state of the service is reported (sd_notify(3)).

use std::ffi::{CStr, OsStr};
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixDatagram};

use super::listeners::Listeners;
use super::sys;
use crate::http1::digits;

/// The first descriptor that systemd passes (`SD_LISTEN_FDS_START`).
const FIRST: usize = 3;
/// 127.0.0.1 and ::1.
/// Tested by `listening::sockets_that_are_none_to_serve_on_end_the_start`.
const MOST: usize = 2;

/// The sockets and the address that systemd passes at the start.
pub struct Handover {
    /// The sockets, or why they cannot be used.
    sockets: Result<Vec<OwnedFd>, ActivationError>,
    notify: Option<UnixAddress>,
    /// `NOTIFY_SOCKET` is set but holds no address that can be used.
    bad_address: bool,
    is_activated: bool,
}

/// Why the passed sockets are not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActivationError {
    /// `LISTEN_FDS` is not 1 or 2.
    Count,
    /// One is no TCP socket that listens.
    NotListening,
    /// One listens elsewhere than on 127.0.0.1 or ::1.
    NotLoopback,
    /// `--port` is given too.
    Port,
    /// They listen on different ports, or both on the same address.
    NotAPair,
}

impl std::fmt::Display for ActivationError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("socket activation: ")?;
        f.write_str(match self {
            ActivationError::Count => "LISTEN_FDS must be 1 or 2: 127.0.0.1:PORT and [::1]:PORT",
            ActivationError::NotListening => {
                "a descriptor is not a listening TCP socket; use ListenStream= with an address, and \
                 Accept=no"
            }
            ActivationError::NotLoopback => {
                "a socket listens on another address than 127.0.0.1 and [::1]; name one of them in \
                 ListenStream="
            }
            ActivationError::Port => {
                "--port cannot be given with LISTEN_FDS; name the port in ListenStream="
            }
            ActivationError::NotAPair => {
                "two sockets must be 127.0.0.1 and [::1] with the same port; correct ListenStream="
            }
        })
    }
}

impl Handover {
    /// Reads the variables and removes them. Call this while the process has one thread, before it
    /// forks, because `LISTEN_PID` is the id of the process that was started, and before it opens
    /// any descriptor.
    pub fn take() -> Handover {
        let number =
            |name: &CStr| sys::with_variable(name, |value| digits::decimal(value, 9)).flatten();
        let is_ours = number(c"LISTEN_PID") == Some(std::process::id().into());
        let count = number(c"LISTEN_FDS").filter(|_| is_ours).unwrap_or(0) as usize;
        let address = sys::with_variable(c"NOTIFY_SOCKET", |value| {
            (!value.is_empty()).then(|| notify_address(value))
        });
        let address = address.flatten();
        sys::wipe_variables(|name| {
            let names: [&[u8]; 4] =
                [b"LISTEN_PID", b"LISTEN_FDS", b"LISTEN_FDNAMES", b"NOTIFY_SOCKET"];
            names.contains(&name)
        });
        let sockets = match count {
            0..=MOST => sys::take_descriptors(FIRST, count).ok_or(ActivationError::NotListening),
            _ => Err(ActivationError::Count),
        };
        let bad_address = address.as_ref().is_some_and(Result::is_err);
        Handover {
            sockets,
            notify: address.and_then(Result::ok),
            bad_address,
            is_activated: count > 0,
        }
    }

    /// The first descriptor that was not passed.
    pub fn end(&self) -> usize {
        FIRST + self.sockets.as_ref().map_or(0, Vec::len)
    }

    /// Whether sockets were passed, usable or not.
    pub fn is_activated(&self) -> bool {
        self.is_activated
    }

    /// Takes the sockets, if there are any.
    pub fn take_listeners(&mut self) -> Result<Option<Listeners>, ActivationError> {
        let fds = std::mem::replace(&mut self.sockets, Ok(Vec::new()))?;
        if fds.is_empty() {
            return Ok(None);
        }
        let mut sockets = Vec::new();
        let mut addresses = Vec::new();
        for fd in fds {
            let (socket, address) = listener(fd)?;
            sockets.push(socket);
            addresses.push(address);
        }
        match addresses[..] {
            [one] => Ok(Some(Listeners { sockets, port: one.port() })),
            [a, b] if a.ip() != b.ip() && a.port() == b.port() => {
                Ok(Some(Listeners { sockets, port: a.port() }))
            }
            _ => Err(ActivationError::NotAPair),
        }
    }

    /// Connects to the socket of the service manager. The error is a warning that says why there is
    /// no connection although one is wanted.
    pub fn notifier(&self) -> Result<Notifier, String> {
        let refused = |reason: &dyn std::fmt::Display| {
            format!(
                "NOTIFY_SOCKET: {reason}; the service manager is not told that the relay is ready \
                 (unset it, or use Type=exec)"
            )
        };
        if self.bad_address {
            return Err(refused(&"it is not a path and not an abstract name"));
        }
        let Some(address) = &self.notify else {
            return Ok(Notifier { socket: None });
        };
        let open = || {
            let socket = UnixDatagram::unbound()?;
            socket.connect_addr(address)?;
            // A service manager that does not read must not block the relay.
            socket.set_nonblocking(true)?;
            Ok(socket)
        };
        let socket = open().map_err(|error: io::Error| refused(&error))?;
        Ok(Notifier { socket: Some(socket) })
    }
}

/// A socket that listens on a loopback address over TCP.
fn listener(fd: OwnedFd) -> Result<(TcpListener, SocketAddr), ActivationError> {
    if !sys::is_tcp_listener(fd.as_fd()) {
        return Err(ActivationError::NotListening);
    }
    let socket = TcpListener::from(fd);
    let address = socket.local_addr().map_err(|_| ActivationError::NotListening)?;
    match address.ip() {
        IpAddr::V4(std::net::Ipv4Addr::LOCALHOST) | IpAddr::V6(std::net::Ipv6Addr::LOCALHOST) => {
            Ok((socket, address))
        }
        _ => Err(ActivationError::NotLoopback),
    }
}

/// `/path`, or `@name` for an abstract one.
fn notify_address(value: &[u8]) -> io::Result<UnixAddress> {
    match value {
        [b'@', name @ ..] if !name.is_empty() => UnixAddress::from_abstract_name(name),
        [b'/', ..] => UnixAddress::from_pathname(OsStr::from_bytes(value)),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}

/// The connection to a service manager, if there is one.
#[derive(Default)]
pub struct Notifier {
    socket: Option<UnixDatagram>,
}

impl Notifier {
    /// Requests are served.
    pub fn ready(&self, pid: u32) {
        self.tell(&format!("READY=1\nMAINPID={pid}"));
    }

    /// The relay ends.
    pub fn stopping(&self) {
        self.tell("STOPPING=1");
    }

    fn tell(&self, state: &str) {
        if let Some(socket) = &self.socket {
            // The relay continues without its service manager.
            let _ = socket.send(state.as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notify_socket_has_a_path_or_an_abstract_name() {
        let path = notify_address(b"/run/systemd/notify").unwrap();
        assert_eq!(path.as_pathname().unwrap().to_str(), Some("/run/systemd/notify"));
        let name = notify_address(b"@name").unwrap();
        assert_eq!(name.as_abstract_name(), Some(&b"name"[..]));
        for none in [&b""[..], b"@", b"relative", b"vsock:2:1234", &[b'/'; 200], &[b'@'; 200]] {
            assert!(notify_address(none).is_err(), "{none:?}");
        }
    }
}
