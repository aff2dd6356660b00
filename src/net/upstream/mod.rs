//! Upstream connections: those that are being made, and those that are usable.
//!
//! | file | holds |
//! |---|---|
//! | `origin` | what all connections share: TLS, the connector, the egress proxy |
//! | `connecting` | a connection that is not usable yet: dial, tunnel, TLS handshake |
//! | `tunnel` | the CONNECT request to the egress proxy, and its response |
//! | `connection` | a usable connection |
//! | `channel` | its socket, and the bytes that the socket has not accepted yet |
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
    /// A new connection for the session `owner`, or a preconnect. [`Upstream::advance`] begins to
    /// make it.
    pub fn new(token: Token, owner: Option<SlotId>, now: Instant, limit: Duration) -> Upstream {
        Upstream::Connecting(Connecting::new(token, owner, now, limit))
    }

    /// Advances a connection that is being made, as far as possible without waiting.
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

    /// Takes the connector's reply, if it is waited for. [`Upstream::advance`] continues from
    /// there.
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

    /// The session that it is assigned to; `None` for a preconnect and while it is idle.
    pub fn owner(&self) -> Option<SlotId> {
        match self {
            Upstream::Connecting(connecting) => connecting.owner,
            Upstream::Connection(connection) => connection.owner,
        }
    }

    /// The address of the upstream or of the egress proxy, once known.
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

    /// When it is given up, while it is being made, or closed, while it is idle.
    pub fn wakes_at(&self) -> Option<Instant> {
        match self {
            Upstream::Connecting(connecting) => Some(connecting.deadline),
            Upstream::Connection(connection) => connection.idle_until,
        }
    }

    /// Records the readiness that an event reports.
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

    /// The number of bytes that the socket has not taken yet.
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

    /// Assigns it to the session `owner`, with the time limit of a new connection.
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

    /// Counts the time for which the machine has slept.
    pub fn age_by_sleep(&mut self, slept: Duration) {
        match self {
            Upstream::Connecting(connecting) => connecting.age_by_sleep(slept),
            Upstream::Connection(connection) => connection.age_by_sleep(slept),
        }
    }

    /// Makes the connection end with a reset, because the upstream may still work on a cancelled
    /// exchange. Orderly ends would also leave one port each in TIME_WAIT, until no port is left.
    /// If the upstream has ended its side first, no port is left behind and no reset is needed.
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
