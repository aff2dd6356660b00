//! One upstream connection, TLS or (loopback) plain: the head, bodies, the end.

mod connect;
mod idle;

use std::io::{self, IoSlice, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use mio::Token;

use super::admission::User;
use super::buffer::{Backlog, Scratch, Space};
use super::gather_io::{Sealer, fill, keep_rest, seal_rest, send};
use super::slots::Key;
use super::socket::{Got, Socket};
use super::tls::{Connector, PeerState, Tls};
use super::tunnel::Tunnel;
use crate::connector::link::{Link, Pending};
use crate::http1::gather::GatherList;
use crate::http1::limits;
use crate::http1::local_response::UpstreamFault;
use crate::process::credential::Credential;
use crate::process::egress::ConnectRequest;
use crate::process::sys;
use crate::process::upstream_users::UpstreamUsers;

/// What every upstream connection of this process has in common.
pub struct Origin {
    /// TLS; `None` for a plain upstream.
    pub connector: Option<Connector>,
    /// The way to the process that connects, to the upstream or to the proxy.
    pub link: Rc<Link>,
    /// What the egress proxy is asked for; `None` when there is none.
    pub proxy: Option<ConnectRequest>,
    /// Who may hold the other end, where a secret goes there in the clear; `None` where none does,
    /// or with `--upstream-uid any`.
    pub users: Option<UpstreamUsers>,
}

/// An upstream connection.
pub struct Upstream {
    state: State,
    /// Bytes for the wire that the socket had no room for.
    output: Backlog,
    token: Token,
    /// The client connection that it works for; `None` while it is idle.
    pub owner: Option<Key>,
    /// The peer takes no more bytes; what it has sent may still be read.
    deaf: bool,
    /// The user whose exchanges it has carried.
    pub used_by: Option<User>,
    /// It has carried an exchange before.
    pub reused: bool,
    /// It has been idle, so the peer may have ended it unseen.
    pub rested: bool,
    /// While connecting: when to give up. While idle: when to go.
    pub deadline: Option<Instant>,
    /// What it is connected to: the upstream, or the egress proxy.
    pub address: Option<SocketAddr>,
    /// When it was begun.
    begun: Instant,
    /// When the request that it is made for asked for it; without one, when it was begun.
    pub since: Instant,
    /// When it became idle for the last time.
    idle_since: Option<Instant>,
}

enum State {
    /// Nothing has been done yet.
    New,
    /// The connector has been asked.
    Dialing(Pending),
    /// The connector has replied.
    Dialed(Result<TcpStream, UpstreamFault>),
    Tunneling(Tunnel),
    Handshaking(Socket, Tls),
    Secure(Socket, Tls),
    Plain(Socket),
}

/// How reading went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// There may be more later.
    Open,
    /// The peer has ended the stream as it should.
    Ended,
    /// The stream has broken off.
    Cut,
    /// The peer has ended the stream with an alert that says why.
    Refused(UpstreamFault),
}

impl Upstream {
    /// A connection that will be made; [`Upstream::advance`] begins.
    pub fn new(token: Token, owner: Option<Key>, now: Instant, limit: Duration) -> Upstream {
        Upstream {
            state: State::New,
            output: Backlog::default(),
            token,
            owner,
            deaf: false,
            used_by: None,
            reused: false,
            rested: false,
            deadline: Some(now + limit),
            address: None,
            begun: now,
            since: now,
            idle_since: None,
        }
    }

    /// A head can be sent.
    pub fn is_ready(&self) -> bool {
        matches!(self.state, State::Secure(..) | State::Plain(_))
    }

    /// Waits for the connector.
    pub fn is_dialing(&self) -> bool {
        matches!(self.state, State::Dialing(_))
    }

    /// The connector has replied; [`Upstream::advance`] goes on.
    pub fn dialed(&mut self, result: Result<(TcpStream, SocketAddr), UpstreamFault>) {
        if let State::Dialing(pending) = &mut self.state {
            pending.settle();
            self.address = result.as_ref().ok().map(|(_, address)| *address);
            self.state = State::Dialed(result.map(|(stream, _)| stream));
        }
    }

    /// What it is at, on the way to a usable connection.
    pub fn step(&self) -> &'static str {
        match self.state {
            State::New | State::Dialing(_) | State::Dialed(_) => "connect",
            State::Tunneling(_) => "proxy",
            State::Handshaking(..) => "tls",
            State::Secure(..) | State::Plain(_) => "ready",
        }
    }

    /// Whom it is connected to: the upstream, or the egress proxy.
    pub fn peer(&self) -> Option<SocketAddr> {
        self.socket().and_then(Socket::peer)
    }

    /// TLS, once its handshake has ended.
    pub fn tls(&self) -> Option<&Tls> {
        match &self.state {
            State::Secure(_, tls) => Some(tls),
            _ => None,
        }
    }

    /// Whether its TLS session is one that was resumed; `None` without TLS.
    pub fn is_resumed(&self) -> Option<bool> {
        self.tls().map(Tls::is_resumed)
    }

    /// Everything handed over has gone to the socket.
    pub fn is_drained(&self) -> bool {
        self.output.is_empty()
    }

    /// Bytes that were handed over and that the socket had no room for.
    pub fn unsent(&self) -> usize {
        self.output.bytes().len()
    }

    /// All that has come has been read to its end: nothing of it can be taken for a later answer.
    pub fn is_quiet(&self) -> bool {
        !self.has_news() && self.is_between_records()
    }

    /// No part of a further record has come.
    pub fn is_between_records(&self) -> bool {
        self.tls().is_none_or(Tls::is_between_records)
    }

    /// Something has come that has not been read.
    pub fn has_news(&self) -> bool {
        self.socket().is_some_and(Socket::is_readable)
    }

    fn socket(&self) -> Option<&Socket> {
        match &self.state {
            State::Handshaking(socket, _) | State::Secure(socket, _) | State::Plain(socket) => {
                Some(socket)
            }
            State::Tunneling(tunnel) => Some(&tunnel.socket),
            State::New | State::Dialing(_) | State::Dialed(_) => None,
        }
    }

    fn socket_mut(&mut self) -> Option<&mut Socket> {
        match &mut self.state {
            State::Handshaking(socket, _) | State::Secure(socket, _) | State::Plain(socket) => {
                Some(socket)
            }
            State::Tunneling(tunnel) => Some(&mut tunnel.socket),
            State::New | State::Dialing(_) | State::Dialed(_) => None,
        }
    }

    /// Notes what an event says.
    pub fn note(&mut self, event: &mio::event::Event) {
        if let Some(socket) = self.socket_mut() {
            socket.note(event);
        }
    }

    /// When it wants to be looked at without an event.
    pub fn wakes_at(&self) -> Option<Instant> {
        self.deadline
    }

    /// Sends what could not be sent before. A peer that takes no more shows that when it is read.
    pub fn flush(&mut self) {
        let Upstream { state, output, deaf, .. } = self;
        match state {
            State::Handshaking(socket, _) | State::Secure(socket, _) | State::Plain(socket)
                if !output.is_empty() =>
            {
                match socket.write(output.bytes()) {
                    Ok(n) => output.consume(n),
                    Err(_) => {
                        *deaf = true;
                        *output = Backlog::default();
                    }
                }
            }
            _ => {}
        }
    }

    /// Sends the request head (the credential block first) and the body bytes behind it. Queued
    /// bytes of the handshake go out before it. Requires [`Upstream::is_ready`] and no other queued
    /// output. On an error nothing was sent, except on `WriteZero`: then part of the head was sent.
    pub fn send_head(
        &mut self,
        list: &GatherList,
        input: &[u8],
        credential: &mut Credential,
        space: &mut Space,
    ) -> io::Result<()> {
        let mut after = [IoSlice::new(&[]); limits::GATHER_SEGMENTS];
        let count = fill(&mut after, list, input);
        let mut after = &mut after[..count];
        match &mut self.state {
            State::Secure(socket, tls) => {
                space.out.clear();
                space.out.push(self.output.bytes());
                self.output = Backlog::default();
                let taken =
                    credential.splice_into(after, &mut Sealer { tls, out: &mut space.out })?;
                seal_rest(tls, after, taken, space)?;
                send(socket, &mut self.output, space.out.bytes())
            }
            State::Plain(socket) => {
                let taken = credential.splice_into(after, socket)?;
                IoSlice::advance_slices(&mut after, taken);
                for slice in after.iter() {
                    // Bytes have gone out: from here on only the upstream's response counts.
                    self.deaf |= send(socket, &mut self.output, slice).is_err();
                }
                Ok(())
            }
            _ => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// Sends a part of the body. Only when ready and drained. To a peer that takes no more it is
    /// dropped.
    pub fn send_body(&mut self, list: &GatherList, input: &[u8], space: &mut Space) {
        let mut slices = [IoSlice::new(&[]); limits::GATHER_SEGMENTS];
        let count = fill(&mut slices, list, input);
        let slices = &mut slices[..count];
        let sent = match &mut self.state {
            _ if self.deaf => return,
            State::Secure(socket, tls) => {
                space.out.clear();
                seal_rest(tls, slices, 0, space)
                    .and_then(|()| send(socket, &mut self.output, space.out.bytes()))
            }
            State::Plain(socket) => {
                socket.write_vectored(slices).map(|sent| keep_rest(slices, sent, &mut self.output))
            }
            _ => return,
        };
        self.deaf |= sent.is_err();
    }

    /// Reads once: up to `size` bytes, those of a record that came in part before among them, so
    /// that reads of whole records stay whole. The plaintext stands in `space.plain`, which is
    /// empty when nothing has come.
    pub fn read(&mut self, space: &mut Space, size: usize) -> Flow {
        space.plain.clear();
        match &mut self.state {
            State::Secure(socket, tls) => {
                tls.resume(&mut space.wire);
                // What is waited for may be a message of the handshake that takes several records.
                let more = size.saturating_sub(space.wire.bytes().len()).max(limits::RECORD);
                let got = socket.read(&mut space.wire.room(more)[..more]);
                if let Got::Bytes(n) = got {
                    space.wire.add(n);
                }
                space.out.clear();
                let opened = tls.open(&mut space.wire, &mut space.plain, &mut space.out);
                let sent = send(socket, &mut self.output, space.out.bytes());
                match (opened, got) {
                    (Ok(PeerState::Closed), _) => Flow::Ended,
                    (Ok(PeerState::Open), Got::Bytes(_) | Got::Nothing) if sent.is_ok() => {
                        Flow::Open
                    }
                    (Err(fault @ UpstreamFault::TlsClientCertificate), _) => Flow::Refused(fault),
                    _ => Flow::Cut,
                }
            }
            State::Plain(socket) => {
                let room = &mut space.plain.room(size)[..size];
                match socket.read(room) {
                    Got::Bytes(n) => {
                        space.plain.add(n);
                        Flow::Open
                    }
                    Got::Nothing => Flow::Open,
                    Got::End => Flow::Ended,
                    Got::Broken => Flow::Cut,
                }
            }
            _ => Flow::Open,
        }
    }

    /// Makes the coming end a reset, because the upstream may still work for an exchange that is
    /// cancelled. An orderly end would leave a port in TIME_WAIT for each, until none is left.
    /// Where the upstream has ended its side already, no end does that.
    pub fn cancel(&mut self) {
        let fd = match &self.state {
            State::Dialed(Ok(stream)) => Some(stream.as_fd()),
            _ => self.socket().filter(|socket| !socket.is_read_closed()).map(Socket::fd),
        };
        if let Some(fd) = fd {
            let _ = sys::reset_on_close(fd);
        }
    }
}

/// Every connection ends with close_notify if TLS is established and the socket takes it.
impl Drop for Upstream {
    fn drop(&mut self) {
        self.flush();
        if let State::Secure(socket, tls) = &mut self.state
            && self.output.is_empty()
        {
            let mut out = Scratch::new(0);
            tls.close(&mut out);
            let _ = socket.write(out.bytes());
        }
    }
}
