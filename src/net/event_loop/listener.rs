//! The sockets that clients connect to, and connections before they are admitted.

use std::net::SocketAddr;

use mio::Token;
use mio::net::{TcpListener, TcpStream};

use crate::process::allowed_users::Identity;

/// A socket that clients connect to.
pub(super) struct Listener {
    pub(super) socket: TcpListener,
    pub(super) address: SocketAddr,
    pub(super) token: Token,
    /// Connections may wait to be accepted.
    pub(super) is_waiting: bool,
}

/// A connection that has been accepted and has no place yet.
pub(super) struct Accepted {
    pub(super) stream: TcpStream,
    pub(super) client: SocketAddr,
    pub(super) identity: Identity,
}
