//! One client connection with its exchange and, while the exchange needs one, its upstream
//! connection.
//!
//! A turn moves bytes in both directions, and writes before it reads: it reads from the upstream
//! only when all earlier bytes of the response have been written to the client, and from the client
//! only when all earlier bytes of the request have been written upstream. So a session buffers no
//! more than the bytes of one read: [`CLIENT_READ`](super::limits::CLIENT_READ) bytes from the
//! client, [`UPSTREAM_READ`](super::limits::UPSTREAM_READ) from the upstream.
//!
//! | file | part of a session |
//! |---|---|
//! | `upload` | moves the request to the upstream |
//! | `download` | moves the response to the client; responds to refusals and faults |
//! | `ending` | begins the next exchange, or ends the connection |
//! | `clocks`, `deadline` | how long each side may take, and what happens when it takes longer |
//! | `times` | the times of one exchange, for the access log |
//! | `eviction` | gives up the place, or the buffered head, for other sessions |
//! | `logging` | writes its lines of the access log |

mod clocks;
mod deadline;
mod download;
mod ending;
mod eviction;
mod logging;
mod times;
mod upload;

use std::io::Write;
use std::time::Instant;

use super::admission::Client;
use super::buffer::{Backlog, TlsScratch};
use super::limits::{BYTES_PER_TURN, READS_PER_TURN};
use super::loop_state::{Buffers, LoopState, Turn};
use super::slots::SlotId;
use super::socket::Socket;
use super::turns::Load;
use crate::http1::exchange::{Exchange, State};
use crate::http1::limits;
use crate::http1::local_response::{Reject, UpstreamFault};
use crate::http1::request::Policy;
use crate::process::credential::SearchPosition;
use crate::process::key_ring::Carried;
use crate::process::sys;
use clocks::Clocks;
use times::Times;

/// The state of a session after its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterTurn {
    /// It waits for an event.
    Wait,
    /// It has used up its turn, and more can move.
    Again,
    /// It has ended.
    Close,
}

/// A client connection.
pub struct Session {
    /// Its socket.
    pub socket: Socket,
    id: SlotId,
    /// The client's user, and how the client was admitted.
    pub client: Client,
    phase: Phase,
    exchange: Exchange,
    /// The upstream connection of the exchange, in use or being made.
    upstream: Option<SlotId>,
    /// Bytes from the client that no exchange has taken yet.
    input: Backlog,
    /// `input` has been parsed as far as possible; more bytes are needed.
    needs_more: bool,
    /// The beginning of a response head.
    response_head: Backlog,
    /// Bytes for the client that its socket has not accepted yet.
    output: Backlog,
    /// How far the response has been searched for the key.
    search: SearchPosition,
    /// The key that the exchange carried, until no more of its response can come.
    carried: Option<Carried>,
    response_start: ResponseStart,
    clocks: Clocks,
    times: Times,
    /// Since when no request has been under way; at first since accept.
    idle_since: Instant,
    /// The connection has carried a whole exchange before.
    served: bool,
    /// The number of the exchange on its connection.
    request: u64,
    /// How much the session moved in its last turn.
    pub load: Load,
    /// The bytes of a request head that are counted in [`LoopState::head_bytes`] for this session.
    pub head_bytes: usize,
}

/// Whether the connection serves exchanges or is ending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Exchanges are served.
    Serving,
    /// The last response has been sent, and so has the end of the relay's side (FIN). The rest of
    /// the request still goes upstream.
    WriteEnded,
    /// The last exchange is over. Input is dropped until the client ends the connection, so that no
    /// reset destroys the response on its way.
    Lingering,
}

/// When the first byte of the final response came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ResponseStart {
    /// After the last byte of the request had gone to the socket.
    AfterRequest,
    /// Before that. The upstream may take the bytes behind its response for another request, so the
    /// connection is not used again.
    DuringRequest,
}

/// The connection has ended: the session is to be closed.
struct Closed;

/// The result of a step of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// Bytes have moved, and more can move at once.
    Moved,
    /// Nothing can move before an event.
    Waiting,
}

/// How an exchange ended, as the access log names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The client has a whole response. If it is a local response, its code is logged.
    Complete,
    /// The client ended the connection.
    ClientClosed,
    /// The upstream ended the connection within its response.
    UpstreamTruncated,
    /// The relay ends.
    Shutdown,
    /// A refusal or a fault, after the response had begun.
    Failed(&'static str),
}

impl Session {
    /// A connection that has been accepted.
    pub fn new(
        socket: Socket,
        id: SlotId,
        policy: Policy,
        client: Client,
        now: Instant,
    ) -> Session {
        Session {
            socket,
            id,
            client,
            phase: Phase::Serving,
            exchange: Exchange::new(policy),
            upstream: None,
            input: Backlog::default(),
            needs_more: false,
            response_head: Backlog::default(),
            output: Backlog::default(),
            search: SearchPosition::default(),
            carried: None,
            response_start: ResponseStart::AfterRequest,
            clocks: Clocks::new(now),
            times: Times::new(now),
            idle_since: now,
            served: false,
            request: 1,
            load: Load::Light,
            head_bytes: 0,
        }
    }

    /// The id of this session.
    pub fn id(&self) -> SlotId {
        self.id
    }

    fn is_lingering(&self) -> bool {
        self.phase == Phase::Lingering
    }

    /// An exchange is under way, or a response has not been written completely.
    pub fn is_busy(&self) -> bool {
        let has_request = !matches!(self.exchange.state(), State::Idle);
        !self.is_lingering() && (has_request || !self.output.is_empty())
    }

    /// No request is under way and no response waits. At most a part of a request head is lost if
    /// the connection is closed now.
    pub fn is_idle(&self) -> bool {
        !self.is_lingering() && !self.is_busy()
    }

    /// The client has left while its request waited for an upstream connection.
    pub fn is_abandoned(&self) -> bool {
        matches!(self.exchange.state(), State::Waiting(_)) && self.socket.is_read_closed()
    }

    /// Ends the connection after the exchange that is under way.
    pub fn drain(&mut self) {
        self.exchange.make_last();
    }

    /// Responds with a refusal whatever the client sends, then ends the connection.
    pub fn refuse_connection(
        &mut self,
        reject: Reject,
        turn: &mut Turn<'_>,
        buffers: &mut Buffers,
    ) -> AfterTurn {
        match self.refuse(reject, turn) {
            Ok(()) => self.take_turn(turn, buffers),
            Err(Closed) => self.close(turn.state),
        }
    }

    /// The response that is awaited may contain the key of this generation.
    pub fn carries(&self, generation: u64) -> bool {
        self.carried.as_ref().is_some_and(|carried| carried.generation() == generation)
    }

    /// Ends the exchange, because the relay can no longer search for its key.
    pub fn end_with_its_key(&mut self, turn: &mut Turn<'_>, buffers: &mut Buffers) -> AfterTurn {
        self.carried = None;
        match self.consume_and_respond_to_fault(UpstreamFault::KeyReplaced, turn) {
            Ok(()) => self.take_turn(turn, buffers),
            Err(Closed) => self.close(turn.state),
        }
    }

    /// Moves all that can be moved, within the bounds of one turn.
    pub fn take_turn(&mut self, turn: &mut Turn<'_>, buffers: &mut Buffers) -> AfterTurn {
        let mut after = AfterTurn::Again;
        for _ in 0..READS_PER_TURN {
            match self.step(turn, buffers) {
                Ok(Progress::Moved) if turn.bytes_read < BYTES_PER_TURN => {}
                Ok(Progress::Moved) => break,
                Ok(Progress::Waiting) => {
                    after = AfterTurn::Wait;
                    break;
                }
                Err(Closed) => return self.close(turn.state),
            }
        }
        if !self.awaits_response() {
            self.carried = None;
        }
        let is_bulk = turn.bytes_read >= limits::RECORD || !self.output.is_empty();
        self.load = if is_bulk { Load::Bulk } else { Load::Light };
        self.set_deadline(turn.state);
        after
    }

    /// Reads once from each side at most.
    fn step(&mut self, turn: &mut Turn<'_>, buffers: &mut Buffers) -> Result<Progress, Closed> {
        if self.is_lingering() {
            return self.drop_input(turn, &mut buffers.client);
        }
        self.flush_client(turn)?;
        let is_under_way = match self.exchange.state() {
            State::Waiting(_)
            | State::Uploading(_)
            | State::Awaiting
            | State::Responding { .. } => true,
            State::Idle | State::Complete { .. } => false,
        };
        // A client that has left reads no response, so its request is cancelled.
        if is_under_way && self.socket.is_read_closed() {
            self.disown_upstream(turn, &mut buffers.upstream);
            return Err(self.abort(End::ClientClosed, turn));
        }
        let steps = [
            self.pump_response(turn, buffers)?,
            self.pump_end(turn)?,
            self.pump_request(turn, buffers)?,
        ];
        let has_moved = steps.contains(&Progress::Moved);
        Ok(if has_moved { Progress::Moved } else { Progress::Waiting })
    }

    /// Writes the pending output.
    fn flush_client(&mut self, turn: &mut Turn<'_>) -> Result<(), Closed> {
        if !self.output.is_empty() {
            match self.socket.write(self.output.bytes()) {
                Ok(n) => {
                    self.output.consume(n);
                    if n > 0 {
                        self.clocks.client_took(turn.now);
                    }
                }
                Err(_) => return Err(self.abort(End::ClientClosed, turn)),
            }
        }
        Ok(())
    }

    /// Resets the connection, so that a truncated response does not look complete.
    fn abort(&mut self, end: End, turn: &mut Turn<'_>) -> Closed {
        self.log_end(end, turn);
        let _ = sys::reset_on_close(self.socket.fd());
        Closed
    }

    fn close(&mut self, state: &mut LoopState) -> AfterTurn {
        self.release_upstream(state);
        AfterTurn::Close
    }

    /// Gives up the upstream connection, and cancels the exchange on it.
    fn release_upstream(&mut self, state: &mut LoopState) {
        if let Some(id) = self.upstream.take()
            && let Some(up) = state.upstreams.get(id)
        {
            up.cancel();
            state.upstreams.remove(id);
        }
    }

    /// Makes the upstream connection that a request waited for the preconnect for the next request,
    /// if one is needed: the client has left, and the connection has carried nothing. Without this,
    /// each request that is cancelled early would cost the upstream a connection.
    fn disown_upstream(&mut self, turn: &mut Turn<'_>, scratch: &mut TlsScratch) {
        let (state, now) = (&mut *turn.state, turn.now);
        let is_waiting = matches!(self.exchange.state(), State::Waiting(_));
        if !is_waiting || !state.needs_preconnect(self.client.user, now) {
            return;
        }
        if let Some(id) = self.upstream
            && let Some(up) = state.upstreams.get(id)
        {
            self.upstream = None;
            up.disown();
            state.pool.set_preconnect(Some(id));
            state.advance_unowned(id, scratch, now);
        }
    }

    /// Ends the session because the relay ends.
    pub fn cut_off(&mut self, turn: &mut Turn<'_>) -> AfterTurn {
        if self.is_busy() {
            self.abort(End::Shutdown, turn);
        }
        self.close(turn.state)
    }
}

#[cfg(test)]
mod testing;

#[cfg(test)]
mod tests {
    use super::testing::{REQUEST, Served};
    use super::*;
    use crate::net::limits::{CLIENT_READ, UPSTREAM_READ};
    use crate::net::loop_state::testing::{SECOND, arrives};

    /// A session with an upload under way that is far from its end.
    fn uploading() -> (Served, crate::net::loop_state::testing::FarEnd) {
        let head = "POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999999\r\n";
        Served::asked(&(head.to_owned() + "\r\n"))
    }

    /// Sends bytes of the client, and waits until all of them are in its socket.
    fn send(served: &mut Served, len: usize) {
        served.client.send(vec![b'x'; len]);
        served.client_comes();
    }

    #[test]
    fn one_read_takes_client_read_bytes_from_a_client_and_no_more() {
        let (mut served, _upstream) = uploading();
        send(&mut served, CLIENT_READ + 1);
        let before = served.session.exchange.bytes_in;
        served.act(|session, turn, buffers| drop(session.pump_request(turn, buffers)));
        let read = served.session.exchange.bytes_in - before;
        assert!(read > 0 && read <= CLIENT_READ as u64, "{read} bytes");
        served.until(|session| session.exchange.bytes_in == before + CLIENT_READ as u64 + 1);
    }

    #[test]
    fn one_read_takes_upstream_read_bytes_from_the_upstream_and_no_more() {
        let (mut served, mut upstream) = Served::asked(REQUEST);
        upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 9999999\r\n\r\n");
        served.until(|session| matches!(session.exchange.state(), State::Responding { .. }));
        upstream.send(vec![b'x'; UPSTREAM_READ + 1]);
        arrives(&mut served.net.state.upstreams, served.session.upstream.unwrap());
        served.net.events(SECOND, Some(&mut served.session.socket));
        served.act(|session, turn, buffers| drop(session.pump_response(turn, buffers)));
        let read = served.session.exchange.bytes_out;
        assert!(read > 0 && read <= UPSTREAM_READ as u64, "{read} bytes");
        served.until(|session| session.exchange.bytes_out == UPSTREAM_READ as u64 + 1);
    }

    #[test]
    fn a_turn_ends_after_bytes_per_turn_and_the_next_one_goes_on() {
        for (len, after) in
            [(BYTES_PER_TURN - 1, AfterTurn::Wait), (BYTES_PER_TURN, AfterTurn::Again)]
        {
            let (mut served, _upstream) = uploading();
            send(&mut served, len);
            assert_eq!(served.turn(), after, "{len} bytes");
            assert_eq!(served.session.load, Load::Bulk);
        }
    }

    #[test]
    fn a_turn_takes_reads_per_turn_steps_and_the_next_one_goes_on() {
        // Each of these requests takes one step.
        let refused = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
        for more in [0, 1] {
            let mut served = Served::new();
            served.client.send(refused.repeat(READS_PER_TURN + more));
            served.client_comes();
            assert_eq!(served.turn(), AfterTurn::Again);
            assert_eq!(served.session.request, READS_PER_TURN as u64);
            assert_eq!(served.session.input.bytes().len(), more * refused.len());
        }
    }
}
