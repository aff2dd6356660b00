//! Tests that the key exchange is post-quantum if the server supports that, and the fallback if
//! not.

use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use ml_kem::EncapsulationKey768;
use ml_kem::kem::TryKeyInit;
use rustls::crypto::ring::kx_group::{SECP256R1, SECP384R1, X25519};
use rustls::crypto::{
    ActiveKeyExchange, CompletedKeyExchange, SharedSecret, SupportedKxGroup, ring,
};
use rustls::{NamedGroup, ProtocolVersion, ServerConfig};
use sha3::Digest;
use shake::digest::{ExtendableOutput, Update, XofReader};

use super::certificates::{Folder, OpensslServer};
use super::memory::may_read;
use super::memory::scanner::{Needles, Scan, scan};
use super::support::{Relay, Upstream, certs, needs_root, ok, post};

/// The server's half of X25519MLKEM768, by another implementation of ML-KEM than the relay's.
#[derive(Debug)]
struct Server;

impl SupportedKxGroup for Server {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, rustls::Error> {
        unreachable!("a server completes at once")
    }

    fn start_and_complete(&self, share: &[u8]) -> Result<CompletedKeyExchange, rustls::Error> {
        let (encapsulation_key, x25519) = share.split_at(1184);
        assert_eq!(x25519.len(), 32);
        let key = EncapsulationKey768::new_from_slice(encapsulation_key).unwrap();
        let mut randomness = [0u8; 32];
        ring::default_provider().secure_random.fill(&mut randomness).unwrap();
        let (ciphertext, secret) = key.encapsulate_deterministic(&randomness.into());
        let classical = X25519.start_and_complete(x25519)?;
        let secret = [&secret[..], classical.secret.secret_bytes()].concat();
        Ok(CompletedKeyExchange {
            group: NamedGroup::X25519MLKEM768,
            pub_key: [&ciphertext[..], &classical.pub_key[..]].concat(),
            secret: SharedSecret::from(secret),
        })
    }

    fn name(&self) -> NamedGroup {
        NamedGroup::X25519MLKEM768
    }

    fn usable_for_version(&self, version: ProtocolVersion) -> bool {
        version == ProtocolVersion::TLSv1_3
    }
}

/// A server that supports only these groups.
fn config(groups: &[&'static dyn SupportedKxGroup]) -> ServerConfig {
    let mut config = certs().config(super::support::upstream::Kind::Good, rustls::ALL_VERSIONS);
    let mut provider = ring::default_provider();
    provider.kx_groups = groups.to_vec();
    let builder = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth();
    let resolver = config.cert_resolver.clone();
    config = builder.with_cert_resolver(resolver);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config
}

/// Each group, and how many ClientHellos it takes.
const GROUPS: [(&[&'static dyn SupportedKxGroup], &str, bool); 4] = [
    (&[&Server, X25519], "X25519MLKEM768", false),
    (&[X25519], "X25519", false),
    (&[SECP256R1], "P-256", true),
    (&[SECP384R1], "P-384", true),
];

#[test]
fn post_quantum_where_the_server_has_it_and_every_other_group_after_a_retry_at_most() {
    for (groups, want, is_retried) in GROUPS {
        let upstream = Upstream::new(Some(config(groups)), move |peer| {
            let kind = if is_retried {
                rustls::HandshakeKind::FullWithHelloRetryRequest
            } else {
                rustls::HandshakeKind::Full
            };
            if !peer.resumed {
                assert_eq!(peer.handshake_kind(), Some(kind));
            }
            if peer.request().is_some() {
                peer.write("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 4\r\n\r\nfine");
                peer.close();
            }
        });
        let (code, out, err) = Relay::to(&upstream.url()).args(["--check"]).run(b"");
        assert_eq!(code, 0, "{err}");
        assert!(out.contains(&format!("TLS 1.3, {want}\n")), "{want}: {out}");
        // Several, so that sessions are resumed too.
        let relay = Relay::to(&upstream.url()).start();
        for _ in 0..3 {
            assert_eq!(relay.connect().send(post("", "{}")).response().text(), "fine");
        }
    }
}

#[test]
fn a_client_hello_of_several_segments_is_whole_to_the_server() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let segment: libc::c_int = 536;
    // SAFETY: the kernel reads one number that outlives the call.
    let result = unsafe {
        libc::setsockopt(
            listener.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_MAXSEG,
            std::ptr::from_ref(&segment).cast(),
            size_of_val(&segment) as libc::socklen_t,
        )
    };
    assert_eq!(result, 0);
    let upstream = Upstream::on(listener, Some(config(&[&Server])), |peer| {
        while peer.request().is_some() {
            peer.write(ok("fine"));
        }
    });
    let relay = Relay::to(&upstream.url()).start();
    assert_eq!(relay.connect().send(post("", "{}")).response().text(), "fine");
}

/// A server whose ML-KEM ciphertext is damaged, whose share is too short, or of small order.
#[derive(Debug)]
struct Damaged(usize, u8);

impl SupportedKxGroup for Damaged {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, rustls::Error> {
        unreachable!("a server completes at once")
    }

    fn start_and_complete(&self, share: &[u8]) -> Result<CompletedKeyExchange, rustls::Error> {
        let mut completed = Server.start_and_complete(share)?;
        match self.0 {
            0 => completed.pub_key[17] ^= self.1,
            1 => completed.pub_key.truncate(1088 + 31),
            2 => completed.pub_key[1088..].fill(0),
            _ => completed.pub_key.push(0),
        }
        Ok(completed)
    }

    fn name(&self) -> NamedGroup {
        NamedGroup::X25519MLKEM768
    }
}

#[test]
fn a_share_that_is_damaged_ends_the_handshake() {
    static DAMAGED: [Damaged; 4] = [Damaged(0, 1), Damaged(1, 0), Damaged(2, 0), Damaged(3, 0)];
    for damaged in &DAMAGED {
        let upstream = Upstream::new(Some(config(&[damaged])), |_| {});
        let relay = Relay::to(&upstream.url()).start();
        let response = relay.connect().send(post("", "{}")).response();
        assert_eq!((response.status, response.code()), (502, "upstream_tls_failed"), "{damaged:?}");
        assert!(upstream.requests().is_empty());
    }
}

/// A server that looks into the memory of the relay in the middle of a handshake.
#[derive(Debug)]
struct Onlooker;

/// The relay's process.
static WATCHED: AtomicU32 = AtomicU32::new(0);

/// What the server knows of an exchange: the hash of the encapsulation key, which the private key
/// holds between its secret parts (FIPS 203, algorithm 16), and the secret of ML-KEM.
struct Exchanged {
    hash: [u8; 32],
    secret: [u8; 32],
    during: Scan,
}
static EXCHANGED: Mutex<Vec<Exchanged>> = Mutex::new(Vec::new());

impl SupportedKxGroup for Onlooker {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, rustls::Error> {
        unreachable!("a server completes at once")
    }

    fn start_and_complete(&self, share: &[u8]) -> Result<CompletedKeyExchange, rustls::Error> {
        let hash: [u8; 32] = sha3::Sha3_256::digest(&share[..1184]).into();
        let completed = Server.start_and_complete(share)?;
        let secret = *completed.secret.secret_bytes().first_chunk().unwrap();
        let during = scan(WATCHED.load(Ordering::SeqCst), &Needles::new(&hash)).unwrap();
        EXCHANGED.lock().unwrap().push(Exchanged { hash, secret, during });
        Ok(completed)
    }

    fn name(&self) -> NamedGroup {
        NamedGroup::X25519MLKEM768
    }

    fn usable_for_version(&self, version: ProtocolVersion) -> bool {
        version == ProtocolVersion::TLSv1_3
    }
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn the_secrets_of_an_exchange_are_wiped_when_it_has_ended() {
    needs_root();
    let upstream = Upstream::new(Some(config(&[&Onlooker])), |peer| {
        while peer.request().is_some() {
            peer.write(ok("fine"));
        }
    });
    let relay = Relay::to(&upstream.url()).start();
    if !may_read(&relay) {
        return;
    }
    WATCHED.store(relay.pid(), Ordering::SeqCst);
    let mut client = relay.connect();
    for _ in 0..2 {
        assert_eq!(client.send(post("", "{}")).response().text(), "fine");
    }
    let exchanged = EXCHANGED.lock().unwrap();
    assert_eq!(exchanged.len(), 1, "one connection, which is still open");
    for Exchanged { hash, secret, during } in &*exchanged {
        assert!(!during.hits.is_empty(), "the private key is where the relay waits for a share");
        for (what, secret) in [("private key", hash), ("secret of ML-KEM", secret)] {
            let places: Vec<String> = scan(relay.pid(), &Needles::new(secret))
                .unwrap()
                .hits
                .into_iter()
                .map(|hit| hit.place)
                .collect();
            assert!(places.is_empty(), "the {what} in {places:?}");
        }
    }
}

/// The accumulated vectors of C2SP's CCTV for ML-KEM-768 as in FIPS 203: keys, ciphertexts and
/// secrets of 100 key pairs, and what becomes of 100 ciphertexts that fit no key.
#[test]
fn ml_kem_is_that_of_fips_203() {
    use libcrux_ml_kem::mlkem768::{MlKem768Ciphertext, portable};
    let mut random = shake::Shake128::default().finalize_xof();
    let mut all = shake::Shake128::default();
    for _ in 0..100 {
        let (mut seed, mut message, mut foreign) = ([0; 64], [0; 32], [0; 1088]);
        random.read(&mut seed);
        let pair = portable::generate_key_pair(seed);
        all.update(pair.pk());
        random.read(&mut message);
        let (ciphertext, secret) = portable::encapsulate(pair.public_key(), message);
        all.update(ciphertext.as_slice());
        all.update(&secret);
        assert_eq!(portable::decapsulate(pair.private_key(), &ciphertext), secret);
        random.read(&mut foreign);
        let foreign = MlKem768Ciphertext::from(foreign);
        all.update(&portable::decapsulate(pair.private_key(), &foreign));
    }
    let mut digest = [0; 32];
    all.finalize_xof().read(&mut digest);
    let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(digest, "1114b1b6699ed191734fa339376afa7e285c9e6acf6ff0177d346696ce564415");
}

#[test]
#[ignore = "needs OpenSSL 3.5 or later: tests/openssl.sh"]
fn openssl_with_ml_kem_agrees_and_its_other_groups_do_too() {
    let program = std::env::var("OPENSSL_WITH_ML_KEM").expect("the path of an openssl program");
    let folder = Folder::new("ml-kem");
    folder.openssl(
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=localhost -addext \
         subjectAltName=DNS:localhost -days 9 -keyout key -out certificate",
    );
    for (groups, want) in [
        ("X25519MLKEM768", "X25519MLKEM768"),
        ("X25519MLKEM768:X25519", "X25519MLKEM768"),
        ("X25519", "X25519"),
        ("P-256:P-384", "P-256"),
        ("SecP256r1MLKEM768:P-384", "P-384"),
    ] {
        let options = format!("-cert certificate -key key -tls1_3 -groups {groups}");
        let server = OpensslServer::start(&program, &folder, &options);
        let (code, out, err) = Relay::bare()
            .args(["--upstream-url", &format!("https://localhost:{}/", server.port)])
            .args(["--ca-file", &folder.file("certificate"), "--check"])
            .run(b"");
        assert!(code == 0 && out.contains(&format!("TLS 1.3, {want}\n")), "{groups}: {out}{err}");
    }
}
