//! Upstream connections: those that are being made, and those that are usable.
//!
//! | file | holds |
//! |---|---|
//! | `origin` | what all connections share: TLS, the connector, the egress proxy |
//! | `connecting` | a connection that is not usable yet: dial, tunnel, TLS handshake |
//! | `tunnel` | the CONNECT request to the egress proxy, and its response |
//! | `connection` | a usable connection |
//! | `channel` | its socket, and the bytes that wait for room in it |
//! | `pool` | the idle connections, and the preconnect |
//! | `id_list` | the ids of one list of idle connections, in order |

mod channel;
mod connecting;
mod connection;
mod id_list;
mod origin;
pub mod pool;
mod tunnel;

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use mio::event::Event;
use mio::{Registry, Token};

use super::buffer::TlsScratch;
use super::slots::{SlotId, Slots};
use super::socket::Socket;
use crate::http1::local_response::UpstreamFault;
use crate::process::sys;

pub use channel::Channel;
use connecting::Connecting;
pub use connection::{Connection, Sent, StreamEnd};
pub use origin::Origin;

/// An upstream connection.
pub enum Upstream {
    /// It is being made.
    Connecting(Connecting),
    /// It is usable.
    Connection(Connection),
}

impl Upstream {
    /// A connection that is to be made for the session `owner`, or as a preconnect;
    /// [`Upstream::advance`] begins.
    pub fn new(token: Token, owner: Option<SlotId>, now: Instant, limit: Duration) -> Upstream {
        Upstream::Connecting(Connecting::new(token, owner, now, limit))
    }

    /// Goes on towards a usable connection, as far as possible without waiting.
    pub fn advance(
        &mut self,
        origin: &mut Origin,
        registry: &Registry,
        scratch: &mut TlsScratch,
        now: Instant,
    ) -> Result<(), UpstreamFault> {
        if let Upstream::Connecting(connecting) = self
            && let Some(connection) = connecting.advance(origin, registry, scratch, now)?
        {
            *self = Upstream::Connection(connection);
        }
        Ok(())
    }

    /// The connection, if it is usable.
    pub fn connection(&mut self) -> Option<&mut Connection> {
        match self {
            Upstream::Connecting(_) => None,
            Upstream::Connection(connection) => Some(connection),
        }
    }

    /// It can carry a request.
    pub fn is_ready(&self) -> bool {
        matches!(self, Upstream::Connection(_))
    }

    /// The connector has been asked and has not replied.
    pub fn is_dialing(&self) -> bool {
        match self {
            Upstream::Connecting(connecting) => connecting.is_dialing(),
            Upstream::Connection(_) => false,
        }
    }

    /// Takes the connector's reply, if it is waited for; [`Upstream::advance`] goes on from there.
    pub fn dialed(&mut self, result: Result<(TcpStream, SocketAddr), UpstreamFault>) {
        if let Upstream::Connecting(connecting) = self {
            connecting.dialed(result);
        }
    }

    /// The name of the step on the way to a usable connection.
    pub fn step(&self) -> &'static str {
        match self {
            Upstream::Connecting(connecting) => connecting.step(),
            Upstream::Connection(_) => "ready",
        }
    }

    /// The session that it is made for or works for; `None` for a preconnect and while it is idle.
    pub fn owner(&self) -> Option<SlotId> {
        match self {
            Upstream::Connecting(connecting) => connecting.owner,
            Upstream::Connection(connection) => connection.owner,
        }
    }

    /// What it is connected to: the upstream, or the egress proxy.
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Upstream::Connecting(connecting) => connecting.address,
            Upstream::Connection(connection) => connection.address,
        }
    }

    /// The address at the other end of its socket, while it is connected.
    pub fn remote(&self) -> Option<SocketAddr> {
        match self {
            Upstream::Connecting(connecting) => connecting.socket().and_then(Socket::remote),
            Upstream::Connection(connection) => connection.socket().remote(),
        }
    }

    /// When to look at it without an event: while it is being made, to give up; while it is idle,
    /// to close it.
    pub fn wakes_at(&self) -> Option<Instant> {
        match self {
            Upstream::Connecting(connecting) => Some(connecting.deadline),
            Upstream::Connection(connection) => connection.idle_until,
        }
    }

    /// Notes what an event says.
    pub fn note(&mut self, event: &Event) {
        match self {
            Upstream::Connecting(connecting) => connecting.note(event),
            Upstream::Connection(connection) => connection.note(event),
        }
    }

    /// Sends bytes that wait.
    pub fn flush(&mut self) {
        match self {
            Upstream::Connecting(connecting) => connecting.flush(),
            Upstream::Connection(connection) => connection.flush(),
        }
    }

    /// Bytes that the socket had no room for.
    pub fn unsent(&self) -> usize {
        match self {
            Upstream::Connecting(connecting) => connecting.unsent(),
            Upstream::Connection(connection) => connection.unsent(),
        }
    }

    /// No bytes wait to be sent.
    pub fn is_drained(&self) -> bool {
        self.unsent() == 0
    }

    /// The session `owner` waits for it from now on, for as long as for one begun now.
    pub fn adopt(&mut self, owner: SlotId, now: Instant, limit: Duration) {
        match self {
            Upstream::Connecting(connecting) => connecting.adopt(owner, now, limit),
            Upstream::Connection(connection) => {
                connection.owner = Some(owner);
                connection.requested_at = now;
            }
        }
    }

    /// No session waits for it any more.
    pub fn disown(&mut self) {
        match self {
            Upstream::Connecting(connecting) => connecting.disown(),
            Upstream::Connection(connection) => connection.owner = None,
        }
    }

    /// The machine has slept: that time counts too.
    pub fn has_slept(&mut self, slept: Duration) {
        match self {
            Upstream::Connecting(connecting) => connecting.has_slept(slept),
            Upstream::Connection(connection) => connection.has_slept(slept),
        }
    }

    /// Has the connection end with a reset, because the upstream may still work for an exchange
    /// that is cancelled. An orderly end would also leave a port in TIME_WAIT for each, until none
    /// is left. If the upstream has ended its side already, no end leaves one.
    pub fn cancel(&mut self) {
        let fd = match self {
            Upstream::Connecting(connecting) => connecting.resettable(),
            Upstream::Connection(connection) => connection.resettable(),
        };
        if let Some(fd) = fd {
            let _ = sys::reset_on_close(fd);
        }
    }
}

impl Slots<Upstream> {
    /// The connection with this id, if it is there and usable.
    pub fn connection(&mut self, id: SlotId) -> Option<&mut Connection> {
        self.get(id).and_then(Upstream::connection)
    }
}
