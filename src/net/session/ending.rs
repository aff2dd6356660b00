//! What follows a response: the rest of its request, the next request, or the end.

use std::time::Instant;

use super::{Closed, LoopState, Phase, Progress, Session, Times};
use crate::http1::exchange::State;
use crate::net::buffer::Backlog;
use crate::net::limits::CLIENT_READ;
use crate::net::socket::Got;

impl Session {
    /// The upstream wants no more of a request whose response is complete.
    pub(super) fn stop_upload(&mut self, state: &mut LoopState) {
        self.exchange.stop_upload();
        self.release(state);
    }

    /// When the answer is with the client: what comes next.
    pub(super) fn pump_end(
        &mut self,
        state: &mut LoopState,
        now: Instant,
    ) -> Result<Progress, Closed> {
        let State::Complete { rest } = self.exchange.state() else {
            return Ok(Progress::Waiting);
        };
        if !self.output.is_empty() {
            return Ok(Progress::Waiting);
        }
        let has_whole_request = rest.is_none();
        if rest.is_upload() {
            // The response was early. A client to which only the end of the connection shows the
            // end of the response gets it now.
            if self.exchange.is_last() && self.phase == Phase::Serving {
                self.phase = Phase::WriteEnded;
                self.socket.shutdown_write();
            }
            return Ok(Progress::Waiting);
        }
        // Behind an early response the last of the request may wait for room.
        if let Some(up) = self.upstream.and_then(|key| state.upstreams.get(key)) {
            up.flush();
            if !up.is_drained() {
                return Ok(Progress::Waiting);
            }
        }
        if let Some(key) = self.upstream.take() {
            state.upstreams.remove(key);
        }
        if self.exchange.is_last() {
            self.log("complete", state, now);
            self.phase = Phase::Lingering;
            self.clocks.client_acted(now);
            self.socket.shutdown_write();
            self.input = Backlog::default();
            return Ok(Progress::Moved);
        }
        if !has_whole_request {
            return Ok(Progress::Waiting);
        }
        self.log("complete", state, now);
        self.exchange.next();
        self.head = Backlog::default();
        self.served = true;
        self.request += 1;
        self.idle_since = now;
        self.clocks.restore_patience(&state.timeouts);
        self.needs_more = false;
        self.clocks.client_acted(now);
        self.times = Times::new(now);
        Ok(Progress::Moved)
    }

    /// Reads and drops what still comes, so that no reset eats the last answer.
    pub(super) fn discard(&mut self, state: &mut LoopState) -> Result<Progress, Closed> {
        match self.socket.read(&mut state.client_scratch.room(CLIENT_READ)[..CLIENT_READ]) {
            Got::Bytes(n) => {
                state.moved += n;
                Ok(Progress::Moved)
            }
            Got::Nothing => Ok(Progress::Waiting),
            Got::End | Got::Broken => Err(Closed),
        }
    }
}
