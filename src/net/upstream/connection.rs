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
    /// The rest waits for room in the socket.
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
    pub fn wake(&mut self, owner: SlotId) {
        self.owner = Some(owner);
        self.idle_until = None;
    }

    /// Marks the connection as idle. Returns when it is closed.
    pub fn rest(&mut self, now: Instant) -> Instant {
        let until = now + POOL_IDLE;
        self.owner = None;
        self.idle_since = Some(now);
        self.idle_until = Some(until);
        until
    }

    /// Counts the time for which the machine has slept as idle time.
    pub(super) fn has_slept(&mut self, slept: Duration) {
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

/// Every connection ends with a close_notify alert, if it has TLS and the socket has room for one.
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
