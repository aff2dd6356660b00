//! The event loop. One pass: poll, read the clock once, note events, replace the key, advance
//! unowned upstream connections, accept, give turns to ready sessions, act on deadlines, drain.
//!
//! Each socket is registered once, for both directions and edge-triggered. [`super::socket`]
//! remembers readiness until a read or a write clears it, so no socket is registered again.

mod accept;
mod cause;
mod dialing;
mod drain;
mod key_reader;
mod listener;
mod rotation;
mod setup;
mod unowned;
mod wake_up;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use mio::event::Event;
use mio::net::TcpListener;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use self::cause::Drain;
use self::key_reader::{KEY_INPUT, KeyReader};
use self::listener::{Accepted, Accepting, Listener};
pub use self::setup::LoopSetup;
use self::wake_up::WakeUp;
use super::access_log::Log;
use super::admission::{Places, Refusals};
use super::clock::DateClock;
use super::deadlines::Deadlines;
use super::limits::{OVERLOADED_LINGERING, REFUSED_LINGERING};
use super::loop_state::{Buffers, LoopState, Turn};
use super::session::{AfterTurn, Session};
use super::sleep::SleepWatch;
use super::slots::{DeadlineSlot, Side, SlotId, Slots};
use super::turns::{Load, Turns};
use super::upstream::Origin;
use super::upstream::pool::Pool;
use crate::connector::link::ConnectorFailed;
use crate::http1::gather::GatherList;
use crate::http1::request::Policy;
use crate::process::allowed_users::AllowedUsers;
use crate::process::confine::{ReadBack, Sandbox};
use crate::process::filter::Thread;
use crate::process::harden::HardenError;
use crate::process::server_info::ServerInfo;
use crate::process::service_manager::Notifier;
use crate::process::signals::{EndSignal, Signals};
use crate::process::sys;

/// The tokens of the listeners, on 127.0.0.1 and ::1.
const LISTENERS: [Token; 2] = [Token(usize::MAX - 1), Token(usize::MAX - 4)];
const SIGNALS: Token = Token(usize::MAX - 2);
const CONNECTOR: Token = Token(usize::MAX - 3);

/// The loop.
pub struct EventLoop {
    poll: Poll,
    listeners: Vec<Listener>,
    notifier: Notifier,
    allowed_users: Option<AllowedUsers>,
    sandbox: Sandbox,
    signals: Signals,
    /// The signal of this pass that ends the relay.
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
    /// Unowned upstream connections that had an event in this pass.
    unowned_ready: Vec<SlotId>,
    /// Connections between accept and admission. Empty outside of [`EventLoop::accept`].
    accepted: VecDeque<Accepted>,
    accepting: Accepting,
    drain: Option<Drain>,
    sleep: SleepWatch,
    /// Where further keys come from, with `--rotate`.
    key_reader: Option<KeyReader>,
    /// The connector has ended before the relay.
    failed: Option<ConnectorFailed>,
}

impl EventLoop {
    /// Sets everything up that can fail. Returns once the other threads run and have confined
    /// themselves.
    pub fn new(setup: LoopSetup) -> io::Result<EventLoop> {
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
        let key_reader = setup
            .key_input
            .map(|input| KeyReader::new(input, poll.registry(), Instant::now()))
            .transpose()?;
        let settings = setup.settings;
        let users = setup.allowed_users.as_ref().map_or(1, AllowedUsers::count);
        let lingering = REFUSED_LINGERING + OVERLOADED_LINGERING;
        let log = Log::start(setup.form, setup.sandbox)?;
        let LoopSetup { tls, proxy, upstream_users, .. } = setup;
        let (origin, registry) =
            (Origin { tls, link, proxy, users: upstream_users }, poll.registry().try_clone()?);
        let state = LoopState {
            origin,
            keys: setup.keys,
            upstreams: Slots::new(2 * settings.max_connections + lingering),
            pool: Pool::new(settings.max_connections, users),
            deadlines: Deadlines::default(),
            registry,
            outgoing: GatherList::default(),
            date: DateClock::default(),
            client_token: setup.client_token,
            head_bytes: 0,
            requests_left: settings.max_requests.unwrap_or(u64::MAX),
            log,
            connections: 0,
            timeouts: settings.timeouts,
            shutdown: false,
        };
        Ok(EventLoop {
            poll,
            listeners,
            notifier: setup.notifier,
            allowed_users: setup.allowed_users,
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
            buffers: Buffers::default(),
            turns: Turns::new(users),
            unowned_ready: Vec::new(),
            accepted: VecDeque::new(),
            accepting: Accepting::AfterEvent,
            drain: None,
            sleep: SleepWatch::new(Instant::now()),
            key_reader,
            failed: None,
        })
    }

    /// Confines the calling thread, which is to run the loop.
    pub fn confine(&self) -> Result<ReadBack, HardenError> {
        self.sandbox.confine(Thread::Loop)
    }

    /// Tells the service manager, if there is one, that requests are served.
    pub fn tell_ready(&self, pid: u32) {
        self.notifier.ready(pid);
    }

    /// Runs until a signal or `GET /shutdown` ends it, or until the connector has ended.
    pub fn run(mut self) -> io::Result<Result<(), ConnectorFailed>> {
        let mut events = Events::with_capacity(256);
        let mut now = Instant::now();
        loop {
            let timeout = self.timeout(now);
            match self.poll.poll(&mut events, timeout) {
                // A stopped process has continued: time has passed.
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
                self.age_by_sleep(slept, now);
            }
            for event in &events {
                self.note(event, now);
            }
            // Between two requests: no session has its turn.
            self.renew_key(now);
            self.advance_all_unowned(now);
            // Before the turns: a turn may take the only idle upstream connection, and then a
            // client that is accepted in the same pass would have another one made.
            self.accept(now);
            self.give_turns(now);
            self.bound_heads(now);
            self.expire(now);
            // At once: the next pass may be far.
            self.state.keys.retire();
            self.log_refusals(now);
            // After the turns, so that a request that came together with a signal is served.
            if self.advance_drain(now).is_break() {
                return Ok(self.failed.map_or(Ok(()), Err));
            }
        }
    }

    /// How long poll may wait. `now` is the time of the last pass.
    fn timeout(&self, now: Instant) -> Option<Duration> {
        let drain = self.drain.map(|drain| drain.by);
        let causes = WakeUp {
            accepting: self.accepting,
            has_turns: !self.turns.is_empty(),
            has_unsent: self.state.origin.link.has_unsent(),
            times: [self.state.deadlines.next(), drain, self.refusals.due(), self.key_due(now)],
        };
        causes.timeout(now)
    }

    /// Records the readiness that an event reports, and queues the session that it concerns.
    fn note(&mut self, event: &Event, now: Instant) {
        match event.token() {
            token if LISTENERS.contains(&token) => {
                for listener in self.listeners.iter_mut().filter(|other| other.token == token) {
                    listener.is_waiting = true;
                }
                self.accepting.note_event();
            }
            SIGNALS => self.note_signals(),
            CONNECTOR => self.receive_replies(),
            KEY_INPUT => {
                if let Some(reader) = &mut self.key_reader {
                    reader.note_event(event, now);
                }
            }
            token => match SlotId::of(token) {
                (id, Side::Client) => self.note_client(id, event, now),
                (id, Side::Upstream) => self.note_upstream(id, event),
            },
        }
    }

    fn note_client(&mut self, id: SlotId, event: &Event, now: Instant) {
        let Some(session) = self.sessions.get(id) else {
            return;
        };
        session.socket.note(event);
        if session.is_abandoned() {
            // Before connections are accepted: a client that is accepted in this pass gets the
            // upstream connection that this session leaves.
            self.run_session(id, now, &mut Session::take_turn);
        } else {
            self.queue_turn(id);
        }
    }

    fn note_upstream(&mut self, id: SlotId, event: &Event) {
        let Some(up) = self.state.upstreams.get(id) else {
            return;
        };
        up.note(event);
        match up.owner() {
            Some(owner) => self.queue_turn(owner),
            None => self.unowned_ready.push(id),
        }
    }

    /// Queues a session for a turn in this pass.
    fn queue_turn(&mut self, id: SlotId) {
        if let Some(session) = self.sessions.get(id) {
            self.turns.push(session.client.user, id, session.load);
        }
    }

    /// Gives the turns of one pass.
    fn give_turns(&mut self, now: Instant) {
        self.turns.begin_pass();
        while let Some(id) = self.turns.take_next() {
            self.run_session(id, now, &mut Session::take_turn);
        }
    }

    /// Lets a session act, then closes, queues or keeps it. Not generic: a copy for each of the ten
    /// callers would stay in memory.
    fn run_session(
        &mut self,
        id: SlotId,
        now: Instant,
        act: &mut dyn FnMut(&mut Session, &mut Turn<'_>, &mut Buffers) -> AfterTurn,
    ) {
        let Some(mut session) = self.sessions.take(id) else {
            return;
        };
        let mut turn = Turn { state: &mut self.state, now, bytes_read: 0 };
        let after = act(&mut session, &mut turn, &mut self.buffers);
        let head_bytes = if after == AfterTurn::Close { 0 } else { session.buffered_head() };
        let before = std::mem::replace(&mut session.head_bytes, head_bytes);
        self.state.head_bytes = self.state.head_bytes - before + head_bytes;
        match after {
            AfterTurn::Close => {
                self.places.count_end(session.client.admission, session.client.user);
                self.sessions.remove(id);
                return;
            }
            AfterTurn::Again => self.turns.push(session.client.user, id, Load::Bulk),
            AfterTurn::Wait => {}
        }
        self.sessions.put_back(id, session);
    }

    /// Looks at the connections whose deadline may have passed.
    fn expire(&mut self, now: Instant) {
        while let Some(slot) = self.state.deadlines.expired(now) {
            let (index, side) = slot.split();
            match side {
                Side::Client => {
                    if let Some(id) = self.sessions.at(index) {
                        self.run_session(id, now, &mut Session::on_deadline);
                    }
                }
                Side::Upstream => {
                    if let Some(id) = self.state.upstreams.at(index) {
                        self.expire_upstream(id, now);
                    }
                }
            }
        }
    }

    fn expire_upstream(&mut self, id: SlotId, now: Instant) {
        let Some(up) = self.state.upstreams.get(id) else {
            return;
        };
        let Some(when) = up.wakes_at() else {
            return;
        };
        if when > now {
            self.state.deadlines.set(DeadlineSlot::new(id, Side::Upstream), when);
            return;
        }
        match up.owner() {
            Some(owner) => self.run_session(owner, now, &mut Session::take_turn),
            None if up.is_ready() => self.close_idle(id),
            None => self.state.advance_unowned(id, &mut self.buffers.upstream, now),
        }
    }
}
