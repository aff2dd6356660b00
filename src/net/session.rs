//! One client connection with its exchange and, while it needs one, its upstream connection: the
//! pump that moves bytes between them.
//!
//! Write before read, in both directions: the upstream is read only while everything it sent before
//! has gone to the client, the client's body only while everything it sent before has gone
//! upstream. So what waits is never more than what one read brought.

mod clocks;
mod deadline;
mod download;
mod ending;
mod eviction;
mod logging;
mod unowned;
mod upload;

use std::io::Write;
use std::time::Instant;

use mio::Registry;

use super::access_log::Log;
use super::admission::Client;
use super::buffer::{Backlog, Scratch, Space};
use super::clock::DateClock;
use super::deadlines::Deadlines;
use super::limits::{BYTES_PER_TURN, ROUNDS_PER_TURN};
use super::pool::Pool;
use super::slots::{Key, Slots};
use super::socket::Socket;
use super::turns::Load;
use super::upstream::{Origin, Upstream};
use crate::http1::exchange::{Exchange, State};
use crate::http1::gather::GatherList;
use crate::http1::limits;
use crate::http1::local_response::Reject;
use crate::http1::request::Policy;
use crate::process::credential::{Credential, SearchPosition};
use crate::process::sys;
use crate::process::token::ClientToken;
use clocks::Clocks;
pub use clocks::Timeouts;
use logging::Times;

/// What all connections of the loop share.
pub struct LoopState {
    /// The upstream's side of things.
    pub origin: Origin,
    /// The key.
    pub credential: Credential,
    /// Upstream connections.
    pub upstreams: Slots<Upstream>,
    /// Those of them that are idle.
    pub pool: Pool,
    /// When to look at which connection.
    pub deadlines: Deadlines,
    /// Where sockets are registered.
    pub registry: Registry,
    /// Scratch for reads from clients.
    pub client_scratch: Scratch,
    /// Scratch for upstream connections.
    pub space: Space,
    /// Runs on their way out.
    pub outgoing: GatherList,
    /// When their date is renewed.
    pub date: DateClock,
    /// `--client-token-file`.
    pub token: Option<ClientToken>,
    /// Bytes of all request heads that are buffered.
    pub head_bytes: usize,
    /// Bytes read in this turn.
    pub moved: usize,
    /// `--max-requests`: how many more may be forwarded.
    pub requests_left: u64,
    /// What goes to stderr.
    pub log: Log,
    /// Client connections so far.
    pub connections: u64,
    /// How long either side may be silent.
    pub timeouts: Timeouts,
    /// `GET /shutdown` has been answered.
    pub shutdown: bool,
}

/// What becomes of a connection after its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterTurn {
    /// It waits for an event.
    Wait,
    /// It has used up its share and wants another.
    Again,
    /// It is at its end.
    Close,
}

/// A client connection.
pub struct Session {
    /// Its socket.
    pub socket: Socket,
    key: Key,
    /// Read from the client and not used yet.
    input: Backlog,
    /// `input` has been looked at: it takes further bytes to make something of it.
    needs_more: bool,
    /// For the client, which had no room.
    output: Backlog,
    /// The beginning of a response head.
    head: Backlog,
    exchange: Exchange,
    upstream: Option<Key>,
    phase: Phase,
    /// Who the client is, and what it was admitted as.
    pub client: Client,
    /// Since when it has had no request; its first one counts from accept.
    idle_since: Instant,
    /// How much it moved in its last turn.
    pub load: Load,
    /// The connection has served a request before.
    served: bool,
    /// The number of the request that is under way, or comes next.
    request: u64,
    clocks: Clocks,
    /// Bytes of its head that are counted among those of all.
    pub head_bytes: usize,
    /// How far the response has been searched for the key.
    search: SearchPosition,
    response_start: ResponseStart,
    times: Times,
}

/// How far the end of the connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Exchanges are served.
    Serving,
    /// The last response is with the client, and the end of the connection; the rest of its request
    /// still goes upstream.
    WriteEnded,
    /// The last exchange is over. Input is dropped until the client ends the connection, so that no
    /// reset destroys the last response on its way.
    Lingering,
}

/// When the first byte of the final response came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ResponseStart {
    /// When the whole request had gone to the socket.
    AfterRequest,
    /// Before that: the upstream may take what came after its response for another request, so the
    /// connection is not used again.
    DuringRequest,
}

/// The connection is at its end: nothing more can be done with it.
struct Closed;

/// What a step of a turn has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// Something has moved, so that more might.
    Moved,
    /// Nothing can move before an event.
    Waiting,
}

impl Session {
    /// A connection that has just been accepted.
    pub fn new(socket: Socket, key: Key, policy: Policy, client: Client, now: Instant) -> Session {
        Session {
            socket,
            key,
            input: Backlog::default(),
            needs_more: false,
            output: Backlog::default(),
            head: Backlog::default(),
            exchange: Exchange::new(policy),
            upstream: None,
            phase: Phase::Serving,
            client,
            idle_since: now,
            load: Load::Light,
            served: false,
            request: 1,
            clocks: Clocks::new(now),
            head_bytes: 0,
            search: SearchPosition::default(),
            response_start: ResponseStart::AfterRequest,
            times: Times::new(now),
        }
    }

    fn is_lingering(&self) -> bool {
        self.phase == Phase::Lingering
    }

    /// An exchange is under way, or an answer has not been written to its end.
    pub fn is_busy(&self) -> bool {
        let has_request = !matches!(self.exchange.state(), State::Idle);
        !self.is_lingering() && (has_request || !self.output.is_empty())
    }

    /// Nothing would be lost if it ended now.
    pub fn is_idle(&self) -> bool {
        !self.is_lingering() && !self.is_busy()
    }

    /// Its client has left while the request waited for an upstream connection.
    pub fn is_abandoned(&self) -> bool {
        matches!(self.exchange.state(), State::Waiting(_)) && self.socket.is_read_closed()
    }

    /// No request will follow the one under way.
    pub fn drain(&mut self) {
        self.exchange.make_last();
    }

    /// Tells the client that it is not served, and hears it out.
    pub fn refuse_connection(
        &mut self,
        reject: Reject,
        state: &mut LoopState,
        now: Instant,
    ) -> AfterTurn {
        match self.refuse(reject, state, now) {
            Ok(()) => self.turn(state, now),
            Err(Closed) => {
                self.release(state);
                AfterTurn::Close
            }
        }
    }

    /// Gives up the upstream connection and cancels whatever is under way on it.
    pub fn release(&mut self, state: &mut LoopState) {
        if let Some(key) = self.upstream.take()
            && let Some(up) = state.upstreams.get(key)
        {
            up.cancel();
            state.upstreams.remove(key);
        }
    }

    /// One turn: moves what can be moved.
    pub fn turn(&mut self, state: &mut LoopState, now: Instant) -> AfterTurn {
        state.moved = 0;
        let mut turn = AfterTurn::Again;
        for _ in 0..ROUNDS_PER_TURN {
            match self.round(state, now) {
                Ok(Progress::Moved) if state.moved < BYTES_PER_TURN => {}
                Ok(Progress::Moved) => break,
                Ok(Progress::Waiting) => {
                    turn = AfterTurn::Wait;
                    break;
                }
                Err(Closed) => {
                    self.release(state);
                    return AfterTurn::Close;
                }
            }
        }
        let is_bulk = state.moved >= limits::RECORD || !self.output.is_empty();
        self.load = if is_bulk { Load::Bulk } else { Load::Light };
        self.set_deadline(state);
        turn
    }

    fn round(&mut self, state: &mut LoopState, now: Instant) -> Result<Progress, Closed> {
        if self.is_lingering() {
            return self.discard(state);
        }
        self.flush(state, now)?;
        match self.exchange.state() {
            // A client that has left reads no response, so none is paid for.
            State::Waiting(_)
            | State::Uploading(_)
            | State::Awaiting
            | State::Responding { .. }
                if self.socket.is_read_closed() =>
            {
                self.disown_upstream(state, now);
                return Err(self.abort("client_closed", state, now));
            }
            _ => {}
        }
        let steps = [
            self.pump_response(state, now)?,
            self.pump_end(state, now)?,
            self.pump_request(state, now)?,
        ];
        let has_moved = steps.contains(&Progress::Moved);
        Ok(if has_moved { Progress::Moved } else { Progress::Waiting })
    }

    fn flush(&mut self, state: &mut LoopState, now: Instant) -> Result<(), Closed> {
        if !self.output.is_empty() {
            match self.socket.write(self.output.bytes()) {
                Ok(n) => self.output.consume(n),
                Err(_) => return Err(self.abort("client_closed", state, now)),
            }
        }
        Ok(())
    }

    /// Ends the connection so that nobody takes what was sent for a whole answer.
    fn abort(&mut self, end: &'static str, state: &mut LoopState, now: Instant) -> Closed {
        self.log(end, state, now);
        let _ = sys::reset_on_close(self.socket.fd());
        Closed
    }

    /// Cuts an exchange off because the relay ends.
    pub fn cut_off(&mut self, state: &mut LoopState, now: Instant) {
        if self.is_busy() {
            self.abort("shutdown", state, now);
        }
        self.release(state);
    }
}
