//! An upstream connection that is being made: a connected socket from the connector, a tunnel if
//! there is an egress proxy, TLS.
//!
//! ```text
//! New ──► Dialing ──► Dialed ──► Tunneling ──► Handshaking ──► Connection
//!                └──► Failed           (without a proxy or without TLS, that step is left out)
//! ```

use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use mio::event::Event;
use mio::{Registry, Token};

use super::channel::Channel;
use super::connection::Connection;
use super::origin::Origin;
use super::tunnel::{Tunnel, TunnelProgress};
use crate::connector::link::Pending;
use crate::http1::local_response::UpstreamFault;
use crate::net::buffer::TlsScratch;
use crate::net::limits::LONGEST_RECORD;
use crate::net::slots::SlotId;
use crate::net::socket::{EVENTS, ReadOutcome, Socket};
use crate::net::timeouts::CONNECT;
use crate::net::tls::{PeerState, Tls};
use crate::process::sys;
use crate::process::upstream_users::{FarEnd, UpstreamUsers};

/// A connection that is not usable yet.
pub struct Connecting {
    /// The id of the connection for the poll and for the connector.
    token: Token,
    /// The session that waits for it; `None` for a preconnect.
    pub(super) owner: Option<SlotId>,
    begun: Instant,
    /// When its session asked for it; for a preconnect, when it was begun.
    requested_at: Instant,
    /// When the attempt is given up.
    pub(super) deadline: Instant,
    /// The address of the upstream or of the egress proxy, once known.
    pub(super) address: Option<SocketAddr>,
    /// `None` only during [`Step::advance`].
    step: Option<Step>,
}

/// The step that is under way.
#[expect(clippy::large_enum_variant, reason = "each connection lies in a box of its own")]
enum Step {
    /// Nothing has been done yet.
    New,
    /// The connector has been asked for a socket.
    Dialing(Pending),
    /// The connector has sent the socket.
    Dialed(TcpStream),
    /// There is no socket, or none that may be used.
    Failed(UpstreamFault),
    /// The proxy has been asked for a tunnel.
    Tunneling(Tunnel),
    /// The other end of this socket is the upstream.
    Reached(Socket),
    /// The TLS handshake has begun.
    Handshaking(Channel, Tls),
}

/// The outcome of a step. A step that fails is kept, so that its socket can still be reset.
enum StepOutcome {
    Waiting(Step),
    Usable(Channel, Option<Tls>),
    Failed(Step, UpstreamFault),
}

/// The state of a handshake.
enum Handshake {
    Waiting,
    Complete,
}

/// What happens to the bytes that complete a handshake.
#[derive(Clone, Copy)]
enum LastFlight {
    /// No head waits: they are sent now.
    Alone,
    /// They are sent in one packet with the head that waits for the connection.
    WithHead,
}

impl Connecting {
    /// A new connection. [`Connecting::advance`] begins to make it.
    pub fn new(token: Token, owner: Option<SlotId>, now: Instant, limit: Duration) -> Connecting {
        Connecting {
            token,
            owner,
            begun: now,
            requested_at: now,
            deadline: now + limit,
            address: None,
            step: Some(Step::New),
        }
    }

    /// The connector has been asked and has not replied.
    pub fn is_dialing(&self) -> bool {
        matches!(self.step, Some(Step::Dialing(_)))
    }

    /// Takes the connector's reply. [`Connecting::advance`] continues from there.
    pub fn dialed(&mut self, result: Result<(TcpStream, SocketAddr), UpstreamFault>) {
        if let Some(Step::Dialing(pending)) = &mut self.step {
            pending.settle();
            self.address = result.as_ref().ok().map(|(_, address)| *address);
            self.step = Some(match result {
                Ok((stream, _)) => Step::Dialed(stream),
                Err(fault) => Step::Failed(fault),
            });
        }
    }

    /// The name of the step, for `--check`.
    pub fn step(&self) -> &'static str {
        match self.step {
            None | Some(Step::New | Step::Dialing(_) | Step::Dialed(_) | Step::Failed(_)) => {
                "connect"
            }
            Some(Step::Tunneling(_)) => "proxy",
            Some(Step::Reached(_) | Step::Handshaking(..)) => "tls",
        }
    }

    /// The socket, once it is registered.
    pub fn socket(&self) -> Option<&Socket> {
        match &self.step {
            None | Some(Step::New | Step::Dialing(_) | Step::Dialed(_) | Step::Failed(_)) => None,
            Some(Step::Tunneling(tunnel)) => Some(&tunnel.socket),
            Some(Step::Reached(socket)) => Some(socket),
            Some(Step::Handshaking(channel, _)) => Some(&channel.socket),
        }
    }

    /// The socket, registered or not; `None` if there is none, or if the other side has ended the
    /// connection, so that a reset would have no effect.
    pub(super) fn resettable(&self) -> Option<BorrowedFd<'_>> {
        match &self.step {
            Some(Step::Dialed(stream)) => Some(stream.as_fd()),
            _ => self.socket().filter(|socket| !socket.is_read_closed()).map(Socket::fd),
        }
    }

    /// Records the readiness that an event reports.
    pub fn note(&mut self, event: &Event) {
        match &mut self.step {
            None | Some(Step::New | Step::Dialing(_) | Step::Dialed(_) | Step::Failed(_)) => {}
            Some(Step::Tunneling(tunnel)) => tunnel.socket.note(event),
            Some(Step::Reached(socket)) => socket.note(event),
            Some(Step::Handshaking(channel, _)) => channel.socket.note(event),
        }
    }

    /// Bytes of the handshake that wait for room in the socket.
    pub(super) fn unsent(&self) -> usize {
        match &self.step {
            Some(Step::Handshaking(channel, _)) => channel.output.bytes().len(),
            _ => 0,
        }
    }

    /// Sends bytes of the handshake that wait.
    pub(super) fn flush(&mut self) {
        if let Some(Step::Handshaking(channel, _)) = &mut self.step {
            channel.flush();
        }
    }

    /// Assigns it to the session `owner`, with the time limit of a new connection.
    pub(super) fn adopt(&mut self, owner: SlotId, now: Instant, limit: Duration) {
        self.owner = Some(owner);
        self.requested_at = now;
        self.deadline = now + limit;
    }

    /// No session waits for it any more: it becomes a preconnect, with the deadline of one.
    pub(super) fn disown(&mut self) {
        self.owner = None;
        self.deadline = self.begun + CONNECT;
    }

    /// Counts the time for which the machine has slept.
    pub(super) fn has_slept(&mut self, slept: Duration) {
        self.deadline = self.deadline.checked_sub(slept).unwrap_or(self.requested_at);
    }

    /// Advances as far as possible without waiting. Returns the connection once it is usable, and
    /// must not be called after that.
    pub fn advance(
        &mut self,
        origin: &mut Origin,
        registry: &Registry,
        scratch: &mut TlsScratch,
        now: Instant,
    ) -> Result<Option<Connection>, UpstreamFault> {
        if now >= self.deadline {
            return Err(self.blame(UpstreamFault::ConnectTimeout, origin));
        }
        let Some(step) = self.step.take() else {
            return Ok(None);
        };
        let last_flight = match self.owner {
            Some(_) => LastFlight::WithHead,
            None => LastFlight::Alone,
        };
        match step.advance(self.token, last_flight, origin, registry, scratch) {
            StepOutcome::Waiting(step) => {
                self.step = Some(step);
                Ok(None)
            }
            StepOutcome::Failed(step, fault) => {
                self.step = Some(step);
                Err(self.blame(fault, origin))
            }
            StepOutcome::Usable(channel, tls) => {
                Ok(Some(Connection::new(channel, tls, self.owner, self.address, self.requested_at)))
            }
        }
    }

    /// Attributes a fault to the upstream or to the proxy. If the addresses may be the reason, asks
    /// the connector to look the name up again.
    fn blame(&self, fault: UpstreamFault, origin: &Origin) -> UpstreamFault {
        let (has_socket, is_past_proxy) = match self.step {
            None | Some(Step::New | Step::Dialing(_) | Step::Dialed(_) | Step::Failed(_)) => {
                (false, false)
            }
            Some(Step::Tunneling(_)) => (true, false),
            Some(Step::Reached(_) | Step::Handshaking(..)) => (true, true),
        };
        // The name may lead elsewhere by now. The connector knows which connections failed, but not
        // what happened on them later, and not what took too long.
        if has_socket || fault == UpstreamFault::ConnectTimeout {
            origin.link.doubt();
        }
        // Until the tunnel is open, the fault is that of the proxy, if there is one.
        if is_past_proxy || origin.proxy.is_none() { fault } else { fault.of_proxy() }
    }
}

impl Step {
    fn advance(
        self,
        token: Token,
        last_flight: LastFlight,
        origin: &mut Origin,
        registry: &Registry,
        scratch: &mut TlsScratch,
    ) -> StepOutcome {
        let mut step = self;
        loop {
            step = match step {
                Step::New => match origin.link.dial(token.0 as u64) {
                    Ok(pending) => return StepOutcome::Waiting(Step::Dialing(pending)),
                    Err(fault) => return StepOutcome::Failed(Step::New, fault),
                },
                Step::Dialing(pending) => return StepOutcome::Waiting(Step::Dialing(pending)),
                Step::Failed(fault) => return StepOutcome::Failed(Step::Failed(fault), fault),
                Step::Dialed(stream) => {
                    match register(stream, token, registry, &mut origin.users) {
                        Ok(socket) if origin.proxy.is_some() => {
                            Step::Tunneling(Tunnel::new(socket))
                        }
                        Ok(socket) => Step::Reached(socket),
                        Err(fault) => Step::Failed(fault),
                    }
                }
                Step::Tunneling(mut tunnel) => {
                    let progress = origin.proxy.as_ref().map(|request| tunnel.advance(request));
                    match progress {
                        None | Some(Ok(TunnelProgress::Open)) => Step::Reached(tunnel.socket),
                        Some(Ok(TunnelProgress::Waiting)) => {
                            return StepOutcome::Waiting(Step::Tunneling(tunnel));
                        }
                        Some(Err(fault)) => {
                            return StepOutcome::Failed(Step::Tunneling(tunnel), fault);
                        }
                    }
                }
                Step::Reached(socket) => match &origin.tls {
                    None => return StepOutcome::Usable(Channel::new(socket), None),
                    Some(connector) => match connector.connection() {
                        Ok(tls) => Step::Handshaking(Channel::new(socket), tls),
                        Err(fault) => Step::Failed(fault),
                    },
                },
                Step::Handshaking(mut channel, mut tls) => {
                    return match advance_handshake(&mut channel, &mut tls, last_flight, scratch) {
                        Ok(Handshake::Waiting) => {
                            StepOutcome::Waiting(Step::Handshaking(channel, tls))
                        }
                        Ok(Handshake::Complete) => StepOutcome::Usable(channel, Some(tls)),
                        Err(fault) => StepOutcome::Failed(Step::Handshaking(channel, tls), fault),
                    };
                }
            };
        }
    }
}

/// Registers a new socket for events, and checks who holds its other end.
fn register(
    stream: TcpStream,
    token: Token,
    registry: &Registry,
    users: &mut Option<UpstreamUsers>,
) -> Result<Socket, UpstreamFault> {
    let mut stream = mio::net::TcpStream::from_std(stream);
    registry.register(&mut stream, token, EVENTS).map_err(|_| UpstreamFault::OutOfDescriptors)?;
    // An event will tell when there is something to read.
    let socket = Socket::new(stream, false, true);
    if let Some(users) = users {
        check_far_end(users, &socket)?;
    }
    Ok(socket)
}

/// Checks who holds the other end. One check is enough: only that owner can pass the connection on
/// to others. A connection that fails the check is reset. An orderly end would show a stranger that
/// the relay has checked, and would leave a port in TIME_WAIT for each request.
fn check_far_end(users: &mut UpstreamUsers, socket: &Socket) -> Result<(), UpstreamFault> {
    let far_end = match socket.addresses() {
        Some((local, remote)) => users.far_end(local, remote),
        None => FarEnd::Closed,
    };
    if matches!(far_end, FarEnd::Trusted | FarEnd::Elsewhere) {
        return Ok(());
    }
    // A connection that has been reset meanwhile has no other end.
    let is_connected = socket.remote().is_some();
    let _ = sys::reset_on_close(socket.fd());
    Err(match far_end {
        FarEnd::NotTrusted if is_connected => UpstreamFault::NotTrusted,
        _ => UpstreamFault::Closed,
    })
}

/// Advances the handshake as far as possible without waiting.
fn advance_handshake(
    channel: &mut Channel,
    tls: &mut Tls,
    last_flight: LastFlight,
    scratch: &mut TlsScratch,
) -> Result<Handshake, UpstreamFault> {
    loop {
        tls.resume(&mut scratch.ciphertext_in);
        let read = channel.socket.read(scratch.ciphertext_in.unfilled(LONGEST_RECORD));
        if let ReadOutcome::Bytes(n) = read {
            scratch.ciphertext_in.add(n);
        }
        scratch.plaintext_in.clear();
        scratch.ciphertext_out.clear();
        let decrypted = tls.decrypt(
            &mut scratch.ciphertext_in,
            &mut scratch.plaintext_in,
            &mut scratch.ciphertext_out,
        );
        let sent = match last_flight {
            LastFlight::WithHead if tls.is_ready() => {
                channel.output.push(scratch.ciphertext_out.bytes());
                Ok(())
            }
            LastFlight::WithHead | LastFlight::Alone => {
                channel.send(scratch.ciphertext_out.bytes())
            }
        };
        let peer = decrypted?;
        // No request has been sent, so no response can have come.
        if peer == PeerState::Closed || !scratch.plaintext_in.bytes().is_empty() {
            return Err(UpstreamFault::Closed);
        }
        if tls.is_ready() {
            return Ok(Handshake::Complete);
        }
        match read {
            ReadOutcome::Bytes(_) if sent.is_ok() => {}
            ReadOutcome::Nothing if sent.is_ok() => return Ok(Handshake::Waiting),
            ReadOutcome::Bytes(_)
            | ReadOutcome::Nothing
            | ReadOutcome::End
            | ReadOutcome::Broken => return Err(UpstreamFault::TlsFailed),
        }
    }
}
