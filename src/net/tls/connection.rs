//! The record layer of one TLS connection.

use std::sync::Arc;

use rustls::client::UnbufferedClientConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus};
use rustls::{CertificateError, Error, HandshakeKind, NamedGroup, ProtocolVersion};

use super::client_auth::ClientAuth;
use crate::http1::limits;
use crate::http1::local_response::UpstreamFault;
use crate::net::buffer::Scratch;
use crate::net::limits::RECORD_OVERHEAD;

/// Whether the upstream may send more data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerState {
    /// The upstream may send more data.
    Open,
    /// The upstream has sent a close_notify alert.
    Closed,
}

/// One TLS connection, without its socket.
pub struct Tls {
    conn: UnbufferedClientConnection,
    client_auth: Arc<ClientAuth>,
    /// The beginning of a record whose end has not come yet.
    partial_record: Vec<u8>,
    /// The handshake is complete.
    ready: bool,
    /// [`Tls::decrypt`] has failed; nothing more can be encrypted.
    failed: bool,
}

impl Tls {
    pub(super) fn new(conn: UnbufferedClientConnection, client_auth: Arc<ClientAuth>) -> Tls {
        Tls { conn, client_auth, partial_record: Vec::new(), ready: false, failed: false }
    }

    /// The handshake is complete: application data can be encrypted.
    pub fn is_ready(&self) -> bool {
        self.ready
    }

    /// No partial record is kept: every byte that came has been decrypted.
    pub fn is_between_records(&self) -> bool {
        self.partial_record.is_empty()
    }

    /// The names of the protocol version and the key exchange group that the handshake has
    /// negotiated. Requires [`Tls::is_ready`].
    pub fn negotiated(&self) -> (&'static str, &'static str) {
        let version = match self.conn.protocol_version() {
            Some(ProtocolVersion::TLSv1_3) => "TLS 1.3",
            _ => "TLS 1.2",
        };
        let group = match self.conn.negotiated_key_exchange_group().map(|group| group.name()) {
            Some(NamedGroup::X25519MLKEM768) => "X25519MLKEM768",
            Some(NamedGroup::X25519) => "X25519",
            Some(NamedGroup::secp256r1) => "P-256",
            Some(NamedGroup::secp384r1) => "P-384",
            _ => "unknown group",
        };
        (version, group)
    }

    /// The handshake resumed an earlier session.
    pub fn is_resumed(&self) -> bool {
        self.conn.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// Begins a read: clears `ciphertext_in` and moves the partial record of the last read into it.
    pub fn resume(&mut self, ciphertext_in: &mut Scratch) {
        ciphertext_in.clear();
        ciphertext_in.push(&self.partial_record);
        self.partial_record = Vec::new();
    }

    /// Decrypts the records in `ciphertext_in`. Adds the plaintext to `plaintext_in`, and bytes
    /// that have to be sent to the upstream to `ciphertext_out`. A partial record at the end is
    /// kept. After an error the connection is unusable; `ciphertext_out` may then contain an alert.
    pub fn decrypt(
        &mut self,
        ciphertext_in: &mut Scratch,
        plaintext_in: &mut Scratch,
        ciphertext_out: &mut Scratch,
    ) -> Result<PeerState, UpstreamFault> {
        let result = self.decrypt_records(ciphertext_in, plaintext_in, ciphertext_out);
        self.failed |= result.is_err();
        result
    }

    fn decrypt_records(
        &mut self,
        ciphertext_in: &mut Scratch,
        plaintext_in: &mut Scratch,
        ciphertext_out: &mut Scratch,
    ) -> Result<PeerState, UpstreamFault> {
        let bytes = ciphertext_in.bytes_mut();
        let mut at = 0;
        let mut closed = false;
        loop {
            let UnbufferedStatus { discard, state } =
                self.conn.process_tls_records(&mut bytes[at..]);
            let mut done = false;
            match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record.map_err(|_| UpstreamFault::Closed)?;
                        plaintext_in.push(record.payload);
                        at += record.discard;
                    }
                }
                Ok(ConnectionState::EncodeTlsData(mut data)) => loop {
                    match data.encode(ciphertext_out.unfilled(0)) {
                        Ok(n) => {
                            ciphertext_out.add(n);
                            break;
                        }
                        Err(EncodeError::InsufficientSize(e)) => {
                            ciphertext_out.unfilled(e.required_size);
                        }
                        Err(EncodeError::AlreadyEncoded) => break,
                    }
                },
                Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
                Ok(ConnectionState::PeerClosed) => closed = true,
                Ok(ConnectionState::WriteTraffic(_)) => {
                    self.ready = true;
                    done = true;
                }
                Ok(ConnectionState::Closed) => {
                    closed = true;
                    done = true;
                }
                // More bytes are needed. (The type has further states, which no client reaches.)
                Ok(_) => done = true,
                Err(error) => {
                    let fault = self.fault_of(&error);
                    self.push_alert(ciphertext_out);
                    return Err(fault);
                }
            }
            at += discard;
            if done {
                break;
            }
        }
        self.partial_record.extend_from_slice(&bytes[at..]);
        Ok(if closed { PeerState::Closed } else { PeerState::Open })
    }

    /// Adds the alert that reports an error to the upstream, if rustls has queued one. Otherwise
    /// rustls must not be called again, because it would continue to read. It would panic if it had
    /// begun to join the parts of a handshake message: the buffer no longer contains them.
    fn push_alert(&mut self, ciphertext_out: &mut Scratch) {
        if self.conn.wants_write()
            && let status = self.conn.process_tls_records(&mut [])
            && let Ok(ConnectionState::EncodeTlsData(mut data)) = status.state
            && let Ok(n) = data.encode(ciphertext_out.unfilled(RECORD_OVERHEAD * 4))
        {
            ciphertext_out.add(n);
        }
    }

    /// Encrypts `plaintext` into records and adds them to `ciphertext_out`. Requires
    /// [`Tls::is_ready`]. Fails with [`UpstreamFault::Closed`] if the connection can encrypt
    /// nothing more.
    pub fn encrypt(
        &mut self,
        plaintext: &[u8],
        ciphertext_out: &mut Scratch,
    ) -> Result<(), UpstreamFault> {
        if self.failed {
            return Err(UpstreamFault::Closed);
        }
        let mut needed = plaintext.len() + (plaintext.len() / limits::RECORD + 1) * RECORD_OVERHEAD;
        // rustls expects every byte that it has not consumed, so it gets the partial record again.
        let status = self.conn.process_tls_records(&mut self.partial_record);
        let Ok(ConnectionState::WriteTraffic(mut traffic)) = status.state else {
            return Err(UpstreamFault::Closed);
        };
        loop {
            match traffic.encrypt(plaintext, ciphertext_out.unfilled(needed)) {
                Ok(n) => {
                    ciphertext_out.add(n);
                    return Ok(());
                }
                Err(EncryptError::InsufficientSize(e)) => needed = e.required_size,
                Err(EncryptError::EncryptExhausted) => return Err(UpstreamFault::Closed),
            }
        }
    }

    /// Adds a close_notify alert to `ciphertext_out`, if the connection can still send one.
    pub fn close(&mut self, ciphertext_out: &mut Scratch) {
        if !self.failed
            && let Ok(ConnectionState::WriteTraffic(mut traffic)) =
                self.conn.process_tls_records(&mut self.partial_record).state
            && let Ok(n) = traffic.queue_close_notify(ciphertext_out.unfilled(RECORD_OVERHEAD * 4))
        {
            ciphertext_out.add(n);
        }
    }

    fn fault_of(&self, error: &Error) -> UpstreamFault {
        use CertificateError::{
            Expired, ExpiredContext, NotValidForName, NotValidForNameContext, NotValidYet,
            NotValidYetContext, UnknownIssuer,
        };
        match error {
            Error::InvalidCertificate(reason) => match reason {
                Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. } => {
                    UpstreamFault::TlsExpired
                }
                NotValidForName | NotValidForNameContext { .. } => UpstreamFault::TlsWrongName,
                UnknownIssuer => UpstreamFault::TlsUnknownIssuer,
                _ => UpstreamFault::TlsBadCertificate,
            },
            Error::AlertReceived(alert) if self.client_auth.is_wanted_by(*alert) => {
                UpstreamFault::TlsClientCertificate
            }
            _ => UpstreamFault::TlsFailed,
        }
    }
}

#[cfg(test)]
mod tests {
    use rustls::version::{TLS12, TLS13};

    use super::*;
    use crate::http1::limits::RECORD;
    use crate::net::limits::{FULL_RECORD, LONGEST_RECORD};
    use crate::net::tls::testing::{connected, connector, decrypt, receive, sent, server};

    const BOTH: [&rustls::SupportedProtocolVersion; 2] = [&TLS12, &TLS13];

    /// Encrypts so many bytes on a new connection.
    fn encrypted(version: &'static rustls::SupportedProtocolVersion, len: usize) -> Vec<u8> {
        let config = Arc::new(server(&[version], 0));
        let (mut tls, mut server) = connected(&connector(), &config);
        let mut out = Scratch::new(0);
        tls.encrypt(&vec![b'x'; len], &mut out).unwrap();
        assert_eq!(receive(&mut server, out.bytes()), vec![b'x'; len]);
        out.bytes().to_vec()
    }

    #[test]
    fn a_record_is_longer_than_its_plaintext_by_less_than_the_room_that_is_kept() {
        for version in BOTH {
            for len in [0, 1, RECORD - 1, RECORD, RECORD + 1, 4 * RECORD] {
                let records = len.div_ceil(RECORD);
                let longer = encrypted(version, len).len() - len;
                assert!(longer <= records * RECORD_OVERHEAD, "{len}: {longer}");
            }
        }
    }

    #[test]
    fn a_full_record_holds_record_bytes_and_one_more_makes_two() {
        assert_eq!(encrypted(&TLS13, RECORD).len(), FULL_RECORD);
        assert_eq!(encrypted(&TLS13, RECORD + 1).len(), FULL_RECORD + 5 + 1 + 1 + 16);
    }

    #[test]
    fn no_record_is_longer_than_the_longest() {
        // rustls refuses the longest one of RFC 5246 too.
        for (len, want) in [(LONGEST_RECORD - 1, true), (LONGEST_RECORD + 1, false)] {
            let config = Arc::new(server(&[&TLS13], 0));
            let (mut tls, _server) = connected(&connector(), &config);
            let len = u16::try_from(len - 5).unwrap().to_be_bytes();
            let mut wire = Scratch::new(0);
            wire.push(&[0x17, 3, 3, len[0], len[1]]);
            let result = tls.decrypt(&mut wire, &mut Scratch::new(0), &mut Scratch::new(0));
            assert_eq!(result.is_ok(), want);
        }
    }

    #[test]
    fn a_partial_record_is_kept_until_its_end_comes() {
        for version in BOTH {
            let config = Arc::new(server(&[version], 0));
            let (mut tls, mut server) = connected(&connector(), &config);
            std::io::Write::write_all(&mut server.writer(), b"fine").unwrap();
            let record = sent(&mut server);
            let (first, rest) = record.split_at(record.len() / 2);
            assert!(tls.is_between_records());
            assert_eq!(decrypt(&mut tls, first).0, b"");
            assert!(!tls.is_between_records());
            assert_eq!(decrypt(&mut tls, rest).0, b"fine");
            assert!(tls.is_between_records());
        }
    }

    #[test]
    fn nothing_is_encrypted_before_the_handshake_or_after_a_failure() {
        let mut tls = connector().connection().unwrap();
        let mut out = Scratch::new(0);
        assert_eq!(tls.encrypt(b"early", &mut out), Err(UpstreamFault::Closed));
        let config = Arc::new(server(&[&TLS13], 0));
        let (mut tls, _server) = connected(&connector(), &config);
        assert!(tls.encrypt(b"in time", &mut out).is_ok());
        let mut wire = Scratch::new(0);
        wire.push(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        let mut alert = Scratch::new(0);
        let result = tls.decrypt(&mut wire, &mut Scratch::new(0), &mut alert);
        assert_eq!(result, Err(UpstreamFault::TlsFailed));
        assert!(!alert.bytes().is_empty(), "the upstream is told");
        assert_eq!(tls.encrypt(b"late", &mut out), Err(UpstreamFault::Closed));
    }
}
