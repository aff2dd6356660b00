//! The drain: the port is closed, exchanges under way continue, and those that take longer than
//! `--grace` are cut off.

use std::ops::ControlFlow;
use std::time::Instant;

use super::EventLoop;
use super::cause::{Drain, DrainCause};
use super::listener::Accepting;
use crate::net::report;
use crate::net::session::AfterTurn;
use crate::process::signals::EndSignal;

impl EventLoop {
    /// Records the signals that have come. The signals of one pass count as one, the most urgent: a
    /// supervisor may send SIGHUP right after SIGTERM.
    pub(super) fn note_signals(&mut self) {
        for signal in self.signals.take() {
            if matches!(self.signalled, None | Some(EndSignal::HangUp)) {
                self.signalled = Some(signal);
            }
        }
    }

    /// Begins the drain if there is a cause. Breaks when no exchange is under way any more, or at a
    /// second signal.
    pub(super) fn advance_drain(&mut self, now: Instant) -> ControlFlow<()> {
        let cause = match self.signalled.take() {
            Some(signal) => Some(DrainCause::Signal(signal)),
            None if self.failed.is_some() => Some(DrainCause::ConnectorFailed),
            None => self.state.shutdown.then_some(DrainCause::Shutdown),
        };
        let (drain, cause) = match (self.drain, cause) {
            (None, None) => return ControlFlow::Continue(()),
            (None, Some(cause)) => (self.begin_drain(cause, now), None),
            (Some(drain), cause) => (drain, cause),
        };
        let end = match cause.filter(|again| drain.is_cut_short_by(*again, now)) {
            Some(again) => again.name(),
            None => match self.count_busy() {
                0 => drain.cause.name(),
                _ if now >= drain.by => "--grace",
                _ => return ControlFlow::Continue(()),
            },
        };
        self.cut_off(end, drain, now);
        ControlFlow::Break(())
    }

    /// Closes the port and idle sessions; the others end after their exchange.
    fn begin_drain(&mut self, cause: DrainCause, now: Instant) -> Drain {
        self.listeners.clear();
        self.notifier.stopping();
        self.accepting = Accepting::AfterEvent;
        // The file must not lead clients to a port that another program may have by then.
        self.server_info = None;
        for id in self.sessions.ids() {
            self.run_session(id, now, &mut |session, _, _| {
                if session.is_idle() {
                    return AfterTurn::Close;
                }
                session.drain();
                AfterTurn::Again
            });
        }
        let (begun, by) = (now, now + self.grace);
        let drain = Drain { cause, begun, by, exchanges: self.count_busy() };
        self.drain = Some(drain);
        self.state.log.event(&report::drain(cause.name(), drain.exchanges, self.grace));
        drain
    }

    /// The number of exchanges under way.
    fn count_busy(&mut self) -> usize {
        let ids = self.sessions.ids().into_iter();
        ids.filter(|id| self.sessions.get(*id).is_some_and(|session| session.is_busy())).count()
    }

    /// Ends all sessions.
    fn cut_off(&mut self, cause: &'static str, drain: Drain, now: Instant) {
        self.log_refusals_now();
        let busy = self.count_busy();
        for id in self.sessions.ids() {
            self.run_session(id, now, &mut |session, turn, _| session.cut_off(turn));
        }
        if drain.exchanges > 0 {
            self.state.log.event(&report::end(cause, busy));
        }
    }
}
