//! TLS towards the upstream. The only file that names rustls.
//!
//! The unbuffered API: records are decrypted in the loop's scratch space and sealed into it, so a
//! connection that waits owns no buffer, and nothing written before the handshake has ended is
//! ever queued in the clear.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::UnbufferedClientConnection;
use rustls::crypto::{CryptoProvider, KeyProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::SigningKey;
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus};
use rustls::{CertificateError, ClientConfig, Error, RootCertStore};

use super::buffer::Scratch;
use crate::http1::limits;
use crate::http1::response::UpstreamFault;
use crate::http1::url::Host;

/// What speaks TLS here, for `--version`.
pub const PROVIDER: &str = "rustls 0.23 with ring";

/// Bytes that a record is larger than its plaintext, at most (RFC 5246 §6.2.3, RFC 8446 §5.2).
const OVERHEAD: usize = 64;
/// Bytes of one record on the wire, at most.
pub const WIRE_RECORD: usize = limits::RECORD + 2048 + 5;

/// The roots that upstream certificates are checked against.
pub struct Trust {
    roots: RootCertStore,
}

/// The file of further roots cannot be used.
#[derive(Debug)]
pub enum TrustError {
    /// It cannot be read or is not PEM.
    Unreadable(PathBuf),
    /// It holds no certificate.
    Empty(PathBuf),
    /// One of its certificates, counted from 1, cannot be a root.
    Bad(PathBuf, usize),
}

impl fmt::Display for TrustError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TrustError::Unreadable(path) => {
                write!(f, "cannot read certificates in PEM form from {}", path.display())
            }
            TrustError::Empty(path) => write!(f, "no certificate in {}", path.display()),
            TrustError::Bad(path, n) => {
                write!(f, "certificate {n} in {} cannot be used as a root", path.display())
            }
        }
    }
}

impl Trust {
    /// Mozilla's roots, and those in `file`.
    pub fn load(file: Option<&Path>) -> Result<Trust, TrustError> {
        let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        if let Some(path) = file {
            let unreadable = |_| TrustError::Unreadable(path.to_owned());
            let mut count = 0;
            for certificate in CertificateDer::pem_file_iter(path).map_err(unreadable)? {
                count += 1;
                let bad = |_| TrustError::Bad(path.to_owned(), count);
                roots.add(certificate.map_err(unreadable)?).map_err(bad)?;
            }
            if count == 0 {
                return Err(TrustError::Empty(path.to_owned()));
            }
        }
        Ok(Trust { roots })
    }
}

/// *ring*, with AES-128 before AES-256: as safe here, and a fifth faster. Upstreams that have a
/// preference of their own follow theirs.
fn provider() -> CryptoProvider {
    use ring::cipher_suite as suite;
    CryptoProvider {
        cipher_suites: vec![
            suite::TLS13_AES_128_GCM_SHA256,
            suite::TLS13_AES_256_GCM_SHA384,
            suite::TLS13_CHACHA20_POLY1305_SHA256,
            suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
            suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
            suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
            suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
            suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
            suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
        ],
        key_provider: &NoKeys,
        ..ring::default_provider()
    }
}

/// There are no client certificates: the code that signs with them need not be in the program.
#[derive(Debug)]
struct NoKeys;

impl KeyProvider for NoKeys {
    fn load_private_key(&self, _: PrivateKeyDer<'static>) -> Result<Arc<dyn SigningKey>, Error> {
        Err(Error::General("no client certificates".into()))
    }
}

/// Opens TLS connections to the one upstream.
pub struct Connector {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl Connector {
    /// TLS 1.2 and 1.3, HTTP/1.1 only, sessions resumed, no early data, no key log.
    pub fn new(trust: Trust, host: &Host) -> Result<Connector, UpstreamFault> {
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider()))
            .with_safe_default_protocol_versions()
            .map_err(|_| UpstreamFault::TlsFailed)?
            .with_root_certificates(trust.roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let name = match host {
            Host::Name(name) => {
                ServerName::try_from(name.clone()).map_err(|_| UpstreamFault::TlsWrongName)?
            }
            Host::V4(octets) => ServerName::from(IpAddr::from(*octets)),
            Host::V6(octets) => ServerName::from(IpAddr::from(*octets)),
        };
        Ok(Connector { config: Arc::new(config), name })
    }

    /// A connection that has said nothing yet.
    pub fn open(&self) -> Result<Tls, UpstreamFault> {
        let conn = UnbufferedClientConnection::new(self.config.clone(), self.name.clone())
            .map_err(|_| UpstreamFault::TlsFailed)?;
        Ok(Tls { conn, rest: Vec::new(), ready: false })
    }
}

/// One TLS connection, without its socket.
pub struct Tls {
    conn: UnbufferedClientConnection,
    /// Ciphertext of a record that is not whole yet: less than one record.
    rest: Vec<u8>,
    ready: bool,
}

impl Tls {
    /// The handshake has ended: application data can be sealed.
    pub fn is_ready(&self) -> bool {
        self.ready
    }

    /// Begins to fill `wire` with what came earlier and is not whole yet.
    pub fn resume(&mut self, wire: &mut Scratch) {
        wire.clear();
        wire.push(&self.rest);
        self.rest = Vec::new();
    }

    /// Opens the records in `wire`: plaintext is added to `plain`, what must be sent to `out`.
    /// True when the peer has sent its close_notify. An error may leave an alert in `out`.
    pub fn open(
        &mut self,
        wire: &mut Scratch,
        plain: &mut Scratch,
        out: &mut Scratch,
    ) -> Result<bool, UpstreamFault> {
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
                    let fault = fault_of(&error);
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
        Ok(closed)
    }

    /// After an error: the alert that tells the peer.
    fn alert(&mut self, out: &mut Scratch) {
        let status = self.conn.process_tls_records(&mut []);
        if let Ok(ConnectionState::EncodeTlsData(mut data)) = status.state
            && let Ok(n) = data.encode(out.room(OVERHEAD * 4))
        {
            out.add(n);
        }
    }

    /// Seals `plain` into records that are added to `out`. Only while [`Tls::is_ready`].
    pub fn seal(&mut self, plain: &[u8], out: &mut Scratch) -> Result<(), UpstreamFault> {
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
        if let Ok(ConnectionState::WriteTraffic(mut traffic)) =
            self.conn.process_tls_records(&mut self.rest).state
            && let Ok(n) = traffic.queue_close_notify(out.room(OVERHEAD * 4))
        {
            out.add(n);
        }
    }
}

fn fault_of(error: &Error) -> UpstreamFault {
    use CertificateError::{
        Expired, ExpiredContext, NotValidForName, NotValidForNameContext, NotValidYet,
        NotValidYetContext, UnknownIssuer,
    };
    match error {
        Error::InvalidCertificate(
            Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. },
        ) => UpstreamFault::TlsExpired,
        Error::InvalidCertificate(NotValidForName | NotValidForNameContext { .. }) => {
            UpstreamFault::TlsWrongName
        }
        Error::InvalidCertificate(UnknownIssuer) => UpstreamFault::TlsUnknownIssuer,
        _ => UpstreamFault::TlsFailed,
    }
}
