//! The end of the relay: the port is closed, exchanges under way are waited for, and those that take
//! longer than `--grace` are cut off.

use std::ops::ControlFlow;
use std::time::Instant;

use super::EventLoop;
use super::cause::{Cause, Drain};
use crate::net::report;
use crate::net::session::AfterTurn;
use crate::process::signals::EndSignal;

impl EventLoop {
    /// Notes the signals that have come. Those of one batch count as one, the most urgent of them: a
    /// supervisor may send SIGHUP right behind SIGTERM.
    pub(super) fn take_signals(&mut self) {
        for signal in self.signals.take() {
            if matches!(self.signalled, None | Some(EndSignal::HangUp)) {
                self.signalled = Some(signal);
            }
        }
    }

    /// Begins to end where there is cause, goes on with it, and breaks when nothing is left to wait for.
    pub(super) fn end(&mut self, now: Instant) -> ControlFlow<()> {
        let cause = match self.signalled.take() {
            Some(signal) => Some(Cause::Signal(signal)),
            None if self.failed.is_some() => Some(Cause::ConnectorFailed),
            None => self.state.shutdown.then_some(Cause::Shutdown),
        };
        let (drain, cause) = match (self.drain, cause) {
            (None, None) => return ControlFlow::Continue(()),
            (None, Some(cause)) => (self.begin_drain(cause, now), None),
            (Some(drain), cause) => (drain, cause),
        };
        let end = match cause {
            // One terminal that hangs up is told twice: by the kernel and by the shell.
            None
            | Some(Cause::Shutdown | Cause::ConnectorFailed | Cause::Signal(EndSignal::HangUp)) => {
                match self.busy() {
                    0 => drain.cause.name(),
                    _ if now >= drain.by => "--grace",
                    _ => return ControlFlow::Continue(()),
                }
            }
            Some(again) => again.name(),
        };
        self.cut_off(end, drain, now);
        ControlFlow::Break(())
    }

    /// Frees the port, ends idle connections, and lets exchanges under way go on.
    fn begin_drain(&mut self, cause: Cause, now: Instant) -> Drain {
        self.listeners.clear();
        self.notifier.stopping();
        self.accept_at = None;
        self.accept_again = false;
        // The file must not lead anybody to a port that the next relay has.
        self.server_info = None;
        for key in self.sessions.keys() {
            self.run_session(key, now, |session, _, _| {
                if session.is_idle() {
                    return AfterTurn::Close;
                }
                session.drain();
                AfterTurn::Again
            });
        }
        let drain = Drain { cause, by: now + self.grace, exchanges: self.busy() };
        self.drain = Some(drain);
        self.state.log.event(&report::drain(cause.name(), drain.exchanges, self.grace));
        drain
    }

    /// Exchanges under way.
    fn busy(&mut self) -> usize {
        let keys = self.sessions.keys().into_iter();
        keys.filter(|key| self.sessions.get(*key).is_some_and(|session| session.is_busy())).count()
    }

    /// Ends what is still there.
    fn cut_off(&mut self, cause: &'static str, drain: Drain, now: Instant) {
        self.log_refusals_now();
        let busy = self.busy();
        for key in self.sessions.keys() {
            self.run_session(key, now, |session, turn, _| session.cut_off(turn));
        }
        if drain.exchanges > 0 {
            self.state.log.event(&report::end(cause, busy));
        }
    }
}
