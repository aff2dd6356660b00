//! An upstream connection that is usable: TLS, or plain to a loopback address. It carries one
//! exchange after another, and is idle in between.

use std::io::{self, ErrorKind, IoSlice};
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use mio::event::Event;

use super::channel::Channel;
use crate::http1::gather::GatherList;
use crate::http1::limits::{GATHER_SEGMENTS, RECORD};
use crate::http1::local_response::UpstreamFault;
use crate::net::admission::UserIndex;
use crate::net::buffer::{Backlog, Scratch, TlsScratch};
use crate::net::gather_io::{RecordWriter, encrypt_rest, fill};
use crate::net::limits::IDLE_READS_PER_TURN;
use crate::net::slots::SlotId;
use crate::net::socket::{ReadOutcome, Socket};
use crate::net::timeouts::POOL_IDLE;
use crate::net::tls::{PeerState, Tls};
use crate::process::credential::Credential;

/// A usable connection.
pub struct Connection {
    channel: Channel,
    /// `None` for a plain upstream.
    tls: Option<Tls>,
    /// The session that it is assigned to; `None` while it is idle.
    pub(super) owner: Option<SlotId>,
    /// The user whose exchanges it has carried; `None` if it has carried none.
    pub used_by: Option<UserIndex>,
    /// When it became idle for the last time; `None` if it never was.
    idle_since: Option<Instant>,
    /// When it is closed unless it is used; `None` while it is in use.
    pub(super) idle_until: Option<Instant>,
    /// The address of the upstream or of the egress proxy.
    pub address: Option<SocketAddr>,
    /// When a session asked for it; for a preconnect, when it was begun.
    pub requested_at: Instant,
}

/// The outcome of sending bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// The socket has taken all of them.
    Flushed,
    /// The rest waits until the socket is writable.
    Queued,
    /// The connection had been idle and has taken no byte: the upstream had closed it. The request
    /// may be sent on another connection.
    ConnectionStale,
    /// The connection has failed. The upstream may have read a part.
    ConnectionFailed,
}

/// Whether and how the upstream has ended its side of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamEnd {
    /// It has not ended it; more bytes may come.
    NotYet,
    /// In order: with a close_notify alert, or without TLS with the end of the stream.
    Orderly,
    /// The stream has broken off.
    CutOff,
    /// With an alert that says why.
    Refused(UpstreamFault),
}

impl Connection {
    /// A connection that has just become usable.
    pub fn new(
        channel: Channel,
        tls: Option<Tls>,
        owner: Option<SlotId>,
        address: Option<SocketAddr>,
        requested_at: Instant,
    ) -> Connection {
        Connection {
            channel,
            tls,
            owner,
            used_by: None,
            idle_since: None,
            idle_until: None,
            address,
            requested_at,
        }
    }

    /// TLS, if the upstream is not plain.
    pub fn tls(&self) -> Option<&Tls> {
        self.tls.as_ref()
    }

    /// The socket.
    pub fn socket(&self) -> &Socket {
        &self.channel.socket
    }

    /// It has carried an exchange before.
    pub fn used_before(&self) -> bool {
        self.used_by.is_some()
    }

    /// It has been idle, so the upstream may have closed it unnoticed.
    pub fn was_idle(&self) -> bool {
        self.idle_since.is_some()
    }

    /// The socket has taken all bytes.
    pub fn is_drained(&self) -> bool {
        self.channel.output.is_empty()
    }

    /// The number of bytes that the socket has not taken yet.
    pub(super) fn unsent(&self) -> usize {
        self.channel.output.bytes().len()
    }

    /// All received bytes have been read, and no partial record is left. So no byte can be mistaken
    /// for a part of a later response.
    pub fn is_quiet(&self) -> bool {
        !self.has_news() && self.is_between_records()
    }

    /// No part of a further record has been read.
    pub fn is_between_records(&self) -> bool {
        self.tls.as_ref().is_none_or(Tls::is_between_records)
    }

    /// Bytes or the end may have come that have not been read.
    pub fn has_news(&self) -> bool {
        self.channel.socket.is_readable()
    }

    /// Records the readiness that an event reports.
    pub fn note(&mut self, event: &Event) {
        self.channel.socket.note(event);
    }

    /// The socket; `None` if the upstream has ended its side, so that a reset would have no effect.
    pub(super) fn resettable(&self) -> Option<BorrowedFd<'_>> {
        let socket = &self.channel.socket;
        (!socket.is_read_closed()).then(|| socket.fd())
    }

    /// Sends bytes that wait. If that fails, a read shows the reason.
    pub fn flush(&mut self) {
        self.channel.flush();
    }

    /// Sends the request head, which begins with the credential block, and the body bytes that
    /// follow it. The last bytes of the handshake are sent before them, if they wait. Requires that
    /// no other bytes wait.
    pub fn send_head(
        &mut self,
        list: &GatherList,
        input: &[u8],
        credential: &mut Credential,
        scratch: &mut TlsScratch,
    ) -> Sent {
        match self.write_head(list, input, credential, scratch) {
            Ok(()) => self.output_state(),
            // If a part of the head was written, the upstream may have read it.
            Err(error) if self.was_idle() && error.kind() != ErrorKind::WriteZero => {
                Sent::ConnectionStale
            }
            Err(_) => Sent::ConnectionFailed,
        }
    }

    /// Writes the head. After an error nothing was sent, except after `WriteZero`: then a part of
    /// the head was.
    fn write_head(
        &mut self,
        list: &GatherList,
        input: &[u8],
        credential: &mut Credential,
        scratch: &mut TlsScratch,
    ) -> io::Result<()> {
        let mut after = [IoSlice::new(&[]); GATHER_SEGMENTS];
        let count = fill(&mut after, list, input);
        let mut after = &mut after[..count];
        let Connection { channel, tls, .. } = self;
        match tls {
            Some(tls) => {
                let out = &mut scratch.ciphertext_out;
                out.clear();
                out.push(channel.output.bytes());
                channel.output = Backlog::default();
                let taken = credential.splice_into(after, &mut RecordWriter { tls, out })?;
                encrypt_rest(tls, after, taken, scratch)?;
                channel.send(scratch.ciphertext_out.bytes())
            }
            None => {
                let taken = credential.splice_into(after, &mut channel.socket)?;
                IoSlice::advance_slices(&mut after, taken);
                for slice in after.iter() {
                    // The upstream has the beginning of the request. From here on a failed write is
                    // no failure of the request: the response decides.
                    let sent = channel.send(slice);
                    channel.note_write(sent);
                }
                Ok(())
            }
        }
    }

    /// Sends a part of the body. Requires that no bytes wait. After a failed write the bytes are
    /// dropped: the response shows whether the upstream needed them.
    pub fn send_body(&mut self, list: &GatherList, input: &[u8], scratch: &mut TlsScratch) -> Sent {
        let Connection { channel, tls, .. } = self;
        if !channel.has_failed() {
            let mut slices = [IoSlice::new(&[]); GATHER_SEGMENTS];
            let count = fill(&mut slices, list, input);
            let slices = &mut slices[..count];
            let sent = match tls {
                Some(tls) => {
                    scratch.ciphertext_out.clear();
                    encrypt_rest(tls, slices, 0, scratch)
                        .and_then(|()| channel.send(scratch.ciphertext_out.bytes()))
                }
                None => channel.send_slices(slices),
            };
            channel.note_write(sent);
        }
        self.output_state()
    }

    /// Sends a whole request, which lies in memory of the caller's and is encrypted from there.
    /// Requires that nothing waits.
    pub fn send_request(&mut self, request: &[u8], scratch: &mut TlsScratch) -> Sent {
        let Connection { channel, tls, .. } = self;
        let sent = match tls {
            Some(tls) => {
                scratch.ciphertext_out.clear();
                match tls.encrypt(request, &mut scratch.ciphertext_out) {
                    Ok(()) => channel.send(scratch.ciphertext_out.bytes()),
                    Err(_) => Err(ErrorKind::ConnectionAborted.into()),
                }
            }
            None => channel.send(request),
        };
        match sent {
            Ok(()) => self.output_state(),
            Err(_) => Sent::ConnectionFailed,
        }
    }

    fn output_state(&self) -> Sent {
        if self.is_drained() { Sent::Flushed } else { Sent::Queued }
    }

    /// Reads once and leaves the plaintext in `scratch.plaintext_in`, which is empty if none came.
    /// A partial record that was kept from the last read counts towards `size`, so that reads stay
    /// aligned to records.
    pub fn read(&mut self, scratch: &mut TlsScratch, size: usize) -> StreamEnd {
        let Connection { channel, tls, .. } = self;
        let TlsScratch { ciphertext_in, plaintext_in, ciphertext_out, .. } = scratch;
        plaintext_in.clear();
        match tls {
            Some(tls) => {
                tls.resume(ciphertext_in);
                // A handshake message may span several records, so one more record always fits.
                let more = size.saturating_sub(ciphertext_in.bytes().len()).max(RECORD);
                let read = channel.socket.read(&mut ciphertext_in.unfilled(more)[..more]);
                if let ReadOutcome::Bytes(n) = read {
                    ciphertext_in.add(n);
                }
                ciphertext_out.clear();
                let decrypted = tls.decrypt(ciphertext_in, plaintext_in, ciphertext_out);
                let sent = channel.send(ciphertext_out.bytes());
                match (decrypted, read) {
                    (Ok(PeerState::Closed), _) => StreamEnd::Orderly,
                    (Ok(PeerState::Open), ReadOutcome::Bytes(_) | ReadOutcome::Nothing)
                        if sent.is_ok() =>
                    {
                        StreamEnd::NotYet
                    }
                    (Err(fault @ UpstreamFault::TlsClientCertificate), _) => {
                        StreamEnd::Refused(fault)
                    }
                    (Ok(PeerState::Open) | Err(_), _) => StreamEnd::CutOff,
                }
            }
            None => match channel.socket.read(&mut plaintext_in.unfilled(size)[..size]) {
                ReadOutcome::Bytes(n) => {
                    plaintext_in.add(n);
                    StreamEnd::NotYet
                }
                ReadOutcome::Nothing => StreamEnd::NotYet,
                ReadOutcome::End => StreamEnd::Orderly,
                ReadOutcome::Broken => StreamEnd::CutOff,
            },
        }
    }

    /// Assigns the connection to the session `owner`.
    pub fn assign(&mut self, owner: SlotId) {
        self.owner = Some(owner);
        self.idle_until = None;
    }

    /// Marks the connection as idle. Returns when it is closed.
    pub fn mark_idle(&mut self, now: Instant) -> Instant {
        let until = now + POOL_IDLE;
        self.owner = None;
        self.idle_since = Some(now);
        self.idle_until = Some(until);
        until
    }

    /// Counts the time for which the machine has slept as idle time.
    pub(super) fn age_by_sleep(&mut self, slept: Duration) {
        if let Some(until) = &mut self.idle_until {
            *until = until.checked_sub(slept).unwrap_or(self.requested_at);
        }
    }

    /// The connection can take a request. If it became idle before this pass of the loop, the
    /// events of the pass have reported nothing on it. If it became idle in this pass, it is
    /// checked again.
    pub fn is_still_usable(&mut self, scratch: &mut TlsScratch, now: Instant) -> bool {
        self.idle_since.is_none_or(|since| since < now)
            || self.channel.socket.is_silent()
            || self.is_still_idle(scratch)
    }

    /// Reads from an idle connection, and processes session tickets and key updates. The connection
    /// is still usable if nothing else has come, and no more than [`IDLE_READS_PER_TURN`] reads
    /// return.
    pub fn is_still_idle(&mut self, scratch: &mut TlsScratch) -> bool {
        for _ in 0..IDLE_READS_PER_TURN {
            if !self.has_news() {
                break;
            }
            let end = self.read(scratch, RECORD);
            if end != StreamEnd::NotYet || !scratch.plaintext_in.bytes().is_empty() {
                return false;
            }
        }
        self.flush();
        !self.channel.has_failed() && !self.has_news()
    }
}

/// Every TLS connection ends with a close_notify alert, if the socket accepts it.
impl Drop for Connection {
    fn drop(&mut self) {
        self.flush();
        if let Some(tls) = &mut self.tls
            && self.channel.output.is_empty()
        {
            let mut out = Scratch::new(0);
            tls.close(&mut out);
            let _ = self.channel.socket.write_vectored(&[IoSlice::new(out.bytes())]);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::sync::Arc;

    use rustls::version::TLS13;

    use super::*;
    use crate::net::loop_state::Buffers;
    use crate::net::loop_state::testing::{FarEnd, Loop, MOMENT, SECOND, readable};
    use crate::net::tls::testing::{connected, connector, receive, sent, server};
    use crate::process::credential::KeyForm;
    use crate::process::sys;

    const HEAD: &str = "POST / HTTP/1.1\r\n";

    fn credential() -> Credential {
        let mut key = &b"sk-0123456789abcdef\n"[..];
        let read = |buffer: &mut [u8]| io::Read::read(&mut key, buffer);
        Credential::read(HEAD.as_bytes(), KeyForm::Word, read).ok().unwrap()
    }

    /// A connection that reads as if bytes had come, and its other end.
    fn connection(tls: Option<Tls>) -> (Connection, FarEnd) {
        let (near, far) = Loop::pair();
        let channel = Channel::new(Socket::new(near, true, true));
        (Connection::new(channel, tls, None, None, Instant::now()), far)
    }

    /// The head of a request without a body.
    fn head() -> GatherList {
        let mut list = GatherList::default();
        list.credential();
        list.text(b"\r\n");
        list
    }

    fn send_head(connection: &mut Connection) -> Sent {
        let scratch = &mut Buffers::default().upstream;
        connection.send_head(&head(), b"", &mut credential(), scratch)
    }

    /// Resets the connection, and waits until its near end knows.
    fn reset(connection: &Connection, far: FarEnd) {
        sys::reset_on_close(far.0.as_fd()).unwrap();
        drop(far);
        readable(connection.socket());
    }

    #[test]
    fn a_head_that_a_connection_does_not_take_may_go_out_again_only_if_it_was_idle() {
        for (was_idle, want) in [(true, Sent::ConnectionStale), (false, Sent::ConnectionFailed)] {
            let (mut connection, far) = connection(None);
            if was_idle {
                connection.mark_idle(Instant::now());
            }
            assert_eq!(connection.was_idle(), was_idle);
            reset(&connection, far);
            assert_eq!(send_head(&mut connection), want);
        }
    }

    #[test]
    fn a_head_without_room_for_all_of_it_never_goes_out_again() {
        let (mut connection, _far) = connection(None);
        connection.mark_idle(Instant::now());
        let filler = vec![b'x'; 1 << 16];
        while connection.channel.socket.write_vectored(&[IoSlice::new(&filler)]).unwrap() > 0 {}
        assert_eq!(send_head(&mut connection), Sent::ConnectionFailed);
    }

    #[test]
    fn a_body_is_dropped_once_a_write_has_failed_and_the_response_is_still_read() {
        let (mut connection, mut far) = connection(None);
        far.send("HTTP/1.1 400 No\r\n");
        let mut list = GatherList::default();
        list.text(b"body");
        let scratch = &mut Buffers::default().upstream;
        assert_eq!(connection.send_body(&list, b"", scratch), Sent::Flushed);
        connection.channel.note_write(Err(ErrorKind::BrokenPipe.into()));
        assert_eq!(connection.send_body(&list, b"", scratch), Sent::Flushed);
        assert_eq!(connection.read(scratch, RECORD), StreamEnd::NotYet);
        assert_eq!(scratch.plaintext_in.bytes(), b"HTTP/1.1 400 No\r\n");
        far.0.set_nonblocking(true).unwrap();
        let mut seen = [0; 16];
        assert_eq!(io::Read::read(&mut far.0, &mut seen).unwrap(), 4, "the first part alone");
    }

    #[test]
    fn an_idle_connection_is_closed_after_pool_idle_and_a_sleep_counts() {
        let now = Instant::now();
        let (mut connection, _far) = connection(None);
        let id = crate::net::slots::Slots::new(1).insert(|_| Some(())).unwrap();
        connection.assign(id);
        assert_eq!((connection.owner, connection.idle_until), (Some(id), None));
        connection.age_by_sleep(SECOND);
        assert_eq!(connection.idle_until, None, "a connection at work does not age");
        assert_eq!(connection.mark_idle(now), now + POOL_IDLE);
        assert_eq!((connection.owner, connection.idle_until), (None, Some(now + POOL_IDLE)));
        connection.age_by_sleep(SECOND);
        assert_eq!(connection.idle_until, Some(now + POOL_IDLE - SECOND));
    }

    #[test]
    fn a_connection_that_was_idle_before_this_pass_is_trusted_and_any_other_looked_at() {
        let now = Instant::now();
        let scratch = &mut Buffers::default().upstream;
        for (idle_since, is_usable) in [(now - MOMENT, true), (now, false)] {
            let (mut connection, mut far) = connection(None);
            connection.mark_idle(idle_since);
            far.send("HTTP/1.1 408 Request Timeout\r\n\r\n");
            readable(connection.socket());
            assert_eq!(connection.is_still_usable(scratch, now), is_usable);
        }
    }

    /// A TLS connection, and the bytes of so many tickets that have come on it.
    fn with_tickets(count: usize) -> (Connection, FarEnd, usize) {
        let (tls, mut server) = connected(&connector(), &Arc::new(server(&[&TLS13], count)));
        let tickets = sent(&mut server);
        let (near, mut far) = Loop::pair();
        far.send(&tickets);
        let (start, mut buffer) = (Instant::now(), vec![0; tickets.len()]);
        while near.peek(&mut buffer).unwrap_or(0) < tickets.len() {
            assert!(start.elapsed() < 20 * SECOND, "not all of them come");
        }
        let channel = Channel::new(Socket::new(near, true, true));
        (Connection::new(channel, Some(tls), None, None, Instant::now()), far, tickets.len())
    }

    #[test]
    fn an_idle_connection_takes_in_the_tickets_of_its_reads_and_is_closed_for_more() {
        let bound = IDLE_READS_PER_TURN * RECORD;
        let each = (with_tickets(40).2 - with_tickets(20).2).div_ceil(20);
        for (count, is_idle) in [(1, true), (bound / each - 20, true), (bound / each + 20, false)] {
            let (mut connection, _far, bytes) = with_tickets(count);
            assert_eq!(bytes < bound, is_idle, "{count} tickets have {bytes} bytes");
            let scratch = &mut Buffers::default().upstream;
            assert_eq!(connection.is_still_idle(scratch), is_idle, "{bytes} bytes");
        }
    }

    #[test]
    fn an_idle_connection_on_which_a_response_or_the_end_comes_is_closed() {
        let scratch = &mut Buffers::default().upstream;
        let (mut silent, far) = connection(None);
        assert!(silent.is_still_idle(scratch));
        drop(far);
        let (mut spoken, mut far) = connection(None);
        far.send("HTTP/1.1 408 Request Timeout\r\n\r\n");
        readable(spoken.socket());
        assert!(!spoken.is_still_idle(scratch));
        let (mut ended, far) = connection(None);
        drop(far);
        readable(ended.socket());
        assert!(!ended.is_still_idle(scratch));
    }

    #[test]
    fn a_connection_with_tls_says_that_it_ends() {
        let (tls, mut server) = connected(&connector(), &Arc::new(server(&[&TLS13], 0)));
        let (mut connection, mut far) = connection(Some(tls));
        assert_eq!(send_head(&mut connection), Sent::Flushed);
        drop(connection);
        let mut bytes = Vec::new();
        io::Read::read_to_end(&mut far.0, &mut bytes).unwrap();
        let plain = receive(&mut server, &bytes);
        assert!(plain.starts_with(HEAD.as_bytes()) && plain.ends_with(b"\r\n"));
        let mut more = [0];
        let end = io::Read::read(&mut server.reader(), &mut more);
        assert!(matches!(end, Ok(0)), "close_notify: {end:?}");
    }
}
