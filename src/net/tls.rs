//! TLS towards the upstream. Only this folder names rustls.
//!
//! The unbuffered API: records are decrypted in the loop's scratch space and sealed into it, so a
//! connection that waits owns no buffer, and nothing written before the handshake has ended is
//! ever queued in the clear.

mod client_auth;
mod key_exchange;
mod provider;
mod sessions;
mod verifier;

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use rustls::client::{Resumption, UnbufferedClientConnection};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus};
use rustls::{
    CertificateError, ClientConfig, Error, HandshakeKind, NamedGroup, ProtocolVersion,
    RootCertStore,
};

use super::buffer::Scratch;
use crate::http1::limits;
use crate::http1::local_response::UpstreamFault;
use crate::http1::url::Host;
use crate::x509::pem::{self, PemError, PemFault};

use client_auth::ClientAuth;
use provider::provider;
use sessions::Sessions;
pub use verifier::{Recording, Verifier};

/// What speaks TLS here, for `--version`.
pub const PROVIDER: &str = "rustls 0.23 with ring";

/// Bytes that a record is larger than its plaintext, at most (RFC 5246 §6.2.3, RFC 8446 §5.2).
const OVERHEAD: usize = 64;
/// Bytes of a full record on the wire as TLS 1.3 has it: header, plaintext, type, tag (RFC 8446
/// §5.2).
pub const FULL_RECORD: usize = 5 + limits::RECORD + 1 + 16;
/// Bytes of one record on the wire, at most.
pub const WIRE_RECORD: usize = limits::RECORD + 2048 + 5;

/// Bytes of a file of roots, at most; a system's bundle has 0.2 MiB.
const ROOTS_FILE: u64 = 16 << 20;

/// The roots that upstream certificates are checked against.
pub struct Trust {
    roots: RootCertStore,
    /// Those of a file that are for the upstream's own name: one may be its very certificate.
    given: Vec<CertificateDer<'static>>,
    /// None where no certificate can be for the upstream's name.
    name: Option<ServerName<'static>>,
}

/// The file of further roots cannot be used.
#[derive(Debug)]
pub enum TrustError {
    /// It cannot be read.
    Unreadable(io::Error),
    /// It is not sound PEM, or holds nothing that can be a root.
    Bad(PemError),
    /// It holds no certificate.
    Empty,
    /// It is longer than [`ROOTS_FILE`].
    TooLong,
}

impl fmt::Display for TrustError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TrustError::Unreadable(error) => write!(f, "cannot be read: {error}"),
            TrustError::Bad(error) => error.fmt(f),
            TrustError::Empty => f.write_str("holds no certificate in PEM form"),
            TrustError::TooLong => f.write_str("is longer than 16 MiB, too long for certificates"),
        }
    }
}

impl Trust {
    /// Mozilla's roots, for an upstream of this name or address.
    pub fn built_in(host: &Host) -> Trust {
        let name = match host {
            Host::Name(name) => ServerName::try_from(name.clone()).ok(),
            Host::V4(octets) => Some(IpAddr::from(*octets).into()),
            Host::V6(octets) => Some(IpAddr::from(*octets).into()),
        };
        let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        Trust { roots, given: Vec::new(), name }
    }

    /// Adds those in a PEM file. In a system's bundle there may be some that cannot be roots here:
    /// they are left out, as long as one is of use. Returns how many they are.
    pub fn add(&mut self, file: &Path) -> Result<usize, TrustError> {
        let mut text = Vec::new();
        File::open(file)
            .and_then(|file| file.take(ROOTS_FILE + 1).read_to_end(&mut text))
            .map_err(TrustError::Unreadable)?;
        if text.len() as u64 > ROOTS_FILE {
            return Err(TrustError::TooLong);
        }
        let (mut usable, mut skipped_roots, mut last) = (0, 0, None);
        pem::certificates(&text, |line, section| {
            let certificate = CertificateDer::from_pem_slice(section)
                .map_err(|_| PemError { line, fault: PemFault::NotBase64 })?;
            if self.name.as_ref().is_some_and(|name| verifier::is_for(&certificate, name)) {
                self.given.push(certificate.clone());
            }
            match self.roots.add(certificate) {
                Ok(()) => {
                    usable += 1;
                    // Most of a system's bundle is built in already: no memory for it twice.
                    if let Some((new, known)) = self.roots.roots.split_last()
                        && known.contains(new)
                    {
                        self.roots.roots.pop();
                    }
                }
                Err(_) => skipped_roots += 1,
            }
            last = Some(line);
            Ok(())
        })
        .map_err(TrustError::Bad)?;
        match last {
            None => Err(TrustError::Empty),
            Some(line) if usable == 0 => {
                Err(TrustError::Bad(PemError { line, fault: PemFault::NotRoot }))
            }
            Some(_) => Ok(skipped_roots),
        }
    }
}

/// Opens TLS connections to the one upstream.
pub struct Connector {
    config: Arc<ClientConfig>,
    client_auth: Arc<ClientAuth>,
    name: ServerName<'static>,
}

impl Connector {
    /// TLS 1.2 and 1.3, HTTP/1.1 only, sessions resumed, no early data, no key log. The verifier is
    /// handed back for what it records.
    pub fn new(
        trust: Trust,
        recording: Recording,
    ) -> Result<(Connector, Arc<Verifier>), UpstreamFault> {
        let name = trust.name.ok_or(UpstreamFault::TlsWrongName)?;
        let verifier = Arc::new(Verifier::new(trust.roots, trust.given, recording));
        let client_auth = Arc::new(ClientAuth::default());
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider()))
            .with_safe_default_protocol_versions()
            .map_err(|_| UpstreamFault::TlsFailed)?
            .dangerous()
            .with_custom_certificate_verifier(verifier.clone())
            .with_client_cert_resolver(client_auth.clone());
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.resumption = Resumption::store(Arc::new(Sessions::default()));
        Ok((Connector { config: Arc::new(config), client_auth, name }, verifier))
    }

    /// A connection that has said nothing yet.
    pub fn open(&self) -> Result<Tls, UpstreamFault> {
        let conn = UnbufferedClientConnection::new(self.config.clone(), self.name.clone())
            .map_err(|_| UpstreamFault::TlsFailed)?;
        let client_auth = self.client_auth.clone();
        Ok(Tls { conn, client_auth, rest: Vec::new(), ready: false, failed: false })
    }

    /// The upstream has asked for a client certificate.
    pub fn was_asked_for_certificate(&self) -> bool {
        self.client_auth.was_asked()
    }
}

/// Whether the peer may send more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerState {
    /// It may.
    Open,
    /// It has sent its close_notify.
    Closed,
}

/// One TLS connection, without its socket.
pub struct Tls {
    conn: UnbufferedClientConnection,
    client_auth: Arc<ClientAuth>,
    /// Ciphertext of a record that is not whole yet: less than one record.
    rest: Vec<u8>,
    ready: bool,
    failed: bool,
}

impl Tls {
    /// The handshake has ended: application data can be sealed.
    pub fn is_ready(&self) -> bool {
        self.ready
    }

    /// No part of a further record has come.
    pub fn is_between_records(&self) -> bool {
        self.rest.is_empty()
    }

    /// What the handshake has settled: the version, and the group of the key exchange.
    pub fn settled(&self) -> (&'static str, &'static str) {
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

    /// The handshake has resumed an earlier session.
    pub fn is_resumed(&self) -> bool {
        self.conn.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// Begins to fill `wire` with what came earlier and is not whole yet.
    pub fn resume(&mut self, wire: &mut Scratch) {
        wire.clear();
        wire.push(&self.rest);
        self.rest = Vec::new();
    }

    /// Opens the records in `wire`: plaintext is added to `plain`, what must be sent to `out`.
    /// An error may leave an alert in `out`; it is for good.
    pub fn open(
        &mut self,
        wire: &mut Scratch,
        plain: &mut Scratch,
        out: &mut Scratch,
    ) -> Result<PeerState, UpstreamFault> {
        let result = self.open_records(wire, plain, out);
        self.failed |= result.is_err();
        result
    }

    fn open_records(
        &mut self,
        wire: &mut Scratch,
        plain: &mut Scratch,
        out: &mut Scratch,
    ) -> Result<PeerState, UpstreamFault> {
        let bytes = wire.bytes_mut();
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
                        plain.push(record.payload);
                        at += record.discard;
                    }
                }
                Ok(ConnectionState::EncodeTlsData(mut data)) => loop {
                    match data.encode(out.room(0)) {
                        Ok(n) => {
                            out.add(n);
                            break;
                        }
                        Err(EncodeError::InsufficientSize(e)) => {
                            out.room(e.required_size);
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
                Ok(_) => done = true,
                Err(error) => {
                    let fault = self.fault_of(&error);
                    self.alert(out);
                    return Err(fault);
                }
            }
            at += discard;
            if done {
                break;
            }
        }
        self.rest.extend_from_slice(&bytes[at..]);
        Ok(if closed { PeerState::Closed } else { PeerState::Open })
    }

    /// After an error: the alert that tells the peer, if there is one. Only then is rustls asked
    /// again: it would go on reading otherwise, and where a message has come in part it panics,
    /// because the bytes before that place are no longer there.
    fn alert(&mut self, out: &mut Scratch) {
        if self.conn.wants_write()
            && let status = self.conn.process_tls_records(&mut [])
            && let Ok(ConnectionState::EncodeTlsData(mut data)) = status.state
            && let Ok(n) = data.encode(out.room(OVERHEAD * 4))
        {
            out.add(n);
        }
    }

    /// Seals `plain` into records that are added to `out`. Only while [`Tls::is_ready`].
    pub fn seal(&mut self, plain: &[u8], out: &mut Scratch) -> Result<(), UpstreamFault> {
        if self.failed {
            return Err(UpstreamFault::Closed);
        }
        let mut needed = plain.len() + (plain.len() / limits::RECORD + 1) * OVERHEAD;
        // What has come and is not whole belongs before anything new, hence not an empty slice.
        let status = self.conn.process_tls_records(&mut self.rest);
        let Ok(ConnectionState::WriteTraffic(mut traffic)) = status.state else {
            return Err(UpstreamFault::Closed);
        };
        loop {
            match traffic.encrypt(plain, out.room(needed)) {
                Ok(n) => {
                    out.add(n);
                    return Ok(());
                }
                Err(EncryptError::InsufficientSize(e)) => needed = e.required_size,
                Err(EncryptError::EncryptExhausted) => return Err(UpstreamFault::Closed),
            }
        }
    }

    /// Adds a close_notify to `out`.
    pub fn close(&mut self, out: &mut Scratch) {
        if !self.failed
            && let Ok(ConnectionState::WriteTraffic(mut traffic)) =
                self.conn.process_tls_records(&mut self.rest).state
            && let Ok(n) = traffic.queue_close_notify(out.room(OVERHEAD * 4))
        {
            out.add(n);
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
