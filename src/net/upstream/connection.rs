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
    /// The session that it works for; `None` while it is idle.
    pub(super) owner: Option<SlotId>,
    /// The user whose exchanges it has carried; `None` if it has carried none.
    pub used_by: Option<UserIndex>,
    /// When it became idle for the last time; `None` if it never was.
    idle_since: Option<Instant>,
    /// While it is idle: when it is closed.
    pub(super) idle_until: Option<Instant>,
    /// What it is connected to: the upstream, or the egress proxy.
    pub address: Option<SocketAddr>,
    /// When a session asked for it; for a preconnect, when it was begun.
    pub requested_at: Instant,
}

/// What has become of bytes that were to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// The socket has taken all of them.
    Flushed,
    /// The rest waits for room in the socket.
    Queued,
    /// None was taken, by a connection that has been idle: the upstream had closed it. The request
    /// may go out on another connection.
    ConnectionStale,
    /// The connection has failed. The upstream may have read a part.
    ConnectionFailed,
}

/// Whether and how the upstream has ended its side of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamEnd {
    /// It has not; more may come.
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

    /// All bytes that were handed over have gone to the socket.
    pub fn is_drained(&self) -> bool {
        self.channel.output.is_empty()
    }

    /// Bytes that were handed over and that the socket had no room for.
    pub(super) fn unsent(&self) -> usize {
        self.channel.output.bytes().len()
    }

    /// Everything that came has been read to its end, so nothing of it can be taken for a part of a
    /// later response.
    pub fn is_quiet(&self) -> bool {
        !self.has_news() && self.is_between_records()
    }

    /// No part of a further record has come.
    pub fn is_between_records(&self) -> bool {
        self.tls.as_ref().is_none_or(Tls::is_between_records)
    }

    /// Something has come that has not been read.
    pub fn has_news(&self) -> bool {
        self.channel.socket.is_readable()
    }

    /// Notes what an event says.
    pub fn note(&mut self, event: &Event) {
        self.channel.socket.note(event);
    }

    /// The socket, if an end by reset would tell the upstream something.
    pub(super) fn resettable(&self) -> Option<BorrowedFd<'_>> {
        let socket = &self.channel.socket;
        (!socket.is_read_closed()).then(|| socket.fd())
    }

    /// Sends bytes that wait. If that fails, reading tells why.
    pub fn flush(&mut self) {
        self.channel.flush();
    }

    /// Sends the request head (the credential block first) and the body bytes behind it. The last
    /// bytes of the handshake, if they wait, go out in front. Requires that nothing else waits.
    pub fn send_head(
        &mut self,
        list: &GatherList,
        input: &[u8],
        credential: &mut Credential,
        scratch: &mut TlsScratch,
    ) -> Sent {
        match self.write_head(list, input, credential, scratch) {
            Ok(()) => self.output_state(),
            // Of a head that was written in part, the upstream has read bytes.
            Err(error) if self.was_idle() && error.kind() != ErrorKind::WriteZero => {
                Sent::ConnectionStale
            }
            Err(_) => Sent::ConnectionFailed,
        }
    }

    /// An error means that nothing was sent, except `WriteZero`: then a part of the head was.
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
                    // The upstream has bytes of the request: from here on only its response counts.
                    let sent = channel.send(slice);
                    channel.note_write(sent);
                }
                Ok(())
            }
        }
    }

    /// Sends a part of the body. Requires that nothing waits. After a failed write the bytes are
    /// dropped: the response tells whether the upstream needed them.
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
                // A message of the handshake may take several records: always room for one more.
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

    /// Works for the session `owner` from now on.
    pub fn wake(&mut self, owner: SlotId) {
        self.owner = Some(owner);
        self.idle_until = None;
    }

    /// Is idle from now on. Returns when it is to be closed.
    pub fn rest(&mut self, now: Instant) -> Instant {
        let until = now + POOL_IDLE;
        self.owner = None;
        self.idle_since = Some(now);
        self.idle_until = Some(until);
        until
    }

    /// The machine has slept: that time counts as idle time.
    pub(super) fn has_slept(&mut self, slept: Duration) {
        if let Some(until) = &mut self.idle_until {
            *until = until.checked_sub(slept).unwrap_or(self.requested_at);
        }
    }

    /// It can take a request. A connection that became idle before `now`, when all events were
    /// read, can, because no event told of anything. Any other is looked at once more.
    pub fn is_still_usable(&mut self, scratch: &mut TlsScratch, now: Instant) -> bool {
        self.idle_since.is_none_or(|since| since < now)
            || self.channel.socket.is_silent()
            || self.is_still_idle(scratch)
    }

    /// Reads what has come on an idle connection: session tickets and key updates are taken in. The
    /// connection is still good if nothing else has come, and not more of them than it reads in one
    /// turn.
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
