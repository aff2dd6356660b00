//! The loop: poll, note what is ready, accept, give each ready connection one turn, check
//! deadlines.

mod accept;
mod cause;
mod dialing;
mod drain;
mod idle;
mod listener;

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use mio::event::Event;
use mio::net::TcpListener;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use self::cause::Drain;
use self::listener::{Accepted, Listener};
use super::access_log::Log;
use super::admission::{Places, Refusals};
use super::buffer::{Scratch, Space};
use super::clock::DateClock;
use super::deadlines::Deadlines;
use super::limits::{CLIENT_READ, OVERLOADED_LINGERING, REFUSED_LINGERING, UPSTREAM_READ};
use super::loop_state::{Buffers, LoopState, Turn};
use super::pool::Pool;
use super::report::Form;
use super::session::{AfterTurn, Session};
use super::settings::Settings;
use super::sleep::SleepWatch;
use super::slots::{Key, Side, Slots};
use super::timeouts::RESEND_TO_CONNECTOR;
use super::tls::Connector;
use super::turns::{Load, Turns};
use super::upstream::Origin;
use crate::connector::link::{ConnectorFailed, Link};
use crate::http1::gather::GatherList;
use crate::http1::request::Policy;
use crate::process::allowed_users::AllowedUsers;
use crate::process::confine::{ReadBack, Sandbox};
use crate::process::credential::Credential;
use crate::process::egress::ConnectRequest;
use crate::process::filter::Thread;
use crate::process::harden::HardenError;
use crate::process::server_info::ServerInfo;
use crate::process::service_manager::Notifier;
use crate::process::signals::{EndSignal, Signals};
use crate::process::sys;
use crate::process::token::ClientToken;
use crate::process::upstream_users::UpstreamUsers;

/// One for each listener: 127.0.0.1 and ::1.
const LISTENERS: [Token; 2] = [Token(usize::MAX - 1), Token(usize::MAX - 4)];
const SIGNALS: Token = Token(usize::MAX - 2);
const CONNECTOR: Token = Token(usize::MAX - 3);

/// What the loop works with.
pub struct Setup {
    /// One or two that listen on loopback.
    pub listeners: Vec<std::net::TcpListener>,
    /// Who is told that requests are served, and that the end has begun.
    pub notifier: Notifier,
    /// The signals that end the relay.
    pub signals: Signals,
    /// `--server-info`, which is emptied when the port is closed.
    pub server_info: Option<ServerInfo>,
    /// The key.
    pub credential: Credential,
    /// TLS; `None` for a plain upstream.
    pub connector: Option<Connector>,
    /// The way to the process that connects.
    pub link: Link,
    /// What the egress proxy is asked for.
    pub proxy: Option<ConnectRequest>,
    /// Who may hold the other end of a connection to the upstream, where that matters.
    pub upstream_users: Option<UpstreamUsers>,
    /// What is allowed beyond the one route.
    pub policy: Policy,
    /// Numbers and times.
    pub settings: Settings,
    /// How lines on stderr look: JSON with `--access-log`.
    pub form: Form,
    /// `--allow-uid`.
    pub peers: Option<AllowedUsers>,
    /// `--client-token-file`.
    pub token: Option<ClientToken>,
    /// Confines each thread.
    pub sandbox: Sandbox,
}

/// The loop and all that it holds.
pub struct EventLoop {
    poll: Poll,
    listeners: Vec<Listener>,
    notifier: Notifier,
    peers: Option<AllowedUsers>,
    sandbox: Sandbox,
    signals: Signals,
    /// A signal that has come in this pass.
    signalled: Option<EndSignal>,
    grace: Duration,
    server_info: Option<ServerInfo>,
    policy: Policy,
    places: Places,
    refusals: Refusals,
    sessions: Slots<Session>,
    state: LoopState,
    buffers: Buffers,
    turns: Turns,
    /// Upstream connections that work for nobody, on which something has come.
    unowned_ready: Vec<Key>,
    /// Holds something only while a batch of connections is accepted.
    accepted: Vec<Accepted>,
    accept_again: bool,
    accept_at: Option<Instant>,
    drain: Option<Drain>,
    sleep: SleepWatch,
    /// The connector has ended before the relay.
    failed: Option<ConnectorFailed>,
}

impl EventLoop {
    /// Makes everything that can fail. The other threads run and have confined themselves.
    pub fn new(setup: Setup) -> io::Result<EventLoop> {
        let poll = Poll::new()?;
        let mut listeners = Vec::new();
        for (listener, token) in setup.listeners.into_iter().zip(LISTENERS) {
            listener.set_nonblocking(true)?;
            sys::set_stream_options(listener.as_fd())?;
            sys::bound_buffers(listener.as_fd())?;
            let address = listener.local_addr()?;
            let mut listener = TcpListener::from_std(listener);
            poll.registry().register(&mut listener, token, Interest::READABLE)?;
            listeners.push(Listener { socket: listener, address, token, is_waiting: false });
        }
        let (signals, link) = (setup.signals, Rc::new(setup.link));
        for (fd, token) in [(signals.as_raw_fd(), SIGNALS), (link.as_raw_fd(), CONNECTOR)] {
            poll.registry().register(&mut SourceFd(&fd), token, Interest::READABLE)?;
        }
        let settings = setup.settings;
        let users = setup.peers.as_ref().map_or(1, AllowedUsers::count);
        let lingering = REFUSED_LINGERING + OVERLOADED_LINGERING;
        let log = Log::start(setup.form, setup.sandbox)?;
        let Setup { connector, proxy, upstream_users, .. } = setup;
        let (origin, registry) = (
            Origin { connector, link, proxy, users: upstream_users },
            poll.registry().try_clone()?,
        );
        let state = LoopState {
            origin,
            credential: setup.credential,
            upstreams: Slots::new(2 * settings.max_connections + lingering),
            pool: Pool::new(settings.max_connections, users),
            deadlines: Deadlines::default(),
            registry,
            outgoing: GatherList::default(),
            date: DateClock::default(),
            token: setup.token,
            head_bytes: 0,
            requests_left: settings.max_requests.unwrap_or(u64::MAX),
            log,
            connections: 0,
            timeouts: settings.timeouts,
            shutdown: false,
        };
        let buffers = Buffers {
            client: Scratch::new(CLIENT_READ),
            upstream: Space {
                wire: Scratch::new(UPSTREAM_READ),
                plain: Scratch::new(UPSTREAM_READ),
                out: Scratch::new(2 * CLIENT_READ),
                gather: Scratch::new(0),
            },
        };
        Ok(EventLoop {
            poll,
            listeners,
            notifier: setup.notifier,
            peers: setup.peers,
            sandbox: setup.sandbox,
            signals,
            signalled: None,
            grace: settings.grace,
            server_info: setup.server_info,
            policy: setup.policy,
            places: Places::new(settings.max_connections, users),
            refusals: Refusals::default(),
            sessions: Slots::new(settings.max_connections + lingering),
            state,
            buffers,
            turns: Turns::new(users),
            unowned_ready: Vec::new(),
            accepted: Vec::new(),
            accept_again: false,
            accept_at: None,
            drain: None,
            sleep: SleepWatch::new(Instant::now()),
            failed: None,
        })
    }

    /// Confines the loop's thread, which is the one that calls.
    pub fn confine(&self) -> Result<ReadBack, HardenError> {
        self.sandbox.confine(Thread::Loop)
    }

    /// Tells the service manager, if there is one, that requests are served.
    pub fn tell_ready(&self, pid: u32) {
        self.notifier.ready(pid);
    }

    /// Runs until a signal or `GET /shutdown` ends it, or the connector is gone.
    pub fn run(mut self) -> io::Result<Result<(), ConnectorFailed>> {
        let mut events = Events::with_capacity(256);
        let mut now = Instant::now();
        loop {
            let timeout = self.timeout(now);
            match self.poll.poll(&mut events, timeout) {
                // The process may have been stopped for a while: time has passed.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => events.clear(),
                result => result?,
            }
            now = Instant::now();
            if let Some(date) = self.state.date.renew(now) {
                self.state.outgoing.set_date(date);
            }
            self.state.origin.link.flush();
            if !self.state.pool.is_empty()
                && let Some(slept) = self.sleep.slept(now)
            {
                self.wake_up(slept, now);
            }
            for event in &events {
                self.note(event, now);
            }
            self.advance_all_unowned(now);
            // Before the turns: a turn may take the only idle upstream connection, and a client
            // accepted after that would have a second one made.
            self.accept(now);
            self.give_turns(now);
            self.bound_heads(now);
            self.expire(now);
            self.log_refusals(now);
            // After the turns: a request that came together with a signal is under way.
            if self.end(now).is_break() {
                return Ok(self.failed.map_or(Ok(()), Err));
            }
        }
    }

    /// How long poll may wait, by the clock of the last turn.
    fn timeout(&self, now: Instant) -> Option<Duration> {
        if !self.turns.is_empty() || self.accept_again {
            return Some(Duration::ZERO);
        }
        let refusals = self.refusals.due();
        let drain = self.drain.map(|drain| drain.by);
        let unsent = self.state.origin.link.has_unsent().then_some(now + RESEND_TO_CONNECTOR);
        let next = [self.state.deadlines.next(), self.accept_at, drain, refusals, unsent];
        let next = next.into_iter().flatten().min()?;
        Some(next.saturating_duration_since(now))
    }

    /// Notes what an event says.
    fn note(&mut self, event: &Event, now: Instant) {
        match event.token() {
            token if LISTENERS.contains(&token) => {
                self.listeners
                    .iter_mut()
                    .for_each(|listener| listener.is_waiting |= listener.token == token);
                self.accept_again = true;
            }
            SIGNALS => self.take_signals(),
            CONNECTOR => self.dialed(),
            token => match Key::of(token) {
                (key, Side::Client) => {
                    if let Some(session) = self.sessions.get(key) {
                        session.socket.note(event);
                        if session.is_abandoned() {
                            // At once, so that a client accepted in this pass finds the connection
                            // that this one leaves, and no other is made.
                            self.run_session(key, now, Session::take_turn);
                        } else {
                            self.wants_turn(key);
                        }
                    }
                }
                (key, Side::Upstream) => {
                    if let Some(up) = self.state.upstreams.get(key) {
                        up.note(event);
                        match up.owner {
                            Some(owner) => self.wants_turn(owner),
                            None => self.unowned_ready.push(key),
                        }
                    }
                }
            },
        }
    }

    fn wants_turn(&mut self, key: Key) {
        if let Some(session) = self.sessions.get(key) {
            self.turns.push(session.client.user, key, session.load);
        }
    }

    /// Gives the turns of one pass.
    fn give_turns(&mut self, now: Instant) {
        self.turns.begin_pass();
        while let Some(key) = self.turns.take_next() {
            self.run_session(key, now, Session::take_turn);
        }
    }

    /// Lets a session act, and sees to what becomes of it.
    fn run_session(
        &mut self,
        key: Key,
        now: Instant,
        act: impl FnOnce(&mut Session, &mut Turn<'_>, &mut Buffers) -> AfterTurn,
    ) {
        let Some(mut session) = self.sessions.take(key) else {
            return;
        };
        let mut turn = Turn { state: &mut self.state, now, bytes_read: 0 };
        let after = act(&mut session, &mut turn, &mut self.buffers);
        let head_bytes = if after == AfterTurn::Close { 0 } else { session.buffered_head() };
        let before = std::mem::replace(&mut session.head_bytes, head_bytes);
        self.state.head_bytes = self.state.head_bytes - before + head_bytes;
        match after {
            AfterTurn::Close => {
                self.places.leave(session.client.admission, session.client.user);
                self.sessions.remove(key);
                return;
            }
            AfterTurn::Again => self.turns.push(session.client.user, key, Load::Bulk),
            AfterTurn::Wait => {}
        }
        self.sessions.put_back(key, session);
    }

    /// Connections whose deadline may have come.
    fn expire(&mut self, now: Instant) {
        while let Some(slot) = self.state.deadlines.expired(now) {
            let (index, side) = slot.split();
            if side == Side::Client {
                if let Some(key) = self.sessions.at(index) {
                    self.run_session(key, now, Session::on_deadline);
                }
                continue;
            }
            let Some(key) = self.state.upstreams.at(index) else {
                continue;
            };
            let Some(up) = self.state.upstreams.get(key) else {
                continue;
            };
            match (up.owner, up.wakes_at()) {
                (_, None) => {}
                (_, Some(when)) if when > now => self.state.deadlines.set(slot, when),
                (Some(owner), _) => self.run_session(owner, now, Session::take_turn),
                (None, _) if up.is_ready() => self.close_idle(key),
                (None, _) => self.state.advance_unowned(key, &mut self.buffers.upstream, now),
            }
        }
    }
}
