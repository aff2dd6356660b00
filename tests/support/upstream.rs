//! Upstreams: real servers with TLS or in plaintext. A closure handles each connection.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ClientCertVerifierBuilder, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ServerConfig, ServerConnection, SupportedProtocolVersion};

use super::{DEADLINE, client, reset_on_close};

/// A certificate authority that is made once for all tests of one run, and another one that the
/// relay does not trust.
pub struct Certs {
    issuer: CertifiedIssuer<'static, KeyPair>,
    other: CertifiedIssuer<'static, KeyPair>,
    ca_file: PathBuf,
}

/// An address for an upstream at the other end of a link (RFC 5737).
pub const FAR: &str = "192.0.2.2";

/// Which certificate a server shows.
#[derive(Clone, Copy, PartialEq)]
pub enum Kind {
    Good,
    Expired,
    WrongName,
    UnknownIssuer,
    SelfSigned,
}

/// The certificate authorities of this run.
pub fn certs() -> &'static Certs {
    static CERTS: OnceLock<Certs> = OnceLock::new();
    CERTS.get_or_init(|| {
        let issuer = |name: &str| {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(rcgen::DnType::CommonName, name);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
        };
        let issuer_good = issuer("test CA");
        // The file is in memory and has no name, so it vanishes with its last descriptor.
        let file = memory_file(issuer_good.pem().as_bytes());
        Certs { issuer: issuer_good, other: issuer("another CA"), ca_file: file }
    })
}

/// Makes a file in memory. Its path is valid as long as this process lives.
pub fn memory_file(bytes: &[u8]) -> PathBuf {
    // SAFETY: the name is a valid C string; the descriptor is new.
    let fd = unsafe { libc::memfd_create(c"test".as_ptr(), libc::MFD_CLOEXEC) };
    let path = PathBuf::from(format!("/proc/{}/fd/{fd}", std::process::id()));
    std::fs::write(&path, bytes).unwrap();
    // The kernel makes such files with mode 0777.
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path
}

impl Certs {
    pub fn ca_file(&self) -> String {
        self.ca_file.to_str().unwrap().to_owned()
    }

    /// The certificate of the CA, in PEM form.
    pub fn ca_pem(&self) -> String {
        self.issuer.pem()
    }

    /// The certificates of `count` other CAs, in PEM form.
    pub fn other_roots(&self, count: usize) -> String {
        let key = KeyPair::generate().unwrap();
        let root = |n: usize| {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(rcgen::DnType::CommonName, format!("root {n}"));
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.self_signed(&key).unwrap().pem()
        };
        (0..count).map(root).collect()
    }

    fn chain(&self, kind: Kind) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let names = match kind {
            Kind::WrongName => vec!["other.example".to_owned()],
            _ => ["localhost", "127.0.0.1", "::1", "0.0.0.0", "upstream.test", FAR]
                .map(str::to_owned)
                .to_vec(),
        };
        let mut params = CertificateParams::new(names).unwrap();
        if kind == Kind::Expired {
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(2020, 2, 1);
        }
        let key = KeyPair::generate().unwrap();
        if kind == Kind::SelfSigned {
            let leaf = params.self_signed(&key).unwrap();
            return (
                vec![leaf.der().clone()],
                PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
            );
        }
        let issuer = if kind == Kind::UnknownIssuer { &self.other } else { &self.issuer };
        let leaf = params.signed_by(&key, issuer).unwrap();
        (vec![leaf.der().clone()], PrivatePkcs8KeyDer::from(key.serialize_der()).into())
    }

    /// The configuration of a server with a certificate of this kind and these TLS versions.
    pub fn config(
        &self,
        kind: Kind,
        versions: &[&'static SupportedProtocolVersion],
    ) -> ServerConfig {
        let (chain, key) = self.chain(kind);
        server_config(chain, &key, versions, None)
    }

    /// A verifier for a server that demands a certificate of the CA of its clients.
    pub fn client_verifier(&self) -> Arc<dyn ClientCertVerifier> {
        self.client_verifier_builder().build().unwrap()
    }

    /// The same for a server that asks for a certificate and serves clients without one.
    pub fn lenient_client_verifier(&self) -> Arc<dyn ClientCertVerifier> {
        self.client_verifier_builder().allow_unauthenticated().build().unwrap()
    }

    fn client_verifier_builder(&self) -> ClientCertVerifierBuilder {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
    }

    /// A certificate by the CA for this key and these properties.
    pub fn sign(&self, params: CertificateParams, key: &KeyPair) -> CertificateDer<'static> {
        params.signed_by(key, &self.issuer).unwrap().der().clone()
    }
}

/// The configuration of a server that shows this chain, even if the chain is invalid.
pub fn server_config(
    chain: Vec<CertificateDer<'static>>,
    key: &PrivateKeyDer<'static>,
    versions: &[&'static SupportedProtocolVersion],
    client_verifier: Option<Arc<dyn ClientCertVerifier>>,
) -> ServerConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = rustls::crypto::ring::sign::any_supported_type(key).unwrap();
    let resolver = SingleCertAndKey::from(CertifiedKey::new(chain, key));
    let builder =
        ServerConfig::builder_with_provider(provider).with_protocol_versions(versions).unwrap();
    let builder = match client_verifier {
        None => builder.with_no_client_auth(),
        Some(verifier) => builder.with_client_cert_verifier(verifier),
    };
    let mut config = builder.with_cert_resolver(Arc::new(resolver));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.max_early_data_size = 16_384;
    config
}

/// A request as the upstream saw it.
#[derive(Clone, Debug)]
pub struct Request {
    pub head: String,
    pub body: Vec<u8>,
}

impl Request {
    pub fn fields(&self, name: &str) -> Vec<&str> {
        client::fields(&self.head, name)
    }

    /// The head without the lines that the relay adds, each of which has to be there. The field for
    /// the key occurs once and contains the key. Accept-Encoding precedes it. Via follows all
    /// fields except the one for the framing.
    pub fn head_without_key(&self, key: &str) -> String {
        let line = format!("Authorization: Bearer {key}\r\n");
        assert!(self.head.matches(&line).count() == 1, "exactly one Authorization, ours");
        assert!(self.fields("authorization").len() == 1, "and no other");
        let head = self.head.replacen(&format!("Accept-Encoding: identity\r\n{line}"), "", 1);
        assert!(head.len() < self.head.len(), "Accept-Encoding precedes the key");
        let mut lines: Vec<&str> = head.split_inclusive("\r\n").collect();
        let via = lines.remove(lines.len() - 3);
        assert!(["Via: 1.1 relay\r\n", "Via: 1.0 relay\r\n"].contains(&via), "{via}");
        lines.concat()
    }
}

/// A server that accepts connections until it is dropped.
pub struct Upstream {
    address: SocketAddr,
    pub port: u16,
    tls: bool,
    pub connections: Arc<AtomicUsize>,
    requests: Arc<Mutex<Vec<Request>>>,
    ended: Arc<AtomicBool>,
}

enum Wire {
    Plain(TcpStream),
    Tls(Box<ServerConnection>, TcpStream),
}

/// A way to end a connection, with its name.
pub type Way = (&'static str, fn(&mut Peer));
pub const CLOSE: Way = ("close_notify and FIN", Peer::close);
pub const CUT: Way = ("FIN alone", Peer::cut);
pub const RESET: Way = ("RST", Peer::reset);

/// One connection, seen from the upstream.
pub struct Peer {
    wire: Wire,
    buffer: Vec<u8>,
    requests: Arc<Mutex<Vec<Request>>>,
    /// The number of the connection, counted from 1.
    pub number: usize,
    pub resumed: bool,
}

impl Upstream {
    /// An upstream with TLS 1.3 and 1.2 and a certificate of the CA.
    pub fn tls(script: impl Fn(&mut Peer) + Send + Sync + 'static) -> Upstream {
        let config = certs().config(Kind::Good, rustls::ALL_VERSIONS);
        Upstream::new(Some(config), script)
    }

    /// An upstream in plain HTTP.
    pub fn plain(script: impl Fn(&mut Peer) + Send + Sync + 'static) -> Upstream {
        Upstream::new(None, script)
    }

    /// An upstream that sends this response to every request.
    pub fn answering(answer: impl Into<Vec<u8>>) -> Upstream {
        let answer = answer.into();
        Upstream::tls(move |peer| {
            while peer.request().is_some() {
                peer.write(&answer);
            }
        })
    }

    /// An upstream that reads one request on each connection and then calls `then`.
    pub fn once(then: impl Fn(&mut Peer) + Send + Sync + 'static) -> Upstream {
        Upstream::tls(move |peer| {
            if peer.request().is_some() {
                then(peer);
            }
        })
    }

    /// An upstream on a free port of 127.0.0.1; `None` as `config` means plain HTTP.
    pub fn new(
        config: Option<ServerConfig>,
        script: impl Fn(&mut Peer) + Send + Sync + 'static,
    ) -> Upstream {
        Upstream::on(TcpListener::bind("127.0.0.1:0").unwrap(), config, script)
    }

    /// An upstream on this listener. `script` runs on a thread of its own for each connection, once
    /// the handshake is complete.
    pub fn on(
        listener: TcpListener,
        config: Option<ServerConfig>,
        script: impl Fn(&mut Peer) + Send + Sync + 'static,
    ) -> Upstream {
        // SAFETY: no memory is involved. The call makes the backlog longer than std does.
        unsafe { libc::listen(listener.as_raw_fd(), 4096) };
        let address = listener.local_addr().unwrap();
        let upstream = Upstream {
            address,
            port: address.port(),
            tls: config.is_some(),
            connections: Arc::default(),
            requests: Arc::default(),
            ended: Arc::default(),
        };
        let config = config.map(Arc::new);
        let script = Arc::new(script);
        let (connections, requests, ended) =
            (upstream.connections.clone(), upstream.requests.clone(), upstream.ended.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if ended.load(Ordering::SeqCst) {
                    break;
                }
                let number = connections.fetch_add(1, Ordering::SeqCst) + 1;
                let (config, script, requests) = (config.clone(), script.clone(), requests.clone());
                std::thread::spawn(move || {
                    stream.set_read_timeout(Some(DEADLINE)).unwrap();
                    stream.set_write_timeout(Some(DEADLINE)).unwrap();
                    stream.set_nodelay(true).unwrap();
                    let wire = match config {
                        None => Wire::Plain(stream),
                        Some(config) => {
                            Wire::Tls(Box::new(ServerConnection::new(config).unwrap()), stream)
                        }
                    };
                    let mut peer =
                        Peer { wire, buffer: Vec::new(), requests, number, resumed: false };
                    if peer.handshake().is_ok() {
                        script(&mut peer);
                    }
                });
            }
        });
        upstream
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn url(&self) -> String {
        self.url_at("localhost")
    }

    /// The URL with another name or address.
    pub fn url_at(&self, host: &str) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://{host}:{}/v1/responses", self.port)
    }

    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
    }
}

impl Read for Peer {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.wire {
            Wire::Plain(stream) => stream.read(buffer),
            Wire::Tls(tls, stream) => rustls::Stream::new(&mut **tls, stream).read(buffer),
        }
    }
}

impl Peer {
    fn handshake(&mut self) -> io::Result<()> {
        if let Wire::Tls(tls, stream) = &mut self.wire {
            while tls.is_handshaking() {
                tls.complete_io(stream)?;
            }
            self.resumed = tls.handshake_kind() == Some(rustls::HandshakeKind::Resumed);
        }
        Ok(())
    }

    pub fn stream(&self) -> &TcpStream {
        match &self.wire {
            Wire::Plain(stream) | Wire::Tls(_, stream) => stream,
        }
    }

    /// The kind of the handshake; `None` without TLS.
    pub fn handshake_kind(&self) -> Option<rustls::HandshakeKind> {
        match &self.wire {
            Wire::Plain(_) => None,
            Wire::Tls(tls, _) => tls.handshake_kind(),
        }
    }

    /// The negotiated TLS version; `None` without TLS.
    pub fn version(&self) -> Option<rustls::ProtocolVersion> {
        match &self.wire {
            Wire::Plain(_) => None,
            Wire::Tls(tls, _) => tls.protocol_version(),
        }
    }

    /// Sends these bytes at once, with TLS in a record. Returns false if the relay has closed the
    /// connection.
    pub fn try_write(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        match &mut self.wire {
            Wire::Plain(stream) => stream.write_all(bytes.as_ref()).is_ok(),
            Wire::Tls(tls, stream) => {
                let mut stream = rustls::Stream::new(&mut **tls, stream);
                stream.write_all(bytes.as_ref()).and_then(|()| stream.flush()).is_ok()
            }
        }
    }

    pub fn write(&mut self, bytes: impl AsRef<[u8]>) {
        assert!(self.try_write(bytes), "the relay takes the response");
    }

    /// The record that [`Peer::write`] would send. The caller writes it to [`Peer::stream`].
    pub fn seal(&mut self, bytes: impl AsRef<[u8]>) -> Vec<u8> {
        let Wire::Tls(tls, _) = &mut self.wire else { panic!("no TLS") };
        tls.writer().write_all(bytes.as_ref()).unwrap();
        let mut record = Vec::new();
        while tls.wants_write() {
            tls.write_tls(&mut record).unwrap();
        }
        record
    }

    /// Reads more bytes. Returns false at the end or after an error.
    fn fill(&mut self) -> bool {
        let mut chunk = vec![0; 65_536];
        match self.read(&mut chunk) {
            Ok(n) if n > 0 => {
                self.buffer.extend(&chunk[..n]);
                true
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => true,
            _ => false,
        }
    }

    /// Reads `n` bytes of a body.
    pub fn take(&mut self, n: usize) -> Vec<u8> {
        self.take_unless_closed(n).expect("the relay closed inside a body")
    }

    /// Reads `n` bytes of a body; `None` if the relay closes the connection before.
    pub fn take_unless_closed(&mut self, n: usize) -> Option<Vec<u8>> {
        while self.buffer.len() < n {
            if !self.fill() {
                return None;
            }
        }
        Some(self.buffer.drain(..n).collect())
    }

    /// Reads the next head; `None` if the relay closes the connection.
    pub fn head(&mut self) -> Option<String> {
        loop {
            if let Some(at) = self.buffer.windows(4).position(|w| w == b"\r\n\r\n") {
                let head = String::from_utf8(self.take(at + 4));
                // A head that is not UTF-8 is read as ISO 8859-1, so that no byte is lost.
                return Some(head.unwrap_or_else(|e| {
                    e.as_bytes().iter().map(|byte| char::from(*byte)).collect()
                }));
            }
            if !self.fill() {
                assert!(self.buffer.is_empty(), "the relay closed inside a head");
                return None;
            }
        }
    }

    /// Reads the next whole request and records it; `None` if the relay closes the connection.
    pub fn request(&mut self) -> Option<Request> {
        let head = self.head()?;
        let body = client::body(&head, &mut |n| self.take(n)).expect("a length");
        let request = Request { head, body };
        self.requests.lock().unwrap().push(request.clone());
        Some(request)
    }

    /// Waits until the relay has closed the connection.
    pub fn closed(&mut self) {
        let start = Instant::now();
        while self.fill() {
            self.buffer.clear();
            assert!(start.elapsed() < DEADLINE);
        }
        assert!(start.elapsed() < DEADLINE, "the relay keeps the connection");
    }

    /// Sends close_notify, then FIN.
    pub fn close(&mut self) {
        if let Wire::Tls(tls, stream) = &mut self.wire {
            tls.send_close_notify();
            let _ = tls.write_tls(stream);
        }
        let _ = self.stream().shutdown(Shutdown::Write);
    }

    /// Shuts the connection down in both directions, without close_notify.
    pub fn cut(&mut self) {
        let _ = self.stream().shutdown(Shutdown::Both);
    }

    /// Makes the connection end with a reset when this peer is dropped.
    pub fn reset(&mut self) {
        reset_on_close(self.stream());
    }
}
