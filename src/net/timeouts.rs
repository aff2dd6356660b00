//! Every duration of `net`, and the defaults of the flags. The durations of the connector are in
//! [`crate::connector`].

use std::time::Duration;

use crate::http1::limits::UPLOAD_PATIENCE;

// Clients.

/// The default of `--client-timeout`.
pub const CLIENT: Duration = Duration::from_secs(30);
/// How long a client may keep a connection open without a request.
pub const KEEP_ALIVE: Duration = Duration::from_secs(75);
/// How long a connection is drained after the last response, so that a reset does not destroy the
/// response on its way.
pub const LINGER: Duration = Duration::from_secs(5);
/// A connection gives its place up to another one after this long without a request.
pub const IDLE_BEFORE_EVICTION: Duration = Duration::from_secs(1);
/// How long a user who found no place counts as a user at work.
pub const WAITING_USER: Duration = Duration::from_secs(10);
/// How long accepting pauses when the process is out of descriptors.
pub const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

// The upstream.

/// How long a new connection may take until it is usable: DNS, TCP, the proxy and TLS together.
pub const CONNECT: Duration = Duration::from_secs(10);
/// How long an upstream connection may stay idle. Upstreams close theirs after a minute or more.
pub const POOL_IDLE: Duration = Duration::from_secs(55);
/// The shortest sleep of the machine that counts. The two clocks are not read at the same instant,
/// and the process may be stopped in between.
pub const SHORTEST_SLEEP: Duration = Duration::from_secs(1);
/// When messages to the connector that did not fit are sent again. The connector reads all the
/// time.
pub const RESEND_TO_CONNECTOR: Duration = Duration::from_millis(5);

// The key.

/// How long stdin is not read after a read from it (`--rotate`), unless its writer has ended.
/// Tested by `rotation::a_writer_that_floods_takes_no_time_from_clients`.
pub const KEY_PAUSE: Duration = Duration::from_millis(10);

// The log, and the end of the relay.

/// An exchange that takes this long is reported as slow.
pub const SLOW: Duration = Duration::from_secs(60);
/// The time until a slow exchange is reported again.
pub const SLOW_AGAIN: Duration = Duration::from_secs(300);
/// Refused connections are logged together, this long after the first.
pub const REFUSALS: Duration = Duration::from_secs(1);
/// How long the end of the program waits for stderr.
pub const LOG_FLUSH: Duration = Duration::from_millis(500);
/// A signal that comes within this time after the relay has begun to drain is the same request to
/// end, not a second one.
pub const SAME_REQUEST: Duration = Duration::from_millis(250);
/// The default of `--grace`.
pub const GRACE: Duration = Duration::from_secs(1);

// `--check` and `--probe`.

/// How long an upstream that has asked for a client certificate may take to refuse the handshake.
pub const CHECK_VERDICT: Duration = Duration::from_secs(2);
/// How long `--probe` may take.
pub const PROBE: Duration = Duration::from_secs(2);

/// How long the two sides may be silent.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// `--client-timeout`.
    pub client: Duration,
    /// `--upstream-timeout`.
    pub upstream: Option<Duration>,
}

impl Timeouts {
    /// The time that all pauses of one request body may take together.
    pub fn patience(&self) -> Duration {
        self.client * UPLOAD_PATIENCE
    }
}
