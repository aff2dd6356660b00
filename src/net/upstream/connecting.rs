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

/// How the bytes that complete a handshake are sent.
#[derive(Clone, Copy)]
enum LastFlight {
    /// No head waits: the bytes are sent at once.
    Alone,
    /// The bytes are sent in one packet with the head that waits for the connection.
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

    /// Bytes of the handshake that the socket has not accepted yet.
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

    /// No session waits for it any longer: it becomes a preconnect, with a preconnect's deadline.
    pub(super) fn disown(&mut self) {
        self.owner = None;
        self.deadline = self.begun + CONNECT;
    }

    /// Counts the time for which the machine has slept.
    pub(super) fn age_by_sleep(&mut self, slept: Duration) {
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::ServerConnection;
    use rustls::version::{TLS12, TLS13};

    use super::*;
    use crate::connector::wire::LinkRequest;
    use crate::http1::proxy::ProxyUrl;
    use crate::http1::url::UpstreamUrl;
    use crate::net::limits::PROXY_READ;
    use crate::net::loop_state::testing::{FarEnd, Loop, MOMENT, SECOND};
    use crate::net::slots::{Side, Slots};
    use crate::net::tls::testing::{connector, server};
    use crate::net::upstream::Upstream;
    use crate::process::egress::ConnectRequest;

    /// A connection that is being made, and the loop.
    struct Made {
        net: Loop,
        id: SlotId,
    }

    fn session() -> SlotId {
        Slots::new(1).insert(|_| Some(())).unwrap()
    }

    impl Made {
        /// A connection that has not asked the connector yet, for a session or as a preconnect.
        fn new(owner: Option<SlotId>) -> Made {
            let mut net = Loop::new();
            let now = net.now;
            let new = |id: SlotId| Upstream::new(id.token(Side::Upstream), owner, now, CONNECT);
            let id = net.state.upstreams.insert(|id| Some(new(id))).unwrap();
            Made { net, id }
        }

        fn upstream(&mut self) -> &mut Upstream {
            self.net.state.upstreams.get(self.id).unwrap()
        }

        fn advance(&mut self) -> Result<bool, UpstreamFault> {
            let state = &mut self.net.state;
            let up = state.upstreams.get(self.id).unwrap();
            let scratch = &mut self.net.buffers.upstream;
            up.advance(&mut state.origin, &state.registry, scratch, self.net.now)?;
            Ok(up.is_ready())
        }

        /// The connector replies with a connection, whose other end is returned.
        fn dialed(&mut self) -> FarEnd {
            assert_eq!(self.advance(), Ok(false));
            let token = self.id.token(Side::Upstream).0 as u64;
            assert_eq!(self.net.asked(), Some(LinkRequest::Dial(token)));
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            let near = TcpStream::connect(address).unwrap();
            near.set_nonblocking(true).unwrap();
            let (far, _) = listener.accept().unwrap();
            far.set_read_timeout(Some(20 * SECOND)).unwrap();
            self.upstream().dialed(Ok((near, address)));
            assert_eq!(self.upstream().address(), Some(address));
            FarEnd(far)
        }

        /// Advances for all that happens until the connection is usable or has failed.
        fn made(&mut self) -> Result<(), UpstreamFault> {
            while !self.advance()? {
                assert!(self.net.events(20 * SECOND, None), "nothing happens");
            }
            Ok(())
        }
    }

    #[test]
    fn a_plain_connection_is_usable_when_the_connector_has_made_it() {
        let owner = session();
        let mut made = Made::new(Some(owner));
        assert_eq!((made.upstream().step(), made.upstream().is_dialing()), ("connect", false));
        assert_eq!(made.advance(), Ok(false));
        assert!(made.upstream().is_dialing());
        assert_eq!(made.advance(), Ok(false), "a second look asks for nothing");
        made.net.asked().unwrap();
        assert_eq!(made.net.asked(), None);

        let mut made = Made::new(Some(owner));
        let _far = made.dialed();
        assert_eq!(made.advance(), Ok(true));
        assert_eq!((made.upstream().step(), made.upstream().owner()), ("ready", Some(owner)));
    }

    #[test]
    fn a_fault_before_the_tunnel_is_open_is_the_proxys() {
        for proxy in [None, Some(proxy())] {
            let mut made = Made::new(None);
            let fault = match proxy {
                None => UpstreamFault::Refused,
                Some(_) => UpstreamFault::ProxyUnreachable,
            };
            made.net.state.origin.proxy = proxy;
            assert_eq!(made.advance(), Ok(false));
            made.upstream().dialed(Err(UpstreamFault::Refused));
            assert_eq!(made.advance(), Err(fault));
            assert_eq!(made.advance(), Err(fault), "as often as it is asked for");
        }
    }

    #[test]
    fn a_connection_that_takes_too_long_fails_and_has_the_name_looked_up_again() {
        let mut made = Made::new(None);
        made.net.now += CONNECT - MOMENT;
        assert_eq!(made.advance(), Ok(false));
        assert!(matches!(made.net.asked(), Some(LinkRequest::Dial(_))));
        made.net.now += MOMENT;
        assert_eq!(made.advance(), Err(UpstreamFault::ConnectTimeout));
        assert_eq!(made.net.asked(), Some(LinkRequest::Doubt));
        made.net.state.upstreams.remove(made.id);
        assert!(matches!(made.net.asked(), Some(LinkRequest::Cancel(_))), "it is not left waiting");
    }

    #[test]
    fn a_session_waits_for_a_preconnect_as_long_as_for_one_of_its_own() {
        let (mut made, owner) = (Made::new(None), session());
        let begun = made.net.now;
        assert_eq!(made.upstream().wakes_at(), Some(begun + CONNECT));
        let later = begun + CONNECT / 2;
        made.upstream().adopt(owner, later, CONNECT / 4);
        assert_eq!((made.upstream().owner(), made.upstream().wakes_at()), {
            (Some(owner), Some(later + CONNECT / 4))
        });
        made.upstream().disown();
        assert_eq!((made.upstream().owner(), made.upstream().wakes_at()), {
            (None, Some(begun + CONNECT))
        });
        made.upstream().age_by_sleep(3 * SECOND);
        assert_eq!(made.upstream().wakes_at(), Some(begun + CONNECT - 3 * SECOND));
    }

    fn proxy() -> ConnectRequest {
        let upstream = UpstreamUrl::parse("https://localhost/").unwrap();
        let proxy = ProxyUrl::parse(b"http://127.0.0.1:1").ok().unwrap();
        ConnectRequest::new(&upstream, &proxy).unwrap()
    }

    /// What becomes of a connection through a proxy that responds with this.
    fn through_proxy(response: &str) -> Result<(), UpstreamFault> {
        let mut made = Made::new(None);
        made.net.state.origin.proxy = Some(proxy());
        let mut far = made.dialed();
        assert_eq!(made.advance(), Ok(false));
        assert_eq!(made.upstream().step(), "proxy");
        let request = far.read_until("\r\n\r\n");
        assert!(request.starts_with("CONNECT localhost:443 HTTP/1.1\r\n"), "{request}");
        far.send(response);
        made.made()
    }

    #[test]
    fn the_tunnel_is_open_after_a_200_and_nothing_behind_it() {
        assert_eq!(through_proxy("HTTP/1.1 200 OK\r\n\r\n"), Ok(()));
        for (response, fault) in [
            ("HTTP/1.1 407 No\r\n\r\n", UpstreamFault::ProxyAuthRequired),
            ("HTTP/1.1 200 OK\r\n\r\nhello", UpstreamFault::ProxyBadResponse),
            ("SSH-2.0-OpenSSH\r\n\r\n", UpstreamFault::ProxyBadResponse),
        ] {
            assert_eq!(through_proxy(response), Err(fault), "{response}");
        }
    }

    #[test]
    fn a_proxys_head_may_take_more_than_one_read() {
        for len in [PROXY_READ - 1, PROXY_READ, PROXY_READ + 1, 3 * PROXY_READ] {
            let rest = "HTTP/1.1 200 OK\r\nA: \r\n\r\n".len();
            let head = format!("HTTP/1.1 200 OK\r\nA: {}\r\n\r\n", "a".repeat(len - rest));
            assert_eq!(through_proxy(&head), Ok(()), "{len} bytes");
        }
    }

    /// Does the server's part of a handshake, until it needs more than has come.
    fn serve(far: &mut FarEnd, server: &mut ServerConnection) {
        far.0.set_nonblocking(true).unwrap();
        while let Ok(1..) = server.read_tls(&mut far.0) {
            server.process_new_packets().unwrap();
        }
        far.0.set_nonblocking(false).unwrap();
        while server.wants_write() {
            server.write_tls(&mut far.0).unwrap();
        }
    }

    #[test]
    fn the_end_of_the_handshake_goes_out_at_once_unless_a_head_follows() {
        for (version, owner) in
            [(&TLS13, None), (&TLS13, Some(session())), (&TLS12, None), (&TLS12, Some(session()))]
        {
            let mut made = Made::new(owner);
            made.net.state.origin.tls = Some(connector());
            let mut server = ServerConnection::new(Arc::new(server(&[version], 0))).unwrap();
            let mut far = made.dialed();
            let start = Instant::now();
            while !made.advance().unwrap() {
                assert_eq!(made.upstream().step(), "tls");
                assert!(start.elapsed() < 20 * SECOND, "nothing happens");
                serve(&mut far, &mut server);
                made.net.events(SECOND / 100, None);
            }
            let is_last_flight_ours = version.version == TLS13.version;
            let waits = is_last_flight_ours && owner.is_some();
            assert_eq!(made.upstream().is_drained(), !waits);
            made.upstream().flush();
            if is_last_flight_ours {
                far.0.peek(&mut [0]).unwrap();
                serve(&mut far, &mut server);
            }
            assert!(!server.is_handshaking());
        }
    }

    #[test]
    fn a_server_that_speaks_no_tls_or_ends_the_handshake_fails_it() {
        for response in ["HTTP/1.1 400 Bad Request\r\n\r\n", ""] {
            let mut made = Made::new(None);
            made.net.state.origin.tls = Some(connector());
            let mut far = made.dialed();
            assert_eq!(made.advance(), Ok(false));
            far.send(response);
            far.0.shutdown(std::net::Shutdown::Write).unwrap();
            assert_eq!(made.made(), Err(UpstreamFault::TlsFailed));
            assert_eq!(made.net.asked(), Some(LinkRequest::Doubt), "the name may lead elsewhere");
        }
    }
}
