//! After a response: the rest of its request, the next exchange, or the end of the connection.

use super::{Closed, End, LoopState, Phase, Progress, Session, Times, Turn};
use crate::http1::exchange::State;
use crate::net::buffer::{Backlog, Scratch};
use crate::net::limits::CLIENT_READ;
use crate::net::socket::ReadOutcome;

impl Session {
    /// Ends the upload of a request whose response is complete, because the upstream reads no more
    /// of it.
    pub(super) fn stop_upload(&mut self, state: &mut LoopState) {
        self.exchange.stop_upload();
        self.release_upstream(state);
    }

    /// Ends the exchange once its response has been sent and its request has been read.
    pub(super) fn pump_end(&mut self, turn: &mut Turn<'_>) -> Result<Progress, Closed> {
        let State::Complete { rest } = self.exchange.state() else {
            return Ok(Progress::Waiting);
        };
        if !self.output.is_empty() {
            return Ok(Progress::Waiting);
        }
        let has_whole_request = rest.is_none();
        if rest.is_upload() {
            // The response was early. Some clients see the end of a response only when the
            // connection ends, so the relay ends its side now and not after the upload.
            if self.exchange.is_last() && self.phase == Phase::Serving {
                self.phase = Phase::WriteEnded;
                self.socket.shutdown_write();
            }
            return Ok(Progress::Waiting);
        }
        // After an early response, the last bytes of the request may still be queued.
        if let Some(up) = self.upstream.and_then(|id| turn.state.upstreams.get(id)) {
            up.flush();
            if !up.is_drained() {
                return Ok(Progress::Waiting);
            }
        }
        if let Some(id) = self.upstream.take() {
            turn.state.upstreams.remove(id);
        }
        if self.exchange.is_last() {
            self.linger(turn);
            return Ok(Progress::Moved);
        }
        if !has_whole_request {
            return Ok(Progress::Waiting);
        }
        self.begin_next(turn);
        Ok(Progress::Moved)
    }

    /// Ends the connection in an orderly way.
    fn linger(&mut self, turn: &mut Turn<'_>) {
        self.log_end(End::Complete, turn);
        self.phase = Phase::Lingering;
        self.clocks.client_acted(turn.now);
        self.socket.shutdown_write();
        self.input = Backlog::default();
    }

    /// Makes the session ready for another request.
    fn begin_next(&mut self, turn: &mut Turn<'_>) {
        self.log_end(End::Complete, turn);
        self.exchange.next();
        self.response_head = Backlog::default();
        self.served = true;
        self.request += 1;
        self.idle_since = turn.now;
        self.needs_more = false;
        self.clocks.restore_patience(&turn.state.timeouts);
        self.clocks.client_acted(turn.now);
        self.times = Times::new(turn.now);
    }

    /// Reads and drops input. A socket that is closed with unread input sends a reset, which
    /// destroys a response that the client has not read yet.
    pub(super) fn drop_input(
        &mut self,
        turn: &mut Turn<'_>,
        read: &mut Scratch,
    ) -> Result<Progress, Closed> {
        match self.socket.read(&mut read.unfilled(CLIENT_READ)[..CLIENT_READ]) {
            ReadOutcome::Bytes(n) => {
                turn.bytes_read += n;
                Ok(Progress::Moved)
            }
            ReadOutcome::Nothing => Ok(Progress::Waiting),
            ReadOutcome::End | ReadOutcome::Broken => Err(Closed),
        }
    }
}
