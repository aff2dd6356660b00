//! The way to a usable connection: a connected socket from the connector, a tunnel where there is a
//! proxy, TLS.

use std::time::Instant;

use mio::Registry;
use mio::net::TcpStream;

use super::{Origin, State, Upstream};
use crate::http1::local_response::UpstreamFault;
use crate::net::buffer::Space;
use crate::net::gather_io::send;
use crate::net::limits::LONGEST_RECORD;
use crate::net::socket::{EVENTS, Got, Socket};
use crate::net::tls::{Connector, PeerState};
use crate::net::tunnel::{Progress, Tunnel};
use crate::process::sys;
use crate::process::upstream_users::{FarEnd, UpstreamUsers};

impl Upstream {
    /// Moves on towards a usable connection, as far as it goes now.
    pub fn advance(
        &mut self,
        origin: &mut Origin,
        registry: &Registry,
        space: &mut Space,
        now: Instant,
    ) -> Result<(), UpstreamFault> {
        if self.is_ready() {
            return Ok(());
        }
        let result = match self.deadline {
            Some(deadline) if now >= deadline => Err(UpstreamFault::ConnectTimeout),
            _ => self.connect(origin, registry, space),
        };
        result.map_err(|fault| {
            // The name may lead elsewhere by now. Of what it could not connect to, the connector
            // knows, but not of what took too long here.
            if !matches!(self.state, State::New | State::Dialing(_) | State::Dialed(_))
                || fault == UpstreamFault::ConnectTimeout
            {
                origin.link.doubt();
            }
            // Until the tunnel stands it is the proxy, if there is one, that is at fault.
            match self.state {
                State::Handshaking(..) => fault,
                _ if origin.proxy.is_some() => fault.of_proxy(),
                _ => fault,
            }
        })
    }

    fn connect(
        &mut self,
        origin: &mut Origin,
        registry: &Registry,
        space: &mut Space,
    ) -> Result<(), UpstreamFault> {
        if let State::New = self.state {
            self.state = State::Dialing(origin.link.dial(self.token.0 as u64)?);
        }
        if let State::Dialing(_) = self.state {
            return Ok(());
        }
        if let State::Dialed(result) = &mut self.state {
            let stream = std::mem::replace(result, Err(UpstreamFault::Unreachable))?;
            let mut stream = TcpStream::from_std(stream);
            registry
                .register(&mut stream, self.token, EVENTS)
                .map_err(|_| UpstreamFault::OutOfDescriptors)?;
            // Whether there is something to read, an event will tell.
            let socket = Socket::new(stream, false, true);
            if let Some(users) = &mut origin.users {
                check_far_end(users, &socket)?;
            }
            self.state = match &origin.proxy {
                Some(_) => State::Tunneling(Tunnel::new(socket)),
                None => connected(socket, origin.connector.as_ref())?,
            };
        }
        if let (State::Tunneling(tunnel), Some(request)) = (&mut self.state, &origin.proxy) {
            if tunnel.advance(request)? == Progress::Waiting {
                return Ok(());
            }
            if let State::Tunneling(tunnel) = std::mem::replace(&mut self.state, State::New) {
                self.state = connected(tunnel.socket, origin.connector.as_ref())?;
            }
        }
        if let State::Handshaking(..) = self.state {
            self.shake_hands(space)?;
        }
        if self.is_ready() {
            self.deadline = None;
        }
        Ok(())
    }

    fn shake_hands(&mut self, space: &mut Space) -> Result<(), UpstreamFault> {
        let State::Handshaking(socket, tls) = &mut self.state else {
            return Ok(());
        };
        loop {
            tls.resume(&mut space.wire);
            let got = socket.read(space.wire.room(LONGEST_RECORD));
            if let Got::Bytes(n) = got {
                space.wire.add(n);
            }
            space.plain.clear();
            space.out.clear();
            let opened = tls.open(&mut space.wire, &mut space.plain, &mut space.out);
            let sent = if tls.is_ready() && self.owner.is_some() {
                // What ends the handshake leaves with the head that waits for it.
                self.output.push(space.out.bytes());
                Ok(())
            } else {
                send(socket, &mut self.output, space.out.bytes())
            };
            let peer = opened?;
            // Nobody has asked for anything yet, so nothing can have been answered.
            if peer == PeerState::Closed || !space.plain.bytes().is_empty() {
                return Err(UpstreamFault::Closed);
            }
            if tls.is_ready() {
                break;
            }
            match got {
                Got::Bytes(_) if sent.is_ok() => {}
                Got::Nothing if sent.is_ok() => return Ok(()),
                _ => return Err(UpstreamFault::TlsFailed),
            }
        }
        if let State::Handshaking(socket, tls) = std::mem::replace(&mut self.state, State::New) {
            self.state = State::Secure(socket, tls);
        }
        Ok(())
    }
}

/// Asks who holds the other end. Once for each connection: it stays with its owner, who may hand it
/// on to others. One that fails is reset: an orderly end would tell a stranger that the relay has
/// looked, and leave a port in TIME_WAIT for each request.
fn check_far_end(users: &mut UpstreamUsers, socket: &Socket) -> Result<(), UpstreamFault> {
    let far_end = match socket.addresses() {
        Some((local, peer)) => users.far_end(local, peer),
        None => FarEnd::Closed,
    };
    if matches!(far_end, FarEnd::Trusted | FarEnd::Elsewhere) {
        return Ok(());
    }
    // A connection that has been reset meanwhile has no other end.
    let is_connected = socket.peer().is_some();
    let _ = sys::reset_on_close(socket.fd());
    Err(match far_end {
        FarEnd::NotTrusted if is_connected => UpstreamFault::NotTrusted,
        _ => UpstreamFault::Closed,
    })
}

/// Bytes go to the upstream and come from it.
fn connected(socket: Socket, connector: Option<&Connector>) -> Result<State, UpstreamFault> {
    Ok(match connector {
        Some(connector) => State::Handshaking(socket, connector.open()?),
        None => State::Plain(socket),
    })
}
