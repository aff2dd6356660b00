//! Every bound of `net` on bytes and counts. The bounds on the contents of a message are in
//! [`crate::http1::limits`], the durations in [`super::timeouts`].

use std::ops::RangeInclusive;

use crate::http1::limits::RECORD;

// TLS records.

/// How many bytes a record can be longer than its plaintext (RFC 5246 §6.2.3, RFC 8446 §5.2).
pub const RECORD_OVERHEAD: usize = 64;
/// Bytes of a full TLS 1.3 record on the wire: header, plaintext, content type and tag (RFC 8446
/// §5.2).
pub const FULL_RECORD: usize = 5 + RECORD + 1 + 16;
/// The longest record on the wire, in bytes (RFC 5246 §6.2.3).
pub const LONGEST_RECORD: usize = RECORD + 2048 + 5;
/// The longest file of root certificates, in bytes. The bundle of a system has 0.2 MiB.
pub const ROOTS_FILE: u64 = 16 << 20;
/// TLS 1.3 session tickets that are kept. Connections that begin at the same time need one each; a
/// connection without a ticket checks the certificates again. A ticket contains the upstream's
/// certificates, about 4 KiB.
pub const TICKETS: usize = 64;

// Bounds of one turn of a session.

/// Bytes of one read from a client: four records.
pub const CLIENT_READ: usize = 64 * 1024;
/// Bytes of one read from the upstream. Whole records, so that no record of a long response is cut.
pub const UPSTREAM_READ: usize = 2 * FULL_RECORD;
/// Reads from each side in one turn.
pub const READS_PER_TURN: usize = 2;
/// A turn also ends after this many bytes (about 50 µs of work). A small request waits for at most
/// one such turn in each direction.
pub const BYTES_PER_TURN: usize = 2 * RECORD;
/// Turns of one user in one pass of the loop, if `--allow-uid` names several users.
pub const TURNS_PER_USER: usize = 16;

// Client connections.

/// Connections accepted in one pass of the loop.
pub const ACCEPTS_PER_PASS: usize = 64;
/// Connections of users who may not use the relay that are drained at one time, so that a reset
/// does not destroy their 403.
pub const REFUSED_LINGERING: usize = 8;
/// Connections beyond `--max-connections` that get a 503 and are drained at one time.
pub const OVERLOADED_LINGERING: usize = 32;
/// One part in this many of an equal share of the places is kept free for each user.
pub const RESERVE: usize = 16;
/// Users whose refusals are counted separately in one line of the log.
pub const REFUSED_USERS: usize = 8;

// Upstream connections.

/// Reads from an idle connection in one turn. Each takes a record or more.
pub const IDLE_READS_PER_TURN: usize = 4;
/// Bytes of one read of the egress proxy's response to CONNECT.
pub const PROXY_READ: usize = 1024;

// Memory and output.

/// Buffers of emptied backlogs that are kept for the next backlog.
pub const KEPT_BUFFERS: usize = 4;
/// The sizes of buffers that are kept. Smaller ones are cheap to allocate, and larger ones are
/// rarely needed again.
pub const KEPT_BUFFER_SIZES: RangeInclusive<usize> = 1024..=16 * 1024;
/// Bytes of log lines that wait for stderr.
pub const LOG_QUEUE: usize = 64 * 1024;
/// The longest response that `--probe` reads, in bytes. The response of a relay has a few hundred.
pub const PROBE_RESPONSE: u64 = 4096;
