//! How long each side may take: the clocks of one session, without I/O.
//!
//! A clock holds the time at which its side last acted. Bytes of a body reset the clock, and so
//! does the end of a head. Parts of a head do not: one limit covers the whole head. The session
//! says which side has to act; the clocks say until when.

use std::time::{Duration, Instant};

use crate::http1::limits;
use crate::net::timeouts::{KEEP_ALIVE, LINGER, Timeouts};

/// The next thing that the client must do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClientDuty {
    /// Nothing: the upstream has to act.
    Nothing,
    /// Send the rest of a request head. The time for the first head begins at accept.
    Head,
    /// Send more of the request body.
    Body,
    /// Take the rest of a complete response, to keep the connection.
    TakeResponse,
    /// Begin another request, or end the connection.
    NextRequest,
    /// End the connection.
    End,
}

/// The clocks of one session.
pub(super) struct Clocks {
    client_active_at: Instant,
    /// When bytes of a response were last written to the client's socket or read by the client.
    client_took_at: Instant,
    /// When the upstream's time began.
    upstream_active_at: Instant,
    /// When the upstream last sent or took bytes.
    upstream_last_byte: Instant,
    /// For how long in total the request body may still pause.
    patience: Duration,
}

impl Clocks {
    /// Both sides have acted just now.
    pub(super) fn new(now: Instant) -> Clocks {
        Clocks {
            client_active_at: now,
            client_took_at: now,
            upstream_active_at: now,
            upstream_last_byte: now,
            patience: Duration::ZERO,
        }
    }

    /// The client has done its part, or could not do it because the relay or the upstream was busy.
    pub(super) fn client_acted(&mut self, now: Instant) {
        self.client_active_at = now;
    }

    /// Bytes of a response have been written to the client's socket or read by the client. No other
    /// clock moves: reading a response does not excuse a request that stalls.
    pub(super) fn client_took(&mut self, now: Instant) {
        self.client_took_at = now;
    }

    /// The upstream has sent or taken bytes.
    pub(super) fn upstream_acted(&mut self, now: Instant) {
        self.upstream_active_at = now;
        self.upstream_last_byte = now;
    }

    /// The upstream could not do its part, because the client was busy: its time starts again.
    pub(super) fn upstream_held_up(&mut self, now: Instant) {
        self.upstream_active_at = now;
    }

    /// Gives the next request body its full patience.
    pub(super) fn restore_patience(&mut self, timeouts: &Timeouts) {
        self.patience = timeouts.patience();
    }

    /// Bytes of a request body have come. The pause before them is deducted from the patience, and
    /// the bytes restore some of it. Call this before [`Clocks::client_acted`].
    pub(super) fn body_came(&mut self, bytes: usize, timeouts: &Timeouts, now: Instant) {
        let paused = now.saturating_duration_since(self.client_active_at);
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let bought = Duration::from_secs(1) * bytes / limits::UPLOAD_RATE;
        self.patience = (self.patience.saturating_sub(paused) + bought).min(timeouts.patience());
    }

    /// When the client last did its part.
    pub(super) fn client_active_at(&self) -> Instant {
        self.client_active_at
    }

    /// How long the upstream has been silent.
    pub(super) fn upstream_silence(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.upstream_last_byte)
    }

    /// Until when the client has to do its duty.
    pub(super) fn client_by(&self, duty: ClientDuty, timeouts: &Timeouts) -> Option<Instant> {
        let (since, limit) = match duty {
            ClientDuty::Nothing => return None,
            ClientDuty::Head => (self.client_active_at, timeouts.client),
            ClientDuty::Body => (self.client_active_at, self.patience.min(timeouts.client)),
            ClientDuty::TakeResponse => (self.client_took_at, timeouts.client),
            ClientDuty::NextRequest => (self.client_active_at, KEEP_ALIVE),
            ClientDuty::End => (self.client_active_at, LINGER),
        };
        Some(since + limit)
    }

    /// Until when the upstream has to do its part, if it is waited for.
    pub(super) fn upstream_by(&self, timeouts: &Timeouts) -> Option<Instant> {
        timeouts.upstream.map(|limit| self.upstream_active_at + limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const TIMEOUTS: Timeouts = Timeouts { client: Duration::from_secs(10), upstream: None };

    #[test]
    fn each_duty_of_the_client_has_a_time_of_its_own() {
        let now = Instant::now();
        let mut clocks = Clocks::new(now);
        clocks.restore_patience(&TIMEOUTS);
        for (duty, limit) in [
            (ClientDuty::Nothing, None),
            (ClientDuty::Head, Some(TIMEOUTS.client)),
            (ClientDuty::Body, Some(TIMEOUTS.client)),
            (ClientDuty::TakeResponse, Some(TIMEOUTS.client)),
            (ClientDuty::NextRequest, Some(KEEP_ALIVE)),
            (ClientDuty::End, Some(LINGER)),
        ] {
            let by = limit.map(|limit| now + limit);
            assert_eq!(clocks.client_by(duty, &TIMEOUTS), by, "{duty:?}");
        }
        clocks.client_acted(now + SECOND);
        assert_eq!(
            clocks.client_by(ClientDuty::Head, &TIMEOUTS),
            Some(now + SECOND + TIMEOUTS.client)
        );
    }

    #[test]
    fn a_response_that_is_taken_gives_time_to_take_it_and_no_other() {
        let now = Instant::now();
        let mut clocks = Clocks::new(now);
        clocks.restore_patience(&TIMEOUTS);
        clocks.client_took(now + 9 * SECOND);
        for (duty, by) in [
            (ClientDuty::TakeResponse, now + 9 * SECOND + TIMEOUTS.client),
            (ClientDuty::Head, now + TIMEOUTS.client),
            (ClientDuty::Body, now + TIMEOUTS.client),
            (ClientDuty::NextRequest, now + KEEP_ALIVE),
            (ClientDuty::End, now + LINGER),
        ] {
            assert_eq!(clocks.client_by(duty, &TIMEOUTS), Some(by), "{duty:?}");
        }
        clocks.client_acted(now + 20 * SECOND);
        let by = clocks.client_by(ClientDuty::TakeResponse, &TIMEOUTS);
        assert_eq!(by, Some(now + 9 * SECOND + TIMEOUTS.client), "a request takes no response");
    }

    #[test]
    fn the_clocks_of_the_two_sides_are_apart() {
        let now = Instant::now();
        let timeouts = Timeouts { upstream: Some(3 * SECOND), ..TIMEOUTS };
        let mut clocks = Clocks::new(now);
        clocks.client_acted(now + 9 * SECOND);
        assert_eq!(clocks.upstream_by(&timeouts), Some(now + 3 * SECOND));
        assert_eq!(clocks.upstream_silence(now + 9 * SECOND), 9 * SECOND);
        clocks.upstream_acted(now + 2 * SECOND);
        assert_eq!(clocks.upstream_by(&timeouts), Some(now + 5 * SECOND));
        assert_eq!(clocks.client_active_at(), now + 9 * SECOND);
        assert_eq!(clocks.upstream_by(&TIMEOUTS), None, "without a limit");
        clocks.upstream_held_up(now + 7 * SECOND);
        assert_eq!(clocks.upstream_by(&timeouts), Some(now + 10 * SECOND));
        assert_eq!(clocks.upstream_silence(now + 9 * SECOND), 7 * SECOND);
    }

    #[test]
    fn a_body_that_drips_uses_up_its_patience() {
        let start = Instant::now();
        let mut clocks = Clocks::new(start);
        clocks.restore_patience(&TIMEOUTS);
        // A byte each nine seconds is always in time, but buys back next to nothing.
        let mut now = start;
        let mut bytes = 0;
        while bytes < 1_000 {
            let by = clocks.client_by(ClientDuty::Body, &TIMEOUTS).unwrap();
            now += 9 * SECOND;
            if by <= now {
                break;
            }
            clocks.body_came(1, &TIMEOUTS, now);
            clocks.client_acted(now);
            bytes += 1;
        }
        let passed = now - start;
        assert!(bytes > 1, "{bytes} bytes");
        assert!(passed <= TIMEOUTS.patience() + TIMEOUTS.client, "{passed:?}");
    }

    #[test]
    fn a_body_that_flows_keeps_its_patience_and_saves_up_no_more() {
        let start = Instant::now();
        let mut clocks = Clocks::new(start);
        clocks.restore_patience(&TIMEOUTS);
        for second in 1..1_000 {
            let now = start + second * SECOND;
            clocks.body_came(limits::UPLOAD_RATE as usize, &TIMEOUTS, now);
            clocks.client_acted(now);
            assert_eq!(clocks.patience, TIMEOUTS.patience());
        }
        clocks.body_came(usize::MAX, &TIMEOUTS, start + 1_000 * SECOND);
        assert_eq!(clocks.patience, TIMEOUTS.patience());
    }
}
